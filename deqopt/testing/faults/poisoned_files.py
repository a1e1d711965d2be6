"""Checkpoints and settings from strangers, which name what must not be run."""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deqopt.checkpoints import write
from deqopt.testing.faults.forked import Shared
from deqopt.testing.faults.judgement import no_traceback, refused, whole
from deqopt.testing.faults.outcome import Broken, Outcome
from deqopt.testing.faults.poisoned_data import Pickled, touch
from deqopt.testing.faults.workbench import Case, Loaded, changed

MODULE = "canary_module"
Spec = dict[str, Any]


def hostile(case: Case) -> dict[str, Spec]:
    """Class paths whose import or call writes the canary."""
    command = touch(case)
    return {
        "os.system": {"class_path": "os.system", "init_args": {"command": command}},
        "subprocess.Popen": {"class_path": "subprocess.Popen", "init_args": {"args": command, "shell": True}},
        "a module": {"class_path": f"{MODULE}.Thing"},
        "a module alone": {"class_path": MODULE},
        "os.system by way of deqopt": {"class_path": "deqopt.data.pixels.os.system", "init_args": {"command": command}},
        "exec": {"class_path": "builtins.exec", "init_args": {"source": f"open({str(case.canary)!r}, 'w')"}},
        "pydoc.pipepager": {"class_path": "pydoc.pipepager", "init_args": {"text": "", "cmd": command}},
    }


Placed = Callable[[Loaded, Spec], Loaded]
"""The parts of hyper-parameters that a hostile description replaces."""


def _as_part(name: str) -> Placed:
    return lambda hyper, spec: {name: spec}


def _as_argument(part: str, name: str) -> Placed:
    return lambda hyper, spec: {part: {**hyper[part], "init_args": {**hyper[part]["init_args"], name: spec}}}


def _of_task(path: str, **arguments: Any) -> Loaded:
    return {"task": {"class_path": path, "init_args": arguments}}


CELEBA, DENOISING = "deqopt_tasks.celeba.task.CelebA", "deqopt_tasks.denoising.task.Denoising"
EXTERNAL = "deqopt_tasks.denoising.operator.External"
PLACES: dict[str, Placed] = {
    **{name: _as_part(name) for name in ("task", "solver", "adjoint", "optimization", "compile")},
    "regularizers": lambda hyper, spec: {"regularizers": [spec]},
    "an argument of the task": _as_argument("task", "root"),
    "an argument of the solver": _as_argument("solver", "max_nfe"),
    "dict_kwargs of the task": lambda hyper, spec: {"task": {**hyper["task"], "dict_kwargs": {"root": spec}}},
    "_instantiator": lambda hyper, spec: {"_instantiator": spec["class_path"]},
    "_class_path": lambda hyper, spec: {"_class_path": spec["class_path"]},
    "fid_features": lambda hyper, spec: _of_task(CELEBA, fid_features=spec["class_path"]),
    "operator": lambda hyper, spec: _of_task(DENOISING, operator=spec),
    "physics": lambda hyper, spec: _of_task(
        DENOISING, operator={"class_path": EXTERNAL, "init_args": {"physics": spec}}
    ),
}


def a_checkpoint(case: Case) -> None:
    """A checkpoint names only classes of deqopt and of its plugins: what else it names is neither imported nor run."""
    specs = hostile(case)
    what, place = case.random.choice(sorted(specs)), case.random.choice(sorted(PLACES))
    command = case.random.choice(("fit", "test", "predict", "load_from_checkpoint"))
    case.fault = f"a checkpoint with {what} for {place}, then {command}"
    path = case.copied() / "checkpoints" / "last.ckpt"
    with changed(path, signed=case.random.random() < 0.5) as content:
        hyper = content["hyper_parameters"]
        hyper.update(PLACES[place](hyper, specs[what]))
    _use(case, command, path)


def a_pickle(case: Case) -> None:
    """A checkpoint that holds a pickle is refused in one line, and not unpickled."""
    kind = case.random.choice(("pickle", "zip", "legacy", "signed", "extra", "state", "archive"))
    command = case.random.choice(("fit", "test", "load_from_checkpoint"))
    case.fault = f"a checkpoint with code ({kind}), then {command}"
    path = case.copied() / "checkpoints" / "last.ckpt"
    code = Pickled(touch(case))
    if kind == "pickle":
        path.write_bytes(pickle.dumps(code))
    elif kind == "signed":
        write({"state_dict": code}, path)
    elif kind in ("zip", "legacy"):
        torch.save(code, path, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(code))
            archive.writestr("archive/version", "3")
    else:
        with changed(path, signed=case.random.random() < 0.5) as content:
            if kind == "extra":
                content["extra"] = code
            else:
                content["callbacks"] = {"RunCheckpoint": code}
    _use(case, command, path)


def _use(case: Case, command: str, path: Path) -> None:
    """Use the checkpoint in every way, from a folder with a module that must not be imported."""
    _write_module(case)

    def reach(shared: Shared, rank: int) -> None:
        sys.path.insert(0, str(case.folder))
        if command == "load_from_checkpoint":
            from deqopt import JointModule

            try:
                JointModule.load_from_checkpoint(path)
            except Exception as error:  # what it raises is for the author of a script: the canary is what counts
                print(f"{type(error).__name__}: {error}")

    if command == "load_from_checkpoint":
        case.plain("--version", prepare=[reach])
        return
    ended = case.plain(
        command, "--ckpt_path", path, f"--trainer.default_root_dir={case.root}", "--trainer.accelerator=cpu",
        "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", prepare=[reach],
    )  # fmt: skip
    no_traceback(ended)
    if ended.status:
        refused(ended)
    elif command == "fit" and not case.canary.exists():
        whole(case)


def _write_module(case: Case) -> None:
    text = f"open({str(case.canary)!r}, 'w').close()\nclass Thing:\n    pass\ndef go(*_, **__):\n    pass\n"
    (case.folder / f"{MODULE}.py").write_text(text)


# -- settings ---------------------------------------------------------------------------------------------------------


def _laughs(depth: int = 12) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, depth)]
    return "\n".join(lines)


def _texts(case: Case) -> dict[str, str]:
    command = touch(case)
    system = f"{{class_path: os.system, init_args: {{command: '{command}'}}}}"
    popen = f"{{class_path: subprocess.Popen, init_args: {{args: '{command}', shell: true}}}}"
    return {
        "a Python tag": f"!!python/object/apply:os.system ['{command}']",
        "a Python tag in the trainer": f"trainer: {{max_epochs: !!python/object/apply:os.system ['{command}']}}",
        "os.system for a task": f"task: {system}",
        "os.system for a solver": f"solver: {system}",
        "os.system for a callback": f"trainer: {{callbacks: [{system}]}}",
        "os.system for a logger": f"trainer: {{logger: {system}}}",
        "os.system for a regularizer": f"model: {{regularizers: [{system}]}}",
        "os.system for root": f"task: {{init_args: {{root: {system}}}}}",
        "os.system by way of deqopt": f"task: {{class_path: deqopt.data.pixels.os.system, init_args: "
        f"{{command: '{command}'}}}}",
        "Popen for a callback": f"trainer: {{callbacks: [{popen}]}}",
        "Popen for a profiler": f"trainer: {{profiler: {popen}}}",
        "Popen for a strategy": f"trainer: {{strategy: {popen}}}",
        "Popen for a physics": "task: {class_path: denoising, init_args: {operator: {class_path: External, init_args: "
        f"{{physics: {popen}}}}}}}}}",
        "os.abort for features": "task: {class_path: celeba, init_args: {fid_features: os.abort}}",
        "a function for a callback": "trainer: {callbacks: [{class_path: LambdaCallback, init_args: "
        f"{{on_fit_start: {MODULE}.go}}}}]}}",
        "a bomb": _laughs(),
        "a list that holds itself": "a: &a [*a]",
        "a mapping that holds itself": "task: &a {init_args: *a}",
        "nesting": "trainer: " + "[" * 20000,
        "nested mappings": "trainer: " + "{a: " * 5000 + "1" + "}" * 5000,
        "a long number": "trainer: {max_epochs: " + "9" * 5001 + "}",
        "NUL": "trainer: {max_epochs: 2}\x00",
        "a tab": "trainer:\n\tmax_epochs: 2",
        "two documents": "trainer: {}\n---\ntask: celeba",
        "half a character": "trainer: \udcff",
        "infinity": "task: {init_args: {batch_size: .inf}}",
        "NaN": "solver: {class_path: Tracking, init_args: {step_size: .nan}}",
    }


def settings(case: Case) -> None:
    """Settings from a stranger run nothing but classes of the kind that is asked for, and are refused in one line."""
    texts = _texts(case)
    kind = case.random.choice(sorted(texts))
    case.fault = f"settings with {kind}"
    _write_module(case)
    path = case.folder / "foreign.yaml"
    path.write_bytes(texts[kind].encode("utf-8", "surrogateescape"))
    in_the_environment = case.random.random() < 0.2
    words: tuple[object, ...] = ("--config", path)
    if in_the_environment:
        words, case.environment = (), {"DEQOPT_CONFIG": str(path)}
    ended = case.command("fit", *words, prepare=[lambda shared, rank: sys.path.insert(0, str(case.folder))])
    no_traceback(ended)
    if case.canary.exists():
        raise Broken(Outcome.EXECUTED, f"{kind} was run")
    refused(ended)
