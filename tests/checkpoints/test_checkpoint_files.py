"""Checkpoints as files: a crash at any moment leaves one that loads, and no flipped bit goes unseen."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deqopt.checkpoints import Record, copy, previous, read, verified, write
from deqopt.checkpoints.plugin import VerifiedCheckpointIO
from deqopt.errors import CheckpointError

FLIPS = 400


def content(step: int = 1) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"weight": torch.arange(200.0) + step}, "said": "x" * 50}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["global_step"] == other["global_step"] and torch.equal(
        one["state_dict"]["weight"], other["state_dict"]["weight"]
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.ckpt"
    write(content(), path)
    return path


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "load",
    [
        read,
        lambda path: torch.load(path, weights_only=True),
        lambda path: torch.load(path, weights_only=True, mmap=True),
        VerifiedCheckpointIO().load_checkpoint,
    ],
    ids=["read", "torch", "mapped", "plugin"],
)
def test_what_is_written_is_read_by_all(load: Callable[[Path], Any], path: Path) -> None:
    assert same(load(path), content())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read(path)
    return str(error.value)


def test_every_flipped_bit_is_found(path: Path) -> None:
    data = path.read_bytes()
    bits = random.Random(0).sample(range(8 * len(data)), FLIPS)
    ends = [*range(64), *range(8 * len(data) - 8 * 110, 8 * len(data))]  # the first header, the record and the comment
    for bit in (*bits, *ends):
        path.write_bytes(flipped(data, bit))
        assert f"{path} cannot be read as a checkpoint; it is damaged" in refused(path), bit
    path.write_bytes(data)
    assert same(read(path), content())


def test_every_truncated_or_longer_file_is_refused(path: Path) -> None:
    data = path.read_bytes()
    sizes = {0, 1, 21, 22, 23, len(data) // 2, len(data) - 79, len(data) - 78, len(data) - 1}
    for size in sizes | set(random.Random(0).sample(range(len(data)), 50)):
        path.write_bytes(data[:size])
        assert "cannot be read as a checkpoint; it is damaged" in refused(path), size
    path.write_bytes(data + b"\0")
    refused(path)
    path.write_bytes(data + data)
    refused(path)


def test_the_weights_of_a_file_without_digest_are_checked_too(tmp_path: Path) -> None:
    """A file of torch.save itself, as earlier versions left them."""
    path = tmp_path / "old.ckpt"
    torch.save(content(), path)
    assert same(read(path), content())
    data = path.read_bytes()
    weights = data.index(bytes(content()["state_dict"]["weight"].numpy().tobytes()))
    for byte in range(weights, weights + 800, 7):
        path.write_bytes(flipped(data, 8 * byte + byte % 8))
        assert "it is damaged" in refused(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(compression: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", b"\0" * 100000)
    assert compression == zipfile.ZIP_STORED or path.stat().st_size < 1000
    assert "cannot be read as a checkpoint" in refused(path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: None], ids=["folder", "pipe", "nothing"])
def test_what_is_no_file_is_no_checkpoint(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "a.ckpt")
    assert refused(tmp_path / "a.ckpt").startswith(f"no checkpoint {tmp_path / 'a.ckpt'}; give the path of one")


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    write({**content(), "code": Path("x")}, tmp_path / "a.ckpt")
    assert "cannot be read as a checkpoint" in refused(tmp_path / "a.ckpt")


# -- writing ----------------------------------------------------------------------------------------------------------


def refusing(code: int) -> Callable[..., None]:
    def call(*args: Any, **settings: Any) -> None:
        raise OSError(code, os.strerror(code))

    return call


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("links", [True, False])
def test_the_former_one_is_kept(links: bool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    for step in (2, 3):
        write(content(step), path)
        assert same(read(path), content(step)) and same(read(previous(path)), content(step - 1))
    assert names(path.parent) == {"last.ckpt", "last.previous.ckpt"}


CALLS = ["os.fsync", "pathlib.Path.open", "pathlib.Path.replace"]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_disk_that_refuses_leaves_the_former_file(
    code: int, call: str, links: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(content(2), path)
    with monkeypatch.context() as patch:
        if not links:
            patch.setattr(os, "link", refusing(errno.EPERM))
        patch.setattr(call, refusing(code))
        with pytest.raises(OSError) as error:
            write(content(3), path)
    assert error.value.errno == code
    assert same(read(path), content(2)) and names(path.parent) <= {"last.ckpt", "last.previous.ckpt"}
    write(content(4), path)
    assert same(read(path), content(4)) and same(read(previous(path)), content(2))


def test_a_file_that_grows_beyond_what_is_allowed_is_removed(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError) as error:
            write(content(2), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert same(read(path), content()) and names(path.parent) == {"last.ckpt"}


class Power:
    """Kills this process at the n-th call of the operating system that writing makes."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **settings: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **settings)

        return counted


def killed_after(calls: int, links: bool, target: Path) -> bool:
    """Write the third state in a process of its own; whether it was killed before the end."""
    child = os.fork()
    if child == 0:
        try:
            power = Power(calls)
            os.link = power.after(os.link) if links else refusing(errno.EPERM)
            for place, name in ((os, "fsync"), (os, "open"), (Path, "open"), (Path, "replace"), (Path, "unlink")):
                setattr(place, name, power.after(getattr(place, name)))
            write(content(3), target)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("links", [True, False])
def test_a_process_killed_at_any_moment_leaves_a_file_that_loads(links: bool, path: Path) -> None:
    """The newest of both files is the former state or the new one; with hard links last.ckpt is always there."""
    seen = set()
    for calls in range(40):
        folder = path.parent.with_name(f"{links}_{calls}")
        target = folder / "last.ckpt"
        write(content(1), target)
        write(content(2), target)
        killed = killed_after(calls, links, target)
        left = target if target.is_file() or links else previous(target)
        step = read(left)["global_step"]
        assert step in (2, 3) and (killed or step == 3), (calls, step)
        seen.add((killed, step))
        if not killed:
            break
        write(content(4), target)
        assert read(target)["global_step"] == 4 and names(folder) == {"last.ckpt", "last.previous.ckpt"}
    assert seen == {(True, 2), (True, 3), (False, 3)}


def test_a_copy_is_the_same_bytes_and_a_damaged_file_is_not_copied(path: Path, tmp_path: Path) -> None:
    copy(path, tmp_path / "copy.ckpt")
    assert (tmp_path / "copy.ckpt").read_bytes() == path.read_bytes() == verified(path)
    path.write_bytes(flipped(path.read_bytes(), 3000))
    with pytest.raises(CheckpointError):
        copy(path, tmp_path / "copy.ckpt")
    assert same(read(tmp_path / "copy.ckpt"), content())


# -- what a checkpoint says about itself ------------------------------------------------------------------------------


def scored(score: Any, best: Any) -> dict[str, Any]:
    state = {"monitor": "val/loss", "current_score": score, "best_model_score": best}
    return {"global_step": 7, "callbacks": {"Other": {"monitor": "no"}, "RunCheckpoint{'mode': 'min'}": state}}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (scored(torch.tensor(0.5), torch.tensor(0.25)), Record(7, "val/loss", 0.5, 0.25)),
        (scored(torch.tensor(torch.nan), None), Record(7, "val/loss", None, None)),
        (scored("text", torch.zeros(3)), Record(7, "val/loss", None, None)),
        ({"global_step": "7", "callbacks": {"RunCheckpoint": [1]}}, Record(None, None, None, None)),
        ([1], Record(None, None, None, None)),
        (Tensor(), Record(None, None, None, None)),
    ],
    ids=str,
)
def test_records_are_read_from_whatever_is_there(written: Any, expected: Record) -> None:
    assert Record.of(written) == expected


def test_a_record_in_words() -> None:
    assert str(Record(7, "val/loss", 0.123456789, 0.1)) == "step 7, val/loss 0.123457"
    assert str(Record(None, None, None, None)) == "of an unknown step"
