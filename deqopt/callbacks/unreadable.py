"""Says which of a user's images could not be read, without giving up the others."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from deqopt.data.unreadable import ReadableImages
from deqopt.errors import DataError, printable


class ReportUnreadable(Callback):
    """Warns of every image that cannot be read before predict begins, and fails once the others are written.

    As a callback of a task it comes after the trainer's own, which write what is found for the others.

    Args:
        images: what is predicted on; None where those are not a user's images. Asked when predict begins and ends.
        done: what is done with the others, such as "restored".

    Raises:
        DataError: at the end of predict, in every process, where images could not be read.
    """

    def __init__(self, images: Callable[[], ReadableImages | None], done: str) -> None:
        self._images, self._done = images, done

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        images = self._images()
        for one in images.unreadable if images is not None else ():
            rank_zero_warn(printable(one.reason))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        images = self._images()
        if images is not None and images.unreadable:
            lost, kept = len(images.unreadable), images.count
            files = ", ".join(one.file for one in images.unreadable)
            others = "the other one was" if kept == 1 else f"the other {kept} were"
            raise DataError(
                f"{lost} of {lost + kept} images of {images.root} could not be read: {files}; {others} {self._done}"
            )
