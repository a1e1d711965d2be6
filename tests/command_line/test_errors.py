"""Bad input on the command line: every case ends in one line that says what was wrong, where, what would be right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from command import SMALL, complaint, empty_folder, written

HERE = Path(__file__).stem


elsewhere = empty_folder(small=SMALL)


# -- options ----------------------------------------------------------------------------------------------------------

FIT = ("fit", "--config=small.yaml")
OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "no task": (("fit",), r"no task is chosen: give --task NAME, one of those installed \(.*celeba.*\) or a class"),
    "no task but options": (("fit", "--task.size=3"), r"no task is chosen: give --task NAME"),
    "unknown task": (("fit", "--task", "celebra"), r"unknown task 'celebra': did you mean 'celeba'\? Known tasks: "),
    "unknown solver": ((*FIT, "--solver=Trakking"), r"unknown solver 'Trakking': did you mean 'Tracking'\?"),
    "unknown adjoint": ((*FIT, "--adjoint", "Env"), r"unknown adjoint 'Env'\. Known adjoints: .*Envelope"),
    "no module": (("fit", "--task=no_such.T"), r"task 'no_such\.T' cannot be imported: ModuleNotFoundError: No mod"),
    "no class": (("fit", "--task=os.path"), r"task 'os\.path' is no class but an object of type module$"),
    "not a task": (
        ("fit", "--task=torch.nn.Linear"),
        r"^--task: Import path torch\.nn\.\S*Linear does not .* subclass of Task$",
    ),
    "task as solver": (
        (*FIT, "--solver=tiny_task.Tiny"),
        r"^--solver: Import path tiny_task\.Tiny does not .* JointSolver$",
    ),
    "help on no task": (("fit", "--task.help", "torch.nn.Linear"), r'"torch\.nn\.\S*Linear" is not a subclass of Task'),
    "help on what": (("fit", "--task.help"), r"^--task\.help needs a name, as in --task\.help NAME$"),
    "task without name": (("fit", "--task"), r"^--task needs a value, a name$"),
    "unknown argument": ((*FIT, "--task.sise", "8"), r"^unknown option --task\.sise: did you mean --task\.size\?$"),
    "strange argument": ((*FIT, "--solver.zzz", "8"), r"^unknown option --solver\.zzz: Tracking has max_nfe, tol, "),
    "null": ((*FIT, "--task.size=null"), r"^--task\.size: null is no value of it; leave it out for its default$"),
    "null in a solver": ((*FIT, "--solver=Bilevel", "--solver.max_nfe=null"), r"^--solver\.max_nfe: null is no value"),
    "of a class that is not chosen": (
        ("fit", "--task=cifar", "--task.loss.beta=3"),
        r"^--task\.loss\.beta is an option of a class that is not chosen yet: give --task\.loss NAME before it$",
    ),
    "below one": ((*FIT, "--task.latent.x=8"), r"^unknown option --task\.latent\.x: task\.latent is one value$"),
    "unknown part of a solver": (
        (*FIT, "--solver=Bilevel", "--solver.descent=Adamm"),
        r"^--solver\.descent: there is no 'Adamm' to choose: give the name of a class, or its path$",
    ),
    "of another solver": ((*FIT, "--solver.history_size=8"), r"^unknown option --solver\.history_size: did you mean "),
    "unknown option": ((*FIT, "--trainer.max_epoch=8"), r"--trainer\.max_epoch: did you mean --trainer\.max_epochs\?$"),
    "strange option": ((*FIT, "--qwerty", "8"), r"^unknown option --qwerty: --help lists all$"),
    "stray word": ((*FIT, "celeba"), r"^unexpected argument 'celeba'$"),
    "option without value": ((*FIT, "--ckpt_path"), r"--ckpt_path: expected one argument$"),
    "linked": ((*FIT, "--model.task=celeba"), r"^--model\.task cannot be set: give --task$"),
    "text as number": ((*FIT, "--trainer.max_epochs=x"), r"^--trainer\.max_epochs: expected int or null, got 'x'$"),
    "text as argument": ((*FIT, "--task.size", "x"), r"^--task\.size: expected int, got 'x'$"),
    "fraction": ((*FIT, "--task.resolution=2.5"), r"^--task\.resolution: expected int or null, got '2\.5'$"),
    "number as list": ((*FIT, "--task.widths=3"), r"^--task\.widths: expected list, got '3'$"),
    "text in list": ((*FIT, "--task.widths=[4, a]"), r"^--task\.widths: expected int, got 'a'$"),
    "word as truth": ((*FIT, "--task.download=maybe"), r"^--task\.download: expected bool, got 'maybe'$"),
    "deep text": ((*FIT, "--model.optimization.lr=x"), r"^--model\.optimization\.lr: expected float, got 'x'$"),
    "unknown choice": ((*FIT, "--model.optimization.schedule=FOO"), r"^Optimization: schedule must be .*, got 'FOO'$"),
    "unknown mode": ((*FIT, "--checkpoint.mode=low"), r"^--checkpoint\.mode: expected 'min', 'max', got 'low'$"),
    "one for a list": (
        (*FIT, "--model.regularizers=JacobianPenalty"),
        r"--model\.regularizers: expected list or null, got 'JacobianPenalty'; --model\.regularizers\+ VALUE adds one$",
    ),
    "accelerator": ((*FIT, "--trainer.accelerator=abacus"), r"invalid accelerator name: `accelerator='abacus'`.*cpu"),
    "no devices": ((*FIT, "--trainer.devices=0"), r"devices='0'.* not a valid input using cpu"),
    "epochs": ((*FIT, "--trainer.max_epochs=-5"), r"`max_epochs` must be a non-negative integer or -1\. .* -5"),
    "strategy": ((*FIT, "--trainer.strategy=abacus"), r"invalid strategy name: `strategy='abacus'`"),
    "seed": ((*FIT, "--seed_everything=-1"), r"^-1 is not in bounds, .* from 0 to 4294967295$"),
    "no seed": ((*FIT, "--seed_everything=x"), r"^--seed_everything: expected int, got 'x'$"),
    "solver's range": ((*FIT, "--solver.max_nfe=0"), r"^max_nfe must be at least 1, got 0$"),
    "optimiser's range": ((*FIT, "--model.optimization.lr=-1"), r"lr must be larger than 0, got -1\.0$"),
    "penalty's range": (
        (*FIT, "--model.regularizers+=deqopt.regularizers.JacobianPenalty", "--model.regularizers.weight=-1"),
        r"^JacobianPenalty: weight must be 0 or larger.*got -1\.0",
    ),
    "task's range": ((*FIT, "--task.latent=0"), r"^celeba: latent must be at least 1, got 0$"),
    "data's range": ((*FIT, "--task.batch_size=0"), r"^batch_size must be at least 1, got 0$"),
    "resolution": ((*FIT, "--task.resolution=0"), r"resolution .* must be a multiple of 2; got 0$"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str, tmp_path: Path) -> None:
    words, pattern = OPTIONS[case]
    before = set(tmp_path.iterdir())
    message = complaint(*words)
    assert re.search(pattern, message) and len(message) < 300, message
    assert set(tmp_path.iterdir()) == before


# -- configurations and the environment -------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[object, str]] = {
    "not YAML": ("task: [celeba\n", r"--config: bad\.yaml: not valid YAML: line 2: expected ',' or '\]'"),
    "tabs": ("task:\n\tcelebra", r"--config: bad\.yaml: not valid YAML: line 2: found character '\\t'"),
    "binary": ("\x00", r"--config: bad\.yaml: not valid YAML: "),
    "list": ("- task\n", r"--config: bad\.yaml should hold keys and values, not a list$"),
    "text": ("celeba", r"--config: bad\.yaml should hold keys and values, not 'celeba'$"),
    "numbers as keys": ("1: 2", r"--config: bad\.yaml should hold keys and values, not a mapping whose keys"),
    "list below fit": ({"fit": [1]}, r"^fit in bad\.yaml should hold keys and values, not a list$"),
    "section": ({"trainr": {"max_epochs": 3}}, r"^unknown option trainr\.max_epochs in bad\.yaml: did you mean tr"),
    "key": ({"trainer": {"max_epoch": 3}}, r"trainer\.max_epoch in bad\.yaml: did you mean trainer\.max_epochs\?"),
    "another command": ({"tset": {"trainer": {"max_epochs": 3}}}, r"^unknown option tset.* in bad\.yaml"),
    "unknown argument": (
        {"task": {"class_path": "celeba", "init_args": {"sise": 3}}},
        r"^unknown option task\.sise in bad\.yaml: did you mean task\.size\?$",
    ),
    "unknown part": (
        {"solver": {"class_path": "Tracking", "init_arg": {"inner": 3}}},
        r"^unknown key solver\.init_arg in bad\.yaml: did you mean init_args\?$",
    ),
    "no init_args": ({"solver": {"inner": 3}}, r"^unknown key solver\.inner in bad\.yaml: .* belong below init_args$"),
    "unknown of a penalty": (
        {"model": {"regularizers": [{"class_path": "JacobianPenalty", "init_args": {"weigt": 3}}]}},
        r"^unknown option model\.regularizers\.weigt in bad\.yaml: did you mean model\.regularizers\.weight\?$",
    ),
    "unknown task": ({"task": "celebra"}, r"unknown task 'celebra': did you mean 'celeba'\?"),
    "task as number": ({"task": 3}, r"^task in bad\.yaml should be a name, or class_path and init_args, not 3$"),
    "section as number": ({"trainer": 3}, r"^trainer in bad\.yaml should hold keys and values, not 3$"),
    "type": ({"trainer": {"max_epochs": "x"}}, r"^trainer\.max_epochs in bad\.yaml: expected int or null, got 'x'$"),
    "type of an argument": (
        {"task": {"class_path": "celeba", "init_args": {"size": "x"}}},
        r"^task\.size in bad\.yaml: expected int, got 'x'$",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations(case: str, tmp_path: Path) -> None:
    settings, pattern = CONFIGS[case]
    written(tmp_path / "bad.yaml", settings)
    message = complaint(*FIT, "--config", "bad.yaml")
    assert re.search(pattern, message), message


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("no.yaml", r"^--config: there is no file 'no\.yaml'; give a YAML file such as "),
        (".", r"^--config: there is no file '\.'"),
        ("", r"^--config: there is no file ''"),
        (None, r"^--config needs a value, a YAML file$"),
    ],
)
def test_configurations_that_are_not_there(name: str | None, pattern: str) -> None:
    message = complaint("fit", "--task=celeba", "--config", *([] if name is None else [name]))
    assert re.search(pattern, message), message


IN = r" in the environment variable DEQOPT_"
VARIABLES: dict[str, tuple[str, str]] = {
    "TRAINER__MAX_EPOCH": ("3", rf"trainer\.max_epoch{IN}TRAINER__MAX_EPOCH: did you mean"),
    "TRAINER__MAX_EPOCHS": ("x", rf"trainer\.max_epochs{IN}.*: expected int or null, got"),
    "TASK__SISE": ("3", rf"unknown option task\.sise{IN}TASK__SISE: did you mean task\.si"),
    "TRAINER": ("3", rf"^trainer{IN}TRAINER should hold keys and values, not 3$"),
    "TASK": ("celebra", r"unknown task 'celebra': did you mean 'celeba'"),
    "TASK__WIDTHS": ("[3", rf"the value{IN}TASK__WIDTHS: not valid YAML: line 1"),
}


@pytest.mark.parametrize("name", VARIABLES)
def test_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, pattern = VARIABLES[name]
    monkeypatch.setenv(f"DEQOPT_{name}", value)
    message = complaint("fit", "--task=celeba")
    assert re.search(pattern, message), message
