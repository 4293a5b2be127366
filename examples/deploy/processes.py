"""The service's processes on one machine, for the demo and the tests, by the scripts that the image runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent
# Plenty, for a machine that is busy with something else.
PATIENCE = 120


class Process:
    """One of them, with all that it says in a file; ended with everything that it started."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def said(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until it has said this.

        :raises RuntimeError: it ended before, or took far too long.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            ended = self._process.poll() is not None
            found = re.search(pattern, self.said)
            if found:
                return found
            if ended or time.monotonic() > deadline:
                what = f"ended ({self._process.returncode})" if ended else "is not ready"
                raise RuntimeError(f"{self.name} {what} without a word of {pattern!r}:\n{self.said}")
            time.sleep(0.03)

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        return self._process.wait(PATIENCE)

    def terminate(self) -> int:
        """End it as Docker and systemd do, and return its exit code."""
        self._process.terminate()
        return self.wait()

    def close(self) -> None:
        """Leave nothing of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


class Machine:
    """Where they run: one environment, one folder for what they say.

    :param service: this folder, or a copy of it, named ``deploy`` too.
    """

    def __init__(self, folder: Path, *, service: Path = HERE, **environment: str) -> None:
        self.folder = folder
        self.service = service
        self.processes: list[Process] = []
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        importable = os.pathsep.join(filter(None, [str(service.parent), os.environ.get("PYTHONPATH")]))
        self.environment = {**os.environ, "PATH": path, "PYTHONPATH": importable, **environment}

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:  # all at once, as a machine that is switched off
            process.close()

    def start(self, name: str, *arguments: str, **more: str) -> Process:
        """Start a container's first process, with the arguments that would stand in compose.yaml."""
        command = [str(self.service / "entrypoint.sh"), *arguments]
        process = Process(name, command, {**self.environment, **more}, self.folder)
        self.processes.append(process)
        return process

    def replica(self, name: str, *arguments: str, **more: str) -> Process:
        """Start a web replica, on a port that is free."""
        return self.start(name, "web", *arguments, BIND="127.0.0.1:0", **more)

    def run(self, script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run one of the scripts to its end."""
        return subprocess.run(
            [str(self.service / script), *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.environment, **more},
            timeout=PATIENCE,
        )


def address(replica: Process) -> str:
    """Wait until a replica listens, and return where: http://127.0.0.1:40123."""
    return replica.wait_for(r"Listening at: (http://\S+)")[1]
