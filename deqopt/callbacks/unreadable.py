"""Raises an error after predict if some images could not be read, once the results of the others are written."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Callback, LightningModule, Trainer

from deqopt.data.source import ImageSource
from deqopt.errors import DataError


class ReportUnreadable(Callback):
    """Raises an error at the end of predict if images could not be read; the source has warned of each image before.

    As a callback of a task, it runs after the callbacks of the trainer, which write the results for the other images.

    Args:
        images: function that returns the source of the predicted images, or None if they are not images of the user.
            Called when predict ends.
        done: word for what was done with the other images, such as "restored".

    Raises:
        DataError: at the end of predict, in every process, if images could not be read.

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
