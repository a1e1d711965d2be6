"""The data module: what its loaders deliver, and how errors and images leave the program."""

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
from lightning.pytorch import LightningModule, Trainer, seed_everything
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from deqopt.data import (
    EmbeddedDigits,
    ImageArchive,
    ImageBatch,
    ImageDataModule,
    ImageFolder,
    ImageSource,
    open_images,
    save_image,
)
from deqopt.errors import DataError

torch.set_num_threads(1)

# Since Python 3.12, forking a process that has threads (PyTorch's own) warns.
with_worker = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def grey_archive(folder: Path, count: int) -> Callable[[], ImageSource]:
    """Image i is uniformly grey of level i."""
    path = folder / f"grey{count}.npz"
    np.savez(path, images=np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8))
    return partial(open_images, path, size=4, channels=1)


def indices(batches: Iterable[ImageBatch]) -> list[int]:
    return [i for batch in batches for i in batch.index.tolist()]


def module(source: Callable[[], ImageSource], stage: str = "fit", **settings: Any) -> ImageDataModule:
    data = ImageDataModule(source, **{"batch_size": 4, **settings})
    data.prepare_data()
    data.setup(stage)
    return data


@with_worker
@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_deliver_every_image_of_their_split_with_its_index(workers: int, tmp_path: Path) -> None:
    data = module(grey_archive(tmp_path, 50), workers=workers, seed=5)
    loaders = {
        "val": (data.val_dataloader(), data.splits.val),
        "test": (data.test_dataloader(), data.splits.test),
        "predict": (data.predict_dataloader(), list(range(50))),
    }
    for loader, expected in loaders.values():
        batches: list[ImageBatch] = list(loader)
        assert indices(batches) == expected
        for batch in batches:
            assert isinstance(batch, ImageBatch) and batch.image.shape[1:] == (1, 4, 4)
            levels = (batch.image + 1) * 127.5
            torch.testing.assert_close(levels, batch.index[:, None, None, None].expand_as(levels).float())
    train = data.train_dataloader()
    assert set(indices(train)) <= set(data.splits.train)


def test_splits_do_not_depend_on_workers_batches_or_the_global_seed(tmp_path: Path) -> None:
    source = grey_archive(tmp_path, 50)
    seed_everything(1, verbose=False)
    first = module(source, seed=3).splits
    seed_everything(2, verbose=False)
    assert module(source, seed=3, workers=2, batch_size=7, stage="test").splits == first
    assert module(source, seed=4).splits != first


def test_training_is_reshuffled_every_epoch_and_repeats_with_the_global_seed(tmp_path: Path) -> None:
    data = module(grey_archive(tmp_path, 50))

    def two_epochs() -> tuple[list[int], list[int]]:
        seed_everything(0, verbose=False)
        loader = data.train_dataloader()
        return indices(loader), indices(loader)

    first, second = two_epochs()
    assert first != second and sorted(first) == sorted(second) == data.splits.train
    assert two_epochs() == (first, second)


@pytest.mark.parametrize("batch_size, delivered", [(7, 35), (8, 40), (39, 39), (40, 40), (41, 40), (1000, 40)])
def test_only_training_drops_a_last_smaller_batch_and_never_its_only_one(
    batch_size: int, delivered: int, tmp_path: Path
) -> None:
    data = module(grey_archive(tmp_path, 50), batch_size=batch_size)
    assert len(data.splits.train) == 40
    assert len(indices(data.train_dataloader())) == delivered
    assert len(indices(data.predict_dataloader())) == 50


@pytest.mark.parametrize("devices", [1, 3, 5, 8, 40])
def test_every_device_gets_a_batch_to_train_on(devices: int, tmp_path: Path) -> None:
    data = module(grey_archive(tmp_path, 50), batch_size=8)
    data.trainer = cast(Trainer, SimpleNamespace(world_size=devices))
    loader = data.train_dataloader()
    for rank in range(devices):
        sampler: DistributedSampler[int] = DistributedSampler(loader.dataset, devices, rank)
        assert list(BatchSampler(sampler, 8, loader.drop_last))


def test_a_module_travels_to_spawned_processes_with_its_source(tmp_path: Path) -> None:
    data = module(grey_archive(tmp_path, 50))
    copy = pickle.loads(pickle.dumps(data))
    assert copy.splits == data.splits and torch.equal(copy.source[7].image, data.source[7].image)


def test_a_plain_loader_keeps_the_names_too() -> None:
    batch = next(iter(DataLoader(EmbeddedDigits(), batch_size=3)))
    assert batch.image.shape == (3, 1, 16, 16) and batch.index.tolist() == [0, 1, 2]


class Recorder(LightningModule):
    """Trains a single number and notes which images it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[int]] = {"fit": [], "validate": [], "predict": []}

    def training_step(self, batch: ImageBatch) -> Tensor:
        self.seen["fit"] += batch.index.tolist()
        return (batch.image - self.level).square().mean()

    def validation_step(self, batch: ImageBatch) -> None:
        self.seen["validate"] += batch.index.tolist()

    def predict_step(self, batch: ImageBatch) -> None:
        self.seen["predict"] += batch.index.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, default_root_dir=tmp_path, **quiet)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of Lightning, with a newer torch
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:predict returned None")
def test_lightning_fits_on_one_source_and_predicts_on_another(trainer: Trainer, tmp_path: Path) -> None:
    opened = []

    def opener(count: int) -> Callable[[], ImageSource]:
        def open_source() -> ImageSource:
            opened.append(count)
            return grey_archive(tmp_path, count)()

        return open_source

    model, data = Recorder(), ImageDataModule(opener(50), batch_size=8, predict_source=opener(2))
    trainer.predict(model, data, return_predictions=False)
    assert model.seen["predict"] == [0, 1]
    assert opened == [2]
    trainer.fit(model, data)
    assert model.seen["validate"][-len(data.splits.val) :] == data.splits.val
    assert sorted(model.seen["fit"]) == data.splits.train
    assert opened == [2, 50]


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_too_few_images_are_reported_at_setup_but_do_for_prediction(stage: str, tmp_path: Path) -> None:
    data = ImageDataModule(grey_archive(tmp_path, 2), batch_size=1)
    with pytest.raises(DataError, match=r"it has 2 image\(s\), at least 3 are needed"):
        data.setup(stage)
    data.setup("predict")
    assert indices(data.predict_dataloader()) == [0, 1]


def test_a_batch_stays_a_batch_on_its_way_to_a_device(tmp_path: Path) -> None:
    data = module(grey_archive(tmp_path, 10))
    batch = next(iter(data.val_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert isinstance(moved, ImageBatch)
    assert moved.image.is_meta and moved.index.is_meta and moved.image.shape == batch.image.shape


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"batch_size": 4, "workers": -1}], ids=str)
def test_impossible_settings_are_reported_at_once(settings: dict[str, Any]) -> None:
    name = "workers" if "workers" in settings else "batch_size"
    with pytest.raises(DataError, match=rf"{name} is {settings[name]}: it should be \d .*or more"):
        ImageDataModule(EmbeddedDigits, **settings)


@with_worker
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_readable_line_even_from_a_worker(workers: int, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    content = (tmp_path / "c.png").read_bytes()
    (tmp_path / "c.png").write_bytes(content[:500])
    data = module(partial(ImageFolder, tmp_path, 8), stage="predict", workers=workers, batch_size=1)
    with pytest.raises(DataError) as caught:
        list(data.predict_dataloader())
    path = re.escape(str(tmp_path / "c.png"))
    assert re.fullmatch(rf"{path} is truncated or not an image \(.*\): delete or replace it", str(caught.value))


# Writing


@pytest.mark.parametrize("channels", [1, 3])
def test_a_saved_image_comes_back_to_the_bit(channels: int, tmp_path: Path) -> None:
    levels = torch.arange(256, dtype=torch.float32).reshape(1, 16, 16).repeat(channels, 1, 1)
    image = levels / 127.5 - 1
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
        save_image(path, -torch.ones(1, 2, 2))
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert np.asarray(Image.open(path)).min() == 255


UNWRITABLE = {
    "jpg": ("a.jpg", torch.zeros(1, 2, 2), r"a\.jpg: .*should end in \.png"),
    "batch": ("a.png", torch.zeros(1, 1, 2, 2), r"\(1, 1, 2, 2\).*should be \(1 or 3, H, W\)"),
    "two channels": (
        "a.png",
        torch.zeros(2, 2, 2),
        r"\(2, 2, 2\) of torch.float32, should be \(1 or 3, H, W\)",
    ),
    "bytes": (
        "a.png",
        torch.zeros(1, 2, 2, dtype=torch.uint8),
        r"torch\.uint8, should be .* floats in \[-1, 1\]",
    ),
    "NaN": ("a.png", torch.full((1, 2, 2), torch.nan), r"NaN or infinite pixels, should be in \[-1, 1\]"),
    "under a file": ("file/a.png", torch.zeros(1, 2, 2), r"cannot write .*a\.png: "),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_cannot_be_written_is_said_and_nothing_is_left(case: str, tmp_path: Path) -> None:
    name, image, pattern = UNWRITABLE[case]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=pattern):
        save_image(tmp_path / name, image)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_an_archive_is_opened_once_however_many_loaders_read_it(tmp_path: Path) -> None:
    calls: list[ImageArchive] = []

    def open_source() -> ImageSource:
        np.savez(tmp_path / "a.npz", images=np.zeros((5, 2, 2), np.uint8))
        calls.append(ImageArchive(tmp_path / "a.npz", 2))
        return calls[-1]

    data = module(open_source)
    for stage in ("validate", "test", "predict"):
        data.setup(stage)
    list(data.train_dataloader()), list(data.val_dataloader()), list(data.predict_dataloader())
    assert len(calls) == 1
