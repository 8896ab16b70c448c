"""k primes at once: where the residues of a field live, their notes, and how a run asks for another point."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.errors import NoExactMeaning, message
from gradderiv.numbers import residues
from gradderiv.numbers.alignment import Moves, seen_through, written_through
from gradderiv.numbers.ledger import CONSTANT, VARIABLE, Degree, Ledger
from gradderiv.numbers.ledger import join as join_degrees
from gradderiv.numbers.number import Number, Parts, System
from gradderiv.numbers.residues import Root

MINUS_ONE = -1  # among the roots asked for: i, for sine and cosine


class FieldTensor(Number):
    """A tensor of numbers mod a prime, in several lanes."""


class DrawAgain(Exception):
    """This point cannot carry the run: try again with the next draw, these roots or more lanes."""

    def __init__(self, why: str, *, root: Root | None = None, lanes: int | None = None) -> None:
        super().__init__(why)
        self.root, self.lanes = root, lanes


class Note(NamedTuple):
    """The degree records of a, of r and of 1/r; that of 1/a where it is known; whether the entries are shifts, which have no order."""

    value: Degree
    log: Degree | None = None
    log_inverse: Degree | None = None
    inverse: Degree | None = None
    shift: bool = False

    def plain(self) -> Note:
        """Without what an operation on entries does away with."""
        return self._replace(inverse=None, shift=False)

    @property
    def aligned(self) -> bool:
        """Whether some record says in which rows its inverses lie."""
        records = (self.value, self.log, self.log_inverse, self.inverse)
        return any(r is not None and r.rows for r in records)

    def moved(self, moves: Moves) -> Note:
        """After the axes of the tensor have moved."""
        if not self.aligned:
            return self
        records = (self.value, self.log, self.log_inverse, self.inverse)
        log, log_inverse, inverse = (None if r is None else r.moved(moves) for r in records[1:])
        return Note(self.value.moved(moves), log, log_inverse, inverse, self.shift)


class Lanes(System):
    """What all operations over the field share; arguments as in :class:`~gradderiv.numbers.field.Field`."""

    tensor = FieldTensor
    main = "v0"
    rank = 1
    gates = True

    def __init__(
        self,
        seed: int = 0,
        lanes: int = 3,
        *,
        roots: frozenset[Root] = frozenset(),
        draw: int = 0,
        shift: int = 0,
        target: float = 0.0,
        device: str = "cpu",
        odd: bool = False,
        fills_are_minus_infinity: bool = False,
    ) -> None:
        name = f"{seed}/{draw}"
        self.seed, self.lanes, self.roots, self.target, self.odd = seed, lanes, roots, target, odd
        self.device, self.fills_are_minus_infinity = device, fills_are_minus_infinity
        self.primes = [residues.draw_prime(f"{name}/p{j}", roots) for j in range(lanes)]
        self.shift, self.draw = shift, draw
        self.keys = {
            function: [residues.Keyed(f"{name}/{function}{j}", arity * lanes) for j in range(lanes)]
            for function, arity in (
                ("exp", 1),
                ("root", 1),
                ("erf", 1),
                ("gate", 1),
                ("pair", 2),
                ("equal", 2),
            )
        }
        self.shifts = [residues.Keyed(f"{name}/{shift}/shift{j}", 2 * lanes) for j in range(lanes)]
        self.generator = torch.Generator().manual_seed(residues.draw_prime(name, frozenset()))
        self.ledger = Ledger()
        self.free = {  # constants of which nothing is used: 1/√π and log 2
            constant: [
                int.from_bytes(hashlib.sha256(f"{name}/{constant}{j}".encode()).digest()[:8]) % (p - 1) + 1
                for j, p in enumerate(self.primes)
            ]
            for constant in ("pi", "ln2")
        }
        self.readings: dict[str, None] = {}
        self.fills: dict[float, None] = {}
        self.shift_used = False
        self.values = [f"v{j}" for j in range(lanes)]
        self.logs = [f"log{j}" for j in range(lanes)]
        self.fill = {**dict.fromkeys(self.values, 0), **dict.fromkeys(self.logs, 1), "hole": False}

    def random(self, *shape: int, dtype: torch.dtype = torch.float64) -> Number:
        """A tensor of independent random entries: free variables."""
        parts = {
            name: torch.randint(0, p, shape, generator=self.generator).to(self.device)
            for name, p in zip(self.values, self.primes, strict=True)
        }
        return self.wrap(parts, Note(VARIABLE), dtype)

    def uninitialised(self, shape: torch.Size, like: Number) -> Number:
        return self.random(*shape, dtype=like.dtype)

    def show(self, x: Number) -> str:
        return f"shape={tuple(x.shape)}, lanes={self.lanes}"

    # ---- notes

    def join(self, notes: list[Any]) -> Note:
        if len(notes) == 1:
            return notes[0]

        def joined(field: str) -> Degree | None:
            found = [r for r in (getattr(n, field) for n in notes) if r is not None]
            return join_degrees([CONSTANT, *found]) if found else None

        return Note(join_degrees([n.value for n in notes]), joined("log"), joined("log_inverse"))

    def seen(self, x: Number) -> Note:
        if not x.cell.note.aligned:
            return x.cell.note
        stored = x.cell.parts[self.main]
        if x.main.untyped_storage().data_ptr() != stored.untyped_storage().data_ptr():
            return x.cell.note.moved({})
        return x.cell.note.moved(seen_through(x.main, stored))

    def written(self, x: Number, new: Number) -> Note:
        note = new.note
        return note.moved(written_through(x.main, x.cell.parts[self.main])) if note.aligned else note

    # ---- parts

    def plain(self, x: Number) -> list[Tensor]:
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

    def has_log(self, x: Number) -> bool:
        return self.logs[0] in x.cell.parts

    def named(self, name: str, tensors: list[Tensor]) -> Parts:
        return {f"{name}{j}": t for j, t in enumerate(tensors)}

    def each(self, f: Callable[..., Tensor], *operands: list[Any]) -> list[Tensor]:
        """f(operand of the lane …, its prime) in every lane."""
        return [f(*lane, p) for *lane, p in zip(*operands, self.primes, strict=True)]

    def vanishing(self, lanes: list[Tensor]) -> Tensor:
        """Where an entry is zero in every lane."""
        return torch.stack([t == 0 for t in lanes]).all(0)

    def inverse(self, lanes: list[Tensor]) -> list[Tensor]:
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
        return self.each(residues.inverse, lanes)
