"""What is done to images in training and nowhere else."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor

from deqopt.data import Augmentation, ImageBatch, ImageDataModule, open_labelled
from labelled_sources import AUGMENTED, module_of, originals, pixels, whole, with_worker


def moved(image: Tensor, down: int, right: int) -> Tensor:
    """Rolled, and black where the roll brings in what left on the other side."""
    rows, columns = (torch.arange(image.shape[-1]) - step for step in (down, right))
    inside = [(places >= 0) & (places < image.shape[-1]) for places in (rows, columns)]
    return image.roll((down, right), dims=(1, 2)) * inside[0][:, None] * inside[1]


def variants(image: Tensor, shift: int, flip: bool) -> Tensor:
    """All that may become of an image."""
    starts = [image, image.flip(-1)] if flip else [image]
    moves = range(-shift, shift + 1)
    return torch.stack([moved(one, down, right) for one in starts for down in moves for right in moves])


@with_worker
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shift, flip", [(0, False), (0, True), (1, False), (2, True), (7, False)])
def test_in_training_an_image_is_moved_and_mirrored_and_nothing_else(
    shift: int, flip: bool, workers: int, tmp_path: Path
) -> None:
    data = module_of(tmp_path, shift=shift, flip=flip, workers=workers)
    batch = whole(data.train_dataloader())
    assert sorted(batch.index.tolist()) == data.splits.train
    assert batch.label.tolist() == [i % 3 for i in batch.index.tolist()]
    changed = 0
    for image, original in zip(batch.image, originals(data, batch), strict=True):
        same = (variants(original, shift, flip) == image).flatten(1).all(1)
        assert same.any()
        changed += not torch.equal(image, original)
    assert changed >= 10 if shift or flip else changed == 0


def test_all_moves_and_both_sides_are_equally_likely() -> None:
    image = torch.rand(1, 1, 4, 4) + 0.1
    expected = {tuple(one.flatten().tolist()) for one in variants(image[0], 1, True)}
    found = Counter(tuple(one.flatten().tolist()) for one in Augmentation(1, True)(image.expand(9000, 1, 4, 4)))
    assert set(found) == expected and len(expected) == 18
    assert max(found.values()) < 620 and min(found.values()) > 380  # 500 each, within five standard deviations


@pytest.mark.parametrize("settings", [{}, {"shift": 3}, {"flip": True}, AUGMENTED], ids=str)
def test_the_images_handed_in_are_left_as_they_were(settings: dict[str, Any]) -> None:
    images = torch.rand(20, 3, 8, 8)
    before = images.clone()
    result = Augmentation(**settings)(images)
    assert torch.equal(images, before) and result.is_contiguous()
    assert torch.equal(result, before) == (not settings)


def test_order_and_draws_are_new_in_every_epoch_and_repeat_with_the_global_seed(tmp_path: Path) -> None:
    data = module_of(tmp_path, **AUGMENTED)

    def two_epochs() -> list[ImageBatch]:
        seed_everything(0, verbose=False)
        loader = data.train_dataloader()
        return [whole(loader), whole(loader)]

    first, second = two_epochs()
    assert first.index.tolist() != second.index.tolist()
    one, other = (epoch.image[epoch.index.argsort()] for epoch in (first, second))
    assert (one != other).flatten(1).any(1).sum() > 30  # of 40
    for again, epoch in zip(two_epochs(), (first, second), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(again, epoch, strict=True))


@with_worker
def test_workers_draw_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "same.npz", images=np.repeat(pixels(1), 50, axis=0), labels=np.zeros(50, int))
    source = partial(open_labelled, tmp_path / "same.npz", size=8, channels=3, classes=2)
    data = ImageDataModule(source, batch_size=20, workers=2, **AUGMENTED)
    first, second = data.train_dataloader()
    assert not torch.equal(first.image, second.image)
