"""The smooth continuation into holes: exact where it is known, a fixed point of averaging, every image alone."""

import pytest
import torch
from deqopt_tasks.denoising.harmonic import harmonic
from deqopt_tasks.denoising.inpainting import Inpainting, RandomBoxes, RandomPixels
from deqopt_tasks.denoising.operators import SuperResolution
from torch.nn import functional as F

MASKS = {"box": RandomBoxes(5), "boxes": RandomBoxes(3, count=3), "pixels": RandomPixels(0.6)}


def masks(name: str, size: tuple[int, int] = (16, 12), count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([MASKS[name].draw(size, generator).double()[None] for _ in range(count)])


@pytest.mark.parametrize("name", MASKS)
def test_a_plane_is_continued_exactly(name: str) -> None:
    """Planes are harmonic; holes are kept off the border, where the continuation is level instead."""
    known = F.pad(masks(name), (2, 2, 2, 2), value=1.0)
    height, width = known.shape[2:]
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in (height, width))
    plane = (0.3 + 0.02 * rows[:, None] - 0.01 * columns).expand(4, 2, height, width)
    torch.testing.assert_close(harmonic(plane * known, known, iterations=200), plane, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", MASKS)
def test_an_unknown_pixel_is_the_mean_of_its_neighbours_and_a_known_one_stays(name: str) -> None:
    known = masks(name)
    image = torch.randn(4, 3, 16, 12, dtype=torch.float64)
    found = harmonic(image, known, iterations=200)
    around = F.pad(found, (1, 1, 1, 1), mode="replicate")
    mean = (around[..., 1:-1, :-2] + around[..., 1:-1, 2:] + around[..., :-2, 1:-1] + around[..., 2:, 1:-1]) / 4
    hole = (known == 0).expand_as(image)
    torch.testing.assert_close(found[hole], mean[hole], rtol=0, atol=1e-8)
    assert torch.equal(found[~hole], image[~hole])
    assert found.amax() <= image[~hole].max() and found.amin() >= image[~hole].min(), "no new extremes"


def test_what_is_hidden_has_no_part_and_neither_have_others() -> None:
    known = masks("box")
    image = torch.randn(4, 1, 16, 12, dtype=torch.float64)
    found = harmonic(image, known)
    torch.testing.assert_close(harmonic(image * known + 7 * (1 - known), known), found)
    torch.testing.assert_close(harmonic(image[1:2], known[1:2]), found[1:2])


def test_thirty_iterations_are_enough_for_a_hole_of_twenty() -> None:
    generator = torch.Generator().manual_seed(0)
    known = RandomBoxes(20).draw((64, 64), generator).double()[None, None]
    image = torch.randn(1, 1, 64, 64, generator=generator, dtype=torch.float64).cumsum(2).cumsum(3) / 64
    exact = harmonic(image, known, iterations=400)
    assert (harmonic(image, known) - exact).norm() < 0.02 * (exact * (1 - known)).norm()


@pytest.mark.parametrize("operator", [Inpainting(RandomBoxes(4)), SuperResolution(2), SuperResolution(4)])
def test_first_guesses_fit_their_measurement(operator: Inpainting | SuperResolution) -> None:
    """And are nearer to a smooth image than the plain estimate."""
    generator = torch.Generator().manual_seed(1)
    image = torch.sin(torch.arange(16) / 3.0)[:, None] * torch.cos(torch.arange(16) / 4.0).expand(3, 1, 16, 16)
    parameters = torch.stack([operator.draw((1, 16, 16), generator) for _ in range(3)])
    bound = operator.bind(parameters)
    y = bound.A(image)
    first = bound.initial(y)
    torch.testing.assert_close(bound.A(first), y, rtol=0, atol=1e-5)
    assert ((first - image).flatten(1).norm(dim=1) < 0.7 * (bound.estimate(y) - image).flatten(1).norm(dim=1)).all()
