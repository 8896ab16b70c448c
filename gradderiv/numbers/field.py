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
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.errors import NoExactMeaning, message
from gradderiv.numbers import residues
from gradderiv.numbers.constants import Reading, read
from gradderiv.numbers.ledger import CONSTANT, PRIMES, VARIABLE, Degree, Ledger
from gradderiv.numbers.ledger import join as join_degrees
from gradderiv.numbers.number import Number, Parts, System


class FieldTensor(Number):
    """A tensor of numbers mod a prime, in several lanes."""


class DrawAgain(Exception):
    """This point cannot carry the run: try again with the next draw, these roots or more lanes."""

    def __init__(self, why: str, *, root: int | None = None, lanes: int | None = None) -> None:
        super().__init__(why)
        self.root, self.lanes = root, lanes


class Note(NamedTuple):
    """The degree records of a, of r and of 1/r."""

    value: Degree
    log: Degree | None = None
    log_inverse: Degree | None = None


class Field(System):
    """k lanes of random primes; see the module.

    Args:
        seed: draws primes, points and the keys of the opaque functions.
        lanes: k.
        roots: integers that must be squares mod every prime (each halves the pool of primes).
        draw: number of the attempt, after a zero denominator.
        shift: draws the values that stand for the maxima of rows, and nothing else.
        target: log₂ of the failure probability asked for; more lanes are demanded as soon as it is out of reach.
        device: where the random tensors live.
    """

    tensor = FieldTensor
    main = "v0"
    rank = 1

    def __init__(
        self,
        seed: int = 0,
        lanes: int = 3,
        *,
        roots: frozenset[int] = frozenset(),
        draw: int = 0,
        shift: int = 0,
        target: float = 0.0,
        device: str = "cpu",
    ) -> None:
        name = f"{seed}/{draw}"
        self.seed, self.lanes, self.roots, self.target = seed, lanes, roots, target
        self.device = device
        self.primes = [residues.draw_prime(f"{name}/p{j}", roots) for j in range(lanes)]
        self.exps = [residues.Keyed(f"{name}/exp{j}", lanes) for j in range(lanes)]
        self.shifts = [residues.Keyed(f"{name}/{shift}/shift{j}", 2 * lanes) for j in range(lanes)]
        self.generator = torch.Generator().manual_seed(residues.draw_prime(name, frozenset()))
        self.ledger = Ledger()
        self.readings: dict[str, None] = {}
        self.shift_used = False
        self.values = [f"v{j}" for j in range(lanes)]
        self.logs = [f"log{j}" for j in range(lanes)]
        self.fill = {**dict.fromkeys(self.values, 0), **dict.fromkeys(self.logs, 1), "hole": False}

    # ---- in and out

    def random(self, *shape: int, dtype: torch.dtype = torch.float64) -> Number:
        """A tensor of independent random entries: free variables."""
        parts = {
            name: torch.randint(0, p, shape, generator=self.generator).to(self.device)
            for name, p in zip(self.values, self.primes, strict=True)
        }
        return self.wrap(parts, Note(VARIABLE), dtype)

    def constant(self, value: Tensor, dtype: torch.dtype) -> Number:
        if isinstance(value, Number):
            raise NoExactMeaning(f"a {type(value).__name__} of another system cannot enter this field")
        holes = None
        if value.dtype.is_floating_point:
            holes = value == -torch.inf
            if bool((~torch.isfinite(value) & ~holes).any()):
                raise NoExactMeaning(
                    message(
                        "exact arithmetic needs finite constants, or −inf",
                        "inf or NaN",
                        "an overflow, or +inf as a mask",
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
        readings = [read(float(x), dtype) for x in distinct]
        denominator, numerator = 1, 1
        for reading in readings:
            if reading.root not in self.roots and reading.root != 1:
                raise DrawAgain(f"the constant {reading} needs a root of {reading.root}", root=reading.root)
            if reading.ratio.denominator != 1:
                self.readings[f"{float(reading.ratio) * reading.root**0.5:.6g} = {reading}"] = None
            denominator = math.lcm(denominator, reading.ratio.denominator)
            numerator = max(numerator, abs(reading.ratio.numerator) * reading.root)
        lanes = [
            torch.tensor([self._residue(r, p) for r in readings], device=value.device)[index]
            for p in self.primes
        ]
        group = self.ledger.group(1, 0, float(denominator.bit_length())) if denominator > 1 else None
        poles = () if group is None else ((group, 1),)
        return dict(zip(self.values, lanes, strict=True)), Degree(0, float(numerator.bit_length()), poles)

    def _residue(self, reading: Reading, p: int) -> int:
        ratio: Fraction = reading.ratio
        value = ratio.numerator * pow(ratio.denominator, -1, p)
        if reading.root != 1:
            value *= residues.root_mod(reading.root, p)
        if ratio and value % p == 0:
            raise DrawAgain(f"the constant {reading} is 0 mod {p}")
        return value % p

    def lane(self, x: Number, j: int) -> Tensor:
        """The residues of x in lane j; x must have no log part."""
        return self._plain(x)[j]

    def uninitialised(self, shape: torch.Size, like: Number) -> Number:
        return self.random(*shape, dtype=like.dtype)

    def join(self, notes: list[Any]) -> Note:
        def joined(field: str) -> Degree | None:
            found = [r for r in (getattr(n, field) for n in notes) if r is not None]
            return join_degrees([CONSTANT, *found]) if found else None

        return Note(join_degrees([n.value for n in notes]), joined("log"), joined("log_inverse"))

    def show(self, x: Number) -> str:
        return f"shape={tuple(x.shape)}, lanes={self.lanes}"

    # ---- parts

    def _plain(self, x: Number) -> list[Tensor]:
        """The residues of an operand that a sum or product can take: no log part, no −∞."""
        hole = x.part("hole")
        if hole is not None and bool(hole.any()):
            raise NoExactMeaning(
                message(
                    "a sum or product in exact arithmetic needs finite operands",
                    "an operand with −∞ in it",
                    "a masked score is used other than under exp, softmax or logsumexp",
                    "multiply probabilities, not scores, by zero",
                )
            )
        for name in self.logs:
            log = x.part(name)
            if log is not None and bool((log != 1).any()):
                raise NoExactMeaning(
                    message(
                        "a sum or product in exact arithmetic needs operands without logarithms",
                        "an operand a + log r",
                        "lse, or a shifted score, is used other than added, subtracted or under exp",
                        "log r has no exact value mod p: only exp of it has",
                    )
                )
        return [x.part(name) for name in self.values]

    def _has_log(self, x: Number) -> bool:
        return self.logs[0] in x.cell.parts

    def _lanes(self, name: str, tensors: list[Tensor]) -> Parts:
        return {f"{name}{j}": t for j, t in enumerate(tensors)}

    def _each(self, f: Callable[..., Tensor], *operands: list[Any]) -> list[Tensor]:
        return [f(*lane, p) for *lane, p in zip(*operands, self.primes, strict=True)]

    # ---- sums and products

    def add(self, x: Number, y: Number) -> Number:
        v = self._each(residues.add, [x.part(n) for n in self.values], [y.part(n) for n in self.values])
        parts = self._lanes("v", v)
        note = Note(join_degrees([x.note.value, y.note.value]).sum_of(2))
        if self._has_log(x) or self._has_log(y):
            logs = self._each(residues.mul, [x.full(n) for n in self.logs], [y.full(n) for n in self.logs])
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
        parts = self._lanes("v", self._each(residues.neg, [x.part(n) for n in self.values]))
        note = x.note
        if self._has_log(x):
            parts |= self._lanes("log", self._inverse([x.part(n) for n in self.logs]))
            note = Note(note.value, note.log_inverse, note.log)
        return self.wrap(parts, note, x.dtype)

    def mul(self, x: Number, y: Number) -> Number:
        v = self._each(residues.mul, self._plain(x), self._plain(y))
        return self.wrap(
            self._lanes("v", v), Note(x.note.value * y.note.value), torch.promote_types(x.dtype, y.dtype)
        )

    def matmul(self, x: Number, y: Number) -> Number:
        v = self._each(residues.matmul, self._plain(x), self._plain(y))
        note = Note((x.note.value * y.note.value).sum_of(x.shape[-1]))
        return self.wrap(self._lanes("v", v), note, torch.promote_types(x.dtype, y.dtype))

    def sum(self, x: Number, dims: tuple[int, ...], keepdim: bool) -> Number:
        v = self._each(lambda a, p: residues.total(a, dims, keepdim, p), self._plain(x))
        note = Note(x.note.value.sum_of(x.numel() // max(v[0].numel(), 1)))
        return self.wrap(self._lanes("v", v), note, x.dtype)

    def reciprocal(self, x: Number) -> Number:
        v = self._inverse(self._plain(x))
        return self.wrap(self._lanes("v", v), Note(self.ledger.invert(x.note.value, x.numel())), x.dtype)

    def _inverse(self, lanes: list[Tensor]) -> list[Tensor]:
        zero = [t == 0 for t in lanes]
        if bool(torch.stack(zero).all(0).any()):
            raise NoExactMeaning(
                message(
                    "exact arithmetic needs denominators that are not zero",
                    "a division by a number that is zero in every lane",
                    "a fully masked row: 0/0, or the derivative of log at 0",
                    "give such rows a denominator of 1 first, as torch.where(row_is_empty, 1, r)",
                )
            )
        if bool(torch.stack(zero).any()):
            raise DrawAgain("a denominator is zero in one lane")
        return self._each(residues.inverse, lanes)

    # ---- opaque functions

    def exp(self, x: Number) -> Number:
        arguments = [x.part(n).contiguous() for n in self.values]
        self.ledger.opaque(arguments[0].numel(), x.note.value)
        if self.ledger.coincidence(self.lanes) > self.target:
            raise DrawAgain("too few lanes for the bound asked for", lanes=self.lanes + 1)
        zero = torch.stack([a == 0 for a in arguments]).all(0)
        v = [
            key.residue(arguments, p).masked_fill_(zero, 1)
            for key, p in zip(self.exps, self.primes, strict=True)
        ]
        degree = VARIABLE
        if self._has_log(x):
            v = self._each(residues.mul, v, [x.part(n) for n in self.logs])
            degree = degree * (x.note.log or CONSTANT)
        hole = x.part("hole")
        if hole is not None:
            v = [t.masked_fill_(hole, 0) for t in v]
        return self.wrap(self._lanes("v", v), Note(degree), x.dtype)

    def log(self, x: Number) -> Number:
        v = self._plain(x)
        zero = torch.stack([t == 0 for t in v]).all(0)
        parts = self._lanes("v", [torch.zeros_like(t) for t in v])
        parts |= self._lanes("log", [t.masked_fill(zero, 1) for t in v])
        if bool(zero.any()):  # believed to be structural, and any of the others might have looked like it
            parts["hole"] = zero
            self.ledger.zeros.append((zero.numel(), x.note.value))
        note = Note(CONSTANT, x.note.value, self.ledger.invert(x.note.value, x.numel()))
        return self.wrap(parts, note, x.dtype)

    def amax(self, x: Number, dims: tuple[int, ...], keepdim: bool) -> Number:
        operands = self._contents(x)
        hole = x.full("hole")
        digests = [
            key.digest(operands).masked_fill_(hole, 0).sum(dims, keepdim=keepdim) for key in self.shifts
        ]
        return self._shift(digests, hole.all(dims, keepdim=keepdim) if dims else hole, x.dtype)

    def maximum(self, x: Number, y: Number) -> Number:
        shape = torch.broadcast_shapes(x.shape, y.shape)
        holes = [x.full("hole").expand(shape), y.full("hole").expand(shape)]
        digests = []
        for key in self.shifts:
            bits = [key.digest(self._contents(t)).expand(shape) for t in (x, y)]
            digests.append(sum(b.masked_fill(h, 0) for b, h in zip(bits, holes, strict=True)))
        return self._shift(digests, holes[0] & holes[1], x.dtype)

    def _contents(self, x: Number) -> list[Tensor]:
        return [x.part(n) for n in self.values] + [x.full(n) for n in self.logs]

    def _shift(self, digests: list[Any], hole: Tensor, dtype: torch.dtype) -> Number:
        """(0, 1/u), u a keyed random function; −∞ where there is nothing to take the maximum of."""
        self.shift_used = True
        u = [residues.nonzero(residues.mix(d.clone()), p) for d, p in zip(digests, self.primes, strict=True)]
        parts = self._lanes("v", [torch.zeros_like(t) for t in u])
        parts |= self._lanes("log", [residues.inverse(t, p) for t, p in zip(u, self.primes, strict=True)])
        if bool(hole.any()):
            parts["hole"] = hole
        return self.wrap(parts, Note(CONSTANT, self.ledger.invert(VARIABLE, u[0].numel()), VARIABLE), dtype)

    def is_minus_infinity(self, x: Number) -> Tensor:
        return x.full("hole").clone()

    # ---- the verdict on two tensors

    def differs(self, x: Tensor, y: Tensor) -> Tensor:
        """Where two tensors differ in some lane, log parts and −∞ included."""
        x, y = _number(x), _number(y)
        hole = x.full("hole") ^ y.full("hole")
        both = x.full("hole") & y.full("hole")
        out = torch.zeros_like(both)
        for name in (*self.values, *(self.logs if self._has_log(x) or self._has_log(y) else ())):
            out |= x.full(name) != y.full(name)
        return hole | (out & ~both)

    def common_factor(self, x: Tensor, y: Tensor) -> str:
        """x/y in words, where it is one number for all entries whose square is a small rational; else nothing."""
        pairs = [(_number(x).part(n).reshape(-1), _number(y).part(n).reshape(-1)) for n in self.values]
        if any(b.numel() == 0 or bool((b == 0).any()) for _, b in pairs):
            return ""
        ratios = self._each(lambda pair, p: residues.mul(pair[0], residues.inverse(pair[1], p), p), pairs)
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

    def failure(self, *tensors: Tensor) -> float:
        """log₂ of the probability that tensors found equal are not."""
        return self.ledger.failure(self._difference(tensors), self.lanes)

    def failure_over_q(self, *tensors: Tensor) -> float:
        """The same where an error that is a multiple of a drawn prime counts too."""
        pool = PRIMES / 2 ** len(self.roots)
        return self.ledger.failure(self._difference(tensors), self.lanes, pool=pool)

    def _difference(self, tensors: tuple[Tensor, ...]) -> Degree:
        notes = [_number(x).note for x in tensors]
        records = [n.value for n in notes] + [n.log for n in notes if n.log is not None]
        return join_degrees(records).sum_of(2)


def _number(x: Tensor) -> Number:
    if not isinstance(x, FieldTensor):
        raise TypeError(f"a FieldTensor is compared with a {type(x).__name__}")
    return x
