"""The figures draw what they are told, seen in the pixels and in the curves; files are replaced whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
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


def inside(figure: Figure, axes: Axes) -> NDArray[np.float64]:
    """The mean colour of the middle of one image, in [0, 1]."""
    pixels = rendered(figure)
    box = axes.get_window_extent()
    height = pixels.shape[0]
    centre = int(height - (box.y0 + box.y1) / 2), int((box.x0 + box.x1) / 2)
    patch = pixels[centre[0] - 4 : centre[0] + 4, centre[1] - 4 : centre[1] + 4]
    return patch.reshape(-1, 3).mean(0) / 255


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_show_their_images_under_their_labels(colour: str, channels: int) -> None:
    other = "white" if colour != "white" else "black"
    rows = {"first": flat(colour, channels=channels), "second": flat(other, channels=channels)}
    figure = image_rows(rows, "title", ["1 dB", "2 dB", "3 dB"])
    grid = np.array(figure.axes).reshape(2, 3)
    for axes_row, (label, shown) in zip(grid, (("first", colour), ("second", other)), strict=True):
        assert axes_row[0].get_ylabel() == label
        expected = np.array(COLOURS[shown])
        for axes in axes_row:
            want = expected if channels == 3 else expected[:1].repeat(3)
            assert np.allclose(inside(figure, axes), want, atol=0.01)
    assert [axes.get_xlabel() for axes in grid[1]] == ["1 dB", "2 dB", "3 dB"]


def test_rows_keep_the_order_of_samples_and_the_orientation() -> None:
    """White only in the upper left quarter of the second image."""
    images = torch.zeros(2, 1, 8, 8)
    images[1, :, :4, :4] = 1
    figure = image_rows({"row": images}, "title")
    first, second = (np.asarray(axes.get_images()[0].get_array()) for axes in figure.axes)
    assert not first.any()
    assert second[:4, :4].all() and second.sum() == 16
    pixels = rendered(figure)
    box = figure.axes[1].get_window_extent()
    rows = pixels.shape[0] - np.array([box.y0 + 0.75 * box.height, box.y0 + 0.25 * box.height])
    columns = np.array([box.x0 + 0.25 * box.width, box.x0 + 0.75 * box.width])
    quarters = pixels[rows.astype(int)[:, None], columns.astype(int), 0]
    assert quarters.tolist() == [[255, 0], [0, 0]]


@pytest.mark.parametrize(("value", "shown"), [(3.0, 1.0), (-3.0, 0.0)])
def test_values_out_of_range_are_cut_off(value: float, shown: float) -> None:
    for figure in (
        image_rows({"row": torch.full((1, 1, 4, 4), value)}, ""),
        image_mosaic(torch.full((1, 3, 4, 4), value), ""),
    ):
        assert np.allclose(inside(figure, figure.axes[0]), shown, atol=0.01)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_mosaic_shows_every_image_in_order_and_nothing_else(count: int) -> None:
    names = [list(COLOURS)[i % 4] for i in range(count)]
    figure = image_mosaic(torch.cat([flat(name, 1) for name in names]), "title", columns=4)
    assert len(figure.axes) == 4 * (-(-count // 4))
    for axes, name in zip(figure.axes, names, strict=False):
        assert np.allclose(inside(figure, axes), (np.array(COLOURS[name]) + 1) / 2, atol=0.01)
    assert not any(axes.get_images() for axes in figure.axes[count:])
    assert not any(axes.axison for axes in figure.axes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_images_of_other_precision_that_need_gradients_are_drawn(dtype: torch.dtype) -> None:
    images = flat("grey").to(dtype).requires_grad_()
    for figure in (image_rows({"row": images}, ""), image_mosaic(images, "")):
        assert np.allclose(inside(figure, figure.axes[0]), 0.5, atol=0.01)


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
