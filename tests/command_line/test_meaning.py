"""What a command line means: names, configurations, the environment, precedence, help."""

from __future__ import annotations

import inspect
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from deqopt_tasks.celeba.task import CelebA

import deqopt as package
from command import SMALL, Answer, checkpoint, complaint, deqopt, empty_folder, resolved, succeeded, variables, written
from deqopt.registry import Group, plugins
from paths import CONFIGS
from processes import python

CELEBA = "deqopt_tasks.celeba.task.CelebA"
TRACKING = "deqopt.solvers.tracking.Tracking"
ANDERSON = "deqopt.solvers.joint_anderson.JointAnderson"
RUNS = ("fit", "validate", "test", "predict")


elsewhere = empty_folder()


# -- what it says of itself -------------------------------------------------------------------------------------------


def test_help_listings_and_version_answer_without_torch() -> None:
    commands = "; ".join(f"main([{word!r}])" for word in ("tasks", "solvers", "--help", "--version"))
    code = f"import sys; from deqopt.cli import main; {commands}; sys.exit('torch' in sys.modules)"
    lines = python("-c", code).stdout.splitlines()
    assert any(line.startswith("celeba, latents ") for line in lines)
    assert {"Tracking", "JointAnderson"} <= {line.split()[0] for line in lines if line}
    assert f"deqopt {package.__version__}" in lines


def test_the_help_names_every_command_and_its_examples_can_be_parsed() -> None:
    text = succeeded("--help").output
    assert text == succeeded("-h").output
    assert all(f"\n  {command} " in text for command in (*RUNS, "tasks", "solvers"))
    examples = [line.split()[1:] for line in text.partition("examples:")[2].splitlines() if line.strip()]
    given = [words for words in examples if not {"--ckpt_path", "--config"} & set(words)]
    assert len(given) == 2 and all(deqopt(*words).status == 0 for words in given if "--task.help" in words)
    assert [resolved(*words)["task"]["class_path"] for words in given if "--task.help" not in words] == [CELEBA]


def readable(answer: Answer) -> str:
    assert answer.status == 0 and answer.error == ""
    assert "``" not in answer.output and ":class:" not in answer.output
    return " ".join(answer.output.split())


@pytest.mark.parametrize("command", RUNS)
def test_the_help_of_a_run_lists_the_options_of_the_house_before_those_of_lightning(command: str) -> None:
    text = readable(deqopt(command, "--help"))
    own = ["--task", "--solver", "--adjoint", "--model.optimization", "--checkpoint.monitor", "--ckpt_path"]
    places = [text.index(f" {option} ") for option in [*own, "--trainer.max_epochs"]]
    assert places == sorted(places)
    assert "--data" not in text and "DataModule" not in text


@pytest.mark.parametrize(
    "words",
    [
        ("--task.help", "celeba"),
        ("--task.help=celeba",),
        ("--task.help", CELEBA),
        ("--task", "celeba", "--task.help"),
        ("--task.help", "--task=celeba"),
    ],
    ids=" ".join,
)
def test_the_help_of_a_task_explains_every_argument(words: tuple[str, ...]) -> None:
    text = readable(deqopt("fit", *words))
    defaults = {name: p.default for name, p in inspect.signature(CelebA).parameters.items()}
    for name, default in defaults.items():
        shown = {None: "null"}.get(default, str(default)) if not isinstance(default, list) else str(default)
        explained = text.rpartition(f"--task.{name}")[2].partition(" --task.")[0]
        assert f"default: {shown})" in explained and len(explained.partition("(type")[0].split()) >= 3, name


@pytest.mark.parametrize("solver", ["Tracking", "JointAnderson"])
def test_the_help_of_a_solver_is_that_of_the_solver(solver: str) -> None:
    text = readable(deqopt("fit", "--solver.help", solver))
    assert ("--solver.history_size" in text) == (solver == "JointAnderson")


# -- names and classes ------------------------------------------------------------------------------------------------

SPELLINGS: dict[str, tuple[object, tuple[str, ...]]] = {
    "name": ({}, ("--task", "celeba", "--task.size", "8")),
    "equals": ({}, ("--task=celeba", "--task.size=8")),
    "class path": ({}, ("--task", CELEBA, "--task.size", "8")),
    "colon": ({}, ("--task", "deqopt_tasks.celeba.task:CelebA", "--task.size=8")),
    "option first": ({}, ("--task.size", "8", "--task", "celeba")),
    "inline": ({}, ("--task", '{"class_path": "celeba", "init_args": {"size": 8}}')),
    "named twice": ({}, ("--task", "nonsense", "--task.size=8", "--task", "celeba")),
    "in YAML": ({"task": "celeba"}, ("--task.size=8",)),
    "in YAML with arguments": ({"task": {"class_path": "celeba", "init_args": {"size": 8}}}, ()),
    "in YAML by path": ({"task": {"class_path": CELEBA, "init_args": {"size": 8}}}, ()),
    "in YAML below fit": ({"fit": {"task": {"class_path": "celeba", "init_args": {"size": 8}}}}, ()),
    "arguments only": ({"task": {"init_args": {"size": 8}}}, ("--task", "celeba")),
    "not for this command": ({"test": {"task": {"init_args": {"size": 9}}}}, ("--task", "celeba", "--task.size=8")),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_all_spellings_mean_the_same(case: str, tmp_path: Path) -> None:
    settings, words = SPELLINGS[case]
    config = resolved("fit", "--config", written(tmp_path / "a.yaml", settings), *words)
    assert config["task"]["class_path"] == CELEBA and config["task"]["init_args"]["size"] == 8
    assert config == resolved("fit", "--task", "celeba", "--task.size", 8)


@pytest.mark.parametrize("name", plugins(Group.TASKS))
def test_every_name_of_a_task_is_its_class(name: str) -> None:
    path = plugins(Group.TASKS)[name].class_path
    assert resolved("fit", "--task", name)["task"]["class_path"] == path
    assert readable(deqopt("fit", "--task.help", name)) == readable(deqopt("fit", "--task.help", path))


@pytest.mark.parametrize("place", ["command line", "configuration", "environment"])
def test_another_solver_comes_without_the_settings_of_the_former(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = {"class_path": "Tracking", "init_args": {"step_size": 2.0, "max_nfe": 7, "inner": 3}}
    words: list[object] = ["fit", "--task", "celeba"]
    if place == "environment":
        for name, value in {"": "Tracking", "__STEP_SIZE": "2.0", "__MAX_NFE": "7"}.items():
            monkeypatch.setenv(f"DEQOPT_SOLVER{name}", value)
    else:
        words += ["--config", written(tmp_path / "former.yaml", {"solver": former})]
    if place == "configuration":
        words += ["--config", written(tmp_path / "later.yaml", {"solver": "JointAnderson"})]
    else:
        words += ["--solver", "JointAnderson"]
    later = resolved(*words)["solver"]
    assert later == resolved("fit", "--task", "celeba", "--solver", "JointAnderson")["solver"]
    assert later["class_path"] == ANDERSON and later["init_args"]["step_size"] != 2.0


@pytest.mark.parametrize("words", [(), ("--solver", "Tracking"), (f"--solver={TRACKING}",)], ids=str)
def test_the_same_solver_keeps_the_settings_that_it_was_given(words: tuple[str, ...], tmp_path: Path) -> None:
    settings = {"class_path": "deqopt.solvers.Tracking", "init_args": {"step_size": 2.0}}
    config = written(tmp_path / "a.yaml", {"solver": settings})
    arguments = resolved("fit", "--task=celeba", "--config", config, *words, "--solver.inner=4")["solver"]["init_args"]
    assert (arguments["step_size"], arguments["inner"]) == (2.0, 4)


def test_the_adjoint_is_chosen_by_name() -> None:
    assert resolved("fit", "--task=celeba", "--adjoint=Envelope")["adjoint"] == {
        "class_path": "deqopt.adjoints.envelope.Envelope"
    }


# -- precedence -------------------------------------------------------------------------------------------------------

# The lower the earlier. Every source sets both an option of Lightning and an argument of a class.
SOURCES = ("environment", "checkpoint", "first file", "second file", "command line")
SUBSETS = [chosen for count in range(len(SOURCES) + 1) for chosen in combinations(SOURCES, count)]


@pytest.mark.parametrize("chosen", SUBSETS, ids=lambda chosen: ", ".join(chosen) or "defaults")
def test_the_later_source_wins(chosen: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[object] = ["test", "--task", "celeba"]
    for source in chosen:
        size = 8 + 2 * SOURCES.index(source)
        settings = {"task": {"init_args": {"size": size}}, "trainer": {"max_epochs": size}}
        if source == "environment":
            for name, value in {"TASK__SIZE": size, "TRAINER__MAX_EPOCHS": size}.items():
                monkeypatch.setenv(f"DEQOPT_{name}", str(value))
        elif source == "checkpoint":
            words += ["--ckpt_path", checkpoint(tmp_path / "a.ckpt", CELEBA, size=size)]
        elif source == "command line":
            words[1:1] = ["--task.size", size, "--trainer.max_epochs", size]
        else:
            words += ["--config", written(tmp_path / f"{source}.yaml", settings)]
    config = resolved(*words)
    sizes = [8 + 2 * SOURCES.index(source) for source in chosen]
    epochs = [size for source, size in zip(chosen, sizes, strict=True) if source != "checkpoint"]
    assert config["task"]["init_args"]["size"] == (sizes[-1] if sizes else 64)
    assert config["trainer"]["max_epochs"] == (epochs[-1] if epochs else None)
    assert config["task"]["init_args"]["latent"] == 64, "what nobody sets keeps its default"


def test_environment_variables_stand_for_whole_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "trainer": {"max_epochs": 3, "gradient_clip_val": 0.5, "precision": "bf16-mixed", "fast_dev_run": True},
        "model": {"optimization": {"lr": 1e-3, "schedule": "ONE_CYCLE"}, "compile": True},
        "checkpoint": {"monitor": "val/psnr", "mode": "max"},
        "seed_everything": 7,
    }
    words = ("fit", "--task", "celeba")
    expected = resolved(*words, "--config", written(tmp_path / "a.yaml", settings))
    for name, value in variables(settings).items():
        monkeypatch.setenv(name, value)
    assert resolved(*words) == expected
    monkeypatch.setenv("DEQOPT_TASK", "celeba")
    monkeypatch.setenv("DEQOPT_TASK__WIDTHS", "[4, 8]")
    assert resolved("fit")["task"]["init_args"]["widths"] == [4, 8]


def test_an_environment_variable_may_name_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.yaml", {"trainer": {"max_epochs": 3, "max_steps": 4, "min_epochs": 1}})
    monkeypatch.setenv("DEQOPT_CONFIG", str(path))
    monkeypatch.setenv("DEQOPT_TRAINER__MAX_STEPS", "5")
    trainer = resolved("fit", "--task=celeba", "--trainer.min_epochs=2")["trainer"]
    assert (trainer["max_epochs"], trainer["max_steps"], trainer["min_epochs"]) == (3, 5, 2)
    monkeypatch.setenv("DEQOPT_CONFIG", "no.yaml")
    assert complaint("fit", "--task=celeba").startswith("DEQOPT_CONFIG: there is no file 'no.yaml'")


@pytest.mark.parametrize("number", ["1e-3", "1.0e-3", "0.001"])
def test_numbers_with_exponents_are_numbers_everywhere(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written(tmp_path / "a.yaml", f"model: {{optimization: {{lr: {number}}}}}\ntask: celeba")
    line = resolved("fit", "--task=celeba", f"--model.optimization.lr={number}")
    assert resolved("fit", "--config", config) == line
    monkeypatch.setenv("DEQOPT_MODEL__OPTIMIZATION__LR", number)
    assert resolved("fit", "--task=celeba") == line
    assert line["model"]["optimization"]["lr"] == 0.001


@pytest.mark.parametrize("text", ["", "# nothing\n", "trainer:\ntask: celeba\nsolver:\n", "fit:\n"])
def test_empty_sections_say_nothing(text: str, tmp_path: Path) -> None:
    assert resolved("fit", "--task=celeba", "--config", written(tmp_path / "a.yaml", text)) == resolved(
        "fit", "--task=celeba"
    )


@pytest.mark.parametrize("command", RUNS)
def test_a_printed_configuration_means_itself(command: str, tmp_path: Path) -> None:
    first = resolved("fit", "--config", written(tmp_path / "small.yaml", SMALL), "--seed_everything=3")
    again = resolved(command, "--config", written(tmp_path / "again.yaml", first))
    assert again == first and first["seed_everything"] == 3 and first["trainer"]["inference_mode"] is False


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_are_understood(path: Path) -> None:
    expected = yaml.safe_load(path.read_text())
    config = resolved("fit", "--task", expected.get("task", {}).get("class_path", "celeba"), "--config", path)
    for part, value in expected.items():
        assert holds(config[part], value), part


def holds(config: Any, expected: Any) -> bool:
    """Whether everything that ``expected`` says stands in ``config``; names of classes may have become their paths."""
    if isinstance(expected, dict):
        return all(key in config and holds(config[key], value) for key, value in expected.items() if key != CLASS)
    if isinstance(expected, list):
        return len(config) == len(expected) and all(map(holds, config, expected))
    if isinstance(expected, str) and isinstance(config, dict):
        return bool(config[CLASS].rpartition(".")[2] == expected)
    return bool(config == expected)


CLASS = "class_path"


# -- commands that are none -------------------------------------------------------------------------------------------

NO_COMMANDS: dict[tuple[str, ...], str] = {
    (): "a command is missing: the commands are fit, validate, test, predict, tasks, solvers",
    ("fti",): "unknown command 'fti': did you mean 'fit'?",
    ("preditc", "--task", "celeba"): "did you mean 'predict'?",
    ("frobnicate",): "unknown command 'frobnicate': the commands are fit,",
    ("--task", "celeba"): "the command comes before its options, as in 'deqopt fit --task'",
    ("--config", "a.yaml", "fit"): "the command comes before its options",
    ("tasks", "all"): "'deqopt tasks' takes no arguments, got all",
    ("--version", "3"): "'deqopt --version' takes no arguments, got 3",
}


@pytest.mark.parametrize("words", NO_COMMANDS, ids=" ".join)
def test_commands_that_are_none(words: tuple[str, ...]) -> None:
    assert NO_COMMANDS[words] in complaint(*words)


def test_interrupting_the_start_is_no_error_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("deqopt.cli.listing", interrupted)
    assert deqopt("tasks") == Answer(130, "", "")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr("deqopt.cli.listing", buggy)
    with pytest.raises(ZeroDivisionError):
        deqopt("tasks")
