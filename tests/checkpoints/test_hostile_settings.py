"""Checkpoints and configurations run no code: what they may name is checked before anything is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from command import deqopt, user_folder, written
from deqopt import JointModule
from deqopt.errors import CheckpointError, DeqoptError
from hostile_settings import CELEBA, NAMES, attacks, hostile_module, refused_without, stored

folder = user_folder({"task": CELEBA})
trace = hostile_module()


@pytest.mark.parametrize("attack", NAMES)
@pytest.mark.parametrize("command", ["test", "load"])
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_runs_no_code(command: str, attack: str, trace: Path, tmp_path: Path) -> None:
    settings = attacks(trace)[attack]
    path = stored(tmp_path / "a.ckpt", settings)
    if command == "load":
        with pytest.raises((DeqoptError, RuntimeError)):  # RuntimeError: weights of a harmless module are missing
            JointModule.load_from_checkpoint(path)
        assert not trace.exists() and "hostile" not in sys.modules
    else:
        refused_without(trace, deqopt(command, "--ckpt_path", path, "--trainer.logger=false"))


@pytest.mark.parametrize(
    ("place", "attack"),
    [("whole", attack) for attack in NAMES]
    + [(place, attack) for place in ("below fit", "by DEQOPT_CONFIG") for attack in ("task", "operator as text")]
    + [("by another file", attack) for attack in ("regularizer", "regularizer as text")],
)
@pytest.mark.filterwarnings("ignore")
def test_a_configuration_runs_no_code(
    place: str, attack: str, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = attacks(trace)[attack]
    model: Any = {key: settings.pop(key) for key in ("regularizers", "optimization") if key in settings}
    if model:
        settings["model"] = str(written(tmp_path / "model.yaml", model)) if place == "by another file" else model
    path = written(tmp_path / "a.yaml", {"fit": settings} if place == "below fit" else settings)
    words: tuple[object, ...] = ("--config", path)
    if place == "by DEQOPT_CONFIG":
        monkeypatch.setenv("DEQOPT_CONFIG", str(path))
        words = ()
    refused_without(trace, deqopt("fit", *words, "--trainer.logger=false"))


def callback(name: str, **arguments: Any) -> dict[str, Any]:
    return {"callbacks": [{"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": arguments}]}


TRAINERS: dict[str, Any] = {
    "callback": {"callbacks": [{"class_path": "hostile.Watch"}]},
    "callback as text": {"callbacks": ["hostile.Watch"]},
    "callback alone": {"callbacks": "hostile.Watch"},
    "function of a callback": callback("LambdaCallback", setup="os.abort"),
    "function of deqopt": callback("LambdaCallback", setup="deqopt.cli.main"),
    "function of lightning": callback(
        "StochasticWeightAveraging", swa_lrs=0.1, avg_fn="lightning.pytorch.utilities.rank_zero_info"
    ),
    "logger": {"logger": {"class_path": "hostile.Watch"}},
    "strategy": {"strategy": {"class_path": "hostile.Watch"}},
    "profiler": {"profiler": {"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}}},
    "plugins": {"plugins": [{"class_path": "os.system", "init_args": {"command": "true"}}]},
}


@pytest.mark.parametrize("case", TRAINERS)
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_a_configuration_runs_no_code(case: str, trace: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "a.yaml", {"task": CELEBA, "trainer": {**TRAINERS[case], "fast_dev_run": True}})
    refused_without(trace, deqopt("fit", "--config", path))


@pytest.mark.parametrize("key", ["hparams", "module_arguments"])
def test_settings_under_the_keys_of_old_checkpoints_are_not_used(key: str, trace: Path, tmp_path: Path) -> None:
    hostile = {"_class_path": "hostile.Hostile", "task": {"class_path": "hostile.Hostile"}}
    path = stored(tmp_path / "a.ckpt", {"task": CELEBA}, **{key: hostile}, hparams_name="task")
    with pytest.raises((DeqoptError, RuntimeError)):
        JointModule.load_from_checkpoint(path)
    assert not trace.exists()


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("where", ["state_dict", "hyper_parameters", "callbacks"])
def test_a_checkpoint_is_not_unpickled(where: str, trace: Path, tmp_path: Path) -> None:
    path = stored(tmp_path / "a.ckpt", {"task": CELEBA}, **{where: {"task": Runs(trace)}})
    with pytest.raises(CheckpointError):
        JointModule.load_from_checkpoint(path)
    refused_without(trace, deqopt("test", "--ckpt_path", path))
