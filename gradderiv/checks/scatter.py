"""The rounding errors of a function that has operations outside the table: measured, by Monte Carlo arithmetic.

The function and its reverse mode run in float64 several times, and every operation adds to its result an independent normal error of the size that rounding
makes in the format asked for (Parker 1997). The scatter of the gradients is the standard deviation that
:mod:`gradderiv.numbers.rounding` computes where it can; there it is used, because it needs one run and no luck.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import enable_reentrant_dispatch

from gradderiv.checks.forward import Call, Recorded, record
from gradderiv.checks.program import Through
from gradderiv.checks.values import Values
from gradderiv.numbers.number import Number
from gradderiv.numbers.rounding import ACCUMULATED_IN
from gradderiv.numbers.structure import STRUCTURE, VIEWS
from gradderiv.numbers.tape import TapeTensor

aten = torch.ops.aten

RUNS = 16
SMALLEST = 2.0**-36  # of the errors that are added: float64's own would drown in those of the runs themselves
PRODUCTS = {aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1, aten.baddbmm.default: 1}
SUMS = {aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim}
EXACT = (
    VIEWS | STRUCTURE | {aten.where.self, aten.masked_fill.Scalar, aten.neg.default, aten._to_copy.default}
)


def scatter(
    call: Call, cotangents: list[list[Tensor | None]], dtype: torch.dtype, seed: int
) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """The standard deviations of rounding errors in ``dtype``: of the gradients for each list of cotangents, and of the outputs."""
    u = torch.finfo(dtype).eps / 2
    added = max(u, SMALLEST)
    exact = _run(record(call, Tensor.double), cotangents)
    squares = [torch.zeros_like(x) for x in exact]
    for k in range(RUNS):
        generator = torch.Generator().manual_seed(1000 * seed + k)
        noisy = partial(Noisy, dtype, added, generator)
        for square, x, y in zip(
            squares, exact, _run(record(call, Tensor.double, values=noisy), cotangents), strict=True
        ):
            square += (x - y).square()
    found = [_at_least((s / RUNS).sqrt() * (u / added), x, u) for s, x in zip(squares, exact, strict=True)]
    count = len(found) - len(cotangents) * len(call.moving)
    outputs, gradients = found[:count], iter(found[count:])
    return [{name: next(gradients) for name in call.moving} for _ in cotangents], outputs


def _at_least(sigma: Tensor, x: Tensor, u: float) -> Tensor:
    """Not less than the roundoff of the entry itself, nor of a typical one: errors may cancel in this formula and not in another."""
    return sigma.maximum(u * x.abs()).maximum(2 * u * x.square().mean().sqrt())


def _run(recorded: Recorded, cotangents: list[list[Tensor | None]]) -> list[Tensor]:
    """The outputs, and the gradients for all cotangents, in one row."""
    out = [y.detach() for y in recorded.outputs]
    for several in cotangents:
        gradients = recorded.gradients([None if g is None else g.double() for g in several])
        for name, g in gradients.items():
            out.append(torch.zeros_like(recorded.leaves[name]) if g is None else g.detach())
    return out


class Noisy(Values):
    """Every operation is off by as much as rounding."""

    def __init__(self, dtype: torch.dtype, added: float, generator: torch.Generator, *args: Any) -> None:
        super().__init__(*args)
        self.added, self.generator = added, generator
        ratio = torch.finfo(ACCUMULATED_IN.get(dtype, dtype)).eps / torch.finfo(dtype).eps
        self.accumulated = added * ratio
        self.backward = not args

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func in EXACT or func._schema.is_mutable:
            return out
        if isinstance(out, tuple):
            return tuple(self._off(func, args, x) for x in out)
        return self._off(func, args, out)

    def _off(self, func: Any, args: Any, out: Any) -> Any:
        if not isinstance(out, Tensor) or out.dtype != torch.float64:
            return out
        if not isinstance(out, Number):
            return out + self._error(func, args, out) if self.backward else out
        error = self._error(func, args, out.main.detach())
        with Through(), enable_reentrant_dispatch(), torch.enable_grad():
            return out.system.wrap({"x": out.main + error}, None, torch.float64)

    def _error(self, func: Any, args: Any, out: Tensor) -> Tensor:
        size = out.abs()
        if "backward" in func._schema.name and out.dim():
            size = size.amax(-1, keepdim=True).expand_as(out)  # a fused formula, with its own cancellations
        if func is aten._softmax_backward_data.default:
            g, P, dim = args[:3]
            size = P.abs() * (g.abs() + (P * g).abs().sum(dim, keepdim=True))
        variance = (self.added * size).square()
        if func in PRODUCTS:
            x, y = (_plain(a) for a in args[PRODUCTS[func] : PRODUCTS[func] + 2])
            variance = variance + x.shape[-1] * (self.accumulated * (x.abs() @ y.abs())).square()
        if func in SUMS:
            x = _plain(args[0])
            length = x.numel() / max(out.numel(), 1)
            total = func(x.abs(), *args[1:])
            variance = variance + length * (self.accumulated * total).square()
        draw = torch.randn(out.shape, generator=self.generator, dtype=torch.float64).to(out.device)
        return (variance.sqrt() * draw).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _plain(x: Any) -> Tensor:
    return (x.main if isinstance(x, TapeTensor) else x).detach().double()
