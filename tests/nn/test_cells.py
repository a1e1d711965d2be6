"""Cells and heads: no sample sees another, and sizes that do not fit are named."""

from collections.abc import Callable

import pytest
import torch

from deqopt.errors import ProblemError
from deqopt.nn import BoundedCell, ImageHead, LatentInjection, MultiscaleCell, branch_shapes
from deqopt.nn.multiscale import group_norm

CHANNELS = [[4], [4, 8], [3, 5, 7]]
CELLS: list[Callable[[list[int]], torch.nn.Module]] = [MultiscaleCell, BoundedCell]


def branches(channels: list[int], batch: int, scale: float = 1.0) -> tuple[torch.Tensor, ...]:
    return tuple(scale * torch.randn(batch, *shape) for shape in branch_shapes(channels, 8))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_cell_keeps_shapes_and_mixes_all_branches(
    channels: list[int], kind: Callable[[list[int]], torch.nn.Module]
) -> None:
    cell, z, u = kind(channels), branches(channels, 2), branches(channels, 2)
    image = cell(z, u)
    assert [part.shape for part in image] == [part.shape for part in z]
    for target in range(len(channels)):
        for inputs, place in ((z, 0), (u, 1)):
            for source in range(len(channels)):
                moved = [part.clone() for part in inputs]
                moved[source][0] += torch.randn_like(moved[source][0])
                arguments = [z, u]
                arguments[place] = tuple(moved)
                other = cell(*arguments)[target]
                if kind is MultiscaleCell or place == 0 or source == target:
                    assert (other[0] - image[target][0]).abs().max() > 1e-4, "every branch reaches every branch"
                assert (other[1] - image[target][1]).abs().max() < 1e-6, "and no other sample"


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("channels", CHANNELS)
def test_together_as_alone(channels: list[int], mode: bool, kind: Callable[[list[int]], torch.nn.Module]) -> None:
    cell, head = kind(channels).train(mode), ImageHead(channels, 8, 3, 16).train(mode)
    z, u = branches(channels, 5), branches(channels, 5)
    together, images = cell(z, u), head(z)
    for i in range(5):
        alone = cell(tuple(part[i : i + 1] for part in z), tuple(part[i : i + 1] for part in u))
        for whole, part in zip(together, alone, strict=True):
            assert torch.allclose(whole[i], part[0], atol=1e-5)
        assert torch.allclose(images[i], head(tuple(part[i : i + 1] for part in z))[0], atol=1e-5)


@pytest.mark.parametrize("kind", CELLS)
def test_a_nan_stays_in_its_sample(kind: Callable[[list[int]], torch.nn.Module]) -> None:
    cell, z, u = kind([4, 8]), branches([4, 8], 3), branches([4, 8], 3)
    sane = cell(z, u)
    z[1][1] = torch.nan
    for got, want in zip(cell(z, u), sane, strict=True):
        assert torch.equal(got[[0, 2]], want[[0, 2]]) and got[1].isnan().any()


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_every_parameter_is_used(channels: list[int], kind: Callable[[list[int]], torch.nn.Module]) -> None:
    shapes = branch_shapes(channels, 8)
    cell, inject, head = kind(channels), LatentInjection(6, shapes), ImageHead(channels, 8, 1, 16)
    z = cell(branches(channels, 2), inject(torch.randn(2, 6)))
    head(z).square().sum().backward()
    for module in (cell, inject, head):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_bounded_cell_is_linear_within_tanh(channels: list[int]) -> None:
    """Superposition, whatever the branch, and states that no weights can make larger than 1."""
    cell, zeros = BoundedCell(channels), branches(channels, 2, 0.0)
    some, others = branches(channels, 2, 0.05), branches(channels, 2, 0.05)

    def mapped(z: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        return [part.detach().atanh() for part in cell(z, zeros)]

    both = mapped(tuple(one + other for one, other in zip(some, others, strict=True)))
    for found, one, other in zip(both, mapped(some), mapped(others), strict=True):
        torch.testing.assert_close(found, one + other, rtol=1e-4, atol=1e-6)
    assert max(float(part.detach().abs().max()) for part in cell(branches(channels, 2, 1e6), zeros)) <= 1


def test_injection_is_affine_in_the_latent() -> None:
    shapes = branch_shapes([4, 8], 8)
    inject, a, b = LatentInjection(6, shapes), torch.randn(2, 6), torch.randn(2, 6)
    for mixed, one, other, shape in zip(inject(0.3 * a + 0.7 * b), inject(a), inject(b), shapes, strict=True):
        assert mixed.shape == (2, *shape)
        assert torch.allclose(mixed, 0.3 * one + 0.7 * other, atol=1e-5)


@pytest.mark.parametrize("size", [8, 16, 24])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_images_are_between_minus_one_and_one(size: int, scale: float) -> None:
    head = ImageHead([4, 8], 8, image_channels=3, size=size)
    with torch.no_grad():
        head.paint.weight.mul_(3)
    image = head(branches([4, 8], 4, scale))
    assert image.shape == (4, 3, size, size)
    assert image.abs().max() <= 1 and image.min() < -0.5 and image.max() > 0.5


def test_branches_halve() -> None:
    assert branch_shapes([4, 8, 16], 12) == [(4, 12, 12), (8, 6, 6), (16, 3, 3)]


@pytest.mark.parametrize(("channels", "groups", "chosen"), [(8, 8, 8), (12, 8, 6), (7, 4, 1), (5, 8, 5), (9, 2, 1)])
def test_groups_divide_the_channels(channels: int, groups: int, chosen: int) -> None:
    assert group_norm(channels, groups).num_groups == chosen


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: branch_shapes([], 8), r"channels must be a list of positive numbers, one a branch, got \[\]"),
        (lambda: branch_shapes([4, 0], 8), r"positive numbers.*got \[4, 0\]"),
        (lambda: branch_shapes([4, 8, 16], 6), "3 branches halves its resolution 2 times.*multiple of 4; got 6"),
        (lambda: branch_shapes([4, 8], 1), "multiple of 2; got 1"),
        (lambda: ImageHead([4], 8, 1, 20), "size must be a multiple of the resolution 8, got 20"),
        (lambda: ImageHead([4], 8, 1, 4), "size must be a multiple of the resolution 8, got 4"),
        (lambda: ImageHead([4], 8, 1, 0), "size must be a multiple of the resolution 8, got 0"),
        (lambda: branch_shapes([4, 8], 0), "got 0"),
    ],
)
def test_sizes_that_do_not_fit(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        make()
