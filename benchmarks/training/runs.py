"""What trainings have found, in a file each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deqopt.compare import log_name


@dataclass(frozen=True)
class Milestone:
    """What a network reaches after so many steps, which took so many seconds.

    Attributes:
        scores: by metric, of every test sample in their order.
    """

    seconds: float
    steps: int
    scores: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class TrainingRun:
    """A training that is over.

    Attributes:
        scene: what runs share that are compared: data, part, seconds.
        method: its label.
        seed: of its weights and batches.
        milestones: ascending.
        notes: what else there is to say of it.
    """

    scene: str
    method: str
    seed: int
    milestones: Sequence[Milestone]
    notes: Mapping[str, float] = field(default_factory=dict)

    def path(self, folder: Path) -> Path:
        return path_of(folder, self.scene, self.method, self.seed)

    def write(self, folder: Path) -> None:
        path = self.path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> list[TrainingRun]:
        """All runs in a folder, by the names of their files."""
        found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        return [cls(**{**one, "milestones": [Milestone(**part) for part in one["milestones"]]}) for one in found]


def path_of(folder: Path, scene: str, method: str, seed: int) -> Path:
    """The file of a run."""
    return folder / f"{log_name(method)}-{log_name(scene)}-{seed}.json"
