"""The benchmark of restorations: that methods differ in their gradient alone, and that it reports what it found."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.denoising.data import RestorationBatch
from deqopt_tasks.denoising.inpainting import Inpainting, RandomBoxes
from deqopt_tasks.denoising.latent_fit import LatentFit
from deqopt_tasks.denoising.restorer import Restorer
from deqopt_tasks.denoising.task import Denoising
from torch import Tensor

from benchmarks import adversarial, restoration, schedule
from benchmarks.restoration_report import write
from deqopt.adjoints import Implicit
from deqopt.data import ImageArchive, unsigned
from deqopt.errors import NonFiniteError

pytestmark = [  # of untrained networks
    pytest.mark.filterwarnings(f"ignore:{name}. the backward solve") for name in ("Implicit", "InputHeld", "Unrolled")
]

PRIORS = {"latent": LatentFit(latent=3, widths=[4], resolution=4, weight=0.1), "restorer": Restorer(widths=[4])}
CASES = [(name, method) for name, setting in restoration.SETTINGS.items() for method in setting.methods]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that train in a blink, by a clock on which every step takes a second."""
    settings = {}
    for name, setting in restoration.SETTINGS.items():
        methods = {
            gradient: restoration.Method(
                Implicit(max_nfe=6) if isinstance(method.adjoint, Implicit) else method.adjoint,
                replace(method.solver, max_nfe=6),
            )
            for gradient, method in setting.methods.items()
        }
        settings[name] = replace(setting, prior=PRIORS[name], methods=methods, size=8, batch=3)
    monkeypatch.setattr(restoration, "SETTINGS", settings)
    monkeypatch.setattr(restoration, "process_time", itertools.count().__next__)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """60 grey images of 8 x 8, no two alike and none symmetric."""
    path = tmp_path / "noise.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8), one=np.arange(60) // 2)
    return path


def words(archive: Path, out: Path, *more: str) -> list[str]:
    return ["--root", str(archive), "--seeds", "3", "--seconds", "4", "--images", "2", "--out", str(out), *more]


def only_file(folder: Path) -> tuple[Path, dict[str, Any]]:
    (path,) = folder.glob("*.json")
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_run_leaves_its_marks_and_its_row(
    name: str, method: str, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    chosen = words(archive, out, "--setting", name, "--methods", method)
    restoration.main(chosen)
    path, said = only_file(out)
    assert (said["setting"], said["method"], said["seed"], said["images"]) == (name, method, 3, 2)
    marks = said["marks"]
    assert [(one["seconds"], one["steps"]) for one in marks] == [(1, 1), (2, 2), (4, 4)]
    assert len({one["psnr"] for one in marks}) == 3, "the network changes between the marks"
    assert all((one["backward"] is not None) == (method in ("held", "implicit")) for one in marks)
    if method == "implicit":
        assert marks[-1]["backward"]["unsolved"] == 1 and marks[-1]["backward"]["products"] <= 6
    measured, ours = (out / "results.md").read_text().splitlines()[2:]
    assert measured.split(" | ")[1:5:3] == ["measurement", f"{said['measurement']['psnr']:.2f}"]
    cells, last = ours.split(" | "), marks[-1]
    assert cells[1:4] == [restoration.GRADIENTS[method], "4", "4"]
    assert cells[4] == "{0:.2f} ({0:.2f} to {0:.2f})".format(last["psnr"])
    assert cells[6] == "{0:.3f} ({0:.3f} to {0:.3f})".format(last["ssim"])
    assert ours in capsys.readouterr().out
    assert (out / "restoration.png").stat().st_size > 1000
    written = path.read_bytes()
    path.write_bytes(written + b" ")
    restoration.main(chosen)
    assert path.read_bytes() == written + b" ", "a run that is there is not run again"


def test_what_is_measured_is_what_the_metrics_say(archive: Path, tmp_path: Path) -> None:
    """PSNR of the measurement, from its definition and the task's own noise."""
    restoration.run("latent", "envelope", 3, restoration.arguments(words(archive, tmp_path / "out")))
    _, said = only_file(tmp_path / "out")
    task = restoration.SETTINGS["latent"].task(archive, None)
    samples = task.data.samples(task.data.splits.test[:2])
    errors = torch.stack([(unsigned(samples[k].y).clamp(0, 1) - samples[k].clean).square().mean() for k in range(2)])
    assert said["measurement"]["psnr"] == pytest.approx(float((10 * torch.log10(1 / errors)).mean()), abs=1e-4)


def test_validation_images_are_not_reported_as_test_images(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    restoration.main(words(archive, out, "--setting", "latent", "--methods", "envelope", "--validate"))
    _, validated = only_file(out)
    assert "no test runs in" in capsys.readouterr().out and validated["part"] == "validation"
    restoration.main(words(archive, out, "--setting", "latent", "--methods", "envelope", "--groups", "one"))
    (tested,) = (json.loads(path.read_text()) for path in out.glob("*test*.json"))
    assert len({validated["measurement"]["psnr"], tested["measurement"]["psnr"]}) == 2
    assert len((out / "results.md").read_text().splitlines()) == 4
    assert tested["images"] == 2 and tested["data"] == "noise-one"


def test_every_method_sees_the_same(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First weights and all batches are those of the seed; a step later the weights are not."""
    seen: dict[str, list[RestorationBatch]] = {}
    weights: dict[str, list[Tensor]] = {}
    real = Denoising.problem

    def problem(self: Denoising, batch: RestorationBatch) -> Any:
        if self.training:
            seen[method].append(batch)
            weights[method].append(nn_vector(self))
        return real(self, batch)

    monkeypatch.setattr(Denoising, "problem", problem)
    methods = list(restoration.SETTINGS["latent"].methods)
    for method in methods:
        seen[method], weights[method] = [], []
        restoration.run("latent", method, 3, restoration.arguments(words(archive, tmp_path / method)))
    first, *others = methods
    for other in others:
        for one, same in zip(seen[first], seen[other], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
        assert torch.equal(weights[first][0], weights[other][0]) and not torch.equal(
            weights[first][1], weights[other][1]
        )
    assert len(seen[first]) == 4 and not torch.equal(seen[first][0].y, seen[first][1].y)


def nn_vector(task: Denoising) -> Tensor:
    return torch.nn.utils.parameters_to_vector(task.parameters()).detach().clone()


@pytest.mark.parametrize("method", ["envelope", "unrolled"])
def test_the_seed_decides(method: str, archive: Path, tmp_path: Path) -> None:
    def found(folder: str, seed: int) -> Any:
        restoration.run("restorer", method, seed, restoration.arguments(words(archive, tmp_path / folder)))
        return only_file(tmp_path / folder)[1]["marks"]

    assert found("once", 1) == found("again", 1) != found("other", 2)


def test_batches_are_measured_anew_and_mirrored(archive: Path) -> None:
    """Of an operator with parameters of its own for every image; what is seen has the noise's deviation."""
    setting = replace(restoration.SETTINGS["restorer"], operator=Inpainting(RandomBoxes(3), sigma=0.3), batch=200)
    task = setting.task(archive, None)
    images = restoration.Images.of(task, task.data.splits.train)
    batch = images.draw(200, torch.Generator().manual_seed(0))
    source = ImageArchive(archive, 8, 1)
    originals = torch.stack([source[task.data.splits.train[row]].image for row in batch.index.tolist()])
    mirrored = (batch.clean == originals.flip(3)).flatten(1).all(1)
    assert torch.equal(mirrored, ~(batch.clean == originals).flatten(1).all(1)) and 70 < int(mirrored.sum()) < 130
    noise = (batch.y - batch.clean)[batch.parameters.expand_as(batch.y) == 1]
    assert 0.28 < float(noise.std()) < 0.32
    assert len({tuple(mask.flatten().tolist()) for mask in batch.parameters}) > 10


def test_a_training_that_diverges_says_so(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wild = replace(restoration.SETTINGS["restorer"], lr=1e30)
    monkeypatch.setitem(restoration.SETTINGS, "restorer", wild)
    chosen = words(archive, tmp_path / "out", "--setting", "restorer", "--methods", "unrolled")
    with pytest.raises(NonFiniteError, match=r"Unrolled \(restorer.*seed 3\) has diverged in step \d+: lower lr"):
        restoration.main(chosen)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["--methods", "adam"], "invalid choice: 'adam'"),
        (["--methods", "held", "--setting", "restorer"], "has held: restorer has envelope, implicit, unrolled"),
        (["--seconds", "0"], "--seconds must be larger than 0"),
        (["--images", "0"], "--images 1 or more"),
    ],
)
def test_words_that_do_not_fit(said: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        restoration.main(said)
    assert message in capsys.readouterr().err


def test_held_is_left_out_of_the_restorer(archive: Path, tmp_path: Path) -> None:
    restoration.main(words(archive, tmp_path, "--methods", "held", "--setting", "latent", "restorer"))
    assert only_file(tmp_path)[1]["setting"] == "latent"


def test_the_schedule_is_that_of_the_other_benchmark() -> None:
    assert restoration.shape is adversarial.shape is schedule.shape


# -- the report -------------------------------------------------------------------------------------------------------


def run(
    method: str, seed: int, psnr: float, budget: float = 60, part: str = "test", setting: str = "s"
) -> dict[str, Any]:
    system = {"residual": 1e-3 * (seed + 1), "products": 10.0 + seed, "unsolved": 0.5} if method == "implicit" else None
    marks = [
        {"seconds": budget * share, "steps": 10, "psnr": psnr * share, "ssim": 0.5 + seed / 10, "backward": system}
        for share in (0.5, 1.0)
    ]
    said = {"setting": setting, "method": method, "seed": seed, "budget": budget, "data": "faces", "part": part}
    return {**said, "images": 50, "measurement": {"psnr": 12.25, "ssim": 0.25}, "marks": marks}


def test_the_table_has_mean_range_and_gain(tmp_path: Path) -> None:
    runs = [
        run("envelope", 0, 20.0),
        run("envelope", 1, 21.0),
        run("implicit", 0, 22.0),
        run("implicit", 1, 24.0),
        run("implicit", 0, 21.5, budget=30),
        run("unrolled", 1, 22.25),
        run("unrolled", 9, 40.0, part="validation"),
        run("envelope", 0, 30.0, setting="t"),
    ]
    for k, one in enumerate(runs):
        (tmp_path / f"{k}.json").write_text(json.dumps(one))
    labels = {"envelope": "Envelope", "implicit": "Implicit", "unrolled": "Unrolled"}
    rows = write(tmp_path, {"s": "first", "t": "second"}, labels).splitlines()
    one, two = "first, 50 images of faces", "second, 50 images of faces"
    solves = "products, residual"
    assert rows[0].split(" | ")[5] == "over Envelope"
    assert rows[2:] == [
        f"| {one} | measurement |  |  | 12.25 |  | 0.250 |  |  |",
        f"| {one} | Envelope | 60 | 10 | 20.50 (20.00 to 21.00) |  | 0.550 (0.500 to 0.600) |  | 2 |",
        f"| {one} | Implicit | 60 | 10 | 23.00 (22.00 to 24.00) | +2.50 | 0.550 (0.500 to 0.600) "
        f"| 10 {solves} 1.5e-03, 50 % unsolved | 2 |",
        f"| {one} | Implicit | 30 | 10 | 21.50 (21.50 to 21.50) |  | 0.500 (0.500 to 0.500) "
        f"| 10 {solves} 1.0e-03, 50 % unsolved | 1 |",
        f"| {one} | Unrolled | 60 | 10 | 22.25 (22.25 to 22.25) | +1.25 | 0.600 (0.600 to 0.600) |  | 1 |",
        f"| {two} | measurement |  |  | 12.25 |  | 0.250 |  |  |",
        f"| {two} | Envelope | 60 | 10 | 30.00 (30.00 to 30.00) |  | 0.500 (0.500 to 0.500) |  | 1 |",
    ]
    assert (tmp_path / "results.md").read_text().splitlines() == rows
    assert write(tmp_path / "empty", {}, {}).startswith("no test runs in")
