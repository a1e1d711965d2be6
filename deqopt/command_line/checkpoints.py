"""Where the checkpoints of runs lie, and what they say about the run that wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from deqopt.errors import CheckpointError

NEWEST = ("last", "best")


def run_folder(root: str | Path, class_path: str) -> Path:
    """The folder of all runs of a task below ``trainer.default_root_dir``."""
    return Path(root) / class_path.rpartition(".")[2].lower()


def newest_checkpoint(root: str | Path, class_path: str | None, name: str) -> Path:
    """``last.ckpt`` or ``best.ckpt`` of the newest run that has one: of a task, or of all where it is None.

    Raises:
        CheckpointError: there is none.
    """
    below = Path(root) if class_path is None else run_folder(root, class_path)
    found = list(below.glob(f"{'*/' if class_path is None else ''}version_*/checkpoints/{name}.ckpt"))
    if not found:
        raise CheckpointError(
            f"--ckpt_path {name}: no run below {below} has a checkpoint {name}.ckpt; give the path of one, "
            "or trainer.default_root_dir, the folder that holds the runs"
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def settings_of(path: Path) -> dict[str, Any]:
    """The settings that a checkpoint was trained with, as a configuration: task, solver, adjoint and model.

    Raises:
        CheckpointError: no such file, or not a checkpoint of deqopt.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}; give the path of one, or 'last' or 'best' for the newest run")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes happen to trigger
        raise CheckpointError(f"{path} cannot be read as a checkpoint; it is damaged or of another program") from error
    written = isinstance(content, dict) and {"state_dict", "pytorch-lightning_version"} <= content.keys()
    settings = content.get("hyper_parameters") if written else None
    if not isinstance(settings, dict) or not isinstance(settings.get("task"), dict):
        raise CheckpointError(f"{path} was not written by deqopt: it does not say which task it belongs to")
    config = {choice: settings[choice] for choice in ("task", "solver", "adjoint") if choice in settings}
    config["model"] = {key: settings[key] for key in ("regularizers", "optimization", "compile") if key in settings}
    return config
