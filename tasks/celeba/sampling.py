"""Sampling: a Gaussian mixture over the training latents, whose samples are decoded, shown, and evaluated by FID."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchmetrics.image.fid import FrechetInceptionDistance

from deqopt.callbacks.figures import figure_directory
from deqopt.data import ImageDataModule
from deqopt.errors import ProblemError, TrustError
from deqopt.figures import image_mosaic, write_figure
from deqopt.module import JointModule
from deqopt.trust import NoSuchKindError, trusted_class


class LatentMixture:
    """A Gaussian mixture over latents (N, latent), with a number of components that fits the amount of data.

    Args:
        components: largest number of components; each needs at least two latents per dimension.
        seed: seed of the fit and of the samples.
    """

    def __init__(self, latents: Tensor, components: int, seed: int = 0) -> None:
        if len(latents) == 1:
            latents = latents.repeat(2, 1)  # GaussianMixture needs at least two
        count, dimension = latents.shape
        carried = int(np.clip(count // (2 * dimension), 1, components))
        scale = float(latents.var())
        self._mixture = GaussianMixture(carried, reg_covar=1e-3 * scale + 1e-9, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._mixture.fit(latents.double().cpu().numpy())

    def sample(self, count: int) -> Tensor:
        """(count, latent), float32; the same at every call."""
        drawn, _ = self._mixture.sample(count)
        return torch.from_numpy(np.random.RandomState(0).permutation(drawn)).float()


class SampleGallery(Callback):
    """At the end of fit and of test: fits the mixture, writes ``figures/samples.png``; in test also logs the FID.

    Runs in the first process only.

    Args:
        data: the images.
        decode: function from latents (B, latent) to images (B, channels, size, size).
        components: number of components of the mixture.
        features: see ``fid_features`` of the task.
        images: largest number of training images whose latents are used, and of test images that FID compares.
        batch_size: number of images that are solved at once.
    """

    def __init__(
        self,
        data: ImageDataModule,
        decode: Callable[[Tensor], Tensor],
        components: int,
        features: int | str | None = None,
        images: int = 2048,
        batch_size: int = 64,
    ) -> None:
        self._data, self._decode = data, decode
        self._components, self._features = components, features
        self._images, self._batch_size = images, batch_size
        self._fid: FrechetInceptionDistance | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the features before the test, not after it."""
        if stage == "test" and self._features is not None:
            self._fid = frechet_distance(self._features)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run(trainer, pl_module)

    def _run(self, trainer: Trainer, module: LightningModule) -> None:
        directory = figure_directory(trainer)
        if directory is None:
            return
        assert isinstance(module, JointModule)
        training = module.training
        module.eval()
        weight = next(module.parameters())
        mixture = LatentMixture(self._latents(module, weight), self._components)
        samples = self._decode(mixture.sample(64).to(weight))
        write_figure(
            image_mosaic(samples, "Samples: latents drawn from the Gaussian mixture"), directory / "samples.png"
        )
        if self._fid is not None:
            fid = self._distance(self._fid.to(module.device), mixture, weight)
            for logger in trainer.loggers:
                logger.log_metrics({"test/fid": fid}, step=trainer.global_step)
            rank_zero_info(f"test/fid {fid:.2f}")
        module.train(training)

    def _latents(self, module: JointModule, weight: Tensor) -> Tensor:
        batches = self._batches(self._data.splits.train)
        return torch.cat([module(batch._replace(image=batch.image.to(weight))).x for batch in batches])

    def _distance(self, metric: FrechetInceptionDistance, mixture: LatentMixture, weight: Tensor) -> float:
        split = self._data.splits.test
        if len(split) < 2:
            raise ProblemError(f"fid_features: an FID needs two test images or more, {self._data.source.where} gives 1")
        seen = 0
        for batch in self._batches(split):
            metric.update(_as_bytes(batch.image.to(metric.device)), real=True)
            seen += len(batch.image)
        for x in mixture.sample(seen).split(self._batch_size):
            metric.update(_as_bytes(self._decode(x.to(weight))), real=False)
        return float(metric.compute())

    def _batches(self, split: list[int]) -> DataLoader[Any]:
        images = Subset(self._data.source, split[: self._images])
        return DataLoader(images, self._batch_size, collate_fn=self._data.collate(training=False))


def frechet_distance(features: int | str) -> FrechetInceptionDistance:
    """The FID with a number of Inception features, or with the named ``nn.Module``.

    Raises:
        ProblemError: Inception is not installed; or the name cannot be imported, or is not an ``nn.Module`` that needs
            no arguments.
    """
    extractor = features if isinstance(features, int) else _named_module(features)
    try:
        return FrechetInceptionDistance(feature=extractor)
    except ModuleNotFoundError as error:
        raise ProblemError(f"fid_features: {features} needs the extra fid: pip install 'deqopt[fid]'") from error
    except (OSError, ValueError) as error:  # the weights cannot be downloaded; another number
        reason = " ".join(str(error).split())
        raise ProblemError(f"fid_features: {features} gives no Inception features: {reason}") from error


def _named_module(name: str) -> nn.Module:
    try:
        return trusted_class(name, nn.Module)().eval()
    except NoSuchKindError as error:
        raise ProblemError(f"fid_features: {name!r} must name an nn.Module, not {error.found}") from error
    except (TrustError, ImportError, AttributeError, ValueError, TypeError) as error:
        raise ProblemError(f"fid_features: cannot make {name!r}: {error}") from error


def _as_bytes(images: Tensor) -> Tensor:
    images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
