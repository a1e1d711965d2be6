"""Classical restorations: closed forms, optima, what they may not see, and how their settings are chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from deqopt_tasks.denoising.baselines import (
    Baseline,
    Bicubic,
    Biharmonic,
    NonLocalMeans,
    TotalVariation,
    Wiener,
    baselines_for,
    choose,
    squared_norm,
)
from deqopt_tasks.denoising.data import RestorationBatch
from deqopt_tasks.denoising.inpainting import Inpainting, RandomBoxes, RandomPixels
from deqopt_tasks.denoising.operator import External, MeasurementOperator, measure
from deqopt_tasks.denoising.operators import CompressedSensing, Deblurring, Denoising, MotionKernel, SuperResolution
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle
from torch import Tensor
from torch.nn import functional as F

from deqopt.data import unsigned
from deqopt.image_quality import psnr

HEIGHT, WIDTH = 20, 16
LOPSIDED = [[0.0, 0.1, 0.1], [0.6, 0.15, 0.05]]


@dataclass
class Stretched:
    """Every second pixel, of values three times as large: a physics of someone else, |A|^2 = 9."""

    def A(self, x: Tensor) -> Tensor:
        return 3 * x[..., ::2, ::2]

    def A_adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(*y.shape[:2], 2 * y.shape[2], 2 * y.shape[3])
        x[..., ::2, ::2] = 3 * y
        return x


OPERATORS: dict[str, MeasurementOperator] = {
    "noise": Denoising(0.2),
    "boxes": Inpainting(RandomBoxes(6)),
    "pixels": Inpainting(RandomPixels(0.6), sigma=0.05),
    "fewer pixels": SuperResolution(2),
    "far fewer pixels": SuperResolution(4, sigma=0.02),
    "blur": Deblurring(LOPSIDED),
    "motion": Deblurring(MotionKernel(5, 30), sigma=0.02),
    "random convolution": CompressedSensing(0.4),
    "external": External(physics=Stretched(), sigma=0.05),
}
PAIRS = [(key, baseline) for key, operator in OPERATORS.items() for baseline in baselines_for(operator)]
each_pair = pytest.mark.parametrize("key, baseline", PAIRS, ids=[f"{key}-{one.name}" for key, one in PAIRS])


def smooth(count: int, channels: int = 1, seed: int = 0) -> Tensor:
    """Images that are a few slow waves, without any symmetry, within [0.05, 0.95]."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, HEIGHT), torch.linspace(0, 1, WIDTH), indexing="ij")
    frequency, phase = (torch.rand(2, count, channels, 3, 1, 1, generator=generator) * 6 for _ in range(2))
    waves = (frequency[0] * rows + frequency[1] * columns + phase[0]).cos().sum(2)
    return unsigned(0.9 * waves / waves.abs().amax((1, 2, 3), keepdim=True))


def measured(operator: MeasurementOperator, clean: Tensor, seed: int = 0) -> RestorationBatch:
    generator = torch.Generator().manual_seed(seed)
    found = [measure(operator, image, generator) for image in clean]
    return RestorationBatch(
        clean,
        torch.stack([one.y for one in found]),
        torch.stack([one.parameters for one in found]),
        torch.arange(len(clean)),
    )


def restored(baseline: Baseline, operator: MeasurementOperator, batch: RestorationBatch) -> Tensor:
    return baseline.restore(operator, batch.y, batch.parameters)


def quick(baseline: Baseline) -> Baseline:
    return replace(baseline, iterations=8) if isinstance(baseline, TotalVariation) else baseline


# -- all of them ------------------------------------------------------------------------------------------------------


@each_pair
def test_it_beats_the_measurement_with_settings_chosen_on_other_images(key: str, baseline: Baseline) -> None:
    operator = OPERATORS[key]
    chosen = choose(baseline, operator, [measured(operator, smooth(1, channels=3))]).baseline
    batch = measured(operator, smooth(2, channels=3, seed=1), seed=1)
    images = restored(chosen, operator, batch)
    before = unsigned(operator.bind(batch.parameters).estimate(batch.y)).clamp(0, 1)
    assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
    assert (psnr(images, batch.clean) > psnr(before, batch.clean) + 0.5).all()


@each_pair
def test_images_are_restored_apart_and_channels_too_but_by_non_local_means(key: str, baseline: Baseline) -> None:
    operator, baseline = OPERATORS[key], quick(baseline)
    batch = measured(operator, smooth(3, channels=3))
    whole = restored(baseline, operator, batch)
    y, parameters = batch.y[1:2], batch.parameters[1:2]
    assert torch.equal(whole[1:2], baseline.restore(operator, y, parameters))
    apart = [baseline.restore(operator, y[:, c : c + 1], parameters) for c in range(y.shape[1])]
    distance = (whole[1:2] - torch.cat(apart, dim=1)).abs().max()
    assert distance > 1e-2 if isinstance(baseline, NonLocalMeans) else distance < 1e-2


@each_pair
def test_values_beyond_the_range_are_cut_off(key: str, baseline: Baseline) -> None:
    operator = OPERATORS[key]
    batch = measured(operator, 3 * smooth(1) - 1)
    images = restored(quick(baseline), operator, batch)
    assert images.min() == 0 and images.max() == 1


@pytest.mark.parametrize("baseline", [Biharmonic(), TotalVariation(0.02, iterations=20)], ids=lambda one: one.name)
@pytest.mark.parametrize("key", ["boxes", "pixels"])
def test_hidden_pixels_have_no_part(key: str, baseline: Baseline) -> None:
    """Whatever stands there, in the image or even in the measurement."""
    operator, clean = OPERATORS[key], smooth(2, channels=3)
    batch = measured(operator, clean)
    hidden = (batch.parameters == 0).expand_as(clean)
    noise = torch.randn(clean.shape)
    other = measured(operator, torch.where(hidden, noise, clean))
    assert torch.equal(other.parameters, batch.parameters)
    first = restored(baseline, operator, batch)
    assert torch.equal(restored(baseline, operator, other), first)
    assert torch.equal(restored(baseline, operator, batch._replace(y=torch.where(hidden, noise, batch.y))), first)
    assert (first - clean)[hidden].abs().mean() < 0.3


@pytest.mark.parametrize(
    "operator, names",
    [
        (Denoising(0.2), ["total variation", "non-local means"]),
        (Denoising(0.0), ["total variation"]),
        (Inpainting(RandomBoxes(4)), ["biharmonic", "total variation"]),
        (SuperResolution(2), ["bicubic", "total variation"]),
        (Deblurring(), ["Wiener", "total variation"]),
        (CompressedSensing(), ["total variation"]),
        (External(physics=Stretched()), ["total variation"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, MeasurementOperator) else "",
)
def test_an_operator_has_the_methods_that_fit_it(operator: MeasurementOperator, names: list[str]) -> None:
    assert [baseline.name for baseline in baselines_for(operator)] == names


# -- total variation --------------------------------------------------------------------------------------------------


def variation(x: Tensor) -> Tensor:
    return differences(x).square().sum(0).sqrt().sum()


def differences(x: Tensor) -> Tensor:
    """(2, ...) to the pixel below and to the right, 0 at the border."""
    down, right = x.diff(dim=-2), x.diff(dim=-1)
    return torch.stack([F.pad(down, (0, 0, 0, 1)), F.pad(right, (0, 1))])


def differences_adjoint(p: Tensor) -> Tensor:
    x = torch.zeros_like(p[0], requires_grad=True)
    with torch.enable_grad():
        return torch.autograd.grad((differences(x) * p).sum(), x)[0]


def bound_batch(key: str) -> tuple[MeasurementOperator, Tensor, float]:
    """An operator bound to one image, its measurement, and |A|^2."""
    batch = measured(OPERATORS[key], smooth(1))
    operator = OPERATORS[key].bind(batch.parameters)
    return operator, batch.y, operator.tight or squared_norm(operator, batch.clean)


def objective(operator: MeasurementOperator, y: Tensor, x: Tensor, L: float, w: float) -> float:
    return float((operator.A(x) - y).square().sum() / (2 * L) + w * variation(x))


def primal_dual(operator: MeasurementOperator, y: Tensor, L: float, w: float, steps: int = 1000) -> Tensor:
    """The same minimum by Chambolle and Pock (2011)."""
    x = bar = operator.estimate(y)
    p, q = torch.zeros_like(differences(x)), torch.zeros_like(y)
    step = 1 / (1 + 8) ** 0.5
    for _ in range(steps):
        q = (q + step * (operator.A(bar) - y) / L**0.5) / (1 + step)
        p = p + step * differences(bar)
        p = p / (p.square().sum(0).sqrt() / w).clamp_min(1)
        moved = x - step * (operator.A_adjoint(q) / L**0.5 + differences_adjoint(p))
        x, bar = moved, 2 * moved - x
    return x


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("weight", [0.03, 0.2])
def test_total_variation_of_noise_alone_is_that_of_scikit_image(weight: float, channels: int) -> None:
    batch = measured(Denoising(0.2), smooth(1, channels))
    expected = torch.from_numpy(denoise_tv_chambolle(batch.y[0].numpy(), weight=weight, channel_axis=0))
    (found,) = restored(TotalVariation(weight), Denoising(0.2), batch)
    assert torch.equal(found, unsigned(expected).clamp(0, 1))


@pytest.mark.parametrize("key", ["noise", "pixels", "far fewer pixels", "motion", "external"])
def test_total_variation_reaches_the_minimum(key: str) -> None:
    """As far as scikit-image solves its part; measured by another algorithm, and by moving away."""
    operator, y, L = bound_batch(key)
    w = 0.02
    x = TotalVariation(w, iterations=200).image(operator, y)
    found, least = objective(operator, y, x, L, w), objective(operator, y, primal_dual(operator, y, L, w), L, w)
    start = operator.estimate(y)
    assert least < 1.01 * found < 1.05 * least < objective(operator, y, start, L, w)
    for _ in range(5):
        move = torch.randn(x.shape)
        assert objective(operator, y, x + 0.02 * move, L, w) > found
        assert objective(operator, y, x + 0.02 * torch.sign(x - start), L, w) > found


@pytest.mark.parametrize("key", ["pixels", "random convolution"])
def test_momentum_saves_more_than_half_of_the_steps(key: str) -> None:
    operator, y, L = bound_batch(key)
    operator, w, steps = replace(operator, sigma=0.05), 0.005, 30
    x = operator.estimate(y)
    for _ in range(2 * steps):
        target = x - operator.A_adjoint(operator.A(x) - y) / L
        x = torch.from_numpy(denoise_tv_chambolle(target[0].numpy(), weight=w, channel_axis=0))[None]
    found = TotalVariation(w, iterations=steps).image(operator, y)
    assert objective(operator, y, found, L, w) < objective(operator, y, x, L, w)


@pytest.mark.parametrize("key", ["boxes", "fewer pixels", "random convolution"])
def test_without_noise_total_variation_fits_the_measurement(key: str) -> None:
    operator, y, _ = bound_batch(key)
    x = TotalVariation(0.05, iterations=5).image(operator, y)
    torch.testing.assert_close(operator.A(x), y, atol=1e-5, rtol=0)
    noisy = replace(operator, sigma=0.1)
    assert (noisy.A(TotalVariation(0.05, iterations=5).image(noisy, y)) - y).abs().max() > 1e-3


@pytest.mark.parametrize("key", list(OPERATORS))
def test_the_squared_norm_of_an_operator(key: str) -> None:
    """Against the singular values of its matrix; a step must not be longer than they allow."""
    batch = measured(OPERATORS[key], smooth(1))
    operator = OPERATORS[key].bind(batch.parameters)
    units = torch.eye(HEIGHT * WIDTH).reshape(-1, 1, HEIGHT, WIDTH)
    masks = replace(operator, known=batch.parameters.expand(len(units), -1, -1, -1)) if key in MASKED else operator
    wanted = float(torch.linalg.matrix_norm(masks.A(units).flatten(1), 2)) ** 2
    assert wanted < squared_norm(operator, batch.clean) < 1.06 * wanted
    assert operator.tight is None or operator.tight == pytest.approx(wanted, rel=1e-5)


MASKED = ("boxes", "pixels")


# -- the others -------------------------------------------------------------------------------------------------------


def ramp(channels: int = 1) -> Tensor:
    rows, columns = torch.meshgrid(
        torch.linspace(0.25, 0.75, HEIGHT), torch.linspace(-0.15, 0.15, WIDTH), indexing="ij"
    )
    return (rows - columns).expand(1, channels, HEIGHT, WIDTH).contiguous()


def test_biharmonic_completes_a_plane() -> None:
    known = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    known[5:14, 3:9] = False
    operator = Inpainting(known)
    (image,) = restored(Biharmonic(), operator, measured(operator, ramp(3)))
    torch.testing.assert_close(image, ramp(3)[0], atol=1e-4, rtol=0)


def test_bicubic_continues_a_plane_within_its_border() -> None:
    operator = SuperResolution(2)
    (image,) = restored(Bicubic(), operator, measured(operator, ramp()))
    inner = slice(4, -4)
    torch.testing.assert_close(image[:, inner, inner], ramp()[0, :, inner, inner], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", [LOPSIDED, [[0.7], [0.3]], [[0.1, 0.2, 0.6, 0.1]]], ids=["2x3", "2x1", "1x4"])
def test_wiener_undoes_a_blur_that_loses_nothing(kernel: list[list[float]]) -> None:
    """In its place and not mirrored, of an image that is flat around."""
    operator, clean = Deblurring(kernel), torch.full((1, 1, HEIGHT, WIDTH), 0.25)
    clean[:, :, 6:13, 5:11] += ramp()[:, :, 6:13, 5:11] - 0.2
    (image,) = restored(Wiener(balance=1e-6), operator, measured(operator, clean))
    torch.testing.assert_close(image, clean[0], atol=5e-3, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_non_local_means_are_those_of_scikit_image(channels: int) -> None:
    batch = measured(Denoising(0.1), smooth(1, channels))
    last = batch.y[0].permute(1, 2, 0).numpy()
    settings: dict[str, Any] = {"patch_size": 3, "patch_distance": 4, "h": 0.06, "sigma": 0.1}
    expected = (
        denoise_nl_means(last, channel_axis=-1, **settings)
        if channels > 1
        else denoise_nl_means(last[..., 0], **settings)[..., None]
    )
    (found,) = restored(NonLocalMeans(decay=0.6, patch=3, reach=4), Denoising(0.1), batch)
    torch.testing.assert_close(found, unsigned(torch.from_numpy(expected).permute(2, 0, 1)).clamp(0, 1))


# -- choosing ---------------------------------------------------------------------------------------------------------


@each_pair
def test_the_setting_with_the_best_mean_is_chosen(key: str, baseline: Baseline) -> None:
    """Over all images, whatever the sizes of the batches."""
    operator, baseline = OPERATORS[key], quick(baseline)
    batch = measured(operator, smooth(3, seed=5))
    means = {}
    for candidate in baseline.settings(operator):
        errors = (restored(candidate, operator, batch) - batch.clean).square().mean((1, 2, 3))
        means[candidate] = float((10 * torch.log10(1 / errors)).mean())
    parts = [RestorationBatch(*(part[rows] for part in batch)) for rows in (slice(0, 1), slice(1, 3))]
    found = choose(baseline, operator, parts)
    assert found.baseline == max(means, key=lambda candidate: means[candidate])
    assert found.psnr == pytest.approx(max(means.values()), abs=1e-3)
    assert len(means) == 1 or max(means.values()) > min(means.values()) + 0.1
    assert len({candidate.setting for candidate in means}) == len(means), "which the table tells apart"


def test_more_noise_asks_for_a_larger_weight() -> None:
    weights = []
    for sigma in (0.05, 0.2, 0.6):
        operator = Denoising(sigma)
        chosen = choose(TotalVariation(), operator, [measured(operator, smooth(4))]).baseline
        assert isinstance(chosen, TotalVariation)
        candidates = [one.weight for one in TotalVariation().settings(operator)]
        assert min(candidates) < chosen.weight < max(candidates), "the best is within the grid"
        weights.append(chosen.weight)
    assert weights == sorted(weights)
