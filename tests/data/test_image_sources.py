"""The sources of images: what they decode, what they call it, and how they split it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deqopt.data import (
    CelebAFaces,
    EmbeddedDigits,
    EmbeddedPhotographs,
    ImageArchive,
    ImageFolder,
    ImageSource,
    open_images,
)
from stored_images import colours, write_celeba, write_images, write_npz

torch.set_num_threads(1)


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
    source, digits = open_images(roots[kind](), size=size, channels=channels), EmbeddedDigits().labels
    for i in (0, len(source) - 1):
        image, label, index = source[i]
        assert image.shape == (channels, size, size) and image.dtype == torch.float32
        assert image.min() >= 0 and image.max() <= 1
        assert (label, index) == (digits[i] if kind == "digits" else -1, i)
    assert source[-1].index == len(source) - 1
    with pytest.raises(IndexError):
        source[len(source)]
    assert len({source.name(i) for i in range(len(source))}) == len(source)


def test_digits_keep_their_values_and_grow_bilinearly() -> None:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    original = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    assert torch.equal(all_images(EmbeddedDigits(size=8)), original)
    grown = torch.nn.functional.interpolate(original, size=(16, 16), mode="bilinear", antialias=False)
    torch.testing.assert_close(all_images(EmbeddedDigits()), grown)
    assert EmbeddedDigits().name(12) == "digit_0012"


@pytest.mark.parametrize("size", [32, 61, 213])
def test_patches_of_the_photographs_are_put_together_row_by_row(size: int) -> None:
    from sklearn.datasets import load_sample_image

    source = EmbeddedPhotographs(size)
    rows, columns = 427 // size, 640 // size
    assert len(source) == 2 * rows * columns
    photographs = all_images(source).unflatten(0, (2, rows, columns)).permute(0, 1, 4, 2, 5, 3)
    for name, photograph in zip(("china", "flower"), photographs.flatten(3, 4).flatten(1, 2), strict=True):
        original = torch.tensor(load_sample_image(f"{name}.jpg"))[: rows * size, : columns * size]
        torch.testing.assert_close(photograph * 255, original.float(), atol=1e-4, rtol=0)
    names = [source.name(i) for i in range(len(source))]
    assert names[0] == "china_0000" and names[rows * columns + 1] == "flower_0001" and len(set(names)) == len(names)


def test_grey_photographs_are_the_luma_of_the_coloured_ones() -> None:
    grey, colour = EmbeddedPhotographs(64, channels=1)[7].image, EmbeddedPhotographs(64)[7].image
    torch.testing.assert_close(grey[0], 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])


def test_black_and_white_are_exactly_zero_and_one_whatever_stores_them(tmp_path: Path) -> None:
    grey = np.zeros((1, 6, 6), np.uint8)
    grey[:, :, 3:] = 255
    expected = torch.where(torch.arange(6) < 3, 0.0, 1.0).expand(1, 3, 6, 6)
    colour = np.repeat(grey[..., None], 3, axis=3)
    stored = [grey, grey[..., None], colour, grey / 255.0, (colour / 255.0).astype(">f4"), grey.astype("f2") / 255]
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
    assert (red[:, :half] > 0.95).all() and (red[:, -half:] < 0.05).all()
    assert (blue[:half] > 0.95).all() and (blue[-half:] < 0.05).all()
    assert (green == 0).all()


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
    assert (image - 0.5).abs().max() < 0.05


def test_grey_and_colour_convert_as_in_pil(tmp_path: Path) -> None:
    images = colours(3, 8, 8)
    folder = write_images(tmp_path, images)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    luma = all_images(ImageFolder(folder, 8, 1))[:, 0] * 255
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
    assert (ImageFolder(tmp_path, 4, channels)[0].image - 0.5).abs().max() < 0.01


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
    assert (photograph[0, :4] == 1).all() and (photograph[0, 4:] == 0).all()


# Files and names


def test_a_folder_is_read_recursively_sorted_and_without_hidden_files(tmp_path: Path) -> None:
    white, black = Image.new("L", (2, 2), 255), Image.new("L", (2, 2), 0)
    for name in ("b/2.PNG", "a/1.jpeg", "c.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        white.save(tmp_path / name)
    (tmp_path / ".cache").mkdir()
    black.save(tmp_path / ".cache" / "4.png")
    (tmp_path / "._c.png").write_bytes(b"resource fork")
    (tmp_path / "labels.txt").write_text("1 2 3")
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
    root = write_celeba(tmp_path, "20010", images)
    source = open_images(root, size=16, channels=3, download=True)  # which fetches nothing that is there
    assert isinstance(source, CelebAFaces)
    assert all_images(source).mean() > 0.98
    splits = source.splits(seed=0)
    assert (splits.train, splits.val, splits.test) == ([1, 2, 4], [3], [0])
    assert source.splits(seed=1) == splits
    assert source.name(0) == "000001"


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


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("size", [8, 32, 100, 213])
def test_no_column_of_a_photograph_is_in_two_splits(size: int, seed: int) -> None:
    source = EmbeddedPhotographs(size)
    rows, columns = 427 // size, 640 // size
    splits = source.splits(seed)
    assert sorted(splits.train + splits.val + splits.test) == list(range(len(source)))
    for photograph in range(2):
        parts = [
            {i % columns for i in part if i // (rows * columns) == photograph}
            for part in (splits.train, splits.val, splits.test)
        ]
        held = max(1, columns // 10)
        assert [len(part) for part in parts] == [columns - 2 * held, held, held]
        assert len(set.union(*parts)) == columns


def test_columns_of_photographs_are_drawn_by_the_seed() -> None:
    assert len({tuple(EmbeddedPhotographs().splits(seed).test) for seed in range(8)}) > 4
