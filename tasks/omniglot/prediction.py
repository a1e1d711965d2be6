"""A user's own episode: a folder of support images, one folder a class, and a folder of images to classify."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from deqopt.callbacks.predictions import prediction_directory
from deqopt.data import ImageFolder
from deqopt.data.class_folders import class_labels
from deqopt.errors import DataError, printable
from deqopt.figures import write_figure
from deqopt.tables import write_csv

from .drawing import episode_figure
from .episodes import EpisodeBatch

CHUNK = 64
"""Largest number of queries that are classified at once."""
PREDICTIONS, PARTS = "predictions.csv", ".predictions_*.csv"


class FolderEpisode(Dataset[EpisodeBatch]):
    """The episode of a user, in chunks of queries, each with the whole support set: rows of an `EpisodeBatch`.

    A batch holds one chunk, because the last chunk may be smaller. All images are read when the object is created, so
    that errors appear then. A warning names each image that cannot be read; the remaining images are used.

    Attributes:
        queries: the images to classify, including those that are left out.
        class_names: the sorted names of the class folders: classes 0, 1 and so on.

    Args:
        support: a folder with one subfolder of images per class; at least two classes, with at least one image each.
        query: a folder of images, including its subfolders. Both folders are listed as in `deqopt.data.ImageFolder`.
        size: height and width of the images, which are cut to their central square.
        channels: 1 or 3.
        chunk: largest number of queries in a chunk.

    Raises:
        DataError: a folder is not given, missing or empty; the support folder has images outside the class folders, a
            class without a readable image, or only one class; no query can be read; or one folder lies in the other.
    """

    def __init__(
        self, support: str | Path | None, query: str | Path | None, size: int, channels: int, chunk: int = CHUNK
    ) -> None:
        if support is None or query is None:
            missing = "support" if support is None else "query"
            raise DataError(
                f"no {missing} folder is given: predict needs a folder of support images, with a folder for every "
                "class, and a folder of query images to classify"
            )
        known, asked = Path(support).expanduser(), Path(query).expanduser()
        _check_apart(known, asked)
        self.class_names, self._support, self._label = _read_support(known, size, channels)
        self.queries, self._chunk = ImageFolder(asked, size, channels), chunk
        _ = self.queries.readable

    def __len__(self) -> int:
        return -(-len(self.queries.readable) // self._chunk)

    def __getitem__(self, index: int) -> EpisodeBatch:
        query = torch.stack([self.queries.tensor(i) for i in self._indices(index)])
        unknown = torch.full((len(query),), -1)
        return EpisodeBatch(self._support, self._label, query, unknown, torch.tensor(index))

    def files(self, index: int) -> list[str]:
        """The queries of a chunk: their paths below the folder."""
        return [self.queries.file(i) for i in self._indices(index)]

    def _indices(self, chunk: int) -> list[int]:
        places = range(len(self))[chunk] * self._chunk
        return self.queries.readable[places : places + self._chunk]


def classified_directory(query: str | Path) -> Path:
    """``QUERY_classified`` beside the folder of queries."""
    folder = Path(os.path.abspath(Path(query).expanduser()))
    return folder.parent / f"{folder.name}_classified"


def write_classes(
    batch: EpisodeBatch,
    probabilities: Tensor,
    files: Callable[[int], Sequence[str]],
    class_names: Sequence[str],
    directory: Path,
) -> list[Path]:
    """Write the classes of the queries of chunks, and for chunk 0 the figure ``episode.png``.

    Every chunk is written to a separate hidden file. `JoinClasses` then joins these files into ``predictions.csv``,
    with the columns ``file``, ``class``, ``probability``, and ``p(NAME)`` for every class.

    Args:
        batch: chunks; their ``index`` is their number.
        probabilities: (B, Q, ways).
        files: function that returns the names of the queries of a chunk.
        class_names: names of the classes 0, 1 and so on.
        directory: existing folder for the files.
    """
    columns = ["file", "class", "probability", *(f"p({name})" for name in class_names)]
    written = []
    for row, chunk in enumerate(batch.index.tolist()):
        rows = []
        for file, shares in zip(files(chunk), probabilities[row].tolist(), strict=True):
            largest = max(shares)
            said = [f"{share:.6f}" for share in (largest, *shares)]
            rows.append([file, class_names[shares.index(largest)], *said])
        written.append(directory / PARTS.replace("*", f"{chunk:08d}"))
        write_csv(columns, rows, written[-1])
        if chunk == 0:
            written.append(directory / "episode.png")
            write_figure(episode_figure(batch, probabilities, class_names, row), written[-1])
    return written


class JoinClasses(Callback):
    """At the end of predict, writes the rows of all chunks of all processes to ``predictions.csv``, completely or not
    at all."""

    def __init__(self) -> None:
        self._directory = Path()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._directory = prediction_directory(trainer, pl_module.task)  # type: ignore[arg-type]
        if trainer.is_global_zero:
            for left in self._directory.glob(PARTS):  # by a run that was interrupted
                left.unlink()
        trainer.strategy.barrier()

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()
        parts = sorted(self._directory.glob(PARTS)) if trainer.is_global_zero else []
        if not parts:
            return
        tables = [_rows(part) for part in parts]
        path = self._directory / PREDICTIONS
        write_csv(tables[0][0], [row for _, *rows in tables for row in rows], path)
        for part in parts:
            part.unlink()
        rank_zero_info(f"The classes of {sum(map(len, tables)) - len(tables)} images are in {printable(path)}")


def _rows(part: Path) -> list[list[str]]:
    with part.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def _check_apart(support: Path, query: Path) -> None:
    known, asked = support.resolve(), query.resolve()
    if known == asked:
        raise DataError(f"{support} is given as support and as query folder: they should be two folders")
    for inner, outer in ((known, asked), (asked, known)):
        if inner.is_relative_to(outer):
            raise DataError(f"{inner} lies in {outer}: support and query folder should not lie in each other")


def _read_support(root: Path, size: int, channels: int) -> tuple[list[str], Tensor, Tensor]:
    """The names of the classes, the images (S, channels, size, size) in [0, 1], and their classes (S,)."""
    layout = "the support folder should have a folder of images for every class"
    if not root.is_dir():
        raise DataError(f"{root} is {'a file' if root.exists() else 'missing'}: {layout}")
    images = ImageFolder(root, size, channels)
    for path in images.paths:
        if path.parent == root:
            raise DataError(f"{path} is in no class folder: {layout}")
    label, names = class_labels(images)
    if len(names) < 2:
        raise DataError(f"{root} has a single class folder, {names[0]}: {layout}, and two classes or more")
    label = label[images.readable]
    for number, name in enumerate(names):
        if number not in label:
            raise DataError(f"none of the images of {root / name} can be read: {layout}")
    return names, torch.stack([images.tensor(i) for i in images.readable]), torch.from_numpy(label)
