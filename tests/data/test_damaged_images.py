"""A user's damaged images: how they are read, what is refused, and what happens where some cannot be read."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.denoising.data import DamagedImages, RestorationBatch, RestorationData
from deqopt_tasks.denoising.inpainting import GivenMask, Inpainting
from deqopt_tasks.denoising.operator import MeasurementOperator
from deqopt_tasks.denoising.operators import Denoising
from numpy.typing import NDArray
from PIL import Image

from deqopt.batch import finite_samples, pick, size_of
from deqopt.data import EmbeddedDigits
from deqopt.errors import DataError, DeqoptError

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

SIGMA = 0.3


# -- damaged images ---------------------------------------------------------------------------------------------------


def write(folder: Path, **images: NDArray[Any] | bytes) -> Path:
    """Files by name, ``__`` for a folder; bytes are what is in a file that is no image."""
    for name, pixels in images.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(pixels, bytes):
            path.write_bytes(pixels)
        else:
            Image.fromarray(pixels).save(path)
    return folder


def grey(level: int, height: int = 2, width: int = 3) -> NDArray[np.uint8]:
    return np.full((height, width), level, np.uint8)


def test_damaged_images_keep_their_size_and_their_values(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 9, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels)
    folder = write(tmp_path / "colour", a=pixels[0], b=pixels[1])
    expected = torch.tensor(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    for root in (tmp_path / "a.npz", folder):
        images = DamagedImages(root, Denoising(), 3)
        assert len(images) == 2 and not images.source.unreadable
        torch.testing.assert_close(torch.stack([images[i].y for i in range(2)]), expected, atol=1e-6, rtol=0)
    luma = DamagedImages(folder, Denoising(), 1)[1].y
    rounded = torch.tensor(np.asarray(Image.fromarray(pixels[1]).convert("L")))
    assert luma.shape == (1, 5, 9) and ((luma[0] + 1) * 127.5 - rounded).abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_16_bits_are_read_at_their_own_size(channels: int, tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 12).round().astype(np.uint16).reshape(2, 6)
    images = DamagedImages(write(tmp_path, deep=deep, grey=grey(51, 2, 6)), Denoising(), channels)
    ramp = torch.tensor(deep.astype(np.float32)).expand(channels, 2, 6) / 32767.5 - 1
    torch.testing.assert_close(images[0].y, ramp, atol=1e-6, rtol=0)
    torch.testing.assert_close(images[1].y, torch.full((channels, 2, 6), -0.6))


def test_one_that_cannot_be_read_is_left_out_and_the_others_keep_name_and_mask(tmp_path: Path) -> None:
    masks = [np.where(np.arange(6).reshape(2, 3) == i, 0, 255).astype(np.uint8) for i in range(4)]
    write(tmp_path / "masks", a=masks[0], b=masks[1], c=masks[2], d=masks[3])
    root = write(tmp_path / "photos", a=grey(0), sub__b=b"nothing", c=grey(2), d=grey(3))
    said = f"{root}/sub/b.png is truncated or not an image: delete or replace it"
    with pytest.warns(UserWarning, match=f"^{said}$"):
        images = DamagedImages(root, Inpainting(GivenMask(str(tmp_path / "masks"))), 1)
    assert [images.name(one.index) for one in images] == ["a", "c", "d"]
    for position, level in enumerate((0, 2, 3)):
        clean, y, known, _ = images[position]
        assert clean.shape == (0,)
        assert torch.equal(known[0] == 1, torch.tensor(masks[level] == 255))
        torch.testing.assert_close(y, known * (level / 127.5 - 1))
    assert {images.source.file(index): reason for index, reason in images.source.unreadable.items()} == {
        "sub/b.png": said
    }


REFUSED: dict[str, tuple[dict[str, Any], MeasurementOperator, str]] = {
    "none readable": (
        {"a": b"nothing", "b": b"more of it"},
        Denoising(),
        r"none of the 2 images of \S+ can be read: \S+a\.png is truncated or not an image: delete or replace it",
    ),
    "sizes": (
        {"a": grey(0, 5, 7), "b": grey(0), "c": grey(0), "d": grey(0), "e": grey(0, 4, 4), "f": grey(0, 4, 4)},
        Denoising(),
        r"the images of \S+ have 3 sizes, most often 2 x 3 \(b\.png\) and 4 x 4 \(e\.png\): one run restores images of "
        "one size, so sort them into folders by size",
    ),
    "unknown mask": ({"a": grey(0), "b": grey(0)}, Inpainting(), "which pixels of a are unknown .*"),
    "no images": ({}, Denoising(), r"\S+ is missing: root should be a folder .*"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_restored_is_refused_when_it_is_opened(case: str, tmp_path: Path) -> None:
    files, operator, pattern = REFUSED[case]
    root = write(tmp_path / "photos", **files)
    data = RestorationData(
        EmbeddedDigits, operator, batch_size=1, predict_source=partial(DamagedImages, root, operator, 1)
    )
    with pytest.raises(DeqoptError) as caught:
        data.setup("predict")
    assert re.fullmatch(pattern, str(caught.value))


def test_an_image_without_its_mask_is_said_at_once_even_where_it_is_the_last(tmp_path: Path) -> None:
    mask = np.array([[0, 255]], np.uint8)
    write(tmp_path / "masks", a=mask, b=mask)
    root = write(tmp_path / "photos", a=grey(0, 1, 2), b=grey(0, 1, 2), c=grey(0, 1, 2))
    with pytest.raises(DataError, match="no mask for the image c: "):
        DamagedImages(root, Inpainting(GivenMask(str(tmp_path / "masks"))), 1)


def test_a_batch_without_clean_images_and_parameters_is_still_a_batch(tmp_path: Path) -> None:
    root = write(tmp_path / "photos", a=grey(7), b=grey(8), c=grey(9))
    damaged = partial(DamagedImages, root, Denoising(), 1)
    data = RestorationData(EmbeddedDigits, Denoising(), batch_size=3, predict_source=damaged)
    (batch,) = data.predict_dataloader()
    assert batch.clean.shape == batch.parameters.shape == (3, 0) and size_of(batch) == 3
    batch.y[1, 0, 0, 0] = torch.nan
    keep = finite_samples(batch)
    assert keep.tolist() == [True, False, True]
    picked = pick(batch, keep)
    assert isinstance(picked, RestorationBatch) and picked.clean.shape == (2, 0) and picked.index.tolist() == [0, 2]
