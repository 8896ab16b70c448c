"""Independent ways to the derivative. One table.

An oracle is called with a rule and a problem, and returns one record for each argument and kind of number. None of them takes an expected
value from the rule under test; the wrong-on-purpose rules of :mod:`gradderiv.checks.mutants` go through the same functions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy as sp
import torch
from torch import Tensor

from gradderiv.checks import tolerance
from gradderiv.checks.catalog import Rule
from gradderiv.checks.compare import compare
from gradderiv.checks.diagnose import place
from gradderiv.checks.differences import finite_differences
from gradderiv.checks.identities import aliasing, identities
from gradderiv.checks.problems import Problem
from gradderiv.checks.records import (
    Found,
    beside_wider,
    compared,
    exact_records,
    first,
    float_record,
    layout,
    misfit_of,
)
from gradderiv.checks.reference import LOOPS, TEXTBOOK, TORCH
from gradderiv.checks.report import Record
from gradderiv.numbers.dual import Dual, DualTensor
from gradderiv.numbers.field import Field
from gradderiv.numbers.rational import Rational
from gradderiv.numbers.symbols import Symbols
from gradderiv.rules import blockdiag

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
Args = Mapping[str, Tensor]
Oracle = Callable[..., list[Record]]


def forward(rule: Rule, problem: Problem, seed: int = 0, *, device: str = "cpu", **_: Any) -> list[Record]:
    """The rule's value against the same formula in loops, and against torch's own layers."""
    args, _dY = problem.floats(seed, torch.float64, device=device)
    options = problem.on(device)
    value = rule.value(args, options)
    allowed = tolerance.of_value(lambda a: TEXTBOOK[problem.rule](**a, **options), args, torch.float64)
    return [
        float_record(
            rule,
            problem,
            f"Y, {name}",
            "forward",
            torch.float64,
            compare(value, table[problem.rule](**args, **options), allowed),
        )
        for name, table in (("loops", LOOPS), ("torch", TORCH))
    ]


def autograd(
    rule: Rule,
    problem: Problem,
    seed: int = 0,
    *,
    dtypes: Sequence[torch.dtype] = DTYPES,
    device: str = "cpu",
) -> list[Record]:
    """The gradients against autograd of the textbook forward in float64, from the same rounded inputs."""
    records = []
    for dtype in dtypes:
        value, reference, allowed = against_autograd(rule, problem, seed, dtype, device)
        for name, expected in reference.items():
            found = compared(problem, name, value.get(name), expected, allowed[name])
            records.append(float_record(rule, problem, name, "autograd", dtype, found))
    return [beside_wider(r, records) for r in records]


def against_autograd(
    rule: Rule, problem: Problem, seed: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The rule's gradients in ``dtype``, autograd's in float64, and the tolerance of each entry."""
    options = problem.on(device)
    args, dY = problem.floats(seed, dtype, device=device)
    exact = {name: x.double().requires_grad_() for name, x in args.items()}
    Y = _textbook(problem, options)(exact)
    reference = torch.autograd.grad(Y, list(exact.values()), dY.double(), materialize_grads=True)
    allowed = tolerance.of_gradients(_textbook(problem, options), args, dY, dtype)
    return rule.gradients(args, options, dY), dict(zip(exact, reference, strict=True)), allowed


def differences(
    rule: Rule, problem: Problem, seed: int = 0, *, device: str = "cpu", **_: Any
) -> list[Record]:
    """The gradients against central differences of the textbook forward, each with its error bound."""
    if problem.vacuous:
        return []
    args, dY = problem.floats(seed, torch.float64, device=device)
    options = problem.on(device)
    forward_ = _textbook(problem, options)
    estimates = finite_differences(lambda a: (forward_(a) * dY).sum(), args)
    value = rule.gradients(args, options, dY)
    return [
        float_record(
            rule,
            problem,
            name,
            "finite differences",
            torch.float64,
            compared(problem, name, value.get(name), estimate, bound),
        )
        for name, (estimate, bound) in estimates.items()
    ]


def dual(rule: Rule, problem: Problem, seed: int = 0, *, device: str = "cpu", **_: Any) -> list[Record]:
    """Dual numbers through the rule's own forward code: ⟨dY, Ẏ⟩ = Σ ⟨dθ, θ̇⟩ over all arguments, and Ẏ itself.

    The directions are independent, so that the sum holds only if every term does; where it does not, each argument moves alone. Over the field, and the
    tangent in float64 too.
    """
    options = problem.on(device)
    questions: list[str] = []  # what the first run asks, the others ask too

    def run(field: Field) -> Found:
        args, dY = problem.draw(lambda _name, shape: field.random(*shape))
        dots = {name: field.random(*x.shape) for name, x in args.items()}
        g = rule.gradients(args, options, dY)
        Y_dot = _tangent(rule.value(_moving(args, dots), options))
        terms = {n: (g[n] * dots[n]).sum() for n, x in args.items() if n in g and g[n].shape == x.shape}
        together = torch.stack([*terms.values(), Y_dot.new_zeros(())]).sum(), (Y_dot * dY).sum()
        if not questions:
            holds = len(terms) == len(args) and not bool(field.differs(*together).any())
            questions.extend(["all arguments"] if holds else args)
        pairs: dict[str, Any] = {}
        for name in questions:
            if name == "all arguments":
                pairs[name] = together
            elif name not in terms:
                pairs[name] = (g.get(name), args[name])
            else:
                Y = rule.value(_moving(args, {name: dots[name]}), options)
                pairs[name] = (terms[name], (_tangent(Y) * dY).sum())
        if rule.tangent is not None:
            pairs["jvp"] = (rule.tangent(args, options, dots), Y_dot)
        return pairs

    records = exact_records(rule, problem, "dual", run, seed, device)
    if rule.tangent is not None:
        args, _dY = problem.floats(seed, torch.float64, device=device)
        dots, _dY = problem.floats(seed, torch.float64, role="tangent", device=device)
        expected = _tangent(rule.value(_moving(args, dots), options))
        allowed = tolerance.of_tangent(_textbook(problem, options), args, dots, torch.float64)
        found = compare(rule.tangent(args, options, dots), expected, allowed)
        records.append(float_record(rule, problem, "jvp", "dual", torch.float64, found))
    return records


def field(rule: Rule, problem: Problem, seed: int = 0, *, device: str = "cpu", **_: Any) -> list[Record]:
    """The gradients against autograd of the textbook forward, both over the field: exact, entry by entry."""
    return exact_records(
        rule, problem, "field", lambda numbers: field_pairs(rule, problem, numbers), seed, device
    )


def field_pairs(rule: Rule, problem: Problem, numbers: Field) -> Found:
    """The rule's value and gradients beside those of the textbook forward, at a random point of the field."""
    options = problem.on(numbers.device)
    args, dY = problem.draw(lambda _name, shape: numbers.random(*shape))
    with torch.enable_grad():
        leaves = {name: x.detach().requires_grad_() for name, x in args.items()}
        Y = _textbook(problem, options)(leaves)
        reference = torch.autograd.grad(Y, list(leaves.values()), dY, materialize_grads=True)
    value = rule.gradients(args, options, dY)
    pairs: dict[str, Any] = {"Y": (rule.value(args, options), Y.detach())}
    return pairs | {name: (value.get(name), g) for name, g in zip(leaves, reference, strict=True)}


def second_order(
    rule: Rule, problem: Problem, seed: int = 0, *, device: str = "cpu", **_: Any
) -> list[Record]:
    """The tangent of the gradients against autograd of the textbook forward on dual numbers, over the field and in float64."""
    second = rule.second
    if second is None:
        return []
    options = problem.on(device)

    def reference(args: Args, dY: Tensor, dY_dot: Tensor, dots: Args) -> dict[str, Tensor]:
        leaves = {name: x.requires_grad_() for name, x in _moving(args, dots).items()}
        Y = _textbook(problem, options)(leaves)
        cotangent = Dual().make(dY, dY_dot)
        gradients = torch.autograd.grad(Y, list(leaves.values()), cotangent, materialize_grads=True)
        return {name: _tangent(g) for name, g in zip(leaves, gradients, strict=True)}

    def run(numbers: Field) -> Found:
        args, dY = problem.draw(lambda _name, shape: numbers.random(*shape))
        dots, dY_dot = problem.draw(lambda _name, shape: numbers.random(*shape))
        expected = reference(args, dY, dY_dot, dots)
        value = second(args, options, dY, dY_dot, dots)
        return {name: (value.get(name), expected[name]) for name in args}

    records = exact_records(rule, problem, "second order", run, seed, device)
    args, dY = problem.floats(seed, torch.float64, device=device)
    dots, dY_dot = problem.floats(seed, torch.float64, role="tangent", device=device)
    expected = reference(args, dY, dY_dot, dots)
    allowed = tolerance.of_second_order(_textbook(problem, options), args, dY, dY_dot, dots, torch.float64)
    value = second(args, options, dY, dY_dot, dots)
    for name in args:
        found = compared(problem, name, value.get(name), expected[name], allowed[name])
        records.append(float_record(rule, problem, name, "second order", torch.float64, found))
    return records


def sympy(rule: Rule, problem: Problem, seed: int = 0, **_: Any) -> list[Record]:
    """Every entry of every gradient against ``sympy.diff`` of the explicit loss, with a symbolic cotangent."""
    if not problem.tiny:
        return []
    numbers = Symbols()
    args, dY = problem.draw(lambda name, shape: numbers.symbols(name.replace("_", ""), *shape))
    start = time.perf_counter()
    Y = numbers.entries(_textbook(problem, problem.options)(args))
    loss = (Y * numbers.entries(dY)).sum()
    value = rule.gradients(args, problem.options, dY)
    records = []
    for name, x in args.items():
        if (misfit := misfit_of(value.get(name), x)) is not None:
            records.append(
                Record(rule.name, problem.name, name, "sympy", "symbol", "SymPy", "fail", detail=misfit)
            )
            continue
        expected = [sp.diff(loss, s) for s in numbers.entries(x).reshape(-1)]
        entries = list(numbers.entries(value[name]).reshape(-1))
        decide = Rational(*expected, *entries)
        wrong = [not decide.is_zero(a - b) for a, b in zip(entries, expected, strict=True)]
        zero = all(decide.is_zero(e) for e in expected)
        found = torch.tensor(wrong).reshape(x.shape)
        now = time.perf_counter()
        detail = (
            f"{int(found.sum())} of {found.numel()} entries differ{place(found, layout(problem, name))}"
            if any(wrong)
            else "identically zero" if zero else f"{found.numel()} differences brought to 0"
        )  # fmt: skip
        records.append(
            Record(
                rule.name, problem.name, name, "sympy", "symbol", "SymPy", "fail" if any(wrong) else "pass",
                failure_probability=0.0, worst_index=first(found), seconds=now - start, detail=detail,
            )
        )  # fmt: skip
        start = now
    return records


def block_diagonal(
    rule: Rule, problem: Problem, seed: int = 0, *, device: str = "cpu", **_: Any
) -> list[Record]:
    """The gradients against the literal formulas of the block-diagonal head formulation, over the field."""
    options = problem.on(device)
    plain = problem.plain and len(problem.output) == 2 and "bias" not in problem.shapes
    if not plain or rule.name == "blockdiag" or "n_kv_heads" in options:
        return []

    def run(numbers: Field) -> Found:
        args, dY = problem.draw(lambda _name, shape: numbers.random(*shape))
        value = rule.gradients(args, options, dY)
        return {
            name: (value.get(name), getattr(blockdiag, f"grad_{name}")(**args, dY=dY, **options))
            for name in args
        }

    return exact_records(rule, problem, "blockdiag", run, seed, device)


def identity(rule: Rule, problem: Problem, seed: int = 0, *, device: str = "cpu", **_: Any) -> list[Record]:
    """What must hold whatever the reference: see :mod:`gradderiv.checks.identities`."""
    records = exact_records(
        rule, problem, "identities", lambda numbers: identities(rule, problem, numbers), seed, device
    )
    mistake = aliasing(rule, problem, seed)
    verdict = "fail" if mistake else "pass"
    records.append(
        Record(
            rule.name,
            problem.name,
            "inputs unchanged",
            "identities",
            "float",
            "float64",
            verdict,
            detail=mistake,
        )
    )
    return records


ORACLES: dict[str, Oracle] = {
    "forward": forward,
    "autograd": autograd,
    "finite differences": differences,
    "dual": dual,
    "field": field,
    "second order": second_order,
    "sympy": sympy,
    "blockdiag": block_diagonal,
    "identities": identity,
}

# ---------------------------------------------------------------- shared


def _textbook(problem: Problem, options: Mapping[str, Any]) -> Callable[[Args], Tensor]:
    return lambda args: TEXTBOOK[problem.rule](**args, **options)


def _moving(args: Args, dots: Args) -> dict[str, Tensor]:
    numbers = Dual()
    return {name: numbers.make(x, dots.get(name)) for name, x in args.items()}


def _tangent(Y: Tensor) -> Tensor:
    assert isinstance(Y, DualTensor)
    return Y.tangent
