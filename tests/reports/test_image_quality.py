"""Scores of images, image by image."""

from __future__ import annotations

import pytest
import torch

from deqopt.image_quality import image_scores, psnr
from deqopt.ssim import ssim


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
