"""The result of :mod:`gradderiv.bench.attention` as text, 80 columns wide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gradderiv.bench import attention_notes as notes
from gradderiv.bench.attention_notes import bytes_of
from gradderiv.bench.attention_rows import median_of
from gradderiv.bench.attention_ways import (
    AGAIN,
    DEFAULT,
    DOUBLE,
    FIRST,
    MATH,
    OURS,
    PLAIN,
    TASKS,
    Case,
)  # fmt: skip
from gradderiv.bench.text import duration, wrap

if TYPE_CHECKING:
    from gradderiv.bench.attention_result import BenchAttention
    from gradderiv.bench.attention_rows import Row

OTHERS = (MATH, PLAIN, DEFAULT)
SECOND_STEP = "  second step"


def render(result: BenchAttention) -> str:
    """A block for every case, how memory grows, what is missing and why, what was aimed at."""
    blocks = [_head(result), *(_case(result, case) for case in result.cases), notes.growth(result)]
    blocks += [notes.legend(result), notes.missing(result), notes.targets(result)]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def _head(result: BenchAttention) -> list[str]:
    clock = "time of the processor" if result.threads == 1 and result.device == "cpu" else "time of the clock"
    threads = "one thread" if result.threads == 1 else f"{result.threads} threads"
    counts = [len(r.times) for r in result.rows if r.times]
    repeats = f"{min(counts)} to {max(counts)}" if counts else "none"
    return wrap(
        f"Attention and its derivatives, {result.dtype}, {result.device}, torch {torch.__version__}, {threads}, {clock}: medians of {repeats} "
        f"(1 where a call is slow), in turns. Memory: the most held beyond the inputs. ours: seconds and bytes; the others: how many times as much as ours.",
        "",
    )


# ---------------------------------------------------------------- a case


def _case(result: BenchAttention, case: Case) -> list[str]:
    names = "".join(f"{way:>8}" for way in OTHERS)
    lines = [
        f"{case}",
        f"{'':<16}{'time':>8}{'':24}{'memory':>8}",
        f"{'':<16}{OURS:>8}{names}{OURS:>8}{names}",
    ]
    for task in TASKS:
        if result.row(case, task, OURS) is None:
            continue
        lines.append(_line(result, case, task, "time", task) + _cells(result, case, task, "memory"))
        if task == DOUBLE:
            lines.append(_line(result, case, task, "second", SECOND_STEP))
    return lines + _null(result, case)


def _line(result: BenchAttention, case: Case, task: str, what: str, name: str) -> str:
    return f"{name:<16}{_cells(result, case, task, what)}"


def _cells(result: BenchAttention, case: Case, task: str, what: str) -> str:
    own = _own(result.row(case, task, OURS), what)
    return f"{own:>8}" + "".join(f"{_times(result.ratio(case, task, way, what)):>8}" for way in OTHERS)


def _own(row: Row | None, what: str) -> str:
    if row is None:
        return "–"
    if what == "memory":
        return bytes_of(row.memory)
    middle = median_of(row.second if what == "second" else row.times)
    return "–" if middle is None else duration(middle)


def _null(result: BenchAttention, case: Case) -> list[str]:
    """Ours beside the default kernel, and that beside itself: what of the one is noise."""
    found = [_beside(result, case, way) for way in (OURS, AGAIN)]
    if None in found:
        return []
    return wrap(f"first, by the default kernel: ours {found[0]}; itself {found[1]}", "  ")


def _beside(result: BenchAttention, case: Case, way: str) -> str | None:
    ratio = result.ratio(case, FIRST, way, by=DEFAULT)
    more = result.difference(case, FIRST, way, DEFAULT)
    return None if ratio is None or more is None else f"{ratio:.2f} × ({1e6 * more:+,.0f} µs)"


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio:.0f}" if ratio >= 99.5 else f"{ratio:.3g}" if ratio >= 1 else f"{ratio:.2g}"
