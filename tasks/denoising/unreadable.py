"""Says which of a user's images could not be read, without giving up the others."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from deqopt.errors import DataError

from .data import DamagedImages, RestorationData


class ReportUnreadable(Callback):
    """Warns of every image that cannot be read before the others are restored, and fails once they are written.

    As a callback of a task it comes after the trainer's own, which write what was restored.

    Args:
        data: whose images are predicted on.

    Raises:
        DataError: at the end of predict, in every process, where images could not be read.
    """

    def __init__(self, data: RestorationData) -> None:
        self._data = data

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        images = self._data.predict_source
        if isinstance(images, DamagedImages):
            for one in images.unreadable:
                rank_zero_warn(one.reason)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        images = self._data.predict_source
        if isinstance(images, DamagedImages) and images.unreadable:
            lost, kept = len(images.unreadable), len(images)
            files = ", ".join(one.file for one in images.unreadable)
            others = "the other one was" if kept == 1 else f"the other {kept} were"
            raise DataError(
                f"{lost} of {lost + kept} images of {images.root} could not be read: {files}; {others} restored"
            )
