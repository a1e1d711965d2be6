"""Tiny labelled data sets, one of every layout that is read, and what should be found in them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deqopt.data import Download, ImageBatch, ImageDataModule, ImageSource, open_labelled

NAMES = ["bee", "ant", "cat"]
CIFAR = {
    Download.CIFAR10: ([f"data_batch_{k}" for k in range(1, 6)], "test_batch", "batches.meta", "label_names", "labels"),
    Download.CIFAR100: (["train"], "test", "meta", "fine_label_names", "fine_labels"),
}


@dataclass(frozen=True)
class Stored:
    """A data set on disk.

    Attributes:
        root: where it is.
        images, labels: what it holds, in the order of the indices; uint8 (N, H, W[, 3]).
        class_names: the names that it gives to its classes; fewer than three if it gives none.
        test, val: the numbers of images in official parts, which come last; 0 without them.
    """

    root: Path | None
    images: NDArray[Any]
    labels: NDArray[Any]
    class_names: list[str]
    test: int = 0
    val: int = 0


def pixels(count: int, seed: int = 0, side: int = 8, colours: int = 3) -> NDArray[np.uint8]:
    """Noise, with every value of a byte in it."""
    shape = (count, side, side, 3)[: 4 if colours == 3 else 3]
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def classes(count: int, seed: int = 0) -> NDArray[np.int64]:
    """Labels of three classes, all of which occur."""
    return np.random.default_rng(seed).permutation(np.arange(count) % 3)


def digits(folder: Path) -> Stored:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    data = load_digits()
    return Stored(None, data.images, data.target, [str(k) for k in range(10)])


def archive(folder: Path) -> Stored:
    images, labels = pixels(40), classes(40)
    np.savez(folder / "a.npz", images=images, labels=labels.astype(np.uint8))
    return Stored(folder / "a.npz", images, labels, [])


def archives(folder: Path) -> Stored:
    images, labels = pixels(50), classes(50)
    for name, part in {"train": slice(0, 40), "test": slice(40, 50)}.items():
        np.savez(folder / f"{name}.npz", images=images[part], labels=labels[part], classes=np.array(NAMES))
    return Stored(folder, images, labels, NAMES, test=10)


def write_classes(folder: Path, images: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.intp]:
    """One subfolder a class; returns the order in which they are found."""
    paths = [folder / NAMES[label] / f"{i:02d}.png" for i, label in enumerate(labels)]
    for path, image in zip(paths, images, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return np.array(sorted(range(len(paths)), key=lambda i: paths[i]))


def class_folders(folder: Path) -> Stored:
    images, labels = pixels(30), classes(30)
    order = write_classes(folder / "data", images, labels)
    return Stored(folder / "data", images[order], by_sorted_name(labels[order]), sorted(NAMES))


def by_sorted_name(labels: NDArray[Any]) -> NDArray[Any]:
    return np.array([sorted(NAMES).index(NAMES[label]) for label in labels])


def split_folders(folder: Path, sizes: dict[str, int]) -> Stored:
    images, labels = [], []
    for seed, (name, count) in enumerate(sizes.items()):
        order = write_classes(folder / name, pixels(count, seed), classes(count, seed))
        images.append(pixels(count, seed)[order])
        labels.append(by_sorted_name(classes(count, seed)[order]))
    (folder / "readme.txt").write_text("no image")
    stored = np.concatenate(images), np.concatenate(labels)
    return Stored(folder, *stored, sorted(NAMES), sizes.get("test", 0), sizes.get("val", 0))


def write_mnist(root: Path, images: NDArray[Any], labels: NDArray[Any], test: int) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    split = len(images) - test
    for name, part in {"train": slice(0, split), "t10k": slice(split, None)}.items():
        for kind, array in {"images-idx3": images[part], "labels-idx1": labels[part]}.items():
            sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
            content = bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()
            (raw / f"{name}-{kind}-ubyte").write_bytes(content)


def mnist(folder: Path) -> Stored:
    images, labels = pixels(50, colours=1), classes(50)
    write_mnist(folder, images, labels, 10)
    return Stored(folder, images, labels, [str(k) for k in range(10)], test=10)


def cifar(folder: Path, which: Download) -> Stored:
    """The layout of the authors; `unchecked` makes torchvision accept it."""
    trains, test, meta, names_key, labels_key = CIFAR[which]
    images, labels, names = pixels(50, side=32), classes(50), [f"class {k}" for k in range(10)]
    base = folder / which.value
    base.mkdir(parents=True)
    sizes = [40 // len(trains)] * len(trains)
    for name, part in zip([*trains, test], np.split(np.arange(50), np.cumsum(sizes)), strict=True):
        data = images[part].transpose(0, 3, 1, 2).reshape(len(part), -1)
        (base / name).write_bytes(pickle.dumps({"data": data, labels_key: labels[part].tolist()}))
    (base / meta).write_bytes(pickle.dumps({names_key: names}))
    return Stored(folder, images, labels, names, test=10)


def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision read a CIFAR that is not the authors', whose checksums it knows."""
    from torchvision import datasets  # type: ignore[import-untyped]

    for which, (trains, test, meta, names_key, _) in CIFAR.items():
        kind = getattr(datasets, which.name)
        monkeypatch.setattr(kind, "train_list", [[name, None] for name in trains])
        monkeypatch.setattr(kind, "test_list", [[test, None]])
        monkeypatch.setattr(kind, "meta", {"filename": meta, "key": names_key, "md5": None})


LAYOUTS: dict[str, Callable[[Path], Stored]] = {
    "digits": digits,
    "npz": archive,
    "train and test npz": archives,
    "class folders": class_folders,
    "train and test folders": lambda folder: split_folders(folder, {"train": 40, "test": 10}),
    "train, val and test folders": lambda folder: split_folders(folder, {"train": 20, "val": 6, "test": 9}),
    "MNIST": mnist,
    "CIFAR-10": lambda folder: cifar(folder, Download.CIFAR10),
    "CIFAR-100": lambda folder: cifar(folder, Download.CIFAR100),
}

# Since Python 3.12, forking a process that has threads (PyTorch's own) warns.
with_worker = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
AUGMENTED: dict[str, Any] = {"shift": 2, "flip": True}


def archive_of(folder: Path, count: int = 50) -> partial[ImageSource]:
    """Noise; the label of image i is i modulo 3."""
    np.savez(folder / f"{count}.npz", images=pixels(count), labels=np.arange(count) % 3)
    return partial(open_labelled, folder / f"{count}.npz", size=8, channels=3, classes=3)


def module_of(folder: Path, stage: str = "fit", **settings: Any) -> ImageDataModule:
    data = ImageDataModule(archive_of(folder), **{"batch_size": 8, **settings})
    data.prepare_data()
    data.setup(stage)
    return data


def whole(batches: Iterable[ImageBatch]) -> ImageBatch:
    return ImageBatch(*map(torch.cat, zip(*batches, strict=True)))


def originals(data: ImageDataModule, batch: ImageBatch) -> Tensor:
    return torch.stack([data.source[i].image for i in batch.index.tolist()])
