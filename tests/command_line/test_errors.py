"""Bad input on the command line: every case ends in one line that says what was wrong, where, what would be right."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from command import SMALL, column, complaint, deqopt, succeeded, written
from deqopt import Task
from deqopt.errors import ProblemError
from deqopt.feasible import L2Ball, LinfBall
from tiny_task import Batch, Targets, Tiny

HERE = Path(__file__).stem


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every case has an empty folder for itself, with one good configuration in it."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("DEQOPT_")]:
        monkeypatch.delenv(name)
    return written(tmp_path / "small.yaml", SMALL)


# -- options ----------------------------------------------------------------------------------------------------------

FIT = ("fit", "--config=small.yaml")
OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "no task": (
        ("fit",),
        r"no task is chosen: give --task NAME, one of those installed \(.*celeba.*\) or a class path",
    ),
    "no task but options": (("fit", "--task.size=3"), r"no task is chosen: give --task NAME"),
    "unknown task": (("fit", "--task", "celebra"), r"unknown task 'celebra': did you mean 'celeba'\? Known tasks: "),
    "unknown solver": ((*FIT, "--solver=Trakking"), r"unknown solver 'Trakking': did you mean 'Tracking'\?"),
    "unknown adjoint": ((*FIT, "--adjoint", "Env"), r"unknown adjoint 'Env'\. Known adjoints: .*Envelope"),
    "no module": (
        ("fit", "--task=no_such.Task"),
        r"task 'no_such\.Task' cannot be imported: ModuleNotFoundError: No mod",
    ),
    "no class": (("fit", "--task=os.path"), r"task 'os\.path' is no class but an object of type module$"),
    "not a task": (
        ("fit", "--task=torch.nn.Linear"),
        r"^--task: Import path torch\.nn\.\S*Linear does not .* subclass of Task$",
    ),
    "task as solver": (
        (*FIT, "--solver=tiny_task.Tiny"),
        r"^--solver: Import path tiny_task\.Tiny does not .* JointSolver$",
    ),
    "help on no task": (("fit", "--task.help", "torch.nn.Linear"), r'"torch\.nn\.\S*Linear" is not a subclass of Task'),
    "help on what": (("fit", "--task.help"), r"^--task\.help needs a name, as in --task\.help NAME$"),
    "task without name": (("fit", "--task"), r"^--task needs a value, a name$"),
    "unknown argument": ((*FIT, "--task.sise", "8"), r"^unknown option --task\.sise: did you mean --task\.size\?$"),
    "strange argument": ((*FIT, "--solver.zzz", "8"), r"^unknown option --solver\.zzz: Tracking has max_nfe, tol, "),
    "null where a value is needed": (
        (*FIT, "--task.size=null"),
        r"^--task\.size: null is no value of it; leave it out for its default$",
    ),
    "null within a solver": (
        (*FIT, "--solver=Bilevel", "--solver.max_nfe=null"),
        r"^--solver\.max_nfe: null is no value of it",
    ),
    "option of a class that is not chosen": (
        ("fit", "--task=cifar", "--task.loss.beta=3"),
        r"^--task\.loss: Expected an instantiatable class, but deqopt_tasks\.\S*TrainingLoss is abstract$",
    ),
    "argument below one": ((*FIT, "--task.latent.x=8"), r"^task\.latent in small\.yaml: expected int, got .*'x'"),
    "unknown part of a solver": (
        (*FIT, "--solver=Bilevel", "--solver.descent=Adamm"),
        r"^--solver\.descent: there is no 'Adamm' to choose: give the name of a class, or its path$",
    ),
    "of another solver": (
        (*FIT, "--solver.history_size=8"),
        r"^unknown option --solver\.history_size: Tracking has max_nfe, tol",
    ),
    "unknown option": ((*FIT, "--trainer.max_epoch=8"), r"--trainer\.max_epoch: did you mean --trainer\.max_epochs\?$"),
    "strange option": ((*FIT, "--qwerty", "8"), r"^unknown option --qwerty: --help lists all$"),
    "stray word": ((*FIT, "celeba"), r"^unexpected argument 'celeba'$"),
    "option without value": ((*FIT, "--ckpt_path"), r"--ckpt_path: expected one argument$"),
    "linked": ((*FIT, "--model.task=celeba"), r"^--model\.task cannot be set: give --task$"),
    "text as number": ((*FIT, "--trainer.max_epochs=x"), r"^--trainer\.max_epochs: expected int or null, got 'x'$"),
    "text as argument": ((*FIT, "--task.size", "x"), r"^--task\.size: expected int, got 'x'$"),
    "fraction": ((*FIT, "--task.resolution=2.5"), r"^--task\.resolution: expected int or null, got '2\.5'$"),
    "number as list": ((*FIT, "--task.widths=3"), r"^--task\.widths: expected list, got '3'$"),
    "text in list": ((*FIT, "--task.widths=[4, a]"), r"^--task\.widths: expected int, got 'a'$"),
    "word as truth": ((*FIT, "--task.download=maybe"), r"^--task\.download: expected bool, got 'maybe'$"),
    "deep text": ((*FIT, "--model.optimization.lr=x"), r"^--model\.optimization\.lr: expected float, got 'x'$"),
    "unknown choice": (
        (*FIT, "--model.optimization.schedule=FOO"),
        r"^Optimization: schedule must be CONSTANT, COSINE, ONE_CYCLE or the path of .* LRScheduler, got 'FOO'$",
    ),
    "unknown mode": ((*FIT, "--checkpoint.mode=low"), r"^--checkpoint\.mode: expected 'min', 'max', got 'low'$"),
    "one for a list": (
        (*FIT, "--model.regularizers=JacobianPenalty"),
        r"--model\.regularizers: expected list or null, got 'JacobianPenalty'; --model\.regularizers\+ VALUE adds one$",
    ),
    "unknown accelerator": (
        (*FIT, "--trainer.accelerator=abacus"),
        r"invalid accelerator name: `accelerator='abacus'`.*cpu",
    ),
    "no devices": ((*FIT, "--trainer.devices=0"), r"devices='0'.* not a valid input using cpu"),
    "epochs": (
        (*FIT, "--trainer.max_epochs=-5"),
        r"`max_epochs` must be a non-negative integer or -1\. You passed in -5",
    ),
    "strategy": ((*FIT, "--trainer.strategy=abacus"), r"invalid strategy name: `strategy='abacus'`"),
    "seed": ((*FIT, "--seed_everything=-1"), r"^-1 is not in bounds, .* from 0 to 4294967295$"),
    "no seed": ((*FIT, "--seed_everything=x"), r"^--seed_everything: expected int, got 'x'$"),
    "budget": ((*FIT, "--solver.max_nfe=0"), r"^max_nfe must be at least 1, got 0$"),
    "learning rate": ((*FIT, "--model.optimization.lr=-1"), r"lr must be larger than 0, got -1\.0$"),
    "penalty": (
        (*FIT, "--model.regularizers+=deqopt.regularizers.JacobianPenalty", "--model.regularizers.weight=-1"),
        r"^JacobianPenalty: weight must be 0 or larger.*got -1\.0",
    ),
    "batch size": ((*FIT, "--task.batch_size=0"), r"^batch_size must be at least 1, got 0$"),
    "workers": ((*FIT, "--task.workers=-1"), r"^workers must be 0 or larger, got -1$"),
    "latent": ((*FIT, "--task.latent=0"), r"^celeba: latent and components must be at least 1 .* got 0, 10"),
    "size": ((*FIT, "--task.size=15", "--task.resolution=8"), r"size must be a multiple of the resolution 8, got 15$"),
    "resolution": ((*FIT, "--task.resolution=0"), r"resolution .* must be a multiple of 2; got 0$"),
    "widths": ((*FIT, "--task.widths=[]"), r"must be a list of positive numbers, one a branch, got \[\]$"),
    "channels": ((*FIT, "--task.image_channels=2"), r"2 channels: it should be 1 or 3$"),
    "split seed": ((*FIT, "--task.split_seed=-1"), r"with seed -1: it should be 0 to 4294967295$"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str, tmp_path: Path) -> None:
    words, pattern = OPTIONS[case]
    before = set(tmp_path.iterdir())
    message = complaint(*words)
    assert re.search(pattern, message) and len(message) < 300, message
    assert set(tmp_path.iterdir()) == before


# -- configurations and the environment -------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[object, str]] = {
    "not YAML": ("task: [celeba\n", r"--config: bad\.yaml: not valid YAML: line 2: expected ',' or '\]'"),
    "tabs": ("task:\n\tcelebra", r"--config: bad\.yaml: not valid YAML: line 2: found character '\\t'"),
    "binary": ("\x00", r"--config: bad\.yaml: not valid YAML: "),
    "list": ("- task\n", r"--config: bad\.yaml should hold keys and values, not a list$"),
    "text": ("celeba", r"--config: bad\.yaml should hold keys and values, not 'celeba'$"),
    "numbers as keys": ("1: 2", r"--config: bad\.yaml should hold keys and values, not a mapping whose keys"),
    "list below fit": ({"fit": [1]}, r"^fit in bad\.yaml should hold keys and values, not a list$"),
    "unknown section": (
        {"trainr": {"max_epochs": 3}},
        r"^unknown option trainr\.max_epochs in bad\.yaml: did you mean tr",
    ),
    "unknown key": (
        {"trainer": {"max_epoch": 3}},
        r"trainer\.max_epoch in bad\.yaml: did you mean trainer\.max_epochs\?",
    ),
    "another command": ({"tset": {"trainer": {"max_epochs": 3}}}, r"^unknown option tset.* in bad\.yaml"),
    "unknown argument": (
        {"task": {"class_path": "celeba", "init_args": {"sise": 3}}},
        r"^unknown option task\.sise in bad\.yaml: did you mean task\.size\?$",
    ),
    "unknown part": (
        {"solver": {"class_path": "Tracking", "init_arg": {"inner": 3}}},
        r"^unknown key solver\.init_arg in bad\.yaml: did you mean init_args\?$",
    ),
    "no init_args": ({"solver": {"inner": 3}}, r"^unknown key solver\.inner in bad\.yaml: .* belong below init_args$"),
    "unknown of a penalty": (
        {"model": {"regularizers": [{"class_path": "JacobianPenalty", "init_args": {"weigt": 3}}]}},
        r"^unknown option model\.regularizers\.weigt in bad\.yaml: did you mean model\.regularizers\.weight\?$",
    ),
    "unknown task": ({"task": "celebra"}, r"unknown task 'celebra': did you mean 'celeba'\?"),
    "task as number": ({"task": 3}, r"^task in bad\.yaml should be a name, or class_path and init_args, not 3$"),
    "section as number": ({"trainer": 3}, r"^trainer in bad\.yaml should hold keys and values, not 3$"),
    "type": ({"trainer": {"max_epochs": "x"}}, r"^trainer\.max_epochs in bad\.yaml: expected int or null, got 'x'$"),
    "type of an argument": (
        {"task": {"class_path": "celeba", "init_args": {"size": "x"}}},
        r"^task\.size in bad\.yaml: expected int, got 'x'$",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations(case: str, tmp_path: Path) -> None:
    settings, pattern = CONFIGS[case]
    written(tmp_path / "bad.yaml", settings)
    message = complaint(*FIT, "--config", "bad.yaml")
    assert re.search(pattern, message), message


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("no.yaml", r"^--config: there is no file 'no\.yaml'; give a YAML file such as "),
        (".", r"^--config: there is no file '\.'"),
        ("", r"^--config: there is no file ''"),
        (None, r"^--config needs a value, a YAML file$"),
    ],
)
def test_configurations_that_are_not_there(name: str | None, pattern: str) -> None:
    message = complaint("fit", "--task=celeba", "--config", *([] if name is None else [name]))
    assert re.search(pattern, message), message


VARIABLES: dict[str, tuple[str, str]] = {
    "TRAINER__MAX_EPOCH": (
        "3",
        r"trainer\.max_epoch in the environment variable DEQOPT_TRAINER__MAX_EPOCH: did you mean",
    ),
    "TRAINER__MAX_EPOCHS": (
        "x",
        r"trainer\.max_epochs in the environment variable DEQOPT_.*: expected int or null, got",
    ),
    "TASK__SISE": (
        "3",
        r"unknown option task\.sise in the environment variable DEQOPT_TASK__SISE: did you mean task\.si",
    ),
    "TRAINER": ("3", r"^trainer in the environment variable DEQOPT_TRAINER should hold keys and values, not 3$"),
    "TASK": ("celebra", r"unknown task 'celebra': did you mean 'celeba'"),
    "TASK__WIDTHS": ("[3", r"the value in the environment variable DEQOPT_TASK__WIDTHS: not valid YAML: line 1"),
}


@pytest.mark.parametrize("name", VARIABLES)
def test_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, pattern = VARIABLES[name]
    monkeypatch.setenv(f"DEQOPT_{name}", value)
    message = complaint("fit", "--task=celeba")
    assert re.search(pattern, message), message


# -- data -------------------------------------------------------------------------------------------------------------

IMAGES = np.zeros((5, 9, 9), np.uint8)


def npz(**arrays: Any) -> Callable[[Path], object]:
    return lambda path: np.savez(path / "a.npz", **arrays)


def nothing(path: Path) -> None:
    pass


DATA: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (nothing, "no/such", r"^no/such is missing: root should be a folder of images, .*\.npz"),
    "empty": (
        lambda path: (path / "a").mkdir(),
        "a",
        r"^a and its subfolders hold no images: their names should end in",
    ),
    "other file": (
        lambda path: (path / "a.csv").write_text("1"),
        "a.csv",
        r"a\.csv is a file of another kind: root sho",
    ),
    "no npz": (lambda path: (path / "a.npz").write_text("1"), "a.npz", r"a\.npz is not an \.npz file: .*np\.savez"),
    "key": (npz(x=IMAGES), "a.npz", r"a\.npz has no array 'images': it holds x$"),
    "shape": (npz(images=IMAGES[0]), "a.npz", r"'images' of a\.npz has shape \(9, 9\): it should be \(N, H, W\)"),
    "type": (npz(images=IMAGES.astype(int)), "a.npz", r"'images' of a\.npz is of int64: it should be uint8, or floats"),
    "NaN": (
        npz(images=np.full((5, 9, 9), np.nan)),
        "a.npz",
        r"'images' of a\.npz has NaN or infinite values: it should",
    ),
    "range": (
        npz(images=IMAGES + 7.0),
        "a.npz",
        r"'images' of a\.npz has floats from 7 to 7: they should be in \[0, 1",
    ),
    "few": (npz(images=IMAGES[:2]), "a.npz", r"cannot split a\.npz: it has 2 image\(s\), at least 3 are needed"),
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
    folder = tmp_path / "faces"
    folder.mkdir()
    for index in range(12):
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 30), np.uint8)).save(
            folder / f"{index:02}.png"
        )
    for path in folder.iterdir():
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
    "missing": (
        nothing,
        "a.ckpt",
        r"^no checkpoint a\.ckpt; give the path of one, or 'last' or 'best' for the newest run",
    ),
    "folder": (lambda path: (path / "a.ckpt").mkdir(), "a.ckpt", r"^no checkpoint a\.ckpt; give the path"),
    "no runs": (
        nothing,
        "last",
        r"^--ckpt_path last: no run below runs/celeba has a checkpoint last\.ckpt; give the path",
    ),
    "no best": (
        nothing,
        "best",
        r"^--ckpt_path best: no run below runs/celeba has a checkpoint best\.ckpt; give the path",
    ),
    "empty": (
        lambda path: (path / "a.ckpt").touch(),
        "a.ckpt",
        r"^a\.ckpt cannot be read as a checkpoint; it is damaged",
    ),
    "text": (
        lambda path: (path / "a.ckpt").write_text("x"),
        "a.ckpt",
        r"^a\.ckpt cannot be read as a checkpoint; it is",
    ),
    "code": (
        plain({"a": complaint}),
        "a.ckpt",
        r"^a\.ckpt cannot be read as a checkpoint; it is damaged or of another",
    ),
    "list": (plain([1]), "a.ckpt", r"^a\.ckpt was not written by deqopt: it does not say which task it belongs to$"),
    "foreign": (plain({"state_dict": {}}), "a.ckpt", r"^a\.ckpt was not written by deqopt: it does not say which task"),
    "other task": (
        of_task("tiny_task.Tiny"),
        "a.ckpt",
        r"^a\.ckpt was trained on the task tiny_task\.Tiny, but deqopt_tasks\.celeba\.task\.CelebA was asked for: le",
    ),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
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

TINY = ("--solver.max_nfe=6", "--solver.step_size=0.3", "--trainer.limit_train_batches=2")


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


@pytest.mark.parametrize("ball", [L2Ball, LinfBall])
@pytest.mark.parametrize("radius", [-1.0, float("nan")])
def test_a_negative_radius_in_code_is_refused_in_one_line(ball: Callable[[float], object], radius: float) -> None:
    with pytest.raises(ProblemError, match=rf"^{ball.__name__}: radius must be 0 or larger, got {radius}$"):  # type: ignore[attr-defined]
        ball(radius)


@pytest.mark.parametrize("lacking", ["outcome", "write_predictions"])
def test_a_task_that_lacks_what_is_asked_of_it_says_what_to_define(lacking: str) -> None:
    task = Tiny()
    with pytest.raises(ProblemError, match=rf"Tiny .*{lacking}\(\)"):
        getattr(Task, lacking)(task, *[None] * (3 if lacking == "write_predictions" else 2))
