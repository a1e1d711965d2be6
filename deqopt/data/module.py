"""The Lightning data module for a source of images, and its base class, which other kinds of samples share."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Generic, TypeVar, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, default_collate

from deqopt.data.augmentation import Augmentation
from deqopt.data.epochs import EpochOrder, EpochSamples, epochs_of
from deqopt.data.loader import EpochLoader
from deqopt.data.source import UNKNOWN, ImageBatch, ImageSample, ImageSource, Source
from deqopt.data.splits import Splits
from deqopt.errors import DataError
from deqopt.ranges import at_least, not_negative

SourceT = TypeVar("SourceT", bound=Source[Any])
BatchT = TypeVar("BatchT", bound=tuple[Any, ...])
FoundT = TypeVar("FoundT")
Collate = Callable[[list[Any]], Any]


class SplitDataModule(LightningDataModule, Generic[SourceT]):
    """Batches of the splits of a source.

    Training data are shuffled again in every epoch. The order depends only on the global seed (`seed_everything`) and
    the epoch, and a resumed run keeps the seed that it began with. In training, the last batch is dropped if it is
    smaller, unless it is the only one. A subclass defines the batches and the samples to predict on. When the data are
    opened, a warning names every image that cannot be read; the remaining images are served.

    Args:
        source: opens the source, for example `functools.partial(open_images, "faces", size=32, channels=1)`;
            called once in every process, first in one alone, so that it may download. The splits are found by the
            first process, which looks for images that cannot be read, and told to the others.
        batch_size: images a batch, on each device.
        workers: processes that load images; 0, the default, loads them in the main process.
        seed: fixes the splits, and nothing else.

    Raises:
        ProblemError: a batch size below 1 or workers below 0.
        DataError: later, if opening or splitting the source fails.

    Example:
        >>> from deqopt.data import EmbeddedDigits, SplitDataModule
        >>> data = SplitDataModule(lambda: EmbeddedDigits(size=8, channels=1), batch_size=4)
        >>> len(data.splits.train), len(data.splits.val), len(data.splits.test)
        (1439, 179, 179)
    """

    def __init__(self, source: Callable[[], SourceT], *, batch_size: int, workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size)
        not_negative(workers=workers)
        self._open = source
        self._batch_size, self._workers, self._seed = batch_size, workers, seed
        self._resumed: int | None = None

    def collate(self, training: bool) -> Collate:
        """The function that makes a batch of samples; it is sent to the workers. By default PyTorch's."""
        return default_collate

    def samples(self, split: list[int], training: bool = False) -> Dataset[Any]:
        """The samples of a split, in its order; in training, item ``epoch * len + i`` is the i-th in an epoch."""
        return EpochSamples(self.source, split, self.order_seed) if training else Subset(self.source, split)

    @property
    def order_seed(self) -> int:
        """The seed of all randomness in training data, 0 or larger: the global seed at the beginning of the run."""
        return torch.initial_seed() if self._resumed is None else self._resumed

    def order(self, count: int) -> Sampler[int]:
        """The sampler that draws the order of a training epoch; created once, iterated in every epoch, in the main
        process."""
        return EpochOrder(count, self.order_seed, epochs_of(self.trainer))

    def state_dict(self) -> dict[str, Any]:
        return {"order_seed": self.order_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the seed that the run began with, and report it if the present seed is different."""
        here, self._resumed = self.order_seed, state_dict["order_seed"]
        if here != self.order_seed:
            rank_zero_info(f"The run goes on with the seed that it began with, {self.order_seed}, not with {here}")

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
        if self._uses_splits(stage):
            self.splits = self._told(lambda: self.splits)
        self._open_for(stage)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._training_loader(self.samples(self.splits.train, training=True), len(self.splits.train))

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.samples(self.splits.val))

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.samples(self.splits.test))

    def _open_for(self, stage: str) -> None:
        """Fail here, before the model is built up, and not in the first batch."""
        if self._uses_splits(stage):
            _ = self.splits

    def _uses_splits(self, stage: str) -> bool:
        return stage != "predict"

    def _told(self, find: Callable[[], FoundT]) -> FoundT:
        """What the first process finds: it alone looks through the files, and all work on the same data."""
        if self.trainer is None or self.trainer.world_size == 1:
            return find()
        return self.trainer.strategy.broadcast(find() if self.trainer.is_global_zero else cast(FoundT, None))

    def _training_loader(self, samples: Dataset[Any], count: int) -> DataLoader[Any]:
        """The training loader for samples of which an epoch has ``count``."""
        devices = 1 if self.trainer is None else self.trainer.world_size
        return self._loader(samples, order=self.order(count), drop_last=count > self._batch_size * devices)

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


class ImageDataModule(SplitDataModule[ImageSource]):
    """Batches (`ImageBatch`) of the splits of a source; for predict, batches of all images of a source, in order.

    Training images are shifted and mirrored at random, differently in every epoch. The random changes depend only on
    the global seed, the epoch and the index of the image. Images of the other splits stay unchanged. Predict serves
    all images that can be read, with the label -1.

    Args:
        source: function that opens the source, for example `functools.partial(open_labelled, None, size=8, channels=1,
            classes=10)`.
        batch_size, workers, seed: see `SplitDataModule`.
        predict_source: function that opens the images to predict on, for example `functools.partial(open_images,
            "photos", size=8, channels=1)`; by default predict uses the images of `source`.
        shift: largest shift of a training image in pixels; uncovered pixels are black. 0 (default) for no shift.
        flip: whether to swap left and right in half of the training images; off by default, because digits and letters
            must not be mirrored.

    Raises:
        DataError: see `SplitDataModule`; at `setup`, a shift that is not smaller than the size of the images.
        ProblemError: see `SplitDataModule`; a negative shift.

    Example:
        >>> from functools import partial
        >>> from deqopt.data import ImageDataModule, open_images
        >>> data = ImageDataModule(partial(open_images, None, size=8, channels=1), batch_size=4)
        >>> next(iter(data.val_dataloader())).image.shape
        torch.Size([4, 1, 8, 8])
    """

    def __init__(
        self,
        source: Callable[[], ImageSource],
        *,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        predict_source: Callable[[], ImageSource] | None = None,
        shift: int = 0,
        flip: bool = False,
    ) -> None:
        super().__init__(source, batch_size=batch_size, workers=workers, seed=seed)
        self._open_to_predict, self._augmentation = predict_source, Augmentation(shift, flip)

    @cached_property
    def predict_source(self) -> ImageSource:
        """The images to predict on; its method `name` gives the name of an image for its index in a batch."""
        return self.source if self._open_to_predict is None else self._open_to_predict()

    def samples(self, split: list[int], training: bool = False) -> Dataset[Any]:
        if training and self._augmentation != Augmentation():
            return EpochSamples(self.source, split, self.order_seed, partial(_moved, self._augmentation))
        return super().samples(split, training)

    def collate(self, training: bool) -> Collate:
        return partial(batch_of, ImageBatch)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(_Unlabelled(self.predict_source))

    def setup(self, stage: str) -> None:
        if stage == "predict":
            images = self.predict_source
            images.unreadable = self._told(lambda: images.unreadable)
        super().setup(stage)

    def _open_for(self, stage: str) -> None:
        super()._open_for(stage)
        shift = self._augmentation.shift
        if stage == "predict":
            _ = self.predict_source.readable
        elif shift >= (size := self.source.size):
            right = f"0 to {size - 1}, so that a part stays visible"
            raise DataError(f"shift is {shift}, but the images have size {size}: it should be {right}")


def batch_of(kind: type[BatchT], samples: list[Any]) -> BatchT:
    """A batch of samples that are tuples: a named tuple with the same fields, stacked."""
    return kind(*default_collate(samples))


class _Unlabelled(Dataset[ImageSample]):
    """The images of a source that can be read, without their labels."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source.readable)

    def __getitem__(self, position: int) -> ImageSample:
        return self._source[self._source.readable[position]]._replace(label=UNKNOWN)


def _moved(augmentation: Augmentation, sample: ImageSample, generator: torch.Generator) -> ImageSample:
    return sample._replace(image=augmentation(sample.image[None], generator)[0])
