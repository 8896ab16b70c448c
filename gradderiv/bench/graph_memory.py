"""What forward and backward of attention on a graph hold at most, beyond their inputs: measured in a process of its own.

The peak of a process never falls by itself; Linux can be told to forget it (``/proc/self/clear_refs``). Elsewhere nothing is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch

from gradderiv.bench.apart import Apart, say
from gradderiv.bench.graph import OURS, WARM, WAYS, inputs, once, pyramid
from gradderiv.memory import forget, peak

Found = tuple[str, int, int | None]


def apart(sizes: Sequence[int], seed: int = 0, threads: int = 1) -> Iterator[Found]:
    """(way, n, bytes) for every way at every length; None where the process could not tell."""
    yield from Apart(__name__, seed, threads, *sizes)


def child() -> None:
    """Measure what the command line says; a line of JSON for every result."""
    seed, threads, *sizes = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    for way, n, found in measured(sizes, seed):
        say([way, n, found])


def measured(sizes: Sequence[int], seed: int) -> Iterator[Found]:
    """Ours first: what an earlier one leaves behind would hide what a later one takes."""
    ways = [OURS, *(way for way in reversed(WAYS) if way != OURS)]
    small = pyramid(WARM)
    for way in ways:  # kernels, threads and their buffers
        once(WAYS[way](small), inputs(len(small.neighbours), seed), backward=True)
    for n in sizes:
        graph = pyramid(n)
        given = inputs(len(graph.neighbours), seed)
        for way in ways:
            attend = WAYS[way](graph)
            before = forget()
            once(attend, given, backward=True)
            most = peak()
            yield way, n, None if before is None or most is None else max(most - before, 0)
