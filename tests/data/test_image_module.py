"""The data module: what its loaders deliver, and how errors leave the program."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from torch.utils.data import BatchSampler, DistributedSampler

from deqopt.data import (
    EmbeddedDigits,
    ImageBatch,
    ImageDataModule,
    ImageFolder,
    ImageSource,
    image_files,
    open_images,
    open_labelled,
)
from deqopt.errors import DataError, ProblemError
from labelled_sources import AUGMENTED, archive_of, class_folders, module_of, originals, pixels, whole, with_worker
from recorder import Recorder
from stored_images import colours, write_bytes, write_images
from tiny_task import quiet_trainer


def indices(batches: Iterable[ImageBatch]) -> list[int]:
    return [i for batch in batches for i in batch.index.tolist()]


@with_worker
@pytest.mark.parametrize("workers", [0, 1])
def test_val_test_and_predict_deliver_every_image_in_order_and_never_augmented(workers: int, tmp_path: Path) -> None:
    data = module_of(tmp_path, workers=workers, seed=5, **AUGMENTED)
    loaders = {
        "val": (data.val_dataloader(), data.splits.val),
        "test": (data.test_dataloader(), data.splits.test),
        "predict": (data.predict_dataloader(), list(range(50))),
    }
    for stage, (loader, expected) in loaders.items():
        batches = list(loader)
        assert all(isinstance(batch, ImageBatch) for batch in batches)
        image, label, index = batch = whole(batches)
        assert (image.dtype, label.dtype, index.dtype) == (torch.float32, torch.int64, torch.int64)
        assert index.tolist() == expected
        assert label.tolist() == ([-1] * 50 if stage == "predict" else [i % 3 for i in expected])
        assert torch.equal(image, originals(data, batch)) and image.min() == 0 and image.max() == 1


def test_labelled_images_are_predicted_on_without_their_labels(tmp_path: Path) -> None:
    stored = class_folders(tmp_path)
    opened: dict[str, Any] = {"root": stored.root, "size": 8, "channels": 1}
    for predict_source in (None, partial(open_images, **opened)):
        source = partial(open_labelled, classes=10, **opened)
        data = ImageDataModule(source, batch_size=100, predict_source=predict_source)
        tested, predicted = whole(data.test_dataloader()), whole(data.predict_dataloader())
        assert tested.label.tolist() == stored.labels[data.splits.test].tolist()
        assert set(predicted.label.tolist()) == {-1} and len(predicted.label) == len(stored.labels)
        shown = [data.predict_source.tensor(i) for i in predicted.index.tolist()]
        assert torch.equal(predicted.image, torch.stack(shown))


def test_predicting_on_other_images_does_not_open_the_labelled_ones(tmp_path: Path) -> None:
    def forbidden() -> ImageSource:
        raise AssertionError("labels were asked for")

    np.savez(tmp_path / "b.npz", images=pixels(2))
    other = partial(open_images, tmp_path / "b.npz", size=8, channels=3)
    data = ImageDataModule(forbidden, batch_size=4, predict_source=other, shift=100)
    data.setup("predict")
    batch = whole(data.predict_dataloader())
    assert batch.label.tolist() == [-1, -1] and data.predict_source.name(1) == "b_0001"


def test_splits_do_not_depend_on_workers_batches_or_the_global_seed(tmp_path: Path) -> None:
    seed_everything(1, verbose=False)
    first = module_of(tmp_path, seed=3).splits
    seed_everything(2, verbose=False)
    assert module_of(tmp_path, seed=3, workers=2, batch_size=7, stage="test").splits == first
    assert module_of(tmp_path, seed=4).splits != first


@pytest.mark.parametrize("batch_size, delivered", [(7, 35), (8, 40), (39, 39), (40, 40), (41, 40), (1000, 40)])
def test_only_training_drops_a_last_smaller_batch_and_never_its_only_one(
    batch_size: int, delivered: int, tmp_path: Path
) -> None:
    data = module_of(tmp_path, batch_size=batch_size)
    assert len(data.splits.train) == 40
    assert len(indices(data.train_dataloader())) == delivered
    assert len(indices(data.predict_dataloader())) == 50


@pytest.mark.parametrize("devices", [1, 3, 5, 8, 40])
def test_every_device_gets_a_batch_to_train_on(devices: int, tmp_path: Path) -> None:
    data = module_of(tmp_path, batch_size=8)
    data.trainer = cast(Trainer, SimpleNamespace(world_size=devices))
    loader = data.train_dataloader()
    for rank in range(devices):
        sampler: DistributedSampler[int] = DistributedSampler(loader.dataset, devices, rank)
        assert list(BatchSampler(sampler, 8, loader.drop_last))


def test_a_module_travels_to_spawned_processes_with_what_it_does(tmp_path: Path) -> None:
    data = module_of(tmp_path, **AUGMENTED)
    copy = pickle.loads(pickle.dumps(data))
    batches = []
    for one in (data, copy):
        seed_everything(0, verbose=False)
        batches.append(whole(one.train_dataloader()))
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    assert pickle.loads(pickle.dumps(data.train_dataloader().collate_fn))([data.source[0]]).index.tolist() == [0]


class Seen(Recorder):
    """Notes the images of validation and predict too."""

    def __init__(self) -> None:
        super().__init__(lambda batch: batch.image)
        self.validated, self.predicted = list[ImageBatch](), list[ImageBatch]()

    def validation_step(self, batch: ImageBatch) -> None:
        self.validated.append(batch)

    def predict_step(self, batch: ImageBatch) -> None:
        self.predicted.append(batch)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of Lightning, with a newer torch
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:predict returned None")
def test_lightning_fits_on_one_source_and_predicts_on_another(tmp_path: Path) -> None:
    """Each is opened once."""
    opened = []

    def opener(count: int) -> Callable[[], ImageSource]:
        def open_source() -> ImageSource:
            opened.append(count)
            return archive_of(tmp_path, count)()

        return open_source

    model, trainer = Seen(), quiet_trainer(tmp_path, max_epochs=1)
    data = ImageDataModule(opener(50), batch_size=8, predict_source=opener(2))
    trainer.predict(model, data, return_predictions=False)
    assert indices(model.predicted) == [0, 1] and opened == [2]
    trainer.fit(model, data)
    assert indices(model.validated)[-len(data.splits.val) :] == data.splits.val
    assert sorted(indices(model.seen[0])) == data.splits.train
    assert opened == [2, 50]


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_too_few_images_are_reported_at_setup_but_do_for_prediction(stage: str, tmp_path: Path) -> None:
    data = ImageDataModule(archive_of(tmp_path, 2), batch_size=1)
    with pytest.raises(DataError, match=r"it has 2 image\(s\), at least 3 are needed"):
        data.setup(stage)
    data.setup("predict")
    assert indices(data.predict_dataloader()) == [0, 1]


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "batch size": ({"batch_size": 0}, "^batch_size must be at least 1, got 0$"),
    "workers": ({"workers": -1}, "^workers must be 0 or larger, got -1$"),
    "shift": ({"shift": -1}, "^Augmentation: shift must be 0 or larger, got -1$"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_impossible_settings_are_reported_at_once(case: str) -> None:
    settings, pattern = SETTINGS[case]
    with pytest.raises(ProblemError, match=pattern):
        ImageDataModule(EmbeddedDigits, **{"batch_size": 4, **settings})


def test_an_image_may_not_move_out_of_sight(tmp_path: Path) -> None:
    module_of(tmp_path, shift=7)
    data = ImageDataModule(archive_of(tmp_path), batch_size=1, shift=8)
    for stage in ("fit", "validate", "test"):
        with pytest.raises(DataError, match=r"^shift is 8, but the images have size 8: it should be 0 to 7, "):
            data.setup(stage)
    data.setup("predict")


@with_worker
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_later_is_one_readable_line_even_from_a_worker(workers: int, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(pixels(1, side=32)[0]).save(tmp_path / name)
    data = ImageDataModule(partial(ImageFolder, tmp_path, 8), workers=workers, batch_size=1)
    data.setup("predict")
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:500])
    with pytest.raises(DataError) as caught:
        list(data.predict_dataloader())
    path = re.escape(str(tmp_path / "c.png"))
    assert re.fullmatch(rf"{path} is truncated or not an image \(.*\): delete or replace it", str(caught.value))


@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_the_first_process_looks_through_the_files_and_tells_the_others(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images(tmp_path, colours(12))
    write_bytes(folder / "000003.png")
    told: list[Any] = []

    def process(first: bool) -> ImageDataModule:
        def broadcast(found: Any) -> Any:
            assert (found is not None) == first
            told.extend([found] * first)
            return told[-1]

        data = ImageDataModule(partial(ImageFolder, folder, 8), batch_size=1)
        strategy = SimpleNamespace(broadcast=broadcast)
        data.trainer = cast(Trainer, SimpleNamespace(world_size=2, is_global_zero=first, strategy=strategy))
        data.setup(stage)
        return data

    with pytest.warns(UserWarning, match="000003.png is truncated or not an image"):
        one = process(first=True)
    monkeypatch.setattr(image_files, "check_readable", lambda path: pytest.fail("this process looks too"))
    other = process(first=False)
    if stage == "fit":
        assert one.splits == other.splits and len([i for part in vars(one.splits).values() for i in part]) == 11
    else:
        assert indices(other.predict_dataloader()) == [i for i in range(12) if i != 2]
