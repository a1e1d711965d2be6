"""One checkpoint as a file, for :func:`torch.load` too: a zip archive whose comment is the digest of all bytes before.

A file is written beside its target and renamed, so that a crash at any moment leaves the former file or the new one.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from deqopt.errors import CheckpointError

MARK = b"deqopt sha256 "
"""What the comment of the archive begins with; the digest follows as 64 hexadecimal digits."""
COMMENT_SIZE = len(MARK) + 64
END, END_SIZE = b"PK\x05\x06", 22
"""The record at the end of an archive; its last two bytes are the size of the comment."""


def previous(path: Path) -> Path:
    """Where the file that a checkpoint took the place of is kept: ``last.previous.ckpt`` for ``last.ckpt``."""
    return path.with_suffix(f".previous{path.suffix}")


def write(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint in one step, and keep the former one as :func:`previous`.

    Raises:
        OSError: the disk is full or read-only, for instance; the former file stays as it was.
    """
    _put(_encoded(content), path)


def copy(source: Path, target: Path) -> None:
    """Copy a checkpoint, as :func:`write` would write it.

    Raises:
        CheckpointError: the source is missing or damaged.
        OSError: it cannot be written.
    """
    _put(verified(source), target)


def read(path: Path, map_location: Any = "cpu") -> Any:
    """The content of a checkpoint: plain data and tensors, nothing that runs code.

    Raises:
        CheckpointError: no such file; it is damaged, even by one bit; it is not a checkpoint.
    """
    data = verified(path)
    try:
        return torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes happen to trigger
        raise _unreadable(path) from error


def verified(path: Path) -> bytes:
    """All bytes of a checkpoint. Files without a digest must be archives whose members have the right CRC.

    Raises:
        CheckpointError: no such file; it is damaged; it is no archive of ``torch.save``.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}; give the path of one, or 'last' or 'best' for the newest run")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    body, comment = data[:-COMMENT_SIZE], data[-COMMENT_SIZE:]
    if comment.startswith(MARK):
        if comment[len(MARK) :] != _digest(body):
            raise CheckpointError(f"{path} cannot be read as a checkpoint; it is damaged: not what was written")
    elif not _is_sound_archive(data):
        raise _unreadable(path)
    return data


def _unreadable(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read as a checkpoint; it is damaged or of another program")


def _is_sound_archive(data: bytes) -> bool:
    """Whether this is an archive as torch.save writes it: no comment, nothing compressed, all checksums right."""
    end = data[-END_SIZE:]
    if not end.startswith(END) or end[-2:] != b"\0\0":
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            fits = sum(member.file_size for member in members) <= len(data)  # what unpacks to more is a trap
            return stored and fits and archive.testzip() is None
    except Exception:  # zipfile raises whatever the bytes happen to trigger
        return False


def _encoded(content: dict[str, Any]) -> memoryview:
    """The archive of torch.save with a comment that holds the digest of all other bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(-2, os.SEEK_END)
    buffer.write(COMMENT_SIZE.to_bytes(2, "little"))
    with buffer.getbuffer() as body:
        digest = _digest(body)
    buffer.write(MARK + digest)
    return buffer.getbuffer()


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _put(data: bytes | memoryview, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.is_file():
            _keep(path, previous(path))
        part.replace(path)
    except BaseException:
        with suppress(OSError):  # what went wrong before is to be told
            part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _keep(path: Path, kept: Path) -> None:
    """Let ``kept`` be the file ``path`` too, which stays where it is if the file system knows hard links."""
    kept.unlink(missing_ok=True)
    try:
        os.link(path, kept)
    except OSError:
        path.replace(kept)


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk. Some systems cannot; the file itself is there already."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
