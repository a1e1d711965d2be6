"""The picture of an episode: its support images, its queries, and their predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from deqopt.errors import printable

from .episodes import EpisodeBatch

INCH = 0.7
"""Side of an image, the unit of all other lengths."""
COLUMN, LINE = 1.15, 1.6
"""Distances from an image to the next image beside it and below it."""
HEAD, GAP, EDGE = 1.1, 0.65, 0.35
"""Spaces above the first line, between support and queries, and around the picture."""
CLASSES, SHOTS = 10, 5
"""Largest number of classes in a stack (there may be two stacks side by side), and of support images per class."""
QUERIES = {1: 10, 2: 5}
"""Largest number of queries per class, by the number of stacks."""
LETTERS, SHORT = 20, 12
"""Longest class name that is written in full beside a class, and below its queries; longer names are shortened or
replaced by the number of the class."""
WRONG, FRAME, INK, MUTED = "#d62728", "#c4c4c4", "#222222", "#777777"


class Query(NamedTuple):
    """An image (channels, H, W), its predicted class with probability, and whether the prediction is wrong."""

    image: Tensor
    said: str
    wrong: bool


class Line(NamedTuple):
    """A class: its name, its support images (K, channels, H, W), and its queries."""

    name: str
    shots: Tensor
    queries: list[Query]


def episode_figure(batch: EpisodeBatch, probabilities: Tensor, class_names: Sequence[str], row: int = 0) -> Figure:
    """A figure of an episode, one line per class: support images on the left, queries on the right.

    Below each query are its predicted class (by number if names are long) and the probability; misclassified queries
    have a red frame. Queries of unknown class are shown beside their predicted class. At most 20 classes are shown, and
    per class at most 5 support images and 10 queries (5 queries if there are more than 10 classes).

    Args:
        batch: episodes.
        probabilities: (B, Q, ways) class probabilities of the queries.
        class_names: names of the classes 0, 1 and so on of this episode.
        row: number of the episode in the batch.
    """
    lines = _lines(batch, probabilities, class_names, row)
    shown = lines[: 2 * CLASSES]
    stacks = 1 if len(shown) <= CLASSES else 2
    height = -(-len(shown) // stacks)
    shots = min(SHOTS, max(len(line.shots) for line in shown))
    queries = min(QUERIES[stacks], max(len(line.queries) for line in shown))
    support = EDGE + 0.2 + 0.13 * max(len(line.name) for line in shown)
    asked = support + COLUMN * shots + GAP
    width = asked + COLUMN * max(queries, 1) + GAP
    paper = _Paper(stacks * width, HEAD + height * LINE)
    paper.text(stacks * width / 2, 0.3, _title(batch, probabilities, row, len(shown)), size=10)
    for number, line in enumerate(shown):
        stack, place = divmod(number, height)
        left, top = stack * width, HEAD + place * LINE
        if not place:
            paper.text(left + support, HEAD - 0.25, "support", align="left", colour=MUTED)
            paper.text(left + asked, HEAD - 0.25, "queries", align="left", colour=MUTED)
        paper.text(left + support - 0.2, top + 0.5, line.name, size=8, align="right")
        for column, image in enumerate(line.shots[:shots]):
            paper.image(left + support + COLUMN * column, top, image)
        for column, query in enumerate(line.queries[:queries]):
            x = left + asked + COLUMN * column
            paper.image(x, top, query.image, query.wrong)
            paper.text(x + 0.5, top + 1.24, query.said, colour=WRONG if query.wrong else INK)
        for start, count, columns in ((support, len(line.shots), shots), (asked, len(line.queries), queries)):
            if count > columns:
                more = f"+{count - columns}"
                paper.text(left + start + COLUMN * columns - 0.08, top + 0.5, more, align="left", colour=MUTED)
    return paper.figure


def _lines(batch: EpisodeBatch, probabilities: Tensor, class_names: Sequence[str], row: int) -> list[Line]:
    support, label, query, known = (part[row].detach().cpu() for part in batch[:4])
    found = probabilities[row].detach().float().cpu().max(1)
    names = marks = [printable(name) for name in class_names]
    if max(map(len, names)) > SHORT:
        marks = [str(k) for k in range(1, len(names) + 1)]
        names = [f"{_shortened(name)}  {mark}" for name, mark in zip(names, marks, strict=True)]
    lines = [Line(name, support[label == k], []) for k, name in enumerate(names)]
    for image, home, taken, value in zip(
        query, known.tolist(), found.indices.tolist(), found.values.tolist(), strict=True
    ):
        said = f"{marks[taken]}\n{100 * value:.0f}%"
        lines[taken if home < 0 else home].queries.append(Query(image, said, home not in (-1, taken)))
    return lines


def _title(batch: EpisodeBatch, probabilities: Tensor, row: int, shown: int) -> str:
    ways, known = probabilities.shape[2], batch.query_label[row]
    count, right = len(known), int((probabilities[row].argmax(1) == known).sum())
    said = f"{right} of {count} queries right" if bool((known >= 0).all()) else f"{count} queries classified"
    return f"{ways} classes, {said}" + (f"; the first {shown} classes" if shown < ways else "")


def _shortened(name: str) -> str:
    half = LETTERS // 2
    return name if len(name) <= LETTERS else f"{name[: half - 1]}…{name[-half:]}"


class _Paper:
    """A figure with coordinates measured from the upper left corner, in units of the side of an image."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(INCH * width, INCH * height), facecolor="white")
        self._axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self._axes.set_axis_off()
        self._limits = (0.0, width), (height, 0.0)
        self._axes.set(xlim=self._limits[0], ylim=self._limits[1])

    def image(self, x: float, y: float, image: Tensor, wrong: bool = False) -> None:
        """Draw an image, (1 or 3, H, W) in [0, 1], with its upper left corner at (x, y)."""
        pixels = image.float().clamp(0, 1).permute(1, 2, 0).numpy()
        grey = pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels
        self._axes.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=(x, x + 1, y + 1, y), aspect="auto")
        self._axes.set(xlim=self._limits[0], ylim=self._limits[1])  # imshow moves them
        colour, line = (WRONG, 2.2) if wrong else (FRAME, 0.7)
        self._axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=colour, linewidth=line))

    def text(
        self, x: float, y: float, text: str, *, size: float = 6.5, align: str = "center", colour: str = INK
    ) -> None:
        """Write a text; the middle of its height is at the given place."""
        self._axes.text(
            x, y, text, fontsize=size, color=colour, ha=align, va="center", linespacing=1.05, parse_math=False
        )
