"""Two tensors that should be equal: the verdict, and where and how they are not.

A verdict is scale-free. The tolerance of an entry is a stated multiple of the standard deviation of the rounding errors that the reference
itself makes (:mod:`gradderiv.numbers.rounding`); an entry whose reference is below its own tolerance shows nothing, and a comparison
in which no entry shows anything is ``vacuous``: refused, not passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.diagnose import diagnose

MULTIPLE = (
    8.0  # of the standard deviation of the rounding error; measured in tests/checks/test_false_alarms.py
)


@dataclass(frozen=True)
class Comparison:
    """The outcome for one tensor; fields as in :class:`gradderiv.checks.report.Record`."""

    verdict: str
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    worst_index: tuple[int, ...] | None
    detail: str = ""

    def fields(self) -> dict[str, Any]:
        return dict(vars(self))


def compare(
    value: Tensor, reference: Tensor, tolerance: Tensor, *, zero: bool = False, n_heads: int | None = None
) -> Comparison:
    """Compare entry by entry: |value − reference| ≤ tolerance.

    Args:
        value: what is under test.
        reference: what it should be, in a wider type.
        tolerance: for every entry.
        zero: the reference is known to be exactly zero, so that a small value is right and not vacuous.
        n_heads: lets a failure be located in a head.
    """
    if value.shape != reference.shape:
        detail = f"the shape is {tuple(value.shape)}, should be {tuple(reference.shape)}"
        return Comparison("fail", float("inf"), float("inf"), float(tolerance.max()), None, detail)
    value, reference = value.detach().double(), reference.detach().double()
    tolerance = tolerance.detach().expand(reference.shape)
    error = (value - reference).abs()
    wrong = ~(error <= tolerance)  # NaN is wrong
    size = float(reference.abs().max())
    worst = int(
        torch.where(wrong, (error / tolerance.clamp(min=1e-300)).nan_to_num(nan=torch.inf), -1.0).argmax()
    )
    if not wrong.any():
        worst = int(error.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), reference.shape))
    measures: dict[str, Any] = {
        "max_abs_error": float(error.nan_to_num(nan=torch.inf).max()),
        "max_rel_error": float(error.nan_to_num(nan=torch.inf).max()) / size if size else 0.0,
        "tolerance": float(tolerance.nan_to_num(nan=torch.inf).max()),
        "worst_index": index,
    }
    if wrong.any():
        return Comparison("fail", **measures, detail=diagnose(value, reference, wrong, index, n_heads))
    if zero:
        return Comparison("pass", **measures, detail="exactly zero, and is")
    shown = int((reference.abs() > tolerance).sum())
    if shown == 0:
        detail = f"every entry is below its own rounding error (largest {size:.1e})"
        return Comparison("vacuous", **measures, detail=detail)
    return Comparison(
        "pass", **measures, detail=f"{shown} of {reference.numel()} entries above their rounding error"
    )
