"""Errors for people, which say in one line what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from deqopt.errors import DataError, DeqoptError


def one_line_error(action: Callable[[], object], pattern: str, kind: type[DeqoptError] = DataError) -> None:
    with pytest.raises(kind) as caught:
        action()
    assert type(caught.value) is kind or kind is DataError
    message = str(caught.value)
    assert re.search(pattern, message) and "\n" not in message, message
