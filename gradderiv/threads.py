"""How many threads a piece of work takes: one, unless it is large."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread(entries: int = 0, limit: int = 2**18) -> Iterator[None]:
    """One thread for work on fewer than ``limit`` entries, and the same sums in the same order wherever it runs.

    Thousands of small operations gain nothing from a second thread; on a busy machine they wait for it, and were seen to take 200 times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if entries < limit else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
