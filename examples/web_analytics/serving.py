"""The service as a process of its own, for the demo and the tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1]
#: What is run, in the folder of the examples.
COMMAND = ("-m", "uvicorn", "--factory", "web_analytics.app:create_app")


@contextmanager
def service(log: Path, **settings: str) -> Iterator[str]:
    """Start the service on a port that is free; yield its address when it answers, and end it afterwards.

    :param log: where what it says is written.
    :param settings: environment variables.
    """
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *COMMAND, "--port", "0"],
            cwd=EXAMPLES,
            env=os.environ | settings,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _address(process: subprocess.Popen[bytes], log: Path, patience: float = 60) -> str:
    give_up_at = time.monotonic() + patience
    while time.monotonic() < give_up_at and process.poll() is None:
        told = re.search(r"Uvicorn running on (http://\S+)", log.read_text())
        if told is not None:
            return told[1]
        time.sleep(0.02)
    raise RuntimeError(f"the service has not started:\n{log.read_text()}")
