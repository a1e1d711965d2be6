"""Scores of images, image by image: structural similarity against scikit-image's, the rest by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deqopt_tasks.celeba.task import CelebA
from deqopt_tasks.denoising.task import Denoising
from skimage.metrics import structural_similarity
from sklearn.datasets import load_sample_images
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.image_quality import image_scores, psnr
from deqopt.ssim import StructuralSimilarity, ssim


def theirs(image: Tensor, target: Tensor) -> float:
    """Of pixels (channels, H, W) in [0, 1], as papers of the field compute it."""
    found = structural_similarity(
        image.double().numpy(),
        target.double().numpy(),
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
    )
    return float(found)


def photographs(size: tuple[int, int], grey: bool) -> Tensor:
    """(2, channels, *size) in [0, 1], from the middle of scikit-learn's two photographs."""
    whole = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2) / 255
    whole = whole.mean(1, keepdim=True) if grey else whole
    return whole[..., 150 : 150 + size[0], 200 : 200 + size[1]].contiguous()


@pytest.mark.parametrize("grey", [True, False], ids=["grey", "colour"])
@pytest.mark.parametrize("size", [(11, 11), (32, 32), (47, 64)])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_of_photographs_it_is_that_of_scikit_image(size: tuple[int, int], grey: bool, noise: float) -> None:
    clean = photographs(size, grey)
    noisy = (clean + noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    found = ssim(noisy, clean)
    expected = [theirs(*pair) for pair in zip(noisy, clean, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.shape == (2,) and ((found == 1).all() if noise == 0 else (found < 0.999).all())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_random_images_of_any_precision(channels: int, dtype: torch.dtype) -> None:
    a, b = torch.rand(2, 4, channels, 16, 20, generator=torch.Generator().manual_seed(1), dtype=dtype)
    expected = [theirs(*pair) for pair in zip(a, b, strict=True)]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-6) and ssim(a, b).dtype == dtype


def test_flat_images_differ_in_luminance_alone() -> None:
    a, b = torch.full((1, 1, 12, 12), 0.2), torch.full((1, 1, 12, 12), 0.8)
    assert ssim(a, b).item() == pytest.approx((2 * 0.16 + 1e-4) / (0.04 + 0.64 + 1e-4), rel=1e-6)


def test_what_is_outside_the_range_is_cut() -> None:
    a = torch.rand(1, 1, 12, 12)
    assert torch.equal(ssim(5 * a - 1, a), ssim((5 * a - 1).clamp(0, 1), a))


@pytest.mark.parametrize("side", [1, 2, 5, 8, 10])
def test_small_images_have_the_largest_odd_window_that_fits(side: int) -> None:
    """So an even side is four places, whose windows are those of its odd corners; equal images have 1 at any size."""
    a, b = torch.rand(2, 3, 1, side, side, generator=torch.Generator().manual_seed(2))
    assert torch.equal(ssim(a, a), torch.ones(3))
    assert (ssim(a, b) < 1).all() and ssim(a, b).isfinite().all()
    if side % 2 == 0 and side > 1:
        corners = [(..., slice(i, i + side - 1), slice(j, j + side - 1)) for i in (0, 1) for j in (0, 1)]
        quarters = [ssim(a[corner], b[corner]) for corner in corners]
        torch.testing.assert_close(ssim(a, b), torch.stack(quarters).mean(0))


def test_the_metric_is_the_mean_over_images_of_batches_of_any_size() -> None:
    a, b = torch.rand(2, 7, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    metric = StructuralSimilarity()
    for part in (slice(0, 2), slice(2, 7)):
        metric.update(a[part], b[part])
    assert metric.compute().item() == pytest.approx(ssim(a, b).mean().item(), abs=1e-6)
    metric.reset()
    metric.update(a, a)
    assert metric.compute().item() == 1


@pytest.mark.parametrize("task", [CelebA, Denoising])
def test_the_tasks_report_it(task: type[CelebA] | type[Denoising]) -> None:
    clean = photographs((32, 32), grey=False)
    noisy = (clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(4))).clamp(0, 1)
    expected = float(np.mean([theirs(*pair) for pair in zip(noisy, clean, strict=True)]))
    metric = task(size=32, image_channels=3).metrics()["ssim"]
    metric.update(noisy, clean)
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 1, 8, 8), (2, 3, 8, 8)), r"of the same shape, got \(2, 1, 8, 8\) and \(2, 3, 8, 8\)"),
        (((8, 8), (8, 8)), r"\(B, channels, H, W\) .* got \(8, 8\)"),
    ],
)
def test_what_it_refuses(shapes: tuple[tuple[int, ...], tuple[int, ...]], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        ssim(*map(torch.rand, shapes))


# -- the peak signal-to-noise ratio ------------------------------------------------------------------------------------


def test_psnr_of_all_pixels_of_some_and_of_none() -> None:
    targets = torch.zeros(3, 2, 4, 4)
    images = targets.clone()
    images[0] += 0.1
    images[1, :, :2] += 0.01  # half of the pixels: 10 log10(1 / 0.00005)
    assert psnr(images, targets).tolist() == pytest.approx([20.0, 43.0103, 58.9225], abs=1e-3)
    upper = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    upper[:2, :, :2] = True
    first, second, none = psnr(images, targets, upper).tolist()
    assert (first, second) == pytest.approx((20.0, 40.0), abs=1e-3) and none != none


def test_what_is_outside_the_range_is_cut_before_it_is_scored() -> None:
    images, targets = torch.rand(2, 3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    found, cut = image_scores(4 * images - 2, targets), (4 * images - 2).clamp(0, 1)
    assert torch.equal(found["psnr"], psnr(cut, targets)) and torch.equal(found["ssim"], ssim(cut, targets))
