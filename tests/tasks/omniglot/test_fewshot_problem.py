"""The task omniglot: its network, its joint problem, what permutations do to it, and its gradients."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from deqopt_tasks.omniglot import network as networks
from deqopt_tasks.omniglot.episodes import EpisodeBatch
from deqopt_tasks.omniglot.network import EpisodeNetwork
from deqopt_tasks.omniglot.task import Omniglot
from torch import Tensor
from torch.utils.data import default_collate

from deqopt import Equilibrium
from deqopt.adjoints import Adjoint, Envelope, Implicit, InputHeld, Unrolled
from deqopt.data.splits import Part
from deqopt.errors import DataError, ProblemError
from deqopt.fixed_point import Anderson
from deqopt.solvers import JointAnderson, JointSolver, SecantTracking, StepRule, solve_exactly
from deqopt.testing import check_task

SETTINGS: dict[str, Any] = {"size": 8, "widths": [8], "resolution": 4, "context": 3, "features": 4}
EXACT = JointAnderson(max_nfe=600, tol=1e-11, step_size=1.0, step_rule=StepRule.PLAIN, history_size=12)
TIGHT = Anderson(max_nfe=300, tol=1e-12, history_size=10)
SHORT: dict[str, JointSolver] = {
    "anderson": JointAnderson(max_nfe=10, step_size=1.0, step_rule=StepRule.PLAIN, history_size=5),
    "secants": SecantTracking(max_nfe=16, step_size=1.0),
}


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equilibria of queries and their gradients to the last digits."""
    for name in ("IN_TRAINING", "EXACT"):
        monkeypatch.setattr(networks, name, networks.Solvers(TIGHT, TIGHT))


def small(**settings: Any) -> Omniglot:
    """In double precision."""
    torch.manual_seed(0)
    return Omniglot(**{**SETTINGS, **settings}).double()


def episodes(
    ways: int = 3, shots: int = 2, queries: int = 2, count: int = 3, size: int = 8, seed: int = 1
) -> EpisodeBatch:
    """Classes are random images, and what is in them is noisy copies."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.rand(count, ways, 1, 1, size, size, generator=generator, dtype=torch.float64)
    noise = torch.rand(count, ways, shots + queries, 1, size, size, generator=generator, dtype=torch.float64)
    support, query = (0.6 * classes + 0.4 * noise).split([shots, queries], dim=2)
    label = torch.arange(ways)
    return EpisodeBatch(
        support.flatten(1, 2),
        label.repeat_interleave(shots).expand(count, -1),
        query.flatten(1, 2),
        label.repeat_interleave(queries).expand(count, -1),
        torch.arange(count),
    )


def distance(one: Tensor, other: Tensor) -> float:
    """Relative."""
    return float((one - other).detach().norm() / other.detach().norm())


def solved(
    task: Omniglot, batch: EpisodeBatch, solver: JointSolver = EXACT, adjoint: Adjoint | None = None
) -> Equilibrium:
    return solver.solve(task.problem(batch), *task.start(batch), adjoint=adjoint)


def test_without_a_context_an_image_goes_into_the_cell_as_it_is() -> None:
    network = small().network
    images = episodes().support
    u = network.injected(images)
    z = tuple(torch.randn_like(part) for part in u)
    plain = network.cell(tuple(part.flatten(0, 1) for part in z), tuple(part.flatten(0, 1) for part in u))
    (found,) = network.f(z, images.new_zeros(3, 3), u)
    torch.testing.assert_close(found.flatten(0, 1), plain[0])
    (other,) = network.f(z, images.new_ones(3, 3), u)
    assert distance(other, found) > 0.1, "and with one it does not"


def test_white_paper_is_nothing_to_the_first_layer() -> None:
    network = small().network
    first = next(layer for layer in network.stem if isinstance(layer, torch.nn.Conv2d))
    paper = torch.ones(1, 1, 1, 8, 8, dtype=torch.float64)
    seen: list[Tensor] = []
    first.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    network.injected(paper)
    assert float(seen[0].abs().max()) == 0


def test_features_of_an_image_alone_are_at_its_equilibrium(tight: None) -> None:
    network, images = small().network, episodes().support
    c = torch.randn(3, 3, dtype=torch.float64)
    with torch.no_grad():
        z = network.solved(images, c)
        u = network.injected(images)
        for _ in range(3):
            torch.testing.assert_close(network.f(z, c, u)[0], z[0], rtol=1e-8, atol=1e-9)
        alone = network.solved(images[1:2, 2:3], c[1:2])
    torch.testing.assert_close(alone[0][0, 0], z[0][1, 2], rtol=1e-8, atol=1e-9)


def assert_slope(value: Callable[[], Tensor], along: Tensor, gradient: Tensor, step: float = 1e-5) -> None:
    """The gradient of ``value()`` in a random direction of a leaf, against central differences."""
    direction = torch.randn(along.shape, dtype=along.dtype, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        along += step * direction
        above = float(value())
        along -= 2 * step * direction
        below = float(value())
        along += step * direction
    assert float((gradient * direction).sum()) == pytest.approx((above - below) / (2 * step), rel=1e-4)


@pytest.mark.parametrize("ways", [2, 3, 7])
def test_at_its_start_an_episode_knows_nothing(ways: int) -> None:
    batch = episodes(ways)
    torch.testing.assert_close(small().objective_at_start(batch), torch.full((3,), math.log(ways), dtype=torch.float64))


@pytest.mark.parametrize("solver", SHORT)
@pytest.mark.parametrize(("ways", "shots"), [(2, 1), (3, 2), (6, 1), (5, 4)])
def test_the_inner_objective_ends_below_its_start_on_an_untrained_network(solver: str, ways: int, shots: int) -> None:
    task, batch = small(), episodes(ways, shots, count=6)
    assert (solved(task, batch, SHORT[solver]).objective < task.objective_at_start(batch) - 0.01).all()


@pytest.mark.parametrize(("ways", "shots"), [(2, 1), (5, 1), (20, 1), (2, 5), (5, 5)])
def test_the_default_solver_goes_most_of_the_way_down(ways: int, shots: int) -> None:
    """One step size serves all shapes of episodes, on a network that has learned nothing."""
    torch.manual_seed(0)
    task = Omniglot(ways=ways, shots=shots, queries=1, test_episodes=6).eval()
    batch = default_collate([task.data.episodes[Part.TEST][index] for index in range(6)])
    start = task.objective_at_start(batch)
    reached = solve_exactly(task.problem(batch), solved(task, batch, task.default_solver())).objective
    best = solved(task, batch, JointAnderson(max_nfe=60, step_size=1.0, step_rule=StepRule.PLAIN)).objective
    assert ((start - reached) / (start - best) > 0.4).all()


@torch.no_grad()
def test_the_objective_is_that_of_the_formula() -> None:
    task, batch = small(weight=0.7), episodes(count=1)
    z, x = task.start(batch)[0], torch.randn(1, 3 + 3 * 4, dtype=torch.float64)
    phi = task.network.features(z)[0]  # type: ignore[arg-type]
    total = 0.0
    for s in range(6):
        scores = [math.sqrt(3 / 4) * float(phi[s] @ x[0, 3 + 4 * k : 7 + 4 * k]) for k in range(3)]
        total -= scores[int(batch.support_label[0, s])] - math.log(sum(map(math.exp, scores)))
    want = total / 6 + 0.7 * float(x[:, :3].square().sum() + x[:, 3:].square().sum() / 16)
    assert float(task.problem(batch).J(z, x)) == pytest.approx(want, rel=1e-10)


def relabelled(batch: EpisodeBatch, permutation: Tensor) -> EpisodeBatch:
    return batch._replace(support_label=permutation[batch.support_label], query_label=permutation[batch.query_label])


def test_permuted_labels_permute_what_is_predicted(tight: None) -> None:
    task, batch, permutation = small().eval(), episodes(4), torch.tensor([2, 0, 3, 1])
    plain, other = solved(task, batch), solved(task, relabelled(batch, permutation))
    before = task.probabilities(plain, batch)
    after = task.probabilities(other, relabelled(batch, permutation))
    torch.testing.assert_close(after[:, :, permutation], before, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(other.objective, plain.objective)


def test_neither_the_order_of_the_support_nor_other_queries_matter(tight: None) -> None:
    task, batch = small().eval(), episodes(3, 2, 4)
    order = torch.tensor([5, 1, 3, 0, 2, 4])
    turned = batch._replace(support=batch.support[:, order], support_label=batch.support_label[:, order])
    fewer = batch._replace(query=batch.query[:, 2:5], query_label=batch.query_label[:, 2:5])
    found = [task.probabilities(solved(task, one), one) for one in (batch, turned, fewer)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[2], found[0][:, 2:5], rtol=1e-6, atol=1e-7)


def test_queries_that_are_seen_together_have_the_mean_of_the_support(tight: None) -> None:
    """What is known is no news, where both are the same images; elsewhere a query is judged by its company."""
    alone, together = (small(transductive=transductive).eval() for transductive in (False, True))
    batch = episodes(3, 2, 2)
    known = batch._replace(query=batch.support, query_label=batch.support_label)
    for one, agree in ((known, True), (batch, False)):
        found = [task.probabilities(solved(task, one), one) for task in (alone, together)]
        assert (distance(found[1], found[0]) < 1e-6) == agree
    order = torch.tensor([5, 1, 3, 0, 2, 4])
    turned = batch._replace(query=batch.query[:, order], query_label=batch.query_label[:, order])
    whole, other = (together.probabilities(solved(together, one), one) for one in (batch, turned))
    torch.testing.assert_close(other, whole[:, order], rtol=1e-6, atol=1e-7)


def test_the_context_is_found_for_the_whole_support() -> None:
    """One image of another class moves the context of all."""
    task, batch = small(), episodes()
    support = batch.support.clone()
    support[0, 0] = 1 - support[0, 0]
    c, other = (solved(task, one).x[:, :3] for one in (batch, batch._replace(support=support)))
    assert distance(c[0], other[0]) > 0.05
    torch.testing.assert_close(c[1:], other[1:], rtol=1e-5, atol=1e-8)


def outer_loss(adjoint: Adjoint, task: Omniglot, batch: EpisodeBatch, x: Tensor) -> Tensor:
    """What the gradient of an adjoint is that of: at the exact optimum, or at the context x where it is held."""
    found = solved(task, batch)
    at = replace(found, x=x) if isinstance(adjoint, (InputHeld, Envelope)) else found
    loss = task.loss(at, batch).mean()
    return loss + found.objective.mean() if isinstance(adjoint, Envelope) else loss


EVERY = [Implicit(tol=1e-10), Unrolled(), InputHeld(tol=1e-11, max_nfe=200), Envelope()]


@pytest.mark.parametrize(
    ("adjoint", "transductive"), [*((one, False) for one in EVERY), (EVERY[0], True), (EVERY[1], True)], ids=repr
)
def test_every_adjoint_has_the_gradient_that_it_promises(tight: None, adjoint: Adjoint, transductive: bool) -> None:
    """`Implicit` and `Unrolled` that of the loss at the optimum, `InputHeld` that at the given context, `Envelope` with
    that of the inner objective besides: all against finite differences of fresh solves."""
    task, batch = small(transductive=transductive), episodes(count=2)
    network = task.network
    cell = dict(network.cell.named_parameters())["maps.0.0.parametrizations.weight.original1"]
    parts = [cell, network.film[0].weight, network.linear.weight, network.log_scale]
    solver = replace(EXACT, max_nfe=200) if isinstance(adjoint, Unrolled) else EXACT
    found = solver.solve(task.problem(batch), *task.start(batch), adjoint=adjoint)
    gradients = torch.autograd.grad(task.loss(found, batch).mean(), parts)
    for part, gradient in zip(parts, gradients, strict=True):
        assert_slope(lambda: outer_loss(adjoint, task, batch, found.x.detach()), part, gradient)


@pytest.mark.parametrize(
    "settings",
    [
        {"ways": 3, "shots": 1, "queries": 2},
        {"ways": 2, "shots": 3, "queries": 1, "train_ways": 4, "train_queries": 2},
        {"ways": 3, "widths": [16, 16], "image_channels": 3},
    ],
    ids=["one shot", "few ways", "two branches"],
)
def test_it_keeps_the_contract_of_a_task(settings: dict[str, Any]) -> None:
    counts = {"batch_size": 3, "train_episodes": 6, "val_episodes": 3, "test_episodes": 3}
    torch.manual_seed(0)
    check_task(
        Omniglot(**{"size": 16, "widths": [16], "resolution": 4, "features": 16, "context": 8, **counts, **settings})
    )


SIZE = "the image size must be 2, 4, 8 ... times the resolution"
LABELS = "every episode must have support images of all classes, with labels 0 to"
BAD_SETTINGS: dict[str, tuple[Callable[[], object], str]] = {
    "no weight": (
        lambda: small(weight=0.0),
        "weight must be larger than 0, so that the context has a unique optimum; got 0",
    ),
    "one way in training": (lambda: small(train_ways=1), "train_ways must be at least 2, got 1"),
    "no context": (lambda: small(context=0), "context must be at least 1, got 0"),
    "resolution": (lambda: small(resolution=3), f"{SIZE} 3, got 8"),
    "resolution of the images": (lambda: EpisodeNetwork(1, 8, [8], 8, 3, 4), f"{SIZE} 8, got 8"),
}
BAD_BATCHES = {
    "values": (
        episodes()._replace(query=2 * episodes().query),
        "query images must be in [0, 1], but the batch has values",
    ),
    "no support": (relabelled(episodes(), torch.tensor([0, 1, 3])), f"{LABELS} 3 (ways"),
    "unknown support label": (relabelled(episodes(), torch.tensor([-1, 1, 0])), f"{LABELS} 1 (ways"),
    "query of no class": (
        episodes()._replace(query_label=episodes().query_label + 1),
        "query labels must be 0 to 2, or -1 where unknown",
    ),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_cannot_be_right_are_refused(case: str) -> None:
    make, message = BAD_SETTINGS[case]
    with pytest.raises(ProblemError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_a_batch_that_cannot_be_right_is_refused(case: str) -> None:
    batch, message = BAD_BATCHES[case]
    with pytest.raises(DataError, match=re.escape(message)):
        small().problem(batch)
