"""What goes wrong with data, checkpoints and numbers once a command runs: one line, and nothing that is lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from command import SMALL, column, complaint, deqopt, empty_folder, succeeded, written
from deqopt import Task
from deqopt.errors import ProblemError
from tiny_task import Batch, Targets, Tiny

HERE = Path(__file__).stem
FIT = ("fit", "--config=small.yaml")
TINY = ("--solver.max_nfe=6", "--solver.step_size=0.3", "--trainer.limit_train_batches=2")


elsewhere = empty_folder(small=SMALL)


def nothing(path: Path) -> None:
    pass


# -- data -------------------------------------------------------------------------------------------------------------


def few(path: Path) -> None:
    np.savez(path / "a.npz", images=np.zeros((2, 9, 9), np.uint8))


DATA: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (nothing, "no/such", r"^no/such is missing: root should be a folder of images, .*\.npz"),
    "few": (few, "a.npz", r"cannot split a\.npz: it has 2 image\(s\), at least 3 are needed"),
}


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.filterwarnings("ignore:test without --ckpt_path:UserWarning")
def test_data(command: str, case: str, tmp_path: Path) -> None:
    make, root, pattern = DATA[case]
    make(tmp_path)
    message = complaint(command, "--config=small.yaml", "--task.root", root)
    assert re.search(pattern, message), message
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_folder_of_truncated_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    for index in range(12):
        path = tmp_path / "faces" / f"{index:02}.png"
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 30), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:400])
    message = complaint(*FIT, "--task.root=faces")
    expected = r"none of the 12 images of faces can be read: faces/00\.png is truncated or not an image.*: delete or"
    assert re.match(expected, message), message


# -- checkpoints ------------------------------------------------------------------------------------------------------


def plain(content: object) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path / "a.ckpt")


def of_task(class_path: str) -> Callable[[Path], object]:
    settings = {"task": {"class_path": class_path, "init_args": {}}}
    return plain({"state_dict": {}, "pytorch-lightning_version": "2.5.0", "hyper_parameters": settings})


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (nothing, "a.ckpt", r"^no checkpoint a\.ckpt; give the path of one, or 'last' or 'best' for the newest"),
    "no runs": (nothing, "last", r"^--ckpt_path last: no run below runs/celeba has a checkpoint last\.ckpt; give"),
    "no best": (nothing, "best", r"^--ckpt_path best: no run below runs/celeba has a checkpoint best\.ckpt; give"),
    "code": (plain({"a": complaint}), "a.ckpt", r"^a\.ckpt cannot be read as a checkpoint; it is damaged"),
    "list": (plain([1]), "a.ckpt", r"^a\.ckpt was not written by deqopt: it does not say which task it belongs to$"),
    "foreign": (plain({"state_dict": {}}), "a.ckpt", r"^a\.ckpt was not written by deqopt: it does not say which task"),
    "other task": (
        of_task("tiny_task.Tiny"),
        "a.ckpt",
        r"^a\.ckpt was trained on the task tiny_task\.Tiny, but deqopt_tasks\.celeba\.task\.CelebA was asked for: le",
    ),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_checkpoints(command: str, case: str, tmp_path: Path) -> None:
    make, name, pattern = CHECKPOINTS[case]
    make(tmp_path)
    message = complaint(command, "--config=small.yaml", "--ckpt_path", name)
    assert re.search(pattern, message) and len(message) < 400, message


def test_a_task_of_a_checkpoint_that_is_not_installed_is_named(tmp_path: Path) -> None:
    of_task("no_such.Task")(tmp_path)
    message = complaint("test", "--ckpt_path=a.ckpt")
    assert re.search(r"task 'no_such\.Task' cannot be imported: ModuleNotFoundError", message)


def test_a_damaged_checkpoint_stays_as_it_is(tmp_path: Path) -> None:
    run = succeeded("fit", "--task=tiny_task.Tiny", "--config=small.yaml", *TINY).run
    path = tmp_path / run / "checkpoints" / "last.ckpt"
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half)
    message = complaint("fit", "--task=tiny_task.Tiny", "--config=small.yaml", *TINY, "--ckpt_path", path)
    assert re.search(r"last\.ckpt cannot be read as a checkpoint; it is damaged", message)
    assert path.read_bytes() == half


# -- while it runs ----------------------------------------------------------------------------------------------------


class Spoiling(Targets):
    """All targets of a batch are NaN from the second epoch on."""

    epochs = 0

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self._samples, batch_size=self._batch_size, collate_fn=self._collate)  # type: ignore[arg-type]

    def _collate(self, samples: list[Batch]) -> Batch:
        batch = torch.utils.data.default_collate(samples)
        assert self.trainer is not None
        return {**batch, "y": batch["y"] * (torch.nan if self.trainer.current_epoch else 1)}


class Spoiled(Tiny):
    """A task whose data turns bad in the second epoch."""

    def datamodule(self) -> Targets:
        return Spoiling(self.y, self._batch_size)


@pytest.mark.filterwarnings("ignore:.*(left out|is skipped)")
def test_an_epoch_of_nan_ends_the_run_and_spares_its_checkpoints(tmp_path: Path) -> None:
    words = ("fit", f"--task={HERE}.Spoiled", "--config=small.yaml", *TINY)
    message = complaint(*words, "--trainer.max_epochs=3")
    assert re.search(
        r"all 4 samples of a batch hold NaN or infinite values, at training step 2: check the data", message
    )
    run = tmp_path / "runs" / "spoiled" / "version_0"
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4 and all(value.isfinite().all() for value in saved["state_dict"].values())
    assert len(column(run, "train/loss")) == 2 and column(run, "train/skipped") == [0, 0, 1]
    assert complaint(*words, "--trainer.max_epochs=3", "--ckpt_path=last") == message


@pytest.mark.filterwarnings("ignore:.*(left out|is skipped)")
def test_weights_that_diverge_end_the_run_with_advice() -> None:
    words = ("fit", "--task=tiny_task.Tiny", "--config=small.yaml", *TINY, "--model.optimization.lr=1e38")
    message = complaint(*words, "--model.optimization.algorithm=SGD", "--trainer.max_epochs=5")
    assert re.search(r"the weights have diverged\. Lower optimization\.lr, clip gradients", message), message


def test_what_lightning_refuses_once_it_has_the_data_is_one_line() -> None:
    message = complaint(*FIT, "--trainer.val_check_interval=1000")
    assert "`val_check_interval` (1000) must be less than or equal to the number of the training batches (3)" in message


@pytest.mark.parametrize("schedule", ["ONE_CYCLE", "COSINE", "CONSTANT"])
@pytest.mark.parametrize("more", [(), ("--trainer.max_time=00:00:00:01",)], ids=["without end", "by the clock"])
def test_a_schedule_that_ends_with_the_run_says_what_is_missing(schedule: str, more: tuple[str, ...]) -> None:
    chosen = f"--model.optimization.schedule={schedule}"
    words = (*FIT, "--task=tiny_task.Tiny", *TINY, chosen, "--trainer.max_epochs=-1", *more)
    if schedule != "CONSTANT":
        message = complaint(*words)
        assert f"the schedule {schedule} ends with the run" in message and "trainer.max_steps" in message
    elif more:
        succeeded(*words)


@pytest.mark.parametrize(
    ("root", "pattern"),
    [("taken", r"^\S*taken\S*: (Not a directory|File exists)$"), ("/proc/no/where", r"^/proc/no\S*: No such file")],
)
def test_a_place_that_cannot_be_written_is_named(root: str, pattern: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("precious")
    message = complaint(*FIT, "--trainer.default_root_dir", root)
    assert re.search(pattern, message), message
    assert (tmp_path / "taken").read_text() == "precious"


def test_a_bug_of_a_task_keeps_its_traceback() -> None:
    with pytest.raises(AssertionError):
        deqopt("fit", f"--task={HERE}.Buggy", "--config=small.yaml", *TINY)


class Buggy(Tiny):
    """A task with a bug."""

    def problem(self, batch: Batch) -> Any:
        raise AssertionError("a bug")


@pytest.mark.parametrize("lacking", ["outcome", "write_predictions"])
def test_a_task_that_lacks_what_is_asked_of_it_says_what_to_define(lacking: str) -> None:
    task = Tiny()
    with pytest.raises(ProblemError, match=rf"Tiny .*{lacking}\(\)"):
        getattr(Task, lacking)(task, *[None] * (3 if lacking == "write_predictions" else 2))


# -- what a task lacks or gets wrong ----------------------------------------------------------------------------------

FORGETFUL = """\
from tiny_task import Tiny
from deqopt.solvers import Tracking

class Forgetful(Tiny):
    {decorator}
    def default_solver(cls):
        return Tracking
"""


@pytest.mark.parametrize(
    ("decorator", "pattern"),
    [
        ("", r"forgetful0.Forgetful.*Forgetful.default_solver must be a class method.*write @classmethod above it"),
        ("@classmethod", r"what Forgetful.default_solver\(\) returns is the class Tracking itself.*Tracking\(\.\.\.\)"),
    ],
)
def test_defaults_that_a_task_gets_wrong(
    decorator: str, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"forgetful{len(decorator)}"
    written(tmp_path / f"{name}.py", FORGETFUL.format(decorator=decorator))
    monkeypatch.syspath_prepend(tmp_path)
    message = complaint("fit", f"--task={name}.Forgetful", *TINY)
    assert re.search(pattern, message), message


def test_a_precision_that_cannot_be_used_names_one_that_can() -> None:
    assert "use bf16-mixed" in complaint(
        "fit", "--task=tiny_task.Tiny", *TINY, "--trainer.precision=bf16-true", "--trainer.max_epochs=1"
    )


class Unpredicting(Tiny):
    """Has nothing to write."""

    write_predictions = Task.write_predictions


def test_predicting_with_a_task_that_writes_nothing_is_refused_before_its_data_is_asked_for() -> None:
    message = complaint("predict", f"--task={HERE}.Unpredicting", "--trainer.accelerator=cpu")
    assert message == "Unpredicting does not define write_predictions(), which predict needs"
