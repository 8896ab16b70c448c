"""``gradderiv.check`` on functions of all kinds: outputs, surroundings, precision, zeros, misuse."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import gradderiv
from gradderiv.checks.report import Record, Report
from gradderiv.errors import DtypeError, InputError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(report: Report, **fields: Any) -> Record:
    """The one record with these fields."""
    (record,) = report.select(**{"problem": "all outputs", **fields})
    return record


def softmax_layer(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
    return torch.softmax(Q @ K.mT / Q.shape[-1] ** 0.5, -1) @ V


# ---------------------------------------------------------------- outputs, cotangents, surroundings


class ScoresAndLse(torch.autograd.Function):
    """Returns S and lse; its backward may forget lse."""

    forgets = False

    @staticmethod
    def forward(ctx: Any, Q: Tensor, K: Tensor) -> Any:
        S = Q @ K.mT
        lse = torch.logsumexp(S, -1)
        ctx.save_for_backward(Q, K, S, lse)
        return S, lse

    @classmethod
    def gradient(cls, ctx: Any, dS: Tensor, dlse: Tensor) -> Any:
        Q, K, S, lse = ctx.saved_tensors
        if not cls.forgets:
            dS = dS + dlse[:, None] * torch.exp(S - lse[:, None])
        return dS @ K, dS.mT @ Q

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return ScoresAndLse.gradient(ctx, *cotangents)


class Forgets(ScoresAndLse):
    forgets = True

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return Forgets.gradient(ctx, *cotangents)


def test_every_output_alone_then_all_together() -> None:
    """One of two outputs got no cotangent, and its gradient was wrong: quack #53."""
    right = gradderiv.check(ScoresAndLse.apply, (normal(4, 3), normal(5, 3, seed=1)), names=("Q", "K"))
    assert right.passed, right
    wrong = gradderiv.check(Forgets.apply, (normal(4, 3), normal(5, 3, seed=1)), names=("Q", "K"))
    assert {r.problem for r in wrong.failures} == {"output 1", "all outputs", "all outputs, scaled"}
    assert {r.problem for r in wrong.records if r.oracle == "finite differences"} >= {"output 0", "output 1"}


def backward_of(gradient: Any) -> Any:
    """x ↦ x² with this backward, gradient(x, d)."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, d: Tensor) -> Any:
            return gradient(ctx.saved_tensors[0], d)

    return Square.apply


@pytest.mark.parametrize(
    ("gradient", "argument", "words"),
    [
        (lambda x, d: 2 * x, "vjp(0) = 0", "a cotangent of zeros gives x up to"),
        (lambda x, d: 2 * x * d + 1e-13, "vjp(0) = 0", "a cotangent of zeros gives x up to 1e-13"),
        (lambda x, d: 2 * x * d * d.abs(), "vjp is linear", "x, for -1024 × the cotangent"),
        (lambda x, d: d.mul_(2 * x), "inputs unchanged", "written into: the cotangent of output 0"),
        (lambda x, d: 2 * x.mul_(d), "inputs unchanged", "written into: the input x"),
    ],
    ids=[
        "ignores the cotangent",
        "adds a constant",
        "not linear",
        "overwrites the cotangent",
        "overwrites x",
    ],
)
def test_conduct(gradient: Any, argument: str, words: str) -> None:
    report = gradderiv.check(backward_of(gradient), normal(3, 4), names=["x"])
    record = of(report, oracle="identities", argument=argument)
    assert record.verdict == "fail"
    assert words in record.detail


def test_overwriting_the_input_in_the_forward_is_seen() -> None:
    class Doubles(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            x *= 2
            return x * 3

        @staticmethod
        def backward(ctx: Any, d: Tensor) -> Any:
            return 6 * d

    x = normal(3, 4)
    kept = x.clone()
    report = gradderiv.check(Doubles.apply, x, names=["x"])
    assert "written into: the input x" in of(report, argument="inputs unchanged").detail
    assert torch.equal(x, kept)


def test_returning_the_cotangent_itself_is_allowed() -> None:
    report = gradderiv.check(lambda x: x + 0, normal(3, 4), names=["x"])
    assert report.passed, report


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x, y: x * y.detach(), "no gradient came back"),
        (backward_of(lambda x, d: None), "no gradient came back"),
        (backward_of(lambda x, d: (2 * x * d).mT), "invalid gradient at index 0"),
        (backward_of(lambda x, d: 1 / 0), "ZeroDivisionError: division by zero"),
        (backward_of(lambda x, d: 2 * x * d * torch.nan), "NaN"),
    ],
    ids=["detached", "None", "wrong shape", "raises", "NaN"],
)
def test_no_gradient_or_none_that_can_be_used(function: Any, words: str) -> None:
    two = function.__name__ == "<lambda>"
    report = gradderiv.check(function, [normal(3, 4), normal(3, 4, seed=1)] if two else [normal(3, 4)])
    assert report.verdict == "fail"
    assert any(words in r.detail for r in report.failures), [r.detail for r in report.failures]


def test_an_input_that_is_not_used_has_no_gradient_and_that_is_right() -> None:
    report = gradderiv.check(lambda x, y: x * x, (normal(3), normal(3)))
    assert report.passed, report
    assert of(report, oracle="tape", argument="y").detail.startswith("exactly zero")


def test_a_zero_that_is_not_returned_as_zero_fails() -> None:
    class Shifted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, S: Tensor, b: Tensor) -> Tensor:
            P = torch.softmax(S + b, -1)
            ctx.save_for_backward(P)
            return P

        @staticmethod
        def backward(ctx: Any, dP: Tensor) -> Any:
            (P,) = ctx.saved_tensors
            dS = P * (dP - (P * dP).sum(-1, keepdim=True))
            return dS, (P * dP).sum(-1, keepdim=True)  # a shift of a row: should be the sum of dS, which is 0

    report = gradderiv.check(Shifted.apply, (normal(3, 4), normal(3, 1)), names=("S", "b"))
    assert {r.argument for r in report.failures} == {"b"}


# ---------------------------------------------------------------- precision


def test_a_function_that_computes_in_float32_is_judged_in_float32() -> None:
    report = gradderiv.check(lambda Q, K: (Q.float() @ K.float().mT).double(), (normal(3, 4), normal(5, 4)))
    assert report.passed, report
    assert "running errors in float32" in of(report, oracle="tape", argument="Q").detail


def test_a_backward_that_computes_in_float32_is_not() -> None:
    report = gradderiv.check(backward_of(lambda x, d: (2 * x.float() * d.float()).double()), normal(3, 4))
    assert "as small as the rounding of float32" in report.failures[0].detail


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_inputs_are_differentiated_in_float64(dtype: torch.dtype) -> None:
    Q, K, V = (normal(2, 5, 4, seed=k).to(dtype) for k in range(3))
    report = gradderiv.check(
        torch.nn.functional.scaled_dot_product_attention, (Q, K, V), names=("Q", "K", "V")
    )
    assert report.passed, report
    assert {r.dtype for r in report.records} == {str(dtype).removeprefix("torch.")}


# ---------------------------------------------------------------- the call


def test_a_report_prints_and_is_json() -> None:
    report = gradderiv.check(backward_of(lambda x, d: x * d), normal(3, 4), names=["x"])
    assert "FAIL" in str(report)
    document = json.loads(report.to_json())
    assert document["verdict"] == "fail"
    assert document["records"][0]["rule"] == "Square"
    assert document["records"][0]["replay"] == "gradderiv.check(Square.apply, inputs, seed=0)"


def test_the_same_seed_gives_the_same_records() -> None:
    runs = [
        gradderiv.check(softmax_layer, [normal(5, 4, seed=k) for k in range(3)], seed=s) for s in (3, 3, 4)
    ]
    shown = [
        [(r.name, r.problem, r.verdict, r.max_abs_error, r.tolerance) for r in run.records] for run in runs
    ]
    assert shown[0] == shown[1]
    assert shown[0] != shown[2]


def test_nothing_of_the_callers_is_touched() -> None:
    tensors = [normal(5, 4, seed=k).requires_grad_() for k in range(3)]
    kept = [x.detach().clone() for x in tensors]
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    gradderiv.check(softmax_layer, tensors)
    assert all(
        torch.equal(x, y) and x.requires_grad and x.grad is None for x, y in zip(tensors, kept, strict=True)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_what_requires_grad_is_differentiated_and_the_rest_is_constant() -> None:
    x, y, mask = normal(3, 4).requires_grad_(), normal(3, 4), torch.ones(3, 4).tril().bool()
    report = gradderiv.check(lambda x, y, mask, n: (x * y).masked_fill(~mask, 0.0) ** n, (x, y, mask, 2))
    assert {r.argument for r in report.select(oracle="tape")} == {"x"}
    assert report.passed, report


def test_keyword_inputs_and_modules() -> None:
    def scores(*, Q: Tensor, K: Tensor) -> Tensor:
        return Q @ K.mT

    assert {
        r.argument
        for r in gradderiv.check(scores, {"K": normal(2, 4), "Q": normal(3, 4)}).select(oracle="tape")
    } == {"K", "Q"}
    module = torch.nn.Linear(4, 3).double()
    report = gradderiv.check(module, normal(2, 4))
    assert report.passed
    assert {(r.rule, r.argument) for r in report.select(oracle="tape")} == {("Linear", "input")}


def test_names_come_from_the_function() -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(left: Tensor, right: Tensor) -> Tensor:
            return left * right

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, d: Tensor) -> Any:
            left, right = ctx.saved_tensors
            return d * right, d * left

    two = (normal(3), normal(3, seed=1))
    for function, expected in (
        (Product.apply, ["left", "right"]),
        (ScoresAndLse.apply, ["Q", "K"]),
        (lambda a, b=1, *rest: a * b, ["a", "b"]),
        (lambda *rest: rest[0] * rest[1], ["x0", "x1"]),
    ):
        inputs = (normal(4, 3), normal(5, 3)) if function == ScoresAndLse.apply else two
        report = gradderiv.check(function, inputs)
        assert [r.argument for r in report.select(oracle="tape", problem="all outputs")] == expected


@pytest.mark.parametrize(
    ("function", "given", "error", "words"),
    [
        (torch.tensor(1.0), normal(3), DtypeError, "the function was called already"),
        (torch.exp, torch.arange(3), InputError, "to differentiate by"),
        (torch.exp, [], InputError, "no inputs"),
        (torch.exp, normal(3) * torch.nan, InputError, "3 NaN or infinite of 3 entries"),
        (torch.exp, normal(0), InputError, "is empty"),
        (torch.exp, normal(3).to(torch.complex128), DtypeError, "complex"),
        (torch.nn.Dropout(), normal(30), InputError, "returns the same twice"),
        (lambda x: x.argmax(), normal(3), InputError, "floating-point tensor among the outputs"),
        (lambda x: SimpleNamespace(logits=x), normal(3), InputError, "floating-point tensor among the outputs"),
        (lambda x: x / 0 * 0, normal(3), InputError, "finite at its inputs"),
        (lambda x: x @ x, normal(3, 2), InputError, "can be called on its inputs"),
    ],
)  # fmt: skip
def test_misuse_is_refused(function: Any, given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as found:
        gradderiv.check(function, given)
    for part in ("came:", "cause:", "do:"):
        assert part in str(found.value)


def test_names_must_fit() -> None:
    with pytest.raises(InputError, match="one name for every input"):
        gradderiv.check(torch.mul, (normal(3), normal(3)), names=["x"])
    with pytest.raises(InputError, match="one name for every input"):
        gradderiv.check(torch.mul, (normal(3), normal(3)), names=["x", "x"])
