"""A door to a server that reads what goes through it, numbers the requests, and does harm to one of them.

A request is what a client sends before it waits for an answer: a simple query, of one statement or many, or
the messages up to a Sync or a Flush. So it is the same to psycopg2, psycopg and asyncpg; and harm is done
between the statements of one text, too.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from sqlalchemy import URL

#: Messages of a client after which it waits.
_WAITS = b"QSH"
_TLS, _GSS, _CANCEL = 80877103, 80877104, 80877102
# A text is cut at semicolons outside of strings, names, comments and dollar quotes.
_PIECES = re.compile(
    r"(?s)(?P<quoted>[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\"[^\"]*\"|--[^\n]*|/\*.*?\*/|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)"
    r"|(?P<end>;)"
)


def pieces(text: str) -> list[str]:
    """Return the statements of a text, without the semicolons between them."""
    ends = [match.start() for match in _PIECES.finditer(text) if match["end"]]
    cuts = zip([0, *(end + 1 for end in ends)], [*ends, len(text)], strict=True)
    return [text[begin:end].strip() for begin, end in cuts if text[begin:end].strip()]


@dataclass(frozen=True)
class Request:
    """What a client sent before it waited."""

    number: int
    text: str
    #: The server process that it was sent to, and whether it opens the connection.
    pid: int | None = None
    opens: bool = False

    @property
    def statements(self) -> list[str]:
        return pieces(self.text)


@dataclass(frozen=True)
class Harm:
    """What is done to which request: ``cut before``, ``cut after``, ``killed``, ``held``, or a SQLSTATE."""

    what: str
    number: int
    #: Which of its statements a SQLSTATE comes for.
    piece: int = 0
    #: Seconds after which a request's server process is killed.
    after: float = 0.0


@dataclass
class Wire:
    """Listens while it is open."""

    target: URL
    #: Ends a server process; keeps locks from everybody for a moment.
    kill: Callable[[int], None]
    hold: Callable[[], None]
    port: int = 0
    harm: Harm | None = None
    requests: list[Request] = field(default_factory=list)
    #: What has been done harm to.
    met: Request | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arm(self, harm: Harm | None) -> None:
        """Count from one again."""
        with self._lock:
            self.harm, self.met, self.requests = harm, None, []

    def number(self, text: str, pid: int | None, opens: bool = False) -> Harm | None:
        """Note a request; return what is to be done to it."""
        with self._lock:
            request = Request(len(self.requests) + 1, text, pid, opens)
            self.requests.append(request)
            if self.harm is None or self.harm.number != request.number:
                return None
            self.met = request
            return self.harm


@contextmanager
def wire(target: URL, kill: Callable[[int], None], hold: Callable[[], None]) -> Iterator[Wire]:
    """Open a door for the length of a ``with`` block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Wire(target, kill, hold, listener.getsockname()[1])

        def let_in() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=_Line(made, client).serve, daemon=True).start()

        threading.Thread(target=let_in, daemon=True).start()
        yield made
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


class _Cut(Exception):
    """This connection ends here."""


class _Line:
    """One connection through the door."""

    def __init__(self, door: Wire, client: socket.socket) -> None:
        self._door, self._client = door, client
        self._server: socket.socket | None = None
        self._pid: int | None = None
        self._answered = threading.Event()
        # What of the server's answers is kept from the client: everything, or that it is ready again.
        self._mute = self._not_ready = False
        self._prepared: dict[bytes, str] = {}

    def serve(self) -> None:
        try:
            self._open()
            while True:
                self._pass_on(*self._request())
        except (OSError, _Cut, EOFError):
            pass
        finally:
            for one in (self._client, self._server):
                if one is not None:
                    with suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)
                    one.close()

    def _open(self) -> None:
        while True:
            head = _exactly(self._client, 4)
            body = _exactly(self._client, struct.unpack("!I", head)[0] - 4)
            code = struct.unpack("!I", body[:4])[0]
            if code not in (_TLS, _GSS):
                break
            self._client.sendall(b"N")
        self._server = socket.create_connection(
            (self._door.target.host or "", self._door.target.port or 5432)
        )
        self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if code == _CANCEL:
            self._server.sendall(head + body)
            raise _Cut
        threading.Thread(target=self._answers, args=(self._server,), daemon=True).start()
        self._pass_on(head + body, "(connects)", opens=True)

    def _request(self) -> tuple[bytes, str]:
        """Read up to where the client waits; return the messages and their text."""
        sent, texts, waits = b"", [], True
        while True:
            kind = _exactly(self._client, 1)
            head = _exactly(self._client, 4)
            body = _exactly(self._client, struct.unpack("!I", head)[0] - 4)
            sent += kind + head + body
            if kind == b"Q":
                texts.append(body.rstrip(b"\0").decode())
            elif kind == b"P":
                name, query, _ = body.split(b"\0", 2)
                self._prepared[name] = query.decode()
                texts.append(self._prepared[name])
            elif kind == b"B":
                text = self._prepared.get(body.split(b"\0", 2)[1], "")
                texts += [text] if text and text not in texts else []
            elif kind not in b"DECSH":  # passwords, COPY, the end: nobody waits, or nothing of ours
                waits = False
            if kind in _WAITS or not waits:
                return sent, "; ".join(texts)

    def _pass_on(self, sent: bytes, text: str, opens: bool = False) -> None:
        assert self._server is not None
        kind = sent[-5:-4] if sent.endswith((b"S\0\0\0\4", b"H\0\0\0\4")) else sent[:1]
        numbered = opens or text
        harm = self._door.number(text, self._pid, opens) if numbered else None
        self._answered.clear()
        if harm is None:
            self._server.sendall(sent)
        elif harm.what == "cut before":
            raise _Cut
        elif harm.what == "cut after":
            self._mute = True
            self._server.sendall(sent)
            self._answered.wait(10)
            raise _Cut
        elif harm.what == "killed":
            self._server.sendall(sent)
            time.sleep(harm.after)
            if self._pid is not None:
                self._door.kill(self._pid)
        elif harm.what == "held":
            self._door.hold()
            self._server.sendall(sent)
        else:
            self._not_ready = kind == b"H"  # the client sends a Sync yet, and is ready then
            instead = _raising(harm.what)
            if kind == b"Q":
                parts = pieces(text)
                # A COMMIT that fails leaves no transaction behind.
                ends = "ROLLBACK; " if parts[harm.piece].upper().startswith("COMMIT") else ""
                instead = "; ".join([*parts[: harm.piece], ends + instead, *parts[harm.piece + 1 :]])
            query = instead.encode() + b"\0"
            self._server.sendall(b"Q" + struct.pack("!I", len(query) + 4) + query)

    def _answers(self, server: socket.socket) -> None:
        with suppress(OSError, EOFError):
            while True:
                kind = _exactly(server, 1)
                head = _exactly(server, 4)
                body = _exactly(server, struct.unpack("!I", head)[0] - 4)
                if kind == b"K":
                    self._pid = struct.unpack("!I", body[:4])[0]
                if kind in b"ZEt1":  # ready, failed; or what a Flush brings. Before the client can go on.
                    self._answered.set()
                swallowed = kind == b"Z" and self._not_ready
                if swallowed:
                    self._not_ready = False
                if not self._mute and not swallowed:
                    self._client.sendall(kind + head + body)
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)


def _raising(code: str) -> str:
    return f"DO $torture$ BEGIN RAISE EXCEPTION 'a torture' USING ERRCODE = '{code}'; END $torture$"


def _exactly(one: socket.socket, count: int) -> bytes:
    read = b""
    while len(read) < count:
        more = one.recv(count - len(read))
        if not more:
            raise EOFError
        read += more
    return read
