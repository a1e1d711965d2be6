"""The comparison of restorations in a test: what is logged, printed, drawn and written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deqopt_tasks.denoising import report
from deqopt_tasks.denoising.baselines import Baseline, TotalVariation, baselines_for, choose
from deqopt_tasks.denoising.data import RestorationBatch
from deqopt_tasks.denoising.inpainting import Inpainting, RandomBoxes
from deqopt_tasks.denoising.operator import MeasurementOperator, measure
from deqopt_tasks.denoising.operators import CompressedSensing, Denoising, SuperResolution
from deqopt_tasks.denoising.report import RestorationReport
from lightning.pytorch import Callback, LightningDataModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from deqopt import Equilibrium, JointProblem, Task
from deqopt.data import unsigned
from deqopt.errors import ProblemError
from deqopt.solvers import Tracking
from deqopt.ssim import ssim
from reported import figures_of_test, lines_said, rows_of

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
SIDE = 12
OPERATORS: dict[str, MeasurementOperator] = {
    "holes": Inpainting(RandomBoxes(4), sigma=0.05),
    "fewer pixels": SuperResolution(2, sigma=0.1),
    "random convolution": CompressedSensing(0.6),
}


def quick_baselines(operator: MeasurementOperator) -> list[Baseline]:
    """Those that fit, in a few steps."""
    fitting = baselines_for(operator)
    return [replace(one, iterations=6) if isinstance(one, TotalVariation) else one for one in fitting]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "baselines_for", quick_baselines)


def blobs(count: int, seed: int) -> Tensor:
    """Images (count, 1, SIDE, SIDE): noise, smoothed, within [0, 1]."""
    noise = torch.randn(count, 1, SIDE + 4, SIDE + 4, generator=torch.Generator().manual_seed(seed))
    return (0.5 + F.avg_pool2d(noise, 5, 1)).clamp(0, 1)


def samples(operator: MeasurementOperator, clean: Tensor, seed: int) -> list[RestorationBatch]:
    """A batch of one for every image."""
    generator = torch.Generator().manual_seed(seed)
    found = [measure(operator, image, generator) for image in clean]
    return [
        RestorationBatch(image[None], y[None], parameters[None], torch.tensor([index]))
        for index, (image, (y, parameters)) in enumerate(zip(clean, found, strict=True))
    ]


def joined(batches: list[RestorationBatch]) -> RestorationBatch:
    return RestorationBatch(*map(torch.cat, zip(*batches, strict=True)))


def shrunk(batch: RestorationBatch) -> Tensor:
    """Another restoration, for all operators; it leaves the range."""
    return 1.4 * batch.clean - 0.3


class Small(Task):
    """Restores an image by nine tenths of its first estimate, and compares.

    Args:
        test: how many test images.
        seed: of the test images.
        images: that are compared.
    """

    def __init__(
        self, operator: MeasurementOperator, test: int = 7, seed: int = 1, images: int = 64, batch_size: int = 3
    ) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.9))
        self.operator, self.batch_size = operator, batch_size
        self.val = samples(operator, blobs(5, seed=0), seed=0)
        self.test = samples(operator, blobs(test, seed=seed), seed=seed)
        self.report = RestorationReport(
            self.datamodule(), operator, self.restored, others={"Far-off model": shrunk}, images=images
        )

    def datamodule(self) -> LightningDataModule:
        data = LightningDataModule()
        data.val_dataloader = lambda: DataLoader(self.val, self.batch_size, collate_fn=joined)  # type: ignore
        data.test_dataloader = lambda: DataLoader(self.test, self.batch_size, collate_fn=joined)  # type: ignore
        return data

    def start(self, batch: RestorationBatch) -> tuple[Tensor, Tensor]:
        estimate = self.operator.bind(batch.parameters).estimate(batch.y)
        return torch.zeros_like(estimate), torch.zeros(len(estimate), 1)

    def problem(self, batch: RestorationBatch) -> JointProblem:
        estimate = self.operator.bind(batch.parameters).estimate(batch.y)
        return JointProblem(
            cell=lambda z, x, y: self.scale * y + 0 * x.reshape(-1, 1, 1, 1),
            objective=lambda z, x, y: (z - y).square().flatten(1).sum(1) + x.square().sum(1),
            data=estimate,
        )

    def restored(self, equilibrium: Equilibrium, batch: RestorationBatch) -> Tensor:
        assert isinstance(equilibrium.z, Tensor) and len(equilibrium.z) == len(batch.y)
        return unsigned(equilibrium.z)

    def callbacks(self) -> list[Callback]:
        return [self.report]

    def tested(self, directory: Path, **settings: Any) -> dict[str, float]:
        """The figures of a test."""
        return figures_of_test(self, Tracking(max_nfe=6), directory, **settings)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is printed."""
    return lines_said(monkeypatch, "deqopt_tasks.denoising.report")


def compared(task: Small, images: int) -> RestorationBatch:
    return joined(task.test[:images])


def restorations(task: Small, images: int, validation: int = 5) -> dict[str, Tensor]:
    """What every method should yield for the first images, by the name under which it is logged."""
    batch, validated = compared(task, images), joined(task.val[:validation])
    estimate = task.operator.bind(batch.parameters).estimate(batch.y)
    found = {"measurement": unsigned(estimate), "ours": unsigned(0.9 * estimate), "far_off_model": shrunk(batch)}
    for baseline in quick_baselines(task.operator):
        chosen = choose(baseline, task.operator, [validated]).baseline
        key = baseline.name.replace(" ", "_").replace("-", "_")
        found[key] = chosen.restore(task.operator, batch.y, batch.parameters)
    return {name: found[name].detach().clamp(0, 1) for name in found}


def decibels(error: Tensor) -> float:
    return float(10 * torch.log10(1 / error.square().mean()))


@pytest.mark.parametrize("images", [5, 64], ids=["cut in a batch", "all, the last batch uneven"])
@pytest.mark.parametrize("key", list(OPERATORS))
def test_every_figure_is_the_mean_over_the_images(key: str, images: int, tmp_path: Path, said: list[str]) -> None:
    task = Small(OPERATORS[key], images=images)
    figures = task.tested(tmp_path, logger=True)
    batch = compared(task, images)
    count = min(images, 7)
    expected = restorations(task, images)
    rows = {row["method"]: row for row in rows_of(tmp_path, "restorations")}
    names = ["ours", "measurement", *(one.name for one in baselines_for(task.operator)), "Far-off model"]
    assert list(rows) == names
    for method, name in zip(names, [name.lower().replace(" ", "_").replace("-", "_") for name in names], strict=True):
        error = expected[name] - batch.clean
        values = torch.tensor([decibels(one) for one in error])
        wanted = {"psnr": float(values.mean()), "ssim": float(ssim(expected[name], batch.clean).mean())}
        if key == "holes":
            hidden = batch.parameters == 0
            wanted["psnr_hidden"] = sum(decibels(one[where]) for one, where in zip(error, hidden, strict=True)) / count
        for figure, value in wanted.items():
            assert figures[f"{figure}_{name}"] == pytest.approx(value, abs=2e-3), (figure, name)
            assert float(rows[method][figure]) == pytest.approx(value, abs=2e-3)
        assert rows[method]["images"] == str(count)
        assert ("psnr_hidden" in rows[method]) == (f"psnr_hidden_{name}" in figures) == (key == "holes")
        assert float(rows[method]["seconds"]) > 0
    of = "7" if count == 7 else "5 of 7"
    assert said[1].startswith(f"Restorations: {of} test images, {type(task.operator).__name__}\n")
    assert all(name in said[1] for name in names)


def test_settings_are_chosen_on_validation_images_whatever_the_test_images_are(tmp_path: Path, said: list[str]) -> None:
    operator = Denoising(0.3)
    for seed in (1, 2):
        Small(operator, test=3, seed=seed).tested(tmp_path / str(seed), logger=True)
    first, second = (rows_of(tmp_path / str(seed), "restorations") for seed in (1, 2))
    assert [row["psnr"] for row in first] != [row["psnr"] for row in second]
    assert [row["setting"] for row in first] == [row["setting"] for row in second]
    validated = joined(Small(operator).val)
    settings = {one.name: choose(one, operator, [validated]).baseline.setting for one in quick_baselines(operator)}
    assert {row["method"]: row["setting"] for row in first if row["setting"]} == settings
    assert said[0] == "Choosing the settings of total variation and non-local means on 5 validation images"


def test_the_figure_shows_the_first_images_by_every_method(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    plain = report.image_rows
    monkeypatch.setattr(report, "image_rows", lambda *given: (drawn.append(given), plain(*given))[1])
    task = Small(OPERATORS["holes"], test=11)
    task.tested(tmp_path, logger=True)
    ((rows, title, notes),) = drawn
    batch, expected = compared(task, 8), restorations(task, 8)
    assert list(rows) == ["clean", "measurement", "biharmonic", "total variation", "ours", "Far-off model"]
    torch.testing.assert_close(rows["clean"], batch.clean)
    torch.testing.assert_close(rows["biharmonic"], expected["biharmonic"])
    torch.testing.assert_close(rows["ours"], expected["ours"])
    torch.testing.assert_close(rows["Far-off model"], expected["far_off_model"])
    assert title == "Inpainting: test images restored"
    assert notes == [f"ours {decibels(one):.1f} dB" for one in expected["ours"] - batch.clean]
    assert len(list(tmp_path.rglob("figures/test_restorations.png"))) == 1


def test_a_trial_run_compares_one_image_and_writes_nothing(tmp_path: Path, said: list[str]) -> None:
    task = Small(OPERATORS["fewer pixels"])
    figures = task.tested(tmp_path, fast_dev_run=True)
    assert figures["psnr_ours"] == pytest.approx(decibels(restorations(task, 1)["ours"] - compared(task, 1).clean))
    assert said[0].endswith("on 1 validation images") and "Restorations: 1 of 3 test images" in said[1]
    assert not list(tmp_path.rglob("restorations.csv"))


def made(**settings: Any) -> RestorationReport:
    return RestorationReport(LightningDataModule(), Denoising(0.2), lambda equilibrium, batch: batch.y, **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"images": 0}, "restorations: most must be at least 1, got 0"),
        ({"others": {"Ours": shrunk}}, "two methods are called 'ours': give them names of their own"),
        ({"others": {"Non-local_means": shrunk}}, "two methods are called 'non-local means'"),
    ],
    ids=["images", "ours", "baseline"],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        made(**settings)


def test_without_validation_images_the_test_does_not_start(tmp_path: Path, said: list[str]) -> None:
    task = Small(OPERATORS["fewer pixels"])
    task.val = []
    with pytest.raises(ProblemError, match="no validation image by which the settings of bicubic could be chosen"):
        task.tested(tmp_path)
