"""Trains on two processes, each with random numbers of its own, and goes on from checkpoints: ``ddp_resume.py OUT``.

Writes ``rank_N.pt``: where the resumed runs differ, for every checkpoint, and whether the processes drew differently.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

from deqopt.testing.resuming import Moment, differences, trained
from tiny_pictures import Quick, TinyPictures

RANK = int(os.environ.get("LOCAL_RANK", 0))
SETTINGS = {
    "devices": 2,
    "strategy": "ddp",
    "max_epochs": 2,
    "limit_train_batches": 4,
    "limit_val_batches": 1,
    "accumulate_grad_batches": 2,
    "val_check_interval": 3,
}


def quick() -> Quick:
    torch.rand(RANK)
    return Quick(TinyPictures())


def compare(directory: Path) -> None:
    whole = trained(quick, directory, moments=[Moment.BATCH_END, Moment.VALIDATION_END], **SETTINGS)
    found = {}
    for saved in whole.checkpoints[2:4]:
        torch.distributed.barrier()
        rest = trained(quick, directory, checkpoint=saved.path, **SETTINGS)
        found[saved.moment.name, saved.step, saved.path.name] = differences(whole, rest, saved)
    kept = torch.load(whole.checkpoints[2].path, weights_only=True)["resume"]["processes"]
    apart = not torch.equal(*(one["generators"]["torch"] for one in kept))
    torch.save({"found": found, "apart": apart}, directory / f"rank_{RANK}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    compare(Path(sys.argv[1]))
