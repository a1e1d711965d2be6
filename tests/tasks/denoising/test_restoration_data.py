"""The data of inverse problems: what is random in it and what is not, resumed runs, processes, a user's images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.denoising.data import RestorationBatch, RestorationData
from deqopt_tasks.denoising.inpainting import Inpainting, RandomBoxes, RandomPixels
from deqopt_tasks.denoising.operator import MeasurementOperator, Shape
from deqopt_tasks.denoising.operators import Denoising, SuperResolution
from torch import Tensor

from deqopt.data import EmbeddedDigits, EpochOrder, ImageArchive, ImageSource, signed
from deqopt.errors import ProblemError
from epoch_samples import Samples, by_index, rows, same

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Since Python 3.12, forking a process that has threads (PyTorch's own) warns.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

SIGMA = 0.3
OPERATORS: dict[str, MeasurementOperator] = {
    "denoising": Denoising(sigma=SIGMA),
    "boxes": Inpainting(RandomBoxes(3), sigma=SIGMA),
    "pixels": Inpainting(RandomPixels(0.5), sigma=SIGMA),
    "super-resolution": SuperResolution(2, sigma=SIGMA),
}


def archive(folder: Path, count: int = 60) -> Callable[[], ImageSource]:
    """`count` grey images of 8 x 8, no two alike and none symmetric."""
    path = folder / f"{count}.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (count, 8, 8), np.uint8))
    return partial(ImageArchive, path, 8, 1)


def data_of(
    source: Callable[[], ImageSource], operator: MeasurementOperator = OPERATORS["denoising"], **settings: Any
) -> RestorationData:
    return RestorationData(source, operator, **{"batch_size": 7, **settings})


def noise(samples: Samples) -> Tensor:
    """(N, pixels) by ascending index, in units of sigma; for denoising."""
    return torch.stack([(one.y - signed(one.clean)).flatten() / SIGMA for _, one in sorted(samples.items())])


def white(noise: Tensor) -> bool:
    """Whether mean and deviation are 0 and 1 to five standard errors, and no two images share their noise."""
    error = noise.numel() ** -0.5
    alone = (noise @ noise.T / noise.shape[1]).fill_diagonal_(0).abs().max() < 7 * noise.shape[1] ** -0.5
    return bool(noise.mean().abs() < 5 * error and (noise.std() - 1).abs() < 4 * error and alone)


# -- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", OPERATORS)
def test_val_and_test_are_measured_alike_one_by_one_and_in_batches_and_workers(
    kind: str, workers: int, tmp_path: Path
) -> None:
    source, operator = archive(tmp_path), OPERATORS[kind]
    single, data = data_of(source, operator, batch_size=1), data_of(source, operator, workers=workers)
    for stage in ("val", "test"):
        want = rows(getattr(single, f"{stage}_dataloader")())
        loader = getattr(data, f"{stage}_dataloader")()
        assert sorted(want) == getattr(data.splits, stage)
        for seed in (1, 2):
            torch.manual_seed(seed)
            assert same(rows(loader), want)
    assert all(torch.equal(one.clean, data.source[index].image) for index, one in want.items())


@pytest.mark.parametrize("kind", OPERATORS)
def test_a_batch_is_bound_to_what_its_samples_drew(kind: str, tmp_path: Path) -> None:
    data = data_of(archive(tmp_path), OPERATORS[kind])
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, RestorationBatch) and batch.index.dtype == torch.int64
    bound = data.operator.bind(batch.parameters)
    assert torch.equal(bound.observed(batch.y), batch.y)
    error = (batch.y - bound.A(signed(batch.clean)))[bound.observed(torch.ones_like(batch.y)) == 1]
    assert 0.7 * SIGMA < error.std() < 1.3 * SIGMA
    if batch.parameters.numel():
        assert len(batch.parameters.unique(dim=0)) > 1


def test_noise_is_white_and_another_for_another_seed(tmp_path: Path) -> None:
    first, second = (data_of(EmbeddedDigits, noise_seed=seed) for seed in (0, 1))
    assert first.splits == second.splits
    one, other = (noise(rows(data.test_dataloader())) for data in (first, second))
    assert white(one) and white(other) and white(torch.cat([one, other]))


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", OPERATORS)
def test_epochs_differ_and_come_from_the_seed_alone(kind: str, workers: int, tmp_path: Path) -> None:
    source = archive(tmp_path)

    def epochs(seed: int, **settings: Any) -> list[Samples]:
        torch.manual_seed(seed)
        loader = data_of(source, OPERATORS[kind], batch_size=12, flip=True, **settings).train_dataloader()
        return [rows(loader) for _ in range(2)]

    first, second = epochs(1)
    assert sorted(first) == sorted(second) and list(first) != list(second)
    assert all(not torch.equal(first[index].y, second[index].y) for index in first)
    again = epochs(2, workers=workers)
    assert same(again[0], first) and same(again[1], second)
    other = epochs(1, noise_seed=5)[0]
    assert list(other) != list(first) and not any(torch.equal(other[i].y, first[i].y) for i in first)


def test_noise_is_white_over_epochs(tmp_path: Path) -> None:
    data = data_of(archive(tmp_path, 100), batch_size=80)
    loader = data.train_dataloader()
    passes = [rows(loader) for _ in range(4)]
    assert all(sorted(one) == data.splits.train for one in passes)
    assert white(torch.cat([noise(one) for one in passes]))
    assert all(torch.equal(one.clean, data.source[i].image) for found in passes for i, one in found.items())


def test_half_of_the_images_to_train_on_are_mirrored_and_no_others(tmp_path: Path) -> None:
    data = data_of(archive(tmp_path, 100), batch_size=80, flip=True)
    loader = data.train_dataloader()
    mirrored = []
    for found in (rows(loader), rows(loader)):
        images = {index: data.source[index].image for index in found}
        turned = {index for index, one in found.items() if torch.equal(one.clean, images[index].flip(2))}
        assert all(torch.equal(one.clean, images[i]) for i, one in found.items() if i not in turned)
        assert 20 <= len(turned) <= 60 and white(noise(found))
        mirrored.append(turned)
    assert mirrored[0] != mirrored[1]
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert all(torch.equal(one.clean, data.source[i].image) for i, one in rows(loader).items())


class Kept(ImageArchive):
    """Hands out the same tensors every time."""

    def tensor(self, index: int) -> Tensor:
        return self.__dict__.setdefault(f"image {index}", super().tensor(index))


@pytest.mark.parametrize("kind", OPERATORS)
def test_a_source_keeps_its_images_as_they_were(kind: str, tmp_path: Path) -> None:
    archive(tmp_path)
    data = data_of(partial(Kept, tmp_path / "60.npz", 8, 1), OPERATORS[kind], flip=True)
    before = [data.source[i].image.clone() for i in range(60)]
    for batch in [*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()]:
        batch.y.zero_()
        batch.clean.zero_()
    assert all(torch.equal(data.source[i].image, image) for i, image in enumerate(before))


def test_an_epoch_that_lightning_puts_in_order_is_the_first(tmp_path: Path) -> None:
    """`overfit_batches` exchanges the sampler for one that counts up."""
    data = data_of(archive(tmp_path))
    want = rows(data_of(archive(tmp_path), batch_size=48).train_dataloader())
    samples = data.train_dataloader().dataset
    assert same(by_index(samples[i] for i in range(len(samples))), dict(sorted(want.items())))


def test_the_order_covers_everything_and_depends_on_the_epoch() -> None:
    orders = [[item - 9 * epoch for item in EpochOrder(9, 0, lambda e=epoch: e)] for epoch in range(20)]
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert len({tuple(order) for order in orders}) == 20
    assert len({order[0] for order in orders}) > 4


# -- opening ----------------------------------------------------------------------------------------------------------


class Refusing(Denoising):
    def check(self, shape: Shape) -> None:
        raise ProblemError(f"not of {shape}")


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_an_operator_that_does_not_fit_is_refused_when_the_data_is_opened(stage: str, tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"not of \(1, 8, 8\)"):
        data_of(archive(tmp_path), Refusing()).setup(stage)


def test_predict_serves_the_measured_test_images_where_nothing_else_is_given(tmp_path: Path) -> None:
    data = data_of(archive(tmp_path))
    data.setup("predict")
    found = rows(data.predict_dataloader())
    assert same(found, rows(data.test_dataloader()))
    assert [data.predict_source.name(i) for i in found] == [data.source.name(i) for i in data.splits.test]
