"""Trains on two processes with a disk that is full at the given steps: ``python ddp_full_disk.py OUT STEP ...``."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy

from deqopt import JointModule
from deqopt.callbacks import RunCheckpoint
from deqopt.checkpoints import plugin, write
from deqopt.checkpoints.plugin import VerifiedCheckpointIO
from deqopt.errors import CheckpointError
from deqopt.solvers import Tracking
from tiny_task import Tiny, quiet_trainer


def train(directory: Path, full: list[int]) -> str:
    """Train four steps in two epochs; the error that ended the run, empty where there was none."""

    def attempt(content: dict[str, Any], path: Path) -> None:
        if content["global_step"] in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(content, path)

    plugin.write = attempt  # type: ignore[attr-defined]
    torch.manual_seed(0)
    module = JointModule(Tiny(8, 2), Tracking(max_nfe=6, step_size=0.3))
    trainer = quiet_trainer(
        directory,
        devices=2,
        strategy=DDPStrategy(timeout=timedelta(seconds=60)),
        enable_checkpointing=True,
        callbacks=[RunCheckpoint(every_n_minutes=1e-9)],
        plugins=[VerifiedCheckpointIO()],
        max_epochs=2,
    )
    try:
        trainer.fit(module, datamodule=module.task.datamodule())
    except CheckpointError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    error = train(folder, [int(step) for step in sys.argv[2:]])
    (folder / f"{os.environ.get('LOCAL_RANK', 0)}.txt").write_text(error)
