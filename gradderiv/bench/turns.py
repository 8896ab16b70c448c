"""How things that are compared are timed: on so many threads, by which clock, in turns."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping

import torch


@contextlib.contextmanager
def on(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def clock_of(threads: int) -> Callable[[], float]:
    """With one thread the time of the processor, and other programs count less; with more, that of the clock."""
    return time.process_time if threads == 1 else time.perf_counter


def in_turns(turns: Mapping[str, int], seed: int) -> Iterator[str]:
    """Each name as often as it has turns: a round of all, and another, in an order that is drawn for each."""
    order = random.Random(seed)
    for done in range(max(turns.values(), default=0)):
        names = [name for name, count in turns.items() if count > done]
        order.shuffle(names)
        yield from names
