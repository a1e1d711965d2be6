"""The one callback that compares methods on the samples of a test."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from deqopt.batch import pick, size_of
from deqopt.callbacks.figures import figure_directory
from deqopt.clock import now
from deqopt.compare import Measure, Scores, Summary, check_names
from deqopt.equilibrium import Equilibrium
from deqopt.errors import ProblemError
from deqopt.figures import comparison, write_figure
from deqopt.ranges import at_least
from deqopt.tables import write_csv

OURS = "ours"
Answers = Mapping[str, Any]
"""What the methods make of a batch, by name."""


class ComparisonReport(Callback):
    """In test: gives every method the same samples and reports what it reaches, ours beside the others.

    Logs ``test/<metric>_<method>``, the means over the samples; prints a table with 95 % intervals and the paired
    differences to the first method; writes ``figures/<name>.csv`` with the same, ``figures/<noun>.csv`` with every
    sample, and ``figures/<name>.png``. With several processes each scores its share; a sample that was met twice, to
    fill a batch up, counts once. A trial run (``fast_dev_run``) writes nothing.

    Batches say by ``index``, (B,), which of the samples they hold: as an attribute, or as an entry of a dictionary.

    Args:
        name: of the files.
        measures: the scores that count. ``seconds`` a sample are measured: of ours, those of the whole test step.
        score: ``score(answer, batch)``, the scores (B,) of an answer by metric.
        ours: ``ours(equilibrium, batch)``, our answer for a solved batch, such as images or probabilities, batch first.
        methods: the other methods by name, ``method(batch)``: answers of the same kind. They are called without
            gradients, and enable them where they need any.
        noun: of the samples, such as images or episodes.
        most: the first test samples that are compared, in all; by default all. In a trial run it is 1.

    Attributes:
        others: ``methods``, to which more can be added before a test.
        scores: of all samples, after a test.
        seen: the number of samples of the test.

    Raises:
        ProblemError: ``most`` is below 1; when the test starts, two methods of one name; then, a batch without
            ``index``, or scores that are not (B,).

    Example:
        >>> report = ComparisonReport(
        ...     "digits",
        ...     [Measure("error", digits=4)],
        ...     score=lambda image, batch: {"error": (image - batch["y"]).square().mean(1)},
        ...     ours=lambda equilibrium, batch: equilibrium.z,
        ...     methods={"zero": lambda batch: torch.zeros_like(batch["y"])},
        ... )
    """

    def __init__(
        self,
        name: str,
        measures: Sequence[Measure],
        score: Callable[[Any, Any], Mapping[str, Tensor]],
        ours: Callable[[Equilibrium, Any], Any] | None = None,
        methods: Mapping[str, Callable[[Any], Any]] | None = None,
        noun: str = "samples",
        most: int | None = None,
    ) -> None:
        if most is not None:
            at_least(1, name, most=most)
        self.name, self.measures, self.noun = name, tuple(measures), noun
        self.others = dict(methods or {})
        self._score, self._ours, self._most = score, ours, most
        self._methods: dict[str, Callable[[Any], Any]] = {}
        self._start(most)

    def _start(self, most: int | None) -> None:
        self._room, self._began = most, 0.0
        self._parts: list[Scores] = []
        self._seen: list[Scores] = []
        self.scores, self.seen = Scores([], {}), 0

    # -- what a report of one's own may say otherwise ---------------------------------------------------------------

    def methods(self, trainer: Trainer) -> Mapping[str, Callable[[Any], Any]]:
        """The other methods; asked for when a test starts."""
        return self.others

    def more(
        self, values: Mapping[str, Mapping[str, Tensor]], equilibrium: Equilibrium, batch: Any
    ) -> tuple[Mapping[str, Mapping[str, Tensor]], Mapping[str, Tensor]]:
        """Scores of further methods, made of the scores of a batch, and facts of its samples, (B,); see `Scores`."""
        return {}, {}

    def answered(self, answers: Answers, batch: Any) -> None:
        """Called with the answers to every batch, such as to keep some for a picture."""

    def summary(self) -> Summary:
        """Of all samples, once the test is over."""
        return Summary(self.scores, self.measures, self.noun)

    def title(self) -> str:
        """Above the table and the picture."""
        of = "" if self.seen == len(self.scores) else f"of {self.seen} "
        return f"{self.name[:1].upper()}{self.name[1:]}: {len(self.scores)} {of}test {self.noun}"

    def table(self) -> str:
        """What is printed below the title."""
        return self.summary().table()

    def notes(self) -> Sequence[str]:
        """Lines below the table."""
        return []

    def logged(self) -> Mapping[str, float]:
        """What is logged, by names without ``test/``."""
        return self.summary().logged()

    def write(self, directory: Path) -> None:
        """Write the files of a test."""
        summary = self.summary()
        summary.write(directory / f"{self.name}.csv")
        write_csv(*self.scores.rows(), directory / f"{self.noun}.csv")
        write_figure(comparison(summary, self.title()), directory / f"{self.name}.png")

    # -- the test ---------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rank, processes = trainer.global_rank, trainer.world_size
        most = 1 if self._most is not None and trainer.fast_dev_run else self._most  # type: ignore[attr-defined]
        self._start(None if most is None else most // processes + (rank < most % processes))
        self._methods = dict(self.methods(trainer))
        check_names([*([OURS] if self._ours else []), *self._methods])

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._began = now(pl_module.device)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        batch, equilibrium = outputs["batch"], outputs["equilibrium"]  # without samples that are not finite
        size = size_of(batch)
        self._seen.append(Scores(index_of(batch), {}))
        answers: dict[str, Any] = {}
        seconds: dict[str, float] = {}
        count = size if self._room is None else min(size, self._room)
        if not count:
            return
        if self._room is not None:
            self._room -= count
        if self._ours is not None:
            answers[OURS] = self._ours(equilibrium, batch)
            seconds[OURS] = (now(pl_module.device) - self._began) / size
        if count < size:
            keep = torch.arange(size) < count
            batch, equilibrium = pick(batch, keep), equilibrium.pick(keep)
            answers = {name: pick(answer, keep) for name, answer in answers.items()}
        for name, method in self._methods.items():
            began = now(pl_module.device)
            answers[name] = method(batch)
            seconds[name] = (now(pl_module.device) - began) / count
        self._parts.append(self.scored(answers, seconds, equilibrium, batch))
        self.answered(answers, batch)

    def scored(self, answers: Answers, seconds: Mapping[str, float], equilibrium: Equilibrium, batch: Any) -> Scores:
        """The scores of a batch."""
        values = {
            name: {**self._score(answer, batch), "seconds": torch.full((size_of(batch),), seconds[name])}
            for name, answer in answers.items()
        }
        further, facts = self.more(values, equilibrium, batch)
        return Scores(index_of(batch), {**values, **further}, facts)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.scores, self.seen = Scores.joined(self._parts).gathered(), len(Scores.joined(self._seen).gathered())
        for name, value in self.logged().items():
            pl_module.log(f"test/{name}", value, sync_dist=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        directory = figure_directory(trainer)
        title = f"{self.title()}; means with 95 % intervals" + (", paired differences" * (len(self.scores.values) > 1))
        lines = [*textwrap.wrap(title, 80), self.table()]
        lines += [line for note in self.notes() for line in textwrap.wrap(note, 80)]
        rank_zero_info("\n".join(lines))
        if directory is not None:
            self.write(directory)


def index_of(batch: Any) -> Tensor:
    """(B,) the numbers of the samples of a batch in their data.

    Raises:
        ProblemError: the batch does not say.
    """
    index = batch.get("index") if isinstance(batch, Mapping) else getattr(batch, "index", None)
    if not isinstance(index, Tensor):
        raise ProblemError(
            f"methods are compared on samples that have numbers, and a {type(batch).__name__} of the test has none: "
            "give batches an entry index, (B,), so that every sample counts once"
        )
    return index
