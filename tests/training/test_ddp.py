"""Two processes (gloo on the CPU) against one on the same global batches, and the command line on two."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ddp_bad_numbers import BOTH
from ddp_bad_numbers import STEPS as BAD_STEPS
from ddp_worker import STEPS, UNEVEN, train
from paths import SUPPORT

TIMEOUT = 300


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command with one thread a process, that must end well and in time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=environment, timeout=TIMEOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found, with half of the samples each."""
    directory = tmp_path_factory.mktemp("two")
    run(SUPPORT / "ddp_worker.py", 2, 4, directory, cwd=directory)
    results = [torch.load(directory / f"rank_{rank}.pt") for rank in range(2)]
    return [{**result, "predictions": sorted((directory / "predictions").iterdir())} for result in results]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        return train(tmp_path_factory.mktemp("one"), 1, 8)


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_and_weights_equal_those_of_one_process(
    one: dict[str, Any], two: list[dict[str, Any]], rank: int
) -> None:
    assert len(one["gradients"]) == len(two[rank]["gradients"]) == STEPS
    pairs = [*zip(one["gradients"], two[rank]["gradients"], strict=True), (one["weights"], two[rank]["weights"])]
    for want, got in pairs:
        assert got.keys() == want.keys()
        for name in want:
            assert torch.allclose(got[name], want[name], rtol=1e-5, atol=1e-6), name
    assert any(value.abs().max() > 1e-2 for value in one["gradients"][0].values())


@pytest.mark.parametrize("rank", [0, 1])
def test_figures_are_reduced_over_processes(one: dict[str, Any], two: list[dict[str, Any]], rank: int) -> None:
    assert {"val/objective", "val/loss", "val/mse", "val/residual", "val/nfe"} <= one["figures"].keys()
    assert two[rank]["figures"] == pytest.approx(one["figures"], rel=1e-4)


def test_predictions_of_all_processes_are_written(two: list[dict[str, Any]]) -> None:
    """The first process has the even samples in two batches, the second has the odd ones in one."""
    found = {path.name: torch.load(path) for path in two[0]["predictions"]}
    assert {name: len(x) for name, x in found.items()} == {"0.pt": 4, "8.pt": 1, "1.pt": 4}
    assert sum(map(len, found.values())) == UNEVEN


@pytest.mark.slow
def test_command_line_on_two_processes_leaves_one_run(tmp_path: Path) -> None:
    settings = {
        "--task": "celeba",
        "--task.size": 8,
        "--task.image_channels": 1,
        "--task.latent": 4,
        "--task.widths": "[4]",
        "--task.batch_size": 8,
        "--solver": "Tracking",
        "--solver.max_nfe": 8,
        "--trainer.accelerator": "cpu",
        "--trainer.devices": 2,
        "--trainer.strategy": "ddp",
        "--trainer.max_epochs": 1,
        "--trainer.limit_train_batches": 4,
        "--trainer.log_every_n_steps": 1,
        "--trainer.default_root_dir": tmp_path / "runs",
        "--trainer.enable_progress_bar": "false",
    }
    done = run(
        Path(sys.executable).with_name("deqopt"),
        "fit",
        *(word for pair in settings.items() for word in pair),
        cwd=tmp_path,
    )
    (folder,) = tmp_path.glob("runs/*/*")
    assert done.stdout.count("This run is kept in") == 1 and str(folder) in done.stdout
    (config,) = tmp_path.rglob("config.yaml")
    assert config == folder / "config.yaml"
    assert str(yaml.safe_load(config.read_text())["trainer"]["devices"]) == "2"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["step"]) for row in rows if row["train/loss"]) == [0, 1, 2, 3]
    assert [row["val/psnr"] for row in rows if row["val/psnr"]]
    assert {path.name for path in folder.glob("checkpoints/*")} == {"best.ckpt", "last.ckpt"}
    names = {"val_reconstructions.png", "val_convergence.png", "samples.png"}
    assert {path.name for path in (folder / "figures").iterdir()} == names


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What each of two processes found, where the second meets bad numbers: for a while, and for ever."""
    directory = tmp_path_factory.mktemp("bad")
    run(SUPPORT / "ddp_bad_numbers.py", directory, cwd=directory)
    return [torch.load(directory / f"rank_{rank}.pt") for rank in range(2)]


def test_bad_numbers_in_one_process_are_met_by_all_alike(bad: list[list[dict[str, Any]]]) -> None:
    """Where one process has nothing to learn from, the other's gradient counts; where none has, no step is taken."""
    first, second = (results[0] for results in bad)
    assert first["error"] == second["error"] == ""
    assert len(first["weights"]) == len(second["weights"]) == BAD_STEPS
    for step, (one, other) in enumerate(zip(first["weights"], second["weights"], strict=True)):
        assert all(torch.equal(one[name], other[name]) and one[name].isfinite().all() for name in one)
        moved = step == 0 or any(not torch.equal(one[name], first["weights"][step - 1][name]) for name in one)
        assert moved == (step != BOTH), step
    assert [results[0]["guard"]["left_out"] for results in bad] == [4, 12]
    assert [results[0]["guard"]["skipped"] for results in bad] == [1, 1]


def test_bad_numbers_that_stay_end_all_processes(bad: list[list[dict[str, Any]]]) -> None:
    for results in bad:
        assert results[1]["error"].endswith("No gradient could be used in 2 steps in a row")
        assert results[1]["guard"]["skipped"] == 2
