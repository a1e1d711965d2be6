"""The task `celeba`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio

from deqopt import Equilibrium, JointProblem, Task
from deqopt.callbacks import ReportUnreadable
from deqopt.data import ImageBatch, ImageDataModule, open_images, save_image, signed, unsigned
from deqopt.errors import check_finite
from deqopt.figures import image_rows
from deqopt.fixed_point import Anderson
from deqopt.image_quality import psnr
from deqopt.nn import Decoder
from deqopt.ranges import at_least, not_negative
from deqopt.ssim import StructuralSimilarity
from deqopt.state import State, tensors_of

from .report import ReconstructionReport
from .sampling import SampleGallery


class CelebA(Task):
    """Trains an equilibrium decoder of images; the latent of every image is optimised together with its equilibrium.

    For every image y, the solver finds the latent x that solves ``min_x |G(x) - y|^2 + prior |x|^2``. ``G(x)`` is read
    off the equilibrium ``z = f(z, x)``, and pixel values go from -1 (black) to 1 (white). The outer loss is the same
    objective divided by the number of pixels, so the envelope theorem gives its gradient.

    Args:
        root: a folder with torchvision's ``celeba/`` inside, any folder of images, or an ``.npz`` with ``images``;
            by default the digits of scikit-learn.
        download: let torchvision download CelebA to ``root``.
        groups: name of an array in the ``.npz``, such as ``subject``; images with equal entries in it stay in one
            split.
        size: height and width of the images, which are cropped to squares and resized.
        image_channels: number of colour channels, 1 or 3.
        batch_size: images per batch on each device.
        workers: processes that load images; 0 loads them in the main process.
        split_seed: seed of the division into train, validation and test (80/10/10, or the official one of CelebA).
        latent: length of x.
        widths: channels of the cell's branches, finest first.
        resolution: height and width of the finest branch; must divide ``size``. By default half of ``size``.
        prior: weight of ``|x|^2`` against the squared error summed over pixels (on the range [-1, 1]).
        components: number of components of the Gaussian mixture that is fitted to the training latents to draw samples.
        fid_features: features for the FID of the samples in ``test``: a number of Inception features (64, 192, 768,
            2048; needs the extra ``fid`` and its weights), or ``module.Class`` of an ``nn.Module`` from uint8 images
            (B, 3, H, W) to (B, features). By default no FID is computed.
    """

    def __init__(
        self,
        root: str | None = None,
        download: bool = False,
        groups: str | None = None,
        size: int = 64,
        image_channels: int = 3,
        batch_size: int = 32,
        workers: int = 0,
        split_seed: int = 0,
        latent: int = 64,
        widths: list[int] = [32, 64],  # noqa: B006
        resolution: int | None = None,
        prior: float = 1e-3,
        components: int = 10,
        fid_features: int | str | None = None,
    ) -> None:
        super().__init__()
        at_least(1, "celeba", latent=latent, components=components)
        not_negative("celeba", prior=prior)
        check_finite("celeba", prior=prior)
        self.latent, self.prior, self.image_shape = latent, prior, (image_channels, size, size)
        self.decoder = Decoder(latent, widths, size // 2 if resolution is None else resolution, image_channels, size)
        self._components, self._fid_features = components, fid_features
        opened = partial(open_images, root, size=size, channels=image_channels, download=download)
        self._loaded = partial(
            ImageDataModule,
            partial(opened, groups=groups),
            predict_source=opened,
            batch_size=batch_size,
            workers=workers,
            seed=split_seed,
        )

    @property
    def cell(self) -> nn.Module:
        """The network behind f."""
        return self.decoder.cell

    @cached_property
    def data(self) -> ImageDataModule:
        """The images; loaded once, so that predictions can be named after the image files."""
        return self._loaded()

    def datamodule(self) -> ImageDataModule:
        return self.data

    def start(self, batch: ImageBatch) -> tuple[State, Tensor]:
        x0 = batch.image.new_zeros(batch.image.shape[0], self.latent)
        return self.decoder.start(x0), x0

    def problem(self, batch: ImageBatch) -> JointProblem:
        return JointProblem(self._f, self._objective, data=signed(batch.image))

    def _f(self, z: tuple[Tensor, ...], x: Tensor, y: Tensor) -> State:
        return self.decoder.f(z, x)

    def _objective(self, z: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
        error = (self.decoder.head(z).to(y.dtype) - y).square().flatten(1).sum(1)
        return error + self.prior * x.square().sum(1)

    def loss(self, equilibrium: Equilibrium, batch: ImageBatch) -> Tensor:
        """The objective per pixel, so that the weights of penalties do not depend on the size of the images."""
        return equilibrium.objective / batch.image[0].numel()

    def metrics(self) -> Mapping[str, Metric]:
        return {"psnr": PeakSignalNoiseRatio(data_range=(0.0, 1.0), dim=(1, 2, 3)), "ssim": StructuralSimilarity()}

    def outcome(self, equilibrium: Equilibrium, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        return unsigned(self.decoder.head(equilibrium.z)), batch.image

    def decode(self, x: Tensor) -> Tensor:
        """Images (B, channels, size, size) in (0, 1) of latents (B, latent), each at its exact equilibrium."""
        z = Anderson(max_nfe=100, tol=1e-5).solve(lambda z: self.decoder.f(tensors_of(z), x), self.decoder.start(x)).z
        with torch.no_grad():
            return unsigned(self.decoder.head(z))

    def figures(self, equilibrium: Equilibrium, batch: ImageBatch) -> Mapping[str, Figure]:
        shown = slice(0, 10)
        images, target = self.outcome(equilibrium, batch)
        notes = [f"{value:.1f} dB" for value in psnr(images[shown], target[shown]).tolist()]
        rows = {"original": target[shown], "reconstruction": images[shown]}
        return {"reconstructions": image_rows(rows, "Images and their reconstructions at the feasible point", notes)}

    def callbacks(self) -> list[Callback]:
        return [
            ReconstructionReport(self.data, lambda equilibrium, batch: self.outcome(equilibrium, batch)[0]),
            SampleGallery(self.data, self.decode, components=self._components, features=self._fid_features),
            ReportUnreadable(lambda: self.data.predict_source, "reconstructed"),
        ]

    def write_predictions(self, equilibrium: Equilibrium, batch: ImageBatch, directory: Path) -> list[Path]:
        """``NAME.png``, the reconstruction, and ``NAME.npy``, the latent (latent,), for every image NAME."""
        files = []
        images = self.outcome(equilibrium, batch)[0].float().cpu()
        for index, image, x in zip(batch.index.tolist(), images, equilibrium.x.float().cpu().numpy(), strict=True):
            name = self.data.predict_source.name(index)
            save_image(directory / f"{name}.png", image)
            np.save(directory / f"{name}.npy", x)
            files += [directory / f"{name}.png", directory / f"{name}.npy"]
        return files
