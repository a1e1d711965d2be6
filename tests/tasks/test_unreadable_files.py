"""A file that cannot be read: every task names it, in fit, test and predict alike, and goes on with the others."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command import SMALL_TRAINER, Answer, deqopt, user_folder, written


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = list(str(path).encode())
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)).save(path)


def flat(root: Path) -> None:
    for i in range(19):
        image(root / f"{i:02d}.png")


def classes(root: Path) -> None:
    for i in range(20):
        image(root / f"class {i % 2}" / f"{i:02d}.png")


def parts(root: Path) -> None:
    """Three classes for every split of episodes."""
    for i in range(36):
        image(root / ("train", "val", "test")[i % 3] / f"class {i % 9}" / f"{i:02d}.png")


def faces(root: Path) -> None:
    """In the layout of CelebA."""
    lines = [f"{i:02d}.png {min(i % 5, 2)}\n" for i in range(20)]
    for line in lines:
        image(root / "celeba" / "img_align_celeba" / line.split()[0])
    (root / "celeba" / "list_eval_partition.txt").write_text("".join(lines))


def episode(root: Path) -> tuple[str, ...]:
    """The options of a user's episode, whose queries are ``root``."""
    support = root.with_name(f"{root.name} support")
    classes(support)
    flat(root)
    return f"--task.support={support}", f"--task.query={root}"


@dataclass(frozen=True)
class Case:
    """A task on a folder.

    Attributes:
        name: of the task.
        settings: of the task.
        make: writes the images.
        broken: the file that cannot be read.
        done: what predict says of the others.
        predicted: writes the images to predict on, below the folder, and says the options; by default ``make`` does.
    """

    name: str
    settings: dict[str, Any]
    make: Callable[[Path], object]
    broken: str
    done: str
    predicted: Callable[[Path], tuple[str, ...]] | None = None

    def run(self, stage: str, root: Path) -> Answer:
        """A command on a folder in which one file is broken; of test and predict with the network of a fit before."""
        config = {
            "task": {"class_path": self.name, "init_args": {**self.settings, "workers": 0, "batch_size": 4}},
            "solver": {"class_path": "Tracking", "init_args": {"max_nfe": 6, "step_size": 0.1}},
            "adjoint": "Envelope" if self.name in ("celeba", "cifar") else "JacobianFree",
            "trainer": {**SMALL_TRAINER, "max_epochs": 1, "limit_train_batches": 2, "logger": False},
        }
        written(root.with_suffix(".yaml"), config)
        words = [stage, f"--config={root.with_suffix('.yaml')}"]
        if stage == "predict" and self.predicted is not None:
            words += self.predicted(root)
            broken = root / "00.png"
        else:
            self.make(root)
            words.append(f"--task.root={root}")
            broken = root / self.broken
        broken.write_bytes(broken.read_bytes()[:60])
        return deqopt(*words)


SMALL = {"size": 8, "image_channels": 1, "widths": [4], "resolution": 4}
CASES = {
    "celeba": Case("celeba", {**SMALL, "latent": 2}, faces, "celeba/img_align_celeba/07.png", "reconstructed"),
    "cifar": Case("cifar", {**SMALL, "classes": 2, "attacks": []}, classes, "class 1/07.png", "attacked"),
    "denoising": Case("denoising", {"size": 8, "image_channels": 1, "test_images": 1}, flat, "07.png", "restored"),
    "omniglot": Case(
        "omniglot",
        {
            **SMALL,
            "ways": 2,
            "shots": 1,
            "queries": 1,
            "train_episodes": 4,
            "val_episodes": 2,
            "test_episodes": 2,
            "context": 4,
            "features": 4,
        },
        parts,
        "train/class 0/00.png",
        "classified",
        predicted=episode,
    ),
}
folder = user_folder({})


@pytest.mark.parametrize("stage", ["fit", "test", "predict"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_named_and_the_others_are_used(
    case: str, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, root = CASES[case], tmp_path / "data"
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning) as warned:
        answer = one.run(stage, root)
    lost = "00.png" if stage == "predict" and one.predicted else one.broken
    said = [str(one.message) for one in warned if "is truncated or not an image" in str(one.message)]
    assert len(said) == 1 and said[0].startswith(f"{root}/{lost} is truncated"), said
    assert answer.status == (2 if stage == "predict" else 0), answer
    if stage == "predict":
        name = Path(lost).name
        expected = rf"1 of (19|20) images of {root} could not be read: .*{name}; the other 1[89] were {one.done}$"
        assert re.search(expected, answer.error.strip()), answer
        folders = ("predictions", "data_restored", "data_classified")
        kept = [path for path in tmp_path.rglob("*") if path.parent.name in folders and path.suffix in (".png", ".csv")]
        tables = [path.read_text().splitlines() for path in kept if path.suffix == ".csv"]
        assert len(tables[0]) - 1 == 18 if tables else len(kept) in (18, 19), "the others were used"
