"""The classes of faults. A new one is a function of a case, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from deqopt.testing.faults import (
    damage,
    disks,
    exceptions,
    numbers,
    poisoned_data,
    poisoned_files,
    ranks,
    resuming,
    signals,
    together,
)
from deqopt.testing.faults.workbench import Case


@dataclass(frozen=True)
class FaultClass:
    """Faults of one kind.

    Attributes:
        share: how many of a hundred faults are of this class, roughly.
        inject: draws a fault, does it, and raises :class:`Broken` where what is promised does not come. Its docstring
            is the promise.
    """

    name: str
    share: float
    inject: Callable[[Case], None]

    @property
    def promise(self) -> str:
        return " ".join((self.inject.__doc__ or "").split())


CLASSES = (
    FaultClass("signal", 16, signals.a_signal),
    FaultClass("two-interrupts", 4, signals.two_interrupts),
    FaultClass("evaluation-signal", 4, signals.a_signal_to_an_evaluation),
    FaultClass("start-signal", 1, signals.a_signal_while_it_starts),
    FaultClass("exception", 7, exceptions.an_exception),
    FaultClass("data-exception", 4, exceptions.an_exception_in_the_data),
    FaultClass("dead-worker", 3, exceptions.a_dead_worker),
    FaultClass("descriptors", 2, exceptions.no_descriptors),
    FaultClass("memory", 2, exceptions.no_memory),
    FaultClass("full-files", 4, disks.a_full_disk),
    FaultClass("full-disk", 4, disks.a_small_disk),
    FaultClass("full-terminal", 2, disks.a_full_terminal),
    FaultClass("no-folder", 2, disks.no_folder),
    FaultClass("lost-folder", 2, disks.a_folder_that_closes),
    FaultClass("damaged-checkpoint", 8, damage.a_checkpoint),
    FaultClass("damaged-settings", 2, damage.settings),
    FaultClass("damaged-run", 2, damage.what_a_run_wrote),
    FaultClass("damaged-data", 2, damage.data),
    FaultClass("damaged-image", 2, damage.images),
    FaultClass("poisoned-folder", 7, poisoned_data.a_folder),
    FaultClass("poisoned-archive", 4, poisoned_data.an_archive),
    FaultClass("poisoned-checkpoint", 7, poisoned_files.a_checkpoint),
    FaultClass("pickled-checkpoint", 2, poisoned_files.a_pickle),
    FaultClass("poisoned-settings", 5, poisoned_files.settings),
    FaultClass("bad-step", 5, numbers.in_a_step),
    FaultClass("bad-weights", 2, numbers.in_the_weights),
    FaultClass("bad-measurement", 2, numbers.in_a_measurement),
    FaultClass("rank-signal", 6, ranks.a_signal),
    FaultClass("rank-death", 2, ranks.a_death),
    FaultClass("rank-exception", 2, ranks.an_exception),
    FaultClass("rank-numbers", 3, ranks.bad_numbers),
    FaultClass("launched-ranks", 0.5, ranks.launched),
    FaultClass("resumed-task", 4, resuming.a_task),
    FaultClass("runs-together", 1, together.runs_together),
)


def plan(classes: Sequence[FaultClass], total: int) -> list[tuple[FaultClass, int]]:
    """So many faults, each a class and the number of its case: every class early, and often as its share says."""
    numbers: dict[str, Iterator[int]] = {one.name: count() for one in classes}
    due = {one.name: 0.0 for one in classes}
    chosen = []
    for _ in range(total):
        one = min(classes, key=lambda one: due[one.name])
        due[one.name] += 1 / one.share
        chosen.append((one, next(numbers[one.name])))
    return chosen
