"""The data of inverse problems: clean images measured anew in every epoch, and a user's damaged images."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deqopt.data import ImageFolder, ImageSource, SplitDataModule, generator_of, open_images, signed
from deqopt.data.module import Collate, batch_of
from deqopt.data.pixels import whole_tensor
from deqopt.errors import DataError
from deqopt.ranges import not_negative

from .operator import MeasurementOperator, measure

Size = tuple[int, int]
"""(height, width) of an image."""


class RestorationSample(NamedTuple):
    """A clean image, (channels, size, size) in [0, 1], or (0,) where it is not known; its measurement y, of the image
    in [-1, 1]; the parameters of the operator; its index in the source. All float32."""

    clean: Tensor
    y: Tensor
    parameters: Tensor
    index: int  # type: ignore[assignment]  # hides tuple.index, which nothing here needs


class RestorationBatch(NamedTuple):
    """Clean images, (B, channels, size, size) in [0, 1], or (B, 0) where they are not known; their measurements y,
    (B, ...), of images in [-1, 1]; the parameters of the operator, (B, ...); the indices in the source, (B,) int64."""

    clean: Tensor
    y: Tensor
    parameters: Tensor
    index: Tensor  # type: ignore[assignment]


class MeasuredImages(Dataset[RestorationSample]):
    """Clean images and their measurements, the same at every access.

    Args:
        source: the clean images.
        indices: of those that are served, in this order.
        operator: measures them.
        seed: 0 or larger; parameters and noise of an image come from it and the image's index alone.
    """

    def __init__(self, source: ImageSource, indices: list[int], operator: MeasurementOperator, seed: int) -> None:
        self._source, self._indices, self._operator, self._seed = source, indices, operator, seed

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> RestorationSample:
        index = self._indices[position]
        return self._measured(index, self._source[index].image, generator_of(self._seed, 0, index))

    def name(self, index: int) -> str:
        """What the source calls the image with this index in a batch."""
        return self._source.name(index)

    def _measured(self, index: int, clean: Tensor, generator: torch.Generator) -> RestorationSample:
        return RestorationSample(clean, *measure(self._operator, clean, generator), index)


class TrainingImages(MeasuredImages):
    """Clean images that are measured anew in every epoch: item ``epoch * len + i`` is the i-th image in an epoch.

    So a worker learns the epoch from what a sampler such as `EpochOrder` asks for.

    Args:
        source, indices, operator, seed: as of `MeasuredImages`; the draws come from the epoch too.
        flip: whether to swap left and right of an image with probability 1/2, before it is measured.
    """

    def __init__(
        self, source: ImageSource, indices: list[int], operator: MeasurementOperator, seed: int, flip: bool
    ) -> None:
        super().__init__(source, indices, operator, seed)
        self._flip = flip

    def __getitem__(self, item: int) -> RestorationSample:
        epoch, position = divmod(item, len(self))
        index = self._indices[position]
        clean, generator = self._source[index].image, generator_of(self._seed, epoch, index)
        if self._flip and torch.rand((), generator=generator) < 0.5:
            clean = clean.flip(2)
        return self._measured(index, clean, generator)


class DamagedImages(Dataset[RestorationSample]):
    """A user's damaged images at their own size: neither cut nor resized. Clean images are not known, (0,).

    All are read when it is made, so that whatever is wrong is said then. Those that cannot be read are left out.

    Attributes:
        source: the images, those that are left out among them.

    Args:
        root: a folder, which is listed and whose images are named as by `deqopt.data.ImageFolder`, or an ``.npz`` file
            with ``images``.
        operator: says what measurement an image is.
        channels: 1 (colours become their luma) or 3 (grey is repeated).

    Raises:
        DataError: no such folder or file, none that can be read, or images of several sizes.
        DeqoptError: what the operator says of an image.
    """

    def __init__(self, root: str | Path, operator: MeasurementOperator, channels: int) -> None:
        root, self._operator = Path(root).expanduser(), operator
        # Their own size is kept: the one that is given here has no part.
        opens = ImageFolder if root.is_dir() else open_images
        self.source: ImageSource = opens(root, size=1, channels=channels)
        self._check_size()
        for position in range(len(self)):
            _ = self[position]

    def __len__(self) -> int:
        return len(self.source.readable)

    def __getitem__(self, position: int) -> RestorationSample:
        index = self.source.readable[position]
        image = signed(whole_tensor(self.source.pixels(index), channels=self.source.channels))
        y, parameters = self._operator.read(image, self.source.name(index))
        return RestorationSample(torch.empty(0), y, parameters, index)

    def name(self, index: int) -> str:
        """A name for output files of the image with this index in a batch."""
        return self.source.name(index)

    def _check_size(self) -> None:
        found: dict[Size, list[str]] = {}
        for index in self.source.readable:
            height, width = self.source.pixels(index).shape[:2]
            found.setdefault((height, width), []).append(self.source.file(index))
        if len(found) > 1:
            often = sorted(found.items(), key=lambda item: -len(item[1]))[:2]
            sizes = " and ".join(f"{h} x {w} ({files[0]})" for (h, w), files in often)
            raise DataError(
                f"the images of {self.source.where} have {len(found)} sizes, most often {sizes}: one run restores "
                "images of one size, so sort them into folders by size"
            )


class RestorationData(SplitDataModule[ImageSource]):
    """Batches (`RestorationBatch`) of the splits of a source of clean images, measured by an operator.

    All that is random comes from ``(noise_seed, epoch, index)`` of a sample alone, whatever the global seed is and
    however many workers, processes and batches there are: parameters, noise and mirroring, which are new in every epoch
    of training and the same in every pass over val and test. The order of a training epoch comes from ``(noise_seed,
    epoch)``. An epoch is that of the trainer, so a run that is resumed goes on as if it had not been interrupted;
    without a trainer the passes over a loader count.

    Args:
        source: opens the clean images, for example `functools.partial(open_images, "faces", size=32, channels=1)`.
        operator: measures them.
        batch_size, workers, seed: as of every `SplitDataModule`.
        noise_seed: 0 (default) or larger.
        flip: whether to mirror half of the images to train on; off by default.
        predict_source: opens a user's damaged images to predict on. By default predict serves the test images, measured
            as in test.

    Raises:
        DataError: as every `SplitDataModule`.
        ProblemError: as every `SplitDataModule`; a negative noise_seed; when it is opened, an operator that does not
            fit the images.
    """

    def __init__(
        self,
        source: Callable[[], ImageSource],
        operator: MeasurementOperator,
        *,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        noise_seed: int = 0,
        flip: bool = False,
        predict_source: Callable[[], DamagedImages] | None = None,
    ) -> None:
        super().__init__(source, batch_size=batch_size, workers=workers, seed=seed)
        not_negative(noise_seed=noise_seed)
        self.operator = operator
        self._noise_seed, self._flip, self._open_to_predict = noise_seed, flip, predict_source

    @cached_property
    def predict_source(self) -> MeasuredImages | DamagedImages:
        """What to predict on; its `name` says what an index in a batch is called."""
        return self.samples(self.splits.test) if self._open_to_predict is None else self._open_to_predict()

    def damaged(self) -> ImageSource | None:
        """What to predict on, where it is a user's."""
        images = self.predict_source
        return images.source if isinstance(images, DamagedImages) else None

    def samples(self, split: list[int], training: bool = False) -> MeasuredImages:
        if training:
            return TrainingImages(self.source, split, self.operator, self._noise_seed, self._flip)
        return MeasuredImages(self.source, split, self.operator, self._noise_seed)

    @property
    def order_seed(self) -> int:
        return self._noise_seed

    def collate(self, training: bool) -> Collate:
        return partial(batch_of, RestorationBatch)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.predict_source)

    def _open_for(self, stage: str) -> None:
        super()._open_for(stage)
        if not self._uses_splits(stage):
            _ = self.predict_source
        else:
            self.operator.check((self.source.channels, self.source.size, self.source.size))

    def _uses_splits(self, stage: str) -> bool:
        return stage != "predict" or self._open_to_predict is None
