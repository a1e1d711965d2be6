"""The task omniglot on the command line: training by every gradient, resuming, tests, baselines beside, one's own
folders, real data."""

from __future__ import annotations

import math
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from deqopt_tasks.omniglot.glyphs import Glyphs
from deqopt_tasks.omniglot.optional import INSTALL
from PIL import Image

from command import SMALL_TRAINER, column, complaint, deqopt, resolved, succeeded, user_folder
from paths import CONFIGS, REAL_DATA
from reported import table

DATA = REAL_DATA / "omniglot-py"
SETTINGS: dict[str, Any] = {
    "train_ways": 8,
    "queries": 3,
    "batch_size": 4,
    "train_episodes": 60,
    "val_episodes": 8,
    "test_episodes": 8,
    "widths": [16],
    "context": 8,
    "features": 16,
}
SMALL: dict[str, Any] = {
    "task": {"class_path": "omniglot", "init_args": SETTINGS},
    "solver": {
        "class_path": "JointAnderson",
        "init_args": {"max_nfe": 10, "step_size": 1.0, "step_rule": "PLAIN", "history_size": 5},
    },
    "adjoint": {"class_path": "Implicit", "init_args": {"tol": 0.25, "max_nfe": 60}},
    "model": {
        "optimization": {"lr": 0.006},
        "regularizers": [{"class_path": "deqopt.regularizers.SpectralPenalty", "init_args": {"weight": 1.0}}],
    },
    "trainer": {
        **SMALL_TRAINER,
        "max_epochs": 1,
        "limit_train_batches": 15,
        "limit_val_batches": None,
        "limit_test_batches": None,
        "gradient_clip_val": 1.0,
    },
}
FIT = ("fit", "--config=small.yaml")
CHANCE = 1 / 5


folder = user_folder(SMALL)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """On glyphs, by the implicit gradient, with prototypes beside."""
    return folder / succeeded(*FIT, "--task.baselines=[PROTOTYPES]").run


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def test_fit_learns_to_learn(trained: Path) -> None:
    losses = column(trained, "train/loss")
    assert len(losses) == 15 and sum(losses[-3:]) < 0.85 * sum(losses[:3])
    (accuracy,) = column(trained, "val/accuracy")
    assert accuracy > CHANCE + 0.2
    assert {path.name for path in (trained / "figures").iterdir()} == {"val_episode.png", "val_convergence.png"}


def test_the_inner_problem_is_solved_while_it_trains(trained: Path) -> None:
    assert max(column(trained, "train/residual")) < 0.3
    assert column(trained, "val/objective")[0] < math.log(5) - 0.1
    assert max(column(trained, "train/backward_residual")) < 0.3


@pytest.mark.parametrize("adjoint", ["Unrolled", "JacobianFree"])
def test_every_gradient_trains(adjoint: str, folder: Path) -> None:
    run = folder / succeeded(*FIT, f"--adjoint={adjoint}").run
    losses = column(run, "train/loss")
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_test_says_what_is_reached_beside_the_baselines(
    trained: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    words = ("--config=small.yaml", "--task.baselines=[PROTOTYPES]", f"--ckpt_path={checkpoint(trained)}")
    answer = succeeded("test", *words)
    said = caplog.text
    assert "8 test episodes, 5-way 1-shot" in said and "below its start in all 8 episodes" in said
    assert "at least 600 are usual" in said
    run = folder / answer.run
    rows = {row["method"]: row for row in table(run / "figures" / "accuracy.csv")}
    assert set(rows) == {"ours", "prototypes"}
    assert all(float(row["accuracy"]) > CHANCE + 0.15 for row in rows.values())
    (logged,) = column(run, "test/accuracy")
    assert float(rows["ours"]["accuracy"]) == pytest.approx(logged, abs=1e-6), "two ways to the same number"
    episodes = table(run / "figures" / "episodes.csv")
    assert [row["index"] for row in episodes] == [str(one) for one in range(8)]
    assert all(float(row["objective_before"]) == pytest.approx(math.log(5), rel=1e-4) for row in episodes)


def test_a_checkpoint_classifies_more_ways_than_it_was_trained_with(trained: Path, folder: Path) -> None:
    words = ("--task.ways=12", "--task.shots=2", f"--ckpt_path={checkpoint(trained)}")
    (accuracy,) = column(folder / succeeded("test", "--config=small.yaml", *words).run, "test/accuracy")
    assert accuracy > 2 / 12


@pytest.fixture(scope="module")
def own(folder: Path) -> tuple[Path, Path]:
    """Support images of 7 glyphs, two of one of them, and queries, one of which is no image."""
    glyphs, support, query = Glyphs(size=40), folder / "known", folder / "asked"
    query.mkdir()
    for c in range(7):
        (support / f"glyph {c}").mkdir(parents=True)
        for i in range(6):
            image = Image.fromarray((255 * glyphs.image(1250 + c, i)[0]).byte().numpy())
            image.save(support / f"glyph {c}" / f"{i}.png" if i < 1 + (c == 0) else query / f"{c}_{i}.png")
    (query / "broken.png").write_bytes(b"no image")
    return support, query


def test_predict_classifies_a_folder_by_a_folder(trained: Path, own: tuple[Path, Path]) -> None:
    support, query = own
    words = (f"--ckpt_path={checkpoint(trained)}", f"--task.support={support}", f"--task.query={query}")
    with pytest.warns(UserWarning, match=r"broken\.png is truncated or not an image"):
        answer = deqopt("predict", "--config=small.yaml", *words)
    assert answer.status == 2, "the rest is done nevertheless"
    rows = table(query.with_name("asked_classified") / "predictions.csv")
    assert {row["file"] for row in rows} == {path.name for path in query.iterdir()} - {"broken.png"}
    right = [row["class"] == f"glyph {row['file'][0]}" for row in rows]
    assert sum(right) / len(right) > 2 / 7
    for row in rows:
        assert sum(float(row[f"p(glyph {c})"]) for c in range(7)) == pytest.approx(1, abs=1e-4)
    with Image.open(query.with_name("asked_classified") / "episode.png") as picture:
        assert picture.width > 300


def test_predict_without_folders_classifies_the_test_episodes(trained: Path, folder: Path) -> None:
    run = folder / succeeded("predict", "--config=small.yaml", f"--ckpt_path={checkpoint(trained)}").run
    rows = table(run / "predictions" / "predictions.csv")
    assert len(rows) == 8 * 5 * 3 and rows[0]["file"] == "episode 0, query 0"
    right = [row["class"] == f"class {int(row['file'].rpartition(' ')[2]) // 3}" for row in rows]
    assert sum(right) / len(right) > CHANCE + 0.15, "queries stand in the order of their classes"


def test_a_folder_with_a_folder_for_every_class_is_trained_on(folder: Path) -> None:
    glyphs, root = Glyphs(size=20), folder / "classes"
    for part, first, count in (("train", 0, 6), ("val", 10, 3), ("test", 20, 3)):
        for c in range(first, first + count):
            (root / part / f"c{c}").mkdir(parents=True)
            for i in range(4):
                image = Image.fromarray((255 * glyphs.image(c, i)[0]).byte().numpy())
                image.save(root / part / f"c{c}" / f"{i}.png")
    small = ("--task.root=classes", "--task.ways=3", "--task.train_ways=6", "--task.queries=2", "--task.size=14")
    run = folder / succeeded(*FIT, *small, "--trainer.limit_train_batches=2").run
    assert len(column(run, "train/loss")) == 2
    rows = column(folder / succeeded("test", "--config=small.yaml", *small, "--ckpt_path=last").run, "test/accuracy")
    assert 0 <= rows[0] <= 1


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not here")
def test_the_real_omniglot_goes_through_its_loader(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder / "real"
    (root / "omniglot-py").mkdir(parents=True)
    for name in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(DATA / f"{name}.zip") as file:
            file.extractall(root / "omniglot-py")
    run = folder / succeeded(*FIT, "--task.root=real").run
    (accuracy,) = column(run, "val/accuracy")
    assert accuracy > CHANCE + 0.1
    caplog.set_level("INFO")
    succeeded("test", "--config=small.yaml", "--task.root=real", "--ckpt_path=last")
    assert "8 test episodes, 5-way 1-shot" in caplog.text
    shutil.rmtree(root)


def test_what_is_not_installed_and_what_is_no_baseline_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    said = complaint(*FIT, "--task.baselines=[ANIL]")
    assert f"needs learn2learn, which is not installed: {INSTALL}; " in said
    assert "MAML" in complaint(*FIT, "--task.baselines=[MAMBA]")


def test_predict_needs_both_folders(trained: Path, own: tuple[Path, Path]) -> None:
    words = ("predict", "--config=small.yaml", f"--ckpt_path={checkpoint(trained)}", f"--task.support={own[0]}")
    assert "no query folder is given" in complaint(*words)


@pytest.mark.parametrize("setting", ["5way1shot", "5way5shot", "20way1shot"])
def test_the_paper_configurations_are_what_they_are_called(setting: str) -> None:
    path = CONFIGS / "paper" / f"omniglot_{setting}.yaml"
    task = resolved("fit", f"--config={path}")["task"]["init_args"]
    assert f"{task['ways']}way{task['shots']}shot" == setting
    assert (task["size"], task["widths"], task["batch_size"]) == (28, [64, 128], 20)
