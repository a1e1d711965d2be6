"""The command `deqopt`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from shutil import get_terminal_size

from deqopt.command_line.names import RUNS
from deqopt.errors import DeqoptError
from deqopt.registry import Group, listing
from deqopt.signals import Interrupted, signals

LISTINGS = {group.plural: group for group in Group}

HELP = """\
usage: deqopt COMMAND [OPTION ...]

Trains and runs deep equilibrium networks whose input is optimised while it is being inferred.

commands:
  fit        train on the task's training data
  validate   measure a trained network on the validation data
  test       measure a trained network on the test data
  predict    solve for data of your own, and write what the task makes of it
  tasks      list the tasks that are installed
  solvers    list the solvers that are installed

options:
  -h, --help     show this help; after a command, its options
  --version      show the version
  --trust NAME   after a command: let files name classes of this package

examples:
  deqopt fit --task celeba --task.root FACES --trainer.max_epochs 20
  deqopt fit --config configs/demo/celeba.yaml --solver JointAnderson
  deqopt fit --task.help celeba
  deqopt test --ckpt_path last
  deqopt predict --ckpt_path best --task.root MY_IMAGES
"""


def console() -> None:
    """Run ``deqopt`` as a process of its own: while Python leaves, a signal has nothing to interrupt any more."""
    with signals.heeded():  # until they are ignored, so that between the two none finds Python's own handlers
        try:
            main()
        finally:
            signals.ignore()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``deqopt`` with the given arguments, by default those of the process.

    Only the runs (``fit`` and its kin, see :class:`deqopt.command_line.joint_cli.JointCLI`) load torch. Errors whose
    text is meant for the user end in one line and exit status 2; a signal ends in one line and its conventional exit
    status, 143 for SIGTERM, 130 for Ctrl-C, 129 for SIGHUP.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with signals.heeded():
            _command(words)(words[1:])
    except DeqoptError as error:
        print(f"deqopt: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Interrupted as end:
        if end.reason:
            print(f"deqopt: {end.reason}", file=sys.stderr)
        sys.exit(end.status)


def _command(words: Sequence[str]) -> Callable[[Sequence[str]], None]:
    name = words[0] if words else None
    if name in RUNS:
        from deqopt.command_line.joint_cli import run

        return lambda rest: run(name, rest)
    if name in LISTINGS:
        group = LISTINGS[name]
        return lambda rest: _print_alone(name, rest, listing(group, _terminal_width()))
    if name in ("-h", "--help"):
        return lambda rest: print(HELP, end="")
    if name == "--version":
        from deqopt import __version__

        return lambda rest: _print_alone(name, rest, f"deqopt {__version__}")
    raise DeqoptError(_no_command(name))


def _terminal_width() -> int | None:
    """The width of the terminal; None where the output goes elsewhere, so that a line stays a plugin."""
    return get_terminal_size().columns if sys.stdout.isatty() else None


def _print_alone(name: str, rest: Sequence[str], text: str) -> None:
    if rest:
        raise DeqoptError(f"'deqopt {name}' takes no arguments, got {' '.join(rest)}")
    print(text)


def _no_command(name: str | None) -> str:
    known = (*RUNS, *LISTINGS)
    choices = f"the commands are {', '.join(known)}; 'deqopt --help' says more"
    if name is None:
        return f"a command is missing: {choices}"
    if name.startswith("-"):
        return f"the command comes before its options, as in 'deqopt fit {name}': {choices}"
    nearest = get_close_matches(name, known, n=1)
    return f"unknown command {name!r}: {f'did you mean {nearest[0]!r}? ' if nearest else ''}{choices}"
