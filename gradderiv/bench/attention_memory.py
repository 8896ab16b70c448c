"""What attention holds beyond its inputs, what there is room for, and how the one grows with n."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from gradderiv.memory import forget, peak

CAP = 14 * 10**9  # bytes that a case may hold at most, whatever is free
SHARE = 0.8  # of what is free
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's names
PAGES, POOL = 2**16, 2**25  # bytes: while memory is read; what glibc settles at by itself, while time is


def start(device: str) -> int | None:
    """Let the peak begin with what is held now; that, in bytes."""
    if device == "cpu":
        _give_back_from(PAGES)
        return forget()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def most(device: str) -> int | None:
    """The peak since :func:`start`."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    _give_back_from(POOL)
    return peak()


def _give_back_from(size: int) -> None:
    """Tell glibc to give tensors of so many bytes back when they are freed: then the process holds what is alive, and no pool."""
    with contextlib.suppress(OSError, AttributeError):
        set_option = ctypes.CDLL("libc.so.6").mallopt
        set_option(M_MMAP_THRESHOLD, size)
        set_option(M_TRIM_THRESHOLD, 2 * size)


def free(device: str) -> int | None:
    """The bytes that can be had, where the system says."""
    if device != "cpu":
        return torch.cuda.mem_get_info()[0]
    with contextlib.suppress(OSError):
        return available(Path("/proc/meminfo").read_text())
    return None


def available(meminfo: str) -> int | None:
    """MemAvailable of Linux, in bytes."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def room(device: str) -> int:
    """The bytes that one case may hold."""
    there = free(device)
    share = CAP if there is None else int(SHARE * there)
    return min(share, CAP) if device == "cpu" else share


def exponent(points: Sequence[tuple[int, float]]) -> float | None:
    """p of memory ≈ c nᵖ, by least squares of the logarithms; None for fewer than two lengths."""
    known = [(math.log(n), math.log(held)) for n, held in points if held > 0]
    if len({x for x, _ in known}) < 2:
        return None
    mean_x, mean_y = (sum(values) / len(known) for values in zip(*known, strict=True))
    across = sum((x - mean_x) * (y - mean_y) for x, y in known)
    return across / sum((x - mean_x) ** 2 for x, _ in known)
