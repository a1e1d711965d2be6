"""The data of inverse problems: clean images that are measured again in every epoch, and a user's damaged images."""

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
    """A clean image, (channels, size, size) in [0, 1], or (0,) if it is unknown; the measurement y of this image in
    [-1, 1]; the parameters of the operator; the index of the image in the source. All float32."""

    clean: Tensor
    y: Tensor
    parameters: Tensor
    index: int  # type: ignore[assignment]  # hides tuple.index, which nothing here needs


class RestorationBatch(NamedTuple):
    """Clean images, (B, channels, size, size) in [0, 1], or (B, 0) if they are unknown; the measurements y, (B, ...),
    of these images in [-1, 1]; the parameters of the operator, (B, ...); the indices in the source, (B,) int64."""

    clean: Tensor
    y: Tensor
    parameters: Tensor
    index: Tensor  # type: ignore[assignment]


class MeasuredImages(Dataset[RestorationSample]):
    """Clean images and their measurements, the same at every access.

    Args:
        source: the clean images.
        indices: indices of the images that are served, in this order.
        operator: operator that measures the images.
        seed: 0 or larger; parameters and noise of an image depend only on the seed and the index of the image.
    """

    def __init__(self, source: ImageSource, indices: list[int], operator: MeasurementOperator, seed: int) -> None:
        self._source, self._indices, self._operator, self._seed = source, indices, operator, seed

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> RestorationSample:
        index = self._indices[position]
        return self._measured(index, self._source[index].image, generator_of(self._seed, 0, index))

    def name(self, index: int) -> str:
        """The name that the source gives to the image with this index in a batch."""
        return self._source.name(index)

    def _measured(self, index: int, clean: Tensor, generator: torch.Generator) -> RestorationSample:
        return RestorationSample(clean, *measure(self._operator, clean, generator), index)


class TrainingImages(MeasuredImages):
    """Clean images that are measured again in every epoch: item ``epoch * len + i`` is the i-th image in an epoch.

    So a worker can compute the epoch from the items that a sampler such as `EpochOrder` requests.

    Args:
        source, indices, operator, seed: see `MeasuredImages`; here the random numbers also depend on the epoch.
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
    """A user's damaged images at their original size: neither cut nor resized. Clean images are unknown, (0,).

    All images are read at once when the object is created, so that errors appear then. Unreadable images are left out.

    Attributes:
        source: the images, including those that are left out.

    Args:
        root: a folder, listed and with names as in `deqopt.data.ImageFolder`, or an ``.npz`` file with ``images``.
        operator: operator that converts an image to a measurement.
        channels: 1 (colours are converted to luma) or 3 (grey is repeated).

    Raises:
        DataError: the folder or file does not exist, no image can be read, or images have several sizes.
        DeqoptError: the operator refuses an image.
    """

    def __init__(self, root: str | Path, operator: MeasurementOperator, channels: int) -> None:
        root, self._operator = Path(root).expanduser(), operator
        # Images keep their original size: the size that is given here is not used.
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
        """The name for output files of the image with this index in a batch."""
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

    The random parameters, noise and mirroring depend only on ``(noise_seed, epoch, index)`` of a sample, not on the
    global seed or the number of workers, processes and batches. They are new in every training epoch, and the same in
    every pass over val and test. The order of a training epoch depends on ``(noise_seed, epoch)``. The epoch is that of
    the trainer, so a resumed run goes on as if it had not been interrupted; without a trainer, passes over a loader are
    counted.

    Args:
        source: function that opens the clean images, for example `functools.partial(open_images, "faces", size=32,
            channels=1)`.
        operator: operator that measures the images.
        batch_size, workers, seed: see `SplitDataModule`.
        noise_seed: seed of parameters, noise and mirroring, 0 (default) or larger.
        flip: whether to mirror half of the training images; off by default.
        predict_source: function that opens a user's damaged images to predict on. By default predict serves the test
            images, measured as in test.

    Raises:
        DataError: see `SplitDataModule`.
        ProblemError: see `SplitDataModule`; a negative noise_seed; when the data are opened, an operator that does not
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
        """The images to predict on; its method `name` gives the name of an image for its index in a batch."""
        return self.samples(self.splits.test) if self._open_to_predict is None else self._open_to_predict()

    def damaged(self) -> ImageSource | None:
        """The user's damaged images to predict on, if given."""
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
