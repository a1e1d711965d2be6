"""The task `denoising`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

from lightning.pytorch import Callback
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio

from deqopt import Equilibrium, JointProblem, Task
from deqopt.adjoints import Adjoint, Unrolled
from deqopt.callbacks import ReportUnreadable
from deqopt.data import EmbeddedPhotographs, open_images, save_image, signed, unsigned
from deqopt.errors import ProblemError
from deqopt.figures import image_rows
from deqopt.image_quality import psnr
from deqopt.ranges import at_least
from deqopt.solvers import JointAnderson, JointSolver, StepRule
from deqopt.ssim import StructuralSimilarity
from deqopt.state import State, tensors_of

from . import inpainting, latent_fit, operators, restorer  # noqa: F401  (their classes are options by name)
from .compared import ComparedModel
from .data import DamagedImages, RestorationBatch, RestorationData
from .operator import MeasurementOperator, as_operator
from .prior import MeasurementData, PriorFamily
from .report import RestorationReport


class Denoising(Task):
    """Restores noisy, incomplete or blurred images; the prior is learned by differentiating through the optimum.

    A measurement is ``y = A u + sigma n``. The inner problem depends on the measurement alone,

        min_x  |A u(z, x) - y|^2 / 2 + R(z, x)     subject to   z = f(z, x),   x in X

    and the outer loss is the squared error per pixel: ``|u - clean|^2 / pixels``. u, the clean image and the noise are
    all in units in which pixel values go from -1 to 1. The gradient of this loss must pass through x: use
    ``--adjoint Unrolled`` (the default here), ``Implicit``, ``Phantom`` or ``JacobianFree``. With ``Envelope`` the
    value of the loss is the same, but training lowers the inner objective, which does not contain the clean image.

    Args:
        root: a folder of clean images, an ``.npz`` with ``images``, or a folder with torchvision's ``celeba/`` inside;
            by default patches of the two photographs of scikit-learn. In ``predict``: a folder (or ``.npz``) of damaged
            images, which are restored at their original size into the folder ``ROOT_restored`` beside ``root``.
        download: let torchvision download CelebA to ``root``.
        groups: name of an array in the ``.npz``, such as ``subject``; images with equal entries in it stay in one
            split.
        size: height and width of the clean images, which are cropped to squares and resized.
        image_channels: number of colour channels, 1 or 3.
        batch_size: images per batch on each device.
        workers: processes that load images; 0 loads them in the main process.
        split_seed: seed of the division into train, validation and test (80/10/10, or the official one of CelebA).
        noise_seed: seed of noise and masks. Those of training change with the epoch; those of evaluation stay the same.
        flip: whether training images are mirrored at random.
        operator: how images are measured: ``Denoising`` (the default, sigma 0.2), ``Inpainting``, ``SuperResolution``,
            ``Deblurring`` or ``CompressedSensing``; in code also any object with ``A`` and ``A_adjoint``.
        prior: the family of models: ``Restorer`` (the default) or ``LatentFit``.
        compared: checkpoints of other models for the same measurement, with which ``test`` compares this model; such as
            the same model trained with another adjoint.
        test_images: the largest number of test images that ``test`` restores by classical methods and by the compared
            models, and of validation images on which the settings of the classical methods are chosen.
    """

    def __init__(
        self,
        root: str | None = None,
        download: bool = False,
        groups: str | None = None,
        size: int = 32,
        image_channels: int = 3,
        batch_size: int = 16,
        workers: int = 0,
        split_seed: int = 0,
        noise_seed: int = 0,
        flip: bool = True,
        operator: MeasurementOperator | None = None,
        prior: PriorFamily | None = None,
        compared: list[str] = [],  # noqa: B006
        test_images: int = 64,
    ) -> None:
        super().__init__()
        at_least(1, "denoising", test_images=test_images)
        self.operator = operators.Denoising() if operator is None else as_operator(operator)
        self.image_shape = (image_channels, size, size)
        self.operator.check(self.image_shape)
        self.prior = (prior or restorer.Restorer()).build(self.image_shape)
        self._root = None if root is None else Path(root).expanduser()
        self._compared, self._test_images = compared, test_images
        self._open = partial(
            open_images,
            root,
            size=size,
            channels=image_channels,
            download=download,
            groups=groups,
            embedded=EmbeddedPhotographs,
        )
        self._loaded = partial(
            RestorationData, batch_size=batch_size, workers=workers, seed=split_seed, noise_seed=noise_seed, flip=flip
        )

    @classmethod
    def default_solver(cls) -> JointSolver:
        """A short solve with memory of earlier points, so that the gradient can pass through all its evaluations."""
        return JointAnderson(max_nfe=6, step_size=0.3, step_rule=StepRule.PLAIN, history_size=5)

    @classmethod
    def default_adjoint(cls) -> Adjoint:
        return Unrolled()

    @property
    def cell(self) -> nn.Module:
        """The network behind f."""
        return self.prior.cell

    @cached_property
    def data(self) -> RestorationData:
        """The images; loaded once, so that restored images can be named after their files."""
        damaged = None
        if self._root is not None:
            damaged = partial(DamagedImages, self._root, self.operator, self.image_shape[0])
        return self._loaded(self._open, self.operator, predict_source=damaged)

    def datamodule(self) -> RestorationData:
        return self.data

    # -- the problem ----------------------------------------------------------------------------------------------

    def start(self, batch: RestorationBatch) -> tuple[State, Tensor]:
        return self.prior.start(self._known(batch))

    def problem(self, batch: RestorationBatch) -> JointProblem:
        known = self._known(batch)
        feasible = self.prior.feasible(self.operator, known)
        return JointProblem(self._f, self._objective, feasible, data=known)

    def _f(self, z: tuple[Tensor, ...], x: Tensor, known: MeasurementData) -> State:
        return self.prior.f(z, x, known)

    def _objective(self, z: tuple[Tensor, ...], x: Tensor, known: MeasurementData) -> Tensor:
        image = self.prior.image(z, x)
        misfit = self.operator.bind(known.parameters).A(image.to(known.y.dtype)) - known.y
        return misfit.square().flatten(1).sum(1) / 2 + self.prior.energy(z, x, known)

    def estimate(self, batch: RestorationBatch) -> Tensor:
        """(B, channels, H, W): the measurement as an image, about [0, 1]."""
        return unsigned(self.operator.bind(batch.parameters).estimate(batch.y))

    def _known(self, batch: RestorationBatch) -> MeasurementData:
        return MeasurementData.of(self.operator, batch.y, batch.parameters)

    # -- what is made of the solution -----------------------------------------------------------------------------

    def restored(self, equilibrium: Equilibrium) -> Tensor:
        """u, (B, channels, H, W), as pixels: about [0, 1]."""
        return unsigned(self.prior.image(tensors_of(equilibrium.z), equilibrium.x))

    def loss(self, equilibrium: Equilibrium, batch: RestorationBatch) -> Tensor:
        """The squared error per pixel, in units in which pixel values go from -1 to 1.

        With an adjoint that carries gradients through the objective but not through z and x, the value is the same,
        and the gradient is that of the inner objective per pixel.

        Raises:
            ProblemError: the adjoint holds x fixed, and the image is x itself, so that nothing would be learned.
        """
        equilibrium = equilibrium.detach_held()
        image = self.prior.image(tensors_of(equilibrium.z), equilibrium.x)
        error = (image - signed(batch.clean)).square().flatten(1).mean(1)
        if not equilibrium.objective.requires_grad:
            return error
        if any(part.requires_grad for part in (*tensors_of(equilibrium.z), equilibrium.x)):
            if not error.requires_grad:
                raise ProblemError(
                    "denoising: the adjoint carries no gradient to the restored image: the prior Restorer optimises "
                    "the image itself, so use the adjoint Unrolled, Implicit, Phantom or JacobianFree"
                )
            return error
        objective = equilibrium.objective / batch.clean[0].numel()
        return error.detach() + objective - objective.detach()

    def metrics(self) -> Mapping[str, Metric]:
        return {"psnr": PeakSignalNoiseRatio(data_range=(0.0, 1.0), dim=(1, 2, 3)), "ssim": StructuralSimilarity()}

    def outcome(self, equilibrium: Equilibrium, batch: RestorationBatch) -> tuple[Tensor, Tensor]:
        return self.restored(equilibrium).clamp(0, 1), batch.clean

    def figures(self, equilibrium: Equilibrium, batch: RestorationBatch) -> Mapping[str, Figure]:
        shown = slice(0, 10)
        image, clean = self.restored(equilibrium)[shown], batch.clean[shown]
        notes = [f"{value:.1f} dB" for value in psnr(image.clamp(0, 1), clean).tolist()]
        rows = {"clean": clean, "measurement": self.estimate(batch)[shown], "restored": image}
        return {"restored": image_rows(rows, "Images, their measurements, and the restored images", notes)}

    def callbacks(self) -> list[Callback]:
        report = RestorationReport(
            self.data,
            self.operator,
            restore=lambda equilibrium, batch: self.restored(equilibrium),
            others=self._others(),
            images=self._test_images,
        )
        return [report, ReportUnreadable(self.data.damaged, "restored")]

    def _others(self) -> dict[str, ComparedModel]:
        """The models to compare with, by the name of their adjoint, plus the path where two have the same adjoint."""
        models = {path: ComparedModel(path, Denoising, self.operator) for path in self._compared}
        names = [one.name for one in models.values()]
        return {one.name if names.count(one.name) == 1 else f"{one.name} {path}": one for path, one in models.items()}

    def prediction_directory(self) -> Path | None:
        """``ROOT_restored``, beside the folder of damaged images; without such a folder, the one of the run."""
        return None if self._root is None else self._root.with_name(f"{self._root.stem}_restored")

    def write_predictions(self, equilibrium: Equilibrium, batch: RestorationBatch, directory: Path) -> list[Path]:
        """``NAME.png``, the restored image, for every image NAME."""
        files = []
        for index, image in zip(batch.index.tolist(), self.restored(equilibrium).float().cpu(), strict=True):
            files.append(directory / f"{self.data.predict_source.name(index)}.png")
            save_image(files[-1], image)
        return files
