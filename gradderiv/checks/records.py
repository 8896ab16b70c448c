"""What a comparison becomes in a report: the record of a float comparison, and those of a run over the field."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gradderiv.checks.catalog import Rule
from gradderiv.checks.compare import Comparison, compare
from gradderiv.checks.diagnose import Layout, place
from gradderiv.checks.exact import Outcome, Pairs, Start, exactly
from gradderiv.checks.problems import Problem
from gradderiv.checks.report import Record
from gradderiv.numbers.field import Field

#: What 1/√d_k of small heads asks for; primes that have them spare a run that finds out.
ROOTS = frozenset({2, 3, 5})
# As Pairs, with a gradient that is missing or misshapen.
Found = Mapping[str, tuple[Tensor | None, Tensor]]


def layout(problem: Problem, name: str) -> Layout:
    """On which axis of an argument, of its gradient, or of an identity about it, the heads lie, and which rows may attend to nothing."""
    name = name.rpartition(", ")[2] if name.rpartition(", ")[2] in problem.shapes else name
    options, shape = problem.options, problem.shapes.get(name, ())
    mask = options.get("mask")
    masked: tuple[int, ...] = ()
    if mask is not None and name in ("X", "Q", "S", "bias", "Y", "jvp"):
        masked = tuple((~mask.any(-1)).nonzero().flatten().tolist()) if mask.dim() == 2 else ()
    if problem.rule == "attention" and len(shape) > 2:
        return Layout(shape[-3], -3, masked)
    n_heads = options.get("n_heads")
    n_kv_heads = options.get("n_kv_heads") or n_heads
    if name in ("W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V"):
        return Layout(n_heads if name.endswith("Q") else n_kv_heads, -1)
    if name.startswith("⟨dW_"):  # one inner product for each key/value head
        return Layout(n_kv_heads, -1)
    if name in ("W_O", "bias"):
        return Layout(n_heads, -2 if name == "W_O" else -3, masked)
    return Layout(masked=masked)


def misfit_of(value: Tensor | None, expected: Tensor) -> str | None:
    """Why a gradient cannot be compared at all."""
    if value is None:
        return "no gradient was returned"
    if value.shape != expected.shape:
        return f"the shape is {tuple(value.shape)}, should be {tuple(expected.shape)}"
    return None


def first(wrong: Tensor) -> tuple[int, ...] | None:
    return tuple(wrong.nonzero()[0].tolist()) if bool(wrong.any()) else None


def compared(
    problem: Problem, name: str, value: Tensor | None, expected: Tensor, allowed: Tensor
) -> Comparison:
    if value is None:
        return Comparison("fail", float("inf"), float("inf"), 0.0, None, str(misfit_of(None, expected)))
    return compare(value, expected, allowed, zero=name in problem.zeros, layout=layout(problem, name))


def float_record(
    rule: Rule, problem: Problem, argument: str, oracle: str, dtype: torch.dtype, found: Comparison
) -> Record:
    name = str(dtype).removeprefix("torch.")
    expected = found.verdict == "vacuous" and dtype in problem.vacuous
    return Record(
        rule.name, problem.name, argument, oracle, "float", name, expected=expected, **found.fields()
    )


def beside_wider(record: Record, records: Sequence[Record]) -> Record:
    """What a narrow type cannot show is expected to be vacuous there, if a wider type shows it on the same problem."""

    def roundoff(r: Record) -> float:
        return torch.finfo(getattr(torch, r.dtype)).eps

    wider = [
        r.dtype
        for r in records
        if r.argument == record.argument and r.verdict == "pass" and roundoff(r) < roundoff(record)
    ]
    if record.verdict != "vacuous" or not wider:
        return record
    return dataclasses.replace(record, expected=True, detail=f"{record.detail}; {wider[0]} shows it")


def exact_records(
    rule: Rule,
    problem: Problem,
    oracle: str,
    run: Callable[[Field], Found],
    seed: int,
    device: str,
    *,
    lanes: int | None = None,
) -> list[Record]:
    """The outcome over the field of every pair that ``run`` returns, as records; a gradient that is missing or misshapen fails."""
    start = time.perf_counter()
    misfits: dict[str, str] = {}

    def fitting(numbers: Field) -> Pairs:
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (value, expected) in run(numbers).items():
            misfit = misfit_of(value, expected)
            if value is None or misfit is not None:
                misfits[name] = str(misfit)
            else:
                pairs[name] = (value, expected)
        return pairs

    outcomes = exactly(fitting, seed=seed, device=device, start=Start(ROOTS, lanes or problem.lanes))
    seconds = (time.perf_counter() - start) / max(len(outcomes), 1)
    return [
        Record(rule.name, problem.name, name, oracle, "field", "F_p", "fail", detail=misfit)
        for name, misfit in misfits.items()
    ] + [
        Record(
            rule.name, problem.name, name, oracle, "field", f"F_p, {o.lanes} lanes", "pass" if o.equal else "fail",
            worst_index=first(o.wrong | o.moved), failure_probability=2.0**o.log2_failure, seconds=seconds,
            detail=_say(o, layout(problem, name)),
        )
        for name, o in outcomes.items()
    ]  # fmt: skip


def _say(o: Outcome, layout: Layout) -> str:
    if o.equal:
        return "identically zero" if o.zero else f"{o.wrong.numel()} entries equal"
    if bool(o.moved.any()):
        return f"{int(o.moved.sum())} entries depend on the row shift under exp, which must cancel"
    text = f"{int(o.wrong.sum())} of {o.wrong.numel()} entries differ{place(o.wrong, layout)}"
    return f"{text}; every entry is {o.factor} × the right one" if o.factor else text
