"""The processes of a run learn at once, and with its reason, when one of them ends before its time."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deqopt.companions import Companions, Loss, Meeting

SIZE = 3
LIMIT = 30.0
Ending = Callable[[Companions, int], None]


def killed(companions: Companions, rank: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raised(companions: Companions, rank: int) -> None:
    companions.leave(Loss(rank, 2, "DataError: no\nimages"))
    os._exit(2)


def done(companions: Companions, rank: int) -> None:
    companions.leave()
    os._exit(0)


def stays(companions: Companions, rank: int) -> None:
    """Works on; ends as if in order after a while."""
    time.sleep(2)
    done(companions, rank)


class Group:
    """Processes that meet, of which each then ends in its way and leaves what it heard of in a file."""

    def __init__(self, folder: Path, endings: dict[int, Ending]) -> None:
        self._folder = folder
        self.processes = {rank: self._fork(rank, endings.get(rank, stays)) for rank in range(SIZE)}

    def _fork(self, rank: int, ending: Ending) -> int:
        process = os.fork()
        if process:
            return process
        threading.Timer(LIMIT, lambda: os._exit(99)).start()
        companions = Companions(rank, SIZE, lambda loss: self._heard(rank, loss))
        where = self._folder / "meeting"
        if rank == 0:
            meeting = companions.wait("127.0.0.1")
            (self._folder / "new").write_text(f"{meeting.port} {meeting.word}")
            (self._folder / "new").rename(where)
        else:
            while not where.exists():
                time.sleep(0.01)
            port, word = where.read_text().split()
            companions.join(Meeting("127.0.0.1", int(port), word))
        (self._folder / f"met_{rank}").touch()
        while len(list(self._folder.glob("met_*"))) < SIZE:
            time.sleep(0.01)
        time.sleep(0.2)
        ending(companions, rank)
        os._exit(1)

    def _heard(self, rank: int, loss: Loss) -> None:
        (self._folder / f"heard_{rank}").write_text(loss.line)
        os._exit(17)

    def end(self) -> dict[int, int]:
        """Exit statuses by rank; minus the number of a signal."""
        return {rank: os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for rank, process in self.processes.items()}

    def heard(self) -> dict[int, Loss]:
        return {int(path.name[6:]): Loss.parse(path.read_text(), -1) for path in sorted(self._folder.glob("heard_*"))}


ENDINGS: dict[str, tuple[Ending, int, tuple[Any, ...] | None]] = {
    "killed": (killed, -signal.SIGKILL, ()),
    "raised": (raised, 2, (2, "DataError: no images")),
    "done": (done, 0, None),
}
"""With the exit status, and what all others hear of it."""


@pytest.mark.parametrize("rank", range(SIZE))
@pytest.mark.parametrize("name", ENDINGS)
def test_all_others_hear_how_a_process_ended_before_its_work_was_done(name: str, rank: int, tmp_path: Path) -> None:
    ending, status, told = ENDINGS[name]
    group, others = Group(tmp_path, {rank: ending}), set(range(SIZE)) - {rank}
    assert group.end() == {rank: status, **dict.fromkeys(others, 0 if told is None else 17)}
    assert group.heard() == ({} if told is None else dict.fromkeys(others, Loss(rank, *told)))


def test_a_process_that_is_stopped_and_goes_on_is_no_loss(tmp_path: Path) -> None:
    group = Group(tmp_path, {})
    os.kill(group.processes[1], signal.SIGSTOP)
    time.sleep(1)
    os.kill(group.processes[1], signal.SIGCONT)
    assert set(group.end().values()) == {0} and not group.heard()


def test_strangers_are_neither_heard_nor_missed(tmp_path: Path) -> None:
    heard: list[Loss] = []
    first, second = Companions(0, 2, heard.append), Companions(1, 2, heard.append)
    meeting = first.wait("127.0.0.1")
    for words in ("", "1\n", f"{'0' * len(meeting.word)} 1\n", f"{meeting.word} x\n", "\xff\n"):
        with socket.create_connection((meeting.host, meeting.port)) as stranger:
            stranger.sendall(words.encode("latin-1"))
    second.join(meeting)
    second.leave()
    first.leave()
    assert not heard


@pytest.mark.parametrize("line", ["", "x", "1", "1 x", "1 x y", "\ufffd"])
def test_a_line_that_says_nothing_tells_of_its_sender(line: str) -> None:
    assert Loss.parse(line, 4) == Loss(4)
