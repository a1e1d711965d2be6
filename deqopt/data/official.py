"""Images with an official split into train and test."""

from collections.abc import Mapping
from functools import cached_property
from itertools import accumulate
from typing import Any

from numpy.typing import NDArray

from deqopt.data.source import ImageSource
from deqopt.data.splits import Part, Splits, hold_out


class OfficialParts(ImageSource):
    """Several sources combined into one: a data set with separate train and test parts, and optionally val.

    Args:
        where: source of the images, for messages.
        parts: the source of every part, in the order of the indices; all with the same size and number of channels.
    """

    def __init__(self, where: str, parts: Mapping[Part, ImageSource]) -> None:
        first = next(iter(parts.values()))
        super().__init__(where, size=first.size, channels=first.channels)
        ends = list(accumulate(len(source) for source in parts.values()))
        self._parts = {
            part: (range(end - len(source), end), source)
            for (part, source), end in zip(parts.items(), ends, strict=True)
        }

    def __len__(self) -> int:
        return sum(len(source) for _, source in self._parts.values())

    def name(self, index: int) -> str:
        """The name of the image in its part, preceded by the name of the part."""
        part, source, position = self._find(index)
        return f"{part.value}_{source.name(position)}"

    def file(self, index: int) -> str:
        part, source, position = self._find(index)
        return f"{part.value}/{source.file(position)}"

    def pixels(self, index: int) -> NDArray[Any]:
        _, source, position = self._find(index)
        return source.pixels(position)

    @cached_property
    def unreadable(self) -> Mapping[int, str]:
        return {
            members[index]: reason
            for members, source in self._parts.values()
            for index, reason in source.unreadable.items()
        }

    def splits(self, seed: int) -> Splits:
        """The official parts. Without an official val, it is a random tenth of train that depends only on `seed`."""
        indices = {part: list(members) for part, (members, _) in self._parts.items()}
        if Part.VAL not in indices:
            indices[Part.TRAIN], indices[Part.VAL] = hold_out(indices[Part.TRAIN], seed, self.where)
        return Splits(*(indices[part] for part in Part)).without(self.unreadable, self.where)

    def _find(self, index: int) -> tuple[Part, ImageSource, int]:
        for part, (members, source) in self._parts.items():
            if index in members:
                return part, source, index - members.start
        raise IndexError(f"{index} is not one of the {len(self)} images of {self.where}")
