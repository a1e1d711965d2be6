"""Images from any folder."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from deqopt.data.files import Listing, list_files, said_of
from deqopt.data.image_files import ImageFiles
from deqopt.errors import DataError, printable

SUFFIXES = (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolder(ImageFiles):
    """Every image in a folder and its subfolders, without hidden files and folders, sorted by path.

    Each image is cut to its central square and resized. Files are decoded on access; `unreadable` names the files that
    cannot be decoded. A file that has several names, through links, is one image; a warning says so.

    Attributes:
        root: the folder.
        paths: the files, in the order of the indices.
        folders: the subfolders, as paths below the root with slashes, sorted.

    Args:
        root: the folder.
        size: height and width of the images.
        channels: 1 or 3 (default).
        every_name: whether each name of a file counts as an image, for example if the names of masks matter; off by
            default.
        listing: the contents of the folder, if `list_images` has listed it together with other folders; by default it
            is listed alone.

    Raises:
        DataError: the folder is missing, unreadable or without images; on access, an image cannot be read.

    Example:
        >>> import os, tempfile
        >>> from PIL import Image
        >>> from deqopt.data import ImageFolder
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("RGB", (12, 10)).save(os.path.join(folder, "black.png"))
        >>> images = ImageFolder(folder, size=8, channels=1)
        >>> images.name(0), float(images[0].image.max())
        ('black', 0.0)
    """

    def __init__(
        self,
        root: str | Path,
        size: int,
        channels: int = 3,
        *,
        every_name: bool = False,
        listing: Listing | None = None,
    ) -> None:
        root = Path(root)
        if not root.is_dir():
            raise DataError(f"{root} is {'a file' if root.exists() else 'missing'}: it should be a folder of images")
        if listing is None:
            (listing,) = list_files([root], SUFFIXES) if every_name else list_images([root])
        paths = list(listing.files)
        if every_name:
            paths += [path for path in listing.repeated if not path.is_dir()]
            paths.sort(key=lambda path: path.relative_to(root).as_posix())
        if not paths:
            accepted = ", ".join(SUFFIXES)
            alone = " that are not elsewhere too" if listing.repeated else ""
            raise DataError(
                f"{root} and its subfolders hold no images{alone}: their names should end in one of {accepted}"
            )
        super().__init__(root, paths, where=str(root), size=size, channels=channels)
        self.folders = listing.folders


def list_images(roots: Sequence[Path]) -> list[Listing]:
    """The image files of folders, see `list_files`; warns if some files have several names.

    Raises:
        DataError: a folder cannot be listed.
    """
    listings = list_files(roots, SUFFIXES)
    repeated = {path: first for listing in listings for path, first in listing.repeated.items()}
    if repeated:
        where = " and ".join(map(str, roots))
        rank_zero_warn(printable(said_of(repeated, where)))
    return listings
