"""All that one run of ``gradderiv bench attention`` found, and the ratios in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from gradderiv.bench.attention_memory import exponent
from gradderiv.bench.attention_rows import Row, median_of, paired
from gradderiv.bench.attention_ways import OURS, Case
from gradderiv.bench.document import as_json


@dataclass
class BenchAttention:
    """All times and peaks of a run; prints as tables of 80 columns.

    Attributes:
        rows: of every case, task and way.
        growth: the same of the cases whose memory alone was measured.
    """

    rows: list[Row] = field(default_factory=list)
    growth: list[Row] = field(default_factory=list)
    threads: int = 2
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    seconds: float = 0.0

    @property
    def cases(self) -> list[Case]:
        return list(dict.fromkeys(row.case for row in self.rows))

    def row(self, case: Case, task: str, way: str) -> Row | None:
        """None where it was not asked for."""
        found = [r for r in self.rows if (r.case, r.task, r.way) == (case, task, way)]
        return found[0] if found else None

    def ratio(self, case: Case, task: str, way: str, what: str = "time", by: str = OURS) -> float | None:
        """How many times as much as ``by``, the median of the rounds; ``what``: time, second, memory."""
        row, other = self.row(case, task, way), self.row(case, task, by)
        if row is None or other is None:
            return None
        if what == "memory":
            return row.memory / other.memory if row.memory is not None and other.memory else None
        return median_of([a / b for a, b in paired(row, other, what)])

    def difference(self, case: Case, task: str, way: str, by: str) -> float | None:
        """How many seconds more than ``by``, the median of the rounds."""
        row, other = self.row(case, task, way), self.row(case, task, by)
        return None if row is None or other is None else median_of([a - b for a, b in paired(row, other)])

    def points(self, task: str, way: str) -> list[tuple[int, int]]:
        """(n, bytes) of the cases whose memory alone was measured."""
        found = [r for r in self.growth if (r.task, r.way) == (task, way)]
        return [(r.case.n, r.memory) for r in found if r.memory]

    def exponent(self, task: str, way: str = OURS) -> float | None:
        """p of memory ≈ c nᵖ."""
        return exponent(self.points(task, way))

    def __str__(self) -> str:
        from gradderiv.bench.attention_text import render

        return render(self)

    def to_json(self) -> str:
        """Every time, every peak and every target."""
        from gradderiv.bench.attention_targets import targets

        return as_json(
            threads=self.threads,
            dtype=self.dtype,
            device=self.device,
            seed=self.seed,
            seconds=self.seconds,
            rows=[_fields(r) for r in self.rows],
            growth=[_fields(r) for r in self.growth],
            targets=[asdict(t) for t in targets(self)],
        )


def _fields(row: Row) -> dict[str, object]:
    return {**asdict(row), "case": row.case._asdict()}
