"""What may be asked beyond the first derivative: a jvp, a reference, the derivative of the backward."""

from __future__ import annotations

import contextlib

from gradderiv.checks.candidate import backward
from gradderiv.checks.compare import Comparison
from gradderiv.checks.confirm import in_floats, outputs_in_floats, tangent_in_floats
from gradderiv.checks.exact import Pairs
from gradderiv.checks.forward import Call
from gradderiv.checks.inputs import seeded_call
from gradderiv.checks.locate import OTHER_WAY, withdrawn
from gradderiv.checks.prover import ALL, Prover
from gradderiv.checks.runs import Runs, entries, in_field
from gradderiv.checks.second import second_order
from gradderiv.checks.witnesses import CannotRun
from gradderiv.numbers.field import Field


def jvp(prover: Prover) -> None:
    """The tangents by torch's forward mode, which runs a hand-written jvp, against dual numbers, which do not."""

    def run(field: Field) -> Pairs:
        point = prover.runs.point(field)
        prover.step(f"jvp, {field.lanes} primes")
        values, tangents = prover.runs.custom_forward(field, point)
        again, wanted = prover.runs.forward(field, point)
        return {
            name: (in_field(field, tangents[k], values[k]), in_field(field, wanted[k], again[k]))
            for k, name in enumerate(prover.names)
        }

    found = prover.exactly(run, "jvp: ")
    if found and not all(o.equal for o in found.values()):
        found = prover.with_odd_exponentials(run, found) or found
    for name, outcome in (found or {}).items():
        if outcome.equal:
            prover.proved(f"jvp: {name}", "all", "dual", outcome)
        else:
            verdict, detail = _weighed_jvp(prover, prover.names.index(name))
            prover.records.append(
                prover.record(f"jvp: {name}", "all", "dual", verdict, detail, outcome=outcome)
            )


def _weighed_jvp(prover: Prover, k: int) -> tuple[str, str]:
    try:
        seen = tangent_in_floats(prover.call, k, prover.seed)
    except CannotRun as reason:
        return "inconclusive", f"the field refutes it, and float64 could not be asked: {reason}"
    if seen.verdict == "fail":
        return "refuted", seen.detail
    return (
        "inconclusive",
        "different residues, yet float64 agrees to rounding: a relation that the opaque functions do not have",
    )


def against(prover: Prover, reference: Call) -> None:
    """Outputs and gradients against those of another function."""
    reference, wanted = seeded_call(reference, prover.seed)
    shapes = [tuple(y.shape) for y in prover.outputs], [tuple(y.shape) for y in wanted]
    if reference.moving != prover.call.moving:
        detail = (
            f"the function is differentiated by {', '.join(prover.call.moving)}, the reference by {', '.join(reference.moving)}: "
            "only the gradients of the same arguments can be compared"
        )
        prover.records.append(prover.record(ALL, "all", "reference", "inconclusive", detail))
        return
    if shapes[0] != shapes[1]:
        detail = f"the shapes of the outputs are {shapes[0]}, the reference's {shapes[1]}"
        prover.records.append(prover.record(ALL, "all", "reference", "refuted", detail))
        return
    other = Runs(reference, wanted, prover.seed)

    def run(field: Field) -> Pairs:
        point = prover.runs.point(field)
        prover.step(f"reference, {field.lanes} primes")
        values, gradients = prover.runs.backward(field, point, prover.aims)
        theirs, wanted = other.backward(field, point, prover.aims)
        pairs = {
            f"value of {name}|": (
                in_field(field, values[k], values[k]),
                in_field(field, theirs[k], theirs[k]),
            )
            for k, name in enumerate(prover.names)
        }
        return pairs | entries(field, point.values, gradients, wanted)

    found = prover.exactly(run, "reference: ")
    if found is None:
        return
    if not all(o.equal for o in found.values()):
        found = prover.with_odd_exponentials(run, found) or found
    wrong = {key for key, outcome in found.items() if not outcome.equal}
    values, gradients = _beside_in_floats(prover, reference)
    for key, outcome in found.items():
        problem, _, name = key.partition("|")
        argument = name or "value"
        problem = problem.removeprefix("value of ")
        seen = (
            gradients.get((problem, name))
            if name
            else dict(zip(prover.names, values, strict=False)).get(problem)
        )
        if key not in wrong and (seen is None or not withdrawn(prover, seen)):
            prover.proved(problem, argument, "reference", outcome)
            continue
        if key not in wrong:
            assert seen is not None
            detail = f"it equals the reference's on exact numbers, and in float64 at these inputs it does not: {seen.detail} {OTHER_WAY}"
            prover.records.append(
                prover.record(problem, argument, "reference", "inconclusive", detail, seen=seen)
            )
            continue
        if seen is not None and seen.verdict == "fail":
            verdict, detail = (
                "refuted",
                f"another {argument if not name else 'gradient'} than the reference's. {seen.detail}",
            )
        elif name and seen is None and any(v.verdict == "fail" for v in values):
            verdict, detail = (
                "refuted",
                "another gradient than the reference's, whose values are other ones, too",
            )
        else:
            verdict, detail = (
                "inconclusive",
                "other residues than the reference's, yet float64 sees no difference beyond rounding",
            )
        prover.records.append(
            prover.record(problem, argument, "reference", verdict, detail, outcome=outcome, seen=seen)
        )


def _beside_in_floats(
    prover: Prover, reference: Call
) -> tuple[list[Comparison], dict[tuple[str, str], Comparison]]:
    """Values and gradients against the reference's in float64; nothing where that cannot be had."""
    values: list[Comparison] = []
    gradients: dict[tuple[str, str], Comparison] = {}
    with contextlib.suppress(CannotRun):
        values = outputs_in_floats(prover.call, reference, prover.seed)
        gradients = in_floats(
            prover.call, prover.outputs, prover.aims, prover.seed, prover.n_heads, witness=reference
        )
    return values, gradients


def double_backward(prover: Prover) -> None:
    """The first-order gradients as a function of inputs and cotangents, and its backward."""
    call, outputs = second_order(prover.call, prover.outputs, prover.aims[ALL], prover.seed)
    raised = backward(call, list(outputs)).error
    if raised:
        prover.undecided(
            f"second order: {ALL}",
            "all",
            "dual",
            f"differentiating the backward raises {raised}, in floats too",
        )
        return
    linear = set(call.moving)  # a gradient that does not depend on an argument is nothing to wonder about
    inner = Prover(call, outputs, prover.settings, linear, prover.n_heads, prover.progress)
    inner.runs.lines, inner.names = prover.runs.lines, [f"gradient {k}" for k in range(len(outputs))]
    inner.aims = {ALL: list(range(len(outputs)))}
    inner.first_order("second order: ")
    prover.records += inner.records
    prover.exponents |= inner.exponents
    prover.remarks |= inner.remarks
