"""What each baseline computes, and that MAML and ANIL are what their authors say."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from deqopt_tasks.omniglot.episodes import EpisodeBatch
from deqopt_tasks.omniglot.learners import ANIL, MAML, Baseline, Learner, Prototypes, make_learner
from torch import Tensor, nn
from torch.nn import functional as F

from deqopt.errors import ProblemError
from drawn_episodes import SIZE, PixelFeatures, drawn_episodes

WAYS = 3


def tiny_net(ways: int = WAYS) -> nn.Sequential:
    """Features and a classifier, smooth and without normalisation."""
    return nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, 4), nn.Tanh()), nn.Linear(4, ways))


every_learner = pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: Prototypes(PixelFeatures(), 4), id="prototypes"),
        pytest.param(lambda: MAML(tiny_net(), WAYS, steps=2), id="maml", marks=pytest.mark.learn2learn),
        pytest.param(lambda: ANIL(*tiny_net(), WAYS), id="anil", marks=pytest.mark.learn2learn),
    ],
)


@every_learner
def test_loss_is_the_cross_entropy_of_the_probabilities_and_backward_its_gradient(make: Callable[[], Learner]) -> None:
    learner, batch = make(), drawn_episodes(3, WAYS)
    loss = learner.loss(batch)
    with torch.no_grad():
        probabilities = learner.probabilities(batch)
    assert not probabilities.requires_grad
    right = probabilities.gather(2, batch.query_label[..., None])
    torch.testing.assert_close(loss.detach(), -right.log().mean())
    gradients = torch.autograd.grad(loss, list(learner.parameters()))
    torch.testing.assert_close(learner.backward(batch), loss.detach())
    for weight, gradient in zip(learner.parameters(), gradients, strict=True):
        assert weight.grad is not None and gradient.abs().max() > 0
        torch.testing.assert_close(weight.grad, gradient)


@every_learner
def test_gradient_is_that_of_finite_differences(make: Callable[[], Learner]) -> None:
    learner, batch = make().double(), _double(drawn_episodes(2, WAYS))
    learner.backward(batch)
    step = 1e-5
    for weight in learner.parameters():
        direction = torch.randn_like(weight)
        assert weight.grad is not None
        slope = float((weight.grad * direction).sum())
        losses = []
        for side in (1, -2):
            weight.data += side * step * direction
            losses.append(float(learner.loss(batch).detach()))
        weight.data += step * direction
        assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5, abs=1e-9)


@every_learner
def test_an_episode_does_not_see_the_others(make: Callable[[], Learner]) -> None:
    learner, batch = make(), drawn_episodes(3, WAYS)
    alone = [learner.probabilities(EpisodeBatch(*(part[i : i + 1] for part in batch))) for i in range(3)]
    torch.testing.assert_close(learner.probabilities(batch), torch.cat(alone))


@every_learner
def test_it_learns(make: Callable[[], Learner]) -> None:
    learner = make()
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
    for seed in range(60):
        optimizer.zero_grad()
        learner.backward(drawn_episodes(4, WAYS, seed=seed))
        optimizer.step()
    unseen = drawn_episodes(20, WAYS, seed=1000)
    right = learner.probabilities(unseen).argmax(2) == unseen.query_label
    assert right.float().mean() > 0.8  # chance is 1/3


def test_prototypes_are_the_means_of_the_classes() -> None:
    learner, batch = Prototypes(PixelFeatures(), 4), drawn_episodes(2, WAYS)
    known, asked = learner.network.embed(batch.support), learner.network.embed(batch.query)  # type: ignore[operator]
    found = learner.logits(batch)
    for b in range(2):
        for k in range(WAYS):
            centre = known[b][batch.support_label[b] == k].mean(0)
            torch.testing.assert_close(found[b, :, k], -0.1 * (asked[b] - centre).square().sum(1))


def test_prototypes_permute_with_the_labels_and_know_no_number_of_ways() -> None:
    learner = Prototypes(PixelFeatures(), 4)
    for ways in (2, WAYS, 6):
        batch, order = drawn_episodes(2, ways), torch.randperm(ways)
        permuted = batch._replace(support_label=order[batch.support_label])
        torch.testing.assert_close(learner.probabilities(permuted)[:, :, order], learner.probabilities(batch))


@pytest.mark.learn2learn
def test_without_steps_they_are_the_net() -> None:
    net, batch = tiny_net(), drawn_episodes(2, WAYS)
    plain = net(batch.query.flatten(0, 1)).unflatten(0, (2, -1))
    for learner in (MAML(net, WAYS, steps=0), ANIL(*net, WAYS, steps=0)):
        torch.testing.assert_close(learner.logits(batch), plain)


@pytest.mark.learn2learn
@pytest.mark.parametrize("steps", [1, 3])
def test_they_are_gradient_descent_on_the_support_set(steps: int) -> None:
    net, batch, rate = tiny_net(), drawn_episodes(1, WAYS), 0.3
    for learner, adapted in ((MAML(net, WAYS, steps, rate), ("",)), (ANIL(*net, WAYS, steps, rate), ("1.",))):
        weights: dict[str, Tensor] = dict(net.named_parameters())
        for _ in range(steps):
            loss = F.cross_entropy(torch.func.functional_call(net, weights, batch.support[0]), batch.support_label[0])
            gradients = torch.autograd.grad(loss, list(weights.values()))
            weights = {
                name: weight - rate * gradient if name.startswith(adapted) else weight
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
        expected = torch.func.functional_call(net, weights, batch.query[0])
        torch.testing.assert_close(learner.logits(batch)[0], expected)


@pytest.mark.learn2learn
@pytest.mark.parametrize("baseline", [Baseline.MAML, Baseline.ANIL])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 21)])
def test_networks_for_images_of_every_kind(baseline: Baseline, channels: int, size: int) -> None:
    """In evaluation as in training, and what is evaluated leaves no trace: nothing is kept of the batches seen."""
    learner = make_learner(baseline, channels, size, 5, PixelFeatures, 4)
    drawn = drawn_episodes(2, 5)
    batch = drawn._replace(support=_resized(drawn.support, channels, size), query=_resized(drawn.query, channels, size))
    before = {name: weight.clone() for name, weight in learner.state_dict().items()}
    first = learner.probabilities(batch)
    torch.testing.assert_close(learner.eval().probabilities(batch), first)
    assert {name: weight.equal(before[name]) for name, weight in learner.state_dict().items()} == dict.fromkeys(
        before, True
    )
    learner.backward(batch)
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in learner.parameters())


@pytest.mark.learn2learn
def test_images_may_be_too_small() -> None:
    with pytest.raises(ProblemError, match="images of 16x16 or larger, but these have a size of 15"):
        make_learner(Baseline.ANIL, 1, 15, 5, PixelFeatures, 4)


def test_without_learn2learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    for baseline in (Baseline.MAML, Baseline.ANIL):
        with pytest.raises(ProblemError, match=r"needs learn2learn.*pip install.*\[PROTOTYPES\] does without"):
            make_learner(baseline, 1, 28, 5, PixelFeatures, 4)
    assert isinstance(make_learner(Baseline.PROTOTYPES, 1, 28, 5, PixelFeatures, 4), Prototypes)


def _resized(images: Tensor, channels: int, size: int) -> Tensor:
    flat = F.interpolate(images.flatten(0, 1), (size, size)).expand(-1, channels, -1, -1)
    return flat.unflatten(0, images.shape[:2])


def _double(batch: EpisodeBatch) -> EpisodeBatch:
    return batch._replace(support=batch.support.double(), query=batch.query.double())
