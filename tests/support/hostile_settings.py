"""Settings whose use would leave a trace, and what they are refused with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from command import Answer

SMALL: dict[str, Any] = {"size": 8, "latent": 2, "widths": [4, 4], "resolution": 4}
CELEBA = {"class_path": "deqopt_tasks.celeba.task.CelebA", "init_args": SMALL}
EXTERNAL = "deqopt_tasks.denoising.operator.External"
INPAINTING = "deqopt_tasks.denoising.inpainting"
HOSTILE: dict[str, Any] = {"task": {"class_path": "hostile.Hostile", "init_args": {}}}

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


def hostile_module() -> Any:
    """The fixture of a file that appears when the module ``hostile`` is imported or one of its classes made."""

    @pytest.fixture
    def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        (tmp_path / "modules").mkdir()
        (tmp_path / "modules" / "hostile.py").write_text(MODULE.format(trace=str(tmp_path / "ran")))
        monkeypatch.syspath_prepend(tmp_path / "modules")
        yield tmp_path / "ran"
        sys.modules.pop("hostile", None)

    return trace


def shell(trace: Path) -> dict[str, Any]:
    return {"class_path": "os.system", "init_args": {"command": f"touch {trace}"}}


def attacks(trace: Path) -> dict[str, dict[str, Any]]:
    """Settings, as a checkpoint has them, each of which would make the file."""
    hostile = HOSTILE["task"]

    def task(path: Any, **arguments: Any) -> dict[str, Any]:
        return {"task": {"class_path": path, "init_args": arguments}}

    def with_operator(operator: Any) -> dict[str, Any]:
        return task("deqopt_tasks.denoising.task.Denoising", operator=operator)

    def with_mask(mask: Any) -> dict[str, Any]:
        return with_operator({"class_path": f"{INPAINTING}.Inpainting", "init_args": {"mask": mask}})

    def beside(**more: Any) -> dict[str, Any]:
        return {"task": CELEBA, **more}

    keywords = {"class_path": EXTERNAL, "init_args": {}, "dict_kwargs": {"physics": shell(trace)}}
    named = {"class_path": f"{INPAINTING}._Handed", "init_args": {"known": "hostile.Penalty"}}
    return {
        "task": HOSTILE,
        "task that runs a command": {"task": shell(trace)},
        "a module's name in an attribute": task("deqopt.cli.sys.modules"),
        "os through a module": {"task": {**shell(trace), "class_path": "deqopt.command_line.arguments.os.system"}},
        "os through the tasks": {"task": {**shell(trace), "class_path": "deqopt_tasks.celeba.task.torch.os.system"}},
        "a function of deqopt": task("deqopt.cli.main", arguments=["tasks"]),
        "the program itself": task("deqopt.__main__.main"),
        "another kind": task("deqopt.solvers.Tracking"),
        "operator's physics": with_operator({"class_path": EXTERNAL, "init_args": {"physics": shell(trace)}}),
        "operator's physics in keywords": with_operator(keywords),
        "operator": with_operator(hostile),
        "operator as text": with_operator("hostile.Hostile"),
        "operator as a text that runs": with_operator("os.abort"),
        "mask within an operator": with_mask(hostile),
        "tensor by name": with_mask(named),
        "path that is a list": task(["hostile.Hostile"]),
        "path with a colon": task("hostile:Hostile"),
        "path of wide letters": task("\uff48ostile.Hostile"),
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
        "function with the right return type": task("hostile.make"),
        "instantiator": {"task": CELEBA, "_instantiator": "hostile.make"},
        "class of the module": {"task": CELEBA, "_class_path": "hostile.Hostile"},
    }


NAMES = list(attacks(Path("ran")))


def stored(path: Path, settings: dict[str, Any], **more: Any) -> Path:
    weights: dict[str, Any] = {"state_dict": {}, "pytorch-lightning_version": "2.6.6", "global_step": 0, "epoch": 0}
    settings = {"_instantiator": "lightning.pytorch.cli.instantiate_module", **settings}
    torch.save({**weights, "hyper_parameters": settings, **more}, path)
    return path


def refused_without(trace: Path, answer: Answer) -> None:
    """In one line, and nothing of it was imported or made."""
    lines = answer.error.strip().splitlines()
    assert answer.status == 2 and len(lines) == 1 and lines[0].startswith("deqopt: error: "), answer
    assert not trace.exists() and "hostile" not in sys.modules
