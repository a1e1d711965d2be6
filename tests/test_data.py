"""The sources of images: what they decode, how they split, and what they say about bad data."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deqopt.data import CelebAFaces, EmbeddedDigits, ImageArchive, ImageFolder, ImageSource, open_images
from deqopt.errors import DataError

ORL_FACES = Path(__file__).parents[1].parent / "shared" / "data" / "faces-orl" / "orl_faces.npz"

torch.set_num_threads(1)


def colours(count: int, height: int = 12, width: int = 10) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def write_images(folder: Path, images: NDArray[Any], suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i + 1:06d}{suffix}")
    return folder


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def write_celeba(root: Path, parts: str, images: NDArray[Any] | None = None) -> Path:
    """Images in CelebA's layout; the digits of `parts` are the partition."""
    images = colours(len(parts)) if images is None else images
    write_images(root / "celeba" / "img_align_celeba", images, ".jpg")
    lines = [f"{i:06d}.jpg {part}\n" for i, part in enumerate(parts, start=1)]
    (root / "celeba" / "list_eval_partition.txt").write_text("".join(lines))
    return root


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_bytes(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def all_images(source: ImageSource) -> torch.Tensor:
    return torch.stack([source[i].image for i in range(len(source))])


# Values


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 8, 16, 33])
@pytest.mark.parametrize("kind", ["digits", "folder", "npz", "celeba"])
def test_every_source_gives_named_square_float_images_in_range(
    kind: str, size: int, channels: int, tmp_path: Path
) -> None:
    roots: dict[str, Callable[[], Path | None]] = {
        "digits": lambda: None,
        "folder": lambda: write_images(tmp_path, colours(5)),
        "npz": lambda: write_npz(tmp_path / "a.npz", images=colours(5)),
        "celeba": lambda: write_celeba(tmp_path, "00112"),
    }
    source = open_images(roots[kind](), size=size, channels=channels)
    for i in (0, len(source) - 1):
        image, index = source[i]
        assert image.shape == (channels, size, size) and image.dtype == torch.float32
        assert image.abs().max() <= 1
        assert index == i
    assert source[-1].index == len(source) - 1
    with pytest.raises(IndexError):
        source[len(source)]
    assert len({source.name(i) for i in range(len(source))}) == len(source)


def test_digits_keep_their_values_and_grow_bilinearly() -> None:
    from sklearn.datasets import load_digits

    original = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    assert torch.equal(all_images(EmbeddedDigits(size=8)), original)
    grown = torch.nn.functional.interpolate(original, size=(16, 16), mode="bilinear", antialias=False)
    torch.testing.assert_close(all_images(EmbeddedDigits()), grown)
    assert EmbeddedDigits().name(12) == "digit_0012"


def test_black_and_white_are_exactly_minus_one_and_one_whatever_stores_them(tmp_path: Path) -> None:
    grey = np.zeros((1, 6, 6), np.uint8)
    grey[:, :, 3:] = 255
    expected = torch.where(torch.arange(6) < 3, -1.0, 1.0).expand(1, 3, 6, 6)
    colour = np.repeat(grey[..., None], 3, axis=3)
    stored = [
        grey,
        grey[..., None],
        colour,
        grey / 255.0,
        (colour / 255.0).astype(">f4"),
        grey.astype("f2") / 255,
    ]
    for images in stored:
        archive = ImageArchive(write_npz(tmp_path / "a.npz", images=images), 6)
        assert torch.equal(all_images(archive), expected)
    assert torch.equal(all_images(ImageFolder(write_images(tmp_path / "grey", grey), 6)), expected)
    assert torch.equal(all_images(ImageFolder(write_images(tmp_path / "colour", colour), 6)), expected)


@pytest.mark.parametrize("size", [3, 16, 40])
def test_resizing_keeps_left_and_right_and_top_and_bottom(size: int, tmp_path: Path) -> None:
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[:, :, :8, 0] = 255  # red on the left
    image[:, :8, :, 2] = 255  # blue at the top
    red, green, blue = ImageFolder(write_images(tmp_path, image), size)[0].image
    half = size // 2 - size // 16  # beside the seam
    assert (red[:, :half] > 0.9).all() and (red[:, -half:] < -0.9).all()
    assert (blue[:half] > 0.9).all() and (blue[-half:] < -0.9).all()
    assert (green == -1).all()


def test_the_central_square_is_kept(tmp_path: Path) -> None:
    wide, tall = np.zeros((4, 10), np.uint8), np.zeros((10, 4), np.uint8)
    wide[:, 3:7], tall[3:7] = 255, 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(tall).save(tmp_path / "b.png")
    assert (all_images(ImageFolder(tmp_path, 4, 1)) == 1).all()


def test_shrinking_averages_instead_of_picking_pixels(tmp_path: Path) -> None:
    stripes = np.zeros((1, 64, 64), np.uint8)
    stripes[:, :, ::2] = 255
    image = ImageFolder(write_images(tmp_path, stripes), 4, 1)[0].image
    assert image.abs().max() < 0.1


def test_grey_and_colour_convert_as_in_pil(tmp_path: Path) -> None:
    images = colours(3, 8, 8)
    folder = write_images(tmp_path, images)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    luma = (all_images(ImageFolder(folder, 8, 1))[:, 0] + 1) * 127.5
    assert (luma - torch.tensor(expected)).abs().max() <= 1  # PIL rounds
    grey = ImageFolder(write_images(tmp_path / "grey", expected), 8, 3)
    assert (all_images(grey) == all_images(grey)[:, :1]).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [5, 10, 21])
def test_a_folder_and_an_archive_of_the_same_images_agree(size: int, channels: int, tmp_path: Path) -> None:
    folder = ImageFolder(write_images(tmp_path / "f", colours(6)), size, channels)
    archive = ImageArchive(write_npz(tmp_path / "a.npz", images=colours(6)), size, channels)
    assert torch.equal(all_images(folder), all_images(archive))
    assert folder.splits(3) != folder.splits(4)
    assert folder.splits(3) == archive.splits(3)


FILE_KINDS = {
    "16 bits": lambda: Image.fromarray(np.full((4, 4), 32768, np.uint16)),
    "32 bits": lambda: Image.fromarray(np.full((4, 4), 32768, np.int32)),
    "palette": lambda: Image.new("RGB", (4, 4), (128, 128, 128)).convert("P", palette=Image.Palette.ADAPTIVE),
    "alpha": lambda: Image.new("RGBA", (4, 4), (128, 128, 128, 10)),
    "grey and alpha": lambda: Image.new("LA", (4, 4), (128, 10)),
    "CMYK": lambda: Image.new("CMYK", (4, 4), (127, 127, 127, 0)),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", FILE_KINDS)
def test_middle_grey_is_middle_grey_in_every_kind_of_file(kind: str, channels: int, tmp_path: Path) -> None:
    FILE_KINDS[kind]().save(tmp_path / "a.tif" if kind in ("CMYK", "32 bits") else tmp_path / "a.png")
    assert ImageFolder(tmp_path, 4, channels)[0].image.abs().max() < 0.02


def test_bits_and_transparent_palettes_and_rotated_photographs(tmp_path: Path) -> None:
    Image.new("1", (4, 4), 1).save(tmp_path / "a.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(tmp_path / "b.png", transparency=b"\xff\x80")
    left = Image.new("L", (8, 8), 0)
    left.paste(255, (0, 0, 4, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter: left becomes top
    left.save(tmp_path / "c.png", exif=exif)
    bits, opaque, photograph = all_images(ImageFolder(tmp_path, 8, 1))
    assert (bits == 1).all() and (opaque == 1).all()
    assert (photograph[0, :4] == 1).all() and (photograph[0, 4:] == -1).all()


# Files and names


def test_a_folder_is_read_recursively_sorted_and_without_hidden_files(tmp_path: Path) -> None:
    white, black = Image.new("L", (2, 2), 255), Image.new("L", (2, 2), 0)
    for name in ("b/2.PNG", "a/1.jpeg", "c.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        white.save(tmp_path / name)
    (tmp_path / ".cache").mkdir()
    black.save(tmp_path / ".cache" / "4.png")
    write_bytes(tmp_path / "._c.png", b"resource fork")
    write_bytes(tmp_path / "labels.txt", b"1 2 3")
    source = ImageFolder(tmp_path, 2, 1)
    assert [source.name(i) for i in range(len(source))] == ["1", "2", "c"]
    assert (all_images(source) > 0.98).all()


def test_equal_stems_get_distinct_names(tmp_path: Path) -> None:
    for name in ("x/1.png", "y/1.png", "y/1.jpg", "z/A.png", "z/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name)
    source = ImageFolder(tmp_path, 2)
    assert len({source.name(i).casefold() for i in range(5)}) == 5


@pytest.mark.parametrize("height, width", [(218, 178), (140, 140), (64, 80)])
def test_celeba_keeps_the_central_140_pixels_and_the_official_partition(
    height: int, width: int, tmp_path: Path
) -> None:
    images = np.zeros((5, height, width, 3), np.uint8)
    side = min(140, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images[:, top : top + side, left : left + side] = 255
    source = open_images(write_celeba(tmp_path, "20010", images), size=16, channels=3)
    assert isinstance(source, CelebAFaces)
    assert all_images(source).mean() > 0.98
    splits = source.splits(seed=0)
    assert (splits.train, splits.val, splits.test) == ([1, 2, 4], [3], [0])
    assert source.splits(seed=1) == splits
    assert source.name(0) == "000001"


def test_complete_celeba_is_not_downloaded_again(tmp_path: Path) -> None:
    source = open_images(write_celeba(tmp_path, "012"), size=8, channels=3, download=True)
    assert len(source) == 3


# Splits


@pytest.mark.parametrize("count", [3, 4, 10, 19, 20, 101])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_splits_cover_all_images_once_in_fixed_shares(count: int, seed: int, tmp_path: Path) -> None:
    source = ImageArchive(write_npz(tmp_path / "a.npz", images=np.zeros((count, 2, 2), np.uint8)), 2)
    splits = source.splits(seed)
    assert sorted(splits.train + splits.val + splits.test) == list(range(count))
    assert len(splits.val) == len(splits.test) == max(1, count // 10)
    assert splits == source.splits(seed)


def test_splits_depend_on_the_seed_alone() -> None:
    source = EmbeddedDigits()
    first = source.splits(7)
    np.random.seed(1)
    torch.manual_seed(1)
    assert EmbeddedDigits(size=4, channels=3).splits(7) == first
    others = [source.splits(seed) for seed in range(5)]
    assert len({tuple(splits.test) for splits in others}) == 5
    assert first.test[:5] == [2, 9, 12, 13, 17]  # the same on every machine and for good


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sizes", [[1, 1, 1], [1, 1, 97], [5] * 20, list(range(1, 14))], ids=str)
def test_groups_never_straddle(sizes: list[int], seed: int, tmp_path: Path) -> None:
    groups = np.random.RandomState(seed).permutation(np.repeat(np.arange(len(sizes)) * 7 - 3, sizes))
    path = write_npz(tmp_path / "a.npz", images=np.zeros((len(groups), 2, 2), np.uint8), person=groups)
    splits = open_images(path, size=2, channels=1, groups="person").splits(seed)
    people = [set(groups[part]) for part in (splits.train, splits.val, splits.test)]
    assert all(people) and sum(map(len, people)) == len(sizes) == len(set.union(*people))
    assert sorted(splits.train + splits.val + splits.test) == list(range(len(groups)))


@pytest.mark.skipif(not ORL_FACES.exists(), reason="the ORL faces are not in ../shared/data/faces-orl")
def test_the_orl_faces_split_by_person() -> None:
    source = open_images(ORL_FACES, size=32, channels=1, groups="subject")
    subjects = np.load(ORL_FACES)["subject"]
    splits = source.splits(0)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [320, 40, 40]
    assert not set(subjects[splits.train]) & set(subjects[splits.val + splits.test])
    assert not set(subjects[splits.val]) & set(subjects[splits.test])
    plain = open_images(ORL_FACES, size=32, channels=1).splits(0)
    assert set(subjects[plain.train]) & set(subjects[plain.test])
    faces = all_images(source).flatten(1)
    same, other = (faces[0] - faces[1:10]).norm(dim=1).mean(), (faces[0] - faces[10:]).norm(dim=1).mean()
    assert same < other
    assert source.name(11) == "orl_faces_0011"


# What people do wrong: how the source is opened (or read), and what they are told


def with_pixel(value: float) -> NDArray[np.float32]:
    images = np.full((3, 4, 4), 0.5, np.float32)
    images[1, 2, 3] = value
    return images


GOOD = np.zeros((3, 4, 4), np.uint8)
BAD_ARCHIVES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "other key": ({}, {"x": GOOD, "y": GOOD}, r"a\.npz has no array 'images': it holds x, y$"),
    "asked key": ({"key": "x"}, {"images": GOOD}, r"no array 'x': it holds images$"),
    "one image": ({}, {"images": GOOD[0]}, r"'images' of .*a\.npz has shape \(4, 4\).* \(N, H, W\)"),
    "channels first": (
        {},
        {"images": np.zeros((3, 3, 9, 9), "u1")},
        r"shape \(3, 3, 9, 9\).* \(N, H, W, 3\)",
    ),
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
    "float groups": (
        {"groups": "who"},
        {"images": GOOD, "who": np.ones(3)},
        r"float64: .*\(3,\) of integers",
    ),
}


def one_line_error(action: Callable[[], object], pattern: str) -> None:
    with pytest.raises(DataError) as caught:
        action()
    message = str(caught.value)
    assert re.search(pattern, message) and "\n" not in message, message


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_bad_archives(case: str, tmp_path: Path) -> None:
    settings, arrays, pattern = BAD_ARCHIVES[case]
    path = write_npz(tmp_path / "a.npz", **arrays)
    one_line_error(lambda: ImageArchive(path, 8, **settings), pattern)


def test_archives_that_are_none(tmp_path: Path) -> None:
    whole = write_npz(tmp_path / "whole.npz", images=colours(4)).read_bytes()
    np.save(tmp_path / "single.npy", GOOD)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for content in (b"", b"hello", whole[: len(whole) // 2], (tmp_path / "single.npy").read_bytes()):
        path = write_bytes(tmp_path / "a.npz", content)
        one_line_error(lambda path=path: ImageArchive(path, 8), r"a\.npz is not an \.npz file: .* np\.savez")
    path = write_bytes(tmp_path / "a.npz", bytes(flipped))
    one_line_error(lambda: ImageArchive(path, 8), r"'images' of .*a\.npz is damaged .*anew")
    one_line_error(lambda: ImageArchive(tmp_path / "no.npz", 8), r"no\.npz cannot be read \(No such file")


def truncated(folder: Path, name: str = "half.png") -> Path:
    """A folder whose image `name` breaks off in the middle."""
    content = png(Image.fromarray(colours(1, 64, 64)[0]))
    return write_bytes(folder / name, content[: len(content) // 2]).parent


def bare_partition(folder: Path, text: str) -> Path:
    write_celeba(folder, "012")
    write_bytes(folder / "celeba" / "list_eval_partition.txt", text.encode("latin-1"))
    return folder


def opened(root: Path | None, **settings: Any) -> ImageSource:
    return open_images(root, **{"size": 8, "channels": 3, **settings})


def without(path: Path) -> None:
    path.unlink()


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
    "size 0": (
        lambda p: open_images(None, size=0, channels=1),
        r"scikit-learn's digits to size 0: .*1 or more",
    ),
    "2 channels": (
        lambda p: open_images(None, size=8, channels=2),
        r"digits 2 channels: it should be 1 or 3",
    ),
    "groups of digits": (
        lambda p: opened(None, groups="who"),
        r"'who' do not fit .*only an \.npz",
    ),
    "groups of files": (
        lambda p: opened(write_images(p, GOOD), groups="who"),
        r"groups 'who' do not fit .*only an \.npz",
    ),
    "download nowhere": (
        lambda p: opened(None, download=True),
        r"nowhere: root should be a folder",
    ),
    "download to file": (
        lambda p: opened(write_npz(p / "a.npz", images=GOOD), download=True),
        r"cannot be downloaded to .*a\.npz: root should be a folder",
    ),
    "missing folder": (lambda p: ImageFolder(p / "no", 8), r"no is missing: it should be a folder of images"),
    "file as folder": (
        lambda p: ImageFolder(write_bytes(p / "a", b""), 8),
        r"a is a file: it should be a folder",
    ),
    "truncated": (
        lambda p: ImageFolder(truncated(p), 8)[0],
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
        lambda p: [Image.new("F", (4, 4), 0.5).save(p / "a.tif"), ImageFolder(p, 8)[0]],
        r"a\.tif has pixels outside 0\.\.65535: save it with 8 or 16 bits",
    ),
    "image is gone": (
        lambda p: [source := ImageFolder(write_images(p, GOOD), 8), (p / "000002.png").unlink(), source[1]],
        r"000002\.png cannot be opened: No such file",
    ),
    "no CelebA": (
        lambda p: CelebAFaces(p, 8),
        r"lacks img_align_celeba and list_eval.*should hold.*`download`",
    ),
    "CelebA without partition": (
        lambda p: opened(write_images(p / "celeba" / "img_align_celeba", GOOD).parents[1]),
        r"celeba lacks list_eval_partition\.txt, it should hold celeba/img_align_celeba/000001\.jpg",
    ),
    "inside CelebA": (
        lambda p: opened(write_celeba(p, "012") / "celeba"),
        r"celeba is the inside of CelebA: root should be the folder that holds it",
    ),
    "CelebA lacks images": (
        lambda p: [
            write_celeba(p, "0123"),
            (p / "celeba/img_align_celeba/000002.jpg").unlink(),
            CelebAFaces(p, 8),
        ],
        r"line 4 is '000004\.jpg 3': .*'000001\.jpg 0'.*0 \(train\), 1 \(val\) or 2 \(test\)",
    ),
    "CelebA images are gone": (
        lambda p: [
            write_celeba(p, "012"),
            (p / "celeba/img_align_celeba/000002.jpg").unlink(),
            CelebAFaces(p, 8),
        ],
        r"lacks 1 of the 3 images that list_eval_partition\.txt names, first 000002\.jpg: unpack",
    ),
    "CelebA line twice": (
        lambda p: CelebAFaces(bare_partition(p, "000001.jpg 0\n000001.jpg 1\n"), 8),
        r"list_eval_partition\.txt, line 2 is '000001\.jpg 1': .*each image once",
    ),
    "CelebA without test": (
        lambda p: CelebAFaces(write_celeba(p, "001"), 8),
        r"gives 2, 1, 0 images to train",
    ),
    "CelebA binary partition": (
        lambda p: CelebAFaces(bare_partition(p, "\xff"), 8),
        r"cannot be read .*000001",
    ),
    "two images": (
        lambda p: ImageFolder(write_images(p, GOOD[:2]), 8).splits(0),
        r"cannot split .*: it has 2 image\(s\), at least 3 are needed",
    ),
    "two groups": (
        lambda p: ImageArchive(write_npz(p / "a.npz", images=GOOD, who=[1, 1, 2]), 8, groups="who").splits(0),
        r"a\.npz: it has 2 group\(s\), at least 3 are needed",
    ),
    "negative seed": (
        lambda p: EmbeddedDigits().splits(-1),
        r"digits with seed -1: it should be 0 to 4294967295",
    ),
}


@pytest.mark.parametrize("case", BAD_ROOTS)
def test_bad_roots_and_settings(case: str, tmp_path: Path) -> None:
    action, pattern = BAD_ROOTS[case]
    one_line_error(lambda: action(tmp_path), pattern)


def test_a_failed_download_says_why_and_what_else_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    celeba = pytest.importorskip("torchvision.datasets.celeba", exc_type=ImportError)

    def refuse(*settings: object, **more: object) -> None:
        raise RuntimeError("Too many users\nhave viewed this file")

    monkeypatch.setattr(celeba, "download_file_from_google_drive", refuse)
    expected = r"could not be downloaded to .* \(Too many users have viewed this file\): fetch it by hand"
    one_line_error(lambda: opened(tmp_path / "new", download=True), expected)


@pytest.mark.filterwarnings("ignore:::PIL")  # it also warns of what it survives
@pytest.mark.parametrize("format", ["png", "jpeg", "gif", "bmp", "webp", "ppm", "tiff", "jp2"])
def test_no_damage_to_an_image_escapes_as_another_error(format: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(colours(1, 40, 30)[0]).save(buffer, "JPEG2000" if format == "jp2" else format)
    whole, random = buffer.getvalue(), np.random.default_rng(0)
    path = write_bytes(tmp_path / f"a.{format}", whole)
    source = ImageFolder(tmp_path, 8)
    reported = 0
    for attempt in range(60):
        damaged = bytearray(whole[: random.integers(len(whole))] if attempt % 2 else whole)
        for place in random.integers(min(len(whole), 200), size=0 if attempt % 2 else 6):
            damaged[place : place + 1] = random.bytes(1)
        path.write_bytes(damaged)
        try:
            source[0]
        except DataError as error:
            assert f"a.{format}" in str(error) and "\n" not in str(error)
            reported += 1
    assert reported >= 20
