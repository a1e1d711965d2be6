"""Episodes that are easy to learn, and features for them."""

from __future__ import annotations

import torch
from deqopt_tasks.omniglot.episodes import EpisodeBatch
from torch import Tensor, nn

SIZE = 6
"""Of the images, and so the most ways."""
SHOTS, QUERIES = 2, 3


def drawn_episodes(count: int, ways: int, seed: int = 0) -> EpisodeBatch:
    """Class k is a noisy vertical line in column k, the same in every episode. In random order."""
    generator = torch.Generator().manual_seed(seed)

    def labels(images: int) -> Tensor:
        orders = [torch.randperm(ways * images, generator=generator) for _ in range(count)]
        return torch.stack(orders) % ways

    def images(label: Tensor) -> Tensor:
        ink = 0.3 * torch.rand(*label.shape, 1, SIZE, SIZE, generator=generator)
        ink += 0.7 * (torch.arange(SIZE) == label[..., None, None, None])
        return 1 - ink

    support, query = labels(SHOTS), labels(QUERIES)
    return EpisodeBatch(images(support), support, images(query), query, torch.arange(count))


class PixelFeatures(nn.Module):
    """A linear map of the pixels."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE**2, width, bias=False)

    def embed(self, images: Tensor) -> Tensor:
        found: Tensor = self.linear(1 - images.flatten(2))
        return found
