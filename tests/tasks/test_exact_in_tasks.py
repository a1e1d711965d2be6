"""What the tasks call exact is solved to 1e-5: how far f moves it is measured here."""

from __future__ import annotations

import torch
from deqopt_tasks.celeba.task import CelebA
from deqopt_tasks.cifar.gradients import ExactClassifier
from deqopt_tasks.omniglot.network import EpisodeNetwork
from torch import Tensor

from cifar_models import SIDE, Contractive
from deqopt.data import unsigned
from deqopt.fixed_point import Anderson
from deqopt.state import tensors_of


def lag(now: tuple[Tensor, ...], then: tuple[Tensor, ...]) -> float:
    """The largest relative change of a sample."""
    new, old = (torch.cat([part.flatten(1) for part in parts], dim=1) for parts in (then, now))
    return float(((new - old).norm(dim=1) / new.norm(dim=1)).max())


def test_the_classifier() -> None:
    images = torch.rand(6, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    classifier = Contractive(gain=0.6)
    z = tensors_of(ExactClassifier(classifier).solve(images).z)
    start = classifier.start(images)
    with torch.no_grad():
        assert lag(z, classifier.f(z, images)) < 2e-5
        assert lag(start, classifier.f(start, images)) > 0.1


def test_the_queries_of_episodes() -> None:
    network = EpisodeNetwork(1, 8, [4], 4, 3, 5).eval()
    images, c = torch.rand(2, 3, 1, 8, 8), torch.randn(2, 3)
    with torch.no_grad():
        z = network.solved(images, c)
        after = network.f(z, c, network.injected(images))
    assert lag(tuple(part.flatten(0, 1) for part in z), tuple(part.flatten(0, 1) for part in after)) < 2e-5


def test_the_images_of_latents() -> None:
    task = CelebA(size=8, image_channels=1, latent=4, widths=[4, 4], resolution=4)
    x = 3 * torch.randn(5, 4)
    z = Anderson(max_nfe=500, tol=1e-7).solve(lambda z: task.decoder.f(tensors_of(z), x), task.decoder.start(x)).z
    with torch.no_grad():
        torch.testing.assert_close(task.decode(x), unsigned(task.decoder.head(z)), rtol=0, atol=1.5e-5)
