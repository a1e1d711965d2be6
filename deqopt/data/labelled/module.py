"""The Lightning data module over a labelled source."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from deqopt.data.epochs import EpochSamples
from deqopt.data.labelled.augmentation import Augmentation
from deqopt.data.labelled.source import LabelledBatch, LabelledSample, LabelledSource, Unlabelled
from deqopt.data.module import Collate, SourceDataModule
from deqopt.data.source import ImageSource
from deqopt.errors import DataError


class LabelledDataModule(SourceDataModule[LabelledSource]):
    """Batches (`LabelledBatch`) of the splits of a `LabelledSource`, and to predict, of all images of one in order.

    Images to train on are moved and mirrored at random, anew in every epoch: by the global seed, the epoch and the
    index of an image alone. Those of the other splits never are. Images to predict on have the label -1, also where
    they come from a labelled source.

    Args:
        source: opens the source, for example `functools.partial(open_labelled, None, size=8, channels=1, classes=10)`.
        batch_size, workers, seed: as of every `SourceDataModule`.
        predict_source: opens the images to predict on, for example `functools.partial(open_unlabelled, "photos",
            size=8, channels=1)`; by default those of `source`.
        shift: the most pixels that an image moves to each side; what is uncovered is black. 0, the default: none.
        flip: whether to swap left and right in half of the images; off by default, as digits and letters need it.

    Raises:
        DataError: as every `SourceDataModule`; a shift that is negative or, at `setup`, not below the images' size.
    """

    def __init__(
        self,
        source: Callable[[], LabelledSource],
        *,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        predict_source: Callable[[], ImageSource] | None = None,
        shift: int = 0,
        flip: bool = False,
    ) -> None:
        super().__init__(source, batch_size=batch_size, workers=workers, seed=seed, predict_source=predict_source)
        self._augmentation = Augmentation(shift, flip)

    def images(self) -> ImageSource:
        return self.source.images

    def samples(self, split: list[int], training: bool = False) -> Dataset[Any]:
        if training and self._augmentation != Augmentation():
            return EpochSamples(self.source, split, self.order_seed, partial(_moved, self._augmentation))
        return super().samples(split, training)

    def collate(self, training: bool) -> Collate:
        return _collate

    def predict_dataloader(self) -> DataLoader[LabelledSample]:
        return self._loader(Unlabelled(self.predict_source))

    def _open_for(self, stage: str) -> None:
        super()._open_for(stage)
        shift = self._augmentation.shift
        if stage != "predict" and shift >= (size := self.source.images.size):
            right = f"0 to {size - 1}, so that a part stays in sight"
            raise DataError(f"shift is {shift}, but the images have size {size}: it should be {right}")


def _moved(augmentation: Augmentation, sample: LabelledSample, generator: torch.Generator) -> LabelledSample:
    return sample._replace(image=augmentation(sample.image[None], generator)[0])


def _collate(samples: list[LabelledSample]) -> LabelledBatch:
    return LabelledBatch(*default_collate(samples))
