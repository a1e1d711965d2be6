"""The figures draw what they are told, seen in the pixels and in the curves; files are replaced whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deqopt.figures import convergence, image_mosaic, image_rows, write_figure
from deqopt.iteration import Trace

COLOURS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "red": (1.0, 0.0, 0.0), "grey": (0.5, 0.5, 0.5)}


def flat(colour: str, count: int = 3, channels: int = 3) -> Tensor:
    """Images (count, channels, 4, 4) of one colour in [0, 1]."""
    return torch.tensor(COLOURS[colour][:channels])[None, :, None, None].expand(count, channels, 4, 4)


def rendered(figure: Figure) -> NDArray[np.uint8]:
    """(height, width, 3) as it would be written."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def seen(figure: Figure, sides: Sequence[float] = (0.5,)) -> list[NDArray[np.uint8]]:
    """Of every image what is drawn at these shares of its height and of its width, (rows, columns, 3)."""
    pixels = rendered(figure)
    shares, found = np.array(sides), []
    for image in figure.axes[0].get_images():
        box = image.get_window_extent()
        rows, columns = pixels.shape[0] - box.y1 + shares * box.height, box.x0 + shares * box.width
        found.append(pixels[rows.astype(int)[:, None], columns.astype(int)])
    return found


def colours_of(figure: Figure) -> list[list[float]]:
    """The colour of the middle of every image, in [0, 1]."""
    return [(colour[0, 0] / 255).tolist() for colour in seen(figure)]


def texts(labels: Iterable[Text]) -> list[str]:
    return [label.get_text() for label in labels]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_show_their_images_under_their_labels(colour: str, channels: int) -> None:
    other = "white" if colour != "white" else "black"
    rows = {"first": flat(colour, channels=channels), "second": flat(other, channels=channels)}
    figure = image_rows(rows, "title", ["1 dB", "2 dB", "3 dB"])
    for got, shown in zip(colours_of(figure), 3 * [colour] + 3 * [other], strict=True):
        assert got == pytest.approx(COLOURS[shown] if channels == 3 else 3 * COLOURS[shown][:1], abs=0.02)
    (axes,) = figure.axes
    assert texts(axes.get_yticklabels()) == ["first", "second"]
    assert texts(axes.get_xticklabels()) == ["1 dB", "2 dB", "3 dB"]
    boxes = [image.get_window_extent() for image in axes.get_images()]
    places = axes.transData.transform([(x, y) for y in axes.get_yticks() for x in axes.get_xticks()])
    assert all(box.contains(*place) for box, place in zip(boxes, places, strict=True))


def test_rows_keep_the_order_of_samples_and_the_orientation() -> None:
    """White only in the upper left quarter of the second image."""
    images = torch.zeros(2, 1, 8, 8)
    images[1, :, :4, :4] = 1
    figure = image_rows({"row": images}, "title")
    first, second = (quarters[..., 0].tolist() for quarters in seen(figure, (0.25, 0.75)))
    assert first == [[0, 0], [0, 0]] and second == [[255, 0], [0, 0]]
    left, right = (image.get_window_extent() for image in figure.axes[0].get_images())
    assert left.x1 < right.x0


@pytest.mark.parametrize(("value", "shown"), [(3.0, 1.0), (-3.0, 0.0)])
def test_values_out_of_range_are_cut_off(value: float, shown: float) -> None:
    for figure in (
        image_rows({"row": torch.full((1, 1, 4, 4), value)}, ""),
        image_mosaic(torch.full((1, 3, 4, 4), value), ""),
    ):
        assert colours_of(figure) == [3 * [shown]]


@pytest.mark.parametrize("count", [1, 4, 5])
def test_mosaic_shows_every_image_in_order_and_nothing_else(count: int) -> None:
    names = [list(COLOURS)[i % 4] for i in range(count)]
    figure = image_mosaic(torch.cat([flat(name, 1) for name in names]), "title", columns=4)
    for got, name in zip(colours_of(figure), names, strict=True):
        assert got == pytest.approx(COLOURS[name], abs=0.02)
    boxes = [image.get_window_extent() for image in figure.axes[0].get_images()]
    assert boxes == sorted(boxes, key=lambda box: (-round(box.y0), box.x0))
    assert texts(figure.axes[0].get_xticklabels()) == texts(figure.axes[0].get_yticklabels()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_images_of_other_precision_that_need_gradients_are_drawn(dtype: torch.dtype) -> None:
    images = flat("grey").to(dtype).requires_grad_()
    for figure in (image_rows({"row": images}, ""), image_mosaic(images, "")):
        assert colours_of(figure) == 3 * [pytest.approx([0.5, 0.5, 0.5], abs=0.02)]


# -- convergence ------------------------------------------------------------------------------------------------------


def curves(axes: Axes) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The median's evaluations and values, and the corners of the band."""
    (line,) = axes.get_lines()
    (band,) = axes.collections
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), np.asarray(band.get_paths()[0].vertices)


def test_convergence_draws_the_quantiles() -> None:
    """Eleven samples i = 0..10: the quantiles of i are 1, 5 and 9."""
    sample = torch.arange(11.0)
    objective = torch.stack([sample + 100, sample + 10, sample + 1])
    figure = convergence(Trace(objective, objective / 1000))
    for axes, scale, name in zip(figure.axes, (1, 1e-3), ("objective", "residual"), strict=True):
        evaluations, median, band = curves(axes)
        assert evaluations.tolist() == [1, 2, 3]
        assert np.allclose(median, np.array([105, 15, 6]) * scale)
        assert {(x, round(y / scale)) for x, y in band} == {(1, 101), (2, 11), (3, 2), (1, 109), (2, 19), (3, 10)}
        assert axes.get_ylabel() == name and axes.get_yscale() == "log"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_samples_that_are_not_finite_are_left_out_of_the_curves(bad: float) -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, bad], [1.0, 1.0, bad, bad]])
    figure = convergence(Trace(values, values))
    _, median, _ = curves(figure.axes[1])
    assert median.tolist() == [2.0, 1.0]
    rendered(figure)


def test_an_evaluation_without_a_finite_sample_is_a_gap() -> None:
    values = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan], [0.5, 0.5]])
    figure = convergence(Trace(values, values))
    _, median, _ = curves(figure.axes[0])
    assert np.array_equal(median, [1.5, np.nan, 0.5], equal_nan=True)
    assert figure.axes[0].get_yscale() == "log"
    rendered(figure)


@pytest.mark.parametrize("lowest", [-5.0, 0.0])
def test_objectives_that_are_not_positive_are_drawn_on_a_linear_scale(lowest: float) -> None:
    objective = torch.tensor([[3.0], [1.0], [lowest]])
    figure = convergence(Trace(objective, objective.abs() + 1))
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log"]
    assert curves(figure.axes[0])[1].tolist() == [3.0, 1.0, lowest]
    low, high = figure.axes[0].get_ylim()
    assert low < lowest and high > 3


def test_a_single_evaluation_is_seen() -> None:
    """A line through one point has no length, so the point itself must be drawn."""
    figure = convergence(Trace(torch.tensor([[2.0, 2.0]]), torch.tensor([[0.1, 0.1]])))
    (line,) = figure.axes[0].get_lines()
    assert line.get_marker() not in ("None", "", None)


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_figure_is_written_as_png_into_new_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "picture.png"
    write_figure(image_mosaic(flat("red", 1), "title"), path)
    with Image.open(path) as image:
        image.verify()
        assert image.format == "PNG"
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    write_figure(image_mosaic(flat("red", 1), "old"), path)
    before = path.read_bytes()
    figure = image_mosaic(flat("white", 1), "new")

    def broken(target: Any, **_: Any) -> None:
        Path(target).write_bytes(b"half a picture")
        raise OSError("No space left on device")

    monkeypatch.setattr(figure, "savefig", broken)
    with pytest.raises(OSError, match="No space left"):
        write_figure(figure, path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    write_figure(figure, path)
    assert path.read_bytes() != before
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
