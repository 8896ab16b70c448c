"""Which cases ``gradderiv bench attention`` measures: a few, the usual ones, or all."""

from __future__ import annotations

from typing import NamedTuple

from gradderiv.bench.attention_ways import DEFAULT, DOUBLE, FIRST, HVP, JVP, MATH, OURS, PLAIN, TASKS, Case

HEADLINE = Case(12, 4096, 64, True)  # a layer of GPT-2 small's width
ALL, SECOND = tuple(TASKS), (DOUBLE, JVP, HVP)
EVERY, FEW = (OURS, DEFAULT, PLAIN, MATH), (OURS, DEFAULT, MATH)


class Asked(NamedTuple):
    """A case, the tasks and the ways that are measured at it."""

    case: Case
    tasks: tuple[str, ...] = ALL
    ways: tuple[str, ...] = EVERY


class Mode(NamedTuple):
    """How much is measured.

    Attributes:
        budget: seconds of repeats for each row.
        limit: seconds that one call may be expected to take.
        heads: of the cases that show how memory grows, d_k 64 and causal.
        lengths: of ours there.
        dense: of MATH there, which holds matrices of n².
    """

    cases: tuple[Asked, ...]
    budget: float
    limit: float
    heads: int
    lengths: tuple[int, ...]
    dense: tuple[int, ...]

    @property
    def growth(self) -> list[Asked]:
        """The cases whose memory alone is measured."""
        lengths = sorted({*self.lengths, *self.dense})
        return [
            Asked(Case(self.heads, n, 64, True), ALL, ways)
            for n in lengths
            if (ways := (OURS,) * (n in self.lengths) + (MATH,) * (n in self.dense))
        ]


SMALL = (Case(8, 128, 64, False), Case(96, 128, 128, True), Case(8, 512, 64, True))

QUICK = Mode(
    (Asked(SMALL[0]), Asked(SMALL[2]._replace(heads=4))),
    budget=0.1, limit=10, heads=4, lengths=(256, 512, 1024), dense=(256, 512, 1024),
)  # fmt: skip
USUAL = Mode(
    (
        *map(Asked, SMALL),
        Asked(Case(8, 1024, 64, False)),
        Asked(Case(8, 2048, 128, True), (FIRST,)),
        Asked(HEADLINE, ways=FEW),
    ),
    budget=1, limit=45, heads=4, lengths=(512, 1024, 2048, 4096), dense=(512, 1024, 2048),
)  # fmt: skip
LARGE = Mode(
    (
        *map(Asked, SMALL),
        Asked(Case(48, 512, 64, False)),
        Asked(Case(8, 1024, 64, False)),
        Asked(Case(12, 1024, 128, True)),
        Asked(Case(8, 2048, 64, False)),
        Asked(Case(8, 2048, 128, True)),
        Asked(HEADLINE),
        Asked(HEADLINE._replace(heads=8, d=128, causal=False)),
        Asked(Case(8, 8192, 64, True)),
    ),
    budget=10, limit=300, heads=4, lengths=(2048, 4096, 8192, 16384, 32768), dense=(512, 1024, 2048),
)  # fmt: skip
