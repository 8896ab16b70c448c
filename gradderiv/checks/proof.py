"""What a proof found: records, and the text that a person and a machine can read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gradderiv.checks.report import Record, Report

CLAIM = "for these shapes and all real inputs, the backward is the derivative of the forward code"
MEANING = f"proved: {CLAIM}, unless an accident of the printed probability happened"


@dataclass(repr=False)
class Proof(Report):
    """All records of :func:`gradderiv.prove`. Prints as a table; see :attr:`verdict` and :meth:`to_json`.

    Attributes:
        lanes: how many primes the last run was made with.
        draws: how many points were thrown away because a denominator was zero there.
        remarks: what was read, cast or assumed on the way, a sentence each.
        log2_failure: log₂ of the probability that some record says proved and should not.
        log2_failure_over_q: the same where an error that is a multiple of a drawn prime counts too.
    """

    title: str = "gradderiv prove"
    lanes: int = 0
    draws: int = 0
    remarks: list[str] = field(default_factory=list)
    log2_failure: float | None = None
    log2_failure_over_q: float | None = None

    @property
    def failures(self) -> list[Record]:
        return [r for r in self.records if r.verdict == "refuted"]

    @property
    def undecided(self) -> list[Record]:
        return [r for r in self.records if r.verdict == "inconclusive"]

    @property
    def verdict(self) -> str:
        """``refuted`` if anything is, else ``inconclusive`` if anything is or nothing was shown, else ``proved``."""
        if self.failures:
            return "refuted"
        return "inconclusive" if self.undecided or not self.records else "proved"

    @property
    def passed(self) -> bool:
        return self.verdict == "proved"

    @property
    def exit_status(self) -> int:
        return {"proved": 0, "refuted": 1, "inconclusive": 3}[self.verdict]

    @property
    def failure_probability(self) -> float | None:
        """Of everything that is called proved, together."""
        return None if self.log2_failure is None else 2.0**self.log2_failure

    @property
    def reason(self) -> str:
        """Why it is not proved; empty if it is."""
        first = [*self.failures, *self.undecided][:1]
        return first[0].detail if first else ""

    def replay_with(self, command: str) -> None:
        """Let every failure name the command that it came from."""
        self.records = [dataclasses.replace(r, replay=command) if r.replay else r for r in self.records]

    def _document(self) -> dict[str, Any]:
        shown = ("lanes", "draws", "remarks", "log2_failure", "log2_failure_over_q")
        return {**super()._document(), **{name: getattr(self, name) for name in shown}, "meaning": MEANING}

    def __str__(self) -> str:
        import sys

        from gradderiv.checks.render import speaks_unicode
        from gradderiv.checks.render_proof import render

        return render(self, ascii_only=not speaks_unicode(sys.stdout))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from gradderiv.checks.render_proof import render_html

        return render_html(self)


def together(exponents: Sequence[float]) -> float:
    """log₂ of the sum of probabilities that are given by their log₂."""
    if not exponents:
        return -math.inf
    top = max(exponents)
    return min(0.0, top + math.log2(sum(2.0 ** (e - top) for e in exponents))) if math.isfinite(top) else top
