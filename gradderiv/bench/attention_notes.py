"""What stands below the cases in the text of :mod:`gradderiv.bench.attention`: how memory grows, what is what, what is missing, what was aimed at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gradderiv.bench import attention_targets
from gradderiv.bench.attention_ways import AGAIN, MATH, OURS, TASKS, WAYS
from gradderiv.bench.text import wrap

if TYPE_CHECKING:
    from gradderiv.bench.attention_result import BenchAttention
    from gradderiv.bench.attention_rows import Row


def growth(result: BenchAttention) -> list[str]:
    lines: list[str] = []
    for way in (OURS, MATH):
        lengths = sorted({r.case.n for r in result.growth if r.way == way})
        if lengths:
            lines.append(f"{f'memory, {way}':<16}" + "".join(f"{n:>10}" for n in lengths) + f"{'grows':>10}")
            lines += [_grown(result, task, way, lengths) for task in TASKS]
    if lines:
        heads = result.growth[0].case
        lines.insert(0, f"By n, {heads.heads} heads, d_k = {heads.d}{', causal' * heads.causal}:")
    return lines


def _grown(result: BenchAttention, task: str, way: str, lengths: list[int]) -> str:
    held, p = dict(result.points(task, way)), result.exponent(task, way)
    cells = "".join(f"{bytes_of(held.get(n)):>10}" for n in lengths)
    return f"{task:<16}{cells}{'–' if p is None else f'n^{p:.2f}':>10}"


def legend(result: BenchAttention) -> list[str]:
    lines = []
    for name, what in (WAYS | TASKS).items():
        lines += wrap(f"{name}: {what.__doc__}", "")
    differs = [r.differs for r in result.rows + result.growth if r.differs is not None]
    if differs:
        lines += wrap(f"All give the same at a quarter of n, to {max(differs):.0e} of the largest entry.", "")
    return lines


def missing(result: BenchAttention) -> list[str]:
    """Every reason once, with where it holds."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in result.rows + result.growth:
        if row.trouble and row.way != AGAIN:
            found.setdefault((row.way, row.trouble), []).append(row)
    reasons = [_reason(result, way, why, rows) for (way, why), rows in found.items()]
    return [line for reason in [*reasons, *_left_out(result)] for line in wrap(reason, "")]


def _left_out(result: BenchAttention) -> Iterator[str]:
    for case in result.cases:
        there = {row.way for row in result.rows if row.case == case}
        for way in WAYS:
            if way not in there:
                yield f"– {way} at {case.heads} × {case.n} (heads × n): left to --large"


def _reason(result: BenchAttention, way: str, why: str, rows: list[Row]) -> str:
    tasks = list(dict.fromkeys(row.task for row in rows))
    asked = sum(r.way == way and r.task in tasks for r in result.rows + result.growth)
    places = ", ".join(dict.fromkeys(f"{row.case.heads} × {row.case.n}" for row in rows))
    where = "" if len(rows) == asked else f" at {places} (heads × n)"
    return f"– {way}, {', '.join(tasks)}{where}: {why}"


def targets(result: BenchAttention) -> list[str]:
    lines = []
    for target in attention_targets.targets(result):
        figure = f", {target.measured}" if target.measured else ""
        lines += wrap(f"{target.aim}: {target.verdict}{figure}", "")
    return lines


def bytes_of(count: int | None) -> str:
    """In at most seven characters."""
    if count is None:
        return "–"
    unit, size = ("GB", 1e9) if count >= 999.5e6 else ("MB", 1e6) if count >= 999.5e3 else ("kB", 1e3)
    return f"{count / size:.3g} {unit}"
