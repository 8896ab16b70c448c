"""Six ways to check a hand-written backward, each with its defaults: accepted, caught, or refused.

A checker is given a layer, inputs and a seed. *Refused* is the verdict of a checker that found nothing to hold against the layer and knows that it
could not have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradderiv.bench.layers import ARGUMENTS, OPTIONS, Layer
from gradderiv.checks.check import check
from gradderiv.checks.exact import Pairs, exactly
from gradderiv.checks.prove import prove
from gradderiv.checks.reference import TEXTBOOK
from gradderiv.numbers.field import Field

Checker = Callable[[Layer, list[Tensor], int], str]


def exact(layer: Layer, inputs: list[Tensor], seed: int) -> str:
    """The layer's gradients over prime fields against autograd of the textbook forward: no values, no scale, no tolerance."""

    def run(field: Field) -> Pairs:
        leaves = [field.random(*x.shape).requires_grad_() for x in inputs]
        dY = field.random(*inputs[0].shape)
        expected = torch.autograd.grad(_textbook(leaves), leaves, dY)
        found = torch.autograd.grad(layer(*leaves), leaves, dY)
        return dict(zip(ARGUMENTS, zip(found, expected, strict=True), strict=True))

    return "accepted" if all(o.equal for o in exactly(run, seed=seed).values()) else "caught"


def proof(layer: Layer, inputs: list[Tensor], seed: int) -> str:
    """:func:`gradderiv.prove`, in exact arithmetic; refuted counts as caught, inconclusive as refused."""
    verdict = prove(layer, tuple(inputs), names=tuple(ARGUMENTS), seed=seed).verdict
    return {"proved": "accepted", "refuted": "caught", "inconclusive": "refused"}[verdict]


def floats(layer: Layer, inputs: list[Tensor], seed: int) -> str:
    """:func:`gradderiv.check`, which has no reference and no typed tolerance."""
    verdict = check(layer, tuple(inputs), names=tuple(ARGUMENTS), seed=seed).verdict
    return {"pass": "accepted", "fail": "caught", "vacuous": "refused"}[verdict]


def gradcheck(layer: Layer, inputs: list[Tensor], seed: int) -> str:
    """``torch.autograd.gradcheck``: the whole Jacobian by differences."""
    return _gradcheck(layer, inputs, seed, fast_mode=False)


def gradcheck_fast(layer: Layer, inputs: list[Tensor], seed: int) -> str:
    """``gradcheck(fast_mode=True)``: the Jacobian along one random direction."""
    return _gradcheck(layer, inputs, seed, fast_mode=True)


def _gradcheck(layer: Layer, inputs: list[Tensor], seed: int, *, fast_mode: bool) -> str:
    torch.manual_seed(seed)
    leaves = tuple(x.clone().requires_grad_() for x in inputs)
    fine = torch.autograd.gradcheck(layer, leaves, fast_mode=fast_mode, raise_exception=False)
    return "accepted" if fine else "caught"


def cmp(layer: Layer, inputs: list[Tensor], seed: int) -> str:
    """Exact | approximate | maxdiff, against autograd of the textbook forward: the comparison of a well-known lecture."""
    generator = torch.Generator().manual_seed(seed)
    dY = torch.randn(inputs[0].shape, generator=generator, dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(_textbook(leaves), leaves, dY)
    found = torch.autograd.grad(layer(*leaves), leaves, dY)
    approximate = [bool(torch.allclose(f, e)) for f, e in zip(found, expected, strict=True)]
    return "accepted" if all(approximate) else "caught"


def _textbook(tensors: list[Tensor]) -> Tensor:
    return TEXTBOOK["multihead"](**dict(zip(ARGUMENTS, tensors, strict=True)), **OPTIONS)


OTHERS: dict[str, Checker] = {"gradcheck": gradcheck, "gradcheck fast": gradcheck_fast, "allclose": cmp}
CHECKERS: dict[str, Checker] = {"ours, exact": exact, "ours, float64": floats, **OTHERS}
PROVERS: dict[str, Checker] = {"prove": proof, "check": floats, **OTHERS}
