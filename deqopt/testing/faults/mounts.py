"""A small disk of one's own: a file system in memory that only this process and its children see."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 8 << 20
NEW_NAMESPACE, READ_ONLY, REMOUNT, PRIVATE_BELOW, DETACHED = 0x20000, 1, 32, 1 << 18 | 1 << 14, 2


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount one over a folder.

    Raises:
        OSError: this system, or this user, cannot.
    """
    _call("unshare", NEW_NAMESPACE)
    _call("mount", b"none", b"/", None, PRIVATE_BELOW, None)
    _call("mount", b"none", os.fsencode(folder), b"tmpfs", 0, f"size={SIZE}".encode())
    try:
        yield
    finally:
        _call("umount2", os.fsencode(folder), DETACHED)


def set_read_only(folder: Path, read_only: bool) -> None:
    """Let the disk refuse all writing, or take it again; files that are open for writing prevent the former.

    Raises:
        OSError: a file is open for writing.
    """
    flags = REMOUNT | READ_ONLY if read_only else REMOUNT
    _call("mount", b"none", os.fsencode(folder), b"tmpfs", flags, f"size={SIZE}".encode())


def fill(path: Path, room: int) -> None:
    """Fill the disk with a file, but for so many bytes."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 12)):
                continue
        except OSError:
            file.truncate(max(0, file.tell() - room))


def _call(name: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
