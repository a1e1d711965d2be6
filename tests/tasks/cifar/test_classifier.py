"""The classifier: what unrolling is, that normalisation is inside of it, and that no image sees another."""

from __future__ import annotations

from typing import Any

import torch
from deqopt_tasks.cifar.classifier import Classifier


def classifier(**settings: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(**{"classes": 5, "image_channels": 3, "size": 16, "widths": [8, 4], "resolution": 8, **settings})


def test_the_unrolled_network_is_the_cell_applied_by_hand() -> None:
    equilibrium, network, image = classifier(), classifier(unroll=3), torch.rand(2, 3, 16, 16)
    assert [*map(torch.Tensor.size, network.parameters())] == [*map(torch.Tensor.size, equilibrium.parameters())]
    network.load_state_dict(equilibrium.state_dict())
    z = equilibrium.zeros(image)
    for _ in range(3):
        z = equilibrium.f(z, image)
    for start in (network.start(image), tuple(torch.randn_like(part) for part in z)):
        for found, expected in zip(network.f(start, image), z, strict=True):
            assert torch.equal(found, expected)


def test_normalisation_is_inside() -> None:
    """Black is -1 and white 1 for the network, and grey its zero."""
    one, image = classifier(), torch.rand(2, 3, 16, 16)
    seen: list[torch.Tensor] = []
    one.injection.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for shown in (torch.zeros_like(image), torch.full_like(image, 0.5), torch.ones_like(image), image):
        one.f(one.zeros(shown), shown)
    assert [part.unique().tolist() for part in seen[:3]] == [[-1], [0], [1]]
    torch.testing.assert_close(seen[3] / 2 + 0.5, image)


def test_no_image_sees_another() -> None:
    network, images = classifier().train(), torch.rand(4, 3, 16, 16)
    z = tuple(torch.randn(4, *shape) for shape in network.shapes)
    together = network.logits(network.f(z, images))
    alone = torch.cat([network.logits(network.f(tuple(p[i : i + 1] for p in z), images[i : i + 1])) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
