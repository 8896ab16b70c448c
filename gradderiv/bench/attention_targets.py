"""What attention is meant to reach, and whether it does in a run: a figure beside each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradderiv.bench.attention_cases import HEADLINE, SECOND
from gradderiv.bench.attention_ways import AGAIN, DEFAULT, DOUBLE, FIRST, HVP, JVP, MATH, OURS, TASKS, Case

if TYPE_CHECKING:
    from gradderiv.bench.attention_result import BenchAttention

LONG = 512  # tokens from which the ratio of times counts, and the difference below
AT_MOST, MORE = 1.05, 50e-6  # × the default's time; seconds more than it
PAGES = 1_000_000  # bytes to which the peak of a process can be compared
LINEAR = 1.1  # the exponent up to which growth counts as linear
FASTER = {DOUBLE: (4, 50), JVP: (2, 20), HVP: (3, 50)}  # × MATH's speed, and MATH's memory by ours


@dataclass(frozen=True)
class Target:
    """One aim: in words, what was measured, and whether that meets it; None where it was not measured."""

    aim: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "not met", None: "not measured"}[self.met]


def targets(result: BenchAttention) -> list[Target]:
    """All of them, in their order."""
    return [_long(result), _short(result), _memory(result), *_headline(result), _linear(result)]


Figure = tuple[float, Case]


def _worst(
    result: BenchAttention, figure: Callable[[Case], float | None], long: bool | None
) -> Figure | None:
    """The largest figure of first order, and where: at long cases, at short ones, or at all."""
    cases = [c for c in result.cases if long is None or (c.n >= LONG) == long]
    found = [(value, case) for case in cases if (value := figure(case)) is not None]
    return max(found, default=None)


def _long(result: BenchAttention) -> Target:
    def ratio(case: Case) -> float | None:
        return result.ratio(case, FIRST, OURS, by=DEFAULT)

    aim = f"first order at n ≥ {LONG}: at most {AT_MOST:g} × the default kernel's time"
    worst = _worst(result, ratio, long=True)
    if worst is None:
        return Target(aim, "", None)
    value, case = worst
    null = result.ratio(case, FIRST, AGAIN, by=DEFAULT)
    beside = "" if null is None else f"; the kernel by itself {null:.2f} ×"
    return Target(aim, f"at worst {value:.2f} × ({case}{beside})", value <= AT_MOST)


def _short(result: BenchAttention) -> Target:
    def more(case: Case) -> float | None:
        return result.difference(case, FIRST, OURS, DEFAULT)

    aim = f"first order below: at most {MORE * 1e6:.0f} µs more"
    worst = _worst(result, more, long=False)
    if worst is None:
        return Target(aim, "", None)
    value, case = worst
    return Target(aim, f"at worst {value * 1e6:+.0f} µs ({case})", value <= MORE)


def _memory(result: BenchAttention) -> Target:
    def more(case: Case) -> float | None:
        rows = [result.row(case, FIRST, way) for way in (OURS, DEFAULT)]
        held = [row.memory for row in rows if row is not None and row.memory is not None]
        return held[0] - held[1] if len(held) == 2 else None

    aim = f"first order: at most the default kernel's memory, to {PAGES / 1e6:g} MB"
    worst = _worst(result, more, long=None)
    if worst is None:
        return Target(aim, "", None)
    value, case = worst
    return Target(aim, f"at worst {value / 1e6:+.1f} MB ({case})", value <= PAGES)


def _headline(result: BenchAttention) -> Iterator[Target]:
    for task, (speed, memory) in FASTER.items():
        for what, least, words in (
            ("time", speed, "faster than MATH"),
            ("memory", memory, "less memory than MATH"),
        ):
            aim = f"{task} at {HEADLINE}: at least {least} × {words}"
            value = result.ratio(HEADLINE, task, MATH, what)
            text = "" if value is None else f"{value:.1f} ×"
            yield Target(aim, text, None if value is None else value >= least)


def _linear(result: BenchAttention) -> Target:
    aim = f"memory linear in n: exponents of at most {LINEAR:g}"
    found = {task: p for task in TASKS if (p := result.exponent(task)) is not None}
    text = ", ".join(f"{task} {p:.2f}" for task, p in found.items())
    whole = {FIRST, *SECOND} == set(found)
    return Target(aim, text, max(found.values()) <= LINEAR if whole else None)
