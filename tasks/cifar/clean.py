"""The accuracy on clean images, in addition to the accuracy under attack."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .classifier import Classifier
from .gradients import ExactClassifier


class CleanAccuracy(Callback):
    """Logs ``val/clean_accuracy`` and ``test/clean_accuracy``, at the exact equilibria of all images.

    Args:
        classifier: classifier to evaluate.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._model = ExactClassifier(classifier)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._log("val", pl_module, outputs["batch"])

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._log("test", pl_module, outputs["batch"])

    def _log(self, stage: str, pl_module: LightningModule, batch: Any) -> None:
        correct = self._model.predict(batch.image).label == batch.label
        name = f"{stage}/clean_accuracy"
        pl_module.log(name, correct.float().mean(), batch_size=len(correct), on_epoch=True, sync_dist=True)
