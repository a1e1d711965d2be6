"""The task denoising on the command line: training by every gradient, resuming, tests beside classical methods and
another model, a folder of damaged images, real data."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.denoising.data import RestorationBatch
from PIL import Image

from command import SMALL_TRAINER, column, complaint, resolved, succeeded, user_folder
from deqopt import JointModule
from deqopt.data import unsigned
from deqopt.solvers import solve_exactly
from paths import REAL_DATA

ORL, CIFAR = REAL_DATA / "faces-orl" / "orl_faces.npz", REAL_DATA / "cifar10-subset" / "train.npz"
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


def test_fit_goes_on(trained: Path) -> None:
    run = succeeded(*FIT, "--ckpt_path", checkpoint(trained), "--trainer.max_epochs=2").run
    assert set(column(run, "epoch")) == {1} and min(column(run, "step")) == 12
    assert column(run, "val/loss") < column(trained, "val/loss")


def test_the_gradient_through_the_optimum_learns_what_the_envelope_does_not(trained: Path, by_envelope: Path) -> None:
    """The first loss is the same, because no gradient is in it."""
    assert column(trained, "train/loss")[0] == pytest.approx(column(by_envelope, "train/loss")[0], rel=1e-5)
    assert column(trained, "val/psnr")[0] > column(by_envelope, "val/psnr")[0] + 0.3


@pytest.mark.parametrize("adjoint", ["Implicit", "Phantom", "JacobianFree"])
@pytest.mark.filterwarnings(*(f"ignore:{name}. the backward solve" for name in ("Implicit", "Phantom", "JacobianFree")))
def test_other_gradients_train_too(adjoint: str) -> None:
    run = succeeded(
        *FIT, f"--adjoint={adjoint}", "--trainer.limit_train_batches=2", "--trainer.log_every_n_steps=1"
    ).run
    assert len(column(run, "train/loss")) == 2 and column(run, "train/backward_residual")


@pytest.mark.filterwarnings("ignore:InputHeld. the backward solve")
def test_latents_are_trained_by_one_flag() -> None:
    words = ("--task.prior=LatentFit", "--task.prior.latent=4", "--task.prior.widths=[8]")
    run = succeeded(*FIT, *words, "--adjoint=InputHeld", "--solver=SecantTracking", "--solver.max_nfe=8").run
    losses = column(run, "train/loss")
    assert sum(losses[-3:]) < sum(losses[:3])


OPERATORS: dict[str, tuple[str, ...]] = {
    "noise": (),
    "less noise": ("--task.operator.sigma=0.1",),
    "box": (
        "--task.operator=Inpainting",
        "--task.operator.sigma=0",
        "--task.operator.mask=RandomBoxes",
        "--task.operator.mask.side=5",
    ),
    "pixels": ("--task.operator=Inpainting", "--task.operator.mask=RandomPixels", "--task.operator.mask.share=0.5"),
    "coarse": ("--task.operator=SuperResolution", "--task.operator.factor=2"),
    "blur": ("--task.operator=Deblurring", "--task.operator.kernel=GaussianKernel", "--task.operator.kernel.side=5"),
    "motion": ("--task.operator=Deblurring", "--task.operator.kernel=MotionKernel", "--task.operator.kernel.length=5"),
    "few numbers": ("--task.operator=CompressedSensing", "--task.operator.ratio=0.5"),
    "other noise": ("--task.noise_seed=1",),
    "mirrored": ("--task.flip=false",),
    "one channel more": ("--task.image_channels=3",),
    "split": ("--task.split_seed=1",),
    "narrow": ("--task.prior.widths=[12]",),
    "coarser network": ("--task.prior.factor=4",),
    "stronger at first": ("--task.prior.first_scale=1",),
}


def test_every_operator_and_option_has_an_effect_of_its_own() -> None:
    words = (*FIT, "--trainer.limit_train_batches=2", "--task.batch_size=8", "--trainer.limit_val_batches=0")
    losses = {}
    for name, more in OPERATORS.items():
        run = succeeded(*words, "--trainer.enable_checkpointing=false", *more).run
        losses[name] = column(run, "train/loss")[1]
    assert all(0 < value < 1 for value in losses.values()), losses
    assert len(set(losses.values())) == len(OPERATORS), losses


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
    run = succeeded(*FIT, "--trainer.limit_train_batches=2", *OPERATORS["box"]).run
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

BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "sigma": (("--task.operator.sigma=-1",), r"^Denoising: sigma must be 0 or larger, got -1\.0$"),
    "operator": (("--task.operator=Blurring",), r"^--task\.operator: there is no 'Blurring' to choose"),
    "option of an operator": (("--task.operator.factor=2",), r"^unknown option --task\.operator\.factor: .*sigma"),
    "kernel": (
        ("--task.operator=Deblurring", "--task.operator.kernel=GaussianKernel", "--task.operator.kernel.side=17"),
        r"17.*16",
    ),
    "factor": (("--task.operator=SuperResolution", "--task.operator.factor=3"), r"3.*16"),
    "hole": (
        ("--task.operator=Inpainting", "--task.operator.mask=RandomBoxes", "--task.operator.mask.side=40"),
        r"40.*16",
    ),
    "prior": (("--task.prior=Prior",), r"^--task\.prior: there is no 'Prior' to choose"),
    "widths": (("--task.prior.widths=[]",), r"^Restorer: widths must be positive numbers"),
    "noise seed": (("--task.noise_seed=-1",), r"^noise_seed must be 0 or larger, got -1$"),
    "nothing compared": (("--task.test_images=0",), r"^denoising: test_images must be at least 1, got 0$"),
    "nowhere": (("--task.root=nowhere",), r"^nowhere is missing: root should be a folder of images"),
    "held": (("--adjoint=InputHeld",), r"Restorer optimises the image itself, so use the adjoint Unrolled, Implicit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options(case: str) -> None:
    words, pattern = BAD[case]
    message = complaint(*FIT, *words)
    assert re.search(pattern, message), message


def test_a_mask_of_another_shape_is_refused(folder: Path) -> None:
    Image.fromarray(np.tile(np.uint8([0, 255]), (8, 4))).save(folder / "small mask.png")
    mask = ("--task.operator=Inpainting", "--task.operator.mask=GivenMask")
    message = complaint(*FIT, *mask, "--task.operator.mask.path=small mask.png")
    assert "small mask.png" in message and re.search(r"8 ?x ?8.*16 ?x ?16", message), message


def test_images_of_several_sizes_are_refused(trained: Path, folder: Path) -> None:
    root = damaged(folder / "sizes")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "odd.png")
    message = complaint("predict", "--ckpt_path", checkpoint(trained), "--task.root", root, *QUIET[:1])
    assert re.search(r"2 sizes, most often 20 x 14 \(mine0\.png\) and 9 x 9 \(odd\.png\)", message), message


def test_holes_without_masks_are_refused(folder: Path) -> None:
    run = succeeded(*FIT, "--trainer.limit_train_batches=1", *OPERATORS["box"]).run
    root = damaged(folder / "holes", size=(16, 16))
    message = complaint("predict", "--ckpt_path", checkpoint(run), "--task.root", root, *QUIET[:1])
    assert "--task.operator.mask GivenMask" in message, message


def test_a_model_of_another_measurement_is_not_compared(trained: Path) -> None:
    other = succeeded(*FIT, "--trainer.limit_train_batches=1", *OPERATORS["less noise"]).run
    compared = f"--task.compared=[{checkpoint(other)}]"
    message = complaint("test", "--ckpt_path", checkpoint(trained), compared, *QUIET)
    assert re.search(
        r"last\.ckpt was trained for another measurement, .*0\.1.*, than that of this test, .*0\.3", message
    )
    nothing = complaint("test", "--ckpt_path", checkpoint(trained), "--task.compared=[nothing.ckpt]", *QUIET)
    assert nothing.startswith("no checkpoint nothing.ckpt")


# -- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not ORL.is_file(), reason=f"the ORL faces are not in {REAL_DATA}")
def test_faces_of_other_people_are_denoised() -> None:
    run = succeeded(*FIT, "--task.root", ORL, "--task.groups=subject", "--task.size=32").run
    assert column(run, "val/psnr")[0] > 10 * np.log10(4 / 0.3**2) + 1


@pytest.mark.skipif(not CIFAR.is_file(), reason=f"the subset of CIFAR-10 is not in {REAL_DATA}")
def test_cifar_is_read() -> None:
    words = ("--task.root", CIFAR, "--task.image_channels=3", "--task.size=32", "--trainer.limit_train_batches=2")
    assert column(succeeded(*FIT, *words).run, "val/psnr")
