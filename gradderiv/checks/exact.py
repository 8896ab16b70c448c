"""Pairs of tensors that should be equal, run over the field until the bound asked for is reached.

A run that meets a constant like 1/√2 asks for primes in which 2 is a square, one that divides by zero for another point, one with too many
exponentials for another lane; :func:`exactly` answers and starts again. What depends on the maximum of a row is run under two shifts, at
the same point and with the same keys, and must not move.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradderiv.errors import NoExactMeaning, message
from gradderiv.numbers.field import Field
from gradderiv.numbers.lanes import DrawAgain
from gradderiv.numbers.residues import Root
from gradderiv.numbers.scout import Scout

log = logging.getLogger("gradderiv")

TARGET = -40.0  # log₂ of the failure probability asked for
REDRAWS = 3
MOST_LANES = 16


@dataclass
class Start:
    """What earlier runs of a program have shown that it needs; runs to come begin with it."""

    roots: frozenset[Root] = frozenset()
    lanes: int = 2


Pairs = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Outcome:
    """What the field says of one pair.

    Attributes:
        wrong: where value and reference differ in some lane.
        moved: where the value depends on the shift that stands for the maximum of a row.
        log2_failure: log₂ of the probability that a difference was missed.
        log2_failure_over_q: the same where an error that is a multiple of a drawn prime counts too.
        zero: the reference is zero, everywhere and in every lane.
        factor: value/reference, where that is one small rational for all entries.
    """

    wrong: Tensor
    moved: Tensor
    log2_failure: float
    log2_failure_over_q: float
    lanes: int
    zero: bool
    factor: str = ""

    @property
    def equal(self) -> bool:
        return not bool(self.wrong.any() or self.moved.any())


def exactly(
    run: Callable[[Field], Pairs],
    *,
    seed: int = 0,
    target: float = TARGET,
    lanes: int = 2,
    device: str = "cpu",
    start: Start | None = None,
    scout: bool = False,
    **options: Any,
) -> dict[str, Outcome]:
    """Compare the pairs that ``run`` returns, entry by entry, over random points of prime fields.

    Args:
        run: given a field, returns pairs (value, reference) under their names. Called again with another field as needed.
        seed: draws primes, points and keys.
        target: log₂ of the failure probability to be reached for every pair.
        lanes: how many to begin with.
        start: begin with what it says, and write into it what was needed; for runs of one program.
        scout: find out beforehand which roots and how many lanes are needed, by a run without products; for large ones.
        options: of :class:`~gradderiv.numbers.field.Field`.

    Raises:
        NoExactMeaning: the program does something that has no exact meaning.
        DrawAgain: every one of the points drawn has a zero denominator.
    """
    start, draw = start or Start(lanes=lanes), 0
    if scout:
        _scouted(run, start, seed, target, device, options)
    while True:
        roots, lanes = start.roots, start.lanes
        field = Field(seed, lanes, roots=roots, draw=draw, target=target, device=device, **options)
        try:
            pairs = run(field)
            _require_bound(field, pairs, target)
            again = None
            if field.shift_used:
                other = Field(
                    seed, lanes, roots=roots, draw=draw, target=target, device=device, shift=1, **options
                )
                again = run(other)
        except DrawAgain as reason:
            log.debug("drawing again: %s", reason)
            if reason.root is not None:
                start.roots |= {reason.root}
            elif reason.lanes is not None and reason.lanes <= MOST_LANES:
                start.lanes = reason.lanes
            elif reason.lanes is not None:
                raise NoExactMeaning(
                    message(
                        f"the exact test needs a failure probability of 2^{target:.0f}",
                        f"out of reach with {MOST_LANES} primes",
                        "polynomials of a degree near 2^31: inverses inside inverses of large tensors",
                        "test a smaller size of the same program",
                    )
                ) from reason
            elif (draw := draw + 1) > REDRAWS:
                raise
            continue
        return {
            name: _outcome(field, pair, None if again is None else again[name])
            for name, pair in pairs.items()
        }


def _scouted(
    run: Callable[[Field], Pairs],
    start: Start,
    seed: int,
    target: float,
    device: str,
    options: dict[str, Any],
) -> None:
    """Find out the roots and the lanes to begin with."""
    while True:
        field = Scout(seed, roots=start.roots, device=device, **options)
        try:
            pairs = run(field)
        except DrawAgain as reason:
            if reason.root is None:
                return
            start.roots |= {reason.root}
            continue
        while start.lanes < MOST_LANES and any(
            field.failure(*pair, lanes=start.lanes) > target for pair in pairs.values()
        ):
            start.lanes += 1
        return


def _require_bound(field: Field, pairs: Pairs, target: float) -> None:
    """The bound asked for is reached, or as many lanes as it needs are."""
    lanes = field.lanes
    while lanes <= MOST_LANES and any(field.failure(*pair, lanes=lanes) > target for pair in pairs.values()):
        lanes += 1
    if lanes > field.lanes:
        raise DrawAgain("too few lanes for the bound asked for", lanes=lanes)


def _outcome(field: Field, pair: tuple[Tensor, Tensor], again: tuple[Tensor, Tensor] | None) -> Outcome:
    value, reference = pair
    if value.shape != reference.shape:
        raise ValueError(f"shapes differ: {tuple(value.shape)} and {tuple(reference.shape)}")
    wrong = field.differs(value, reference)
    moved = torch.zeros_like(wrong)
    if again is not None:
        moved = field.differs(value, again[0])
        wrong = wrong | field.differs(*again)
    zero = not bool(field.differs(reference, torch.zeros_like(reference)).any())
    factor = field.common_factor(value, reference) if bool(wrong.all()) else ""
    return Outcome(wrong, moved, field.failure(*pair), field.failure_over_q(*pair), field.lanes, zero, factor)
