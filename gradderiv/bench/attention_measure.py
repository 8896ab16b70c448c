"""One task at one case of ``gradderiv bench attention``: all ways in turns, in a process of its own.

A length of a quarter comes first. It warms up, shows that all ways give the same, and tells by squares what the whole length would take: too much is not begun.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from gradderiv.bench.apart import Apart, say
from gradderiv.bench.attention_memory import most, room, start
from gradderiv.bench.attention_rows import Plan, Row, difference, keep, rows_of, worded
from gradderiv.bench.attention_ways import MATH, NULL, PLAIN, TASKS, WAYS, Case, Given, inputs
from gradderiv.bench.turns import clock_of, in_turns, on

SLOW = 12.0  # seconds after which a first call counts as the only one
FEWEST, LARGEST = 3, 101  # repeats of what is not slow
QUARTER, LEAST = 4, 64
ALL = WAYS | NULL
MATRICES = 16  # of n², that second order of MATH and plain holds at most: where no memory can be read


class Bench:
    """The calls of one plan, with their clock and their peaks."""

    def __init__(self, plan: Plan) -> None:
        self.plan, dtype = plan, getattr(torch, plan.dtype)
        small = min(plan.case.n, max(LEAST, plan.case.n // QUARTER))
        self.quarter = inputs(plan.case._replace(n=small), plan.seed, dtype, plan.device)
        self.whole = inputs(plan.case, plan.seed, dtype, plan.device)
        self.growth = (plan.case.n / small) ** 2
        self.read = clock_of(plan.threads) if plan.device == "cpu" else _synchronised

    def call(self, row: Row, given: Given) -> tuple[Sequence[Tensor], list[float]]:
        """The result; the seconds of the whole, and of its second step where there is one."""
        marks = [self.read()]
        found = TASKS[row.task](ALL[row.way], given, lambda: marks.append(self.read()))
        end = self.read()
        return found, [end - mark for mark in marks]

    def once(self, row: Row, given: Given) -> tuple[Sequence[Tensor], list[float], int | None]:
        """The same, and the peak, which takes time to look at."""
        before = start(self.plan.device)
        found, took = self.call(row, given)
        after = most(self.plan.device)
        return found, took, None if before is None or after is None else max(after - before, 0)

    def again(self, row: Row) -> None:
        keep(row, self.call(row, self.whole)[1])

    def try_quarter(self, rows: Sequence[Row]) -> None:
        """Warm up, compare, and note what would be too much."""
        found: dict[str, Sequence[Tensor]] = {}
        for row in rows:
            try:
                _, cold = self.call(row, self.quarter)
                found[row.way], warm, held = self.once(row, self.quarter)
            except Exception as error:  # whatever a way raises is its result
                row.trouble = worded(error)
            else:
                row.trouble = self.too_much(row, min(cold[0], warm[0]) * self.growth, held)
        for row in rows:
            if row.way in found:
                row.differs = difference(found[row.way], found.get(MATH, next(iter(found.values()))))

    def too_much(self, row: Row, seconds: float, held: int | None) -> str:
        """Why the whole length is not begun; nothing where it can be."""
        case, item = self.plan.case, self.whole.dO.element_size()
        dense = MATRICES * case.heads * case.n**2 * item if row.way in (MATH, PLAIN) else 0
        needed = dense if held is None else held * self.growth
        if needed > room(self.plan.device):
            return f"would hold about {needed / 1e9:.0f} GB"
        return f"would take about {seconds:.0f} s" if seconds > self.plan.limit else ""

    def first_call(self, row: Row) -> int:
        """Its peak; and how many repeats are to come."""
        try:
            _, took, row.memory = self.once(row, self.whole)
        except Exception as error:
            row.trouble = worded(error)
            return 0
        if took[0] > SLOW or not self.plan.budget:
            keep(row, took)
            return 0
        return min(max(FEWEST, int(self.plan.budget / max(took[0], 1e-9))), LARGEST)


def measured(plan: Plan, step: Callable[[str], None] = lambda label: None) -> Iterator[Row]:
    """Every row of a plan."""
    _import_forward_mode()
    short = f"{plan.case.heads} × {plan.case.n}: "  # a line of progress has little room
    with on(plan.threads):
        bench, rows = Bench(plan), rows_of([plan])
        for task in plan.tasks:
            asked = [row for row in rows if row.task == task]
            step(f"{short}{task}, warm-up")
            bench.try_quarter(asked)
            turns, left = {}, {row.way: row for row in asked if not row.trouble}
            for way, row in left.items():
                step(f"{short}{task}, {way}")
                turns[way] = bench.first_call(row)
            step(f"{short}{task}, in turns")
            for way in in_turns(turns, plan.seed):
                bench.again(left[way])
            yield from asked


def _synchronised() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def _import_forward_mode() -> None:
    with warnings.catch_warnings():  # torch imports this on first use, and warns of its own torch.jit
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


# ---------------------------------------------------------------- in a process of its own


def apart(plans: Sequence[Plan], step: Callable[[str], None]) -> Iterator[Row]:
    """The rows of some plans, measured in a fresh process; where that dies, rows that say so."""
    process, left = Apart(__name__, json.dumps([asdict(plan) for plan in plans])), rows_of(plans)
    for told in process:
        if isinstance(told, str):
            step(told)
        else:
            left.pop(0)
            yield Row(**{**told, "case": Case(*told["case"])})
    for row in left:
        row.trouble = f"the process {process.trouble or 'said nothing'}"
        yield row


def child() -> None:
    """Measure what the command line says; a line for every step, and one for every row."""
    _import_forward_mode()
    gc.freeze()  # what was imported stays: nothing to look through before every peak
    for given in json.loads(sys.argv[1]):
        lists = {name: tuple(given[name]) for name in ("tasks", "ways")}
        for row in measured(Plan(**{**given, **lists, "case": Case(*given["case"])}), say):
            say(asdict(row))
