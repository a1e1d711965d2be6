"""What ``--ckpt_path`` stands for, and the settings that a checkpoint brings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from command import checkpoint, empty_folder, resolved, written

CELEBA = "deqopt_tasks.celeba.task.CelebA"
elsewhere = empty_folder()


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_brings_its_settings(command: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", CELEBA, size=12)
    config = resolved(command, "--ckpt_path", path, "--task.latent=5")
    assert config["task"]["class_path"] == CELEBA and config["ckpt_path"] == str(path)
    assert (config["task"]["init_args"]["size"], config["task"]["init_args"]["latent"]) == (12, 5)
    assert config["model"]["optimization"]["lr"] == 0.25


def in_run(root: Path, folder: str, version: int, name: str, age: int, task: str = CELEBA) -> Path:
    path = checkpoint(root / folder / f"version_{version}" / "checkpoints" / f"{name}.ckpt", task)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def runs(root: Path) -> dict[str, Path]:
    """Runs of two tasks: the newest is not the one of the highest number, and not all have both checkpoints."""
    return {
        "old": in_run(root, "celeba", 0, "last", 30),
        "new": in_run(root, "celeba", 1, "last", 10),
        "middle": in_run(root, "celeba", 2, "last", 20),
        "best": in_run(root, "celeba", 0, "best", 30),
        "other": in_run(root, "tiny", 0, "last", 0, task="tiny_task.Tiny"),
    }


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
