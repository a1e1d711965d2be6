"""Runs from the command line, end to end on the embedded digits: what they leave, and how they go on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from command import SMALL, SMALL_TRAINER, column, complaint, resolved, succeeded, user_folder
from deqopt import JointModule
from deqopt.solvers import solve_exactly
from processes import environment

TIMEOUT = 120


folder = user_folder(SMALL)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    return folder / succeeded("fit", "--config", "small.yaml").run


def assert_shows_something(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 100 and len(np.unique(pixels)) > 20 and pixels.std() > 5, path


# -- what a run leaves ------------------------------------------------------------------------------------------------


def test_fit_leaves_figures_that_show_something(trained: Path) -> None:
    names = {"val_reconstructions.png", "val_convergence.png", "samples.png"}
    assert {path.name for path in (trained / "figures").iterdir()} == names
    for name in names:
        assert_shows_something(trained / "figures" / name)


def test_fit_leaves_the_same_numbers_as_csv_and_for_tensorboard(trained: Path) -> None:
    events = EventAccumulator(str(trained))
    events.Reload()
    for name in ("train/objective", "train/loss", "val/loss", "val/psnr", "val/ssim", "val/residual", "val/nfe"):
        expected = column(trained, name)
        steps = {"train": 2 * SMALL_TRAINER["limit_train_batches"], "val": 2}[name.partition("/")[0]]
        assert len(expected) == steps and np.isfinite(expected).all(), name
        assert [event.value for event in events.Scalars(name)] == pytest.approx(expected, rel=1e-5), name


def test_the_saved_configuration_repeats_the_run(trained: Path) -> None:
    saved = trained / "config.yaml"
    assert yaml.safe_load(saved.read_text()) == resolved("fit", "--config", "small.yaml")
    first = succeeded("fit", "--config=tiny.yaml").run
    again = succeeded("fit", "--config", first / "config.yaml").run
    other = succeeded("fit", "--config", first / "config.yaml", "--seed_everything=1").run
    for name in ("train/objective", "val/loss"):
        assert column(again, name) == column(first, name)
        assert column(other, name) != column(first, name)


def test_checkpoints_hold_plain_data_and_the_end_of_training(trained: Path) -> None:
    names = {"best.ckpt", "best.previous.ckpt", "last.ckpt", "last.previous.ckpt"}
    assert {path.name for path in (trained / "checkpoints").iterdir()} == names
    for name in ("best", "last"):
        content = torch.load(trained / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert content["hyper_parameters"]["task"]["init_args"]["size"] == 8
    assert content["global_step"] == 2 * SMALL_TRAINER["limit_train_batches"]


@pytest.mark.parametrize("command", ["validate", "load"])
def test_a_checkpoint_alone_repeats_the_figures_of_its_run(command: str, trained: Path) -> None:
    path = trained / "checkpoints" / "last.ckpt"
    expected = column(trained, "val/objective")[-1]
    if command == "validate":
        words = ("--ckpt_path", path, "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false")
        assert column(succeeded("validate", *words).run, "val/objective") == [pytest.approx(expected, rel=1e-6)]
    else:
        module = JointModule.load_from_checkpoint(path).eval()
        data = module.task.datamodule()
        data.setup("validate")
        problem, solved = module.solve(next(iter(data.val_dataloader())))
        assert solve_exactly(problem, solved).objective.mean().item() == pytest.approx(expected, rel=1e-5)


def test_the_best_checkpoint_is_that_of_the_lowest_loss(folder: Path) -> None:
    words = ("fit", "--config", "tiny.yaml", "--trainer.max_epochs=3", "--model.optimization.lr=1.0")
    by_mse = ("--checkpoint.monitor=val/mse", "--checkpoint.mode=max")
    for more, name, best in (((), "val/loss", min), (by_mse, "val/mse", max)):
        run = succeeded(*words, *more).run
        figures = column(run, name)
        content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        assert content["epoch"] == figures.index(best(figures)), figures


# -- going on ---------------------------------------------------------------------------------------------------------


def test_fit_goes_on_from_the_last_checkpoint(trained: Path) -> None:
    steps = 2 * SMALL_TRAINER["limit_train_batches"]
    last = trained / "checkpoints" / "last.ckpt"
    run = succeeded("fit", "--ckpt_path", last, "--config=small.yaml", "--trainer.max_epochs=3").run
    assert run != trained
    assert column(run, "step") and min(column(run, "step")) == steps
    assert set(column(run, "epoch")) == {2}
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert (content["global_step"], content["epoch"]) == (steps + SMALL_TRAINER["limit_train_batches"], 2)
    assert column(run, "val/loss")[-1] < column(trained, "val/loss")[0]


@pytest.mark.parametrize("words", [("last",), ("best", "--task=celeba"), ("PATH",)], ids=" ".join)
def test_test_measures_at_the_feasible_point_whatever_names_the_checkpoint(
    words: tuple[str, ...], trained: Path
) -> None:
    name, *more = (str(trained / "checkpoints" / "best.ckpt") if word == "PATH" else word for word in words)
    settings = ("--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=false")
    answer = succeeded("test", "--ckpt_path", name, *more, *settings)
    figures = {one: column(answer.run, f"test/{one}") for one in ("psnr", "ssim", "objective", "residual")}
    assert all(len(values) == 1 and np.isfinite(values[0]) for values in figures.values()), figures
    assert all(f"test/{one}" in answer.output for one in figures)
    for figure in ("test_reconstructions", "test_convergence", "samples"):
        assert_shows_something(answer.run / "figures" / f"{figure}.png")


def test_a_run_without_a_checkpoint_is_told_that_nothing_was_learned() -> None:
    with pytest.warns(UserWarning, match=r"validate without --ckpt_path: the network is new"):
        succeeded("validate", "--config=tiny.yaml")


def test_predict_writes_reconstructions_and_latents_by_name(trained: Path, folder: Path) -> None:
    mine = folder / "mine" / "inner"
    mine.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("anna.png", "ben.jpg"):
        Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(mine / name)
    path = trained / "checkpoints" / "last.ckpt"
    run = succeeded("predict", "--ckpt_path", path, "--task.root=mine", "--trainer.enable_progress_bar=false").run
    found = {file.name for file in (run / "predictions").iterdir()}
    assert found == {"anna.png", "anna.npy", "ben.png", "ben.npy"}
    task: Any = JointModule.load_from_checkpoint(path).task
    for name in ("anna", "ben"):
        x = np.load(run / "predictions" / f"{name}.npy")
        assert x.shape == (4,) and x.dtype == np.float32 and np.abs(x).max() > 0
        expected = task.decode(torch.from_numpy(x)[None])[0, 0] * 255
        with Image.open(run / "predictions" / f"{name}.png") as image:
            assert np.abs(np.asarray(image) - expected.detach().numpy()).max() < 2


def test_a_fast_run_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    answer = succeeded("fit", "--config=tiny.yaml", "--trainer.fast_dev_run=true")
    assert sorted(folder.rglob("*")) == before and "This run is kept" not in answer.output


@pytest.mark.parametrize(
    ("words", "left_out"),
    [
        (["--trainer.enable_checkpointing=false"], "checkpoints"),
        (["--trainer.log_every_n_steps=0"], None),
        (["--trainer.default_root_dir=null"], None),
    ],
    ids=str,
)
def test_parts_of_a_run_can_be_left_out(words: list[str], left_out: str | None) -> None:
    run = succeeded("fit", "--config=tiny.yaml", "--trainer.max_epochs=1", *words).run
    expected = {"checkpoints", "figures", "config.yaml", "hparams.yaml", "metrics.csv"} - {left_out}
    assert {path.name for path in run.iterdir() if "tfevents" not in path.name} == expected
    assert run.parent.name == "tiny" and bool(column(run, "train/loss")) == ("steps" not in words[0])


def test_a_checkpoint_of_another_size_is_refused_in_one_line(trained: Path) -> None:
    message = complaint("test", "--ckpt_path", trained / "checkpoints" / "last.ckpt", "--task.latent=5")
    assert message.startswith("the checkpoint does not fit these settings, give those that it was trained with: size ")
    assert "injection" in message and len(message) < 400


# -- interruption -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*ended before the epoch ended:UserWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_an_interrupted_run_goes_on(number: signal.Signals, folder: Path) -> None:
    root = folder / number.name
    words = ["fit", "--config=tiny.yaml", f"--trainer.default_root_dir={root}", "--trainer.max_epochs=100000"]
    words += ["--trainer.check_val_every_n_epoch=100000"]
    code = "import tiny_task; from deqopt.cli import main; main()"
    command, streams = [sys.executable, "-c", code, *words], {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment(), **streams) as process:
        try:
            metrics = root / "tiny" / "version_0" / "metrics.csv"
            deadline = time.monotonic() + TIMEOUT
            while not metrics.exists() or len(metrics.read_text().splitlines()) < 6:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(number)
            error = process.communicate(timeout=TIMEOUT)[1].decode()
        finally:
            process.kill()
    assert process.returncode not in (0, -number), error
    assert "Traceback" not in error and "--ckpt_path last goes on from" in error
    assert not any(noise in error for noise in ("Tip", "LeafSpec", "many workers")), error

    saved = torch.load(root / "tiny" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] >= 5
    limit = f"--trainer.max_steps={saved['global_step'] + 3}"
    run = succeeded(*words, "--ckpt_path=last", limit).run
    assert run.name == "version_1"
    # an interruption may come between a step and its count in the log
    assert abs(column(run, "step")[0] - saved["global_step"]) <= 1
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == saved["global_step"] + 3
