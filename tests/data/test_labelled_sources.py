"""Labelled sources of every layout: images, labels, names and splits; on real data too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from deqopt.data import Download, ImageSource, LabelledSource, open_images, open_labelled
from labelled_sources import LAYOUTS, NAMES, Stored, cifar, pixels, split_folders, unchecked, write_classes, write_mnist
from paths import REAL_DATA

MNIST_FILES = REAL_DATA / "MNIST"
with_mnist = pytest.mark.skipif(not MNIST_FILES.is_dir(), reason=f"MNIST is not in {REAL_DATA}")


@pytest.fixture(params=LAYOUTS)
def stored(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    unchecked(monkeypatch)
    return LAYOUTS[request.param](tmp_path)


def settings(stored: Stored) -> dict[str, Any]:
    return {"size": stored.images.shape[1], "channels": 3 if stored.images.ndim == 4 else 1}


def opened(stored: Stored, classes: int = 10) -> LabelledSource:
    return open_labelled(stored.root, classes=classes, **settings(stored))


def expected_images(stored: Stored) -> Tensor:
    images = torch.tensor(stored.images / (16 if stored.root is None else 255), dtype=torch.float32)
    return images.permute(0, 3, 1, 2) if images.ndim == 4 else images[:, None]


def all_images(source: ImageSource) -> Tensor:
    return torch.stack([source.tensor(i) for i in range(len(source))])


# -- samples ----------------------------------------------------------------------------------------------------------


def test_every_layout_gives_its_pixels_in_0_to_1_its_labels_and_its_indices(stored: Stored) -> None:
    source, expected = opened(stored), expected_images(stored)
    samples = [source[i] for i in range(len(source))]
    assert torch.equal(torch.stack([sample.image for sample in samples]), expected)
    assert expected.min() == 0 and expected.max() == 1
    assert [sample.label for sample in samples] == stored.labels.tolist() == source.labels.tolist()
    assert [sample.index for sample in samples] == list(range(len(stored.images)))
    assert samples[0].image.dtype == torch.float32 and source.labels.dtype == np.int64
    assert source[-1].index == len(source) - 1
    with pytest.raises(IndexError):
        source[len(source)]


def test_every_class_has_a_name_and_every_image_one_of_its_own(stored: Stored) -> None:
    source = opened(stored, classes=12)
    given = stored.class_names
    assert source.classes == len(source.class_names) == 12
    assert source.class_names == given + [str(k) for k in range(len(given), 12)]
    assert len({source.name(i).casefold() for i in range(len(source))}) == len(source)


def test_images_to_predict_on_are_all_those_of_the_layout_and_labels_do_not_matter(stored: Stored) -> None:
    """Not even the order: class folders are walked like any others."""
    images = open_images(stored.root, **settings(stored))
    found, expected = all_images(images).flatten(1), expected_images(stored).flatten(1)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))
    assert len({images.name(i) for i in range(len(images))}) == len(images)


def test_labels_that_cannot_be_right_do_not_hinder_prediction(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(3), labels=["no", "labels"])
    for part in ("train", "test"):
        (tmp_path / "both").mkdir(exist_ok=True)
        np.savez(tmp_path / "both" / f"{part}.npz", images=pixels(3))
    assert len(open_images(tmp_path / "a.npz", size=8, channels=3)) == 3
    assert len(open_images(tmp_path / "both", size=8, channels=3)) == 6


@pytest.mark.parametrize(
    "classes, names",
    {
        "strings": (np.array(NAMES), NAMES),
        "numbers": (np.arange(3), ["0", "1", "2"]),
        "objects": (np.array(NAMES, object), ["0", "1", "2"]),
        "a table": (np.array([NAMES]), ["0", "1", "2"]),
    }.values(),
    ids=["strings", "numbers", "objects", "a table"],
)
def test_an_archive_names_its_classes_by_strings_that_need_no_pickle(
    classes: Any, names: list[str], tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(3), labels=np.arange(3), classes=classes)
    assert open_labelled(tmp_path / "a.npz", size=8, channels=3, classes=3).class_names == names


# -- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_splits_cover_all_images_once_and_keep_the_official_test(stored: Stored, seed: int) -> None:
    source = opened(stored)
    splits, total = source.splits(seed), len(stored.images)
    assert sorted(splits.train + splits.val + splits.test) == list(range(total))
    for part in (splits.train, splits.val, splits.test):
        assert part == sorted(part)
    if stored.test:
        assert splits.test == list(range(total - stored.test, total))
        rest = total - stored.test
        official = list(range(rest - stored.val, rest))
        assert splits.val == official if stored.val else len(splits.val) == rest // 10
    else:
        assert len(splits.val) == len(splits.test) == total // 10
    np.random.seed(1)
    torch.manual_seed(1)
    assert opened(stored, classes=11).splits(seed) == splits


def test_val_is_drawn_anew_by_every_seed_unless_it_is_official(stored: Stored) -> None:
    source = opened(stored)
    assert len({tuple(source.splits(seed).val) for seed in range(4)}) == (1 if stored.val else 4)


def test_official_parts_may_differ_in_the_size_of_their_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=pixels(4, side=9), labels=[0, 1, 0, 1])
    np.savez(tmp_path / "test.npz", images=pixels(2, side=6) / 255, labels=[0, 1])
    source = open_labelled(tmp_path, size=6, channels=3, classes=2)
    assert all_images(source.images).shape == (6, 3, 6, 6)
    expected = torch.tensor(pixels(2, side=6) / 255, dtype=torch.float32).permute(0, 3, 1, 2)
    assert torch.equal(all_images(source.images)[4:], expected)


def test_a_class_called_train_is_a_class_and_other_folders_beside_the_parts_are_left_alone(tmp_path: Path) -> None:
    for name in ("train", "bus", "bus/old"):
        (tmp_path / "vehicles" / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "vehicles" / name / f"{name[-1]}.png")
    source = open_labelled(tmp_path / "vehicles", size=4, channels=1, classes=2)
    assert source.class_names == ["bus", "train"] and source.labels.tolist() == [0, 0, 1]
    stored = split_folders(tmp_path / "parts", {"train": 20, "test": 10, "unused": 7})
    assert len(open_labelled(stored.root, size=8, channels=3, classes=3)) == 30


# -- torchvision's data sets ------------------------------------------------------------------------------------------


def test_a_folder_is_not_taken_for_the_inside_of_its_neighbour(tmp_path: Path) -> None:
    write_mnist(tmp_path, pixels(6, colours=1), np.arange(6), test=2)
    write_classes(tmp_path / "raw", pixels(9), np.arange(9) % 3)
    assert open_labelled(tmp_path / "raw", size=8, channels=3, classes=3).class_names == sorted(NAMES)


def test_download_says_which_of_several_data_sets_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is not fetched again: there is no network here, and nothing is written."""
    unchecked(monkeypatch)
    cifar(tmp_path, Download.CIFAR10), cifar(tmp_path, Download.CIFAR100)
    write_mnist(tmp_path, pixels(6, colours=1), np.arange(6), test=2)
    before = sorted(tmp_path.rglob("*"))
    for which, count in {Download.CIFAR10: 50, Download.CIFAR100: 50, Download.MNIST: 6}.items():
        settings: dict[str, Any] = {"size": 8, "channels": 1}
        assert len(open_labelled(tmp_path, classes=100, download=which, **settings)) == count
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("data")
    shutil.copytree(MNIST_FILES, root / "MNIST")
    yield root
    shutil.rmtree(root)


@with_mnist
def test_mnist_is_unpacked_when_asked_and_read_as_it_is(mnist: Path) -> None:
    source = open_labelled(mnist, size=28, channels=1, classes=10, download=Download.MNIST)
    splits = source.splits(0)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [54_000, 6_000, 10_000]
    assert splits.test == list(range(60_000, 70_000))
    assert source.labels[[0, 1, 2, 60_000, 60_001, 60_002]].tolist() == [5, 0, 4, 7, 2, 1]
    assert np.bincount(source.labels).tolist() == [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]
    mean = np.mean([source.images.pixels(i).mean() for i in range(0, 60_000, 7)]) / 255
    assert mean == pytest.approx(0.1307, abs=0.001)
    again = open_labelled(mnist, size=28, channels=1, classes=10)
    assert torch.equal(again[69_999].image, source[69_999].image) and again.splits(0) == splits
