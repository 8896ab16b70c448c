"""What forward and backward of attention on a graph hold at most, beyond their inputs: measured in a process of its own.

The peak of a process never falls by itself; Linux can be told to forget it (``/proc/self/clear_refs``). Elsewhere nothing is measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from gradderiv.bench.graph import OURS, WARM, WAYS, inputs, once, pyramid
from gradderiv.bench.sizes import peak

Found = tuple[str, int, int | None]


def apart(sizes: Sequence[int], seed: int = 0, threads: int = 1) -> Iterator[Found]:
    """(way, n, bytes) for every way at every length; None where the process could not tell."""
    command = [
        sys.executable,
        "-c",
        f"from {__name__} import child; child()",
        *map(str, (seed, threads, *sizes)),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        for line in process.stdout or ():
            way, n, found = json.loads(line)
            yield way, n, found


def child() -> None:
    """Measure what the command line says; a line of JSON for every result."""
    seed, threads, *sizes = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    for way, n, found in measured(sizes, seed):
        print(json.dumps([way, n, found]), flush=True)


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


def forget() -> int | None:
    """Give free memory back, and let the peak begin with what is held now; that, in bytes, or None."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak()
