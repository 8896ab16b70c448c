"""What a check found: records, and the report that a person and a machine can read."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
VERDICTS = ("pass", "fail", "vacuous")


@dataclass(frozen=True)
class Record:
    """One comparison: of one argument's gradient, on one problem, with one oracle, on one kind of number.

    ``detail`` locates a failure or gives a verdict's reason; ``expected`` says that a vacuous verdict is the right one here.
    """

    rule: str
    problem: str
    argument: str
    oracle: str
    number: str
    dtype: str
    verdict: str
    max_abs_error: float = 0.0
    max_rel_error: float = 0.0
    tolerance: float = 0.0
    worst_index: tuple[int, ...] | None = None
    failure_probability: float | None = None
    seconds: float = 0.0
    detail: str = ""
    expected: bool = False
    replay: str = ""

    @property
    def name(self) -> str:
        return f"{self.rule} · {self.argument} · {self.number} · {self.oracle}"


@dataclass
class Report:
    """All records of a run. Prints as a table; see :attr:`verdict` and :meth:`to_json`."""

    records: list[Record] = field(default_factory=list)
    seed: int = 0
    seconds: float = 0.0
    title: str = "gradderiv verify"

    @property
    def failures(self) -> list[Record]:
        return [r for r in self.records if r.verdict == "fail"]

    @property
    def vacuous(self) -> list[Record]:
        """Records in which nothing could be said where something should have been."""
        return [r for r in self.records if r.verdict == "vacuous" and not r.expected]

    @property
    def verdict(self) -> str:
        """``fail`` if anything fails, else ``vacuous`` if nothing was shown or something unexpectedly not, else ``pass``."""
        if self.failures:
            return "fail"
        return "vacuous" if self.vacuous or not any(r.verdict == "pass" for r in self.records) else "pass"

    @property
    def passed(self) -> bool:
        return self.verdict == "pass"

    @property
    def exit_status(self) -> int:
        return {"pass": 0, "fail": 1, "vacuous": 3}[self.verdict]

    @property
    def failure_probability(self) -> float | None:
        """The largest failure probability of an exact record."""
        found = [r.failure_probability for r in self.records if r.failure_probability is not None]
        return max(found, default=None)

    def select(self, **fields: Any) -> list[Record]:
        """The records whose fields have these values."""
        return [r for r in self.records if all(getattr(r, k) == v for k, v in fields.items())]

    def to_json(self, file: str | os.PathLike[str] | None = None) -> str:
        """The report as JSON; written whole or not at all where a file is named."""
        text = json.dumps(_finite(self._document()), indent=1, ensure_ascii=False)
        if file is not None:
            write_whole(file, text + "\n")
        return text

    def _document(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            **versions(),
            "seed": self.seed,
            "seconds": self.seconds,
            "verdict": self.verdict,
            "records": [asdict(r) for r in self.records],
        }

    def __str__(self) -> str:
        from gradderiv.checks.render import render, speaks_unicode

        return render(self, ascii_only=not speaks_unicode(sys.stdout))

    def _repr_html_(self) -> str:
        from gradderiv.checks.render import render_html

        return render_html(self)


def versions() -> dict[str, str]:
    """Of what a result was obtained with."""
    import torch

    from gradderiv._version import __version__

    return {"gradderiv": __version__, "torch": torch.__version__, "python": platform.python_version()}


def merge(records: Iterable[Sequence[Record]]) -> list[Record]:
    return [r for part in records for r in part]


def write_whole(file: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file so that an interruption leaves the old one, or none, but no half. What is no file (a pipe, a device) is written to."""
    path = Path(os.path.realpath(file))
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        with open(part, "xb") as stream:
            stream.write(data)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
