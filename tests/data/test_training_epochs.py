"""Training data of every kind: a resumed run sees what it would have seen, and processes share an epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from deqopt_tasks.denoising.data import RestorationData
from deqopt_tasks.denoising.inpainting import Inpainting, RandomBoxes
from deqopt_tasks.omniglot.data import EpisodeData
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import Callback, LightningModule, Trainer

from class_sources import Numbered
from deqopt.data import ImageDataModule, SplitDataModule
from epoch_samples import Samples, by_index, rows, same
from labelled_sources import archive_of, with_worker
from recorder import Recorder
from tiny_task import quiet_trainer

COUNT = 24
"""Samples of an epoch."""
MODULES: dict[str, Callable[..., SplitDataModule[Any]]] = {
    "images": lambda folder, **settings: ImageDataModule(archive_of(folder, 30), shift=1, flip=True, **settings),
    "measurements": lambda folder, **settings: RestorationData(
        archive_of(folder, 30), Inpainting(RandomBoxes(3), sigma=0.3), flip=True, **settings
    ),
    "episodes": lambda folder, **settings: EpisodeData(
        Numbered, ways=5, shots=1, queries=2, rotations=True, train_episodes=COUNT, val_episodes=2, **settings
    ),
}
each = pytest.mark.parametrize("module", MODULES)


class Save(Callback):
    """Writes a checkpoint when the first epoch ends, in one of two ways that Lightning continues differently."""

    def __init__(self, path: Path, hook: str) -> None:
        self._path, self._hook = path, hook

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._hook == "last batch" and trainer.global_step == trainer.num_training_batches:
            trainer.save_checkpoint(self._path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._hook == "epoch" and trainer.current_epoch == 0:
            trainer.save_checkpoint(self._path)


@each
@with_worker
@pytest.mark.parametrize(("hook", "workers"), [("last batch", 0), ("epoch", 2)])
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_run_that_is_resumed_sees_what_it_would_have_seen(
    hook: str, workers: int, module: str, tmp_path: Path
) -> None:
    path = tmp_path / "first.ckpt"

    def train(checkpoint: Path | None = None) -> dict[int, Samples]:
        model = Recorder(lambda batch: batch[0])
        trainer = quiet_trainer(tmp_path, max_epochs=3, callbacks=[Save(path, hook)])
        data = MODULES[module](tmp_path, batch_size=4, workers=workers)
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=False)
        return {epoch: rows(batches) for epoch, batches in model.seen.items()}

    whole = train()
    rest = train(path)
    assert whole.keys() == {0, 1, 2} and rest.keys() == {1, 2}
    assert not same(whole[0], whole[1]) and all(same(found, whole[epoch]) for epoch, found in rest.items())


@each
@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_an_epoch_without_overlap(processes: int, epoch: int, module: str, tmp_path: Path) -> None:
    """With the wrapper that Lightning puts around a sampler; every process has a data module of its own."""

    def loader(processes: int) -> Any:
        torch.manual_seed(0)
        data = MODULES[module](tmp_path, batch_size=4)
        data.trainer = cast(Trainer, SimpleNamespace(world_size=processes, current_epoch=epoch))
        return data.train_dataloader()

    whole, shares = rows(loader(1)), Samples()
    for rank in range(processes):
        mine = loader(processes)
        sampler = DistributedSamplerWrapper(mine.sampler, num_replicas=processes, rank=rank, seed=1)
        sampler.set_epoch(epoch)
        found = by_index(mine.dataset[item] for item in sampler)
        assert len(found) == COUNT / processes and not found.keys() & shares.keys()
        shares |= found
    assert same(dict(sorted(shares.items())), dict(sorted(whole.items())))
