"""Functions that are not rational, over the field: keyed random functions of their argument, each with the relations that it keeps.

    exp       H(a); H(a + log r) = H(a)·r, H(0) = 1, H(−∞) = 0; with ``odd``, H(−a) = 1/H(a); 2^a = H(λ a) with λ = log 2 a free constant
    rsqrt     r(u), and √u = 1/r, u^(k/2) = r^(−k). After the first root of u that tensor *is* r⁻²: so is the real one, and x·√u/u is right
    erf       F(a), odd; its derivative is 2κ H(−a²) with κ = 1/√π a free constant
    sin, cos  (w − 1/w)/2i and (w + 1/w)/2 with w = H(i a), i = √−1
    a > b     a gate c(a − b), with c(−u) = 1 − c(u): an identity that holds for all values of c holds for 0 and 1
    max       a shift (0, 1/u), u a function of the row's contents, and of a second key: a result that moves with that key is no proof

An identity that holds for free values of these functions holds for the real ones. The converse is not so: where a program leans on a relation
that is not in the list, the field may refute what is true, and floats tell.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.errors import NoExactMeaning, message
from gradderiv.numbers import residues
from gradderiv.numbers.lanes import MINUS_ONE, DrawAgain, Lanes, Note
from gradderiv.numbers.ledger import CONSTANT, VARIABLE, Degree, join
from gradderiv.numbers.number import Number
from gradderiv.numbers.operands import aten, no_meaning


class Opaque(Lanes):
    """The functions of :class:`~gradderiv.numbers.field.Field` that are not rational."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.base: str = ""  # of the logarithms
        self._met: set[tuple[str, int, int]] = set()
        self._squares: list[tuple[list[Tensor], list[Tensor]]] = []
        self._relus: list[tuple[list[Tensor], Number]] = []

    def _values(
        self, function: str, arguments: list[Tensor], record: Degree, *, odd: bool = False
    ) -> list[Tensor]:
        """A keyed random nonzero residue for every argument, in every lane."""
        given, arguments = arguments, [a.contiguous() for a in arguments]
        keys = self.keys[function]
        bits = keys[0].digest(arguments)
        met = function, bits.numel(), residues.fingerprint(bits)
        if met in self._met:
            self.ledger.repeated(bits.numel(), record)
        else:
            self._met.add(met)
            self.ledger.opaque(bits.numel(), record, odd=odd)
        needed = self.lanes
        while self.ledger.coincidence(needed) > self.target and needed < self.lanes + 16:
            needed += 1
        if needed > self.lanes:
            raise DrawAgain("too few lanes for the bound asked for", lanes=needed)
        first = residues.nonzero(bits, self.primes[0])
        rest = (k.residue(arguments, p) for k, p in zip(keys[1:], self.primes[1:], strict=True))
        if given[0].is_contiguous():
            return [first, *rest]
        return [torch.empty_like(given[0]).copy_(v) for v in (first, *rest)]  # laid out as torch lays it out

    def _signed(self, arguments: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Which arguments are the negatives of canonical ones, and the canonical ones."""
        minus = arguments[0] > self.primes[0] // 2
        return minus, self.each(lambda a, p: torch.where(minus, residues.neg(a, p), a), arguments)

    def _variable(self, x: Number) -> Degree:
        """The record of an opaque value of x: free, but for the gates that went into x."""
        return VARIABLE._replace(poles=self.ledger.gates_of(self._record(x)))

    # ---- exponentials and logarithms

    def exp(self, x: Number) -> Number:
        return self._power("e", x, [x.part(n) for n in self.values], x.note.value)

    def exp2(self, x: Number) -> Number:
        scaled = self.each(
            lambda a, ln2, p: (a * ln2).fmod_(p), [x.part(n) for n in self.values], self.free["ln2"]
        )
        return self._power("2", x, scaled, x.note.value * VARIABLE)

    def _power(self, base: str, x: Number, arguments: list[Tensor], record: Degree) -> Number:
        degree = self._variable(x)
        if self.odd:
            minus, arguments = self._signed(arguments)
            v = self._values("exp", arguments, record, odd=True)
            v = self.each(lambda t, p: torch.where(minus, residues.inverse(t, p), t), v)
            degree = self._with_inverse(x)
        else:
            v = self._values("exp", arguments, record)
        zero = self.vanishing(arguments)
        v = [t.masked_fill_(zero, 1) for t in v]
        if self.has_log(x):
            self._in_base(base)
            v = self.each(residues.mul, v, [x.part(n) for n in self.logs])
            degree = degree * (x.note.log or CONSTANT)
        hole = x.part("hole")
        if hole is not None:
            v = [t.masked_fill_(hole, 0) for t in v]
        return self.wrap(self.named("v", v), Note(degree), x.dtype)

    def log(self, x: Number) -> Number:
        return self._logarithm("e", x)

    def log2(self, x: Number) -> Number:
        return self._logarithm("2", x)

    def _in_base(self, base: str) -> None:
        """The logarithms a + log r of one program have one base, or e^m would cancel 2^m."""
        self.base = self.base or base
        if base != self.base:
            raise NoExactMeaning(
                message(
                    "exact arithmetic needs one base for all logarithms of a program",
                    f"base {self.base} and base {base}",
                    "exp of a maximum or of an lse in one place, exp2 of one in another",
                    "write both with exp and log, or both with exp2 and log2",
                )
            )

    def _logarithm(self, base: str, x: Number) -> Number:
        self._in_base(base)
        v = self.plain(x)
        zero = self.vanishing(v)
        parts = self.named("v", [torch.zeros_like(t) for t in v])
        parts |= self.named("log", [t.masked_fill(zero, 1) for t in v])
        if bool(zero.any()):  # believed to be structural, and any of the others might have looked like it
            parts["hole"] = zero
            self.ledger.zeros.append((zero.numel(), x.note.value))
        inverse = x.note.inverse or self.ledger.invert(x.note.value, x.numel(), tuple(x.shape))
        return self.wrap(parts, Note(CONSTANT, x.note.value, inverse), x.dtype)

    # ---- roots

    def rsqrt(self, x: Number) -> Number:
        return self._root(x)[0]

    def sqrt(self, x: Number) -> Number:
        return self._root(x)[1]

    def _root(self, x: Number) -> tuple[Number, Number]:
        """r and 1/r with r² = 1/x: of the same x the same, and x becomes r⁻²."""
        v = self.plain(x)
        r = self._known_root(v)
        new = r is None
        if r is None:
            r = self._values("root", v, x.note.value)
        s = self.inverse(r)
        free = self._variable(x)
        inverse = self.ledger.invert(free, x.numel(), tuple(x.shape))
        root = self.wrap(self.named("v", r), Note(free, inverse=inverse), x.dtype)
        square_root = self.wrap(self.named("v", s), Note(inverse, inverse=free), x.dtype)
        if (
            new
            and x.numel()
            and all(n == 1 or stride for n, stride in zip(x.shape, x.main.stride(), strict=True))
        ):
            squares = self.each(residues.mul, s, s)
            self._squares.append((squares, r))
            x.write(
                self.wrap(self.named("v", squares), Note(inverse * inverse, inverse=free * free), x.dtype)
            )
        return root, square_root

    def _known_root(self, v: list[Tensor]) -> list[Tensor] | None:
        """The root of a tensor whose entries are r⁻² already."""
        for squares, r in self._squares:
            if squares[0].numel() == v[0].numel() and all(
                torch.equal(a.reshape(-1), b.reshape(-1)) for a, b in zip(squares, v, strict=True)
            ):
                return [t.reshape(v[0].shape) for t in r]
        return None

    # ---- erf, sine and cosine

    def erf(self, x: Number) -> Number:
        minus, arguments = self._signed(self.plain(x))
        v = self._values("erf", arguments, x.note.value, odd=True)
        v = self.each(lambda t, p: torch.where(minus, residues.neg(t, p), t), v)
        zero = self.vanishing(arguments)
        return self.wrap(
            self.named("v", [t.masked_fill_(zero, 0) for t in v]), Note(self._variable(x)), x.dtype
        )

    def sin(self, x: Number) -> Number:
        w, inverse, i = self._circle(x)
        v = self.each(
            lambda a, b, j, p: (a - b).remainder_(p).mul_(pow(2 * j, -1, p)).fmod_(p), w, inverse, i
        )
        return self.wrap(self.named("v", v), Note(self._with_inverse(x).sum_of(2)), x.dtype)

    def cos(self, x: Number) -> Number:
        w, inverse, _ = self._circle(x)
        v = self.each(lambda a, b, p: residues.add(a, b, p).mul_((p + 1) // 2).fmod_(p), w, inverse)
        return self.wrap(self.named("v", v), Note(self._with_inverse(x).sum_of(2)), x.dtype)

    def _with_inverse(self, x: Number) -> Degree:
        """The record of values of which some are w and some 1/w, or that have both."""
        free = self._variable(x)
        return join([free, self.ledger.invert(free, x.numel(), tuple(x.shape))])

    def _circle(self, x: Number) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """w = H(i x) and its inverse, and i."""
        if MINUS_ONE not in self.roots:
            raise DrawAgain("sine and cosine need a root of −1", root=MINUS_ONE)
        i = [residues.root_mod(MINUS_ONE, p) for p in self.primes]
        minus, arguments = self._signed(self.plain(x))
        turned = self.each(lambda a, j, p: (a * j).fmod_(p), arguments, i)
        v = self._values("exp", turned, x.note.value, odd=True)
        zero = self.vanishing(arguments)
        v = [t.masked_fill_(zero, 1) for t in v]
        back = self.inverse(v)
        w = [torch.where(minus, b, a) for a, b in zip(v, back, strict=True)]
        inverse = [torch.where(minus, a, b) for a, b in zip(v, back, strict=True)]
        return w, inverse, i

    # ---- gates

    def positive(self, x: Number) -> Number:
        if self.has_log(x):
            return self._gate("pair", x)
        minus, arguments = self._signed(self.plain(x))
        v = self._values("gate", arguments, x.note.value, odd=True)
        v = self.each(lambda t, p: torch.where(minus, (1 - t).remainder_(p), t), v)
        return self.wrap(self.named("v", v), Note(self.ledger.gated().sum_of(2)), torch.bool)

    def zero(self, x: Number) -> Number:
        return self._gate("equal", x)

    def _gate(self, function: str, x: Number) -> Number:
        v = self._values(function, self._contents(x), self._record(x))
        return self.wrap(self.named("v", v), Note(self.ledger.gated()), torch.bool)

    def remember(self, y: Number, c: Number) -> None:
        self._relus.append((self.plain(y), c))

    def remembered(self, y: Number) -> Number:
        """By what is in y: a relu in place leaves nothing else."""
        v = self.plain(y)
        for known, c in self._relus:
            if all(torch.equal(a, b) for a, b in zip(known, v, strict=True)):
                return c
        return self.positive(y)

    # ---- the maximum

    def amax(self, x: Number, dims: tuple[int, ...], keepdim: bool) -> Number:
        operands = self._contents(x)
        hole = x.full("hole")
        digests = [
            key.digest(operands).masked_fill_(hole, 0).sum(dims, keepdim=keepdim) for key in self.shifts
        ]
        return self._shift([x], digests, hole.all(dims, keepdim=keepdim) if dims else hole)

    def maximum(self, x: Number, y: Number) -> Number:
        shape = torch.broadcast_shapes(x.shape, y.shape)
        holes = [x.full("hole").expand(shape), y.full("hole").expand(shape)]
        digests = []
        for key in self.shifts:
            bits = [key.digest(self._contents(t)).expand(shape) for t in (x, y)]
            digests.append(sum(b.masked_fill(h, 0) for b, h in zip(bits, holes, strict=True)))
        return self._shift([x, y], digests, holes[0] & holes[1])

    def place(self, x: Number, dim: int | None, keepdim: bool) -> Tensor:
        shape = torch.empty(x.shape, device="meta").argmax(dim, keepdim).shape
        nowhere = [torch.zeros(shape, dtype=torch.int64, device=x.main.device) for _ in self.primes]
        return self.wrap(self.named("v", nowhere), Note(CONSTANT), torch.int64)

    def _contents(self, x: Number) -> list[Tensor]:
        return [x.part(n) for n in self.values] + [x.full(n) for n in self.logs]

    def _record(self, *numbers: Number) -> Degree:
        """The record of contents."""
        return join(
            r for x in numbers for r in (x.note.value, x.note.log, x.note.log_inverse) if r is not None
        )

    def _shift(self, of: list[Number], digests: list[Any], hole: Tensor) -> Number:
        """(0, 1/u), u a keyed random function; −∞ where there is nothing to take the maximum of."""
        self.shift_used = True
        self.ledger.opaque(hole.numel(), self._record(*of))
        u = [residues.nonzero(residues.mix(d.clone()), p) for d, p in zip(digests, self.primes, strict=True)]
        parts = self.named("v", [torch.zeros_like(t) for t in u])
        parts |= self.named("log", [residues.inverse(t, p) for t, p in zip(u, self.primes, strict=True)])
        if bool(hole.any()):
            parts["hole"] = hole
        inverse = self.ledger.invert(VARIABLE, u[0].numel(), tuple(u[0].shape))
        return self.wrap(parts, Note(CONSTANT, inverse, VARIABLE, shift=True), of[0].dtype)

    def is_shift(self, x: Number) -> bool:
        return bool(x.note.shift)

    def is_minus_infinity(self, x: Number) -> Tensor:
        hole = x.full("hole").clone()
        if x.note.log is not None and self.ledger.gates_of(x.note.log) and not bool(hole.all()):
            raise no_meaning(
                aten.eq.Scalar, "compares the logarithm of a relu or clamp, which may be −∞, with it"
            )
        return hole

    def is_zero(self, x: Number) -> Tensor:
        zero = self.vanishing(self.plain(x))
        if bool(zero.any()):  # believed, as in log
            self.ledger.zeros.append((zero.numel(), x.note.value))
        if self.ledger.gates_of(x.note.value) and not bool(zero.all()):
            raise no_meaning(
                aten.eq.Tensor,
                "compares the result of a comparison, relu or clamp, which for some inputs is equal",
            )
        return zero

    def scattered(self, note: Note) -> Note:
        return note.plain().moved({})
