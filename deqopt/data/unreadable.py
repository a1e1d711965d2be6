"""The images of a user that cannot be read, and those that are left."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Unreadable:
    """A file that is no image: its path below the folder, and what is wrong with it, which names it too."""

    file: str
    reason: str


class ReadableImages(Protocol):
    """A user's images, without those that cannot be read."""

    @property
    def root(self) -> Path:
        """Where they are."""

    @property
    def count(self) -> int:
        """How many can be read."""

    @property
    def unreadable(self) -> Sequence[Unreadable]:
        """The files that are left out."""
