"""The data module of labelled images: its batches, and what is done to images in training and nowhere else."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor

from deqopt.data import Augmentation, LabelledBatch, LabelledDataModule, LabelledSource, open_labelled, open_unlabelled
from deqopt.errors import DataError
from labelled_sources import LAYOUTS, pixels, unchecked

# Since Python 3.12, forking a process that has threads (PyTorch's own) warns.
with_worker = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

AUGMENTED: dict[str, Any] = {"shift": 2, "flip": True}


def archive(folder: Path, count: int = 50) -> partial[LabelledSource]:
    """Noise; the label of image i is i modulo 3."""
    np.savez(folder / "a.npz", images=pixels(count), labels=np.arange(count) % 3)
    return partial(open_labelled, folder / "a.npz", size=8, channels=3, classes=3)


def module(folder: Path, stage: str = "fit", **settings: Any) -> LabelledDataModule:
    data = LabelledDataModule(archive(folder), **{"batch_size": 8, **settings})
    data.prepare_data()
    data.setup(stage)
    return data


def whole(batches: Iterable[LabelledBatch]) -> LabelledBatch:
    return LabelledBatch(*map(torch.cat, zip(*batches, strict=True)))


def originals(data: LabelledDataModule, batch: LabelledBatch) -> Tensor:
    return torch.stack([data.source[i].image for i in batch.index.tolist()])


# -- batches ----------------------------------------------------------------------------------------------------------


@with_worker
@pytest.mark.parametrize("workers", [0, 1])
def test_val_test_and_predict_deliver_every_image_in_order_and_never_augmented(workers: int, tmp_path: Path) -> None:
    data = module(tmp_path, workers=workers, seed=5, **AUGMENTED)
    loaders = {
        "val": (data.val_dataloader(), data.splits.val),
        "test": (data.test_dataloader(), data.splits.test),
        "predict": (data.predict_dataloader(), list(range(50))),
    }
    for stage, (loader, expected) in loaders.items():
        batches = list(loader)
        assert all(isinstance(batch, LabelledBatch) for batch in batches)
        image, label, index = batch = whole(batches)
        assert (image.dtype, label.dtype, index.dtype) == (torch.float32, torch.int64, torch.int64)
        assert index.tolist() == expected
        assert label.tolist() == ([-1] * 50 if stage == "predict" else [i % 3 for i in expected])
        assert torch.equal(image, originals(data, batch)) and image.min() == 0 and image.max() == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_served_with_labels_and_predicted_on_without(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchecked(monkeypatch)
    stored = LAYOUTS[layout](tmp_path)
    opened: dict[str, Any] = {"root": stored.root, "size": 8, "channels": 1}
    to_predict = partial(open_unlabelled, **opened)
    for predict_source in (None, to_predict):
        source = partial(open_labelled, classes=10, **opened)
        data = LabelledDataModule(source, batch_size=100, predict_source=predict_source)
        tested, predicted = whole(data.test_dataloader()), whole(data.predict_dataloader())
        assert tested.label.tolist() == stored.labels[data.splits.test].tolist()
        assert set(predicted.label.tolist()) == {-1} and len(predicted.label) == len(stored.labels)
        shown = [data.predict_source.tensor(i, 0.0) for i in predicted.index.tolist()]
        assert torch.equal(predicted.image, torch.stack(shown))


def test_predicting_on_other_images_does_not_open_the_labelled_ones(tmp_path: Path) -> None:
    def forbidden() -> LabelledSource:
        raise AssertionError("labels were asked for")

    np.savez(tmp_path / "b.npz", images=pixels(2))
    other = partial(open_unlabelled, tmp_path / "b.npz", size=8, channels=3)
    data = LabelledDataModule(forbidden, batch_size=4, predict_source=other, shift=100)
    data.setup("predict")
    batch = whole(data.predict_dataloader())
    assert batch.label.tolist() == [-1, -1] and data.predict_source.name(1) == "b_0001"


def test_a_module_travels_to_spawned_processes_with_what_it_does(tmp_path: Path) -> None:
    data = module(tmp_path, **AUGMENTED)
    copy = pickle.loads(pickle.dumps(data))
    batches = []
    for one in (data, copy):
        seed_everything(0, verbose=False)
        batches.append(whole(one.train_dataloader()))
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    assert pickle.loads(pickle.dumps(data.train_dataloader().collate_fn))([data.source[0]]).index.tolist() == [0]


# -- augmentation -----------------------------------------------------------------------------------------------------


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
    data = module(tmp_path, shift=shift, flip=flip, workers=workers)
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


@pytest.mark.parametrize("shift, flip", [(0, True), (2, False), (2, True)])
def test_no_pixel_is_lost_where_the_border_is_black(shift: int, flip: bool) -> None:
    images = torch.nn.functional.pad(torch.rand(20, 3, 4, 4), [shift] * 4)
    result = Augmentation(shift, flip)(images)
    assert not torch.equal(result, images)
    for channels in zip(result.flatten(2).sort().values, images.flatten(2).sort().values, strict=True):
        assert torch.equal(*channels)


@pytest.mark.parametrize("settings", [{}, {"shift": 3}, {"flip": True}, AUGMENTED], ids=str)
def test_the_images_handed_in_are_left_as_they_were(settings: dict[str, Any]) -> None:
    images = torch.rand(20, 3, 8, 8)
    before = images.clone()
    result = Augmentation(**settings)(images)
    assert torch.equal(images, before) and result.is_contiguous()
    assert torch.equal(result, before) == (not settings)


def test_draws_are_new_in_every_epoch_and_repeat_with_the_global_seed(tmp_path: Path) -> None:
    data = module(tmp_path, **AUGMENTED)

    def two_epochs() -> list[Tensor]:
        seed_everything(0, verbose=False)
        loader = data.train_dataloader()
        epochs = [whole(loader), whole(loader)]
        return [epoch.image[epoch.index.argsort()] for epoch in epochs]

    first, second = two_epochs()
    assert (first != second).flatten(1).any(1).sum() > 30  # of 40
    assert all(torch.equal(a, b) for a, b in zip(two_epochs(), (first, second), strict=True))


@with_worker
def test_workers_draw_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "same.npz", images=np.repeat(pixels(1), 50, axis=0), labels=np.zeros(50, int))
    source = partial(open_labelled, tmp_path / "same.npz", size=8, channels=3, classes=2)
    data = LabelledDataModule(source, batch_size=20, workers=2, **AUGMENTED)
    first, second = data.train_dataloader()
    assert not torch.equal(first.image, second.image)


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_that_cannot_be_right(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, r"^batch_size is 0: it should be 1 or more$"),
        ({"batch_size": 1, "workers": -1}, r"^workers is -1: it should be 0 .* or more$"),
        ({"batch_size": 1, "shift": -1}, r"^shift is -1: it should be 0 \(do not move the images\) or more$"),
    ]
    for settings, pattern in cases:
        with pytest.raises(DataError, match=pattern):
            LabelledDataModule(archive(tmp_path), **settings)
    module(tmp_path, shift=7)
    for stage in ("fit", "validate", "test"):
        data = LabelledDataModule(archive(tmp_path), batch_size=1, shift=8)
        with pytest.raises(DataError, match=r"^shift is 8, but the images have size 8: it should be 0 to 7, "):
            data.setup(stage)
    data.setup("predict")
