"""Floats that carry the size of their own rounding error: where tolerances come from.

An entry is a value v, computed in float64, and the standard deviation e of what the same program loses in a format of unit roundoff u, if every
operation errs by an independent amount of standard deviation u (probabilistic rounding error analysis: Higham & Mary 2019). Squares add up:

    x + y   e² = e_x² + e_y² + (u v)²                      Σ x     e² = Σ e_x² + K (u_s Σ|x|)² + (u v)²
    x y     e² = (x e_y)² + (e_x y)² + (u v)²              X Y     E² = X² E_Y² + E_X² Y² + K (u_s |X||Y|)² + (u V)²
    1/x     e² = (e_x/x²)² + (u v)²                        exp x   e² = (v (exp(8 e_x) − 1)/8)² + (2u v)²
    f(x)    e² = (f′(x) e_x)² + (2u v)², for tanh, √ and other smooth f

K is the length of a sum and u_s the unit roundoff of the format it is accumulated in (float32 for bfloat16). What can underflow adds the least normal
number. The maximum of a row is a shift, an exact constant whatever it rounds to; a probability is not off by more than 1. A worst-case
bound, which adds the errors themselves, is a hundred times larger and says nothing in bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradderiv.numbers.number import Number, System
from gradderiv.numbers.smooth import Smooth

ACCUMULATED_IN = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


SPREAD = 8.0  # how many standard deviations an error may be away from 0


def _stretched(e: Tensor) -> Tensor:
    """exp(e) − 1, as the eighth part of its value at eight times e: exp is not linear, and errors of several e must be covered."""
    return torch.expm1(SPREAD * e) / SPREAD


class RoundingTensor(Number):
    """A tensor of values with the sizes of their rounding errors."""

    @property
    def value(self) -> Tensor:
        return self.main

    @property
    def error(self) -> Tensor:
        return self.full("e")


class Rounding(System):
    """Running error analysis for programs that run in ``dtype``."""

    tensor = RoundingTensor
    main = "v"
    rank = 1
    gates = True

    def __init__(self, dtype: torch.dtype) -> None:
        self.fill = {"e": 0.0}
        self.dtype = dtype
        self.u = torch.finfo(dtype).eps / 2
        self.u_sum = torch.finfo(ACCUMULATED_IN.get(dtype, dtype)).eps / 2
        self.tiny = max(torch.finfo(dtype).tiny, 2.0**-500)  # whose square does not vanish

    def accepts(self, other: System) -> bool:
        return isinstance(other, Rounding) and other.dtype == self.dtype

    def make(self, value: Tensor) -> RoundingTensor:
        """An input, exact as it stands."""
        out = self.wrap({"v": value.double()})
        assert isinstance(out, RoundingTensor)
        return out

    def constant(self, value: Tensor, dtype: torch.dtype) -> Number:
        v = value.double()
        e = self.u * v.abs().nan_to_num(posinf=0.0) if value.dtype.is_floating_point else torch.zeros_like(v)
        return self.wrap({"v": v, "e": e})

    def _result(self, v: Tensor, *errors: Tensor | float) -> Number:
        """v with the root of the sum of squares of ``errors`` and of its own rounding."""
        square = (self.u * v).nan_to_num(posinf=0.0, neginf=0.0).square()
        for e in errors:
            square = square + (e.square() if isinstance(e, Tensor) else e * e)
        e = square.nan_to_num(nan=torch.inf, posinf=torch.inf).sqrt()  # what is unknown stays unknown
        return self.wrap({"v": v, "e": e.expand(v.shape)})

    def _parts(self, *numbers: Number) -> list[Tensor]:
        return [t for x in numbers for t in (x.main, x.full("e"))]

    def add(self, x: Number, y: Number) -> Number:
        v, e, w, f = self._parts(x, y)
        return self._result(v + w, e, f)

    def neg(self, x: Number) -> Number:
        v, e = self._parts(x)
        return self.wrap({"v": -v, "e": e})

    def mul(self, x: Number, y: Number) -> Number:
        v, e, w, f = self._parts(x, y)
        return self._result(v * w, v * f, e * w, e * f, self.tiny)

    def matmul(self, x: Number, y: Number) -> Number:
        v, e, w, f = self._parts(x, y)
        carried = (v.square() @ f.square() + e.square() @ (w.square() + f.square())).sqrt()
        accumulated = v.shape[-1] ** 0.5 * self.u_sum * (v.abs() @ w.abs())
        return self._result(v @ w, carried, accumulated, self.tiny)

    def sum(self, x: Number, dims: tuple[int, ...], keepdim: bool) -> Number:
        v, e = self._parts(x)
        out = v.sum(dims, keepdim=keepdim)
        length = v.numel() // max(out.numel(), 1)
        carried = e.square().sum(dims, keepdim=keepdim).sqrt()
        return self._result(out, carried, length**0.5 * self.u_sum * v.abs().sum(dims, keepdim=keepdim))

    def reciprocal(self, x: Number) -> Number:
        v, e = self._parts(x)
        return self._result(1 / v, torch.where(e < v.abs(), e / v.square(), torch.inf), self.tiny)

    def exp(self, x: Number) -> Number:
        v, e = self._parts(x)
        out = v.exp()
        return self._result(out, (out * _stretched(e)).nan_to_num(nan=0.0), self.u * out, self.tiny)

    def log(self, x: Number) -> Number:
        v, e = self._parts(x)
        return self._result(v.log(), torch.where(e < v, e / v, torch.inf))

    def positive(self, x: Number) -> Number:
        return self.wrap({"v": (x.main > 0).double()}, None, torch.bool)

    def order(self, x: Number) -> Tensor:
        return x.main

    def is_zero(self, x: Number) -> Tensor:
        return x.main == 0

    def truth(self, c: Number) -> Tensor | None:
        return c.main != 0

    def smooth(self, function: Smooth, x: Number) -> Number:
        v, e = self._parts(x)
        out = function.value(v)
        return self._result(out, function.slope(v, out).abs() * e, self.u * out, self.tiny)

    def amax(self, x: Number, dims: tuple[int, ...], keepdim: bool) -> Number:
        return self.wrap({"v": x.main.amax(dims, keepdim=keepdim)})

    def maximum(self, x: Number, y: Number) -> Number:
        return self.wrap({"v": torch.maximum(x.main, y.main)})

    def split_shift(self, x: Number, dims: tuple[int, ...]) -> tuple[Number | None, Number]:
        m = x.main.amax(dims, keepdim=True)
        shift = self.wrap({"v": m.masked_fill(m == -torch.inf, 0)})
        return shift, self.sub(x, shift)

    def softmax(self, x: Number, dim: int) -> Number:
        v, e = self._parts(self.split_shift(x, (dim,))[1])
        P = torch.softmax(v, dim)
        e = torch.where(v == -torch.inf, 0.0, e)
        row = (P * e).square().sum(dim, keepdim=True).sqrt()  # of log Σ exp
        relative = _stretched((e.square() + row.square()).sqrt()) + 2 * self.u
        moved = torch.where(P > 0, (P * relative).nan_to_num(nan=1.0), 0.0)
        return self._result(P, moved.clamp(max=1.0), self.tiny)

    def is_minus_infinity(self, x: Number) -> Tensor:
        return x.main == -torch.inf

    def show(self, x: Number) -> str:
        return f"{x.main} ± {x.full('e')}"
