"""Whether floats see what the field refutes.

Over the field exp, roots and their like are opaque, and a program that leans on a relation of theirs may be refuted although it is right. In float64, at the inputs'
own values, such a program agrees with forward mode to rounding; a wrong one does not, and the errors say where and how it is wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gradderiv.checks.candidate import backward, in_words
from gradderiv.checks.compare import MULTIPLE, Comparison, compare
from gradderiv.checks.forward import Call, normal, record, run
from gradderiv.checks.inputs import cast
from gradderiv.checks.witnesses import AnotherFunction, CannotRun, dual, exact, taped
from gradderiv.numbers.dual import Dual
from gradderiv.numbers.rounding import Rounding, RoundingTensor

Place = tuple[str, str]  # aim and argument
HALF = 2.0**-26  # half the digits of float64
NOTHING = 2.0**-20  # of the largest gradient; less may be the rounding error of zero, as of a key bias


def in_floats(
    call: Call,
    outputs: Sequence[Tensor],
    aims: Mapping[str, Sequence[int]],
    seed: int,
    n_heads: int | None,
    witness: Call | None = None,
) -> dict[Place, Comparison]:
    """The verdict of float64 on every gradient: reverse mode through the forward alone, or where that cannot run dual numbers; through the forward of ``witness`` where that is given.

    Raises:
        CannotRun: neither can.
    """
    with torch.random.fork_rng(devices=[]):
        wide, values = _wide(call, seed)
        forward = wide if witness is None else _wide(witness, seed)[0]
        return _judged(wide, values, forward, _cotangents(outputs, aims, seed), seed, n_heads)


def roughly_in_floats(
    call: Call, outputs: Sequence[Tensor], aims: Mapping[str, Sequence[int]], seed: int
) -> dict[Place, Comparison]:
    """The same without rounding errors: whether floats agree to half their digits, in three passes.

    Raises:
        CannotRun: the forward alone cannot be recorded, or is another function there.
    """
    with torch.random.fork_rng(devices=[]):
        wide, values = _wide(call, seed)
        cotangents = _cotangents(outputs, aims, seed)
        found = {aim: backward(wide, given) for aim, given in cotangents.items()}
        try:
            tape = record(wide, Tensor.double)
            wanted = {
                aim: tape.gradients([None if g is None else g.double() for g in given])
                for aim, given in cotangents.items()
            }
        except Exception as error:
            raise CannotRun(in_words(error)) from error
    for y, z in zip(values, tape.outputs, strict=True):
        if not _close(y.detach(), z.detach()):
            raise AnotherFunction("the tape computes another function")
    outcomes = {}
    for aim, gradients in wanted.items():
        if found[aim].error:
            raise CannotRun(found[aim].error)
        largest = max(
            (float(g.abs().max()) for g in gradients.values() if g is not None and g.numel()), default=0.0
        )
        for name, expected in gradients.items():
            reference = exact(expected, wide.values[name]).reference
            value = found[aim].values[name]
            value = torch.zeros_like(reference) if value is None else value
            size = reference.abs().max() if reference.numel() else reference.sum()
            tolerance = HALF * size.clamp(min=NOTHING * largest)
            outcomes[aim, name] = compare(value, reference, tolerance, zero=True)
    return outcomes


def _close(y: Tensor, z: Tensor) -> bool:
    u = torch.finfo(y.dtype).eps ** 0.5
    return (
        bool(((y.double() - z.double()).abs() <= u * (1 + z.double().abs().max())).all())
        if y.numel()
        else True
    )


def _wide(call: Call, seed: int) -> tuple[Call, list[Tensor]]:
    """The function in float64, or in its own types where it insists on them; and what it returns."""
    with torch.no_grad():
        wide = _seeded(cast(call, torch.float64), seed)
        try:
            return wide, wide(wide.copies())
        except Exception:
            own = _seeded(call, seed)
            return own, own(own.copies())


def _judged(
    wide: Call,
    values: list[Tensor],
    forward: Call,
    cotangents: Mapping[str, list[Tensor | None]],
    seed: int,
    n_heads: int | None,
) -> dict[Place, Comparison]:
    found = {aim: backward(wide, given) for aim, given in cotangents.items()}
    wanted = {}
    try:
        tape = taped(forward, [y.detach() for y in values], list(cotangents.values()), seed)
        for aim, gradients, sigmas in zip(cotangents, tape.gradients, tape.sigmas, strict=True):
            for name, gradient in gradients.items():
                wanted[aim, name] = exact(gradient, wide.values[name]), sigmas[name]
    except CannotRun as reason:
        if isinstance(reason, AnotherFunction) and forward is wide:
            raise  # dropout inside a fused kernel has another mask, and dual numbers would not notice
        generator = torch.Generator().manual_seed(seed)
        directions = {n: normal(generator, wide.values[n], 2) for n in wide.moving}
        answers = dual(forward, list(cotangents.values()), directions)
        for aim, answer in zip(cotangents, answers, strict=True):
            for name, expected in answer.items():
                wanted[aim, name] = expected, torch.zeros_like(wide.values[name])
    outcomes = {}
    for (aim, name), (expected, sigma) in wanted.items():
        if found[aim].error:
            raise CannotRun(found[aim].error)
        outcomes[aim, name] = expected.judge(found[aim].values[name], sigma, False, n_heads)
    return outcomes


def _seeded(call: Call, seed: int) -> Call:
    """The same with torch's generator at ``seed`` for every call: one dropout mask for all."""

    def function(*args: Any, **kwargs: Any) -> Any:
        torch.default_generator.manual_seed(seed)
        return call.function(*args, **kwargs)

    return dataclasses.replace(call, function=function)


def _cotangents(
    outputs: Sequence[Tensor], aims: Mapping[str, Sequence[int]], seed: int
) -> dict[str, list[Tensor | None]]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [normal(generator, y) for y in outputs]
    return {aim: [g if k in which else None for k, g in enumerate(drawn)] for aim, which in aims.items()}


def outputs_in_floats(call: Call, reference: Call, seed: int) -> list[Comparison]:
    """Every output of the function against that of a reference, with the rounding errors of the reference as tolerance.

    Raises:
        CannotRun: the reference does something that running errors do not know.
    """
    with torch.random.fork_rng(devices=[]):
        _, values = _wide(call, seed)
        other, _ = _wide(reference, seed)
        try:
            wanted = record(other, Rounding(torch.float64).make).outputs
        except Exception as error:
            raise CannotRun(in_words(error)) from error
    found = []
    for value, y in zip(values, wanted, strict=True):
        expected = y.value if isinstance(y, RoundingTensor) else y
        sigma = y.error if isinstance(y, RoundingTensor) else torch.zeros_like(y)
        found.append(compare(value.detach(), expected.detach(), MULTIPLE * sigma))
    return found


def tangent_in_floats(call: Call, k: int, seed: int) -> Comparison:
    """The tangent of output k by torch's forward mode, in float64, against dual numbers with the rounding errors of the forward.

    Raises:
        CannotRun: one of the two cannot run.
    """
    wide = cast(call, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    directions = {n: normal(generator, wide.values[n]) for n in wide.moving}
    numbers, duals = Rounding(torch.float64), Dual()
    try:
        with torch.random.fork_rng(devices=[]), forward_ad.dual_level():
            torch.default_generator.manual_seed(seed)
            moved = {n: forward_ad.make_dual(wide.values[n].clone(), t) for n, t in directions.items()}
            y = wide(moved)[k]
            value = forward_ad.unpack_dual(y).tangent
            torch.default_generator.manual_seed(seed)
            points = {
                n: duals.make(numbers.make(wide.values[n].clone()), numbers.make(t))
                for n, t in directions.items()
            }
            outputs, _ = run(wide, points, lambda x: duals.make(numbers.make(x)))
    except Exception as error:
        raise CannotRun(in_words(error)) from error
    wanted = outputs[k].tangent  # type: ignore[attr-defined]
    return compare(torch.zeros_like(y) if value is None else value, wanted.value, MULTIPLE * wanted.error)
