"""Images with the class of each."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from deqopt.data.archive import check_integers
from deqopt.data.source import ImageSource, Source
from deqopt.data.splits import Splits
from deqopt.errors import DataError, printable

UNKNOWN = -1
"""The label of an image whose class is not known."""


class LabelledSample(NamedTuple):
    """One image, (channels, size, size), float32 in [0, 1], its class or -1, and its index in the source."""

    image: Tensor
    label: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nothing here needs


class LabelledBatch(NamedTuple):
    """Images, their classes, and their indices in the source.

    Attributes:
        image: (B, channels, size, size), float32 in [0, 1]: not [-1, 1] as in an `ImageBatch`, because attacks are
            measured in units of pixels from 0 (black) to 1 (white).
        label: (B,) int64 in 0 .. classes - 1, or -1 where it is unknown: in images to predict on.
        index: (B,) int64.
    """

    image: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]


class LabelledSource(Source[LabelledSample]):
    """The images of a source with labels; its names and splits are theirs.

    Attributes:
        images, labels: as given; the labels as int64.
        classes: as given.
        class_names: one a class, `printable`; a class that was given no name is called by its number.

    Args:
        images: the source of the images, without labels.
        labels: (N,) integers in 0 .. classes - 1.
        class_names: of classes 0, 1 and on; possibly of none.
        classes: how many the network tells apart; at least 2, and enough for all names and labels.

    Raises:
        DataError: labels of another number or type, or outside the classes; more names than classes.
    """

    def __init__(
        self, images: ImageSource, labels: NDArray[Any], class_names: Sequence[str] = (), *, classes: int
    ) -> None:
        self.images, self.classes = images, classes
        where = images.where
        if classes < 2:
            raise DataError(f"classes is {classes}: it should be 2 or more, the number of classes of {where}")
        if len(class_names) > classes:
            found = f"{where} has {len(class_names)} classes, from {class_names[0]} to {class_names[-1]}"
            raise DataError(f"{found}, but classes is {classes}: set classes to {len(class_names)}")
        check_integers(labels, len(images), f"the array of labels of {where}")
        for index in (int(labels.argmin()), int(labels.argmax())):
            label = int(labels[index])
            if not 0 <= label < classes:
                advice = f", or set classes to {label + 1}" if label > 0 else ""
                found = f"{where} has label {label} (of image {images.name(index)})"
                raise DataError(f"{found}: labels should be 0 to {classes - 1}{advice}")
        self.labels = labels.astype(np.int64)
        self.class_names = [*map(printable, class_names), *map(str, range(len(class_names), classes))]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> LabelledSample:
        index = range(len(self))[index]
        return LabelledSample(self.images.tensor(index, black=0.0), int(self.labels[index]), index)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def splits(self, seed: int) -> Splits:
        """As of the images: 80, 10 and 10 percent drawn by `seed`, or the official parts."""
        return self.images.splits(seed)


class Unlabelled(Dataset[LabelledSample]):
    """Samples of images whose classes are not known: every label is -1."""

    def __init__(self, images: ImageSource) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> LabelledSample:
        return LabelledSample(self._images.tensor(index, black=0.0), UNKNOWN, index)
