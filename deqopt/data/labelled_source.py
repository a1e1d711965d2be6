"""Images with labels."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deqopt.data.archive import check_integers
from deqopt.data.source import ImageSource
from deqopt.data.splits import Splits
from deqopt.errors import DataError, printable


class LabelledSource(ImageSource):
    """Adds labels to the images of a source; everything else comes from that source.

    Attributes:
        images, labels: as given; the labels as int64.
        classes: as given.
        class_names: one name per class, `printable`; a class without a given name is called by its number.

    Args:
        images: the source of the images.
        labels: (N,) integers in 0 .. classes - 1.
        class_names: names of the classes 0, 1 and so on; may be empty.
        classes: number of classes that the network distinguishes; at least 2, and enough for all names and labels.

    Raises:
        DataError: labels of the wrong number or type, or outside the classes; more names than classes.

    Example:
        >>> from deqopt.data import open_labelled
        >>> digits = open_labelled(None, size=8, channels=1, classes=10)
        >>> digits[7].label
        7
    """

    def __init__(
        self, images: ImageSource, labels: NDArray[Any], class_names: Sequence[str] = (), *, classes: int
    ) -> None:
        where = images.where
        super().__init__(where, size=images.size, channels=images.channels, crop=images.crop)
        self.images, self.classes = images, classes
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

    def name(self, index: int) -> str:
        return self.images.name(index)

    def file(self, index: int) -> str:
        return self.images.file(index)

    def pixels(self, index: int) -> NDArray[Any]:
        return self.images.pixels(index)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    @cached_property
    def unreadable(self) -> Mapping[int, str]:
        return self.images.unreadable

    def splits(self, seed: int) -> Splits:
        """The splits of the images: 80, 10 and 10 percent drawn by `seed`, or the official parts."""
        return self.images.splits(seed)
