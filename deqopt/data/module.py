"""The Lightning data module over a source of images, and what it has in common with those of other samples."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, default_collate

from deqopt.data.epochs import EpochOrder, EpochSamples, epochs_of
from deqopt.data.loader import EpochLoader
from deqopt.data.source import ImageBatch, ImageSample, ImageSource, Source
from deqopt.data.splits import Splits
from deqopt.errors import DataError

SourceT = TypeVar("SourceT", bound=Source[Any])
Collate = Callable[[list[Any]], Any]


class SplitDataModule(LightningDataModule, ABC, Generic[SourceT]):
    """Batches of the splits of a source.

    Training is shuffled, anew in every epoch: its order comes from the global seed (`seed_everything`) and the epoch
    alone, and a run that is resumed keeps the seed that it began with. A last, smaller batch is dropped there, unless
    it is the only one. What a batch is, and what to predict on, a subclass says.

    Args:
        source: opens the source, for example `functools.partial(open_images, "faces", size=32, channels=1)`;
            called once in every process, first in one alone, so that it may download.
        batch_size: images a batch, on each device.
        workers: processes that load images; 0, the default, loads them in the main process.
        seed: fixes the splits, and nothing else.

    Raises:
        DataError: a batch size below 1 or workers below 0; later, all that opening and splitting raise.
    """

    def __init__(self, source: Callable[[], SourceT], *, batch_size: int, workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}: it should be 1 or more")
        if workers < 0:
            raise DataError(f"workers is {workers}: it should be 0 (load in the main process) or more")
        self._open = source
        self._batch_size, self._workers, self._seed = batch_size, workers, seed
        self._resumed: int | None = None

    @abstractmethod
    def collate(self, training: bool) -> Collate:
        """The function that makes a batch of samples; it is sent to the workers."""

    def samples(self, split: list[int], training: bool = False) -> Dataset[Any]:
        """The samples of a split, in its order; in training, item ``epoch * len + i`` is the i-th in an epoch."""
        return EpochSamples(self.source, split, self.order_seed) if training else Subset(self.source, split)

    @property
    def order_seed(self) -> int:
        """The seed of all that is random in training data, 0 or larger: the global one, where a run began."""
        return torch.initial_seed() if self._resumed is None else self._resumed

    def order(self, count: int) -> Sampler[int]:
        """What draws the order of an epoch of training; made once, iterated in every epoch, in the main process."""
        return EpochOrder(count, self.order_seed, epochs_of(self.trainer))

    def state_dict(self) -> dict[str, Any]:
        return {"order_seed": self.order_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the seed that the run began with, and say so where the present one is another."""
        here, self._resumed = self.order_seed, state_dict["order_seed"]
        if here != self.order_seed:
            rank_zero_info(f"The run goes on with the seed that it began with, {self.order_seed}, and not with {here}")

    @cached_property
    def source(self) -> SourceT:
        """The source of the splits, opened when first asked for."""
        return self._open()

    @cached_property
    def splits(self) -> Splits:
        return self.source.splits(self._seed)

    def prepare_data(self) -> None:
        self._open_for("predict" if self.trainer is not None and self.trainer.predicting else "fit")

    def setup(self, stage: str) -> None:
        self._open_for(stage)

    def train_dataloader(self) -> DataLoader[Any]:
        split = self.splits.train
        devices = 1 if self.trainer is None else self.trainer.world_size
        return self._loader(
            self.samples(split, training=True),
            order=self.order(len(split)),
            drop_last=len(split) > self._batch_size * devices,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.samples(self.splits.val))

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.samples(self.splits.test))

    def _open_for(self, stage: str) -> None:
        """Fail here, before the model is built up, and not in the first batch."""
        if stage != "predict":
            _ = self.splits

    def _loader(
        self, samples: Dataset[Any], *, order: Sampler[int] | None = None, drop_last: bool = False
    ) -> DataLoader[Any]:
        return EpochLoader(
            samples,
            seed=self.order_seed,
            batch_size=self._batch_size,
            sampler=order,
            drop_last=drop_last,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=self.collate(training=order is not None),
        )


class SourceDataModule(SplitDataModule[SourceT]):
    """Batches of the splits of a source, and to predict, of all images of one in order.

    Args:
        source, batch_size, workers, seed: as of every `SplitDataModule`.
        predict_source: opens the images to predict on, by default those of `source`.

    Raises:
        DataError: as every `SplitDataModule`.
    """

    def __init__(
        self,
        source: Callable[[], SourceT],
        *,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        predict_source: Callable[[], ImageSource] | None = None,
    ) -> None:
        super().__init__(source, batch_size=batch_size, workers=workers, seed=seed)
        self._open_to_predict = predict_source

    @abstractmethod
    def images(self) -> ImageSource:
        """All images of the source."""

    @cached_property
    def predict_source(self) -> ImageSource:
        """The images to predict on; its `name` says what an index in a batch is called."""
        return self.images() if self._open_to_predict is None else self._open_to_predict()

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.predict_source)

    def _open_for(self, stage: str) -> None:
        super()._open_for(stage)
        if stage == "predict":
            _ = self.predict_source


class ImageDataModule(SourceDataModule[ImageSource]):
    """Batches (`ImageBatch`) of the splits of an `ImageSource`, and to predict, of all images of one in order.

    Arguments and errors are those of `SourceDataModule`.
    """

    def images(self) -> ImageSource:
        return self.source

    def collate(self, training: bool) -> Collate:
        return _collate


def _collate(samples: list[ImageSample]) -> ImageBatch:
    return ImageBatch(*default_collate(samples))
