"""Images that are written: whole, to the bit, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deqopt.data import ImageFolder, save_image
from deqopt.errors import DataError


@pytest.mark.parametrize("channels", [1, 3])
def test_a_saved_image_comes_back_to_the_bit(channels: int, tmp_path: Path) -> None:
    levels = torch.arange(256, dtype=torch.float32).reshape(1, 16, 16).repeat(channels, 1, 1)
    image = levels / 255
    image[-1] = image[-1].flip(0)
    save_image(tmp_path / "new" / "folders" / "a.png", image)
    assert torch.equal(ImageFolder(tmp_path, 16, channels)[0].image, image)
    with Image.open(tmp_path / "new" / "folders" / "a.png") as written:
        assert written.mode == ("L" if channels == 1 else "RGB")


def test_a_saved_image_is_clipped_and_replaces_the_older_one_leaving_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_image(path, torch.zeros(3, 4, 4))
    save_image(path, torch.tensor([-7.0, 7.0], dtype=torch.bfloat16, requires_grad=True).expand(1, 2, 2))
    assert np.asarray(Image.open(path)).tolist() == [[0, 255], [0, 255]]
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_an_image_that_cannot_be_finished_leaves_the_older_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    save_image(path, torch.ones(1, 2, 2))

    def disk_full(self: Image.Image, target: Path, **settings: object) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", disk_full)
    with pytest.raises(DataError, match=r"cannot write .*a\.png: No space left on device"):
        save_image(path, torch.zeros(1, 2, 2))
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert np.asarray(Image.open(path)).min() == 255


UNWRITABLE = {
    "jpg": ("a.jpg", torch.zeros(1, 2, 2), r"a\.jpg: .*should end in \.png"),
    "batch": ("a.png", torch.zeros(1, 1, 2, 2), r"\(1, 1, 2, 2\).*should be \(1 or 3, H, W\)"),
    "two channels": ("a.png", torch.zeros(2, 2, 2), r"\(2, 2, 2\) of torch.float32, should be \(1 or 3, H, W\)"),
    "bytes": ("a.png", torch.zeros(1, 2, 2, dtype=torch.uint8), r"torch\.uint8, should be .* floats in \[0, 1\]"),
    "NaN": ("a.png", torch.full((1, 2, 2), torch.nan), r"NaN or infinite pixels, should be in \[0, 1\]"),
    "under a file": ("file/a.png", torch.zeros(1, 2, 2), r"cannot write .*a\.png: "),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_cannot_be_written_is_said_and_nothing_is_left(case: str, tmp_path: Path) -> None:
    name, image, pattern = UNWRITABLE[case]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=pattern):
        save_image(tmp_path / name, image)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
