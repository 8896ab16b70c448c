"""Tolerances are computed from the program and its format, not typed; and they are neither too small nor too large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gradderiv.checks import tolerance
from gradderiv.checks.compare import MULTIPLE, compare
from gradderiv.checks.problems import PROBLEMS, Problem
from gradderiv.checks.reference import TEXTBOOK

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
JVP = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own
ROUNDOFF = {d: torch.finfo(d).eps / 2 for d in (F64, F32, BF16)}


def forward(p: Problem) -> Callable[[Mapping[str, Tensor]], Tensor]:
    return lambda args: TEXTBOOK[p.rule](**args, **p.options)


def of_gradients(name: str | Problem, dtype: torch.dtype, factor: float = 1.0) -> dict[str, Tensor]:
    p = PROBLEMS[name] if isinstance(name, str) else name
    args, dY = p.floats(0, BF16)  # exact in every type, so that only the type differs
    return tolerance.of_gradients(forward(p), args, factor * dY, dtype)


def gradients(p: Problem, dtype: torch.dtype, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The textbook's own gradients in ``dtype`` and in float64, from the same inputs."""
    args, dY = p.floats(seed, dtype)

    def run(wide: torch.dtype) -> dict[str, Tensor]:
        leaves = {n: x.to(wide).requires_grad_() for n, x in args.items()}
        g = torch.autograd.grad(forward(p)(leaves), list(leaves.values()), dY.to(wide))
        return dict(zip(leaves, g, strict=True))

    return run(dtype), run(F64)


@pytest.mark.parametrize(
    "name", ["linear", "softmax-masked", "attention-options", "cross-masked", "gpt2-init"]
)
def test_a_narrower_type_is_allowed_more(name: str) -> None:
    wide, middle, narrow = (of_gradients(name, d) for d in (F64, F32, BF16))
    for argument in wide:
        assert bool((wide[argument] <= middle[argument]).all())
        assert bool((middle[argument] <= narrow[argument]).all())
        assert (
            float(narrow[argument].max())
            > 1e3 * float(middle[argument].max())
            > 1e10 * float(wide[argument].max())
        )


def test_it_is_proportional_to_the_roundoff() -> None:
    """Below saturation: float32 is allowed 2²⁹ times what float64 is."""
    wide, middle = of_gradients("self", F64), of_gradients("self", F32)
    for argument in wide:
        ratio = middle[argument] / wide[argument] * 2.0**-29
        assert float((ratio - 1).abs().max()) < 1e-3


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**30])
def test_it_is_proportional_to_the_cotangent(factor: float) -> None:
    plain, scaled = of_gradients("self", F64), of_gradients("self", F64, factor)
    for argument in plain:
        assert torch.allclose(scaled[argument], factor * plain[argument], rtol=1e-9, atol=0.0)


def test_every_entry_has_one_and_it_is_positive() -> None:
    for name, p in PROBLEMS.items():
        if name != "saturated":
            for argument, allowed in of_gradients(p, F64).items():
                assert tuple(allowed.shape) == p.shapes[argument]
                assert bool((allowed >= 0).all())
                assert float(allowed.max()) > 0 or argument in p.zeros or name == "relu"  # nothing is rounded
                assert bool(torch.isfinite(allowed).all())


def test_a_longer_sum_is_allowed_more_as_for_independent_roundings() -> None:
    """n products of size 1: √n · u · Σ|xw|, which grows by 8 for four times as many; a worst-case bound n · u · Σ|xw| grows by 16."""

    def allowed(n: int) -> float:
        shapes = {"X": (3, n), "W": (n, 5)}
        p = replace(PROBLEMS["linear"], shapes=shapes, output=(3, 5))
        return float(tolerance.of_value(forward(p), p.floats(0, F32)[0], F32).mean())

    assert 6 < allowed(160) / allowed(40) < 11
    assert 6 < allowed(640) / allowed(160) < 11


def test_a_saturated_softmax_is_allowed_nothing_that_shows() -> None:
    """Where rows have decided, dW_Q is below its own tolerance in float32, and dW_V is not."""
    p = PROBLEMS["saturated"]
    _, exact = gradients(p, F32, 0)
    allowed = tolerance.of_gradients(forward(p), *p.floats(0, F32), F32)
    assert bool((exact["W_Q"].abs() <= allowed["W_Q"]).all())
    assert bool((exact["W_V"].abs() > 10 * allowed["W_V"]).any())


# ---------------------------------------------------------------- neither too small nor too large


@pytest.mark.parametrize("dtype", [F64, F32, BF16])
@pytest.mark.parametrize("name", ["linear-batch", "attention-options", "cross-masked", "gpt2-init"])
def test_it_holds_what_the_reference_itself_loses_and_not_much_more(name: str, dtype: torch.dtype) -> None:
    """The textbook in a narrow type against itself in float64. In float64 nothing wider is at hand: only the size is compared."""
    p = PROBLEMS[name]
    largest = 0.0
    for seed in range(5):
        narrow, wide = gradients(p, dtype, seed)
        allowed = tolerance.of_gradients(forward(p), *p.floats(seed, dtype), dtype)
        for argument, g in narrow.items():
            assert compare(g, wide[argument], allowed[argument], zero=argument == "b_K").verdict != "fail"
            error = (g.double() - wide[argument]).abs()
            largest = max(largest, float((error / allowed[argument]).nan_to_num(0.0).max()))
            assert float(allowed[argument].max()) < 4000 * ROUNDOFF[dtype] * max(
                1.0, float(wide[argument].abs().max())
            )
    if dtype != F64:
        assert 0.25 / MULTIPLE < largest < 1, f"{MULTIPLE * largest:.2f} standard deviations"


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_tolerance_made_for_a_wider_type_raises_a_false_alarm(dtype: torch.dtype) -> None:
    """The wrong twin of the test above."""
    p = PROBLEMS["attention-options"]
    narrow, wide = gradients(p, dtype, 0)
    allowed = tolerance.of_gradients(forward(p), *p.floats(0, dtype), {F32: F64, BF16: F32}[dtype])
    assert {compare(narrow[n], wide[n], allowed[n]).verdict for n in wide} == {"fail"}


@pytest.mark.parametrize("factor", [1e3, 1e-3])
def test_a_mistake_of_a_thousand_roundoffs_fails(factor: float) -> None:
    """In units of the roundoff: float64 sees a relative error of 10⁻¹³, whatever the scale of the loss."""
    p = PROBLEMS["self"]
    args, dY = p.floats(0, F64)
    _, wide = gradients(p, F64, 0)
    allowed = tolerance.of_gradients(forward(p), args, factor * dY, F64)
    for argument in ("X", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_V", "b_O"):
        g = factor * wide[argument]
        assert compare(g * (1 + 1000 * ROUNDOFF[F64]), g, allowed[argument]).verdict == "fail"
        assert compare(g * (1 + ROUNDOFF[F64]), g, allowed[argument]).verdict == "pass"


# ---------------------------------------------------------------- of the value, the tangent, the second order


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_of_value(dtype: torch.dtype) -> None:
    p = PROBLEMS["attention-options"]
    args, _ = p.floats(0, dtype)
    exact = forward(p)({n: x.double() for n, x in args.items()})
    allowed = tolerance.of_value(forward(p), args, dtype)
    assert compare(forward(p)(args), exact, allowed).verdict == "pass"
    assert compare(1.5 * exact, exact, allowed).verdict == "fail"
    assert compare(forward(p)(args), exact, 2.0**-10 * allowed).verdict == "fail"


@JVP
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_of_tangent(dtype: torch.dtype) -> None:
    p = PROBLEMS["attention-options"]
    (args, _), (dots, _) = p.floats(0, dtype), p.floats(0, dtype, role="tangent")

    def tangent(wide: torch.dtype) -> Tensor:
        a, d = ({n: x.to(wide) for n, x in t.items()} for t in (args, dots))
        return torch.func.jvp(forward(p), (a,), (d,))[1]

    allowed = tolerance.of_tangent(forward(p), args, dots, dtype)
    assert compare(tangent(dtype), tangent(F64), allowed).verdict == "pass"
    assert compare(tangent(dtype), tangent(F64), 2.0**-10 * allowed).verdict == "fail"


@JVP
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_of_second_order(dtype: torch.dtype) -> None:
    p = PROBLEMS["attention"]
    (args, dY), (dots, dY_dot) = p.floats(0, dtype), p.floats(0, dtype, role="tangent")

    def second(wide: torch.dtype) -> dict[str, Tensor]:
        a, d = ({n: x.to(wide) for n, x in t.items()} for t in (args, dots))

        def vjp(b: dict[str, Tensor], c: Tensor) -> dict[str, Tensor]:
            return torch.func.vjp(forward(p), b)[1](c)[0]

        return torch.func.jvp(vjp, (a, dY.to(wide)), (d, dY_dot.to(wide)))[1]

    allowed = tolerance.of_second_order(forward(p), args, dY, dY_dot, dots, dtype)
    narrow, wide = second(dtype), second(F64)
    assert set(allowed) == set(p.shapes)
    for n in allowed:
        assert compare(narrow[n], wide[n], allowed[n]).verdict == "pass"
        assert compare(narrow[n], wide[n], 2.0**-10 * allowed[n]).verdict == "fail"
        assert compare(-narrow[n], wide[n], allowed[n]).verdict == "fail"


def test_what_does_not_depend_on_an_argument_is_allowed_no_error() -> None:
    args = {"X": torch.ones(2, 2), "b": torch.ones(2)}
    allowed = tolerance.of_gradients(lambda a: a["X"] @ a["X"], args, torch.ones(2, 2), F32)
    assert float(allowed["b"].max()) == 0.0
    assert float(allowed["X"].min()) > 0.0
