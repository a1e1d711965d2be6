"""Images that were made to do harm: they run nothing, take little memory, and are named in one line."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from deqopt_tasks.denoising.data import DamagedImages
from deqopt_tasks.denoising.inpainting import GivenMask
from deqopt_tasks.denoising.operators import Denoising
from PIL import Image

from deqopt.data import UnreadableImageError, pixels
from deqopt.data.pixels import FORMATS, read_pixels
from folder_readers import READERS, classes, levels
from hostile_files import refused

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
        subprocess.CalledProcessError(1, "gs"),
        ValueError("x" * 5000),
        *(kind("a\nb") for kind in (TypeError, SyntaxError, OverflowError, LookupError, AttributeError, OSError)),
        *(kind() for kind in (MemoryError, RecursionError, EOFError, ZeroDivisionError)),
        *(kind("bomb") for kind in (Image.DecompressionBombError, Image.DecompressionBombWarning)),
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
