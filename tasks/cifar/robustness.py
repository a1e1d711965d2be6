"""The callback that attacks test images and reports what withstands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from deqopt.batch import size_of
from deqopt.callbacks.figures import figure_directory
from deqopt.errors import ProblemError
from deqopt.figures import write_figure

from .attacks import Attack
from .classifier import Classifier
from .evaluation import Robustness, Summary
from .figures import accuracy_against_radius, write_table
from .gradients import ExactClassifier
from .threat import Threat

RADII = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Of the sweep, in units of the threat's radius."""


class RobustnessReport(Callback):
    """In test: attacks the first test images, logs accuracies, prints a table, writes ``figures/robustness.*``.

    Logs ``test/robust_accuracy_<attack>``, ``test/robust_accuracy_worst`` (of the images that withstand every attack),
    ``test/robust_accuracy_none`` (without an attack, of the same images), and ``test/sweep_<attack>_<radius>``. The
    figure shows accuracy against radius; the CSV beside it holds its points. With several processes each attacks its
    share.

    Args:
        classifier: that is attacked.
        samples: a batch to its images (B, channels, H, W) in [0, 1] and labels (B,).
        threat: norm, and the radius that was trained for.
        attacks: at that radius.
        swept: at all ``radii``.
        radii: of the sweep; by default 0, 1/2, 1, 3/2 and 2 of the threat's.
        images: the most that are attacked, in all.

    Raises:
        ProblemError: no image or no attack, two attacks of one name; when the test starts, an attack that needs what is
            not installed.
    """

    def __init__(
        self,
        classifier: Classifier,
        samples: Callable[[Any], tuple[Tensor, Tensor]],
        threat: Threat,
        attacks: Sequence[Attack],
        swept: Sequence[Attack] = (),
        radii: Sequence[float] | None = None,
        images: int = 256,
    ) -> None:
        if images < 1:
            raise ProblemError(f"robustness needs at least one test image to attack, got {images}")
        radii = [share * threat.radius for share in RADII] if radii is None else radii
        self._robustness = Robustness(threat, tuple(attacks), tuple(swept), tuple(radii))
        self._model = ExactClassifier(classifier)
        self._samples, self._images = samples, images
        self._seen, self._attacked = 0, 0
        self._counts = self._robustness.no_counts()
        self._summary: Summary | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Complains of what is not installed before the test, not in it."""
        if stage == "test":
            for trial in self._robustness.trials:
                trial.attack.require()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen, self._attacked = 0, 0
        self._counts, self._summary = self._robustness.no_counts(), None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        batch = outputs["batch"]  # without samples that are not finite
        self._seen += size_of(batch)
        share = self._images // trainer.world_size + (trainer.global_rank < self._images % trainer.world_size)
        images, labels = (part[: share - self._attacked] for part in self._samples(batch))
        if len(images):
            self._attacked += len(images)
            self._counts += self._robustness.judge(self._model, images, labels).counts()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mine = torch.cat([torch.tensor([self._seen]), self._counts]).to(pl_module.device)
        self._seen, *counts = trainer.strategy.reduce(mine, reduce_op="sum").tolist()
        summary = self._summary = self._robustness.summary(counts)
        figures = {"robust_accuracy_none": summary.clean, "robust_accuracy_worst": summary.worst}
        figures |= {f"robust_accuracy_{attack.key}": share for attack, share in summary.attacked.items()}
        figures |= {f"sweep_{trial.attack.key}_{trial.radius:g}": share for trial, share in summary.sweep.items()}
        for name, share in figures.items():
            pl_module.log(f"test/{name}", share, sync_dist=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        directory, summary = figure_directory(trainer), self._summary
        assert summary is not None
        rank_zero_info(summary.report(self._seen))
        if directory is not None:
            write_figure(accuracy_against_radius(summary), directory / "robustness.png")
            write_table(summary, directory / "robustness.csv")
