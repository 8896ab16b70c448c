"""Numbers that are SymPy expressions: a proof for a tiny size, entry by entry, and something to look at.

A tensor holds indices into a table of expressions, so views, slices and in-place writes are those of ordinary tensors. The maximum of a row is the
logarithm of an unnamed positive symbol: the same for the same row, and different for others.

The exponential is :class:`Exp`, an opaque function that is its own derivative: SymPy's exp merges exp(x)·exp(2x) into exp(3x), after which
a sum of fractions no longer cancels. :mod:`gradderiv.numbers.rational` decides whether a difference of two expressions is zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import sympy as sp
import torch
from torch import Tensor

from gradderiv.errors import NoExactMeaning
from gradderiv.numbers.constants import read
from gradderiv.numbers.number import Number, System

KAPPA, LN2 = sp.symbols("kappa ln2", positive=True)  # 1/√π and log 2, of which nothing is used


class Exp(sp.Function):  # type: ignore[misc]
    """exp as an opaque function: Exp′ = Exp, Exp(0) = 1, Exp(−∞) = 0, Exp(a + log u) = u·Exp(a), and nothing else."""

    @classmethod
    def eval(cls, argument: sp.Expr) -> sp.Expr | None:
        if argument == -sp.oo:
            return sp.Integer(0)
        logs: list[sp.Expr] = []
        rest: list[sp.Expr] = []
        for term in sp.Add.make_args(argument):
            coefficient, factor = term.as_coeff_Mul()
            is_log = isinstance(factor, sp.log) and coefficient.is_Integer
            (logs if is_log else rest).append(factor.args[0] ** coefficient if is_log else term)
        if logs:
            return sp.Mul(*logs) * cls(sp.Add(*rest))
        return sp.Integer(1) if argument == 0 else None

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return self


class SymbolTensor(Number):
    """A tensor of SymPy expressions."""


class Symbols(System):
    """A table of expressions, and the tensors whose entries stand in it."""

    tensor = SymbolTensor
    main = "i"
    rank = 1

    def __init__(self) -> None:
        self.fill = {}
        self.expressions: list[sp.Expr] = []
        self.index: dict[sp.Expr, int] = {}
        self.empty = 0
        self.shifts: dict[tuple[int, ...], sp.Expr] = {}

    # ---- in and out

    def symbols(self, name: str, *shape: int) -> Number:
        """The tensor of real symbols name_ij (indices from 1)."""
        indices = itertools.product(*(range(1, n + 1) for n in shape))
        entries = [sp.Symbol(f"{name}_{''.join(map(str, i))}" if i else name, real=True) for i in indices]
        return self._make(entries, shape)

    def entries(self, x: Tensor) -> np.ndarray[Any, Any]:
        """The expressions, as an object array of x's shape."""
        assert isinstance(x, Number)
        out = np.empty(tuple(x.shape), dtype=object)
        out.reshape(-1)[:] = [self.expressions[i] for i in x.main.reshape(-1).tolist()]
        return out

    def constant(self, value: Tensor, dtype: torch.dtype) -> Number:
        return self._make([_exact(v, value.dtype) for v in value.reshape(-1).tolist()], tuple(value.shape))

    def show(self, x: Number) -> str:
        return str(self.entries(x).tolist())

    def _make(self, entries: list[sp.Expr], shape: Any) -> Number:
        return self.wrap({"i": torch.tensor([self._intern(e) for e in entries]).reshape(shape)})

    def _intern(self, e: sp.Expr) -> int:
        if e not in self.index:
            self.index[e] = len(self.expressions)
            self.expressions.append(e)
        return self.index[e]

    def uninitialised(self, shape: torch.Size, like: Number) -> Number:
        self.empty += 1
        return self.symbols(f"empty{self.empty}", *shape)

    # ---- arithmetic

    def _map(self, f: Callable[..., sp.Expr], *operands: Number) -> Number:
        parts = torch.broadcast_tensors(*(x.main for x in operands))
        known: dict[tuple[int, ...], int] = {}
        out = []
        for key in zip(*(p.reshape(-1).tolist() for p in parts), strict=True):
            if key not in known:
                known[key] = self._intern(f(*(self.expressions[i] for i in key)))
            out.append(known[key])
        return self.wrap({"i": torch.tensor(out).reshape(parts[0].shape)})

    def add(self, x: Number, y: Number) -> Number:
        return self._map(lambda a, b: a + b, x, y)

    def neg(self, x: Number) -> Number:
        return self._map(lambda a: -a, x)

    def mul(self, x: Number, y: Number) -> Number:
        return self._map(lambda a, b: a * b, x, y)

    def matmul(self, x: Number, y: Number) -> Number:
        a, b = self.entries(x), self.entries(y)
        out = np.vectorize(
            lambda p, q: sp.Add(*(u * v for u, v in zip(p, q, strict=True))),
            signature="(k),(k)->()",
            otypes=[object],
        )(a[..., :, None, :], np.swapaxes(b, -1, -2)[..., None, :, :])
        return self._make(list(np.asarray(out, dtype=object).reshape(-1)), out.shape)

    def sum(self, x: Number, dims: tuple[int, ...], keepdim: bool) -> Number:
        return self._reduce(lambda entries: sp.Add(*entries), x, dims, keepdim)

    def reciprocal(self, x: Number) -> Number:
        return self._map(lambda a: 1 / a, x)

    def exp(self, x: Number) -> Number:
        return self._map(lambda a: Exp(sp.expand(a)), x)  # one form for one argument

    def log(self, x: Number) -> Number:
        return self._map(lambda a: sp.log(a) if a != 0 else -sp.oo, x)

    def sqrt(self, x: Number) -> Number:
        return self._map(sp.sqrt, x)

    def rsqrt(self, x: Number) -> Number:
        return self._map(lambda a: 1 / sp.sqrt(a), x)

    def amax(self, x: Number, dims: tuple[int, ...], keepdim: bool) -> Number:
        return self._reduce(self._shift, x, dims, keepdim)

    def maximum(self, x: Number, y: Number) -> Number:
        return self._map(lambda a, b: self._shift([a, b]), x, y)

    def _shift(self, entries: list[sp.Expr]) -> sp.Expr:
        finite = [e for e in entries if e != -sp.oo]
        if not finite:
            return -sp.oo
        key = tuple(sorted(self._intern(e) for e in finite))
        if key not in self.shifts:
            self.shifts[key] = sp.log(sp.Symbol(f"u_{len(self.shifts) + 1}", positive=True))
        return self.shifts[key]

    def _reduce(
        self, f: Callable[[list[sp.Expr]], sp.Expr], x: Number, dims: tuple[int, ...], keepdim: bool
    ) -> Number:
        kept = [d for d in range(x.dim()) if d not in dims]
        rows = x.main.permute(*kept, *dims).reshape(*(x.shape[d] for d in kept), -1)
        out = [f([self.expressions[i] for i in row]) for row in rows.reshape(-1, rows.shape[-1]).tolist()]
        shape = (
            [1 if d in dims else n for d, n in enumerate(x.shape)] if keepdim else [x.shape[d] for d in kept]
        )
        return self._make(out, shape)

    def is_minus_infinity(self, x: Number) -> Tensor:
        return torch.tensor([e == -sp.oo for e in self.entries(x).reshape(-1)]).reshape(x.shape)


def _exact(value: Any, dtype: torch.dtype) -> sp.Expr:
    if isinstance(value, bool):
        return sp.Integer(int(value))
    if value == float("-inf"):
        return -sp.oo
    if value != value or value == float("inf"):
        raise NoExactMeaning(f"the constant {value} is no number")
    reading = read(float(value), dtype if dtype.is_floating_point else torch.float64)
    free = KAPPA**reading.pi * LN2**reading.ln2
    return sp.Rational(reading.ratio.numerator, reading.ratio.denominator) * sp.sqrt(reading.root) * free
