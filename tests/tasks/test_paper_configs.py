"""The configurations of the published scale have the settings of the reference code, unless they say otherwise."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest

from command import resolved
from paths import CONFIGS

FOLDER = CONFIGS / "paper"
ANDERSON = {"solver.class_path": "deqopt.solvers.joint_anderson.JointAnderson"}
RESTORATION = {
    "trainer.max_epochs": 220,
    "task.init_args.batch_size": 12,
    "task.init_args.prior.init_args.latent": 128,
    "task.init_args.prior.init_args.widths": [32, 64, 128, 256],
    "adjoint.class_path": "deqopt.adjoints.unrolled.Unrolled",
}
FEW_SHOT = {
    "trainer.max_steps": 20000,
    "task.init_args.batch_size": 20,
    "task.init_args.test_episodes": 600,
    "solver.init_args.max_nfe": 100,
    "solver.init_args.history_size": 10,
    "solver.init_args.step_rule": "PLAIN",
    "adjoint.class_path": "deqopt.adjoints.input_held.InputHeld",
}
ATTACKED = {
    "task.init_args.batch_size": 48,
    "task.init_args.widths": [24, 24],
    "task.init_args.norm": "L2",
    "task.init_args.radius": 1.0,
    "task.init_args.shift": 0,
    "task.init_args.flip": False,
    "solver.init_args.max_nfe": 80,
    "solver.init_args.history_size": 20,
    "solver.init_args.step_rule": "NORMALISED",
    "solver.init_args.damping": [0.8, 0.6, 1.0],
}
WANTED: dict[str, dict[str, Any]] = {
    "celeba": {
        "trainer.max_epochs": 220,
        "task.init_args.batch_size": 12,
        "task.init_args.latent": 128,
        "solver.init_args.max_nfe": 100,
        "solver.init_args.history_size": 40,
        "solver.init_args.step_size": 0.01,
        "solver.init_args.step_rule": "PLAIN",
        "solver.init_args.damping": [0.8, 0.6, 1.0],
    },
    "mnist": {**ATTACKED, "trainer.max_epochs": 10, "solver.init_args.step_size": 0.6},
    "cifar": {**ATTACKED, "trainer.max_epochs": 20, "solver.init_args.step_size": 0.1},
    "denoising02": {**RESTORATION, "task.init_args.operator.init_args.sigma": 0.2},
    "denoising04": {**RESTORATION, "task.init_args.operator.init_args.sigma": 0.4},
    "inpainting": {**RESTORATION, "task.init_args.operator.init_args.mask.init_args.side": 20},
    "omniglot_5way1shot": FEW_SHOT,
    "omniglot_5way5shot": FEW_SHOT,
    "omniglot_20way1shot": FEW_SHOT,
}
# Weight, and at how many random iterates beside the equilibrium.
PENALTY = {"celeba": (2.0, 1), "mnist": (0.01, 0), "cifar": (0.01, 1)}
PENALTY |= dict.fromkeys(("denoising02", "denoising04", "inpainting"), (0.2, 1))
PENALTY |= dict.fromkeys(("omniglot_5way1shot", "omniglot_5way5shot", "omniglot_20way1shot"), (0.5, 1))


def test_every_file_is_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(WANTED) == set(PENALTY)


@pytest.mark.parametrize("name", WANTED)
def test_the_settings_are_those_of_the_reference(name: str) -> None:
    config = resolved("fit", f"--config={FOLDER / name}.yaml")
    for path, value in {**ANDERSON, **WANTED[name]}.items():
        assert reduce(lambda part, key: part[key], path.split("."), config) == value, path
    optimization = config["model"]["optimization"]
    assert (optimization["algorithm"], optimization["lr"], optimization["schedule"]) == ("ADAM", 1e-3, "COSINE")
    (penalty,) = [one for one in config["model"]["regularizers"] if one["class_path"].endswith("JacobianPenalty")]
    assert (penalty["init_args"]["weight"], penalty["init_args"]["visits"]) == PENALTY[name]


@pytest.mark.parametrize("name", WANTED)
def test_the_file_says_what_is_otherwise_on_purpose(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text().replace("\n# ", " ")
    assert "Gurumurthy et al. 2021" in text and f"--config configs/paper/{name}.yaml" in text
    assert " On purpose otherwise: " in text
