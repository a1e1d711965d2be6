"""CelebA: aligned faces with official splits."""

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from deqopt.data.files import repeated_files, require_regular, said_of
from deqopt.data.image_files import ImageFiles
from deqopt.data.splits import Splits
from deqopt.errors import DataError, printable, reason_of

IMAGES, PARTITION = "img_align_celeba", "list_eval_partition.txt"
LAYOUT = f"celeba/{IMAGES}/000001.jpg ... and celeba/{PARTITION}"
FACE = 140
LONGEST_PARTITION = 2**28


class CelebAFaces(ImageFiles):
    """CelebA's aligned faces: the central 140x140 of 178x218 pixels (of smaller images, the largest square), resized.

    The layout is that of torchvision: `root/celeba/img_align_celeba/000001.jpg` and so on, and
    `root/celeba/list_eval_partition.txt`, whose lines `000001.jpg 0` define the splits: 0 train, 1 val, 2 test.
    Other images in this layout work too; the files of attributes and identities are not needed. A file that has
    several names, through links, counts as one image. If the names are in different splits, the image is in test rather
    than in val, and in val rather than in train.

    Args:
        root: the folder that holds `celeba`.
        size: height and width of the images.
        channels: 1 or 3 (default).
        download: whether torchvision downloads and checks missing files (1.4 GB; needs `gdown`).

    Raises:
        DataError: the folder has another layout, the partition does not fit the images, or the download failed;
            on access, an image cannot be read.

    Example:
        >>> import os, tempfile
        >>> from deqopt.data import CelebAFaces
        >>> CelebAFaces(tempfile.mkdtemp(), size=64, channels=3)
        Traceback (most recent call last):
        deqopt.errors.DataError: ...
    """

    def __init__(self, root: str | Path, size: int, channels: int = 3, *, download: bool = False) -> None:
        base = Path(root) / "celeba"
        images = base / IMAGES
        if download and not _is_inside(base):
            _download(Path(root))
        if not _is_inside(base):
            there = {IMAGES: (base / IMAGES).is_dir(), PARTITION: (base / PARTITION).is_file()}
            lacks = " and ".join(name for name, found in there.items() if not found)
            advice = "download it there by hand, or set `download` to have torchvision do it"
            raise DataError(f"no CelebA in {root}: {base} lacks {lacks}, it should hold {LAYOUT}; {advice}")
        parts = _read_partition(base / PARTITION)
        _check_present(images, list(parts))
        parts = _each_once(images, parts)
        paths = [images / name for name in parts]
        super().__init__(images, paths, where=str(root), size=size, channels=channels, crop=FACE)
        indices: list[list[int]] = [[], [], []]
        for index, part in enumerate(parts.values()):
            indices[part].append(index)
        if not all(indices):
            counts = ", ".join(str(len(part)) for part in indices)
            raise DataError(f"{base / PARTITION} gives {counts} images to train, val and test: each needs one or more")
        self._splits = Splits(*indices)

    def splits(self, seed: int) -> Splits:
        """The official partition, for every seed."""
        return self._splits.without(self.unreadable, self.where)


def holds_celeba(root: Path) -> bool:
    """Whether `root` holds CelebA in torchvision's layout, or a part of it.

    Raises:
        DataError: `root` is the folder inside that layout, not the one that holds it.
    """
    if (root / "celeba" / IMAGES).is_dir() or (root / "celeba" / PARTITION).is_file():
        return True
    if _is_inside(root):
        raise DataError(f"{root} is the inside of CelebA: root should be the folder that holds it, as 'celeba'")
    return False


def _is_inside(folder: Path) -> bool:
    """Whether `folder` holds the images and the partition themselves, so that its parent is the root."""
    return (folder / IMAGES).is_dir() and (folder / PARTITION).is_file()


def _download(root: Path) -> None:
    try:
        from torchvision.datasets import CelebA  # type: ignore[import-untyped]

        CelebA(str(root), split="all", download=True)
    except Exception as error:  # torchvision and gdown share no base class for their errors
        advice = f"fetch it by hand from the page of its authors, as {LAYOUT}"
        raise DataError(f"CelebA could not be downloaded to {root} ({reason_of(error)}): {advice}") from error


def _read_partition(path: Path) -> dict[str, int]:
    parts: dict[str, int] = {}
    try:
        if require_regular(path).st_size > LONGEST_PARTITION:
            raise DataError(f"{path} has more than {LONGEST_PARTITION} bytes: its lines should be like '000001.jpg 0'")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): its lines should be like '000001.jpg 0'") from error
    for number, line in enumerate(lines, start=1):
        match line.split():
            case [name, "0" | "1" | "2" as part] if name not in parts:
                parts[name] = int(part)
            case []:
                continue
            case _:
                right = "'000001.jpg 0', each image once, with 0 (train), 1 (val) or 2 (test)"
                raise DataError(f"{path}, line {number} is {line[:80]!r}: it should be like {right}")
    return parts


def _check_present(folder: Path, names: list[str]) -> None:
    try:
        present = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from error
    missing = [name for name in names if name not in present]
    if missing:
        lacks = f"lacks {len(missing)} of the {len(names)} images that {PARTITION} names, first {missing[0]}"
        raise DataError(f"{folder} {lacks}: unpack {IMAGES}.zip anew")


def _each_once(folder: Path, parts: dict[str, int]) -> dict[str, int]:
    """The images without those that are the same file as another image."""
    by_part = sorted(parts, key=lambda name: -parts[name])
    repeated = repeated_files(folder / name for name in by_part)
    if repeated:
        rank_zero_warn(printable(said_of(repeated, folder)))
    return {name: part for name, part in parts.items() if folder / name not in repeated}
