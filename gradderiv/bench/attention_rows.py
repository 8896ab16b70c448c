"""What ``gradderiv bench attention`` is to measure, and the rows of what it found."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from gradderiv.bench.attention_ways import FIRST, NULL, TASKS, WAYS, Case


@dataclass
class Plan:
    """A case and how to measure it.

    Attributes:
        budget: seconds of repeats for each row; 0 for the first call only.
        limit: seconds that one call may be expected to take.
    """

    case: Case
    tasks: tuple[str, ...] = tuple(TASKS)
    ways: tuple[str, ...] = tuple(WAYS)
    budget: float = 1.0
    limit: float = 60.0
    threads: int = 2
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0


@dataclass
class Row:
    """One way to one task at one case.

    Attributes:
        times: seconds of every repeat.
        second: the same of the second step of a double backward.
        memory: the most bytes held beyond the inputs; None where the system does not say.
        differs: the largest difference from MATH at a quarter of the length, relative to the largest entry of each result.
        trouble: why there is no figure.
    """

    case: Case
    task: str
    way: str
    times: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    memory: int | None = None
    differs: float | None = None
    trouble: str = ""


def rows_of(plans: Sequence[Plan]) -> list[Row]:
    """Those that are measured, in their order; the null pair's among them where anything is repeated."""
    return [
        Row(plan.case, task, way)
        for plan in plans
        for task in plan.tasks
        for way in plan.ways + (tuple(NULL) if task == FIRST and plan.budget else ())
    ]


def keep(row: Row, took: Sequence[float]) -> None:
    """The seconds since each mark: of the whole, and of the second step where there is one."""
    for times, seconds in zip((row.times, row.second), took, strict=False):
        times.append(seconds)


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def worded(error: Exception) -> str:
    """The first line of what was raised."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def median_of(numbers: Sequence[float]) -> float | None:
    return statistics.median(numbers) if numbers else None


def paired(row: Row, other: Row, what: str = "time") -> list[tuple[float, float]]:
    """The seconds of both, round by round, as far as both were repeated; of the second step alone where that is asked."""
    one, two = ((r.second if what == "second" else r.times) for r in (row, other))
    return list(zip(one, two, strict=False))
