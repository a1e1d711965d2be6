"""The task denoising: its problem, its outer loss and the gradients of it, its two families of models."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.denoising.consistent import Consistent
from deqopt_tasks.denoising.data import RestorationBatch
from deqopt_tasks.denoising.inpainting import Inpainting, RandomBoxes, RandomPixels
from deqopt_tasks.denoising.latent_fit import LatentFit
from deqopt_tasks.denoising.operator import MeasurementOperator, measure
from deqopt_tasks.denoising.operators import (
    CompressedSensing,
    Deblurring,
    GaussianKernel,
    MotionKernel,
    SuperResolution,
)
from deqopt_tasks.denoising.operators import Denoising as Noise
from deqopt_tasks.denoising.prior import MeasurementData, PriorFamily
from deqopt_tasks.denoising.restorer import Restorer
from deqopt_tasks.denoising.task import Denoising
from torch import Tensor

from deqopt import Equilibrium
from deqopt.adjoints import Adjoint, Envelope, Implicit, InputHeld, JacobianFree, Phantom, Unrolled
from deqopt.data import signed, unsigned
from deqopt.errors import ProblemError
from deqopt.feasible import Everywhere
from deqopt.solvers import JointAnderson, StepRule
from deqopt.state import detach
from deqopt.testing import check_task
from paths import ROOT
from refusals import one_line_error
from stored_images import colours, write_npz

OPERATORS: dict[str, MeasurementOperator] = {
    "noise": Noise(0.2),
    "hole": Inpainting(RandomBoxes(4)),
    "noisy pixels": Inpainting(RandomPixels(0.4), sigma=0.1),
    "coarse": SuperResolution(2),
    "blurred": Deblurring(GaussianKernel(1.0, 3), sigma=0.02),
    "few numbers": CompressedSensing(0.5),
}
PRIORS: dict[str, PriorFamily] = {"restorer": Restorer([16]), "latent": LatentFit(latent=4, widths=[4, 4])}
SHORT = JointAnderson(max_nfe=8, step_size=0.3, step_rule=StepRule.PLAIN)
EXACT = JointAnderson(max_nfe=400, step_size=0.3, step_rule=StepRule.PLAIN, tol=1e-11, history_size=10)


def task_of(prior: PriorFamily | None = None, operator: Any = None, **settings: Any) -> Denoising:
    torch.manual_seed(0)
    given = {"size": 8, "image_channels": 1, "batch_size": 6, "flip": False, **settings}
    return Denoising(prior=prior or PRIORS["restorer"], operator=operator or OPERATORS["noise"], **given)


def batch_of(task: Denoising, count: int = 4, size: tuple[int, int] | None = None) -> RestorationBatch:
    """Smooth images and their measurements."""
    generator = torch.Generator().manual_seed(1)
    channels, height, width = (task.image_shape[0], *(size or task.image_shape[1:]))
    waves = torch.randn(count, channels, height, width, generator=generator).cumsum(2).cumsum(3)
    clean = unsigned(torch.tanh(waves / waves.flatten(1).std(1)[:, None, None, None]))
    measured = [measure(task.operator, image, generator) for image in clean]
    y, parameters = (torch.stack(part) for part in zip(*measured, strict=True))
    return RestorationBatch(clean, y, parameters, torch.arange(count))


def double(batch: RestorationBatch) -> RestorationBatch:
    return RestorationBatch(*(part.double() for part in batch[:3]), batch.index)


def solved(task: Denoising, batch: RestorationBatch, solver: JointAnderson, adjoint: Adjoint | None) -> Equilibrium:
    return solver.solve(task.problem(batch), *task.start(batch), adjoint=adjoint)


# -- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operator, prior", [*((key, "restorer") for key in OPERATORS), ("noise", "latent"), ("hole", "latent")]
)
def test_contract(operator: str, prior: str) -> None:
    """Latents do not look at the operator."""
    check_task(task_of(PRIORS[prior], OPERATORS[operator], size=16), solver=SHORT, adjoint=Unrolled())


# -- the problem ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_objective_is_half_the_misfit_and_the_energy(operator: str) -> None:
    for prior in PRIORS.values():
        task = task_of(prior, OPERATORS[operator])
        batch = batch_of(task)
        z, x = task.start(batch)
        x = x + torch.randn_like(x)
        problem = task.problem(batch)
        expected = []
        for row in range(len(x)):
            parts = tuple(part[row : row + 1] for part in z)
            image = task.prior.image(parts, x[row : row + 1])
            misfit = task.operator.bind(batch.parameters[row : row + 1]).A(image) - batch.y[row : row + 1]
            expected.append(
                0.5 * misfit.pow(2).sum()
                + task.prior.energy(
                    parts, x[row : row + 1], MeasurementData(*(part[row : row + 1] for part in problem.data))
                )[0]
            )
        torch.testing.assert_close(problem.J(z, x), torch.stack(expected))


@pytest.mark.parametrize("operator", ["hole", "coarse", "few numbers"])
def test_what_was_measured_without_noise_stays_as_it_is(operator: str) -> None:
    """Every restored image fits its measurement, and what the network adds lies where nothing is known."""
    task = task_of(operator=OPERATORS[operator])
    batch = batch_of(task)
    found = solved(task, batch, SHORT, None)
    bound = task.operator.bind(batch.parameters)
    torch.testing.assert_close(bound.A(signed(task.restored(found))), batch.y, rtol=1e-4, atol=1e-5)
    assert (task.restored(found) - task.estimate(batch)).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_the_feasible_set_follows_its_samples() -> None:
    task = task_of(operator=OPERATORS["hole"])
    batch = batch_of(task)
    keep = torch.tensor([False, True, True, False])
    whole = Consistent(task.operator, batch.y, batch.parameters)
    x = torch.randn(4, 1, 8, 8)
    part = whole.pick(keep, 4)
    torch.testing.assert_close(part.project(x[keep]), whole.project(x)[keep])
    assert (whole.distance(x) > 0.1).all() and (whole.distance(whole.project(x)) < 1e-5).all()


@pytest.mark.parametrize("operator", ["noise", "noisy pixels", "blurred"])
def test_noise_leaves_images_free(operator: str) -> None:
    task = task_of(operator=OPERATORS[operator])
    assert isinstance(task.problem(batch_of(task)).feasible, Everywhere)


def test_only_tight_operators_have_a_projection() -> None:
    with pytest.raises(
        ProblemError, match=r"^Deblurring is not tight: the projection onto its measurements is not known$"
    ):
        Consistent(Deblurring(), torch.zeros(1), torch.zeros(1))


def test_the_network_sees_which_pixels_are_unknown() -> None:
    task = task_of(operator=OPERATORS["hole"])
    batch = batch_of(task)
    known = task.problem(batch).data
    (seen,), _ = task.prior.start(known)
    (other,), _ = task.prior.start(known._replace(support=torch.ones_like(batch.clean)))
    assert (seen - other).abs().max() > 1e-2


def test_an_operator_of_the_documentation_works_as_it_stands() -> None:
    """It has the adjoint that it says, is tight, and is solved with what it measured kept."""
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", (ROOT / "docs/restoration.md").read_text(), flags=re.DOTALL)[0], names)
    task = task_of(operator=names["EverySecondRow"]())
    batch = batch_of(task)
    x, y = torch.randn_like(batch.clean), torch.randn_like(batch.y)
    torch.testing.assert_close((task.operator.A(x) * y).sum(), (x * task.operator.A_adjoint(y)).sum())
    torch.testing.assert_close(task.operator.A(signed(task.restored(solved(task, batch, SHORT, None)))), batch.y)


# -- the outer loss and its gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", PRIORS)
def test_the_implicit_gradient_is_that_of_the_clean_error_at_the_optimum(prior: str) -> None:
    """Against finite differences of solves to 1e-11, along a random direction of all weights."""
    family = LatentFit(latent=4, widths=[16], weight=10.0) if prior == "latent" else PRIORS[prior]
    task = task_of(family, Noise(0.3)).double()
    batch = double(batch_of(task, count=2))
    weights = list(task.parameters())
    directions = [torch.randn_like(weight) for weight in weights]

    found = solved(task, batch, EXACT, Implicit(tol=1e-10, max_nfe=2000, restart=400))
    assert found.converged.all()
    gradients = torch.autograd.grad(task.loss(found, batch).mean(), weights)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    step, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight.add_(sign * step * direction)
        # From the first solution, so that it stays on its branch.
        near = EXACT.solve(task.problem(batch), detach(found.z), found.x.detach(), mu0=detach(found.mu))
        assert near.converged.all()
        values.append(task.loss(near, batch).mean().detach())
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight.sub_(sign * step * direction)
    assert float(slope) == pytest.approx(float(values[0] - values[1]) / (2 * step), rel=1e-4)
    assert abs(float(slope)) > 1e-6


@pytest.mark.parametrize("prior", PRIORS)
def test_every_adjoint_has_the_same_loss(prior: str) -> None:
    task = task_of(PRIORS[prior])
    batch = batch_of(task)
    adjoints: list[Adjoint] = [Envelope(), Unrolled(), Implicit(tol=0.5), Phantom(), JacobianFree()]
    values = [task.loss(solved(task, batch, SHORT, adjoint), batch) for adjoint in adjoints]
    clean = (2 * (task.restored(solved(task, batch, SHORT, None)) - batch.clean)).square().mean(dim=(1, 2, 3))
    for value in values:
        torch.testing.assert_close(value.detach(), clean)


@pytest.mark.parametrize("prior", PRIORS)
def test_the_envelope_knows_no_clean_image(prior: str) -> None:
    """Its gradient is that of the inner objective: other clean images, the same gradient; with Unrolled another."""
    task = task_of(PRIORS[prior])
    batch = batch_of(task)
    other = batch._replace(clean=1 - batch.clean)

    def gradients(adjoint: Adjoint, given: RestorationBatch, inner: bool = False) -> Tensor:
        found = solved(task, given, SHORT, adjoint)
        loss = found.objective / given.clean[0].numel() if inner else task.loss(found, given)
        parts = torch.autograd.grad(loss.mean(), list(task.parameters()), allow_unused=True)
        return torch.cat([part.flatten() for part in parts if part is not None])

    envelope = gradients(Envelope(), batch)
    torch.testing.assert_close(envelope, gradients(Envelope(), other))
    torch.testing.assert_close(envelope, gradients(Envelope(), batch, inner=True))
    assert (gradients(Unrolled(), batch) - gradients(Unrolled(), other)).norm() > 1e-4


def test_holding_the_image_teaches_the_restorer_nothing_and_says_so() -> None:
    task = task_of()
    batch = batch_of(task)
    with pytest.raises(ProblemError, match=r"Restorer optimises the image itself, so use the adjoint Unrolled"):
        task.loss(solved(task, batch, SHORT, InputHeld()), batch)
    latent = task_of(PRIORS["latent"])
    assert latent.loss(solved(latent, batch, SHORT, InputHeld()), batch).requires_grad


# -- images of any size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 12), (9, 7), (5, 16)])
@pytest.mark.parametrize("widths", [[16], [16, 16]])
def test_the_restorer_takes_images_of_any_size(size: tuple[int, int], widths: list[int]) -> None:
    """Alone or in a batch alike."""
    task = task_of(Restorer(widths))
    batch = batch_of(task, size=size)
    found = task.restored(solved(task, batch, SHORT, None))
    assert found.shape == batch.clean.shape
    one = RestorationBatch(*(part[2:3] for part in batch))
    torch.testing.assert_close(task.restored(solved(task, one, SHORT, None)), found[2:3], rtol=1e-3, atol=1e-4)


def test_padding_repeats_the_border() -> None:
    """An image and the same with its last row and column repeated have the same states."""
    task = task_of(Restorer([16]))
    x = torch.randn(2, 1, 7, 5)
    wide = torch.cat([x, x[..., -1:, :]], dim=2)
    wide = torch.cat([wide, wide[..., -1:]], dim=3)
    (first,), _ = task.prior.start(MeasurementData.of(task.operator, x, torch.empty(2, 0)))
    (second,), _ = task.prior.start(MeasurementData.of(task.operator, wide, torch.empty(2, 0)))
    torch.testing.assert_close(first, second)


def test_latents_are_for_one_size() -> None:
    task = task_of(PRIORS["latent"])
    with pytest.raises(ProblemError, match=r"made for images of 1x8x8, but these are 1x8x12: the prior"):
        task.start(batch_of(task, size=(8, 12)))


# -- settings ---------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    **{name: {"operator": operator} for name, operator in OPERATORS.items() if name != "noise"},
    "less noise": {"operator": Noise(0.1)},
    "motion": {"operator": Deblurring(MotionKernel(length=5))},
    "other noise": {"noise_seed": 1},
    "mirrored": {"flip": True},
    "colours": {"image_channels": 3},
    "split": {"split_seed": 1},
    "narrow": {"prior": Restorer([12])},
    "coarser network": {"prior": Restorer([16], factor=4)},
    "stronger at first": {"prior": Restorer([16], first_scale=1.0)},
}


def test_every_operator_and_option_has_an_effect_of_its_own() -> None:
    losses = {}
    for name, settings in VARIANTS.items():
        task = task_of(**settings)
        batch = next(iter(task.datamodule().train_dataloader()))
        losses[name] = float(task.loss(solved(task, batch, SHORT, None), batch).mean())
    assert all(0 < value < 1 for value in losses.values()), losses
    assert len(set(losses.values())) == len(VARIANTS), losses


def test_a_group_is_in_one_split(tmp_path: Path) -> None:
    who = np.arange(12) % 3
    splits = task_of(root=str(write_npz(tmp_path / "a.npz", images=colours(12), who=who)), groups="who").data.splits
    assert all(len(set(who[part])) == 1 for part in vars(splits).values())


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "nothing compared": (lambda: task_of(test_images=0), "test_images must be at least 1, got 0"),
    "noise seed": (lambda: task_of(noise_seed=-1).data, "noise_seed must be 0 or larger, got -1"),
    "box": (lambda: task_of(operator=Inpainting(RandomBoxes(9))), "a box of 9 x 9 covers or exceeds the image"),
    "operator": (lambda: task_of(operator=object()), "needs the methods A and A_adjoint: object has no A and"),
    "no widths": (lambda: Restorer([]), "widths must be positive numbers"),
    "no width": (lambda: Restorer([0]), "widths must be positive numbers"),
    "factor": (lambda: Restorer(factor=0), "factor must be at least 1"),
    "first scale": (lambda: Restorer(first_scale=0.0), "first_scale must be larger than 0"),
    "latent": (lambda: LatentFit(latent=0), "latent must be at least 1"),
    "weight": (lambda: LatentFit(weight=-1.0), "weight must be 0 or larger"),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_cannot_be_right(case: str) -> None:
    one_line_error(*BAD[case], ProblemError)
