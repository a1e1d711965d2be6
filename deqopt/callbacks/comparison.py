"""The base callback that compares methods on the samples of a test."""

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
"""The answers of the methods for a batch, by name."""


class ComparisonReport(Callback):
    """In test: gives the same samples to our method and to all other methods, and compares their scores.

    It logs ``test/<metric>_<method>``, the means over the samples. It prints a table with 95 % intervals and the paired
    differences to the first method. It writes the same to ``figures/<name>.csv``, the scores of every sample to
    ``figures/<noun>.csv``, and a picture to ``figures/<name>.png``. With several processes, each scores its share; a
    sample that occurs twice, to fill a batch, counts once. A trial run (``fast_dev_run``) writes nothing.

    Every batch must have the numbers of its samples in ``index``, (B,): an attribute, or an entry of a dictionary.

    Args:
        name: name of the files.
        measures: scores to report. ``seconds`` per sample are measured; for our method, the time of the whole test
            step.
        score: ``score(answer, batch)``, the scores (B,) of an answer by metric.
        ours: ``ours(equilibrium, batch)``, our answer for a solved batch, such as images or probabilities, batch first.
        methods: the other methods by name, ``method(batch)``, with answers of the same kind. They are called without
            gradients, and must enable gradients if they need them.
        noun: word for the samples, such as images or episodes.
        most: largest total number of test samples that are compared, from the first on; by default all samples. In a
            trial run it is 1.

    Attributes:
        others: ``methods``, to which more can be added before a test.
        scores: scores of all samples, after a test.
        seen: the number of samples of the test.

    Raises:
        ProblemError: ``most`` is below 1; when the test starts, two methods have the same name; during the test, a
            batch has no ``index``, or scores are not (B,).

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

    # -- methods that a subclass may override -----------------------------------------------------------------------

    def methods(self, trainer: Trainer) -> Mapping[str, Callable[[Any], Any]]:
        """The other methods; called when a test starts."""
        return self.others

    def more(
        self, values: Mapping[str, Mapping[str, Tensor]], equilibrium: Equilibrium, batch: Any
    ) -> tuple[Mapping[str, Mapping[str, Tensor]], Mapping[str, Tensor]]:
        """Scores of further methods, computed from the scores of a batch, and facts of its samples, (B,); see
        `Scores`."""
        return {}, {}

    def answered(self, answers: Answers, batch: Any) -> None:
        """Called with the answers for every batch, for example to keep some for a picture."""

    def summary(self) -> Summary:
        """The summary of all samples, once the test is over."""
        return Summary(self.scores, self.measures, self.noun)

    def title(self) -> str:
        """The title above the table and the picture."""
        of = "" if self.seen == len(self.scores) else f"of {self.seen} "
        return f"{self.name[:1].upper()}{self.name[1:]}: {len(self.scores)} {of}test {self.noun}"

    def table(self) -> str:
        """The text that is printed below the title."""
        return self.summary().table()

    def notes(self) -> Sequence[str]:
        """Lines that are printed below the table."""
        return []

    def logged(self) -> Mapping[str, float]:
        """The logged values, by names without ``test/``."""
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
        paired = "; differences are paired" if len(self.scores.values) > 1 else ""
        lines = [*textwrap.wrap(self.title(), 80), f"Means with 95 % intervals{paired}", self.table()]
        lines += [line for note in self.notes() for line in textwrap.wrap(note, 80)]
        rank_zero_info("\n".join(lines))
        if directory is not None:
            self.write(directory)


def index_of(batch: Any) -> Tensor:
    """(B,) the numbers of the samples of a batch in their data.

    Raises:
        ProblemError: the batch has no ``index``.
    """
    index = batch.get("index") if isinstance(batch, Mapping) else getattr(batch, "index", None)
    if not isinstance(index, Tensor):
        raise ProblemError(
            f"methods are compared on numbered samples, but a {type(batch).__name__} of the test has no index: "
            "give batches an entry index, (B,), so that every sample counts once"
        )
    return index
