"""Arrays from `.npz` files of unknown origin, read safely."""

import io
import math
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deqopt.data.files import require_regular
from deqopt.errors import DataError, reason_of

Members = dict[str, zipfile.ZipInfo]
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The methods of `numpy.savez` and `numpy.savez_compressed`; others can expand a few bytes to any size at once."""
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
LONGEST_HEADER = 2**14
MOST_INFLATED, ALWAYS_INFLATED = 100, 2**28
"""Largest allowed ratio of the size of an array to its size in the file, and the size in bytes below which the ratio
does not matter."""


class _PickledArrayError(DataError):
    """An array of Python objects."""


def read_arrays(path: Path, keys: list[str], optional: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    """Arrays of an `.npz` file by name; of the optional arrays, those that exist and need no pickle.

    No memory is allocated for an array before its header has been checked against the number of stored bytes.

    Raises:
        DataError: the file is missing or not an `.npz` file; an array is missing, damaged or holds Python objects, or
            has more than 256 MiB and is compressed by more than a factor of 100.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(f"{path} is not an .npz file: it should be written by np.savez, with '{keys[0]}'")
            with zipfile.ZipFile(file) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                arrays = {key: _array(archive, members, key, path) for key in keys}
                for key in set(optional).intersection(members):
                    with suppress(_PickledArrayError):
                        arrays[key] = _array(archive, members, key, path)
                return arrays
    except DataError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path} cannot be read ({reason}): it should be an .npz file with '{keys[0]}'") from error
    except Exception as error:  # of a broken file zipfile raises struct.error, NotImplementedError and others
        raise DataError(f"{path} is damaged ({reason_of(error)}): write the file anew with np.savez") from error


def _array(archive: zipfile.ZipFile, members: Members, key: str, path: Path) -> NDArray[Any]:
    if key not in members:
        found = ", ".join(name[:40] for name in list(members)[:8]) or "nothing"
        raise DataError(f"{path} has no array '{key}': it holds {found}")
    where = f"'{key}' of {path}"
    try:
        _check(archive, members[key], where, path.stat().st_size)
        with archive.open(members[key]) as stream:
            return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
    except DataError:
        raise
    except Exception as error:  # as above; numpy's parser of headers adds SyntaxError, RecursionError and more
        raise DataError(f"{where} is damaged ({reason_of(error)}): write the file anew with np.savez") from error


def _check(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str, length: int) -> None:
    """Refuse an array that cannot be in a file of this length, according to its header."""
    if member.compress_type not in METHODS:
        raise DataError(f"{where} is packed by an unknown method: write the file anew with np.savez")
    with archive.open(member) as stream:
        start = io.BytesIO(stream.read(LONGEST_HEADER))
    shape, _, dtype = HEADERS[np.lib.format.read_magic(start)](start)
    if dtype.hasobject:
        raise _PickledArrayError(f"{where} holds Python objects, which are never loaded: save plain numbers")
    if dtype.itemsize == 0 or any(side < 0 for side in shape):
        raise ValueError("its items have no size")
    claimed, stored = math.prod(shape) * dtype.itemsize, member.file_size - start.tell()
    if claimed > stored:
        raise ValueError(f"it claims {_size(claimed)}, but holds {_size(stored)}")
    if claimed > max(ALWAYS_INFLATED, MOST_INFLATED * min(member.compress_size, length)):
        packed = f"{_size(claimed)} packed into {_size(min(member.compress_size, length))}"
        raise DataError(f"{where} is {packed}: write so uniform an array with np.savez, which does not pack")


def _size(count: int) -> str:
    """A number of bytes, for people."""
    power = max(0, count.bit_length() - 1) // 10
    return f"{count} bytes" if power == 0 else f"{count / 1024**power:.3g} {'KMGTPEZY'[min(power, 8) - 1]}iB"
