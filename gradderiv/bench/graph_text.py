"""The result of :mod:`gradderiv.bench.graph` as text, 79 columns wide."""

from __future__ import annotations

import statistics
import textwrap
from typing import TYPE_CHECKING

import torch

from gradderiv.bench.text import duration

if TYPE_CHECKING:
    from gradderiv.bench.graph import BenchGraph, Row

WIDTH = 79


def render(result: BenchGraph) -> str:
    """A block of four ways for every length, each beside ours."""
    from gradderiv.bench.graph import HEADS, OURS, WAYS
    from gradderiv.bench.graph import WIDTH as d

    what = (
        f"Attention on Pyraformer's pyramids: 4 scales of n, n/4, n/16, n/64 nodes, a window of 3, 4 children, a parent. {HEADS} heads of {d}, float32, "
        f"torch {torch.__version__}, {'one thread, time of the processor' if result.threads == 1 else f'{result.threads} threads, time of the clock'}: medians of "
        f"{_repeats(result)}; forward is without gradients. Memory: the most that forward and backward held beyond their inputs, lists and mask. ×: as many times as ours."
    )
    lines = textwrap.wrap(what, WIDTH)
    for n, graph in result.graphs.items():
        mean = graph["edges"] / graph["nodes"]
        lines += [
            "",
            f"n = {n}: {graph['nodes']} nodes, {mean:.1f} neighbours on average, at most {graph['longest']}: {mean / graph['nodes']:.2%} of all",
            f"{'':<8}{'forward':>12}{'×':>8}{'+ backward':>14}{'×':>8}{'memory':>14}{'×':>8}",
        ]
        lines += [_line(result, result.row(way, n)) for way in WAYS]
    worst = max(r.error or 0.0 for r in result.rows)
    lines += [
        "",
        *textwrap.wrap(f"All give the same O, dQ, dK and dV, to {worst:.0e} of the largest entry.", WIDTH),
    ]
    for way, make in WAYS.items():
        lines += textwrap.wrap(f"{way}: {make.__doc__}", WIDTH, subsequent_indent="  ")
    lines += _verdict(result, OURS)
    return "\n".join(lines)


def _repeats(result: BenchGraph) -> str:
    counts = {len(r.both) for r in result.rows}
    return (
        str(max(counts))
        if len(counts) == 1
        else f"{max(counts)} (at least {min(counts)} where they are slow)"
    )


def _line(result: BenchGraph, row: Row) -> str:
    times = [(statistics.median(t), what) for t, what in ((row.forward, "forward"), (row.both, "both"))]
    cells = "".join(
        f"{duration(t):>{width}}{_times(result.ratio(row.way, row.n, what)):>8}"
        for (t, what), width in zip(times, (12, 14), strict=True)
    )
    return f"{row.way:<8}{cells}{_bytes(row.memory):>14}{_times(result.ratio(row.way, row.n, 'memory')):>8}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}"


def _bytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.0f} MB" if count >= 9.95e6 else f"{count / 1e6:.1f} MB"


def _verdict(result: BenchGraph, ours: str) -> list[str]:
    """Where ours is not the fastest and the smallest, in so many words."""
    lost = [
        f"{row.way} at n = {row.n}, {name} ({ratio:.2f} ×)"
        for row in result.rows
        for what, name in (("forward", "forward"), ("both", "forward and backward"), ("memory", "memory"))
        if row.way != ours and (ratio := result.ratio(row.way, row.n, what)) is not None and ratio < 1
    ]
    text = (
        "Ours takes the least time and memory in every row."
        if not lost
        else f"Better than ours: {'; '.join(lost)}."
    )
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")
