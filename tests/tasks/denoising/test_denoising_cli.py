"""The task denoising on the command line: training by several gradients, tests beside classical methods and
another model, a folder of damaged images."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.denoising import operators
from deqopt_tasks.denoising.compared import ComparedModel
from deqopt_tasks.denoising.data import RestorationBatch
from deqopt_tasks.denoising.task import Denoising
from PIL import Image

from command import SMALL_TRAINER, column, complaint, resolved, succeeded, user_folder
from deqopt import JointModule
from deqopt.data import unsigned
from deqopt.errors import CheckpointError
from deqopt.solvers import solve_exactly

SETTINGS: dict[str, Any] = {
    "size": 16,
    "image_channels": 1,
    "batch_size": 16,
    "operator": {"class_path": "deqopt_tasks.denoising.operators.Denoising", "init_args": {"sigma": 0.3}},
    "prior": {"class_path": "deqopt_tasks.denoising.restorer.Restorer", "init_args": {"widths": [16]}},
    "test_images": 8,
}
SMALL: dict[str, Any] = {
    "task": {"class_path": "denoising", "init_args": SETTINGS},
    "solver": {"class_path": "JointAnderson", "init_args": {"max_nfe": 6, "step_size": 0.3, "step_rule": "PLAIN"}},
    "adjoint": "Unrolled",
    "model": {"optimization": {"lr": 0.01}},
    "trainer": {**SMALL_TRAINER, "max_epochs": 1, "limit_train_batches": 12, "gradient_clip_val": 0.1},
}
FIT = ("fit", "--config=small.yaml")
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.limit_test_batches=1")


folder = user_folder(SMALL)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """On patches of the embedded photographs, through the solve."""
    return folder / succeeded(*FIT).run


@pytest.fixture(scope="module")
def by_envelope(folder: Path) -> Path:
    return folder / succeeded(*FIT, "--adjoint=Envelope").run


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


# -- training and testing ---------------------------------------------------------------------------------------------


def test_fit_learns_to_denoise(trained: Path) -> None:
    losses = column(trained, "train/loss")
    assert len(losses) == 12 and sum(losses[-3:]) < 0.9 * sum(losses[:3])
    (psnr,), (ssim,) = (column(trained, f"val/{name}") for name in ("psnr", "ssim"))
    assert psnr > 10 * np.log10(4 / 0.3**2) + 0.5, "better than the measurement"
    assert 0 < ssim < 1
    assert {path.name for path in (trained / "figures").iterdir()} == {"val_restored.png", "val_convergence.png"}


def test_it_learns_through_the_optimum_unless_told_otherwise() -> None:
    config = resolved("fit", "--task=denoising", "--solver.max_nfe=9")
    assert config["adjoint"]["class_path"].endswith(".Unrolled")
    assert config["solver"]["class_path"].endswith(".JointAnderson") and config["solver"]["init_args"]["max_nfe"] == 9
    assert config["solver"]["init_args"]["history_size"] == 5
    other = resolved("fit", "--task=denoising", "--adjoint=Envelope", "--solver=Tracking")
    assert other["adjoint"]["class_path"].endswith(".Envelope") and other["solver"]["class_path"].endswith(".Tracking")
    celeba = resolved("fit", "--task=celeba")
    assert celeba["adjoint"]["class_path"].endswith(".Envelope")


def test_the_gradient_through_the_optimum_learns_what_the_envelope_does_not(trained: Path, by_envelope: Path) -> None:
    """The first loss is the same, because no gradient is in it."""
    assert column(trained, "train/loss")[0] == pytest.approx(column(by_envelope, "train/loss")[0], rel=1e-5)
    assert column(trained, "val/psnr")[0] > column(by_envelope, "val/psnr")[0] + 0.3


@pytest.mark.filterwarnings("ignore:Implicit. the backward solve")
def test_implicit_gradients_train_too() -> None:
    run = succeeded(*FIT, "--adjoint=Implicit", "--trainer.limit_train_batches=2").run
    assert len(column(run, "train/loss")) == 2 and column(run, "train/backward_residual")


@pytest.mark.filterwarnings("ignore:InputHeld. the backward solve")
def test_latents_are_trained_by_one_flag() -> None:
    words = ("--task.prior=LatentFit", "--task.prior.latent=4", "--task.prior.widths=[8]")
    run = succeeded(*FIT, *words, "--adjoint=InputHeld", "--solver=SecantTracking", "--solver.max_nfe=8").run
    losses = column(run, "train/loss")
    assert sum(losses[-3:]) < sum(losses[:3])


BOX = ("--task.operator=Inpainting", "--task.operator.sigma=0", "--task.operator.mask=RandomBoxes")
BOX += ("--task.operator.mask.side=5",)


def test_test_compares_with_classical_methods_and_another_model(trained: Path, by_envelope: Path) -> None:
    other = f"--task.compared=[{checkpoint(by_envelope)}]"
    answer = succeeded("test", "--ckpt_path", checkpoint(trained), other, *QUIET)
    run = answer.run
    with (run / "figures" / "restorations.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["ours", "measurement", "total variation", "non-local means", "Envelope"]
    assert (run / "figures" / "test_restorations.png").stat().st_size > 10_000

    task: Any = JointModule.load_from_checkpoint(checkpoint(trained)).eval().task
    assert rows["ours"]["images"] == "8"
    task.data.setup("test")
    whole = next(iter(task.data.test_dataloader()))
    batch = RestorationBatch(*(part[:8] for part in whole))
    module = JointModule.load_from_checkpoint(checkpoint(trained)).eval()
    with torch.enable_grad():
        problem, solved = module.solve(batch)
    images = {
        "measurement": unsigned(batch.y).clamp(0, 1),
        "ours": task.restored(solve_exactly(problem, solved)).clamp(0, 1),
    }
    for name, image in images.items():
        expected = (10 * torch.log10(1 / (image - batch.clean).square().flatten(1).mean(1))).mean().item()
        assert float(rows[name]["psnr"]) == pytest.approx(expected, abs=2e-2), name
    assert float(rows["Envelope"]["psnr"]) < float(rows["ours"]["psnr"])


# -- a user's damaged images ------------------------------------------------------------------------------------------


def damaged(folder: Path, count: int = 3, size: tuple[int, int] = (20, 14)) -> Path:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0)
    for index in range(count):
        ramp = np.add.outer(np.linspace(40, 120, size[0]), np.linspace(0, 90, size[1]))
        noisy = (ramp + 38 * pixels.standard_normal(size)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"mine{index}.png")
    return folder


def roughness(path: Path) -> float:
    with Image.open(path) as picture:
        pixels = np.asarray(picture, np.float64)
    return float(np.abs(np.diff(pixels, axis=0)).mean())


def test_predict_restores_a_folder_beside_it(trained: Path, folder: Path) -> None:
    """At the images' own size, which is not that of the training."""
    root = damaged(folder / "holiday")
    longer = "--solver.max_nfe=30"
    succeeded("predict", "--ckpt_path", checkpoint(trained), "--task.root", root, longer, *QUIET[:1])
    written_beside = folder / "holiday_restored"
    assert sorted(path.name for path in written_beside.iterdir()) == ["mine0.png", "mine1.png", "mine2.png"]
    for path in sorted(root.iterdir()):
        with Image.open(written_beside / path.name) as picture:
            assert picture.size == (14, 20)
        assert roughness(written_beside / path.name) < 0.8 * roughness(path)


def test_predict_fills_holes_that_masks_show(folder: Path) -> None:
    run = succeeded(*FIT, "--trainer.limit_train_batches=2", *BOX).run
    root = damaged(folder / "torn", count=2, size=(16, 16))
    hole = np.full((16, 16), 255, np.uint8)
    hole[4:9, 6:11] = 0
    Image.fromarray(hole).save(folder / "hole.png")
    mask = ("--task.operator=Inpainting", "--task.operator.mask=GivenMask", "--task.operator.mask.path=hole.png")
    mask += ("--task.operator.sigma=0",)
    succeeded("predict", "--ckpt_path", checkpoint(run), "--task.root", root, *mask, *QUIET[:1])
    for path in sorted(root.iterdir()):
        with Image.open(path) as before, Image.open(folder / "torn_restored" / path.name) as after:
            changed = np.abs(np.asarray(before, int) - np.asarray(after, int)) > 1
        assert not changed[hole > 0].any() and changed[hole == 0].any()


# -- what is refused --------------------------------------------------------------------------------------------------

BAD = {
    "--task.operator=Blurring": r"^--task\.operator: there is no 'Blurring' to choose",
    "--task.operator.factor=2": r"^unknown option --task\.operator\.factor: .*sigma",
    "--task.prior=Prior": r"^--task\.prior: there is no 'Prior' to choose",
    "--task.root=nowhere": r"^nowhere is missing: root should be a folder of images",
    "--adjoint=InputHeld": r"Restorer optimises the image itself, so use the adjoint Unrolled, Implicit",
}


@pytest.mark.parametrize("option", BAD)
def test_bad_options(option: str) -> None:
    assert re.search(BAD[option], complaint(*FIT, option))


def test_a_model_of_another_measurement_is_not_compared(trained: Path) -> None:
    nothing = RestorationBatch(*torch.zeros(3, 1, 1, 4, 4), torch.zeros(1))
    message = r"last\.ckpt was trained for another measurement, .*0\.3.*, than that of this test, .*0\.1"
    with pytest.raises(CheckpointError, match=message):
        ComparedModel(str(checkpoint(trained)), Denoising, operators.Denoising(0.1))(nothing)
    with pytest.raises(CheckpointError, match=r"^no checkpoint nothing\.ckpt"):
        ComparedModel("nothing.ckpt", Denoising, operators.Denoising(0.3))
