"""Two tensors that should be equal: the verdict, and where and how they are not.

A verdict is scale-free. The tolerance of an entry is a stated multiple of the standard deviation of the rounding errors that the reference
itself makes (:mod:`gradderiv.numbers.rounding`); an entry whose reference is below its own tolerance shows nothing, and a comparison
in which no entry shows anything is ``vacuous``: refused, not passed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.diagnose import Layout, diagnose
from gradderiv.numbers.rounding import SPREAD

MULTIPLE = SPREAD  # standard deviations of the rounding error; measured in tests/checks/test_false_alarms.py


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
    value: Tensor,
    reference: Tensor,
    tolerance: Tensor,
    *,
    zero: bool = False,
    n_heads: int | None = None,
    layout: Layout | None = None,
) -> Comparison:
    """Compare entry by entry: |value − reference| ≤ tolerance.

    Args:
        value: what is under test.
        reference: what it should be, in a wider type.
        tolerance: for every entry.
        zero: the reference is known to be exactly zero, so that a small value is right and not vacuous.
        n_heads: lets a failure be located in a head.
        layout: the same where more is known: on which axis the heads lie, which rows may attend to nothing.
    """
    if value.shape != reference.shape:
        detail = f"the shape is {tuple(value.shape)}, should be {tuple(reference.shape)}"
        return Comparison("fail", math.inf, math.inf, float(tolerance.max()), None, detail)
    value, reference = value.detach().double(), reference.detach().double()
    tolerance = tolerance.detach().expand(reference.shape).nan_to_num(nan=math.inf, posinf=math.inf)
    error = (value - reference).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    wrong = (error > tolerance) | ~torch.isfinite(value)
    size = float(reference.abs().max())
    index = _worst(error, tolerance, wrong)
    measures: dict[str, Any] = {
        "max_abs_error": float(error.max()),
        "max_rel_error": float(error.max()) / size if size else 0.0,
        "tolerance": float(tolerance.max()),
        "worst_index": index,
    }
    if wrong.any():
        detail = diagnose(value, reference, wrong, index, tolerance, layout or Layout(n_heads))
        return Comparison("fail", **measures, detail=detail)
    if zero:
        return Comparison("pass", **measures, detail="exactly zero, and is")
    shown = int((reference.abs() > tolerance).sum())
    if shown == 0:
        detail = f"every entry is below its own rounding error (largest {size:.1e})"
        return Comparison("vacuous", **measures, detail=detail)
    return Comparison(
        "pass", **measures, detail=f"{shown} of {reference.numel()} entries above their rounding error"
    )


def _worst(error: Tensor, tolerance: Tensor, wrong: Tensor) -> tuple[int, ...]:
    """The wrong entry that exceeds its tolerance by the largest factor; where none is wrong, the one with the largest error."""
    if bool(wrong.any()):
        excess = torch.where(wrong, (error / tolerance).nan_to_num(nan=math.inf, posinf=math.inf), -1.0)
        error = torch.where(excess == excess.max(), error, -1.0)
    return tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
