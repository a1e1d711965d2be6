"""Sources of images by class, from which episodes are drawn."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deqopt.data import ImageFolder, Part, Source, Splits
from deqopt.data.class_folders import class_labels, is_in_parts, part_folders
from deqopt.data.splits import split_groups
from deqopt.errors import DataError

LAYOUT = "CLASS/NAME.png, or train/CLASS/NAME.png and the same in val/ and test/, with other classes in each"


class ClassSource(Source[Tensor]):
    """Square images of many classes; an item contains all images of a class, (count, channels, size, size).

    Images are float32 in [0, 1], as in the files: paper is 1, ink is 0. Splits contain classes, not images: no class is
    in two splits.

    Arguments and errors are those of `Source`.
    """

    @abstractmethod
    def count(self, c: int) -> int:
        """The number of images of class c."""

    @abstractmethod
    def images(self, classes: Tensor, numbers: Tensor) -> Tensor:
        """Image ``numbers[i]`` of class ``classes[i]``, for all i: (n, channels, size, size). Both are (n,) int64."""

    def group(self, c: int) -> str:
        """The group of a class that must stay in one split, such as an alphabet; by default the class alone."""
        return self.name(c)

    def image(self, c: int, i: int) -> Tensor:
        """(channels, size, size): image i of class c."""
        return self.images(torch.tensor([c]), torch.tensor([i]))[0]

    def __getitem__(self, c: int) -> Tensor:
        numbers = torch.arange(self.count(c))
        return self.images(torch.full_like(numbers, c), numbers)


class ClassFolders(ClassSource):
    """Images in folders, one folder per class, decoded on access, cut to their central square and resized.

    All images are read once when the object is created: a warning names each image that cannot be read, and its class
    is used without this image.

    The classes are the subfolders of `root`, or of its `train/`, `val/` and `test/`, as in mini-ImageNet. In the second
    case, these are the splits, and no class may be in two of them. In the first case, the splits are 80, 10 and 10
    percent of the classes.

    Args:
        root: the folder.
        size: height and width of the images.
        channels: 1 (colours are converted to luma) or 3 (default; grey is repeated).

    Raises:
        DataError: the folder does not exist; no images, or images outside the class folders; a class folder without
            images; some of train/, val/ and test/, but not all; a class in two of them; on access, an image cannot be
            read.
    """

    def __init__(self, root: str | Path, size: int, channels: int = 3) -> None:
        super().__init__(str(root), size=size, channels=channels)
        root = Path(root)
        if not root.is_dir():
            raise DataError(f"{root} is {'a file' if root.exists() else 'missing'}: it should be a folder of {LAYOUT}")
        self._members: list[tuple[ImageFolder, list[int]]] = []
        self._names: list[str] = []
        self._parts: dict[Part, list[int]] = {}
        if is_in_parts(root, tuple(Part), LAYOUT):
            for part, folder in part_folders(root, size, channels).items():
                self._parts[part] = self._add(folder)
            self._check_disjoint()
        else:
            self._add(ImageFolder(root, size, channels))

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The name of the folder."""
        return self._names[index]

    def count(self, c: int) -> int:
        return len(self._members[c][1])

    def images(self, classes: Tensor, numbers: Tensor) -> Tensor:
        found = []
        for c, i in zip(classes.tolist(), numbers.tolist(), strict=True):
            folder, members = self._members[c]
            found.append(folder.tensor(members[i]))
        return torch.stack(found)

    def splits(self, seed: int) -> Splits:
        """Train, val and test as in `root`, or 80, 10 and 10 percent of the classes, determined by `seed` alone.

        Raises:
            DataError: fewer than three classes to split.
        """
        if self._parts:
            return Splits(*(self._parts[part] for part in Part))
        if len(self) < 3:
            names = ", ".join(self._names)
            raise DataError(
                f"{self.where} has {len(self)} class folder(s), {names}: at least 3 are needed, as no class may be in "
                "two of train, val and test"
            )
        return split_groups(np.arange(len(self)), seed, self.where)

    def _add(self, folder: ImageFolder) -> list[int]:
        """Add the classes of a folder; returns their indices."""
        labels, names = class_labels(folder)
        members: list[list[int]] = [[] for _ in names]
        for index in folder.readable:
            members[labels[index]].append(index)
        self._members += [(folder, one) for one in members]
        self._names += names
        return list(range(len(self._names) - len(names), len(self._names)))

    def _check_disjoint(self) -> None:
        found: dict[str, Part] = {}
        for part, classes in self._parts.items():
            for name in (self._names[c] for c in classes):
                if name in found:
                    both = f"{found[name].value}/ and {part.value}/"
                    raise DataError(f"{self.where} has class {name} in {both}: a class should be in one of them only")
                found[name] = part
