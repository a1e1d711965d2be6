"""The files of a user's folder: each file once, even if several names and links lead to it."""

import errno
import os
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path

from deqopt.errors import DataError


@dataclass(frozen=True)
class Listing:
    """The contents of a folder and its subfolders without hidden names. Paths in `repeated` are in no other attribute.

    Attributes:
        root: the folder.
        files: the files, sorted by their paths below the root. Broken links and entries that are not regular files are
            included, so that an error names them when they are read.
        folders: the subfolders, as paths below the root with slashes, sorted.
        repeated: names of files and folders that were already found under another name, with that other name.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    repeated: dict[Path, Path] = field(default_factory=dict)


def list_files(roots: Sequence[Path], suffixes: Collection[str]) -> list[Listing]:
    """List folders together, following links: a file that is in two of them, or twice in one, is listed once.

    If a file or folder has several names, the name with the fewest links in its path counts; among these, the name in
    the folder that is given first; among these, the first in sorted order.

    Args:
        roots: existing folders.
        suffixes: suffixes of the files, in lower case with their dots; other files are not listed.

    Raises:
        DataError: a folder that cannot be listed.
    """
    listings = [Listing(root) for root in roots]
    met: dict[tuple[int, int], Path] = {}
    waiting = sorted((int(root.is_symlink()), place, "") for place, root in enumerate(roots))
    while waiting:
        links, place, name = heappop(waiting)
        listing = listings[place]
        path = listing.root / name
        wanted = path.suffix.lower() in suffixes
        try:
            status = path.stat()
        except OSError as error:
            if wanted:
                listing.files.append(path)
            elif error.errno not in (errno.ENOENT, errno.ELOOP):
                raise _cannot_list(path, error) from error
            continue
        is_folder = stat.S_ISDIR(status.st_mode)
        if not (is_folder or wanted):
            continue
        first = met.setdefault((status.st_dev, status.st_ino), path)
        if first is not path:
            listing.repeated[path] = first
        elif is_folder:
            if name:
                listing.folders.append(name)
            for child, is_link in _children(path, suffixes):
                heappush(waiting, (links + is_link, place, f"{name}/{child}".lstrip("/")))
        else:
            listing.files.append(path)
    for listing in listings:
        listing.files.sort(key=lambda path: path.relative_to(listing.root).as_posix())
        listing.folders.sort()
    return listings


def repeated_files(paths: Iterable[Path]) -> dict[Path, Path]:
    """The files that are the same as an earlier file, with that earlier file; missing files are ignored."""
    repeated: dict[Path, Path] = {}
    met: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # said where it is read
            continue
        first = met.setdefault((status.st_dev, status.st_ino), path)
        if first is not path:
            repeated[path] = first
    return repeated


def said_of(repeated: dict[Path, Path], where: object) -> str:
    """A warning that names the `repeated` files, which are left out of a data set called `where`."""
    path, first = next(iter(repeated.items()))
    count = f"{len(repeated)} files or folders" if len(repeated) > 1 else "a file or folder"
    return f"{where} holds {count} twice, through links: each counts once; {path} is the same as {first}"


def require_regular(path: Path) -> os.stat_result:
    """The status of a regular file.

    Raises:
        OSError: the path does not exist, or is a folder, or a pipe or device, reading from which may never end.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return status


def subfolders(folder: Path) -> list[str]:
    """The sorted names of the subfolders of a folder, without hidden folders.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise _cannot_list(folder, error) from error


def _children(folder: Path, suffixes: Collection[str]) -> list[tuple[str, bool]]:
    """The names in a folder that may matter, and whether they are links."""
    try:
        with os.scandir(folder) as entries:
            return [
                (entry.name, entry.is_symlink())
                for entry in entries
                if not entry.name.startswith(".")
                and (
                    Path(entry.name).suffix.lower() in suffixes
                    or entry.is_symlink()
                    or entry.is_dir(follow_symlinks=False)
                )
            ]
    except OSError as error:
        raise _cannot_list(folder, error) from error


def _cannot_list(folder: Path, error: OSError) -> DataError:
    return DataError(f"{folder} cannot be listed: {error.strerror}")
