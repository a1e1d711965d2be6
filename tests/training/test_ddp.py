"""Two processes (gloo on the CPU) against one on the same global batches, and the command line on two."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deqopt.checkpoints import read
from paths import SUPPORT
from processes import python
from reported import lines_said, rows_of
from two_processes import BAD_STEPS, BOTH, SHARED, STEPS, UNEVEN, compared, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left."""
    folder = tmp_path_factory.mktemp("two")
    done = python(SUPPORT / "two_processes.py", folder, cwd=folder)
    (folder / "said").write_text(done.stderr)
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return [torch.load(folder / f"rank_{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return train(tmp_path_factory.mktemp("one"), 8)


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_and_weights_equal_those_of_one_process(
    one: dict[str, Any], two: list[dict[str, Any]], rank: int
) -> None:
    other = two[rank]["trained"]
    assert len(one["gradients"]) == len(other["gradients"]) == STEPS
    pairs = [*zip(one["gradients"], other["gradients"], strict=True), (one["weights"], other["weights"])]
    for want, got in pairs:
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert any(value.abs().max() > 1e-2 for value in one["gradients"][0].values())


@pytest.mark.parametrize("rank", [0, 1])
def test_figures_are_reduced_over_processes(one: dict[str, Any], two: list[dict[str, Any]], rank: int) -> None:
    assert {"val/objective", "val/loss", "val/mse", "val/residual", "val/nfe"} <= one["figures"].keys()
    assert two[rank]["trained"]["figures"] == pytest.approx(one["figures"], rel=1e-4)


def test_predictions_of_all_processes_are_written(folder: Path, two: list[dict[str, Any]]) -> None:
    """The first process has the even samples in two batches, the second has the odd ones in one."""
    found = {path.name: len(torch.load(path)) for path in (folder / "trained" / "predictions").iterdir()}
    assert found == {"0.pt": 4, "8.pt": 1, "1.pt": 4} and sum(found.values()) == UNEVEN


def test_two_processes_go_on_each_with_its_own_random_numbers(two: list[dict[str, Any]]) -> None:
    assert [one["resumed"] for one in two] == [{"found": [[], []], "apart": True}] * 2


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_share_the_samples_and_find_what_one_does(
    name: str, folder: Path, two: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five samples cannot be shared: the second process meets the first of them again."""
    lines_said(monkeypatch)
    alone = compared(tmp_path, name)
    count = SHARED[name].get("most", SHARED[name]["samples"])
    assert (folder / "said").read_text().count(f"Tiny things: {count} ") == 1
    assert [one["index"] for one in rows_of(folder / name, "things")] == [str(index) for index in range(count)]
    errors = {figure: value for figure, value in alone.items() if figure.startswith("error")}
    assert len(errors) == 4
    for found in two:
        assert {figure: found[name][figure] for figure in errors} == pytest.approx(errors)


def test_bad_numbers_in_one_process_are_met_by_all_alike(two: list[dict[str, Any]]) -> None:
    """Where one process has nothing to learn from, the other's gradient counts; where none has, no step is taken."""
    first, second = (results["bad"] for results in two)
    assert first["error"] == second["error"] == ""
    assert len(first["weights"]) == len(second["weights"]) == BAD_STEPS
    for step, (one, other) in enumerate(zip(first["weights"], second["weights"], strict=True)):
        assert all(torch.equal(one[name], other[name]) and one[name].isfinite().all() for name in one)
        moved = step == 0 or any(not torch.equal(one[name], first["weights"][step - 1][name]) for name in one)
        assert moved == (step != BOTH), step
    assert [one["guard"]["left_out"] for one in (first, second)] == [4, 12]
    assert [one["guard"]["skipped"] for one in (first, second)] == [1, 1]


def test_bad_numbers_that_stay_end_all_processes(two: list[dict[str, Any]]) -> None:
    for found in (results["bad for ever"] for results in two):
        assert found["error"].endswith("No gradient could be used in 2 steps in a row")
        assert found["guard"]["skipped"] == 2


def test_a_full_disk_is_met_by_all_processes_alike(folder: Path, two: list[dict[str, Any]]) -> None:
    """At step 2 the run goes on; at the last one, 4, it is an error in both."""
    last = folder / "full" / "checkpoints" / "last.ckpt"
    assert [one["full disk"] for one in two] == [f"{last} could not be written: No space left on device"] * 2
    assert read(last)["global_step"] == 3


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
    done = python("-m", "deqopt", "fit", *(word for pair in settings.items() for word in pair), cwd=tmp_path)
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
