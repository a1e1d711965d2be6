"""The picture of an episode: a line a class, wrong queries in red, and nothing over another thing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deqopt_tasks.omniglot.drawing import INCH, WRONG, episode_figure
from deqopt_tasks.omniglot.episodes import EpisodeBatch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure


def drawn(
    ways: int, shots: int, queries: int, known: bool = True, wrong: tuple[int, ...] = (), prefix: str = "class "
) -> Figure:
    """An episode whose images have the level of their class; the queries of ``wrong`` are taken for the next class."""
    level = torch.arange(ways) / ways
    label, asked = torch.arange(ways).repeat(shots), torch.arange(ways).repeat(queries)
    taken = asked.clone()
    taken[list(wrong)] = (taken[list(wrong)] + 1) % ways
    shares = torch.full((len(asked), ways), 0.2 / (ways - 1))
    shares[torch.arange(len(asked)), taken] = 0.8
    support, query = (level[one][None, :, None, None, None].expand(1, -1, 1, 2, 2) for one in (label, asked))
    truth = asked if known else torch.full_like(asked, -1)
    batch = EpisodeBatch(support, label[None], query, truth[None], torch.tensor([0]))
    return episode_figure(batch, shares[None], [f"{prefix}{k}" for k in range(ways)])


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def places(figure: Figure) -> list[tuple[float, float, float]]:
    """Left, top and level of every image."""
    found = []
    for image in figure.axes[0].get_images():
        left, _, _, top = image.get_extent()
        found.append((left, top, float(np.asarray(image.get_array())[0, 0])))
    return found


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("ways", "shots", "queries"), [(5, 1, 5), (20, 1, 5), (2, 8, 12), (25, 1, 1)])
def test_a_line_holds_the_images_of_its_class(ways: int, shots: int, queries: int, known: bool) -> None:
    figure = drawn(ways, shots, queries, known)
    shown, columns = min(ways, 20), 10 if ways <= 10 else 5
    lines: dict[tuple[bool, float], set[float]] = {}
    half = figure.get_size_inches()[0] / INCH / 2
    for left, top, level in places(figure):
        lines.setdefault((ways > 10 and left > half, top), set()).add(level)
    assert len(lines) == shown and all(len(levels) == 1 for levels in lines.values())
    assert len(places(figure)) == shown * (min(shots, 5) + min(queries, columns))
    said = texts(figure)
    assert sum(text.endswith("\n80%") for text in said) == shown * min(queries, columns)
    assert said.count(f"+{shots - 5}") == (shown if shots > 5 else 0)
    assert said.count(f"+{queries - columns}") == (shown if queries > columns else 0)
    total = ways * queries
    counted = f"{total} of {total} queries right" if known else f"{total} queries classified"
    assert said[0] == f"{ways} classes, {counted}" + ("; the first 20 classes" if ways > 20 else "")


def test_wrong_queries_are_framed_in_red_and_say_what_they_are_taken_for() -> None:
    figure = drawn(3, 1, 4, wrong=(1, 5))
    red = [patch for patch in figure.axes[0].patches if patch.get_edgecolor()[:3] == to_rgb(WRONG)]
    labels = [text for text in figure.axes[0].texts if text.get_color() == WRONG]
    assert [text.get_text() for text in labels] == ["class 2\n80%", "class 0\n80%"]
    assert len(red) == 2 and texts(figure)[0] == "3 classes, 10 of 12 queries right"
    for text, frame in zip(labels, red, strict=True):
        assert text.get_position()[0] == pytest.approx(frame.get_x() + 0.5)  # type: ignore[attr-defined]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3] / 255
    assert (np.abs(pixels - to_rgb(WRONG)).max(2) < 0.02).sum() > 100
    assert not any(text.get_color() == WRONG for text in drawn(3, 1, 4, known=False, wrong=(1, 5)).axes[0].texts)


def test_nothing_is_drawn_over_another_thing_or_beyond_the_border() -> None:
    """Texts and images, with names that are as long as names are written."""
    ways = 12
    for prefix in ("a_very_wide_alphabet/CHARACTER", "CHARACTER "):
        figure = drawn(ways, 1, 3, known=False, prefix=prefix)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        boxes = [one.get_window_extent(renderer) for one in (*figure.axes[0].texts, *figure.axes[0].get_images())]
        width, height = canvas.get_width_height()
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
        apart = [box.padded(-0.5) for box in boxes]
        assert not any(a.overlaps(b) for i, a in enumerate(apart) for b in apart[:i])
        assert len(set(texts(figure))) >= 2 * ways
