"""The Lightning data module over a source of images, and what it has in common with that of labelled ones."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from deqopt.data.source import ImageBatch, ImageSample, ImageSource, Source
from deqopt.data.splits import Splits
from deqopt.errors import DataError

SourceT = TypeVar("SourceT", bound=Source[Any])
Collate = Callable[[list[Any]], Any]


class SourceDataModule(LightningDataModule, ABC, Generic[SourceT]):
    """Batches of the splits of a source, and to predict, of all images of one in order.

    Training is shuffled, anew in every epoch and by the global seed (`seed_everything`); a last, smaller
    batch is dropped there, unless it is the only one. What a batch is, a subclass says.

    Args:
        source: opens the source, for example `functools.partial(open_images, "faces", size=32, channels=1)`;
            called once in every process, first in one alone, so that it may download.
        batch_size: images a batch, on each device.
        workers: processes that load images; 0, the default, loads them in the main process.
        seed: fixes the splits, and nothing else.
        predict_source: opens the images to predict on, by default those of `source`.

    Raises:
        DataError: a batch size below 1 or workers below 0; later, all that opening and splitting raise.
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
        super().__init__()
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}: it should be 1 or more")
        if workers < 0:
            raise DataError(f"workers is {workers}: it should be 0 (load in the main process) or more")
        self._open, self._open_to_predict = source, predict_source
        self._batch_size, self._workers, self._seed = batch_size, workers, seed

    @abstractmethod
    def images(self) -> ImageSource:
        """All images of the source."""

    @abstractmethod
    def collate(self, training: bool) -> Collate:
        """The function that makes a batch of samples; it is sent to the workers."""

    @cached_property
    def source(self) -> SourceT:
        """The source of the splits, opened when first asked for."""
        return self._open()

    @cached_property
    def splits(self) -> Splits:
        return self.source.splits(self._seed)

    @cached_property
    def predict_source(self) -> ImageSource:
        """The images to predict on; its `name` says what an index in a batch is called."""
        return self.images() if self._open_to_predict is None else self._open_to_predict()

    def prepare_data(self) -> None:
        self._open_for("predict" if self.trainer is not None and self.trainer.predicting else "fit")

    def setup(self, stage: str) -> None:
        self._open_for(stage)

    def train_dataloader(self) -> DataLoader[Any]:
        split = self.splits.train
        devices = 1 if self.trainer is None else self.trainer.world_size
        return self._loader(
            Subset(self.source, split), training=True, drop_last=len(split) > self._batch_size * devices
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(Subset(self.source, self.splits.val))

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(Subset(self.source, self.splits.test))

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.predict_source)

    def _open_for(self, stage: str) -> None:
        """Fail here, before the model is built up, and not in the first batch."""
        _ = self.predict_source if stage == "predict" else self.splits

    def _loader(self, samples: Dataset[Any], *, training: bool = False, drop_last: bool = False) -> DataLoader[Any]:
        return DataLoader(
            samples,
            batch_size=self._batch_size,
            shuffle=training,
            drop_last=drop_last,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=self.collate(training),
        )


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
