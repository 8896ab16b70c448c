"""Dual numbers p + ε t, ε² = 0: forward-mode differentiation through a program's forward code alone.

The tangent is carried by the arithmetic below autograd. A hand-written ``autograd.Function`` contributes its
``forward`` and nothing else, so its ``backward`` can be held against the tangent. Primal and tangent are tensors of any one kind: floats, or
residues for an exact derivative.

``detach`` keeps the tangent: it changes what autograd records, not the function. The maximum of a row is a shift, and its tangent is 0:
right for a program that does not depend on the shift, which the field tests with a second one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradderiv.numbers.number import Number, Parts, System
from gradderiv.numbers.smooth import Smooth


class DualTensor(Number):
    """A tensor of dual numbers."""

    @property
    def primal(self) -> Tensor:
        return self.main

    @property
    def tangent(self) -> Tensor:
        return self.full("t")


class Dual(System):
    """Dual numbers over floats or over another system."""

    tensor = DualTensor
    main = "p"
    rank = 2
    gates = True

    def __init__(self) -> None:
        self.fill = {"t": 0}

    def accepts(self, other: System) -> bool:
        return isinstance(other, Dual)

    def make(self, p: Tensor, t: Tensor | None = None) -> DualTensor:
        """p + ε t; without t a constant."""
        parts: Parts = {"p": p} if t is None else {"p": p, "t": t}
        return self._wrap(parts, p.dtype)

    def _wrap(self, parts: Parts, dtype: torch.dtype) -> DualTensor:
        out = self.wrap(parts, None, dtype)
        assert isinstance(out, DualTensor)
        return out

    def constant(self, value: Tensor, dtype: torch.dtype) -> Number:
        return self._wrap({"p": value}, dtype)

    def entering(self, value: Tensor, dtype: torch.dtype, like: Number) -> Number:
        p = like.main
        inner = isinstance(p, Number) and not isinstance(value, Number)
        return self._wrap({"p": p.system.entering(value, dtype, p) if inner else value}, dtype)

    def uninitialised(self, shape: torch.Size, like: Number) -> Number:
        p = like.main
        if isinstance(p, Number):
            return self._wrap({"p": p.system.uninitialised(shape, p)}, like.dtype)
        return super().uninitialised(shape, like)

    def born(self, value: Tensor, like: Number) -> Number:
        p = like.main
        return self._wrap({"p": p.system.born(value, p) if isinstance(p, Number) else value}, value.dtype)

    def _result(self, p: Tensor, tangents: list[Tensor | None], dtype: torch.dtype) -> Number:
        terms = [t for t in tangents if t is not None]
        if not terms:
            return self._wrap({"p": p}, dtype)
        t = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        return self._wrap({"p": p, "t": t.expand(p.shape)}, dtype)

    def add(self, x: Number, y: Number) -> Number:
        dtype = torch.promote_types(x.dtype, y.dtype)
        return self._result(x.main + y.main, [x.part("t"), y.part("t")], dtype)

    def neg(self, x: Number) -> Number:
        t = x.part("t")
        return self._result(-x.main, [None if t is None else -t], x.dtype)

    def sub(self, x: Number, y: Number) -> Number:
        t = y.part("t")
        dtype = torch.promote_types(x.dtype, y.dtype)
        return self._result(x.main - y.main, [x.part("t"), None if t is None else -t], dtype)

    def mul(self, x: Number, y: Number) -> Number:
        tx, ty = x.part("t"), y.part("t")
        tangents = [None if tx is None else tx * y.main, None if ty is None else x.main * ty]
        return self._result(x.main * y.main, tangents, torch.promote_types(x.dtype, y.dtype))

    def matmul(self, x: Number, y: Number) -> Number:
        tx, ty = x.part("t"), y.part("t")
        tangents = [None if tx is None else tx @ y.main, None if ty is None else x.main @ ty]
        return self._result(x.main @ y.main, tangents, torch.promote_types(x.dtype, y.dtype))

    def sum(self, x: Number, dims: tuple[int, ...], keepdim: bool) -> Number:
        t = x.part("t")
        tangent = None if t is None else t.sum(dims, keepdim=keepdim)
        return self._result(x.main.sum(dims, keepdim=keepdim), [tangent], x.dtype)

    def div(self, x: Number, y: Number) -> Number:
        tx, ty = x.part("t"), y.part("t")
        q = x.main / y.main
        tangents = [None if tx is None else tx / y.main, None if ty is None else -(q * ty / y.main)]
        return self._result(q, tangents, torch.promote_types(x.dtype, y.dtype))

    def reciprocal(self, x: Number) -> Number:
        r, t = torch.reciprocal(x.main), x.part("t")
        return self._result(r, [None if t is None else -(r * r * t)], x.dtype)

    def exp(self, x: Number) -> Number:
        E, t = torch.exp(x.main), x.part("t")
        return self._result(E, [None if t is None else E * t], x.dtype)

    def log(self, x: Number) -> Number:
        t = x.part("t")
        return self._result(torch.log(x.main), [None if t is None else t / x.main], x.dtype)

    def smooth(self, function: Smooth, x: Number) -> Number:
        y, t = function.value(x.main), x.part("t")
        return self._result(y, [None if t is None else function.slope(x.main, y) * t], x.dtype)

    def amax(self, x: Number, dims: tuple[int, ...], keepdim: bool) -> Number:
        return self._wrap({"p": torch.amax(x.main, dims, keepdim=keepdim)}, x.dtype)

    def maximum(self, x: Number, y: Number) -> Number:
        return self._wrap({"p": torch.maximum(x.main, y.main)}, x.dtype)

    def split_shift(self, x: Number, dims: tuple[int, ...]) -> tuple[Number | None, Number]:
        p = x.main
        if isinstance(p, Number):
            m, _ = p.system.split_shift(p, dims)
            if m is None:
                return None, x
        else:
            m = p.amax(dims, keepdim=True)
            m = m.masked_fill(m == -torch.inf, 0)
        shift = self._wrap({"p": m}, x.dtype)
        return shift, self.sub(x, shift)

    def is_minus_infinity(self, x: Number) -> Tensor:
        return x.main == -torch.inf

    def has_log(self, x: Number) -> bool:
        return isinstance(x.main, Number) and x.main.system.has_log(x.main)

    def is_zero(self, x: Number) -> Tensor:
        return x.main == 0

    def positive(self, x: Number) -> Number:
        p = x.main
        c = p.system.positive(p) if isinstance(p, Number) else (p > 0).to(p.dtype)
        return self._wrap({"p": c}, torch.bool)

    def truth(self, c: Number) -> Tensor | None:
        p = c.main
        return p.system.truth(p) if isinstance(p, Number) else p != 0

    def zero(self, x: Number) -> Number:
        return self._wrap({"p": x.main.system.zero(x.main)}, torch.bool)

    def remember(self, y: Number, c: Number) -> None:
        if isinstance(y.main, Number):
            y.main.system.remember(y.main, c.main)

    def remembered(self, y: Number) -> Number:
        p = y.main
        c = p.system.remembered(p) if isinstance(p, Number) else (p > 0).to(p.dtype)
        return self._wrap({"p": c}, torch.bool)

    def place(self, x: Number, dim: int | None, keepdim: bool) -> Tensor:
        p = x.main
        return p.system.place(p, dim, keepdim) if isinstance(p, Number) else p.argmax(dim, keepdim)

    def is_shift(self, x: Number) -> bool:
        p: Tensor = x.main
        return isinstance(p, Number) and p.system.is_shift(p)
