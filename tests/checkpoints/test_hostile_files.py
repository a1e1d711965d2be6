"""Files that were made to do harm: they run nothing, take little memory, and are named in one line."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import subprocess
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.denoising.data import DamagedImages
from deqopt_tasks.denoising.inpainting import GivenMask
from deqopt_tasks.denoising.operators import Denoising
from PIL import Image

from deqopt.data import Download, ImageArchive, UnreadableImageError, npz, open_images, open_labelled, pixels
from deqopt.data.pixels import FORMATS, read_pixels
from deqopt.errors import DataError
from folder_readers import READERS, classes, levels
from labelled_sources import CIFAR, mnist

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


# -- images -----------------------------------------------------------------------------------------------------------

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(ran) print\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "ppm", "gif", "webp", "jp2"])
def test_no_image_starts_a_program(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL opens PostScript whatever its name is, and has Ghostscript run it."""

    def refuse(*words: object, **settings: object) -> None:
        raise AssertionError(f"{words} was started")

    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, refuse)
    monkeypatch.setattr(os, "system", refuse)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(POSTSCRIPT)
    with refused(rf"^{path} is truncated or not an image: delete or replace it$"):
        read_pixels(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of formats that PIL will drop
def test_only_formats_by_whose_suffixes_images_are_found_are_opened(tmp_path: Path) -> None:
    image, path = Image.new("RGB", (8, 8), (9, 9, 9)), tmp_path / "a.png"
    Image.init()
    tried = set()
    for format in set(Image.SAVE) & set(Image.OPEN) - set(FORMATS) - {"MPO"}:  # MPO is JPEG with more images behind
        for mode in ("RGB", "L", "1", "P", "RGBA"):
            buffer = io.BytesIO()
            try:
                image.convert(mode).save(buffer, format)
            except (OSError, ValueError, KeyError, AttributeError, RuntimeError):  # PIL's of a mode, or lacks a codec
                continue
            path.write_bytes(buffer.getvalue())
            tried.add(format)
            with pytest.raises(UnreadableImageError):
                read_pixels(path)
    assert {"TGA", "ICO", "PCX", "EPS"} <= tried
    for format in FORMATS:
        image.save(path, format)
        assert read_pixels(path).shape[:2] == (8, 8)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "error",
    [
        struct.error("unpack requires a buffer of 2 bytes"),
        SyntaxError("broken PNG file"),
        RecursionError("maximum recursion depth exceeded"),
        MemoryError(),
        OverflowError("int too large"),
        EOFError(),
        KeyError("JPEG"),
        IndexError("list index out of range"),
        TypeError("a\nb"),
        ZeroDivisionError(),
        AttributeError("no"),
        Image.DecompressionBombError("bomb"),
        Image.DecompressionBombWarning("bomb"),
        subprocess.CalledProcessError(1, "gs"),
        OSError("encoder error -2"),
        ValueError("x" * 5000),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_pillow_raises_is_an_image_that_cannot_be_read(
    error: BaseException, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, real = classes(tmp_path / "data"), pixels.ImageOps.exif_transpose
    (bad := root / "bee" / "bad.png").write_bytes((root / "ant" / "0.png").read_bytes())

    def fail(image: Any) -> Any:
        if Path(image.filename) == bad:
            raise error
        return real(image)

    monkeypatch.setattr(pixels.ImageOps, "exif_transpose", fail)
    with pytest.warns(UserWarning) as warned:
        assert sum(levels(READERS[reader](root)).values()) == 6
    (said,) = {str(one.message) for one in warned}
    assert re.fullmatch(rf"{bad} is truncated or not an image \(.+\): delete or replace it", said)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_not_an_unreadable_image(
    stop: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes(tmp_path)

    def fail(image: Any) -> Any:
        raise stop

    monkeypatch.setattr(pixels.ImageOps, "exif_transpose", fail)
    with pytest.raises(stop):
        DamagedImages(tmp_path, Denoising(), 1)


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zipfile.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


BOMBS = {
    "twice the limit of PIL": png_of(60_000, 60_000),
    "the limit of PIL": png_of(10_000, 10_000),
    "one side": png_of(2**31 - 1, 1),
    "two sides": png_of(2**31 - 1, 2**31 - 1),
    "PPM": b"P6 99999 99999 255 ",
    "PPM of digits": b"P6 " + b"9" * 5001 + b" 1 255 ",
    "GIF": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x08\x01\x00\x3b",
    "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 99_999, 99_999, 1, 24, 0, 0, 0, 0, 0, 0),
    "TIFF": b"II*\x00\x08\x00\x00\x00\x02\x00" + struct.pack("<HHIIHHIII", 256, 4, 1, 99_999, 257, 4, 1, 99_999, 0),
    "nothing": png_of(0, 0),
    "PPM of nothing": b"P6 0 0 255 ",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BOMBS)
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(case: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(BOMBS[case])
    with refused(rf"^{path} (has|is) "):
        read_pixels(path)
    (tmp_path / "good").mkdir()
    classes(tmp_path / "good")
    with pytest.warns(UserWarning, match=rf"^{path} (has|is) "):
        damaged = DamagedImages(tmp_path, Denoising(), 1)
    assert len(damaged) == 6 and [*map(damaged.source.file, damaged.source.unreadable)] == ["a.png"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_of_pixels_is_that_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (11, 9)).save(tmp_path / "a.png")
    for limit, fits in ((99, True), (98, False), (None, True)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        if fits:
            assert read_pixels(tmp_path / "a.png").shape == (9, 11)
        else:
            with pytest.raises(UnreadableImageError, match=r"a\.png has 99 pixels, 11 x 9: it should have 98 or fewer"):
                read_pixels(tmp_path / "a.png")


def test_a_file_without_end_is_not_an_image(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.write(png_of(8, 8)[:33])
        file.truncate(2**40)
    with refused(r"a\.png has 1099511627776 bytes: an image should have 1073741824 or fewer$"):
        read_pixels(tmp_path / "a.png")
    with refused("an image should have"):
        GivenMask(str(tmp_path / "a.png")).check((8, 8))


# -- archives ---------------------------------------------------------------------------------------------------------


def npy(shape: str, descr: str = "'|u1'", content: bytes = bytes(10), version: int = 1, more: str = "") -> bytes:
    """The file of an array that claims anything."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}{more}}}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + content


def zipped(path: Path, content: bytes, method: int = zipfile.ZIP_STORED, **claims: int) -> Path:
    """An archive in which every array of a labelled data set is this; its directory claims anything."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for key in ("images", "labels", "classes"):
            archive.writestr(f"{key}.npy", content)
        for info in archive.infolist():
            for name, value in claims.items():
                setattr(info, name, value)
    return path


class Marks:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def nested(depth: int) -> bytes:
    """A zip file in a zip file, and so on."""
    content = b"the inmost"
    for _ in range(depth):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("images.npy", content)
        content = buffer.getvalue()
    return content


ARCHIVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "58 TiB": (lambda p: zipped(p, npy("(8000000, 1000, 8000)")), r"damaged \(it claims 58\.2 TiB, but holds 10 bytes"),
    "digits": (lambda p: zipped(p, npy(f"({'9' * 5001},)")), "is damaged"),
    "many digits": (lambda p: zipped(p, npy(f"({'9' * 4001}, {'9' * 4001})")), "is damaged"),
    "beyond 64 bits": (lambda p: zipped(p, npy(f"({2**63}, 2)")), r"damaged \(it claims 16 EiB"),
    "wraps around": (lambda p: zipped(p, npy(f"({2**32}, {2**32})")), r"damaged \(it claims 16 EiB"),
    "negative": (lambda p: zipped(p, npy("(-1, 8, 8)")), r"damaged \(its items have no size"),
    "no size": (lambda p: zipped(p, npy(f"({10**15},)", "'<U0'")), r"damaged \(its items have no size"),
    "void": (lambda p: zipped(p, npy(f"({10**15},)", "'|V0'")), r"damaged \(its items have no size"),
    "brackets": (lambda p: zipped(p, npy("(" * 9000)), "is damaged"),
    "signs": (lambda p: zipped(p, npy("-" * 9000 + "1")), "is damaged"),
    "a call": (lambda p: zipped(p, npy("__import__('os').mkdir('ran')")), "is damaged"),
    "names": (lambda p: zipped(p, npy("(1,)", more=", 'x': 1")), "is damaged"),
    "long header": (lambda p: zipped(p, npy("(1,)" + " " * 20_000, version=2)), "is damaged"),
    "header of 4 GiB": (lambda p: zipped(p, b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}"), "is damaged"),
    "header of zeros": (
        lambda p: zipped(p, b"\x93NUMPY\x02\x00\x00\x00\x00\x02" + bytes(2**25), zipfile.ZIP_DEFLATED),
        "is damaged",
    ),
    "version": (lambda p: zipped(p, npy("(1,)", version=9)), "is damaged"),
    "type": (lambda p: zipped(p, npy("(1,)", "'nonsense'")), "is damaged"),
    "type of lists": (lambda p: zipped(p, npy("(1,)", "[" * 500 + "]" * 500)), "is damaged"),
    "large items": (lambda p: zipped(p, npy("(1, 1, 1)", "'|S2000000000'")), r"damaged \(it claims 1\.86 GiB"),
    "nested items": (lambda p: zipped(p, npy("(1,)", "('|u1', (60000, 60000))")), "is damaged"),
    "objects": (lambda p: zipped(p, npy("(1, 1, 1)", "'|O'", pickle.dumps(Marks(p.parent / "ran")))), "Python objects"),
    "fields": (
        lambda p: zipped(p, npy("(1,)", "[('a', '|O')]", pickle.dumps(Marks(p.parent / "ran")))),
        "Python objects",
    ),
    "a pickle": (lambda p: zipped(p, pickle.dumps(Marks(p.parent / "ran"))), "is damaged"),
    "a zip": (lambda p: zipped(p, nested(8)), "is damaged"),
    "inflated": (
        lambda p: zipped(p, npy("(4096, 32, 32)", content=bytes(2**22)), zipfile.ZIP_DEFLATED),
        r"is 4 MiB packed into \S+ KiB: write so uniform an array with np\.savez, which does not pack$",
    ),
    "a terabyte in the directory": (
        lambda p: zipped(p, npy("(1048576, 1024, 1024)"), zipfile.ZIP_DEFLATED, file_size=2**40 + 99),
        r"is 1 TiB packed into",
    ),
    "bzip2": (lambda p: zipped(p, npy("(10, 1, 1)"), zipfile.ZIP_BZIP2), "packed by an unknown method: write .* anew"),
    "lzma": (lambda p: zipped(p, npy("(10, 1, 1)"), zipfile.ZIP_LZMA), "packed by an unknown method: write .* anew"),
    "method": (lambda p: zipped(p, npy("(10, 1, 1)"), compress_type=97), "packed by an unknown method: write .* anew"),
    "encrypted": (lambda p: zipped(p, npy("(10, 1, 1)"), flag_bits=1), "is damaged"),
    "checksum": (lambda p: zipped(p, npy("(10, 1, 1)"), CRC=1), "is damaged"),
    "elsewhere": (lambda p: zipped(p, npy("(10, 1, 1)"), header_offset=2**20), "is damaged"),
    "empty": (lambda p: zipped(p, b""), "is damaged"),
}
OPENERS: dict[str, Callable[[Path], object]] = {
    "images": lambda path: ImageArchive(path, 8),
    "labelled": lambda path: open_labelled(path, size=8, channels=1, classes=3),
    "parts": lambda path: open_labelled(path.parent, size=8, channels=1, classes=3),
    "unlabelled": lambda path: open_images(path.parent, size=8, channels=1),
    "to restore": lambda path: DamagedImages(path, Denoising(), 1),
}


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_claims_and_runs_nothing(
    case: str, opener: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz, "ALWAYS_INFLATED", 2**21)
    monkeypatch.chdir(tmp_path)
    make, pattern = ARCHIVES[case]
    make(tmp_path / "train.npz")
    make(tmp_path / "test.npz")
    with refused(pattern):
        OPENERS[opener](tmp_path / "train.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.npz", "train.npz"], "something ran"


@pytest.mark.parametrize("case", ["58 TiB", "no size", "negative", "inflated", "a zip", "bzip2"])
def test_names_of_classes_are_read_with_the_same_care(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz, "ALWAYS_INFLATED", 2**21)
    ARCHIVES[case][0](tmp_path / "bad.npz")
    np.savez(tmp_path / "good.npz", images=np.zeros((3, 8, 8), np.uint8), labels=np.arange(3))
    with zipfile.ZipFile(tmp_path / "bad.npz") as bad, zipfile.ZipFile(tmp_path / "good.npz", "a") as good:
        good.writestr(bad.getinfo("classes.npy"), bad.read("classes.npy"))
    with refused(rf"'classes' of \S+good\.npz.*{ARCHIVES[case][1]}"):
        open_labelled(tmp_path / "good.npz", size=8, channels=1, classes=3)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_uniform_images_are_read_as_long_as_they_are_few(save: Callable[..., None], tmp_path: Path) -> None:
    """4 MiB of black are 4 KB when packed, which is more than 100 times."""
    for order in ("C", "F"):
        save(tmp_path / "a.npz", images=np.zeros((64, 256, 256), np.uint8, order))
        assert len(ImageArchive(tmp_path / "a.npz", 8)) == 64


def test_all_that_numpy_writes_comes_back(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "bytes": random.integers(0, 256, (3, 4, 5), np.uint8),
        "floats": np.asfortranarray(random.random((3, 4, 5, 3))),
        "big-endian": random.random((2, 3, 3)).astype(">f4"),
        "none": np.zeros((0, 4, 4), np.uint8),
        "names": np.array(["a", "bö", ""]),
        "scalar": np.array(7),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = npz.read_arrays(tmp_path / "a.npz", list(arrays))
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


# -- pickles of data sets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [Download.CIFAR10, Download.CIFAR100])
def test_the_files_of_cifar_are_unpickled_only_if_they_are_the_authors(which: Download, tmp_path: Path) -> None:
    trains, test, meta, *_ = CIFAR[which]
    (folder := tmp_path / which.value).mkdir()
    for name in (*trains, test, meta):
        (folder / name).write_bytes(pickle.dumps(Marks(tmp_path / "ran")))
    with refused(rf"^{which.name} in {tmp_path} cannot be read "):
        open_labelled(tmp_path, size=8, channels=3, classes=100)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["pickle", "lists", "strings", "nothing"])
def test_an_old_mnist_runs_nothing(content: str, tmp_path: Path) -> None:
    mnist(tmp_path)
    (folder := tmp_path / "MNIST" / "processed").mkdir()
    stored: object = {
        "pickle": (Marks(tmp_path / "ran"), torch.zeros(3)),
        "lists": ([[1, 2], [3, 4]], [0, 1]),
        "strings": ("images", "labels"),
        "nothing": (torch.zeros(0, 28, 28, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)),
    }[content]
    for name in ("training.pt", "test.pt"):
        torch.save(stored, folder / name)
    with refused(r"MNIST in"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_labelled(tmp_path, size=8, channels=1, classes=10)
    assert not (tmp_path / "ran").exists()


def test_images_to_train_on_are_not_those_to_test_on(tmp_path: Path) -> None:
    mnist(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    for kind in ("images-idx3", "labels-idx1"):
        (raw / f"t10k-{kind}-ubyte").unlink()
        (raw / f"t10k-{kind}-ubyte").symlink_to(f"train-{kind}-ubyte")
    with refused(r"t10k-images-idx3-ubyte and \S+train-images-idx3-ubyte are the same file: "):
        open_labelled(tmp_path, size=8, channels=1, classes=10)
