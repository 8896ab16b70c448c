"""Hand-written backwards in the styles in which people write them: gradcheck agrees with what the table says, and ``prove`` with both."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from backwards.table import ROUNDED, STYLES, Style
from torch import Tensor

import gradderiv

ALL = STYLES | ROUNDED
MISTAKES = [(name, mistake) for name, style in STYLES.items() for mistake in style.wrong]
KINDS = {mistake: (name, mistake) for name, mistake in reversed(MISTAKES)}  # where each is met first
FAST = {*KINDS.values(), *((name, next(iter(style.wrong))) for name, style in STYLES.items())}
PROVED_WRONG = [pytest.param(*m, marks=[] if m in FAST else [pytest.mark.slow]) for m in MISTAKES]
ROUNDED_MISTAKES = [(name, mistake) for name, style in ROUNDED.items() for mistake in style.wrong]
STEP, RELATIVE = 1e-5, 1e-6  # of a central difference; its error stays below 1e-8 for inputs near 1


def outputs(function: Callable[..., Any], inputs: dict[str, Any]) -> list[Tensor]:
    """The outputs that are differentiated."""
    out = function(*inputs.values())
    return [y for y in (out if isinstance(out, tuple) else (out,)) if y.requires_grad]


def loss(function: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
    """The outputs against one fixed cotangent."""
    total = torch.zeros((), dtype=torch.float64)
    for k, y in enumerate(outputs(function, inputs)):
        generator = torch.Generator().manual_seed(100 + k)
        total = total + (y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum()
    return total


def moving(inputs: dict[str, Any]) -> dict[str, Tensor]:
    return {n: x for n, x in inputs.items() if isinstance(x, Tensor) and x.requires_grad}


def analytic(function: Callable[..., Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """What its backward gives; zeros where it gives None."""
    leaves = moving(inputs)
    grads = torch.autograd.grad(loss(function, inputs), list(leaves.values()), allow_unused=True)
    return {
        n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), grads, strict=True)
    }


@cache
def numerical(name: str) -> dict[str, Tensor]:
    """Central differences of the right version's forward, entry by entry: no backward runs."""
    style = ALL[name]
    inputs = style.inputs()
    found = {n: torch.zeros(x.shape, dtype=x.dtype) for n, x in moving(inputs).items()}
    for n, grad in found.items():
        for at in (
            torch.cartesian_prod(*(torch.arange(m) for m in grad.shape)).view(grad.numel(), -1).tolist()
        ):
            ends = []
            for step in (STEP, -STEP):
                moved = inputs[n].detach().clone()
                moved[tuple(at)] += step
                ends.append(loss(style.right, {**inputs, n: moved.requires_grad_()}).detach())
            grad[tuple(at)] = (ends[0] - ends[1]) / (2 * STEP)
    return found


def spoilt(function: Callable[..., Any], style: Style) -> set[str]:
    """The arguments whose gradient is not the numerical one."""
    expected = numerical(style.name)
    got = analytic(function, style.inputs())
    return {n for n, g in got.items() if not torch.allclose(g, expected[n], rtol=RELATIVE, atol=RELATIVE)}


@pytest.mark.parametrize("name", ALL)
def test_right_in_floats(name: str) -> None:
    style = ALL[name]
    assert torch.autograd.gradcheck(style.right, tuple(style.inputs().values()), fast_mode=False)
    assert spoilt(style.right, style) == set()


@pytest.mark.parametrize(("name", "mistake"), MISTAKES + ROUNDED_MISTAKES)
def test_wrong_in_floats(name: str, mistake: str) -> None:
    style, wrong = ALL[name], ALL[name].wrong[mistake]
    for ours, theirs in zip(
        outputs(wrong.function, style.inputs()), outputs(style.right, style.inputs()), strict=True
    ):
        assert torch.equal(ours, theirs)  # the mistake is in the backward alone
    assert spoilt(wrong.function, style) == wrong.arguments


def test_by_name_and_twice() -> None:
    """The versions take keyword arguments, and one of them has a second derivative."""
    style = STYLES["twice-differentiable"]
    inputs = style.inputs()
    assert torch.equal(style.right(**inputs), style.right(*inputs.values()))
    assert torch.autograd.gradgradcheck(style.right, tuple(inputs.values()))


def test_enough_of_each() -> None:
    assert len(STYLES) >= 16
    for style in ALL.values():
        assert len(style.wrong) >= 2
        assert all(
            wrong.arguments and wrong.arguments <= set(moving(style.inputs()))
            for wrong in style.wrong.values()
        )


@pytest.mark.parametrize("name", STYLES)
def test_right_is_proved(name: str) -> None:
    proof = gradderiv.prove(STYLES[name].right, STYLES[name].inputs(), no_gradient=STYLES[name].no_gradient)
    assert proof.verdict == "proved", str(proof)


@pytest.mark.parametrize(("name", "mistake"), PROVED_WRONG)
def test_wrong_is_refuted(name: str, mistake: str) -> None:
    wrong = STYLES[name].wrong[mistake]
    proof = gradderiv.prove(wrong.function, STYLES[name].inputs(), no_gradient=STYLES[name].no_gradient)
    assert proof.verdict == "refuted", str(proof)
    assert {r.argument for r in proof.records if r.verdict == "refuted"} == wrong.arguments, str(proof)


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_is_no_mistake(name: str) -> None:
    proof = gradderiv.prove(ROUNDED[name].right, ROUNDED[name].inputs())
    assert proof.verdict in ("proved", "inconclusive"), str(proof)


@pytest.mark.parametrize(("name", "mistake"), ROUNDED_MISTAKES)
def test_wrong_and_rounded_is_not_proved(name: str, mistake: str) -> None:
    proof = gradderiv.prove(ROUNDED[name].wrong[mistake].function, ROUNDED[name].inputs())
    assert proof.verdict in ("refuted", "inconclusive"), str(proof)
