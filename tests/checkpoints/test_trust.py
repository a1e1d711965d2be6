"""Classes that data may name: those of packages that register plugins, and those for which the user vouches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from command import complaint, resolved, user_folder, written
from deqopt import JointModule, Task
from deqopt.errors import TrustError
from deqopt.trust import NoSuchKindError, Trust, current, packages, require_trusted, trusted_class, trusting
from hostile_settings import CELEBA, HOSTILE, hostile_module, stored

folder = user_folder({"task": CELEBA})
trace = hostile_module()


# -- the user's word --------------------------------------------------------------------------------------------------


def test_callbacks_of_lightning_need_no_word(tmp_path: Path) -> None:
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}}
    given = {"callbacks": [stopping, {"class_path": "LearningRateMonitor"}], "strategy": "auto"}
    config = resolved("fit", "--config", written(tmp_path / "a.yaml", {"task": CELEBA, "trainer": given}))
    names = [one["class_path"].rpartition(".")[2] for one in config["trainer"]["callbacks"]]
    assert names == ["EarlyStopping", "LearningRateMonitor"]


SOURCES: dict[str, Callable[[Path], tuple[str, Path]]] = {
    "configuration": lambda folder: ("--config", written(folder / "a.yaml", HOSTILE)),
    "checkpoint": lambda folder: ("--ckpt_path", stored(folder / "a.ckpt", HOSTILE)),
}
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


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", WORDS)
def test_the_user_can_vouch_for_a_package(
    case: str, source: str, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables, words = WORDS[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = resolved("test", *words, *SOURCES[source](tmp_path))
    assert config["task"]["class_path"] == "hostile.Hostile" and "trust" not in config


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_refused_says_how_to_allow_it(source: str, trace: Path, tmp_path: Path) -> None:
    option, path = SOURCES[source](tmp_path)
    message = complaint("test", option, path)
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
    path = stored(tmp_path / "a.ckpt", HOSTILE)
    assert "--trust hostile" in complaint("test", "--ckpt_path", path, *words)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["hostile.Hostile.yaml", "hostile.Hostile"])
def test_the_name_of_a_file_vouches_for_nothing(
    name: str, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / name, HOSTILE)
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
    path = stored(tmp_path / "a.ckpt", HOSTILE)
    with pytest.raises(TrustError, match=r"a\.ckpt names hostile\.Hostile, .*say trust=\['hostile'\]$"):
        JointModule.load_from_checkpoint(path)
    assert not trace.exists()
    assert type(JointModule.load_from_checkpoint(path, trust=["hostile"]).task).__name__ == "Hostile"
    assert current() == Trust(), "it is forgotten again"
    sys.modules.pop("hostile")
    with trusting("hostile.Hostile"):
        assert type(JointModule.load_from_checkpoint(path).task).__name__ == "Hostile"


# -- the rule itself --------------------------------------------------------------------------------------------------


def test_packages_are_those_that_register_plugins() -> None:
    assert {"deqopt", "deqopt_tasks"} <= packages()
    assert not packages() & {"torch", "lightning", "numpy", "os", "jsonargparse"}


ALLOWED = ["deqopt.solvers.Tracking", "deqopt_tasks.celeba.task.CelebA", "mine.A", "mine.deeper.B", "yours.only.This"]
ALLOWED += ["torch.nn.Linear", "no_such_module.A"]
NOT_ALLOWED = ["this.A", "deqopt.__main__.main", "os.system", "builtins.eval", "antigravity.A", "tabnanny.NannyNag"]
NOT_ALLOWED += ["torch.utils.benchmark.Timer"]


@pytest.mark.parametrize("path", ALLOWED + NOT_ALLOWED)
def test_what_data_may_name(path: str) -> None:
    allowed = path in ALLOWED
    with trusting("mine", "yours.only.This") as trust:
        assert trust.allows(path) == allowed
        settings = {"a": [{"b": {"class_path": path, "init_args": {}}}]}
        if allowed:
            require_trusted(settings, "a.yaml")
        else:
            with pytest.raises(TrustError, match=rf"^a\.yaml names {path}, "):
                require_trusted(settings, "a.yaml")


class NoModule:
    """Known, and of another kind."""


def test_a_class_by_name_must_be_one_of_its_kind() -> None:
    assert trusted_class("torch.nn.Identity", nn.Module) is nn.Identity
    for path in ("deqopt.cli.main", "deqopt.solvers.Tracking", f"{__name__}.NoModule"):
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
