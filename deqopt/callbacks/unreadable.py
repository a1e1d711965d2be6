"""Fails where some of a user's images could not be read, once the others are written."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Callback, LightningModule, Trainer

from deqopt.data.source import ImageSource
from deqopt.errors import DataError


class ReportUnreadable(Callback):
    """Fails at the end of predict where images could not be read; their source warns of each before.

    As a callback of a task it comes after the trainer's own, which write what is found for the others.

    Args:
        images: what is predicted on; None where those are not a user's images. Asked when predict ends.
        done: what is done with the others, such as "restored".

    Raises:
        DataError: at the end of predict, in every process, where images could not be read.

    Example:
        >>> from functools import partial
        >>> from deqopt.callbacks import ReportUnreadable
        >>> from deqopt.data import ImageDataModule, open_images
        >>> data = ImageDataModule(partial(open_images, None, size=8, channels=1), batch_size=4)
        >>> callback = ReportUnreadable(lambda: data.predict_source, done="restored")
    """

    def __init__(self, images: Callable[[], ImageSource | None], done: str) -> None:
        self._images, self._done = images, done

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        images = self._images()
        if images is not None and images.unreadable:
            lost, kept = len(images.unreadable), len(images.readable)
            files = ", ".join(map(images.file, images.unreadable))
            others = "the other one was" if kept == 1 else f"the other {kept} were"
            raise DataError(
                f"{lost} of {lost + kept} images of {images.where} could not be read: {files}; {others} {self._done}"
            )
