"""The race of restorations: methods differ in their gradient alone, and what is tested is what was not trained on."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.denoising.inpainting import Inpainting, RandomBoxes
from deqopt_tasks.denoising.latent_fit import LatentFit
from deqopt_tasks.denoising.restorer import Restorer
from deqopt_tasks.denoising.task import Denoising
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from benchmarks.training import command, restoration
from benchmarks.training.race import race
from benchmarks.training.report import TrainingRun
from deqopt.adjoints import Implicit

pytestmark = [  # of untrained networks
    pytest.mark.filterwarnings(f"ignore:{name}. the backward solve") for name in ("Implicit", "InputHeld", "Unrolled")
]

PRIORS = {"latent": LatentFit(latent=3, widths=[4], resolution=4, weight=0.1), "restorer": Restorer(widths=[4])}
RACED = {name: [one.label for one in setting.methods.values()] for name, setting in restoration.SETTINGS.items()}


def tiny(name: str) -> restoration.RestorationSetting:
    """The setting with a network that trains in a blink."""
    setting = restoration.SETTINGS[name]
    methods = {
        gradient: replace(
            method,
            adjoint=Implicit(max_nfe=6) if isinstance(method.adjoint, Implicit) else method.adjoint,
            solver=replace(method.solver, max_nfe=6),
        )
        for gradient, method in setting.methods.items()
    }
    task = {**setting.recipe.task, "prior": PRIORS[name], "size": 8}
    return replace(setting, recipe=replace(setting.recipe, task=task), methods=methods, batch=3)


@pytest.fixture(autouse=True, scope="module")
def blink() -> Iterator[None]:
    """On a clock on which every step takes a second."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(restoration, "SETTINGS", {name: tiny(name) for name in restoration.SETTINGS})
        patched.setattr(command, "race", lambda all, seconds: race(all, seconds, itertools.count().__next__))
        yield


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 grey images of 8 x 8, no two alike and none symmetric."""
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8), one=np.arange(60) // 2)
    return path


def words(archive: Path, out: Path, *more: str) -> list[str]:
    return ["--root", str(archive), "--seeds", "3", "--seconds", "4", "--images", "2", "--out", str(out), *more]


class Raced:
    """All methods of all settings, raced once; which batches and weights each met in training, by its task."""

    def __init__(self, archive: Path, out: Path) -> None:
        self.batches: dict[int, list[Any]] = defaultdict(list)
        self.weights: dict[int, list[Tensor]] = defaultdict(list)
        self.labels: dict[int, str] = {}
        real = Denoising.problem

        def problem(task: Denoising, batch: Any) -> Any:
            if task.training:
                self.labels[id(task)] = type(task.prior).__name__
                self.batches[id(task)].append(batch)
                self.weights[id(task)].append(parameters_to_vector(task.parameters()).detach().clone())
            return real(task, batch)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Denoising, "problem", problem)
            restoration.main(words(archive, out))
        self.out = out
        self.runs = {(run.scene.split(",")[0], run.method): run for run in TrainingRun.read(out)}


@pytest.fixture(scope="module")
def raced(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Raced:
    return Raced(archive, tmp_path_factory.mktemp("raced"))


def test_every_method_of_every_setting_leaves_its_milestones(raced: Raced) -> None:
    methods = {(setting.split(",")[0], method) for setting, method in raced.runs}
    assert methods == {
        (restoration.SETTINGS[name].label.split(",")[0], method)
        for name, labels in RACED.items()
        for method in (*labels, restoration.MEASUREMENT)
    }
    for (_, method), run in raced.runs.items():
        if method == restoration.MEASUREMENT:
            continue
        assert [(at.seconds, at.steps) for at in run.milestones] == [(1, 1), (2, 2), (4, 4)]
        assert len({at.scores["psnr"][0] for at in run.milestones}) == 3, "the network changes between the milestones"
        assert bool(run.notes) == (method in ("InputHeld", "Implicit"))
        if method == "Implicit":
            assert run.notes["backward unsolved"] == 1 and run.notes["backward products"] <= 6
    text = (raced.out / "results.txt").read_text()
    assert text.count("test images of noise, 4 s") == 2 and text.count("minus Envelope") == 2


def test_every_method_sees_the_same(raced: Raced) -> None:
    """First weights and all batches are those of the seed; a step later the weights are not."""
    assert len(raced.batches) == 7
    for kind in set(raced.labels.values()):
        first, *others = (one for one, label in raced.labels.items() if label == kind)
        assert len(raced.batches[first]) == 4
        assert not torch.equal(raced.batches[first][0].y, raced.batches[first][1].y)
        for other in others:
            for one, same in zip(raced.batches[first], raced.batches[other], strict=True):
                assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
            (begun, moved), (same, differs) = (raced.weights[one][:2] for one in (first, other))
            assert torch.equal(begun, same) and not torch.equal(moved, differs)


def test_the_measurement_has_the_psnr_of_its_definition(raced: Raced, archive: Path) -> None:
    setting = restoration.SETTINGS["latent"]
    task = restoration.task_of(setting, restoration.arguments(words(archive, raced.out)))
    samples = task.data.samples(task.data.splits.test[:2])
    errors = [((samples[k].y.clamp(-1, 1) + 1) / 2 - samples[k].clean).square().mean() for k in range(2)]
    (found,) = raced.runs["latent fit", restoration.MEASUREMENT].milestones
    expected = [float(10 * torch.log10(1 / error)) for error in errors]
    assert found.scores["psnr"] == pytest.approx(expected, abs=1e-4) and found.steps == 0


def test_the_seed_decides_and_validation_images_are_others(raced: Raced, archive: Path, tmp_path: Path) -> None:
    def found(folder: str, *more: str) -> tuple[Any, Any]:
        restoration.main(words(archive, tmp_path / folder, "--setting", "restorer", "--methods", "unrolled", *more))
        runs = {run.method: run for run in TrainingRun.read(tmp_path / folder)}
        return runs["Unrolled"], runs[restoration.MEASUREMENT]

    (again, measured), (other, _) = found("again"), found("other", "--seeds", "2")
    assert again == raced.runs["restorer", "Unrolled"] and measured == raced.runs["restorer", "the measurement"]
    assert other.milestones != again.milestones and "test images of noise" in again.scene
    validated, of_others = found("validation", "--validate", "--groups", "one")
    assert of_others.milestones != measured.milestones and "validation images of noise by one" in validated.scene


def test_batches_are_measured_anew_and_mirrored(archive: Path) -> None:
    """Of an operator with parameters of its own for every image; what is seen has the noise's deviation."""
    setting = restoration.SETTINGS["restorer"]
    settings = {**setting.recipe.task, "operator": Inpainting(RandomBoxes(3), sigma=0.3)}
    task = Denoising(root=str(archive), **settings)
    batch = restoration.TrainingDraws(task, 200, seed=0)()
    rows = task.data.splits.train
    originals = torch.stack([task.data.source[rows[row]].image for row in batch.index.tolist()])
    mirrored = (batch.clean == originals.flip(3)).flatten(1).all(1)
    assert torch.equal(mirrored, ~(batch.clean == originals).flatten(1).all(1)) and 70 < int(mirrored.sum()) < 130
    noise = (batch.y - (2 * batch.clean - 1))[batch.parameters.expand_as(batch.y) == 1]
    assert 0.28 < float(noise.std()) < 0.32
    assert len({tuple(mask.flatten().tolist()) for mask in batch.parameters}) > 10


def test_a_method_that_no_setting_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        restoration.arguments(["--methods", "held", "--setting", "restorer"])
    assert "has held: restorer has envelope, implicit, unrolled" in capsys.readouterr().err
