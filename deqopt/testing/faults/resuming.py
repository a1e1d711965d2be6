"""A run that is interrupted and resumed is the run that was never interrupted, bit for bit, for every task."""

from __future__ import annotations

import json
import signal
from typing import Any

from deqopt.testing.faults.judgement import no_traceback, saved, status_of, whole
from deqopt.testing.faults.moments import IN_A_STEP, Moment
from deqopt.testing.faults.outcome import Outcome, expect
from deqopt.testing.faults.signals import sent_at
from deqopt.testing.faults.workbench import QUIET, Case

JACOBIAN = {"class_path": "deqopt.regularizers.JacobianPenalty", "init_args": {"visits": 1}}
SPECTRAL = {"class_path": "deqopt.regularizers.SpectralPenalty", "init_args": {"weight": 1.0}}
EPOCHS, BATCHES, INTERRUPTIONS = 2, 4, 2


def _run(task: str, solver: str, regularizer: dict[str, Any], settings: dict[str, Any], max_nfe: int) -> dict[str, Any]:
    return {
        "task": {"class_path": task, "init_args": settings},
        "solver": {"class_path": solver, "init_args": {"max_nfe": max_nfe}},
        "model": {"regularizers": [regularizer], "optimization": {"lr": 0.003, "schedule": "ONE_CYCLE"}},
        "trainer": {**QUIET, "max_epochs": EPOCHS, "limit_train_batches": BATCHES, "limit_val_batches": 1},
    }


SMALL = {"size": 8, "image_channels": 1, "batch_size": 8, "widths": [4]}
RUNS: dict[str, dict[str, Any]] = {
    "celeba": _run("celeba", "Tracking", JACOBIAN, {**SMALL, "latent": 4, "resolution": 4, "components": 2}, 8),
    "cifar": _run("cifar", "SecantTracking", SPECTRAL, {**SMALL, "resolution": 4, "attack_images": 2, "radii": []}, 8),
    "denoising": _run(
        "denoising",
        "SecantTracking",
        JACOBIAN,
        {
            "size": 8,
            "image_channels": 1,
            "batch_size": 4,
            "prior": {"class_path": "deqopt_tasks.denoising.restorer.Restorer", "init_args": {"widths": [4]}},
            "test_images": 2,
        },
        8,
    ),
    "omniglot": _run(
        "omniglot",
        "SecantTracking",
        SPECTRAL,
        {
            "train_ways": 3,
            "queries": 1,
            "batch_size": 2,
            "train_episodes": 20,
            "val_episodes": 2,
            "test_episodes": 2,
            "widths": [4],
            "context": 4,
            "features": 4,
        },
        8,
    ),
}


def a_task(case: Case) -> None:
    """Interrupted anywhere, once or twice, and resumed, it ends with the weights of the run that was left alone."""
    task = case.random.choice(sorted(RUNS))
    times = case.random.randint(1, INTERRUPTIONS)
    steps = sorted(case.random.sample(range(1, EPOCHS * BATCHES), times))
    hooks = [case.random.choice(IN_A_STEP) for _ in steps]
    case.fault = f"{task}, interrupted in steps {' and '.join(map(str, steps))}"
    config = case.folder / "run.yaml"
    config.write_text(json.dumps(RUNS[task]))
    words: tuple[str, ...] = ("--config", str(config))
    reference = case.bench.undisturbed(task, words)
    words = (*words, f"--trainer.default_root_dir={case.root}")
    done: int = 0
    for step, hook in zip(steps, hooks, strict=True):
        more = ("--ckpt_path=last",) if done else ()
        if step <= done:
            continue
        ended = case.plain("fit", *words, *more, prepare=[sent_at(Moment(hook, step - done, False), signal.SIGTERM)])
        no_traceback(ended)
        expect(ended.status == status_of(signal.SIGTERM), Outcome.OTHER, f"expected 143: {ended}")
        done = saved(case, step - 1)
    ended = case.plain("fit", *words, "--ckpt_path=last")
    expect(ended.status == 0, Outcome.LOST, f"the run cannot be resumed: {ended}")
    whole(case, reference)
