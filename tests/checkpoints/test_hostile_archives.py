"""Archives and pickles that were made to do harm: they run nothing, take little memory, and are named in one line."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from deqopt_tasks.denoising.data import DamagedImages
from deqopt_tasks.denoising.operators import Denoising

from deqopt.data import Download, ImageArchive, npz, open_images, open_labelled
from hostile_files import Marks, refused
from labelled_sources import CIFAR, mnist


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


def nested(depth: int) -> bytes:
    """A zip file in a zip file, and so on."""
    content = b"the inmost"
    for _ in range(depth):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("images.npy", content)
        content = buffer.getvalue()
    return content


BAD, NO_SIZE, UNKNOWN = "is damaged", r"damaged \(its items have no size", "packed by an unknown method: write .* anew"
SANE = npy("(10, 1, 1)")
CONTENTS: dict[str, tuple[bytes, str]] = {
    "58 TiB": (npy("(8000000, 1000, 8000)"), r"damaged \(it claims 58\.2 TiB, but holds 10 bytes"),
    "digits": (npy(f"({'9' * 5001},)"), BAD),
    "many digits": (npy(f"({'9' * 4001}, {'9' * 4001})"), BAD),
    "beyond 64 bits": (npy(f"({2**63}, 2)"), r"damaged \(it claims 16 EiB"),
    "wraps around": (npy(f"({2**32}, {2**32})"), r"damaged \(it claims 16 EiB"),
    "negative": (npy("(-1, 8, 8)"), NO_SIZE),
    "no size": (npy(f"({10**15},)", "'<U0'"), NO_SIZE),
    "void": (npy(f"({10**15},)", "'|V0'"), NO_SIZE),
    "brackets": (npy("(" * 9000), BAD),
    "signs": (npy("-" * 9000 + "1"), BAD),
    "a call": (npy("__import__('os').mkdir('ran')"), BAD),
    "names": (npy("(1,)", more=", 'x': 1"), BAD),
    "long header": (npy("(1,)" + " " * 20_000, version=2), BAD),
    "header of 4 GiB": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", BAD),
    "version": (npy("(1,)", version=9), BAD),
    "type": (npy("(1,)", "'nonsense'"), BAD),
    "type of lists": (npy("(1,)", "[" * 500 + "]" * 500), BAD),
    "large items": (npy("(1, 1, 1)", "'|S2000000000'"), r"damaged \(it claims 1\.86 GiB"),
    "nested items": (npy("(1,)", "('|u1', (60000, 60000))"), BAD),
    "objects": (npy("(1, 1, 1)", "'|O'", pickle.dumps(Marks(Path("ran")))), "Python objects"),
    "fields": (npy("(1,)", "[('a', '|O')]", pickle.dumps(Marks(Path("ran")))), "Python objects"),
    "a pickle": (pickle.dumps(Marks(Path("ran"))), BAD),
    "a zip": (nested(8), BAD),
    "empty": (b"", BAD),
}
"""What stands in place of an array."""
CLAIMS: dict[str, tuple[bytes, int, dict[str, int], str]] = {
    "header of zeros": (b"\x93NUMPY\x02\x00\x00\x00\x00\x02" + bytes(2**25), zipfile.ZIP_DEFLATED, {}, BAD),
    "inflated": (
        npy("(4096, 32, 32)", content=bytes(2**22)),
        zipfile.ZIP_DEFLATED,
        {},
        r"is 4 MiB packed into \S+ KiB: write so uniform an array with np\.savez, which does not pack$",
    ),
    "a terabyte": (
        npy("(1048576, 1024, 1024)"),
        zipfile.ZIP_DEFLATED,
        {"file_size": 2**40 + 99},
        r"is 1 TiB packed into",
    ),
    "bzip2": (SANE, zipfile.ZIP_BZIP2, {}, UNKNOWN),
    "lzma": (SANE, zipfile.ZIP_LZMA, {}, UNKNOWN),
    "method": (SANE, zipfile.ZIP_STORED, {"compress_type": 97}, UNKNOWN),
    "encrypted": (SANE, zipfile.ZIP_STORED, {"flag_bits": 1}, BAD),
    "checksum": (SANE, zipfile.ZIP_STORED, {"CRC": 1}, BAD),
    "elsewhere": (SANE, zipfile.ZIP_STORED, {"header_offset": 2**20}, BAD),
}
"""How it is packed, and what the directory claims."""
ARCHIVES = CLAIMS | {name: (content, zipfile.ZIP_STORED, {}, said) for name, (content, said) in CONTENTS.items()}
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
    content, method, claims, pattern = ARCHIVES[case]
    for name in ("train.npz", "test.npz"):
        zipped(tmp_path / name, content, method, **claims)
    with refused(pattern):
        OPENERS[opener](tmp_path / "train.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.npz", "train.npz"], "something ran"


@pytest.mark.parametrize("case", ["58 TiB", "no size", "negative", "inflated", "a zip", "bzip2"])
def test_names_of_classes_are_read_with_the_same_care(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz, "ALWAYS_INFLATED", 2**21)
    content, method, claims, pattern = ARCHIVES[case]
    zipped(tmp_path / "bad.npz", content, method, **claims)
    np.savez(tmp_path / "good.npz", images=np.zeros((3, 8, 8), np.uint8), labels=np.arange(3))
    with zipfile.ZipFile(tmp_path / "bad.npz") as bad, zipfile.ZipFile(tmp_path / "good.npz", "a") as good:
        good.writestr(bad.getinfo("classes.npy"), bad.read("classes.npy"))
    with refused(rf"'classes' of \S+good\.npz.*{pattern}"):
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
