"""Where episodes come from: glyphs, class folders and Omniglot; what they hold and how their classes are split."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from deqopt_tasks.omniglot.characters import FOLDER, OmniglotCharacters
from deqopt_tasks.omniglot.data import EpisodeData
from deqopt_tasks.omniglot.glyphs import PEN, STROKES, Glyphs, ink_of, mixed
from deqopt_tasks.omniglot.opening import open_classes
from deqopt_tasks.omniglot.sources import ClassFolders, ClassSource
from PIL import Image

from class_sources import write_class, write_classes, write_omniglot
from deqopt.data import ImageFolder, Splits
from paths import REAL_DATA

OMNIGLOT = REAL_DATA / FOLDER
with_omniglot = pytest.mark.skipif(
    not (OMNIGLOT / "images_background.zip").is_file(), reason=f"the zip files of Omniglot are not in {OMNIGLOT}"
)


def everything(splits: Splits) -> list[int]:
    return sorted([*splits.train, *splits.val, *splits.test])


def sources(tmp_path: Path) -> list[ClassSource]:
    folders = write_classes(tmp_path / "folders", {f"c{i}": 3 + i % 2 for i in range(12)})
    omniglot = write_omniglot(tmp_path / "omni", {"Latin": 2, "Greek": 1, "Sanskrit": 2}, {"Tengwar": 2})
    found = []
    for size, channels in ((28, 1), (13, 3)):
        found += [open_classes(root, size=size, channels=channels) for root in (None, folders, omniglot)]
    return found


def test_every_source_gives_the_same_images_one_by_one_and_together(tmp_path: Path) -> None:
    found = sources(tmp_path)
    assert [type(source) for source in found] == [Glyphs, ClassFolders, OmniglotCharacters] * 2
    for source in found:
        classes = torch.tensor([4, 0, 2, 4, 4])
        numbers = torch.tensor([1, 2, 0, 2, 1])
        images = source.images(classes, numbers)
        assert images.shape == (5, source.channels, source.size, source.size) and images.dtype == torch.float32
        assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.005
        for c, i, image in zip(classes.tolist(), numbers.tolist(), images, strict=True):
            assert torch.equal(source.image(c, i), image) and torch.equal(source[c][i], image)
        assert len(source[4]) == source.count(4)
        distinct = [tuple(image.flatten().tolist()) for c in range(5) for image in source[c]]
        assert len(set(distinct)) == len(distinct)
        images.zero_()
        assert source.image(4, 1).std() > 0.005, "the images of a source are its own"


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_share_no_class_and_leave_none_out(seed: int, tmp_path: Path) -> None:
    for source in sources(tmp_path):
        splits = source.splits(seed)
        assert everything(splits) == list(range(len(source))) and splits == source.splits(seed)
        assert all((splits.train, splits.val, splits.test))
        assert len({source.name(c) for c in range(len(source))}) == len(source)


def test_glyphs_draw_from_the_published_generator() -> None:
    """The first numbers of SplitMix64, as in the reference implementation of Vigna (seeds 0 and 1234567)."""
    assert mixed(np.array([0, 1234567], np.uint64)).tolist() == [16294208416658607535, 6457827717110365317]


def test_a_straight_stroke_is_a_gaussian_of_the_distance() -> None:
    size, w = 32, PEN[1]
    ends = torch.tensor([[-0.5, 0.3], [1.5, 0.3]])
    line = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, 200)[:, None])
    curves = line.expand(1, STROKES, 200, 2)
    one = torch.arange(STROKES) < 1
    ink = ink_of(curves, one[None], torch.tensor([w]), size)[0]
    distance = (torch.arange(size) + 0.5) / size - 0.3
    want = (2 * torch.exp(-(distance**2) / (2 * w**2))).clamp(max=1)
    torch.testing.assert_close(ink, want[:, None].expand(size, size), atol=1e-4, rtol=1e-3)
    assert not ink_of(curves, torch.zeros_like(one)[None], torch.tensor([w]), size).any()


def test_glyphs_are_the_same_on_every_machine() -> None:
    ink = (1 - Glyphs().images(torch.tensor([0, 7, 1299]), torch.tensor([0, 19, 4]))).mean((1, 2, 3))
    torch.testing.assert_close(ink, torch.tensor([0.04613, 0.14443, 0.06450]), atol=1e-4, rtol=0)


def test_another_seed_makes_other_glyphs_and_a_larger_size_the_same_ones() -> None:
    small, other, large = Glyphs(), Glyphs(seed=1), Glyphs(84)
    shrunk = torch.nn.functional.avg_pool2d(large[3], 3)
    assert (shrunk - small[3]).abs().mean() < 0.02 < 0.06 < (other[3] - small[3]).abs().mean()


def test_most_of_a_glyph_is_on_the_paper_and_most_of_the_paper_is_white() -> None:
    images = torch.cat([Glyphs()[c] for c in range(50)])
    ink = 1 - images
    border = torch.ones(28, 28, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert ink[..., border].sum() < 0.03 * ink.sum()
    assert (ink.mean((1, 2, 3)) > 0.005).all() and 0.03 < ink.mean() < 0.2 and (images == 1).float().mean() > 0.7


def test_pixels_alone_tell_some_glyphs_apart_but_not_all() -> None:
    """The nearest support image is right more often than by chance, and so seldom that there is much to learn."""
    data = EpisodeData(Glyphs, ways=5, shots=1, queries=15, batch_size=10, test_episodes=100)
    right = [
        (torch.cdist(batch.query.flatten(2), batch.support.flatten(2)).argmin(2) == batch.query_label).float().mean()
        for batch in data.test_dataloader()
    ]
    assert 0.4 < torch.stack(right).mean() < 0.7


def test_a_class_holds_the_images_of_its_folder(tmp_path: Path) -> None:
    write_classes(tmp_path, {"b": 3, "a/deep": 2, "c": 4})
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(tmp_path / "a" / "colour.png")
    source = ClassFolders(tmp_path, 6, 3)
    assert [source.name(c) for c in range(3)] == ["a", "b", "c"] == [source.group(c) for c in range(3)]
    assert [source.count(c) for c in range(3)] == [3, 3, 4]
    for c, name in enumerate("abc"):
        want = ImageFolder(tmp_path / name, 6, 3)
        assert all(torch.equal(source.image(c, i), want.tensor(i)) for i in range(len(want)))


def test_parts_of_a_folder_are_the_splits(tmp_path: Path) -> None:
    for part, names in (("train", "dab"), ("val", "fc"), ("test", "e")):
        write_classes(tmp_path / part, dict.fromkeys(names, 2))
    source = ClassFolders(tmp_path, 8, 1)
    for seed in (0, 1):
        splits = source.splits(seed)
        named = [[source.name(c) for c in part] for part in (splits.train, splits.val, splits.test)]
        assert named == [["a", "b", "d"], ["c", "f"], ["e"]]
    want = ImageFolder(tmp_path / "val" / "f", 8, 1)
    assert torch.equal(source.image(4, 1), want.tensor(1))


def test_the_layout_of_omniglot_is_read_without_its_zip_files(tmp_path: Path) -> None:
    write_omniglot(tmp_path, {"Latin": 2, "Greek": 1, "Sanskrit": 3}, {"Tengwar": 2, "Avesta": 1})
    write_class(tmp_path / FOLDER / "strong_omniglot", 1)
    source = open_classes(tmp_path, size=105, channels=1)
    alphabets = [("Greek", 1), ("Latin", 2), ("Sanskrit", 3), ("Avesta", 1), ("Tengwar", 2)]
    names = [f"{alphabet}_character0{i + 1}" for alphabet, characters in alphabets for i in range(characters)]
    assert [source.name(c) for c in range(len(source))] == names
    folder = tmp_path / FOLDER / "images_background" / "Latin" / "character02"
    for i, file in enumerate(sorted(folder.iterdir())):
        assert np.array_equal(source.image(2, i)[0], np.asarray(Image.open(file), np.float32))
    held = set()
    for seed in range(20):
        splits = source.splits(seed)
        groups = [{source.group(c) for c in part} for part in (splits.train, splits.val, splits.test)]
        assert groups[2] == {"Avesta", "Tengwar"} and len(groups[1]) == 1 and not groups[0] & groups[1]
        held |= groups[1]
    assert held == {"Greek", "Latin", "Sanskrit"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("omniglot")
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(OMNIGLOT / f"{part}.zip") as packed:
            packed.extractall(root / FOLDER)
    return root


@pytest.mark.slow
@with_omniglot
def test_omniglot_is_complete_and_its_alphabets_stay_together(unpacked: Path) -> None:
    source = OmniglotCharacters(unpacked)
    assert len(source) == 964 + 659 and {source.count(c) for c in range(len(source))} == {20}
    splits = source.splits(0)
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (964, 659)
    train, val, test = ({source.group(c) for c in part} for part in (splits.train, splits.val, splits.test))
    assert (len(train), len(val), len(test)) == (27, 3, 20) and len(train | val | test) == 50
    assert {"Latin", "Greek", "Hebrew"} <= train | val and {"Tengwar", "Tibetan", "Avesta"} <= test
    sizes = Counter(source.group(c) for c in range(len(source)))
    assert (sizes["Latin"], sizes["Braille"], sizes["Tengwar"]) == (26, 26, 25)
    drawn = source.images(torch.arange(len(source)), torch.arange(len(source)) % 20)
    assert 0.9 < drawn.mean() < 0.95, "paper is 1"
    thin = (1 - drawn).flatten(1).amax(1)
    assert (thin > 0.2).all(), "no stroke is lost when the images shrink"
