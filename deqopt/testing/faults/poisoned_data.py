"""Data from strangers: files that are no images, bombs, pipes and devices, links that go round, names that steer
terminals."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from deqopt.testing.faults.judgement import no_traceback, refused, shown_safely, whole
from deqopt.testing.faults.outcome import Outcome, expect
from deqopt.testing.faults.workbench import IMAGES, SIZE, Case

FOREIGN = "zz_foreign"


class Pickled:
    """Runs a shell command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self._command,)


def touch(case: Case) -> str:
    """A shell command that writes the canary."""
    return f"touch {case.canary}"


@dataclass(frozen=True)
class Poison:
    """What is put into a folder of images.

    Attributes:
        is_image: whether it is one more image that may be used.
    """

    put: Callable[[Path, Case], object]
    is_image: bool = False


def _file(content: bytes, suffix: str = ".png") -> Poison:
    return Poison(lambda folder, _: (folder / f"{FOREIGN}{suffix}").write_bytes(content))


def _named(name: str | bytes, is_image: bool) -> Poison:
    def put(folder: Path, case: Case) -> None:
        with open(os.path.join(os.fsencode(folder), os.fsencode(name)), "wb") as file:
            file.write(_png() if is_image else b"no image")

    return Poison(put, is_image)


def _png(width: int = SIZE, height: int = SIZE) -> bytes:
    """An image; or, where it is large, what claims to be one."""
    if width * height <= SIZE * SIZE:
        buffer = io.BytesIO()
        Image.new("L", (width, height), 128).save(buffer, "PNG")
        return buffer.getvalue()
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1 << 16))),
        (b"IEND", b""),
    )
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _postscript(folder: Path, case: Case) -> None:
    text = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({case.canary}) (w) file closefile\nshowpage\n%%EOF\n"
    (folder / f"{FOREIGN}{case.random.choice(('.png', '.jpg', '.tif'))}").write_text(text)


def _socket(folder: Path, case: Case) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        where = os.getcwd()
        os.chdir(folder)  # the path of a socket must be short
        try:
            listening.bind(f"{FOREIGN}.png")
        finally:
            os.chdir(where)


def _loops(folder: Path, case: Case) -> None:
    for name in ("a", "b"):
        (folder / f"loop_{name}").symlink_to(folder, target_is_directory=True)


FILES = {
    "PostScript": Poison(_postscript),
    "text": _file(b"not an image\n"),
    "nothing": _file(b""),
    "a bomb": _file(_png(65500, 65500)),
    "a smaller bomb": _file(_png(12000, 12000)),
    "half a JPEG": _file(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00", ".jpg"),
    "a huge PGM": _file(b"P5 99999 99999 255\n", ".pgm"),
    "a negative BMP": _file(b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, -8, -8, 1, 24, *[0] * 6), ".bmp"),
    "a TIFF that goes round": _file(b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00", ".tif"),
    "an empty GIF": _file(b"GIF89a\x00\x00\x00\x00\x00\x00\x00;", ".gif"),
    "a pipe": Poison(lambda folder, _: os.mkfifo(folder / f"{FOREIGN}.png")),
    "a socket": Poison(_socket),
    "a device without end": Poison(lambda folder, _: (folder / f"{FOREIGN}.png").symlink_to("/dev/zero")),
    "a folder with the name of an image": Poison(lambda folder, _: (folder / f"{FOREIGN}.png").mkdir()),
    "a link to nothing": Poison(lambda folder, _: (folder / f"{FOREIGN}.png").symlink_to("missing.png")),
    "a link to itself": Poison(lambda folder, _: (folder / f"{FOREIGN}.png").symlink_to(f"{FOREIGN}.png")),
    "a link to an image": Poison(lambda folder, _: (folder / f"{FOREIGN}.png").symlink_to("image_07.png")),
    "a second name of an image": Poison(lambda folder, _: os.link(folder / "image_07.png", folder / f"{FOREIGN}.png")),
    "a link to the folder": Poison(lambda folder, _: (folder / "loop").symlink_to(folder, target_is_directory=True)),
    "two links to the folder": Poison(_loops),
    "colours in a name": _named(f"{FOREIGN}\x1b[31m\x1b]0;title\x07.png", False),
    "an image with colours in its name": _named(f"{FOREIGN}\x1b[2J.png", True),
    "a name from right to left": _named(f"{FOREIGN}\u202egpj.png", False),
    "a name of two lines": _named(f"{FOREIGN}\nsecond line.png", False),
    "a name that is not UTF-8": _named(FOREIGN.encode() + b"\xff\xfe.png", False),
    "an image whose name is not UTF-8": _named(FOREIGN.encode() + b"\xff.png", True),
    "an image named as an option": _named("--task.root=x.png", True),
    "an image named as a template": _named("{0.__class__}%s%n.png", True),
}


def a_folder(case: Case) -> None:
    """A foreign file among images runs nothing, hangs nothing and is shown safely: it is left out, or all is refused in
    one line. No image is used twice."""
    kind = case.random.choice(sorted(FILES))
    command = case.random.choice(("fit", "fit", "predict"))
    case.fault = f"{kind} in a folder of images, then {command}"
    folder = Path(shutil.copytree(case.bench.images, case.folder / "mine"))
    FILES[kind].put(folder, case)
    case.copied()
    workers = case.random.choice((0, 0, 1))
    more = () if command == "fit" else ("--ckpt_path=last",)
    ended = case.command(command, *more, f"--task.root={folder}", f"--task.workers={workers}")
    no_traceback(ended)
    shown_safely(ended)
    if ended.status:
        refused(ended)
    elif command == "fit" and not FILES[kind].is_image:
        words = ("--config", str(case.bench.config), f"--task.root={case.bench.images}")
        whole(case, case.bench.undisturbed("folder", words))
    elif command == "predict":
        written = len(list(case.root.rglob("predictions/*.png")))
        expected = IMAGES + FILES[kind].is_image
        expect(written == expected, Outcome.SILENT, f"{written} predictions of {expected} images")


# -- archives ---------------------------------------------------------------------------------------------------------


def _header(shape: str, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _member(content: bytes, name: str = "images.npy") -> Callable[[Path, Case], None]:
    def put(path: Path, case: Case) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)

    return put


def _saved(path: Path, case: Case, images: object) -> None:
    np.savez(path, images=np.asarray(images))


def _objects(path: Path, case: Case) -> None:
    array = np.empty(IMAGES, object)
    array[:] = [Pickled(touch(case)) for _ in range(IMAGES)]
    np.savez(path, images=array)


def _clean(dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).random((IMAGES, SIZE, SIZE)).astype(dtype)


def _with(value: float) -> Callable[[Path, Case], None]:
    def put(path: Path, case: Case) -> None:
        images = _clean()
        images[case.random.randrange(IMAGES), 0, 0] = value
        np.savez(path, images=images)

    return put


ARCHIVES: dict[str, Callable[[Path, Case], object]] = {
    "a pickle": lambda path, case: path.write_bytes(pickle.dumps(Pickled(touch(case)))),
    "pickled images": _objects,
    "58 TiB": _member(_header(f"({1 << 46}, 8, 8)")),
    "a shape below zero": _member(_header("(-60, 8, 8)")),
    "a shape without end": _member(_header("(" + "9" * 5001 + ", 8, 8)")),
    "code in its header": _member(_header("(__import__('os').system('touch canary'), 8, 8)")),
    "a header that nests": _member(_header("(" * 2000 + ")" * 2000)),
    "a bomb": _member(_header(f"({1 << 22}, 8, 8)") + bytes(1 << 26)),
    "no images": lambda path, case: np.savez(path, other=np.zeros(3)),
    "one image": lambda path, case: _saved(path, case, np.zeros((1, SIZE, SIZE), np.uint8)),
    "images without pixels": lambda path, case: _saved(path, case, np.zeros((IMAGES, 0, 0), np.uint8)),
    "complex images": lambda path, case: _saved(path, case, _clean().astype(np.complex64)),
    "text for images": lambda path, case: _saved(path, case, ["a"] * IMAGES),
    "dates for images": lambda path, case: _saved(path, case, np.zeros((IMAGES, SIZE, SIZE), "M8[s]")),
    "NaN": _with(np.nan),
    "infinity": _with(np.inf),
    "1e30": _with(1e30),
    "text": lambda path, case: path.write_text("no archive"),
    "a pipe": lambda path, case: os.mkfifo(path),
    "a device without end": lambda path, case: path.symlink_to("/dev/zero"),
}


def an_archive(case: Case) -> None:
    """A foreign ``.npz`` runs nothing, hangs nothing and is refused in one line, or its sound images are used."""
    kind = case.random.choice(sorted(ARCHIVES))
    case.fault = f"an .npz with {kind}, then fit"
    path = case.folder / "foreign.npz"
    ARCHIVES[kind](path, case)
    ended = case.command("fit", f"--task.root={path}")
    no_traceback(ended)
    if ended.status:
        refused(ended)
    else:
        expect(kind in ("NaN", "infinity"), Outcome.SILENT, f"taken for images: {ended}")
        words = ("NaN", "nan", "finite", "infinite")
        expect(any(word in ended.said for word in words), Outcome.SILENT, f"nothing was said: {ended}")
