"""The order of training and its loader, which a run that is resumed goes on with; and the generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from deqopt.data import EpochLoader, ImageDataModule, ImageSource, open_images
from deqopt.generators import generator_states, set_generator_states


class Counted(ImageSource):
    """The digits, and which of them were asked for."""

    def __init__(self) -> None:
        super().__init__("digits", size=2, channels=1)
        self._digits, self.asked = open_images(None, size=2, channels=1), []

    def __len__(self) -> int:
        return 40

    def name(self, index: int) -> str:
        return str(index)

    def pixels(self, index: int) -> Any:
        self.asked.append(index)
        return self._digits.pixels(index)


def indices(loader: EpochLoader) -> list[list[int]]:
    return [batch.index.tolist() for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_the_rest_of_an_epoch_is_served_without_loading_the_beginning(first: int, workers: int) -> None:
    source = Counted()
    whole, rest = (ImageDataModule(lambda: source, batch_size=8, workers=workers).train_dataloader() for _ in range(2))
    epochs = [indices(whole) for _ in range(2)]
    source.asked.clear()
    rest.start_at(first)
    assert indices(rest) == epochs[0][first:]
    if not workers:
        assert source.asked == [index for batch in epochs[0][first:] for index in batch]
    assert indices(rest) == epochs[1] != epochs[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_nothing_from_the_global_generators(workers: int) -> None:
    data = ImageDataModule(Counted, batch_size=8, workers=workers)
    before = generator_states(torch.device("cpu"))
    for loader in (data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        list(loader), list(loader)
    after = generator_states(torch.device("cpu"))
    assert torch.equal(before["torch"], after["torch"]) and before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1]) and before["numpy"][2:] == after["numpy"][2:]


def test_the_order_comes_from_the_global_seed_and_the_epoch() -> None:
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        loader = ImageDataModule(Counted, batch_size=8).train_dataloader()
        torch.rand(seed + 1)
        orders.append([indices(loader) for _ in range(2)])
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0][0] != orders[0][1]


def test_generators_are_put_back() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.randn(()))]

    draw()
    states = generator_states(torch.device("cpu"))
    first = draw()
    draw()
    set_generator_states(states, torch.device("cpu"))
    assert draw() == first
