"""A second signal while the first ends the command: at every line, the process ends with the signal's exit status."""

from __future__ import annotations

from processes import python

SCRIPT = """
import os, signal, sys
from deqopt import cli

signal.signal(signal.SIGINT, signal.default_int_handler)
LAST = 400


def send_at(line):
    left = line

    def trace(frame, event, _):
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGINT)
        return trace

    return trace


def wait(_):
    frame = sys._getframe()
    while frame is not None:
        frame.f_trace, frame = trace, frame.f_back
    sys.settrace(trace)
    os.kill(os.getpid(), FIRST)


cli._command = lambda words: wait
for FIRST in (signal.SIGINT, signal.SIGTERM):
    for line in range(1, LAST):
        trace = send_at(line)
        child = os.fork()
        if child == 0:
            sys.argv = ["deqopt"]
            try:
                cli.console()
            except SystemExit as end:
                os._exit(end.code)
            except BaseException:
                os._exit(1)
            os._exit(2)
        _, status = os.waitpid(child, 0)
        print(int(FIRST), line, os.waitstatus_to_exitcode(status))
"""


def test_the_second_signal_finds_no_handler_of_python_itself() -> None:
    ended = [tuple(map(int, line.split())) for line in python("-c", SCRIPT).stdout.splitlines()]
    assert not [one for one in ended if one[2] not in (130, 143)]
    assert (15, 1, 130) in ended and ended[-1][2] == 143, "the second signal came both before and after the end"
