"""How Lightning's trainer reads and writes checkpoints: by the functions of :mod:`deqopt.checkpoints.file`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from deqopt.checkpoints.file import read, write


class VerifiedCheckpointIO(TorchCheckpointIO):
    """Checkpoints in one step and with a digest, see :func:`write` and :func:`read`; never with code in them.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(plugins=[VerifiedCheckpointIO()])
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("VerifiedCheckpointIO.save_checkpoint takes no storage_options")
        write(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content of a checkpoint; always as with ``weights_only=True``."""
        content: dict[str, Any] = read(Path(path), map_location)
        return content
