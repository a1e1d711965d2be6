"""Where the checkpoints of runs lie, and what they say about the run that wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deqopt.checkpoints import Record, previous, read
from deqopt.errors import CheckpointError, printable
from deqopt.rebuilding import plain_settings

NEWEST = ("last", "best")


def run_folder(root: str | Path, class_path: str) -> Path:
    """The folder of all runs of a task below ``trainer.default_root_dir``."""
    return Path(root) / class_path.rpartition(".")[2].lower()


@dataclass(frozen=True)
class Chosen:
    """The checkpoint that ``--ckpt_path`` stands for.

    Args:
        path: of the file.
        remark: which one it is, in one line; empty where the user gave the path.
    """

    path: Path
    remark: str = ""


def newest_checkpoint(root: str | Path, class_path: str | None, name: str) -> Chosen:
    """``last.ckpt`` or ``best.ckpt`` of the newest run that has one: of a task, or of all where it is None.

    Where it is damaged, the newest that can be read, be it the one before it or that of another run.

    Raises:
        CheckpointError: there is none, or none that can be read.
    """
    below = Path(root) if class_path is None else run_folder(root, class_path)
    folder = f"{'*/' if class_path is None else ''}version_*/checkpoints"
    file = Path(f"{name}.ckpt")
    found = [path for kind in (previous(file), file) for path in sorted(below.glob(f"{folder}/{kind}"))]
    if not found:
        raise CheckpointError(
            f"--ckpt_path {name}: no run below {below} has a checkpoint {file}; give the path of one, "
            "or trainer.default_root_dir, the folder that holds the runs"
        )
    damaged: list[CheckpointError] = []
    for path in sorted(found, key=_written_at)[::-1]:
        try:
            record = Record.of(read(path))
        except CheckpointError as error:
            damaged.append(error)
            continue
        newer = f"{damaged[0]}; " if damaged else ""
        return Chosen(path, printable(f"{newer}--ckpt_path {name} is {path}, {record}"))
    raise damaged[0]


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # its run has replaced it a moment ago
        return 0.0


def settings_of(path: Path) -> dict[str, Any]:
    """The settings that a checkpoint was trained with, as a configuration: task, solver, adjoint and model.

    Raises:
        CheckpointError: no such file, or not a checkpoint of deqopt.
    """
    content = read(path)
    written = isinstance(content, dict) and {"state_dict", "pytorch-lightning_version"} <= content.keys()
    settings = content.get("hyper_parameters") if written else None
    if not isinstance(settings, dict) or not isinstance(settings.get("task"), dict):
        raise CheckpointError(f"{path} was not written by deqopt: it does not say which task it belongs to")
    settings = plain_settings(settings, str(path))
    config: dict[str, Any] = {
        choice: settings[choice] for choice in ("task", "solver", "adjoint") if choice in settings
    }
    config["model"] = {key: settings[key] for key in ("regularizers", "optimization", "compile") if key in settings}
    return config
