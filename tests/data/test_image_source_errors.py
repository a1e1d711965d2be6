"""What the sources of images say about data and settings that cannot be right, and that it is one line."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deqopt.data import CelebAFaces, EmbeddedPhotographs, ImageArchive, ImageFolder, ImageSource, open_images
from deqopt.data.pixels import UnreadableImageError, check_readable, read_pixels
from refusals import one_line_error
from stored_images import colours, write_bytes, write_images, write_npz


def noise(format: str) -> bytes:
    """An image file that compresses badly, so that its pixels are most of it."""
    buffer = io.BytesIO()
    Image.fromarray(colours(1, 40, 30)[0]).save(buffer, format)
    return buffer.getvalue()


def folder_of(folder: Path, count: int) -> Path:
    return write_images(folder, colours(count), ".jpg")


def celeba(root: Path, images: int, partition: str) -> Path:
    folder_of(root / "celeba" / "img_align_celeba", images)
    write_bytes(root / "celeba" / "list_eval_partition.txt", partition.encode("latin-1"))
    return root


def opened(root: Path | None, **settings: Any) -> ImageSource:
    return open_images(root, **{"size": 8, "channels": 3, **settings})


def with_pixel(value: float) -> NDArray[np.float32]:
    images = np.full((3, 4, 4), 0.5, np.float32)
    images[1, 2, 3] = value
    return images


GOOD = np.zeros((3, 4, 4), np.uint8)
BAD_ARCHIVES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "other key": ({}, {"x": GOOD, "y": GOOD}, r"a\.npz has no array 'images': it holds x, y$"),
    "asked key": ({"key": "x"}, {"images": GOOD}, r"no array 'x': it holds images$"),
    "one image": ({}, {"images": GOOD[0]}, r"'images' of .*a\.npz has shape \(4, 4\).* \(N, H, W\)"),
    "channels first": ({}, {"images": np.zeros((3, 3, 9, 9), "u1")}, r"shape \(3, 3, 9, 9\).* \(N, H, W, 3\)"),
    "two channels": ({}, {"images": np.zeros((3, 9, 9, 2), "u1")}, r"\(3, 9, 9, 2\).*\(N, H, W, 1\)"),
    "no height": ({}, {"images": np.zeros((3, 0, 9), "u1")}, r"shape \(3, 0, 9\).* should be \(N, H, W\)"),
    "no images": ({}, {"images": GOOD[:0]}, r"a\.npz has no images.*N should be 1 or more"),
    "integers": ({}, {"images": GOOD.astype(int)}, r"is of int64: it should be uint8, or floats in \[0, 1\]"),
    "booleans": ({}, {"images": GOOD > 0}, r"is of bool: it should be uint8"),
    "text": ({}, {"images": np.array([[["a"]]])}, r"is of <U1: it should be uint8"),
    "NaN": ({}, {"images": with_pixel(np.nan)}, r"has NaN or infinite values: .*\[0, 1\]"),
    "infinity": ({}, {"images": with_pixel(np.inf)}, r"has NaN or infinite values"),
    "negative": ({}, {"images": with_pixel(-1)}, r"has floats from -1 to 0\.5: .* in \[0, 1\], or uint8"),
    "bytes as floats": ({}, {"images": with_pixel(255)}, r"has floats from 0\.5 to 255: .* in \[0, 1\]"),
    "objects": ({}, {"images": np.array([[[None]]])}, r"holds Python objects, which are never loaded"),
    "no groups": ({"groups": "who"}, {"images": GOOD}, r"no array 'who': it holds images"),
    "short groups": (
        {"groups": "who"},
        {"images": GOOD, "who": np.arange(2)},
        r"'who' of .*a\.npz has shape \(2,\).*\(3,\) of integers",
    ),
    "float groups": ({"groups": "who"}, {"images": GOOD, "who": np.ones(3)}, r"float64: .*\(3,\) of integers"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_bad_archives(case: str, tmp_path: Path) -> None:
    settings, arrays, pattern = BAD_ARCHIVES[case]
    path = write_npz(tmp_path / "a.npz", **arrays)
    one_line_error(lambda: ImageArchive(path, 8, **settings), pattern)


def test_archives_that_are_none(tmp_path: Path) -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (4, 12, 10, 3), np.uint8)
    whole = write_npz(tmp_path / "whole.npz", images=noisy).read_bytes()
    np.save(tmp_path / "single.npy", GOOD)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for content in (b"", b"hello", whole[: len(whole) // 2], (tmp_path / "single.npy").read_bytes()):
        path = write_bytes(tmp_path / "a.npz", content)
        one_line_error(partial(ImageArchive, path, 8), r"a\.npz is not an \.npz file: .* np\.savez")
    path = write_bytes(tmp_path / "a.npz", bytes(flipped))
    one_line_error(lambda: ImageArchive(path, 8), r"'images' of .*a\.npz is damaged .*anew")
    one_line_error(lambda: ImageArchive(tmp_path / "no.npz", 8), r"no\.npz cannot be read \(No such file")


def float_image(path: Path) -> Path:
    Image.new("F", (4, 4), 0.5).save(path)
    return path


def dangling(path: Path) -> Path:
    path.symlink_to(path.with_name("moved.png"))
    return path


PARTITIONS = [
    (1, "000001.jpg 3", r"line 1 is '000001\.jpg 3': .*'000001\.jpg 0'.*0 \(train\), 1 \(val\) or 2 \(test\)"),
    (1, "000001.jpg 0\n000002.jpg 1\n000003.jpg 2", r"lacks 2 of the 3 images that .*, first 000002\.jpg: unpack"),
    (1, "000001.jpg 0\n000001.jpg 1", r"_partition\.txt, line 2 is '000001\.jpg 1': .*each image once"),
    (3, "000001.jpg 0\n000002.jpg 0\n000003.jpg 1", r"gives 2, 1, 0 images to train, val and test: each needs one"),
    (1, "\xff", r"list_eval_partition\.txt cannot be read .*'000001\.jpg 0'"),
]
"""Images, the partition, and what is said of it."""
BAD_ROOTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: opened(p / "no"), r"no is missing: .*folder.*celeba/.*\.npz"),
    "other file": (
        lambda p: opened(write_bytes(p / "a.csv", b"1")),
        r"a\.csv is a file of another kind: .*folder.*\.npz",
    ),
    "empty folder": (lambda p: opened(p), r"subfolders hold no images: .*\.png"),
    "no images": (
        lambda p: opened(write_bytes(p / "d" / "a.txt", b"1").parent),
        r"d and its subfolders hold no images: .* end in one of .*\.jpg",
    ),
    "size 0": (lambda p: open_images(None, size=0, channels=1), r"scikit-learn's digits to size 0: .*1 or more"),
    "2 channels": (lambda p: open_images(None, size=8, channels=2), r"digits 2 channels: it should be 1 or 3"),
    "groups of digits": (lambda p: opened(None, groups="who"), r"'who' do not fit .*only an \.npz"),
    "download nowhere": (lambda p: opened(None, download=True), r"nowhere: root should be a folder"),
    "download to file": (
        lambda p: opened(write_npz(p / "a.npz", images=GOOD), download=True),
        r"cannot be downloaded to .*a\.npz: root should be a folder",
    ),
    "missing folder": (lambda p: ImageFolder(p / "no", 8), r"no is missing: it should be a folder of images"),
    "file as folder": (lambda p: ImageFolder(write_bytes(p / "a", b""), 8), r"a is a file: it should be a folder"),
    "truncated": (
        lambda p: ImageFolder(write_bytes(p / "half.png", noise("PNG")[:2000]).parent, 8)[0],
        r"half\.png is truncated or not.*delete or replace",
    ),
    "text as image": (
        lambda p: ImageFolder(write_bytes(p / "a.jpg", b"hello").parent, 8)[0],
        r"a\.jpg is truncated or not an image: delete or replace it$",
    ),
    "empty image": (
        lambda p: ImageFolder(write_bytes(p / "a.png", b"").parent, 8)[0],
        r"a\.png is truncated or not an image: delete or replace it$",
    ),
    "float image": (
        lambda p: ImageFolder(float_image(p / "a.tif").parent, 8)[0],
        r"a\.tif has pixels outside 0\.\.65535: save it with 8 or 16 bits",
    ),
    "image is gone": (
        lambda p: ImageFolder(dangling(p / "000002.png").parent, 8)[0],
        r"000002\.png cannot be opened: No such file",
    ),
    "no CelebA": (lambda p: CelebAFaces(p, 8), r"lacks img_align_celeba and list_eval.*should hold.*`download`"),
    "CelebA without partition": (
        lambda p: opened(folder_of(p / "celeba" / "img_align_celeba", 3).parents[1]),
        r"celeba lacks list_eval_partition\.txt, it should hold celeba/img_align_celeba/000001\.jpg",
    ),
    "inside CelebA": (
        lambda p: opened(celeba(p, 1, "000001.jpg 0") / "celeba"),
        r"celeba is the inside of CelebA: root should be the folder that holds it",
    ),
    **{
        f"partition {partition!r} of {count}": (
            lambda p, count=count, partition=partition: CelebAFaces(celeba(p, count, partition), 8),
            pattern,
        )
        for count, partition, pattern in PARTITIONS
    },
    "two images": (
        lambda p: ImageFolder(folder_of(p, 2), 8).splits(0),
        r"cannot split .*: it has 2 image\(s\), at least 3 are needed",
    ),
    "two groups": (
        lambda p: ImageArchive(write_npz(p / "a.npz", images=GOOD, who=[1, 1, 2]), 8, groups="who").splits(0),
        r"a\.npz: it has 2 group\(s\), at least 3 are needed",
    ),
    "negative seed": (lambda p: opened(None).splits(-1), r"digits with seed -1: it should be 0 to 4294967295"),
    "photographs in large patches": (
        lambda p: EmbeddedPhotographs(214),
        r"photographs cannot be cut into patches of size 214: it should be 213 or less",
    ),
}


@pytest.mark.parametrize("case", BAD_ROOTS)
def test_bad_roots_and_settings(case: str, tmp_path: Path) -> None:
    action, pattern = BAD_ROOTS[case]
    one_line_error(lambda: action(tmp_path), pattern)


def test_a_failed_download_says_why_and_what_else_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("torchvision.datasets.celeba", exc_type=ImportError)

    def refuse(*settings: object, **more: object) -> None:
        raise RuntimeError("Too many users\nhave viewed this file")

    monkeypatch.setattr(module, "download_file_from_google_drive", refuse)
    expected = r"could not be downloaded to .* \(Too many users have viewed this file\): fetch it by hand"
    one_line_error(lambda: opened(tmp_path / "new", download=True), expected)


def said_of(path: Path, action: Callable[[Path], object]) -> str:
    """What an action says of a file that cannot be read; empty where it can."""
    try:
        action(path)
    except UnreadableImageError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore:::PIL")  # it also warns of what it survives
@pytest.mark.parametrize("format", ["png", "jpeg", "gif", "bmp", "webp", "ppm", "tiff", "jp2"])
def test_no_damage_to_an_image_escapes_as_another_error(format: str, tmp_path: Path) -> None:
    """Nor the look that finds what cannot be read: it may miss bytes that are wrong within a JPEG, but no cut."""
    whole, random = noise("JPEG2000" if format == "jp2" else format), np.random.default_rng(0)
    path = tmp_path / f"a.{format}"
    reported = 0
    for attempt in range(60):
        damaged = bytearray(whole[: random.integers(len(whole))] if attempt % 2 else whole)
        for place in random.integers(min(len(whole), 200), size=0 if attempt % 2 else 6):
            damaged[place : place + 1] = random.bytes(1)
        path.write_bytes(damaged)
        said, seen = said_of(path, read_pixels), said_of(path, check_readable)
        assert seen == said or (format == "jpeg" and attempt % 2 == 0 and not seen)
        if said:
            assert f"a.{format}" in said and "\n" not in said
            reported += 1
    assert reported >= 20
