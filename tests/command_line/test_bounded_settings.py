"""Settings that would fill the memory or nest without end: one line, before anything is built of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from command import complaint, resolved, user_folder, written
from deqopt import JointModule
from deqopt.command_line.bounded import MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES, NotYamlError, load_yaml
from deqopt.errors import CheckpointError

CELEBA = {"class_path": "deqopt_tasks.celeba.task.CelebA", "init_args": {"size": 8}}
folder = user_folder({"task": CELEBA})


def laughs(levels: int, each: int = 9) -> str:
    """Each level is a list of nine references to the one before."""
    first = f"{{a0: &a0 [{', '.join(['x'] * each)}]"
    return first + "".join(f", a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * each)}]" for i in range(1, levels)) + "}"


def merges(levels: int) -> str:
    """Each level merges the one before nine times."""
    lines = (f", b{i}: &b{i} {{'<<': [{', '.join([f'*b{i - 1}'] * 9)}]}}" for i in range(1, levels))
    return "{b0: &b0 {k: v}" + "".join(lines).replace("'<<'", "<<") + "}"


BOMBS: dict[str, tuple[str, str]] = {
    "billion laughs": (laughs(10), "unfold to more"),
    "more laughs than bits": (laughs(200), "unfold to more|deep"),
    "merged laughs": (merges(10), "unfold to more"),
    "list of itself": ("{a: &a [*a]}", "within themselves"),
    "mapping of itself": ("{a: &a {b: *a}}", "within themselves"),
    "two of each other": ("{a: &a [&b [*a, *b]]}", "within themselves|unfold"),
    "deep list": ("{a: " + "[" * 200 + "]" * 200 + "}", "nested more than"),
    "very deep list": ("{a: " + "[" * 20_000 + "]" * 20_000 + "}", "nested more than|YAML"),
    "deep mapping": ("{a: " + "{a: " * 5000 + "}" * 5001, "nested more than|YAML"),
    "many values": ("{a: [" + "1, " * 10_000 + "1]}", "more than 2000 values"),
    "long integer": ("{a: " + "9" * 5001 + "}", "integer of 5001 digits"),
    "long negative integer": ("{a: -" + "9" * 5001 + "}", "integer of 5002 digits"),
    "long binary integer": ("{a: 0b" + "1" * 50_000 + "}", "integer of 50002 digits"),
    "long sexagesimal integer": ("{a: 1" + ":10" * 10_000 + "}", "integer of 30001 digits"),
    "long text": ("{a: " + "x" * (MAX_CHARACTERS + 1) + "}", "characters are too much|larger"),
    "no such date": ("{a: 2021-13-45}", "cannot be read"),
    "no such truth": ("{a: !!bool perhaps}", "cannot be read"),
    "no such number": ("{a: !!int x}", "cannot be read"),
    "no such time": ("{a: !!timestamp x}", "cannot be read"),
    "object": ("{a: !!python/object/apply:os.abort []}", "could not determine a constructor"),
    "list as key": ("{[1, 2]: 3}", "unhashable key"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_text(case: str) -> None:
    text, pattern = BOMBS[case]
    with pytest.raises(NotYamlError, match=pattern) as caught:
        load_yaml(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


DIFFERENT = "billion laughs", "list of itself", "very deep list", "many values", "long integer", "object"
"""One for each reason; that every place reads as ``load_yaml`` does needs no more."""


@pytest.mark.parametrize("case", DIFFERENT)
@pytest.mark.parametrize("place", ["--config", "DEQOPT_CONFIG"])
def test_configurations(place: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.yaml", BOMBS[case][0])
    words: tuple[object, ...] = ("fit", "--task=celeba")
    if place == "--config":
        words += (place, path)
    else:
        monkeypatch.setenv(place, str(path))
    assert str(path) in complaint(*words)


@pytest.mark.parametrize("case", DIFFERENT)
@pytest.mark.parametrize("place", ["environment", "value", "value with =", "choice"])
def test_values(place: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = BOMBS[case][0]
    words, named = {
        "environment": (("--task=celeba",), "DEQOPT_TRAINER__MAX_EPOCHS"),
        "value": (("--task=celeba", "--task.widths", text), "task.widths"),
        "value with =": (("--task=celeba", f"--task.widths={text}"), "task.widths"),
        "choice": (("--task", text), "--task"),
    }[place]
    if place == "environment":
        monkeypatch.setenv(named, text)
    message = complaint("fit", *words)
    assert named in message and len(message) < 600


@pytest.mark.parametrize("case", DIFFERENT)
def test_text_within_a_configuration_and_in_files_that_it_names(case: str, tmp_path: Path) -> None:
    """The parser reads text again as YAML where it looks for a number or a list."""
    other = str(written(tmp_path / "other.yaml", BOMBS[case][0]))
    within = {"trainer": {"max_epochs": BOMBS[case][0]}, "seed_everything": 1}
    for settings in (within, {"trainer": other}, {"model": other}):
        config = written(tmp_path / "a.yaml", yaml.safe_dump({"task": CELEBA, **settings}, width=10**6))
        assert len(complaint("fit", "--config", config)) < 600


def cyclic() -> list[Any]:
    values: list[Any] = []
    values.append(values)
    return values


def nested(levels: int, each: int = 1) -> list[Any]:
    """Lists of the same list so many times, and so on."""
    values: list[Any] = []
    for _ in range(levels):
        values = [values] * each
    return values


DATA: dict[str, Any] = {
    "list of itself": cyclic(),
    "laughs": nested(13, each=9),
    "deep": nested(400),
    "many": [0] * 30_000,
    "integer": 10**5001,
    "text": "x" * (MAX_CHARACTERS + 1),
    "tensor": torch.zeros(3),
    "bytes": b"x",
    "keys that are numbers": {1: 2},
    "set": {1, 2},
}


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("command", ["test", "load"])
def test_settings_of_a_checkpoint(command: str, case: str, tmp_path: Path) -> None:
    task = {"class_path": "deqopt_tasks.celeba.task.CelebA", "init_args": {"widths": DATA[case]}}
    settings = {"task": task, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6", "hyper_parameters": settings}, path)
    if command == "load":
        with pytest.raises(CheckpointError, match=r"a\.ckpt"):
            JointModule.load_from_checkpoint(path)
    else:
        message = complaint("test", "--ckpt_path", path)
        assert "a.ckpt" in message and len(message) < 600


# -- what is within the bounds ----------------------------------------------------------------------------------------


def test_what_is_large_but_sane_is_read() -> None:
    assert load_yaml("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)) is not None
    assert len(load_yaml("[" + "1, " * (MAX_VALUES - 2) + "]")) == MAX_VALUES - 2
    assert load_yaml("9" * 300) == int("9" * 300)
    merged = {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}
    assert load_yaml("{a: &a {x: 1}, b: *a, c: {<<: *a, y: 2}}") == merged
    assert load_yaml("") is None


def test_references_and_merges_work_in_configurations(tmp_path: Path) -> None:
    text = "task: celeba\nfit:\n  trainer: &few {max_epochs: 3}\ntest:\n  trainer: {<<: *few, max_steps: 5}\n"
    path = written(tmp_path / "a.yaml", text)
    assert resolved("fit", "--config", path)["trainer"]["max_epochs"] == 3
    trainer = resolved("test", "--config", path)["trainer"]
    assert (trainer["max_epochs"], trainer["max_steps"]) == (3, 5)


def test_the_parser_of_others_is_as_it_was(tmp_path: Path) -> None:
    from jsonargparse import _common, _loaders_dumpers

    before = dict(_common.parsing_settings), _loaders_dumpers.yaml_default_loader
    resolved("fit", "--task=celeba")
    complaint("fit", "--task=celeba", "--task.size=x")
    assert (dict(_common.parsing_settings), _loaders_dumpers.yaml_default_loader) == before
