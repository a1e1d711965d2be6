"""Files that were made to do harm, and how they are refused."""

from __future__ import annotations

import os
import re
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deqopt.errors import DataError

MEMORY = 2**24
"""More than any reader of these files takes, and less than what they claim."""


@contextmanager
def refused(pattern: str) -> Iterator[None]:
    """A DataError of one short line, and little memory taken for it."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert re.search(pattern, message) and message.isprintable() and len(message) < 800, message


class Marks:
    """Leaves a folder behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)
