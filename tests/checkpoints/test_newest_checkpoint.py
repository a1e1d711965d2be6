"""Which file ``--ckpt_path last`` and ``best`` stand for, and what is said about it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from command import TINY, checkpoint, column, resolved, succeeded, user_folder, written
from deqopt.checkpoints import Record, previous, read, write
from deqopt.command_line.checkpoints import newest_checkpoint
from deqopt.errors import CheckpointError

CELEBA = "deqopt_tasks.celeba.task.CelebA"
folder = user_folder(TINY)


def in_run(folder: Path, version: int, name: str) -> Path:
    return folder / f"version_{version}" / "checkpoints" / f"{name}.ckpt"


def aged(path: Path, seconds: int) -> Path:
    os.utime(path, (1e9 - seconds, 1e9 - seconds))
    return path


def kept(root: Path, version: int, name: str, age: int, step: int = 1, score: float | None = None) -> Path:
    """A checkpoint of a run, written so many seconds ago."""
    path = in_run(root / "task", version, name)
    state: dict[str, Any] = {"monitor": "val/loss", "current_score": score, "best_model_score": score}
    write({"global_step": step, "callbacks": {"RunCheckpoint{}": state}}, path)
    previous(path).unlink(missing_ok=True)
    return aged(path, age)


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


# -- on the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_brings_its_settings(command: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", CELEBA, size=12)
    config = resolved(command, "--ckpt_path", path, "--task.latent=5")
    assert config["task"]["class_path"] == CELEBA and config["ckpt_path"] == str(path)
    assert (config["task"]["init_args"]["size"], config["task"]["init_args"]["latent"]) == (12, 5)
    assert config["model"]["optimization"]["lr"] == 0.25


def runs(root: Path) -> dict[str, Path]:
    """Runs of two tasks: the newest is not the one of the highest number, and not all have both checkpoints."""
    places = {"old": (0, "last", 30), "new": (1, "last", 10), "middle": (2, "last", 20), "best": (0, "best", 30)}
    found = {}
    for name, (version, kind, age) in places.items():
        found[name] = aged(checkpoint(in_run(root / "celeba", version, kind), CELEBA), age)
    other = checkpoint(in_run(root / "tiny", 0, "last"), "tiny_task.Tiny")
    return {**found, "other": aged(other, 0)}


FINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "last of the task": (("--task", "celeba", "--ckpt_path", "last"), "new"),
    "best of the task": (("--task", "celeba", "--ckpt_path=best"), "best"),
    "last of all": (("--ckpt_path", "last"), "other"),
    "best of all": (("--ckpt_path", "best"), "best"),
    "last of another": (("--task=tiny_task.Tiny", "--ckpt_path=last"), "other"),
}


@pytest.mark.parametrize("case", FINDS)
@pytest.mark.parametrize("place", ["the default", "an option", "a configuration", "the environment", "absolute"])
def test_last_and_best_are_those_of_the_newest_run_that_has_one(
    case: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, expected = FINDS[case]
    root = tmp_path / ("runs" if place == "the default" else "[kept] elsewhere")
    there = runs(root)
    name = str(root if place == "absolute" else root.relative_to(tmp_path))
    more: tuple[object, ...] = ()
    if place in ("an option", "absolute"):
        more = ("--trainer.default_root_dir", name)
    elif place == "a configuration":
        more = ("--config", written(tmp_path / "a.yaml", {"trainer": {"default_root_dir": name}}))
    elif place == "the environment":
        monkeypatch.setenv("DEQOPT_TRAINER__DEFAULT_ROOT_DIR", f"'{name}'")
    config = resolved("test", *words, *more)
    assert (tmp_path / config["ckpt_path"]).samefile(there[expected])


def test_the_checkpoint_may_stand_in_a_configuration(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", CELEBA, size=12)
    config = written(tmp_path / "a.yaml", {"ckpt_path": str(path)})
    assert resolved("predict", "--config", config)["task"]["init_args"]["size"] == 12
    other = checkpoint(tmp_path / "b.ckpt", CELEBA, size=14)
    assert resolved("predict", "--config", config, "--ckpt_path", other)["task"]["init_args"]["size"] == 14
