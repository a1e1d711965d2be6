"""The task celeba: its problem, data, figures, predictions, samples and FID; on digits, and on real faces."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.celeba.sampling import LatentMixture, frechet_distance
from deqopt_tasks.celeba.task import CelebA
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from command import SMALL, column, complaint, succeeded, written
from deqopt import JointModule
from deqopt.data import ImageBatch, ImageDataModule, signed
from deqopt.errors import ProblemError
from deqopt.solvers import Tracking, solve_exactly
from paths import REAL_DATA
from refusals import one_line_error
from stored_images import colours, write_celeba, write_images, write_npz
from tiny_task import quiet_trainer

ORL = REAL_DATA / "faces-orl" / "orl_faces.npz"
with_faces = pytest.mark.skipif(not ORL.is_file(), reason=f"the ORL faces are not in {ORL.parent}")
SETTINGS: dict[str, Any] = {"size": 8, "image_channels": 1, "latent": 4, "widths": [4, 4], "resolution": 4}
RUN = ("--config=small.yaml",)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("DEQOPT_")]:
        monkeypatch.delenv(name)
    written(tmp_path / "small.yaml", SMALL)


def small(**settings: Any) -> CelebA:
    torch.manual_seed(0)
    return CelebA(**{**SETTINGS, **settings})


def batch_of(task: CelebA, count: int = 6) -> ImageBatch:
    channels, height, width = task.image_shape
    images = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1))
    return ImageBatch(images, torch.full((count,), -1), torch.arange(count))


def latents(count: int, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(count, 4, generator=torch.Generator().manual_seed(2))


# -- the problem ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [0.0, 0.5])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_objective_is_the_squared_error_and_the_prior(prior: float, channels: int) -> None:
    task = small(prior=prior, image_channels=channels)
    batch, x = batch_of(task), latents(6)
    z = task.start(batch)[0]
    error = task.decoder.head(z) - (2 * batch.image - 1)
    expected = torch.stack(
        [one.pow(2).sum() + prior * latent.pow(2).sum() for one, latent in zip(error, x, strict=True)]
    )
    torch.testing.assert_close(task.problem(batch).objective(z, x, signed(batch.image)), expected)


def test_the_outer_loss_is_the_objective_a_pixel() -> None:
    """So it is the mean squared error on [-1, 1] where the prior is off, whatever the size of the images."""
    for settings in ({}, {"size": 16, "resolution": 8, "image_channels": 3}):
        task = small(prior=0.0, **settings)
        batch = batch_of(task)
        problem = task.problem(batch)
        found = solve_exactly(problem, Tracking(max_nfe=12).solve(problem, *task.start(batch)))
        prediction, target = task.outcome(found, batch)
        expected = (2 * (prediction - target)).square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(task.loss(found, batch), expected, rtol=1e-4, atol=1e-6)


def test_metrics_are_those_of_the_range_from_zero_to_one() -> None:
    metrics = small().metrics()
    target = torch.full((2, 1, 16, 16), 0.5)
    assert metrics["psnr"](target + 0.1, target).item() == pytest.approx(20.0)  # 10 log10(1 / 0.1^2)
    assert metrics["ssim"](target + 0.2, target + 0.2).item() == pytest.approx(1.0)


def test_fitting_the_latent_beats_the_start_and_the_mean_image() -> None:
    task = small()
    task.requires_grad_(False)
    x = latents(8, spread=2.0)
    batch = ImageBatch(task.decode(x), torch.full((8,), -1), torch.arange(8))  # images that the decoder can make
    problem = task.problem(batch)
    found = Tracking(max_nfe=200, step_size=1.0).solve(problem, *task.start(batch))
    mean = (2 * (batch.image - batch.image.mean(0))).square().sum(dim=(1, 2, 3))
    assert (solve_exactly(problem, found).objective < 0.5 * mean).float().mean() > 0.8


def test_decoding_gives_images_in_range_at_the_equilibrium() -> None:
    task = small()
    x = latents(5, spread=3.0)
    images = task.decode(x)
    assert images.shape == (5, 1, 8, 8) and images.min() > 0 and images.max() < 1 and not images.requires_grad
    assert (images - images.mean(0)).abs().max() > 5e-4, "the latent reaches the image"
    z: Any = task.decoder.start(x)
    for _ in range(500):
        with torch.no_grad():
            z = task.decoder.f(z, x)
    torch.testing.assert_close(signed(images), task.decoder.head(z).detach(), atol=1e-3, rtol=0)


# -- data -------------------------------------------------------------------------------------------------------------


def splits_of(task: CelebA) -> list[set[int]]:
    splits = task.data.splits
    return [set(splits.train), set(splits.val), set(splits.test)]


def test_splits_are_fixed_by_their_seed_alone() -> None:
    splits = splits_of(small())
    torch.manual_seed(5)
    assert splits_of(CelebA(**{**SETTINGS, "size": 16, "resolution": 8, "batch_size": 3})) == splits
    assert splits_of(small(split_seed=1)) != splits


def test_a_folder_like_celeba_has_its_official_partition(tmp_path: Path) -> None:
    root = write_celeba(tmp_path / "data", "001200120012")
    assert splits_of(small(root=str(root))) == [{0, 1, 4, 5, 8, 9}, {2, 6, 10}, {3, 7, 11}]


@with_faces
def test_real_faces_of_one_person_stay_in_one_split() -> None:
    with np.load(ORL) as archive:
        subject = archive["subject"]
    people = [set(subject[sorted(split)]) for split in splits_of(small(root=str(ORL), groups="subject"))]
    assert [len(one) for one in people] == [32, 4, 4] and len(set.union(*people)) == 40


@with_faces
def test_real_faces_train_test_and_predict(tmp_path: Path) -> None:
    words = ("--task.size=16", "--task.resolution=8", "--task.root", ORL, "--task.groups=subject")
    trained = succeeded("fit", *RUN, *words, "--trainer.max_epochs=2", "--trainer.limit_train_batches=6").run
    assert column(trained, "val/loss")[1] < column(trained, "val/loss")[0]
    quiet = ("--ckpt_path=last", "--trainer.enable_progress_bar=false")
    tested = succeeded("test", *quiet, "--trainer.limit_test_batches=1").run
    assert column(tested, "test/psnr")[0] > 5 and "test/fid" not in (tested / "metrics.csv").read_text()
    with np.load(ORL) as archive:
        mine = write_images(tmp_path / "mine", archive["images"][:2])
    predicted = succeeded("predict", *quiet, "--task.root", mine).run
    names = {path.name for path in (predicted / "predictions").iterdir()}
    assert names == {f"00000{index}.{kind}" for index in (1, 2) for kind in ("npy", "png")}


# -- samples and FID --------------------------------------------------------------------------------------------------


def test_the_mixture_finds_the_clusters_of_the_latents() -> None:
    """Samples lie where the latents lie, and not between the clusters, where one Gaussian would put them."""
    centres = torch.tensor([[10.0, 0, 0, 0], [-10.0, 0, 0, 0]])
    data = torch.cat([centre + latents(100, 0.5) for centre in centres])
    samples = LatentMixture(data, components=2).sample(200)
    assert samples.shape == (200, 4) and samples.dtype == torch.float32
    distance = torch.cdist(samples, centres).min(1).values
    assert distance.max() < 5 and 60 < (samples[:, 0] > 0).sum() < 140
    assert torch.cdist(LatentMixture(data, components=1).sample(200), centres).min(1).values.median() > 3


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_the_mixture_takes_as_many_components_as_the_data_carries(count: int) -> None:
    mixture = LatentMixture(latents(count), components=10)
    samples = mixture.sample(16)
    assert samples.shape == (16, 4) and samples.isfinite().all()
    assert torch.equal(samples, LatentMixture(latents(count), components=10).sample(16))


class Means(nn.Module):
    """Features for an FID: means of the quarters of an image."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).mean(1).flatten(1).double()


class NoModule:
    """Not an ``nn.Module``."""


class Needy(nn.Module):
    """Cannot be made without arguments."""

    def __init__(self, size: int) -> None:
        super().__init__()


def gaussian_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of Gaussians fitted to features (N, d), by the eigenvalues of the product of covariances."""
    covariances = [torch.cov(one.T) for one in (a, b)]
    root = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp_min(0).sqrt().sum()
    traces = sum(one.trace() for one in covariances)
    return float((a.mean(0) - b.mean(0)).square().sum() + traces - 2 * root)


def test_the_fid_is_by_the_features_that_the_user_names() -> None:
    images = [torch.randint(0, high, (40, 3, 8, 8), dtype=torch.uint8) for high in (255, 120)]
    metric = frechet_distance(f"{__name__}.Means")
    metric.update(images[0], real=True)
    metric.update(images[1], real=False)
    expected = gaussian_distance(*(Means()(one) for one in images))
    assert expected > 0.05 and float(metric.compute()) == pytest.approx(expected, rel=1e-3)


def test_test_reports_the_fid_where_its_features_can_be_made(tmp_path: Path) -> None:
    write_images(tmp_path / "few", colours(30))
    succeeded("fit", *RUN, "--task.root=few", "--trainer.max_epochs=1")
    words = ("test", "--ckpt_path=last", "--trainer.enable_progress_bar=false", "--trainer.limit_test_batches=1")
    message = complaint(*words, "--task.fid_features=no_such.Features")
    assert message == "fid_features: cannot make 'no_such.Features': No module named 'no_such'"
    assert not list(Path("runs").glob("*/*/figures/test_*")), "it is said before the test begins"
    (fid,) = column(succeeded(*words, f"--task.fid_features={__name__}.Means").run, "test/fid")
    assert fid > 0


BAD_FEATURES: dict[str, tuple[int | str, str]] = {
    "no module": ("no_such.Features", r"cannot make 'no_such\.Features': No module named 'no_such'"),
    "no name": (f"{__name__}.Nothing", r"cannot make '.*Nothing': .*has no attribute 'Nothing'"),
    "no nn.Module": (f"{__name__}.NoModule", r"'.*NoModule' must name an nn\.Module, not NoModule"),
    "arguments": (f"{__name__}.Needy", r"cannot make '.*Needy': .*missing 1 required positional argument: 'size'"),
    "number": (65, r"65 gives no Inception features: .*one of \(64, 192, 768, 2048\)"),
}


@pytest.mark.parametrize("case", BAD_FEATURES)
def test_features_that_are_none(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, pattern = BAD_FEATURES[case]
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", True)
    with pytest.raises(ProblemError, match=rf"^fid_features: {pattern}"):
        frechet_distance(features)


def test_without_inception_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(ProblemError, match=r"2048 needs the extra fid: pip install 'deqopt\[fid\]'$"):
        frechet_distance(2048)


def test_the_fewest_images_that_can_be_split_are_enough_but_for_an_fid(tmp_path: Path) -> None:
    write_npz(tmp_path / "three.npz", images=colours(3))
    words = (*RUN, "--task.root=three.npz", "--trainer.max_epochs=1")
    assert (succeeded("fit", *words).run / "figures" / "samples.png").is_file()
    message = complaint("test", *words, "--ckpt_path=last", f"--task.fid_features={__name__}.Means")
    assert message == "fid_features: an FID needs two test images or more, three.npz gives 1"


# -- settings ---------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[], object], str]] = {
    "latent": (lambda: small(latent=0), r"^celeba: latent must be at least 1, got 0$"),
    "components": (lambda: small(components=0), r"^celeba: components must be at least 1, got 0$"),
    "prior": (lambda: small(prior=-1.0), r"^celeba: prior must be 0 or larger, got -1\.0$"),
    "NaN prior": (lambda: small(prior=float("nan")), r"^celeba: prior must be 0 or larger, got nan$"),
    "no branches": (lambda: small(widths=[]), r"one a branch, got \[\]"),
    "too many branches": (lambda: small(widths=[4] * 4), r"multiple of 8; got 4"),
    "size": (lambda: small(size=10), r"size must be a multiple of the resolution 4, got 10"),
    "resolution": (lambda: small(resolution=0), r"multiple of 2; got 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case: str) -> None:
    one_line_error(*BAD[case], ProblemError)


# -- what is fitted, is fitted on the training images -----------------------------------------------------------------


def constant_images(directory: Path, seen: Callable[[CelebA], list[int]]) -> CelebA:
    """A task of 40 images, of which those with the indices ``seen`` are bright and all others dark."""
    path = directory / "constant.npz"
    pixels = np.random.default_rng(0).integers(0, 40, (40, 8, 8), np.uint8)
    np.savez(path, images=pixels)
    pixels[seen(small(root=str(path)))] += 200
    np.savez(path, images=pixels)
    return small(root=str(path), batch_size=8)


def bench(directory: Path) -> Trainer:
    return quiet_trainer(directory, logger=CSVLogger(directory), max_epochs=1)


def test_the_mean_image_is_that_of_the_training_images(tmp_path: Path) -> None:
    task = constant_images(tmp_path, lambda task: task.data.splits.test)
    (figures,) = bench(tmp_path).test(JointModule(task, solver=Tracking(max_nfe=6)), task.datamodule(), verbose=False)
    train, test = (
        torch.stack([task.data.source[index].image for index in split])
        for split in (task.data.splits.train, task.data.splits.test)
    )
    errors = (test - train.mean(0)).square().flatten(1).mean(1)
    assert figures["test/psnr_mean_image"] == pytest.approx(float((10 * torch.log10(1 / errors)).mean()), rel=1e-5)
    assert figures["test/psnr_mean_image"] < 10, "as far from the test images as bright from dark"
    assert figures["test/psnr_ours"] == pytest.approx(figures["test/psnr"], rel=1e-5)
    assert figures["test/ssim_ours"] == pytest.approx(figures["test/ssim"], rel=1e-4)
    (table,) = tmp_path.rglob("figures/reconstructions.csv")
    assert [row.split(",")[0] for row in table.read_text().splitlines()] == ["method", "ours", "mean image"]


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_the_mixture_is_fitted_to_the_latents_of_the_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    fitted: list[Tensor] = []

    class Kept(LatentMixture):
        def __init__(self, latents: Tensor, components: int, seed: int = 0) -> None:
            fitted.append(latents)
            super().__init__(latents, components, seed)

    monkeypatch.setattr("deqopt_tasks.celeba.sampling.LatentMixture", Kept)
    task = constant_images(tmp_path, lambda task: task.data.splits.train)
    module = JointModule(task, solver=Tracking(max_nfe=6))
    getattr(bench(tmp_path), stage)(module, datamodule=task.datamodule())
    assert isinstance(task.data, ImageDataModule)
    indices = task.data.splits.train
    images = torch.stack([task.data.source[index].image for index in indices])
    torch.testing.assert_close(
        fitted[0],
        module.eval()(ImageBatch(images, torch.full((len(indices),), -1), torch.tensor(indices))).x,
        rtol=1e-3,
        atol=1e-4,
    )
