"""The task `cifar`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

import torch
from lightning.pytorch import Callback
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from deqopt import Equilibrium, JointProblem, Task
from deqopt.callbacks import ReportUnreadable
from deqopt.data import Download, ImageBatch, ImageDataModule, LabelledSource, open_images, open_labelled, save_image
from deqopt.errors import DataError, ProblemError, check_finite
from deqopt.figures import image_rows
from deqopt.loop_settings import Norm
from deqopt.ranges import at_least
from deqopt.state import State, tensors_of

from .catalogue import AttackName, attacks_named
from .classifier import Branches, Classifier
from .gradients import ExactClassifier
from .losses import Adversarial, Evasion, LogitLoss, TrainingLoss, cross_entropy, rescaling
from .robustness import CleanAccuracy, RobustnessReport
from .threat import Threat

SWEPT = ("pgd", "secant_tracking")


class Cifar(Task):
    """Trains an equilibrium classifier against attacks; the worst perturbation and the equilibrium are found together.

    For an image y in [0, 1] with a label, the solver finds the perturbation x that solves ``max_x loss(head(z))`` with
    ``z = f(z, y + x)``, ``|x| <= radius`` and ``0 <= y + x <= 1``. theta minimises the same loss, so the envelope
    theorem gives its gradient.

    ``--solver Bilevel --solver.descent PGD`` is PGD adversarial training. ``--task.loss Clean`` trains without attacks;
    choose its best checkpoint with ``--checkpoint.monitor val/clean_accuracy --checkpoint.mode max``.
    ``--task.unroll 8`` replaces the equilibrium by a weight-tied feed-forward network of the same size.

    Args:
        root: a folder with MNIST, CIFAR-10 or CIFAR-100 as torchvision lays them out, with ``train.npz`` and
            ``test.npz``, or with one subfolder of images per class; or an ``.npz`` with ``images`` and ``labels``;
            by default the digits of scikit-learn.
        download: data set that torchvision downloads (or unpacks) into ``root``.
        classes: number of classes in the data.
        size: height and width of the images, which are cropped to squares and resized.
        image_channels: number of colour channels, 1 or 3.
        batch_size: images per batch on each device.
        workers: processes that load images; 0 loads them in the main process.
        split_seed: seed that selects the validation images (and the test images, where the data does not define them).
        shift: largest random shift of training images, in pixels.
        flip: whether training images are mirrored at random.
        widths: channels of the cell's branches, finest first.
        resolution: height and width of the finest branch; must divide ``size``. By default half of ``size``.
        unroll: number of times that the cell is applied instead of solving for its equilibrium; by default it is
            solved.
        norm: norm of the perturbation, L2 or LINF.
        radius: the largest norm of a perturbation, in pixel values from 0 to 1; 0 is allowed in evaluation only. Usual
            values are 0.5 and 1 in L2; in LINF, 8/255 for CIFAR and 0.3 for MNIST.
        loss: ``Adversarial`` (the default), ``Clean`` or ``Trades``. Evaluation is under attack for every loss.
        attacks: attacks that ``test`` runs in addition to the solver used in training, by names of
            :class:`AttackName`; may be empty. All except SOLVERS need the extra ``adversarial``.
        attack_images: the largest total number of test images that these attacks use.
        radii: radii at which ``test`` runs PGD and secant tracking; by default 0, 1/2, 1, 3/2 and 2 times ``radius``.
    """

    def __init__(
        self,
        root: str | None = None,
        download: Download | None = None,
        classes: int = 10,
        size: int = 32,
        image_channels: int = 3,
        batch_size: int = 48,
        workers: int = 0,
        split_seed: int = 0,
        shift: int = 0,
        flip: bool = False,
        widths: list[int] = [24, 24],  # noqa: B006
        resolution: int | None = None,
        unroll: int | None = None,
        norm: Norm = Norm.L2,
        radius: float = 0.5,
        loss: TrainingLoss | None = None,
        attacks: list[AttackName] = [  # noqa: B006
            AttackName.SOLVERS,
            AttackName.PGD,
            AttackName.PGD_UNROLLED,
            AttackName.APGD,
            AttackName.SQUARE,
        ],
        attack_images: int = 128,
        radii: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.training_loss = loss or Adversarial()
        self.threat, self.classes = Threat(norm, radius), classes
        check_finite("cifar", radius=radius, radii=radii)
        at_least(1, "cifar", attack_images=attack_images)
        half = size // 2 if resolution is None else resolution
        self.classifier = Classifier(classes, image_channels, size, widths, half, unroll)
        self.class_names = [str(one) for one in range(classes)]
        self._attacks, self._attack_images, self._radii = attacks, attack_images, radii
        self._opened_to_predict = partial(open_images, root, size=size, channels=image_channels)
        self._root, self._download, self._size, self._channels = root, download, size, image_channels
        self._loaded = partial(
            ImageDataModule, batch_size=batch_size, workers=workers, seed=split_seed, shift=shift, flip=flip
        )

    @property
    def cell(self) -> nn.Module:
        """The network behind f."""
        return self.classifier.cell

    @cached_property
    def data(self) -> ImageDataModule:
        """The images; loaded once, so that predictions can be named after the image files."""
        return self._loaded(self._opened, predict_source=self._opened_to_predict)

    def datamodule(self) -> ImageDataModule:
        return self.data

    # -- the problem ----------------------------------------------------------------------------------------------

    def start(self, batch: ImageBatch) -> tuple[State, Tensor]:
        """For a loss that compares with the clean image, x is tiny and random: the divergence has no gradient at 0."""
        z0, x0 = self.attack_start(batch.image)
        if not self._loss.sees_clean:
            return z0, x0
        x0 = self.threat.feasible(batch.image).project(1e-3 * torch.randn_like(x0))
        return (*tensors_of(z0), *tensors_of(z0)), x0

    def problem(self, batch: ImageBatch) -> JointProblem:
        """In training, the problem of the chosen loss; in evaluation, the cross-entropy under attack for every loss.
        In evaluation, logits that are more than ``2 SPREAD`` apart are scaled down, because the gradient could vanish.

        With a loss that ``sees_clean``, z holds the state of the clean image, then the state of the attacked image.

        Raises:
            DataError: images outside [0, 1] or labels outside the classes.
            ProblemError: a radius of 0 in training.
        """
        check_batch(batch, self.classes)
        attacks = self.training_loss.attacks or not self.training
        if self.training and attacks and self.threat.radius == 0:
            raise ProblemError(
                "cifar: radius must be larger than 0 in training, got 0; to train without attacks choose the loss Clean"
            )
        threat = self.threat if attacks else self.threat.at(0.0)
        factor = None if self.training else (2 * self._rescaling(batch.image)).clamp_max(1.0)
        return self._problem(self._loss, batch.image, self._label(batch), threat, factor)

    def attack_problem(self, image: Tensor, label: Tensor, radius: float) -> JointProblem:
        """``max_x log-odds of a wrong class`` with ``z = f(z, image + x)`` over all perturbations within ``radius``.

        The logits are multiplied by the :func:`rescaling` computed from the logits of the clean image.
        """
        return self._problem(Evasion(), image, label, self.threat.at(radius), self._rescaling(image))

    def attack_start(self, image: Tensor) -> tuple[State, Tensor]:
        """The classifier's start, and a perturbation of zero."""
        return self.classifier.start(image), torch.zeros_like(image)

    @property
    def _loss(self) -> LogitLoss:
        return self.training_loss if self.training else Adversarial()

    def _problem(
        self, loss: LogitLoss, image: Tensor, label: Tensor, threat: Threat, factor: Tensor | None = None
    ) -> JointProblem:
        f = self._f_beside_clean if loss.sees_clean else self._f
        data = (image, label) if factor is None else (image, label, factor)
        return JointProblem(f, partial(self._objective, loss), threat.feasible(image), data=data)

    def _f(self, z: Branches, x: Tensor, data: tuple[Tensor, ...]) -> State:
        return self.classifier.f(z, data[0] + x)

    def _f_beside_clean(self, z: Branches, x: Tensor, data: tuple[Tensor, ...]) -> State:
        half = len(z) // 2
        return (*self.classifier.f(z[:half], data[0]), *self.classifier.f(z[half:], data[0] + x))

    def _objective(self, loss: LogitLoss, z: Branches, x: Tensor, data: tuple[Tensor, ...]) -> Tensor:
        branches = len(self.classifier.shapes)
        clean = self.classifier.logits(z[:branches]) if loss.sees_clean else None
        logits = self.classifier.logits(z[-branches:])
        _, label, *factor = data
        return -loss.of(logits * factor[0] if factor else logits, label, clean)

    @torch.no_grad()
    def _rescaling(self, image: Tensor) -> Tensor:
        """(B, 1) the rescaling of the logits of images at their exact equilibrium."""
        return rescaling(ExactClassifier(self.classifier)(image))

    def _label(self, batch: ImageBatch) -> Tensor:
        """The labels; an unknown label (-1) is replaced by the class that the network predicts for the clean image."""
        unknown = batch.label < 0
        return torch.where(unknown, self._seen(batch.image), batch.label) if bool(unknown.any()) else batch.label

    def _seen(self, image: Tensor) -> Tensor:
        """(B,) the predicted classes of images, at their exact equilibrium."""
        return ExactClassifier(self.classifier).predict(image).label

    # -- what is made of the solution -----------------------------------------------------------------------------

    def loss(self, equilibrium: Equilibrium, batch: ImageBatch) -> Tensor:
        """In training, minus the inner objective: the attack maximises this loss and theta minimises it. In
        evaluation, the cross-entropy under attack."""
        if self.training:
            return -equilibrium.objective
        return cross_entropy(self._attacked_logits(equilibrium), self._label(batch))

    def metrics(self) -> Mapping[str, Metric]:
        """``robust_accuracy``: accuracy under attack by the solver; in training, accuracy on the inputs of the loss."""
        return {"robust_accuracy": MulticlassAccuracy(self.classes, average="micro")}

    def outcome(self, equilibrium: Equilibrium, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        return self._attacked_logits(equilibrium), batch.label

    def _attacked_logits(self, equilibrium: Equilibrium) -> Tensor:
        return self.classifier.logits(tensors_of(equilibrium.z)[-len(self.classifier.shapes) :])

    def figures(self, equilibrium: Equilibrium, batch: ImageBatch) -> Mapping[str, Figure]:
        """Images, their perturbations (grey is zero, the largest is black or white) and the predicted classes."""
        shown = slice(0, 12)
        image, x = batch.image[shown], equilibrium.x[shown]
        magnified = x / (2 * x.abs().max().clamp_min(1e-12)) + 0.5
        names = self.class_names
        before, after = self._seen(image).tolist(), self._attacked_logits(equilibrium)[shown].argmax(1).tolist()
        notes = [f"{names[one]}\n\u2192 {names[other]}" for one, other in zip(before, after, strict=True)]
        rows = {"clean": image, "perturbation": magnified, "attacked": image + x}
        title = f"Attacked images, {self.threat}, and the predicted classes before and after"
        return {"attacks": image_rows(rows, title, notes)}

    def callbacks(self) -> list[Callback]:
        attacks = attacks_named(self._attacks, self.attack_problem, self.attack_start, self.classes)
        common = [CleanAccuracy(self.classifier), ReportUnreadable(lambda: self.data.predict_source, "attacked")]
        if not attacks:
            return common
        swept = [attack for attack in attacks if attack.key in SWEPT] or attacks[:1]
        report = RobustnessReport(
            self.classifier, lambda batch: batch[:2], self.threat, attacks, swept, self._radii, self._attack_images
        )
        return [*common, report]

    def write_predictions(self, equilibrium: Equilibrium, batch: ImageBatch, directory: Path) -> list[Path]:
        """``NAME.png``, the attacked image, and ``NAME.json``, the classes and their probabilities, for every NAME."""
        files = []
        images = (batch.image + equilibrium.x).float().cpu()
        with torch.no_grad():
            exact = ExactClassifier(self.classifier)
            clean, attacked = (exact(one).softmax(1).cpu() for one in (batch.image, batch.image + equilibrium.x))
        for row, index in enumerate(batch.index.tolist()):
            name = self.data.predict_source.name(index)
            said = {
                "class": self._class_and_probability(clean[row]),
                "attacked": self._class_and_probability(attacked[row]),
                "norm": self.threat.norm.name,
                "radius": self.threat.radius,
            }
            save_image(directory / f"{name}.png", images[row])
            (directory / f"{name}.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
            files += [directory / f"{name}.png", directory / f"{name}.json"]
        return files

    def _class_and_probability(self, probabilities: Tensor) -> dict[str, str | float]:
        largest = int(probabilities.argmax())
        return {"name": self.class_names[largest], "probability": round(float(probabilities[largest]), 4)}

    # -- the names of the classes, which a checkpoint keeps ---------------------------------------------------------

    def _opened(self) -> LabelledSource:
        source = open_labelled(
            self._root, size=self._size, channels=self._channels, classes=self.classes, download=self._download
        )
        self.class_names = source.class_names
        return source

    def get_extra_state(self) -> dict[str, list[str]]:
        return {"class_names": self.class_names}

    def set_extra_state(self, state: dict[str, list[str]]) -> None:
        """Takes over the names; raises DataError where the opened data has another name for the same class."""
        for index, (here, there) in enumerate(zip(self.class_names, state["class_names"], strict=False)):
            if here != there and str(index) not in (here, there):
                raise DataError(
                    f"cifar: class {index} is {here!r} in the data and {there!r} in the checkpoint: the data must have "
                    "the classes of the training data, in the same order"
                )
        self.class_names = state["class_names"]


def check_batch(batch: ImageBatch, classes: int) -> None:
    """Raise DataError for images outside [0, 1] and for labels that are neither a class nor -1 (unknown)."""
    low, high = (float(bound) for bound in batch.image.aminmax())
    if not (low >= 0 and high <= 1):
        raise DataError(f"cifar: images must be in [0, 1], but the batch has values from {low:g} to {high:g}")
    first, last = (int(bound) for bound in batch.label.aminmax())
    if not (first >= -1 and last < classes):
        raise DataError(
            f"cifar: labels must be 0 to {classes - 1} (or -1 where unknown), but the batch has {first} to {last}: "
            "set classes to the number of classes"
        )
