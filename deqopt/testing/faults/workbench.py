"""What all cases share: a tiny data set, the settings of tiny runs, and how these end when nobody disturbs them."""

from __future__ import annotations

import csv
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from socket import socket
from typing import Any

import numpy as np
import torch
from PIL import Image

from deqopt.checkpoints import write
from deqopt.testing.faults.forked import LIMIT, Ended, Prepare, Running, start
from deqopt.testing.faults.moments import count_steps
from deqopt.testing.faults.outcome import Outcome, expect
from deqopt.testing.resuming import unequal

IMAGES, SIZE = 60, 8
EPOCHS, BATCHES = 2, 6
STEPS = EPOCHS * BATCHES
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}
TINY: dict[str, Any] = {
    "task": {"class_path": "deqopt.testing.faults.tiny.TinyImages"},
    "solver": {"class_path": "Tracking", "init_args": {"max_nfe": 8, "step_size": 0.5}},
    "model": {"regularizers": [{"class_path": "deqopt.regularizers.JacobianPenalty", "init_args": {"visits": 1}}]},
    "trainer": {**QUIET, "max_epochs": EPOCHS},
}
Act = Callable[[Running], None]
"""What the parent does while a command runs."""
Loaded = dict[str, Any]
"""What a checkpoint holds."""


@dataclass(frozen=True)
class Workbench:
    """The folder in which all is done, made by :meth:`prepare`."""

    folder: Path
    limit: float = LIMIT

    @property
    def images(self) -> Path:
        """A folder of PNG files."""
        return self.folder / "images"

    @property
    def archive(self) -> Path:
        """The same images as one file."""
        return self.folder / "images.npz"

    @property
    def config(self) -> Path:
        return self.folder / "tiny.yaml"

    @property
    def reference(self) -> Path:
        """The folder of the undisturbed run."""
        return self.folder / "reference" / "runs" / "tinyimages" / "version_0"

    def prepare(self) -> None:
        """Write data and settings, and make the undisturbed run."""
        pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE, SIZE), np.uint8)
        self.images.mkdir(parents=True)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(self.images / f"image_{number:02d}.png")
        np.savez(self.archive, images=pixels)
        settings = {**TINY, "task": {**TINY["task"], "init_args": {"root": str(self.archive)}}}
        self.config.write_text(json.dumps(settings, indent=1))
        case = Case(self, "preparation", 0, Random(0), self.folder / "reference")
        case.folder.mkdir()
        ended = case.command("fit")
        expect(ended.status == 0 and ended.steps == STEPS, Outcome.OTHER, f"the undisturbed run ended badly: {ended}")

    def undisturbed(self, name: str, words: Sequence[str]) -> Path:
        """The ``last.ckpt`` of another run, made by whoever asks first."""
        folder = self.folder / name
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                folder.mkdir()
                case = Case(self, "preparation", 0, Random(0), folder)
                ended = case.plain("fit", *words, f"--trainer.default_root_dir={folder / 'runs'}")
                expect(ended.status == 0, Outcome.OTHER, f"the undisturbed run of {name} ended badly: {ended}")
        (found,) = folder.glob("runs/*/version_0/checkpoints/last.ckpt")
        return found


@dataclass
class Case:
    """One case of a class of faults: its own random numbers, its own folder, and what it asks of the commands."""

    bench: Workbench
    name: str
    number: int
    random: Random
    folder: Path
    fault: str = ""
    seconds: float = 0.0
    more: tuple[str, ...] = ()
    """Options of all runs of this case."""
    environment: dict[str, str] = field(default_factory=dict)
    transcript: list[str] = field(default_factory=list)

    @property
    def canary(self) -> Path:
        """What code from data, settings or a checkpoint would write."""
        return self.folder / "canary"

    @property
    def root(self) -> Path:
        return self.folder / "runs"

    # -- commands -------------------------------------------------------------------------------------------------

    def command(self, name: str, *words: object, **how: Any) -> Ended:
        """A command on the tiny task; ``how`` as of :meth:`plain`."""
        settings = ("--config", self.bench.config, f"--trainer.default_root_dir={self.root}")
        return self.plain(name, *settings, *self.more, *words, **how)

    def plain(self, *words: object, prepare: Sequence[Prepare] = (), act: Act | None = None, ranks: int = 1) -> Ended:
        """``deqopt WORD ...``.

        Args:
            prepare: what installs faults in the process.
            act: what is done to it from outside.
            ranks: processes that form a group.

        Raises:
            Broken: it did not end in time.
        """
        environment = dict(self.environment)
        if ranks > 1:
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        running = start([str(word) for word in words], self.folder, (count_steps, *prepare), ranks, environment)
        try:
            if act is not None:
                act(running)
        finally:
            ended = running.ended(self.bench.limit)
        self.seconds = max(self.seconds, ended.seconds)
        self.transcript.append(f"$ deqopt {' '.join(map(str, words))}\n{ended.said.strip()}\n{ended}")
        expect(not ended.hung, Outcome.HUNG, f"{' '.join(map(str, words[:1]))} hung: {ended}")
        return ended

    # -- what lies on the disk ------------------------------------------------------------------------------------

    def checkpoints(self, name: str = "last") -> list[Path]:
        """``last.ckpt`` of all runs of this case, the newest first."""
        found = self.root.glob(f"*/version_*/checkpoints/{name}.ckpt")
        return sorted(found, key=lambda path: int(path.parts[-3].removeprefix("version_")), reverse=True)

    def copied(self) -> Path:
        """The undisturbed run as the first run of this case; its folder."""
        target = self.root / "tinyimages" / "version_0"
        shutil.copytree(self.bench.reference, target)
        return target


def loaded(path: Path) -> Loaded:
    """A checkpoint that must be whole.

    Raises:
        Broken: it cannot be read, or holds values that are not finite.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes happen to trigger
        expect(False, Outcome.LOST, f"{path.name} cannot be read: {type(error).__name__}")
    bad = [name for name, value in content["state_dict"].items() if not _is_finite(value)]
    expect(not bad, Outcome.LOST, f"{path.name} holds values that are not finite: {', '.join(bad)}")
    assert isinstance(content, dict)
    return content


PARTS = ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers")


def differences(first: Loaded, second: Loaded) -> list[str]:
    """The parts in which two checkpoints of a run differ, bit for bit."""
    return [part for part in PARTS if unequal(first.get(part), second.get(part), part)]


def figures(run: Path) -> dict[str, float]:
    """The last value of every figure that a run logged."""
    found: dict[str, float] = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            found |= {name: float(value) for name, value in row.items() if name and value}
    return found


@contextmanager
def changed(path: Path, signed: bool = True) -> Iterator[Loaded]:
    """The content of a checkpoint, to be changed and written back, with a digest that fits or with none."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    yield content
    path.unlink()
    if signed:
        write(content, path)
    else:
        torch.save(content, path)


def _is_finite(value: Any) -> bool:
    """Modules may keep more than tensors in their state."""
    return not isinstance(value, torch.Tensor) or bool(value.isfinite().all())


def _free_port() -> int:
    with socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
