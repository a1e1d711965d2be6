"""Which file ``--ckpt_path last`` and ``best`` stand for, and what is said about it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from command import TINY, column, succeeded, user_folder
from deqopt.checkpoints import Record, previous, read, write
from deqopt.command_line.checkpoints import newest_checkpoint
from deqopt.errors import CheckpointError

folder = user_folder(TINY)


def kept(root: Path, version: int, name: str, age: int, step: int = 1, score: float | None = None) -> Path:
    """A checkpoint of a run, written so many seconds ago."""
    path = root / "task" / f"version_{version}" / "checkpoints" / f"{name}.ckpt"
    state: dict[str, Any] = {"monitor": "val/loss", "current_score": score, "best_model_score": score}
    write({"global_step": step, "callbacks": {"RunCheckpoint{}": state}}, path)
    previous(path).unlink(missing_ok=True)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def damage(path: Path) -> None:
    """Flip a bit, and leave the times as they are."""
    times = path.stat().st_mtime
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    os.utime(path, (times, times))


@pytest.mark.parametrize("name", ["last", "best"])
def test_the_newest_that_can_be_read_is_taken_and_said(name: str, tmp_path: Path) -> None:
    """First the file itself, then the one before it, then those of other runs."""
    order = [
        kept(tmp_path, 3, name, 0, 30, 0.125),
        kept(tmp_path, 3, f"{name}.previous", 10, 20),
        kept(tmp_path, 1, name, 20, 10, 0.5),
        kept(tmp_path, 2, name, 30, 5),
    ]
    said = ["step 30, val/loss 0.125", "step 20", "step 10, val/loss 0.5", "step 5"]
    for place, (path, words) in enumerate(zip(order, said, strict=True)):
        chosen = newest_checkpoint(tmp_path, "some.Task", name)
        assert chosen.path == path and chosen.path == newest_checkpoint(tmp_path, None, name).path
        newer = f"{order[0]} cannot be read as a checkpoint; it is damaged: not what was written; " if place else ""
        assert chosen.remark == f"{newer}--ckpt_path {name} is {path}, {words}"
        damage(path)
    with pytest.raises(CheckpointError) as error:
        newest_checkpoint(tmp_path, "some.Task", name)
    assert str(error.value).startswith(f"{order[0]} cannot be read as a checkpoint; it is damaged")


@pytest.mark.parametrize("left", ["nothing", "empty", "part", "folder"])
def test_what_a_crash_leaves_is_passed_over(left: str, tmp_path: Path) -> None:
    before = kept(tmp_path, 0, "last.previous", 5)
    last = before.with_name("last.ckpt")
    if left == "empty":
        last.touch()
    elif left == "part":
        last.write_bytes(before.read_bytes()[:100])
    elif left == "folder":
        last.mkdir()
    last.with_name("last.ckpt.part").write_bytes(b"half")
    chosen = newest_checkpoint(tmp_path, "some.Task", "last")
    assert chosen.path == before and (str(last) in chosen.remark) == (left != "nothing")


def test_of_two_files_of_the_same_moment_the_last_is_taken(tmp_path: Path) -> None:
    kept(tmp_path, 0, "last.previous", 5)
    last = kept(tmp_path, 0, "last", 5)
    assert newest_checkpoint(tmp_path, "some.Task", "last").path == last


def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before(folder: Path) -> None:
    root = f"--trainer.default_root_dir={folder / 'damaged'}"
    run = succeeded("fit", "--config=small.yaml", root).run
    path = run / "checkpoints" / "last.ckpt"
    assert read(path)["global_step"] == 6
    damage(path)
    broken = path.read_bytes()
    answer = succeeded("fit", "--config=small.yaml", root, "--ckpt_path=last")
    (remark,) = [line for line in answer.output.splitlines() if "--ckpt_path last is" in line]
    assert remark.startswith(f"{path} cannot be read as a checkpoint; it is damaged")
    assert f"--ckpt_path last is {previous(path)}, step 3, val/loss " in remark
    assert path.read_bytes() == broken and column(answer.run, "epoch")[0] == 1
    assert read(answer.run / "checkpoints" / "last.ckpt")["global_step"] == 6


def test_the_best_of_a_run_that_went_on_is_the_best_of_both(folder: Path) -> None:
    """The second part becomes worse: its learning rate is far too large."""
    root = f"--trainer.default_root_dir={folder / 'worse'}"
    first = succeeded("fit", "--config=small.yaml", root, "--model.optimization.schedule=CONSTANT").run
    words = ("--ckpt_path=last", "--trainer.max_epochs=3", "--model.optimization.lr=10")
    second = succeeded("fit", "--config=small.yaml", root, *words).run
    scores = column(first, "val/loss")
    assert column(second, "val/loss")[-1] > min(scores)
    best = second / "checkpoints" / "best.ckpt"
    assert Record.of(read(best)).score == pytest.approx(min(scores), rel=1e-5)
    answer = succeeded("test", "--config=small.yaml", root, "--ckpt_path=best")
    assert f"--ckpt_path best is {best}, step {3 * (1 + scores.index(min(scores)))}, val/loss" in answer.output
    assert torch.load(best, weights_only=True)["epoch"] == scores.index(min(scores))
