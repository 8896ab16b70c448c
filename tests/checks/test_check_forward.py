"""What other people's forward code does, on the numbers of the oracles: it is followed, or the oracle says that it could not run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import gradderiv
from gradderiv.checks.forward import Call, record
from gradderiv.checks.report import Record, Report
from gradderiv.checks.scatter import scatter
from gradderiv.numbers.rounding import Rounding, RoundingTensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def heads(n: int = 5, d: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return normal(n, d), normal(n, d, seed=1), normal(n, d, seed=2)


def attention_vjp(Q: Tensor, K: Tensor, V: Tensor, dO: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """The backward of all the forwards below."""
    tau = Q.shape[-1] ** -0.5
    P = torch.softmax((tau * Q @ K.mT).masked_fill(~mask, -torch.inf), -1)
    dP = dO @ V.mT
    dS = P * (dP - (P * dP).sum(-1, keepdim=True))
    return tau * dS @ K, tau * dS.mT @ Q, P.mT @ dO


def online(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
    """Causal attention block by block: tensors made inside and written into, comparisons, maxima with positions, float32 masks."""
    n = Q.shape[0]
    hidden = torch.tril(torch.ones(n, n)) == 0
    O = torch.zeros(n, V.shape[1], dtype=Q.dtype)
    m = torch.full((n, 1), -torch.inf, dtype=Q.dtype)
    total = torch.zeros(n, 1, dtype=Q.dtype)
    for j in range(0, n, 2):
        S = Q @ K[j : j + 2].T / Q.shape[-1] ** 0.5
        S = S.masked_fill(hidden[:, j : j + 2], -torch.inf)
        new = torch.maximum(m, S.max(-1, keepdim=True).values)
        E = torch.exp(S - new)
        decay = torch.exp(m - new)
        total = total * decay + E.sum(-1, keepdim=True)
        O *= decay
        O += E @ V[j : j + 2]
        m = new
    O /= total
    return O


def row_by_row(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
    O = torch.empty(Q.shape[0], V.shape[1], dtype=Q.dtype)
    for i in range(Q.shape[0]):
        S = (K[: i + 1] @ Q[i]) / Q.shape[-1] ** 0.5
        o = torch.softmax(S, 0) @ V[: i + 1]
        assert o.shape == (V.shape[1],)
        O[i] = o
    return O


def fused(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(
        Q[None, None], K[None, None], V[None, None], is_causal=True
    )[0, 0]


FORWARDS = {"online": online, "row by row": row_by_row, "fused": fused}


def function(forward: Callable[..., Tensor], slip: float = 1.0) -> Callable[..., Tensor]:
    """This forward with the closed backward; dK is off by the factor ``slip``."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
            ctx.save_for_backward(Q, K, V)
            return forward(Q, K, V)

        @staticmethod
        def backward(ctx: Any, dO: Tensor) -> Any:
            Q, K, V = ctx.saved_tensors
            dQ, dK, dV = attention_vjp(Q, K, V, dO, torch.ones(Q.shape[0], K.shape[0]).tril().bool())
            return dQ, slip * dK, dV

    def attention(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        return Attention.apply(Q, K, V)  # type: ignore[no-any-return]

    return attention


def silent(report: Report) -> dict[str, Record]:
    """The records of the oracles that could not run."""
    return {r.oracle: r for r in report.records if "could not run" in r.detail}


@pytest.mark.parametrize("name", FORWARDS)
def test_forwards_are_followed_by_every_oracle(name: str) -> None:
    report = gradderiv.check(function(FORWARDS[name]), heads())
    assert report.passed, report
    assert not silent(report)
    assert "running errors" in report.select(oracle="tape", argument="K")[0].detail


@pytest.mark.parametrize("name", FORWARDS)
def test_and_a_wrong_backward_is_seen_through_them(name: str) -> None:
    report = gradderiv.check(function(FORWARDS[name], slip=1 + 1e-9), heads())
    assert {r.argument for r in report.failures} == {"K"}
    assert {r.oracle for r in report.failures} == {"tape", "dual", "finite differences"}


def test_a_maximum_with_a_derivative_of_its_own() -> None:
    report = gradderiv.check(
        lambda x: x * x.amax(-1, keepdim=True) + x.max(-1, keepdim=True).values, normal(3, 4)
    )
    assert report.passed, report
    assert not silent(report)


def test_operations_without_a_rounding_rule_have_a_measured_tolerance() -> None:
    report = gradderiv.check(lambda x: torch.atan(x) * functional.gelu(x), normal(3, 4))
    assert report.passed, report
    assert "scatter of 16 runs" in report.select(oracle="tape")[0].detail
    assert "atan" in silent(report)["dual"].detail
    assert silent(report)["dual"].expected


class RmsNorm(torch.autograd.Function):
    """Its square root is not in the table; ``slip`` scales the second term of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, slip: float) -> Tensor:
        r = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        ctx.save_for_backward(x, gain, r)
        ctx.slip = slip
        return x * r * gain

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        x, gain, r = ctx.saved_tensors
        unit = x * r
        dx = r * (d * gain - ctx.slip * unit * (unit * d * gain).mean(-1, keepdim=True))
        return dx, (d * unit).sum(0), None


@pytest.mark.parametrize("std", [1e-2, 1.0, 30.0])
def test_measured_tolerances_raise_no_alarm_and_see_what_is_wrong(std: float) -> None:
    inputs = (std * normal(5, 8), normal(8, seed=1))
    types = (torch.float64, torch.float32, torch.bfloat16)
    right = gradderiv.check(lambda x, gain: RmsNorm.apply(x, gain, 1.0), inputs, dtypes=types)
    assert right.passed, right
    wrong = gradderiv.check(lambda x, gain: RmsNorm.apply(x, gain, 1 + 1e-9), inputs)
    assert {r.argument for r in wrong.failures} == {"x"}


def test_measured_and_computed_rounding_errors_are_of_one_size() -> None:
    Q, K, V = heads(7, 4)
    call = Call(
        lambda Q, K, V: torch.softmax(Q @ K.mT, -1) @ V, "f", {"Q": Q, "K": K, "V": V}, ("Q", "K", "V")
    )
    dO = normal(7, 4, seed=4)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        numbers = Rounding(dtype)
        computed = record(call, numbers.make).gradients([numbers.make(dO)])
        measured, _ = scatter(call, [[dO]], dtype, seed=0)
        for name, g in computed.items():
            assert isinstance(g, RoundingTensor)
            ratio = (measured[0][name] / g.error).median()
            assert 0.2 < float(ratio) < 3, (dtype, name, ratio)


class Numpy(torch.autograd.Function):
    """Leaves torch: no oracle but finite differences can follow. ``slip`` scales the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slip: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slip = slip
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        return ctx.slip * d * ctx.saved_tensors[0].cos(), None


def test_finite_differences_alone_decide_and_the_report_says_so() -> None:
    report = gradderiv.check(lambda x: Numpy.apply(x, 1.0), normal(3, 4))
    assert report.passed, report
    assert set(silent(report)) == {"tape", "dual"}
    assert all(r.expected for r in silent(report).values())
    wrong = gradderiv.check(lambda x: Numpy.apply(x, 1 + 1e-7), normal(3, 4))
    assert {r.oracle for r in wrong.failures} == {"finite differences"}


def test_if_no_oracle_can_run_nothing_passes() -> None:
    def torch_and_numpy(x: Tensor) -> Tensor:
        assert x.dtype == torch.float32, "a kernel for float32 only"
        return Numpy.apply(x, 1.0)

    report = gradderiv.check(torch_and_numpy, normal(3, 4).float())
    assert report.verdict == "vacuous"
    assert set(silent(report)) == {"tape", "dual", "finite differences"}
    assert not any(r.expected for r in silent(report).values())


def test_a_function_that_does_something_else_on_the_tape_is_not_believed() -> None:
    def plain_only(x: Tensor) -> Tensor:
        return x * x if type(x) is Tensor else x * x * x

    report = gradderiv.check(plain_only, normal(3, 4))
    assert "off on the tape" in silent(report)["tape"].detail


def test_writing_into_a_buffer_from_outside_is_reported() -> None:
    buffer = torch.zeros(3, 4, dtype=torch.float64)

    class Buffered(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            buffer.copy_(x)
            return buffer * 2

        @staticmethod
        def backward(ctx: Any, d: Tensor) -> Any:
            return 2 * d

    report = gradderiv.check(Buffered.apply, normal(3, 4))
    assert "not made during the call" in silent(report)["tape"].detail
    assert report.passed, report  # by finite differences


def test_large_inputs_take_directions() -> None:
    Q, K, V = heads(16, 20)
    report = gradderiv.check(function(fused), (Q, K, V))
    assert report.passed, report
    details = [r.detail for r in report.select(oracle="finite differences")]
    assert all("random directions" in d for d in details)
    wrong = gradderiv.check(function(fused, slip=1 + 1e-6), (Q, K, V))
    assert "finite differences" in {r.oracle for r in wrong.failures}


def test_constants_that_are_floats_stay_as_they_are() -> None:
    """An additive mask of −∞ and a table of cosines are inputs without gradient."""
    bias = torch.full((4, 4), -torch.inf, dtype=torch.float64).triu(1)
    x, table = normal(4, 4).requires_grad_(), normal(4, 4, seed=3).cos()
    report = gradderiv.check(
        lambda x, bias, table: torch.softmax(x * table + bias, -1) @ table, (x, bias, table)
    )
    assert report.passed, report
    assert not silent(report)
