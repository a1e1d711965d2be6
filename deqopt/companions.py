"""The processes of one run know at once when one of them ends before its time."""

from __future__ import annotations

import hmac
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from secrets import token_hex

BYE = "bye"
"""The last line of a process that has done its work."""


@dataclass(frozen=True)
class Meeting:
    """Where the first process waits for the others, and the word by which it knows them."""

    host: str
    port: int
    word: str


@dataclass(frozen=True)
class Loss:
    """A process that ended before its time.

    Args:
        rank: of the process.
        status: its exit status, 1 where it could not tell.
        reason: in one line; empty where it could not tell, as after SIGKILL.
    """

    rank: int
    status: int = 1
    reason: str = ""

    @property
    def line(self) -> str:
        """The loss as one line, which :meth:`parse` reads."""
        return f"{self.rank} {self.status} {' '.join(self.reason.split())}"

    @staticmethod
    def parse(line: str, sender: int) -> Loss:
        """The loss that a line tells of; that of its sender, without a reason, where the line says nothing."""
        rank, status, reason = (*line.strip().split(" ", 2), "", "", "")[:3]
        return Loss(int(rank), int(status), reason) if rank.isdecimal() and status.isdecimal() else Loss(sender)


class Companions:
    """A star of connections around the first process; one is closed when its process ends, whatever ends it.

    No clock is involved: a process that is slow, or that was stopped and goes on, is no loss.

    Args:
        rank: of this process.
        size: number of processes.
        lost: called at most once, in a thread of its own, when another process is lost.
    """

    def __init__(self, rank: int, size: int, lost: Callable[[Loss], None]) -> None:
        self._rank, self._size, self._lost = rank, size, lost
        self._connections: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.first_ended = threading.Event()
        """Set when the first process has ended."""
        self.first_loss: Loss | None = None
        """Why the first process ended before its time, where it said so."""

    # -- meeting --------------------------------------------------------------------------------------------------

    def wait(self, host: str) -> Meeting:
        """Begin to listen, in the first process; the meeting is to be told to the others."""
        server = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        meeting = Meeting(host, server.getsockname()[1], token_hex())
        self._start(partial(self._admit, server, meeting.word))
        return meeting

    def join(self, meeting: Meeting) -> None:
        """Connect, in every other process."""
        connection = socket.create_connection((meeting.host, meeting.port), timeout=60)
        connection.settimeout(None)
        connection.sendall(f"{meeting.word} {self._rank}\n".encode())
        self._connections[0] = connection
        self._start(partial(self._listen, 0, connection))

    def _admit(self, server: socket.socket, word: str) -> None:
        with server:
            while len(self._connections) < self._size - 1:
                connection, _ = server.accept()
                given, _, rank = connection.makefile(encoding="utf-8", errors="replace").readline().partition(" ")
                if hmac.compare_digest(given.encode(), word.encode()) and rank.strip().isdecimal():
                    with self._lock:
                        self._connections[int(rank)] = connection
                    self._start(partial(self._listen, int(rank), connection))
                else:
                    connection.close()

    # -- parting --------------------------------------------------------------------------------------------------

    def leave(self, loss: Loss | None = None) -> None:
        """Say goodbye to the others, or why this process ends before its time."""
        self._over.set()
        self._tell(BYE if loss is None else loss.line)

    def _listen(self, rank: int, connection: socket.socket) -> None:
        with suppress(OSError), connection.makefile(encoding="utf-8", errors="replace") as lines:
            line = lines.readline()
            if line.strip() != BYE:
                self._heard(Loss.parse(line, rank), rank)
            lines.read()  # until the process ends
        if rank == 0:
            self.first_ended.set()

    def _heard(self, loss: Loss, sender: int) -> None:
        if loss.rank == 0 and loss.reason:
            self.first_loss = loss
        if self._over.is_set():
            return
        self._over.set()
        if self._rank == 0:
            self._tell(loss.line, but=sender)
        self._lost(loss)

    def _tell(self, line: str, but: int | None = None) -> None:
        with self._lock:
            connections = dict(self._connections)
        for rank, connection in connections.items():
            if rank != but:
                with suppress(OSError):  # who is gone need not be told
                    connection.sendall(f"{line}\n".encode())

    @staticmethod
    def _start(work: Callable[[], object]) -> None:
        threading.Thread(target=work, daemon=True, name="companions").start()
