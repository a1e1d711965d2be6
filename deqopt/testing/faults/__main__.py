"""``python -m deqopt.testing.faults``: see ``--help``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from deqopt.testing.faults.catalogue import CLASSES, plan
from deqopt.testing.faults.forked import LIMIT
from deqopt.testing.faults.outcome import Verdict
from deqopt.testing.faults.program import BY_NAME, Summary, described, legend, verdicts

MOST_JOBS, PROGRESS = 64, 25


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deqopt.testing.faults",
        description="Injects faults into tiny runs and judges whether what docs/reliability.md promises came true. "
        "Prints a table, and how to repeat every case that fell. Exits with 1 where one did.",
        epilog="classes: " + ", ".join(BY_NAME),
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the faults (default 0)")
    parser.add_argument("--count", type=int, default=100, help="how many faults (default 100)")
    parser.add_argument(
        "--only", action="append", choices=list(BY_NAME), metavar="CLASS", help="may be given several times"
    )
    parser.add_argument(
        "--case",
        type=int,
        help="only the case with this number, of the class given by --only; shows all that its commands wrote",
    )
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time (default 1)")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds after which it hangs (default {LIMIT:g})")
    parser.add_argument("--list", action="store_true", help="what each class promises, and nothing else")
    chosen = parser.parse_args(argv)
    if chosen.count < 1:
        parser.error(f"--count must be at least 1, got {chosen.count}")
    if not 1 <= chosen.jobs <= MOST_JOBS:
        parser.error(f"--jobs must be from 1 to {MOST_JOBS}, got {chosen.jobs}")
    if not chosen.limit > 0:
        parser.error(f"--limit must be larger than 0, got {chosen.limit}")
    if chosen.case is not None and (chosen.case < 0 or len(chosen.only or ()) != 1):
        parser.error("--case needs a number from 0 and exactly one --only CLASS")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    if chosen.list:
        for one in CLASSES:
            print(f"{one.name}: {one.promise}")
        return 0
    classes = [one for one in CLASSES if chosen.only is None or one.name in chosen.only]
    planned = plan(classes, chosen.count) if chosen.case is None else [(classes[0], chosen.case)]
    began = time.monotonic()
    found: list[Verdict] = []
    try:
        for verdict in verdicts(planned, chosen.seed, chosen.jobs, chosen.limit):
            found.append(verdict)
            if len(found) % PROGRESS == 0:
                print(f"{len(found)} of {len(planned)}", file=sys.stderr, flush=True)
            if chosen.case is not None:
                print(verdict.transcript)
            if verdict.why:
                print(described(chosen.seed, verdict), flush=True)
    except KeyboardInterrupt:
        print(f"stopped after {len(found)} of {len(planned)}")
    summary = Summary(chosen.seed, tuple(found))
    print(f"\n{summary}\n\nseed {chosen.seed}, {time.monotonic() - began:.0f} s")
    if summary.fallen:
        print(legend([one.outcome for one in summary.fallen]))
    return int(bool(summary.fallen) or len(found) < len(planned))


if __name__ == "__main__":
    sys.exit(main())
