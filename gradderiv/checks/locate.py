"""Where a backward that the field refutes is wrong, and whether floats see it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from gradderiv.checks.compare import Comparison
from gradderiv.checks.confirm import in_floats, roughly_in_floats
from gradderiv.checks.exact import Outcome, Pairs
from gradderiv.checks.report import Record
from gradderiv.checks.runs import SCALAR, entries, in_field, paired, pairing
from gradderiv.checks.witnesses import CannotRun
from gradderiv.numbers.field import Field

if TYPE_CHECKING:
    from gradderiv.checks.prover import Prover

CASTS = 64  # units in the last place of the narrowest type: what casts in a backward cost
OTHER_WAY = (
    "The function may go another way on floats: by the type of its arguments, by an error that it catches, by a comparison that these values decide "
    "(mask == 0), or by a constant of a narrower type"
)


def locate(
    prover: Prover, wrong: list[str], found: Mapping[str, Outcome], order: str, loose: set[int]
) -> dict[tuple[str, str], Record]:
    """A record for every argument of the aims that failed as a whole; outputs without history have no part in it."""
    aims = {aim: [k for k in prover.aims[aim] if k not in loose] for aim in wrong}
    prover.step(f"{order}looking for the place")
    by_entry = _entries(prover, aims)
    shift = [aim for aim in wrong if not bool(found[aim].wrong.any())]
    try:
        floats = in_floats(prover.call, prover.outputs, aims, prover.seed, prover.n_heads)
        unknown = ""
    except CannotRun as reason:
        floats, unknown = {}, f"float64 could not be asked: {reason}"
    records = {}
    for aim in wrong:
        everything_fits = all(by_entry[aim, n].equal for n in prover.call.moving)
        for name in prover.call.moving:
            outcome, seen = by_entry[aim, name], floats.get((aim, name))
            if outcome.equal and not everything_fits:
                records[aim, name] = prover.record(order + aim, name, "tape", "proved", outcome=outcome)
                continue
            verdict, detail = _weighed(prover, seen, unknown, aim in shift)
            records[aim, name] = prover.record(
                order + aim, name, "tape", verdict, detail, outcome=outcome, seen=seen
            )
    return records


def on_floats(prover: Prover, order: str, loose: set[int]) -> None:
    """Withdraw what is proved of the numbers where the function, called on floats, has another gradient.

    It may go another way there: by the type of its arguments, because it caught an error, or by a comparison that only these values decide.
    """
    aims = {aim: [k for k in which if k not in loose] for aim, which in prover.aims.items()}
    try:
        floats = roughly_in_floats(prover.call, prover.outputs, aims, prover.seed)
        if not prover.large and any(seen.verdict == "fail" for seen in floats.values()):
            floats = in_floats(prover.call, prover.outputs, aims, prover.seed, prover.n_heads)
    except CannotRun:
        return
    for k, record in enumerate(prover.records):
        seen = floats.get((record.problem.removeprefix(order), record.argument))
        if record.verdict == "proved" and seen is not None and withdrawn(prover, seen):
            detail = f"it is right on exact numbers, and on float64 at these inputs it is not: {seen.detail} {OTHER_WAY}"
            prover.records[k] = prover.record(
                record.problem, record.argument, record.oracle, "inconclusive", detail, seen=seen
            )


def withdrawn(prover: Prover, seen: Comparison) -> bool:
    """Whether floats differ by more than the casts on the way explain."""
    rounding = CASTS * max((torch.finfo(t).eps for t in prover.runs.casts), default=0.0)
    return seen.verdict == "fail" and not seen.max_rel_error <= rounding


def _weighed(prover: Prover, seen: Comparison | None, unknown: str, moved: bool) -> tuple[str, str]:
    """Refuted, or inconclusive and why."""
    if seen is not None and seen.verdict == "fail":
        cuts = ", ".join(prover.runs.cuts)
        if cuts and not _hand_written(prover):
            return (
                "inconclusive",
                f"the graph is cut by detach or no_grad ({cuts}), and forward mode is not. {seen.detail}",
            )
        also = f" The graph is cut by detach or no_grad, too ({cuts})." if cuts else ""
        return "refuted", seen.detail + also
    if seen is None:
        return "inconclusive", f"the field refutes it, and {unknown or 'float64 was not asked'}"
    if seen.verdict == "vacuous":
        return (
            "inconclusive",
            f"the field refutes it, and in float64 {seen.detail}: the inputs' own values show nothing",
        )
    if moved:
        return (
            "inconclusive",
            "the gradient depends on the maximum of a row, or on where it stands, other than as a shift that cancels",
        )
    return "inconclusive", f"different residues, yet float64 agrees to rounding: {_leans_on(prover)}"


def _leans_on(prover: Prover) -> str:
    """What the likely reason is."""
    field = prover.field
    if field is not None and field.fills and not field.fills_are_minus_infinity:
        fills = ", ".join(f"{fill:g}" for fill in field.fills)
        return (
            f"the fill {fills} is a number here, and −∞ for floats; fills_are_minus_infinity=True reads it so"
        )
    return (
        "the program leans on a relation that the opaque functions do not have (exp(a + b) = exp(a) exp(b) split over two calls, "
        "√(uv) = √u √v, √(x²) = |x|, mean(x̂²) = 1), or on an ε below rounding"
    )


def _entries(prover: Prover, aims: Mapping[str, Sequence[int]]) -> dict[tuple[str, str], Outcome]:
    """Entry by entry against reverse mode through the forward alone; else argument by argument against forward mode."""

    def by_entry(field: Field) -> Pairs:
        point = prover.runs.point(field)
        _, gradients = prover.runs.backward(field, point, aims)
        wanted = prover.runs.taped(field, point, aims)
        return entries(field, point.values, gradients, wanted)

    def by_argument(field: Field) -> Pairs:
        point = prover.runs.point(field)
        outputs, gradients = prover.runs.backward(field, point, aims)
        pairs = {}
        for name in prover.call.moving:
            _, tangents = prover.runs.forward(field, point, [name])
            for aim, which in aims.items():
                left = pairing({name: gradients[aim][name]}, point.tangents)
                right = paired(tangents, point.cotangents, [k for k in which if outputs[k].requires_grad])
                pairs[f"{aim}|{name}"] = in_field(field, left, SCALAR), in_field(field, right, SCALAR)
        return pairs

    try:
        found = prover.run(by_entry)
    except Exception:
        found = prover.run(by_argument)
    return {(aim, name): found[f"{aim}|{name}"] for aim in aims for name in prover.call.moving}


def _hand_written(prover: Prover) -> bool:
    """Whether a hand-written ``autograd.Function`` is in the graph."""
    inputs = prover.call.copies()
    for name in prover.call.moving:
        inputs[name].requires_grad_()
    todo = [y.grad_fn for y in prover.call(inputs)]
    seen: set[Any] = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if hasattr(node, "_forward_cls"):
            return True
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
    return False
