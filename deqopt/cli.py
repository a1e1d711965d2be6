"""The command `deqopt`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from deqopt.errors import DeqoptError
from deqopt.registry import Group, listing

LISTINGS = {group.plural: group for group in Group}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``deqopt`` with the given arguments, by default those of the process.

    ``deqopt tasks`` and ``deqopt solvers`` list what is installed, without loading torch. Everything else is
    :class:`deqopt.joint_cli.JointCLI`. Errors whose text is meant for the user end in one line and exit status 2.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words and words[0] in LISTINGS:
            if words[1:]:
                raise DeqoptError(f"'deqopt {words[0]}' takes no arguments, got {' '.join(words[1:])}")
            print(listing(LISTINGS[words[0]]))
            return
        from deqopt.joint_cli import run

        run(words)
    except DeqoptError as error:
        print(f"deqopt: error: {error}", file=sys.stderr)
        sys.exit(2)
