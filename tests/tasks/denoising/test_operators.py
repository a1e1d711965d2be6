"""Measurement operators: adjoints, projections, estimates, draws; each property for all operators and shapes."""

from __future__ import annotations

import pytest
import torch
from deqopt_tasks.denoising.inpainting import GivenMask, Inpainting, Mask, RandomBoxes, RandomPixels
from deqopt_tasks.denoising.operator import External, MeasurementOperator, Shape, as_operator, measure
from deqopt_tasks.denoising.operators import CompressedSensing, Deblurring, Denoising, MotionKernel, SuperResolution
from jsonargparse import ArgumentParser

from deqopt.data import signed
from deqopt.spec import NotPlainError, spec
from deqopt.testing.rebuilding import made_again
from operator_catalogue import (
    OPERATORS,
    PLAIN,
    SHAPES,
    TIGHT,
    Mirrored,
    bound,
    close,
    dot,
    every,
    images,
    noise_like,
    tight,
)

# -- A and its adjoint -------------------------------------------------------------------------------------------------


@every
def test_the_adjoint_is_the_adjoint(name: str, shape: Shape) -> None:
    operator, x = bound(OPERATORS[name], shape), images(shape)
    y = noise_like(operator.A(x))
    assert operator.A_adjoint(y).shape == x.shape
    assert close(dot(operator.A(x), y), dot(x, operator.A_adjoint(y)))
    seen = operator.observed(y)
    assert close(dot(operator.A(x), seen), dot(x, operator.A_adjoint(seen)))


@every
def test_operators_are_linear(name: str, shape: Shape) -> None:
    operator, x, other = bound(OPERATORS[name], shape), images(shape), images(shape, seed=5)
    assert close(operator.A(3 * x - 0.5 * other), 3 * operator.A(x) - 0.5 * operator.A(other))
    y = operator.A(x)
    assert close(
        operator.A_adjoint(2 * y - noise_like(y)), 2 * operator.A_adjoint(y) - operator.A_adjoint(noise_like(y))
    )
    assert not operator.A(torch.zeros_like(x)).any() and operator.A(x).any()


@every
def test_samples_and_channels_are_treated_alone(name: str, shape: Shape) -> None:
    operator, x = bound(OPERATORS[name], shape), images(shape)
    y, back = operator.A(x), operator.A_adjoint(operator.A(x))
    generator = torch.Generator().manual_seed(2)
    for i in range(len(x)):
        alone = OPERATORS[name].bind(OPERATORS[name].draw(shape, generator)[None])
        assert close(alone.A(x[i : i + 1]), y[i : i + 1], 1e-12)
        assert close(alone.A_adjoint(y[i : i + 1]), back[i : i + 1], 1e-12)
        assert close(alone.estimate(y[i : i + 1]), operator.estimate(y)[i : i + 1], 1e-12)
        assert torch.equal(alone.observed(y[i : i + 1]), operator.observed(y)[i : i + 1])
    assert close(operator.A(x[:, :1]), y[:, :1], 1e-12)


@every
def test_autograd_agrees_with_the_adjoint_twice(name: str, shape: Shape) -> None:
    """``|A x|^2 / 2`` has the gradient ``A^T A x`` and its derivative along v is ``A^T A v``; the same for A^T."""
    operator, v = bound(OPERATORS[name], shape), noise_like(images(shape))
    for forth, back, point, along in (
        (operator.A, operator.A_adjoint, images(shape), v),
        (operator.A_adjoint, operator.A, operator.A(images(shape)), operator.A(v)),
    ):
        point.requires_grad_()
        value = dot(forth(point), forth(point)).sum() / 2
        (gradient,) = torch.autograd.grad(value, point, create_graph=True)
        (hessian,) = torch.autograd.grad(dot(gradient, along).sum(), point)
        assert close(gradient.detach(), back(forth(point.detach()))) and close(hessian, back(forth(along)))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_other_precisions_give_the_same_up_to_rounding(name: str, shape: Shape, dtype: torch.dtype) -> None:
    operator, x = bound(OPERATORS[name], shape), images(shape)
    y = operator.A(x)
    tolerance = 20 * torch.finfo(dtype).eps
    for action, argument in ((operator.A, x), (operator.A_adjoint, y), (operator.estimate, y), (operator.observed, y)):
        exact, found = action(argument), action(argument.to(dtype))
        assert found.dtype == dtype
        assert (found.double() - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.parametrize("name", OPERATORS)
def test_autocast_changes_nothing(name: str) -> None:
    shape = SHAPES[0]
    operator, x = bound(OPERATORS[name], shape), images(shape, dtype=torch.float32)
    y = operator.A(x)
    expected = y, operator.A_adjoint(y), operator.estimate(y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = operator.A(x), operator.A_adjoint(y), operator.estimate(y)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("name", OPERATORS)
def test_the_memory_order_of_images_does_not_matter(name: str) -> None:
    shape = (1, 9, 15)
    operator, x = bound(OPERATORS[name], shape), images(shape)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    y = operator.A(x)
    assert not turned.is_contiguous() and close(operator.A(turned), y, 1e-12)
    assert close(operator.A_adjoint(y.transpose(2, 3).contiguous().transpose(2, 3)), operator.A_adjoint(y), 1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_what_was_prepared_in_inference_mode_serves_in_training(name: str) -> None:
    fresh = {"compressed sensing": CompressedSensing(seed=77), "gaussian blur": Deblurring([[1.0, 3.0]])}
    operator, x = bound(fresh.get(name, OPERATORS[name]), SHAPES[0]), images(SHAPES[0]).float()
    with torch.inference_mode():
        operator.A_adjoint(operator.A(x))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(operator.A(x * x).square().sum(), x, create_graph=True)
    assert torch.autograd.grad(gradient.sum(), x)[0].isfinite().all()


# -- tight operators ---------------------------------------------------------------------------------------------------


def test_the_tight_operators_are_these() -> None:
    assert {name: one.tight for name, one in OPERATORS.items() if one.tight is not None} == pytest.approx(TIGHT)
    assert bound(OPERATORS["boxes"], SHAPES[0]).tight == 1.0


@tight
def test_of_a_tight_operator_A_times_its_adjoint_is_a_number(name: str, shape: Shape) -> None:
    """From this and the adjoint it follows that ``x + A^T (y - A x) / c`` is the projection."""
    operator = bound(OPERATORS[name], shape)
    y = operator.observed(noise_like(operator.A(images(shape))))
    assert close(operator.A(operator.A_adjoint(y)), TIGHT[name] * y)
    assert close(operator.observed(operator.A(images(shape))), operator.A(images(shape)))  # A yields nothing else


@tight
def test_the_estimate_fits_a_measurement_without_noise(name: str, shape: Shape) -> None:
    operator = bound(OPERATORS[name], shape)
    y = operator.A(images(shape))
    assert operator.estimate(y).shape == (3, *shape) and close(operator.A(operator.estimate(y)), y)


# -- measurements -----------------------------------------------------------------------------------------------------


@every
def test_a_measurement_is_what_its_parameters_say(name: str, shape: Shape) -> None:
    operator, image = OPERATORS[name], images(shape, count=1, dtype=torch.float32)[0]
    kept = image.clone()
    y, parameters = measure(operator, image, torch.Generator().manual_seed(3))
    again = measure(operator, image, torch.Generator().manual_seed(3))
    other = measure(operator, image, torch.Generator().manual_seed(4))
    assert torch.equal(image, kept) and y.data_ptr() != image.data_ptr()
    assert y.dtype == image.dtype and not y.requires_grad
    assert torch.equal(y, again.y) and torch.equal(parameters, again.parameters)
    drawn = isinstance(operator, Inpainting) and isinstance(operator.mask, Mask)
    assert torch.equal(y, other.y) == (operator.sigma == 0 and not drawn)
    one = operator.bind(parameters[None])
    assert one.sigma == operator.sigma and torch.equal(one.observed(y[None])[0], y)
    assert torch.equal(y, one.A(signed(image)[None])[0]) == (operator.sigma == 0)


@pytest.mark.parametrize(
    "operator",
    [
        Denoising(0.3),
        SuperResolution(2, sigma=0.3),
        Deblurring(sigma=0.3),
        CompressedSensing(ratio=0.5, sigma=0.3),
        Inpainting(RandomPixels(0.4), sigma=0.3),
        External(physics=Mirrored(), sigma=0.3),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_noise_is_white_and_of_sigma_where_something_is_measured(operator: MeasurementOperator) -> None:
    image = images((3, 64, 48), count=1)[0]
    y, parameters = measure(operator, image, torch.Generator().manual_seed(3))
    one = operator.bind(parameters[None])
    noise = (y - one.A(signed(image)[None])[0]).flatten()
    seen = one.observed(torch.ones_like(y)[None])[0].flatten().bool()
    assert not noise[~seen].any() and (noise[seen] != 0).all()
    count = int(seen.sum())
    assert count > 2000
    assert float(noise[seen].std()) == pytest.approx(0.3, rel=0.08)
    assert abs(float(noise[seen].mean())) < 5 * 0.3 / count**0.5
    assert abs(float((noise[1:] * noise[:-1]).mean())) < 5 * 0.09 / count**0.5


@pytest.mark.parametrize("name", ["denoising", "super-resolution", "gaussian blur", "external"])
def test_a_damaged_image_is_its_own_measurement(name: str) -> None:
    image = images((1, 6, 6), count=1)[0]
    y, parameters = OPERATORS[name].read(image, "holiday")
    assert torch.equal(y, image) and parameters.shape == (0,)


# -- descriptions, and operators of others ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_operators_come_back_from_their_descriptions(name: str) -> None:
    again = made_again(PLAIN[name])
    assert again == PLAIN[name] and type(again) is type(PLAIN[name])
    shape = SHAPES[0]
    assert torch.equal(bound(again, shape).A(images(shape)), bound(PLAIN[name], shape).A(images(shape)))


def test_descriptions_hold_what_was_chosen_and_no_tensors() -> None:
    path = "deqopt_tasks.denoising.inpainting"
    mask = {"class_path": f"{path}.GivenMask", "init_args": {"path": "masks"}}
    described = {"class_path": f"{path}.Inpainting", "init_args": {"sigma": 0.1, "mask": mask}}
    assert spec(Inpainting(GivenMask("masks"), sigma=0.1)) == described
    assert spec(Deblurring())["init_args"].keys() == {"sigma", "kernel"}
    for operator in (Inpainting(torch.eye(3)), Deblurring(torch.ones(3, 3))):
        with pytest.raises(NotPlainError, match="Tensor is not a plain value"):
            spec(operator)


WORDS: dict[str, MeasurementOperator] = {
    "Denoising --operator.sigma 0.3": Denoising(0.3),
    "Inpainting": Inpainting(RandomBoxes(20)),
    "Inpainting --operator.mask.side 4": Inpainting(RandomBoxes(4)),
    "Inpainting --operator.mask RandomPixels --operator.mask.share 0.3": Inpainting(RandomPixels(0.3)),
    "Inpainting --operator.mask GivenMask --operator.mask.path m.png": Inpainting(GivenMask("m.png")),
    "Deblurring --operator.kernel MotionKernel --operator.kernel.angle 10": Deblurring(MotionKernel(angle=10.0)),
    "Deblurring --operator.kernel [[1,2],[3,4]]": Deblurring([[1.0, 2.0], [3.0, 4.0]]),
    "CompressedSensing --operator.ratio 0.1 --operator.sigma 0.02": CompressedSensing(0.1, sigma=0.02),
}


@pytest.mark.parametrize("words", WORDS)
def test_operators_are_chosen_by_name(words: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--operator", type=MeasurementOperator)
    parsed = parser.parse_args(["--operator", *words.split()])
    assert parser.instantiate_classes(parsed).operator == WORDS[words]


def test_operators_of_others_are_used_as_they_are() -> None:
    physics, x = Mirrored(), images((2, 6, 6))
    operator = as_operator(physics)
    assert isinstance(operator, External) and operator.physics is physics and operator.sigma == 0
    assert torch.equal(operator.A(x), physics.A(x)) and as_operator(operator) is operator
    assert as_operator(OPERATORS["boxes"]) is OPERATORS["boxes"]


def test_physics_of_deepinv_are_operators() -> None:
    physics = pytest.importorskip("deepinv.physics", reason="deepinv is not installed")
    x = images((1, 8, 8), dtype=torch.float32)
    blur = physics.Blur(filter=torch.tensor([[[[0.5, 0.25], [0.25, 0.0]]]]), padding="valid")
    operator = as_operator(blur)
    y = operator.A(x)
    assert close(y, blur.A(x)) and close(dot(y, y), dot(x, operator.A_adjoint(y)), 1e-4)
