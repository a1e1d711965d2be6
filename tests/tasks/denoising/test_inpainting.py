"""Masks of inpainting: drawn at random, read from files, handed over."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.denoising import inpainting
from deqopt_tasks.denoising.inpainting import GivenMask, Inpainting, Mask, RandomBoxes, RandomPixels
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from deqopt.testing.rebuilding import made_again
from operator_catalogue import bound, images

SIZES = ((9, 15), (8, 8), (12, 7))


def masks_of(mask: Mask, size: tuple[int, int], count: int) -> list[Tensor]:
    operator, generator = Inpainting(mask), torch.Generator().manual_seed(0)
    drawn = [operator.draw((3, *size), generator) for _ in range(count)]
    assert all(
        one.shape == (1, *size) and one.dtype == torch.float32 and one.unique().tolist() == [0, 1] for one in drawn
    )
    return [one[0].bool() for one in drawn]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.99])
def test_random_pixels_hide_the_same_number_everywhere(size: tuple[int, int], share: float) -> None:
    drawn = masks_of(RandomPixels(share), size, 200)
    assert {int((~one).sum()) for one in drawn} == {round(share * size[0] * size[1])}
    often = torch.stack(drawn).float().mean(0)
    spread = 6 * (share * (1 - share) / 200) ** 0.5
    assert (often.mean() - (1 - share)).abs() < 0.01 and ((often - (1 - share)).abs() < spread + 0.02).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [1, 3, 6])
def test_a_box_lies_whole_at_any_place_inside(size: tuple[int, int], side: int) -> None:
    places = []
    for one in masks_of(RandomBoxes(side), size, 400):
        rows, columns = torch.where(~one)
        top, left = int(rows.min()), int(columns.min())
        assert not one[top : top + side, left : left + side].any() and int((~one).sum()) == side**2
        places.append((top, left))
    assert {top for top, _ in places} == set(range(size[0] - side + 1))
    assert {left for _, left in places} == set(range(size[1] - side + 1))


def test_several_boxes_are_whole_boxes_that_may_overlap() -> None:
    counts = set()
    for one in masks_of(RandomBoxes(side=3, count=2), (9, 15), 60):
        hidden = (~one).double()[None, None]
        whole = F.unfold(hidden, 3).sum(1).reshape(1, 1, 7, 13) == 9
        covered = F.conv_transpose2d(whole.double(), torch.ones(1, 1, 3, 3, dtype=torch.float64)) > 0
        assert torch.equal(covered, hidden.bool())
        counts.add(int(hidden.sum()))
    assert max(counts) == 18 and min(counts) < 18 and min(counts) >= 9


def picture(path: Path, pixels: NDArray[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return str(path)


def known(seed: int, size: tuple[int, int] = (5, 8)) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(size) < 0.6


BRIGHTNESS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "black and white": lambda one: one.astype(np.uint8) * 255,
    "just around half": lambda one: np.where(one, 128, 127).astype(np.uint8),
    "16 bits": lambda one: np.where(one, 32768, 32767).astype(np.uint16),
    "colour": lambda one: np.where(one[..., None], [200, 250, 60], [255, 0, 90]).astype(np.uint8),
    "1 bit": lambda one: one,
}


@pytest.mark.parametrize("kind", BRIGHTNESS)
def test_a_mask_in_a_file_is_white_where_known(kind: str, tmp_path: Path) -> None:
    expected, image = known(0), images((3, 5, 8), count=1, dtype=torch.float32)[0]
    operator = Inpainting(GivenMask(picture(tmp_path / "mask.png", BRIGHTNESS[kind](expected))))
    operator.check((3, 5, 8))
    drawn = operator.draw((3, 5, 8), torch.Generator())
    assert torch.equal(drawn[0].bool(), torch.from_numpy(expected)) and drawn.dtype == torch.float32
    y, parameters = operator.read(image, "holiday")
    assert torch.equal(parameters, drawn) and torch.equal(y, drawn * image)
    assert torch.equal(operator.bind(parameters[None]).A(image[None])[0], y)


def test_a_folder_gives_each_image_its_mask_and_training_any(tmp_path: Path) -> None:
    for seed, name in enumerate(("a.png", "sub/b.bmp", "c.png")):
        picture(tmp_path / "masks" / name, known(seed).astype(np.uint8) * 255)
    (tmp_path / "masks" / "notes.txt").write_text("no mask")
    operator, image = Inpainting(GivenMask(str(tmp_path / "masks"))), torch.ones(1, 5, 8)
    for seed, name in enumerate("abc"):
        assert torch.equal(operator.read(image, name).parameters[0].bool(), torch.from_numpy(known(seed)))
    generator = torch.Generator().manual_seed(0)
    drawn = [operator.draw((1, 5, 8), generator)[0].bool().numpy() for _ in range(40)]
    found = [[bool(np.array_equal(one, known(seed))) for seed in range(3)] for one in drawn]
    assert all(sum(one) == 1 for one in found) and all(any(column) for column in zip(*found, strict=True))
    again = [operator.draw((1, 5, 8), torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*again) and np.array_equal(again[0][0].bool(), drawn[0])


def test_the_masks_of_a_folder_are_read_when_needed_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = inpainting.read_pixels

    def seen(path: Path) -> NDArray[Any]:
        opened.append(path.name)
        return read(path)

    monkeypatch.setattr(inpainting, "read_pixels", seen)
    paths = [picture(tmp_path / f"{name}.png", known(seed).astype("u1") * 255) for seed, name in enumerate("abc")]
    operator, image = Inpainting(GivenMask(str(tmp_path))), torch.ones(1, 5, 8)
    assert opened == []
    for _ in range(3):
        operator.read(image, "b")
    assert opened == ["b.png"]
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        operator.draw((1, 5, 8), generator)
    assert sorted(opened) == ["a.png", "b.png", "c.png"]
    picture(Path(paths[1]), ~known(1))
    os.utime(paths[1], ns=(0, 0))  # clocks of file systems are coarse
    assert torch.equal(operator.read(image, "b").parameters[0].bool(), torch.from_numpy(~known(1)))


@pytest.mark.parametrize("form", ["bool", "float", "int", "with channel"])
def test_a_mask_may_be_handed_over_as_a_tensor(form: str) -> None:
    expected = torch.from_numpy(known(0))
    handed = {"bool": expected, "float": expected.double(), "int": expected.int(), "with channel": expected[None]}[form]
    operator, image = Inpainting(handed), images((3, 5, 8), count=1, dtype=torch.float32)[0]
    y, parameters = operator.read(image, "holiday")
    assert torch.equal(parameters, expected[None].float()) and torch.equal(y, expected * image)
    drawn = operator.draw((3, 5, 8), torch.Generator())
    drawn.zero_()
    assert torch.equal(operator.draw((3, 5, 8), torch.Generator()), parameters)


@dataclass(frozen=True)
class Stripes(Mask):
    """A mask of somebody else."""

    every: int = 2

    def check(self, size: tuple[int, int]) -> None:
        assert size[0] >= self.every

    def draw(self, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        return (torch.arange(size[0]) % self.every > 0)[:, None].expand(size)


def test_masks_of_others_are_drawn_by_their_rule() -> None:
    operator, x = Inpainting(Stripes(3)), images((2, 6, 4))
    y = bound(operator, (2, 6, 4)).A(x)
    assert not y[:, :, [0, 3]].any() and torch.equal(y[:, :, [1, 2, 4, 5]], x[:, :, [1, 2, 4, 5]])
    assert made_again(operator) == operator
