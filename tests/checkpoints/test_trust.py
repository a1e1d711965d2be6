"""Checkpoints and configurations run no code: what they may name is checked before anything is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from command import Answer, complaint, deqopt, resolved, user_folder, written
from deqopt import JointModule, Task
from deqopt.errors import CheckpointError, DeqoptError, TrustError
from deqopt.trust import NoSuchKindError, Trust, current, packages, require_trusted, trusted_class, trusting

SMALL: dict[str, Any] = {"size": 8, "latent": 2, "widths": [4, 4], "resolution": 4}
CELEBA = {"class_path": "deqopt_tasks.celeba.task.CelebA", "init_args": SMALL}
EXTERNAL = "deqopt_tasks.denoising.operator.External"
folder = user_folder({"task": CELEBA})

MODULE = """
from pathlib import Path
Path({trace!r}).touch()
from deqopt import Task
from deqopt.regularizers import JacobianPenalty
from lightning.pytorch import Callback

class Hostile(Task):
    def __init__(self, *values, **more): Path({trace!r}).touch(); super().__init__()
    def datamodule(self): ...
    def start(self, batch): ...
    def problem(self, batch): ...

class Penalty(JacobianPenalty): ...
class Watch(Callback): ...

def make() -> Task:
    return Hostile()
"""


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that appears when the module ``hostile``, which can be found, is imported or one of its classes made."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "hostile.py").write_text(MODULE.format(trace=str(tmp_path / "ran")))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield tmp_path / "ran"
    sys.modules.pop("hostile", None)


def shell(trace: Path) -> dict[str, Any]:
    return {"class_path": "os.system", "init_args": {"command": f"touch {trace}"}}


def attacks(trace: Path) -> dict[str, dict[str, Any]]:
    """Settings, as a checkpoint has them, each of which would make the file."""
    hostile = {"class_path": "hostile.Hostile", "init_args": {}}
    denoising = "deqopt_tasks.denoising.task.Denoising"
    external = {"class_path": EXTERNAL, "init_args": {"physics": shell(trace)}}

    def with_operator(operator: Any) -> dict[str, Any]:
        return {"task": {"class_path": denoising, "init_args": {"operator": operator}}}

    def beside(**more: Any) -> dict[str, Any]:
        return {"task": CELEBA, **more}

    keywords = {"class_path": EXTERNAL, "init_args": {}, "dict_kwargs": {"physics": shell(trace)}}
    named = {"class_path": "deqopt_tasks.denoising.inpainting._Handed", "init_args": {"known": "hostile.Penalty"}}
    return {
        "task": {"task": hostile},
        "task that runs a command": {"task": shell(trace)},
        "a module's name in an attribute": {"task": {"class_path": "deqopt.cli.sys.modules", "init_args": {}}},
        "os through a module": {"task": {**shell(trace), "class_path": "deqopt.command_line.arguments.os.system"}},
        "os through the tasks": {"task": {**shell(trace), "class_path": "deqopt_tasks.celeba.task.torch.os.system"}},
        "a function of deqopt": {"task": {"class_path": "deqopt.cli.main", "init_args": {"arguments": ["tasks"]}}},
        "the program itself": {"task": {"class_path": "deqopt.__main__.main", "init_args": {}}},
        "another kind": {"task": {"class_path": "deqopt.solvers.Tracking", "init_args": {}}},
        "operator's physics": with_operator(external),
        "operator's physics in keywords": with_operator(keywords),
        "operator": with_operator(hostile),
        "operator as text": with_operator("hostile.Hostile"),
        "operator as a text that runs": with_operator("os.abort"),
        "mask within an operator": with_operator(
            {"class_path": "deqopt_tasks.denoising.inpainting.Inpainting", "init_args": {"mask": hostile}}
        ),
        "tensor by name": with_operator(
            {"class_path": "deqopt_tasks.denoising.inpainting.Inpainting", "init_args": {"mask": named}}
        ),
        "path that is a list": {"task": {"class_path": ["hostile.Hostile"], "init_args": {}}},
        "path with a colon": {"task": {"class_path": "hostile:Hostile", "init_args": {}}},
        "path of wide letters": {"task": {"class_path": "\uff48ostile.Hostile", "init_args": {}}},
        "keywords of the task": {"task": {**CELEBA, "dict_kwargs": {"cell": hostile}}},
        "solver's descent as text": beside(
            solver={"class_path": "deqopt.solvers.Bilevel", "init_args": {"descent": "hostile.Hostile"}}
        ),
        "solver": beside(solver=hostile),
        "solver as text": beside(solver="hostile.Hostile"),
        "adjoint": beside(adjoint=shell(trace)),
        "regularizer": beside(regularizers=[{"class_path": "hostile.Penalty", "init_args": {}}]),
        "regularizer as text": beside(regularizers=["hostile.Penalty"]),
        "optimization": beside(optimization={"class_path": "hostile.Penalty", "init_args": {}}),
        "optimiser": beside(optimization={"algorithm": "hostile.Penalty"}),
        "schedule": beside(optimization={"schedule": "hostile.Penalty"}),
        "optimiser that runs a command": beside(optimization={"algorithm": "os.abort"}),
        "function with the right return type": {"task": {"class_path": "hostile.make", "init_args": {}}},
        "instantiator": {"task": CELEBA, "_instantiator": "hostile.make"},
        "class of the module": {"task": CELEBA, "_class_path": "hostile.Hostile"},
    }


NAMES = list(attacks(Path("ran")))


def stored(path: Path, settings: dict[str, Any], **more: Any) -> Path:
    weights: dict[str, Any] = {"state_dict": {}, "pytorch-lightning_version": "2.6.6", "global_step": 0, "epoch": 0}
    settings = {"_instantiator": "lightning.pytorch.cli.instantiate_module", **settings}
    torch.save({**weights, "hyper_parameters": settings, **more}, path)
    return path


def assert_refused(answer: Answer) -> None:
    lines = answer.error.strip().splitlines()
    assert answer.status == 2 and len(lines) == 1 and lines[0].startswith("deqopt: error: "), answer


@pytest.mark.parametrize("attack", NAMES)
@pytest.mark.parametrize("command", ["test", "load"])
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_runs_no_code(command: str, attack: str, trace: Path, tmp_path: Path) -> None:
    settings = attacks(trace)[attack]
    path = stored(tmp_path / "a.ckpt", settings)
    if command == "load":
        with pytest.raises(
            (DeqoptError, RuntimeError)
        ):  # RuntimeError: of a harmless module, whose weights are missing
            JointModule.load_from_checkpoint(path)
    else:
        assert_refused(deqopt(command, "--ckpt_path", path, "--trainer.logger=false"))
    assert not trace.exists() and "hostile" not in sys.modules


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
    assert_refused(deqopt("fit", *words, "--trainer.logger=false"))
    assert not trace.exists() and "hostile" not in sys.modules


TRAINERS: dict[str, Any] = {
    "callback": {"callbacks": [{"class_path": "hostile.Watch"}]},
    "callback as text": {"callbacks": ["hostile.Watch"]},
    "callback alone": {"callbacks": "hostile.Watch"},
    "function of a callback": {
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "os.abort"}}]
    },
    "function of deqopt": {
        "callbacks": [
            {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "deqopt.cli.main"}}
        ]
    },
    "function of lightning": {
        "callbacks": [
            {
                "class_path": "lightning.pytorch.callbacks.StochasticWeightAveraging",
                "init_args": {"swa_lrs": 0.1, "avg_fn": "lightning.pytorch.utilities.rank_zero_info"},
            }
        ]
    },
    "logger": {"logger": {"class_path": "hostile.Watch"}},
    "strategy": {"strategy": {"class_path": "hostile.Watch"}},
    "profiler": {"profiler": {"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}}},
    "plugins": {"plugins": [{"class_path": "os.system", "init_args": {"command": "true"}}]},
}


@pytest.mark.parametrize("case", TRAINERS)
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_a_configuration_runs_no_code(case: str, trace: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "a.yaml", {"task": CELEBA, "trainer": {**TRAINERS[case], "fast_dev_run": True}})
    assert_refused(deqopt("fit", "--config", path))
    assert not trace.exists() and "hostile" not in sys.modules


def test_callbacks_of_lightning_need_no_word(tmp_path: Path) -> None:
    stopping = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/loss", "mode": "min"},
    }
    given = {"callbacks": [stopping, {"class_path": "LearningRateMonitor"}], "strategy": "auto"}
    config = resolved("fit", "--config", written(tmp_path / "a.yaml", {"task": CELEBA, "trainer": given}))
    assert [one["class_path"].rpartition(".")[2] for one in config["trainer"]["callbacks"]] == [
        "EarlyStopping",
        "LearningRateMonitor",
    ]


# -- the user's word --------------------------------------------------------------------------------------------------


WORDS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "option": ({}, ("--trust", "hostile")),
    "option with =": ({}, ("--trust=hostile",)),
    "of several": ({}, ("--trust=other,hostile",)),
    "twice": ({}, ("--trust", "other", "--trust", "hostile.Hostile")),
    "environment": ({"DEQOPT_TRUST": "hostile"}, ()),
    "typed task": ({}, ("--task", "hostile.Hostile")),
    "typed task with arguments": ({}, ('--task={"class_path": "hostile.Hostile"}',)),
    "typed penalty": ({}, ("--model.regularizers+=hostile.Penalty",)),
    "task in the environment": ({"DEQOPT_TASK": "hostile.Hostile"}, ()),
}


@pytest.mark.parametrize("source", ["configuration", "checkpoint"])
@pytest.mark.parametrize("case", WORDS)
def test_the_user_can_vouch_for_a_package(
    case: str, source: str, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"task": {"class_path": "hostile.Hostile", "init_args": {}}}
    variables, words = WORDS[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if source == "configuration":
        config = resolved("fit", *words, "--config", written(tmp_path / "a.yaml", settings))
    else:
        config = resolved("test", *words, "--ckpt_path", stored(tmp_path / "a.ckpt", settings))
    assert config["task"]["class_path"] == "hostile.Hostile" and "trust" not in config


@pytest.mark.parametrize("source", ["configuration", "checkpoint"])
def test_what_is_refused_says_how_to_allow_it(source: str, trace: Path, tmp_path: Path) -> None:
    settings = {"task": {"class_path": "hostile.Hostile", "init_args": {}}}
    if source == "configuration":
        path = written(tmp_path / "a.yaml", settings)
        words: tuple[object, ...] = ("--config", path)
    else:
        path = stored(tmp_path / "a.ckpt", settings)
        words = ("--ckpt_path", path)
    message = complaint("test", *words)
    assert str(path) in message and "hostile.Hostile" in message and message.endswith("add --trust hostile")
    assert not trace.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--trust", "other"),
        ("--trust", "hostile.Other"),
        ("--trust", "host"),
        ("--task.root", "hostile.zip"),
        ("--task.root=hostile.Data/a.png",),
        ("--trainer.default_root_dir", "hostile.data"),
    ],
    ids=" ".join,
)
def test_other_words_vouch_for_nothing(words: tuple[str, ...], trace: Path, tmp_path: Path) -> None:
    path = stored(tmp_path / "a.ckpt", {"task": {"class_path": "hostile.Hostile", "init_args": {}}})
    assert "--trust hostile" in complaint("test", "--ckpt_path", path, *words)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["hostile.Hostile.yaml", "hostile.Hostile"])
def test_the_name_of_a_file_vouches_for_nothing(
    name: str, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"task": {"class_path": "hostile.Hostile"}}
    written(tmp_path / name, settings)
    assert complaint("fit", "--config", name).endswith("--trust hostile")
    monkeypatch.setenv("DEQOPT_CONFIG", name)
    assert complaint("fit").endswith("--trust hostile")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("words", "pattern"), [(("--trust",), "needs a name"), (("--trust", "a-b"), "'a-b' is no name")]
)
def test_trust_needs_a_name(words: tuple[str, ...], pattern: str) -> None:
    assert pattern in complaint("fit", "--task=celeba", *words)


def test_a_file_cannot_vouch_for_itself(trace: Path, tmp_path: Path) -> None:
    settings = {"trust": "hostile", "task": {"class_path": "hostile.Hostile"}}
    assert complaint("fit", "--config", written(tmp_path / "a.yaml", settings)).endswith("--trust hostile")
    assert not trace.exists()
    assert "trust" in complaint("fit", "--config", written(tmp_path / "b.yaml", {"trust": "hostile", "task": "celeba"}))


# -- in a program -----------------------------------------------------------------------------------------------------


class Own(Task):
    """A task of the program that loads the checkpoint."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(size, size)

    def datamodule(self) -> Any: ...

    def start(self, batch: Any) -> Any: ...

    def problem(self, batch: Any) -> Any: ...


def test_a_program_loads_its_own_classes_without_a_word(tmp_path: Path) -> None:
    module = JointModule(Own(4))
    path = stored(tmp_path / "a.ckpt", dict(module.hparams), state_dict=module.state_dict())
    again = JointModule.load_from_checkpoint(path)
    assert type(again.task) is Own and again.task.init_args == {"size": 4}
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), module.parameters(), strict=True))
    with path.open("rb") as file:
        assert type(JointModule.load_from_checkpoint(file).task) is Own


@pytest.mark.filterwarnings("ignore:The state dict in")
def test_a_program_says_what_else_it_trusts(trace: Path, tmp_path: Path) -> None:
    path = stored(tmp_path / "a.ckpt", {"task": {"class_path": "hostile.Hostile", "init_args": {}}})
    with pytest.raises(TrustError, match=r"a\.ckpt names hostile\.Hostile, .*say trust=\['hostile'\]$"):
        JointModule.load_from_checkpoint(path)
    assert not trace.exists()
    assert type(JointModule.load_from_checkpoint(path, trust=["hostile"]).task).__name__ == "Hostile"
    assert current() == Trust(), "it is forgotten again"
    sys.modules.pop("hostile")
    with trusting("hostile.Hostile"):
        assert type(JointModule.load_from_checkpoint(path).task).__name__ == "Hostile"


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
    assert_refused(deqopt("test", "--ckpt_path", path))
    assert not trace.exists()


# -- the rule itself --------------------------------------------------------------------------------------------------


def test_packages_are_those_that_register_plugins() -> None:
    assert {"deqopt", "deqopt_tasks"} <= packages()
    assert not packages() & {"torch", "lightning", "numpy", "os", "jsonargparse"}


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("deqopt.solvers.Tracking", True),
        ("deqopt_tasks.celeba.task.CelebA", True),
        ("this.A", False),
        ("deqopt.__main__.main", False),
        ("os.system", False),
        ("builtins.eval", False),
        ("mine.A", True),
        ("mine.deeper.B", True),
        ("antigravity.A", False),
        ("yours.only.This", True),
        ("tabnanny.NannyNag", False),
        ("torch.nn.Linear", True),
        ("torch.utils.benchmark.Timer", False),
        ("no_such_module.A", True),
    ],
)
def test_what_data_may_name(path: str, allowed: bool) -> None:
    with trusting("mine", "yours.only.This") as trust:
        assert trust.allows(path) == allowed
        settings = {"a": [{"b": {"class_path": path, "init_args": {}}}]}
        if allowed:
            require_trusted(settings, "a.yaml")
        else:
            with pytest.raises(TrustError, match=rf"^a\.yaml names {path}, "):
                require_trusted(settings, "a.yaml")


def test_a_class_by_name_must_be_one_of_its_kind() -> None:
    assert trusted_class("torch.nn.Identity", nn.Module) is nn.Identity
    for path in ("deqopt.cli.main", "deqopt.solvers.Tracking", f"{__name__}.Runs"):
        with pytest.raises(NoSuchKindError):
            trusted_class(path, nn.Module)
    for path in ("os.abort", "subprocess.Popen", "builtins.exec", "antigravity.fly"):
        with pytest.raises(TrustError):
            trusted_class(path, nn.Module)


def test_a_name_that_leaves_its_module_is_not_followed() -> None:
    with pytest.raises(AttributeError, match="leaves the module"):
        trusted_class("deqopt_tasks.celeba.task.nn.Identity", nn.Module)


def test_yaml_of_a_run_can_be_read_again(tmp_path: Path) -> None:
    config = resolved("fit", "--config", written(tmp_path / "a.yaml", {"task": CELEBA}))
    assert resolved("fit", "--config", written(tmp_path / "b.yaml", yaml.safe_dump(config))) == config
