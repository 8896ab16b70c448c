"""Numbers mod a prime: the exact test of an identity between programs.

A run evaluates a program at a random point of F_p, in k lanes at once, each with its own prime and point. exp is *opaque*: a keyed random
function of its argument's residues in all lanes. An identity that holds for free values of the opaque functions holds for the real
ones (putting exp(a_t) for E_t is a homomorphism), so equality of two programs in all lanes, if not an accident,
proves them equal for these shapes and all real inputs; :mod:`gradderiv.numbers.ledger` bounds the accident.

An entry is a pair (a, r) that means a + log r, or −∞:

    exp(a, r) = H(a)·r     log x = (0, x)     (a, r) + (b, s) = (a + b, r s)     −(a, r) = (−a, 1/r)

so that logsumexp, online softmax, the merge of two blocks and masks of −∞ are exact. Products and sums demand operands without log part, or it
would be lost. The maximum of a row is a shift: (0, 1/u) with u a keyed random function of the row's contents; what depends on
it depends on the ``shift`` seed, and a proof must hold under two of them.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from gradderiv.errors import NoExactMeaning, message
from gradderiv.numbers import residues
from gradderiv.numbers.alignment import except_axis, without
from gradderiv.numbers.constants import Reading, read
from gradderiv.numbers.lanes import DrawAgain, FieldTensor, Note
from gradderiv.numbers.ledger import CONSTANT, PRIMES, Degree
from gradderiv.numbers.ledger import join as join_degrees
from gradderiv.numbers.number import Number, Parts
from gradderiv.numbers.opaque import Opaque
from gradderiv.numbers.order import HIDDEN

aten = torch.ops.aten
LISTED = 64  # distinct entries up to which a constant's readings are listed; beyond, it is a table


class Field(Opaque):
    """k lanes of random primes; see the module.

    Args:
        seed: draws primes, points and the keys of the opaque functions.
        lanes: k.
        roots: integers that must be squares mod every prime, or (q, 4) for fourth powers (each halves the pool of primes, or more).
        draw: number of the attempt, after a zero denominator.
        shift: draws the values that stand for the maxima of rows, and nothing else.
        target: log₂ of the failure probability asked for; more lanes are demanded as soon as it is out of reach.
        device: where the random tensors live.
        odd: exp(−a) is 1/exp(a), at the price of a denominator for every exponential.
        fills_are_minus_infinity: read constants of −10⁴ and less as −∞, as they are meant.
    """

    def constant(self, value: Tensor, dtype: torch.dtype) -> Number:
        if isinstance(value, Number):
            raise NoExactMeaning(f"a {type(value).__name__} of another system cannot enter this field")
        holes = None
        if value.dtype.is_floating_point and not _ordinary(value):
            holes = value == -torch.inf
            low = (value <= HIDDEN) & ~holes
            if bool(low.any()):
                self.fills |= dict.fromkeys(torch.unique(value[low].double()).tolist())
                holes = holes | low if self.fills_are_minus_infinity else holes
            if bool((~torch.isfinite(value) & ~holes).any()):
                raise NoExactMeaning(
                    message(
                        "exact arithmetic needs finite constants, or −inf",
                        "inf or NaN",
                        "an overflow, +inf as a mask, or memory that was read before it was written",
                        "mask with −inf, or by masked_fill",
                    )
                )
            holes = holes if bool(holes.any()) else None
        finite = value if holes is None else value.masked_fill(holes, 0)
        parts, degree = self._read(finite, value.dtype)
        if holes is not None:
            parts["hole"] = holes
        return self.wrap(parts, Note(degree), dtype)

    def _read(self, value: Tensor, dtype: torch.dtype) -> tuple[Parts, Degree]:
        if not dtype.is_floating_point:
            value = value.long()
            size = float(value.abs().max().double().log2().clamp(min=0)) if value.numel() else 0.0
            lanes = [value.remainder(p) for p in self.primes]
            for lane, p in zip(lanes, self.primes, strict=True):
                if bool(((lane == 0) & (value != 0)).any()):
                    raise DrawAgain(f"an integer constant is 0 mod {p}")
            return dict(zip(self.values, lanes, strict=True)), Degree(0, size)
        distinct, index = torch.unique(value.double(), return_inverse=True)
        readings = [read(x, dtype) for x in distinct.tolist()]
        denominator, numerator = 1, 1
        for reading in readings:
            for root in self._roots_of(reading):
                if root not in self.roots:
                    raise DrawAgain(f"the constant {reading} needs a root of {root}", root=root)
            denominator = math.lcm(denominator, reading.ratio.denominator)
            numerator = max(numerator, abs(reading.ratio.numerator) * reading.root * reading.fourth)
        if len(readings) <= LISTED:
            self.readings |= {f"{float(r):.6g} = {r}": None for r in readings if not r.is_integer}
        lanes = [
            torch.tensor([self._residue(r, p, j) for r in readings], device=value.device)[index]
            for j, p in enumerate(self.primes)
        ]
        poles = [(self.ledger.group(1, 0, float(denominator.bit_length())), 1)] if denominator > 1 else []
        powers = [r.pi + r.ln2 for r in readings if r.ratio] or [0]  # of one of them: no reading has both
        if min(powers) < 0:
            poles.append((self.ledger.group(1, 1, 0.0), -min(powers)))
        degree = Degree(max(powers), float(numerator.bit_length()), tuple(poles))
        return dict(zip(self.values, lanes, strict=True)), degree

    @staticmethod
    def _roots_of(reading: Reading) -> list[residues.Root]:
        square: list[residues.Root] = [reading.root] if reading.root != 1 else []
        return square + ([(reading.fourth, 4)] if reading.fourth != 1 else [])

    def _residue(self, reading: Reading, p: int, j: int) -> int:
        value = reading.ratio.numerator * pow(reading.ratio.denominator, -1, p)
        if reading.root != 1:
            value *= residues.root_mod(reading.root, p)
        if reading.fourth != 1:
            value *= residues.fourth_root_mod(reading.fourth, p)
        for name, power in (("pi", reading.pi), ("ln2", reading.ln2)):
            if power:
                value *= pow(self.free[name][j], power, p)
        if reading.ratio and value % p == 0:
            raise DrawAgain(f"the constant {reading} is 0 mod {p}")
        return value % p

    @property
    def opaque_used(self) -> bool:
        """Whether some function that is not rational was asked for."""
        return self.ledger.opaque_values > 0

    def lane(self, x: Number, j: int) -> Tensor:
        """The residues of x in lane j; x must have no log part."""
        return self.plain(x)[j]

    # ---- sums and products

    def add(self, x: Number, y: Number) -> Number:
        v = self.each(residues.add, [x.part(n) for n in self.values], [y.part(n) for n in self.values])
        parts = self.named("v", v)
        note = Note(join_degrees([x.note.value, y.note.value]).sum_of(2))
        if self.has_log(x) or self.has_log(y):
            logs = self.each(residues.mul, [x.full(n) for n in self.logs], [y.full(n) for n in self.logs])
            parts |= {n: t.expand(v[0].shape).contiguous() for n, t in zip(self.logs, logs, strict=True)}
            log = (x.note.log or CONSTANT) * (y.note.log or CONSTANT)
            inverse = (x.note.log_inverse or CONSTANT) * (y.note.log_inverse or CONSTANT)
            note = note._replace(log=log, log_inverse=inverse)
        if "hole" in x.cell.parts or "hole" in y.cell.parts:
            parts["hole"] = (x.full("hole") | y.full("hole")).expand(v[0].shape).contiguous()
        return self.wrap(parts, note, torch.promote_types(x.dtype, y.dtype))

    def neg(self, x: Number) -> Number:
        hole = x.part("hole")
        if hole is not None and bool(hole.any()):
            raise NoExactMeaning(
                message(
                    "exact arithmetic has no +∞",
                    "minus of an entry that is −∞",
                    "−∞ − (−∞): a fully masked row, whose maximum or lse is −∞",
                    "give such rows a value first, as torch.where(row_is_empty, 0, m)",
                )
            )
        parts = self.named("v", self.each(residues.neg, [x.part(n) for n in self.values]))
        note = x.note
        if self.has_log(x):
            parts |= self.named("log", self.inverse([x.part(n) for n in self.logs]))
            note = Note(note.value, note.log_inverse, note.log)
        else:
            note = note.plain()
        return self.wrap(parts, note, x.dtype)

    def mul(self, x: Number, y: Number) -> Number:
        v = self.each(residues.mul, self.plain(x), self.plain(y))
        return self.wrap(
            self.named("v", v), Note(x.note.value * y.note.value), torch.promote_types(x.dtype, y.dtype)
        )

    def matmul(self, x: Number, y: Number) -> Number:
        v = self.product(x, y)
        left = x.note.value.moved(except_axis(x.dim(), -1))
        right = y.note.value.moved(except_axis(y.dim(), -2))
        note = Note((left * right).sum_of(x.shape[-1]))
        return self.wrap(self.named("v", v), note, torch.promote_types(x.dtype, y.dtype))

    def product(self, x: Number, y: Number) -> list[Tensor]:
        """The residues of x y in every lane."""
        return self.each(residues.matmul, self.plain(x), self.plain(y))

    def sum(self, x: Number, dims: tuple[int, ...], keepdim: bool) -> Number:
        v = self.each(lambda a, p: residues.total(a, dims, keepdim, p), self.plain(x))
        removed = {d - x.dim() for d in dims}
        moves = without(x.dim(), removed)
        if keepdim:
            moves = {a: (a, 0) for a in moves}
        note = Note(x.note.value.moved(moves).sum_of(x.numel() // max(v[0].numel(), 1)))
        return self.wrap(self.named("v", v), note, x.dtype)

    def reciprocal(self, x: Number) -> Number:
        v = self.inverse(self.plain(x))
        inverse = x.note.inverse or self.ledger.invert(x.note.value, x.numel(), tuple(x.shape))
        return self.wrap(self.named("v", v), Note(inverse, inverse=x.note.value), x.dtype)

    def structured(self, func: Any, sources: list[Number], args: Any, out: Number) -> Number:
        if func not in (aten.clone.default, aten.contiguous.default):
            dims = args[1] if func is aten.cat.default and len(args) > 1 else 0
            kept = (
                except_axis(out.dim(), dims % out.dim() - out.dim())
                if func is aten.cat.default and out.dim()
                else {}
            )
            out.cell.note = out.cell.note.plain().moved(kept)
        return out

    # ---- the verdict on two tensors

    def differs(self, x: Tensor, y: Tensor) -> Tensor:
        """Where two tensors differ in some lane, log parts and −∞ included."""
        x, y = _number(x), _number(y)
        hole = x.full("hole") ^ y.full("hole")
        both = x.full("hole") & y.full("hole")
        out = torch.zeros_like(both)
        for name in (*self.values, *(self.logs if self.has_log(x) or self.has_log(y) else ())):
            out |= x.full(name) != y.full(name)
        return hole | (out & ~both)

    def common_factor(self, x: Tensor, y: Tensor) -> str:
        """x/y in words, where it is one number for all entries whose square is a small rational; else nothing."""
        pairs = [(_number(x).part(n).reshape(-1), _number(y).part(n).reshape(-1)) for n in self.values]
        if any(b.numel() == 0 or bool((b == 0).any()) for _, b in pairs):
            return ""
        ratios = self.each(lambda pair, p: residues.mul(pair[0], residues.inverse(pair[1], p), p), pairs)
        if any(bool((ratio != ratio[0]).any()) for ratio in ratios):
            return ""
        for power, words in ((1, "{}"), (2, "±√({})")):
            targets = [pow(int(ratio[0]), power, p) for ratio, p in zip(ratios, self.primes, strict=True)]
            for denominator in range(1, 1001):
                p = self.primes[0]
                numerator = (targets[0] * denominator + p // 2) % p - p // 2
                if abs(numerator) <= 1000 and all(
                    (t * denominator - numerator) % q == 0 for t, q in zip(targets, self.primes, strict=True)
                ):
                    return words.format(Fraction(numerator, denominator))
        return ""

    def failure(self, *tensors: Tensor, lanes: int | None = None) -> float:
        """log₂ of the probability that tensors found equal are not; were there ``lanes`` lanes, where that is given."""
        return self.ledger.failure(self._difference(tensors), lanes or self.lanes)

    def failure_over_q(self, *tensors: Tensor) -> float:
        """The same where an error that is a multiple of a drawn prime counts too."""
        pool = PRIMES / 2 ** sum(2 if isinstance(q, tuple) else 1 for q in self.roots)
        return self.ledger.failure(self._difference(tensors), self.lanes, pool=pool)

    def _difference(self, tensors: tuple[Tensor, ...]) -> Degree:
        notes = [_number(x).note for x in tensors]
        records = [n.value for n in notes] + [n.log for n in notes if n.log is not None]
        return join_degrees(records).sum_of(2)


def _ordinary(value: Tensor) -> bool:
    """Whether all entries are finite, and none so low that it may stand for −∞."""
    if not value.numel():
        return True
    low, high = torch.aminmax(value)
    return float(low) > HIDDEN and float(high) < math.inf


def _number(x: Tensor) -> Number:
    if not isinstance(x, FieldTensor):
        raise TypeError(f"a FieldTensor is compared with a {type(x).__name__}")
    return x
