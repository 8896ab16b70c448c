"""The result of :mod:`gradderiv.bench.verify` as text, 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from gradderiv.bench.checkers import CHECKERS, Checker
from gradderiv.bench.layers import D, H, N
from gradderiv.checks.mutants import PEERS

if TYPE_CHECKING:
    from gradderiv.bench.verify import BenchVerify

WIDTH = 80


def render(result: BenchVerify) -> str:
    """Checkers down, scales across: how many were caught; false alarms, time; and what was missed."""
    from gradderiv.bench.verify import OURS, TIMED_AT

    what = (
        f"{len(PEERS)} wrong attention backwards and a right one, each a hand-written autograd.Function. n={N}, d={D}, h={H}, "
        f"self-attention with biases, float64; X ~ N(0, 1), weights and biases ~ N(0, s²). "
        f"torch {torch.__version__}, one thread; time: of the processor, on the right layer at s = {TIMED_AT:g}, the median of {len(result.times[OURS])}."
    )
    caught = f"caught of {len(PEERS)} at s ="
    width = max(7, -(-len(caught) // len(result.scales)))  # of a column of counts
    lines = [
        *wrap(what, ""),
        "",
        f"{'':<15}{caught:>{width * len(result.scales)}}{'false':>10}{'':>10}{'time':>8}",
    ]
    scales = "".join(f"{s:>{width}g}" for s in result.scales)
    lines.append(f"{'':<15}{scales}{'alarms':>10}{'time':>10}{'÷ ours':>8}")
    for checker in CHECKERS:
        alarms, tried = result.false_alarms(checker)
        counts = "".join(f"{_count(result.caught(checker, s)):>{width}}" for s in result.scales)
        took = result.median(checker)
        lines.append(
            f"{checker:<15}{counts}{f'{alarms} of {tried}':>10}{duration(took):>10}{took / result.median(OURS):>8.2g}"
        )
    lines += ["", *_missed(result), "", *legend(CHECKERS)]
    return "\n".join(lines)


def _count(caught: list[int] | None) -> str:
    if caught is None:
        return "–"
    low, high = min(caught), max(caught)
    return f"{low}" if low == high else f"{low}–{high}"


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _missed(result: BenchVerify) -> list[str]:
    lines = []
    for checker in CHECKERS:
        for scale in result.scales:
            missed = result.missed(checker, scale)
            if missed:
                names = "all" if len(missed) == len(PEERS) else ", ".join(missed)
                lines += wrap(f"{checker} did not catch, at s = {scale:g}: {names}", "")
        refused = sum(t.verdict == "refused" for t in result.select(checker))
        if refused:
            lines += wrap(f"{checker} refused {refused} times: nothing could be shown there.", "")
    return lines or ["Nothing was missed."]


def legend(checkers: Mapping[str, Checker]) -> list[str]:
    """What every checker is: the first line of what it says of itself."""
    lines = []
    for name, checker in checkers.items():
        first = (
            (checker.__doc__ or "")
            .splitlines()[0]
            .replace("``", "")
            .replace(":func:`gradderiv.check`", "gradderiv.check")
            .replace(":func:`gradderiv.prove`", "gradderiv.prove")
        )
        lines += wrap(f"{name}: {first}", "")
    return lines


def wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )
