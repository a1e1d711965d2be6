"""Batches as trees of tensors, and objects as plain descriptions."""

import io
from collections import OrderedDict
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum, IntEnum
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from deqopt.adjoints import Implicit, OnFailure, Phantom
from deqopt.batch import finite_samples, leaves, pick, size_of
from deqopt.fixed_point import MixingType
from deqopt.loop_settings import Norm
from deqopt.regularizers import JacobianPenalty
from deqopt.solvers import JointAnderson, SecantTracking, Tracking
from deqopt.spec import NotPlainError, spec


class Pair(NamedTuple):
    image: Tensor
    label: Tensor


IMAGES, LABELS = torch.arange(12.0).reshape(4, 3), torch.arange(4)
TREES: dict[str, Any] = {
    "tensor": IMAGES,
    "tuple": (IMAGES, LABELS),
    "list": [IMAGES, LABELS],
    "dict": {"image": IMAGES, "label": LABELS},
    "named tuple": Pair(IMAGES, LABELS),
    "ordered": OrderedDict(image=IMAGES, label=LABELS),
    "nested": {"a": [(IMAGES,), {"b": LABELS}], "names": "abcd", "weight": torch.tensor(2.0), "none": None},
}


@pytest.mark.parametrize("name", TREES)
def test_picking_samples_keeps_the_tree(name: str) -> None:
    tree = TREES[name]
    keep = torch.tensor([True, False, False, True])
    picked: Any = pick(tree, keep)
    assert size_of(tree) == 4 and size_of(picked) == 2
    assert isinstance(picked, dict if isinstance(tree, dict) else type(tree))
    for whole, part in zip(leaves(tree), leaves(picked), strict=True):
        assert torch.equal(part, whole[keep] if whole.dim() else whole)
    if name == "nested":
        assert picked["names"] == "abcd" and picked["none"] is None
    if name == "named tuple":
        assert isinstance(picked, Pair) and torch.equal(picked.label, torch.tensor([0, 3]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", TREES)
def test_finite_samples_looks_at_every_entry(name: str, bad: float) -> None:
    tree = TREES[name]
    assert finite_samples(tree).tolist() == [True] * 4
    broken = pick(tree, torch.ones(4, dtype=torch.bool))
    leaves(broken)[0][2, 1] = bad
    assert finite_samples(broken).tolist() == [True, True, False, True]
    assert finite_samples(pick(broken, finite_samples(broken))).all()


def test_samples_are_lost_by_any_of_their_tensors() -> None:
    first, second = torch.zeros(4, 2), torch.zeros(4, 1, 3)
    first[0, 1], second[3, 0, 2] = torch.nan, torch.inf
    assert finite_samples((first, {"more": [second]})).tolist() == [False, True, True, False]


def test_whole_numbers_are_finite_and_what_is_no_sample_is_not_judged() -> None:
    assert finite_samples(LABELS).tolist() == [True] * 4
    assert finite_samples((IMAGES, torch.tensor(torch.nan))).tolist() == [True] * 4


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Word(str, Enum):
    A = "a"


@dataclass(frozen=True)
class Settings:
    inner: Any = None
    size: int = 3


class Thing:
    def __init__(self, **init_args: Any) -> None:
        self.init_args = init_args


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (3, 3),
        (2.5, 2.5),
        (True, True),
        (None, None),
        ("text", "text"),
        (Path("a") / "b", "a/b"),
        ((1, [2, (3,)]), [1, [2, [3]]]),
        ({"a": (1, 2), 3: None}, {"a": [1, 2], "3": None}),
        (Colour.RED, "RED"),
        (Level.LOW, "LOW"),
        (Word.A, "A"),
        (np.float64(0.5), 0.5),
        (np.str_("text"), "text"),
        (Settings(), {"class_path": f"{__name__}.Settings", "init_args": {"inner": None, "size": 3}}),
        (Thing(a=Colour.RED), {"class_path": f"{__name__}.Thing", "init_args": {"a": "RED"}}),
        (
            Settings(inner=[Settings(size=1)]),
            {
                "class_path": f"{__name__}.Settings",
                "init_args": {
                    "inner": [{"class_path": f"{__name__}.Settings", "init_args": {"inner": None, "size": 1}}],
                    "size": 3,
                },
            },
        ),
    ],
)
def test_descriptions_are_plain_data(value: Any, plain: Any) -> None:
    described = spec(value)
    assert described == plain and type(described) is type(plain)
    buffer = io.BytesIO()
    torch.save({"described": described}, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == {"described": plain}


def make(described: Any) -> Any:
    """The inverse of spec, as a reader of checkpoints has it."""
    if isinstance(described, list):
        return [make(one) for one in described]
    if isinstance(described, dict) and "class_path" in described:
        module, _, name = described["class_path"].rpartition(".")
        kind = getattr(import_module(module), name)
        known = fields(kind) if is_dataclass(kind) else ()
        enums: dict[str, Any] = {one.name: type(one.default) for one in known if isinstance(one.default, Enum)}
        arguments = {k: enums[k][v] if k in enums else make(v) for k, v in described["init_args"].items()}
        return kind(**arguments)
    return described


@pytest.mark.parametrize(
    "value",
    [
        JointAnderson(max_nfe=7, kind=MixingType.II, norm=Norm.LINF),
        SecantTracking(history_size=6),
        Tracking(inner=4),
        Implicit(max_nfe=9, on_failure=OnFailure.RAISE),
        Phantom(steps=3, step_size=0.1),
        JacobianPenalty(weight=0.1, visits=2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_configurations_come_back(value: Any) -> None:
    assert make(spec(value)) == value


@dataclass(frozen=True)
class Callback:
    function: Any


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "object is not a plain value"),
        (torch.zeros(2), "Tensor is not a plain value"),
        (torch.nn.Linear(1, 1), "Linear is not a plain value"),
        ({"a": [1, {2}]}, "set is not a plain value"),
        (Callback(print), "not a plain value"),
        (Settings, "type is not a plain value"),
    ],
)
def test_what_is_not_plain_is_named(value: Any, message: str) -> None:
    with pytest.raises(NotPlainError, match=message):
        spec(value)


def test_local_classes_cannot_be_imported_again() -> None:
    @dataclass
    class Local:
        size: int = 1

    with pytest.raises(NotPlainError, match="Local is defined inside a function"):
        spec({"solver": Local()})
