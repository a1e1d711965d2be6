"""Clauses on what a task shows and leaves behind: metrics, figures, predictions, callbacks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch import Callback
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from deqopt.batch import pick, size_of
from deqopt.figures import write_figure
from deqopt.testing.bench import Bench
from deqopt.testing.report import Inapplicable, clauses_of


def metrics_take_the_outcome(bench: Bench) -> Iterator[str]:
    """metrics() makes new metrics by name at every call; outcome() gives prediction and target, batch first, which they
    take, and each computes one finite number."""
    metrics: dict[str, Metric | MetricCollection] = dict(bench.task.metrics())
    if not metrics:
        raise Inapplicable("the task has no metrics")
    strange = [name for name, metric in metrics.items() if not isinstance(metric, Metric)]
    if strange:
        yield f"{', '.join(strange)}: expected an instance of torchmetrics.Metric"
        return
    shared = [name for name, metric in bench.task.metrics().items() if metric is metrics.get(name)]
    if shared:
        yield f"{', '.join(shared)}: metrics() returned the same object twice, so that stages would share it"
    batch = bench.batch()
    with bench.mode(training=False):
        outcome = bench.task.outcome(bench.solve_exactly(batch), batch)
    if not isinstance(outcome, tuple) or len(outcome) != 2 or not all(isinstance(part, Tensor) for part in outcome):
        yield "outcome() returned no pair of tensors, expected (prediction, target)"
        return
    for name, part in zip(("prediction", "target"), outcome, strict=True):
        if part.dim() == 0 or len(part) != size_of(batch):
            yield f"the {name} has shape {tuple(part.shape)}, expected {size_of(batch)} samples first"
            return
    prediction, target = (part.detach() for part in outcome)
    collection = MetricCollection(dict(metrics)).to(bench.device)
    collection.update(prediction.float(), target.float() if target.is_floating_point() else target)
    for name, value in collection.compute().items():
        if value.numel() != 1 or not value.isfinite().all():
            yield f"{name} is {value}, expected one finite number"


def figures_can_be_drawn(bench: Bench) -> Iterator[str]:
    """figures() gives matplotlib figures by file name, which can be written."""
    batch = bench.batch()
    with bench.mode(training=False):
        equilibrium = bench.solve_exactly(batch)
        with torch.no_grad():
            figures = dict(bench.task.figures(equilibrium, batch))
    with tempfile.TemporaryDirectory() as directory:
        for name, figure in figures.items():
            if not isinstance(name, str) or not name or Path(name).name != name:
                yield f"{name!r} is no file name"
            elif not isinstance(figure, Figure):
                yield f"{name} is a {type(figure).__name__}, expected a matplotlib Figure"
            else:
                write_figure(figure, Path(directory) / f"{name}.png")
                pyplot.close(figure)


def predictions_are_written(bench: Bench) -> Iterator[str]:
    """write_predictions() writes into the directory that it is given, returns the paths of all files that it wrote,
    none of them empty, and gives other samples other names."""
    if not bench.predicts:
        raise Inapplicable("the task does not define write_predictions(), so deqopt predict is refused")
    batch = bench.batch("predict")
    first = torch.arange(size_of(batch), device=bench.device) < size_of(batch) // 2
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        written: list[Path] = []
        for keep in (first, ~first):
            part = pick(batch, keep)
            with bench.mode(training=False):
                equilibrium = bench.solve_exactly(part)
                with torch.no_grad():
                    files = [Path(file) for file in bench.task.write_predictions(equilibrium, part, directory)]
            if not files:
                yield f"no file is returned for {size_of(part)} samples"
            again = sorted({file.name for file in files} & {file.name for file in written})
            if again:
                yield f"{', '.join(again)}: written for one batch, and again for another"
            written += files
        for file in written:
            if not file.is_file():
                yield f"{file.name} is returned, but not written"
            elif not file.resolve().is_relative_to(directory.resolve()):
                yield f"{file} lies outside the directory that was given"
            elif not file.stat().st_size:
                yield f"{file.name} is empty"
        unnamed = {file for file in directory.rglob("*") if file.is_file()} - set(written)
        if unnamed:
            yield f"{', '.join(sorted(file.name for file in unnamed))}: written, but not returned"


def callbacks_are_callbacks(bench: Bench) -> Iterator[str]:
    """callbacks() gives a list of Lightning callbacks."""
    for callback in bench.task.callbacks():
        if not isinstance(callback, Callback):
            yield f"a {type(callback).__name__}, expected a lightning.pytorch.Callback"


CLAUSES = clauses_of(__name__)
