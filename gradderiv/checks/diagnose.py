"""Where a wrong tensor is wrong, and what the slip may have been.

Where is a fact. What is a guess, made only where one simple slip explains every wrong entry to within rounding, and accident is improbable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_ROOT = 64  # factors 1/√n and √n are looked for up to here


@dataclass(frozen=True)
class Layout:
    """What the axes of a tensor mean.

    Attributes:
        n_heads: how many heads lie side by side; None where there are none.
        axis: on which axis; None where that is not known, and the last two are tried.
        masked: rows (of the last axis but one) that may attend to nothing.
    """

    n_heads: int | None = None
    axis: int | None = None
    masked: tuple[int, ...] = ()

    def axes(self, t: Tensor) -> Iterator[tuple[int, int]]:
        """Each axis that may hold heads side by side, and how many."""
        if self.n_heads is None or self.n_heads < 2:
            return
        for axis in (-1, -2) if self.axis is None else (self.axis,):
            if -t.dim() <= axis < t.dim() and t.shape[axis] % self.n_heads == 0:
                yield axis % t.dim(), self.n_heads


def diagnose(
    value: Tensor,
    reference: Tensor,
    wrong: Tensor,
    index: tuple[int, ...],
    tolerance: Tensor,
    layout: Layout | None = None,
) -> str:
    """How many entries are wrong, where they sit, the worst of them, and what explains all of them at once."""
    layout = layout or Layout()
    parts = [
        f"{int(wrong.sum())} of {wrong.numel()} entries wrong{place(wrong, layout)}.",
        f"Worst entry {list(index)}: {_number(value[index])}, should be {_number(reference[index])}.",
        _guess(value, reference, wrong, tolerance, layout),
    ]
    return " ".join(part for part in parts if part)


def _number(x: Tensor) -> str:
    return f"{float(x):.4g}"


# ---------------------------------------------------------------- where


def place(wrong: Tensor, layout: Layout | None = None) -> str:
    """«: head 2 only», «: rows 1, 3 only», or nothing."""
    layout = layout or Layout()
    if bool(wrong.all()) or not bool(wrong.any()):
        return ""
    for axis, n_heads in layout.axes(wrong):
        by_head = wrong.movedim(axis, 0).reshape(n_heads, -1)
        hit = by_head.any(1)
        if not bool(hit.all()) and bool((by_head.double().mean(1)[hit] > 0.25).all()):
            return f": {_list('head', hit)} only"
    rows = wrong.dim() - 2
    for axis, word in ((rows, "row"), (rows + 1, "column" if rows >= 0 else "entry")):
        if axis >= 0:
            hit = wrong.movedim(axis, 0).reshape(wrong.shape[axis], -1).any(1)
            if int(hit.sum()) <= max(1, wrong.shape[axis] // 2):
                blind = axis == rows and set(hit.nonzero().flatten().tolist()) <= set(layout.masked)
                return f": {_list(word, hit)} only" + (", which may attend to nothing" if blind else "")
    return ""


def _list(word: str, hit: Tensor) -> str:
    items = hit.nonzero().flatten().tolist()
    shown = ", ".join(map(str, items[:6])) + (", …" if len(items) > 6 else "")
    many = "entries" if word == "entry" else f"{word}s"
    return f"{many if len(items) > 1 else word} {shown}"


# ---------------------------------------------------------------- what


def _guess(value: Tensor, reference: Tensor, wrong: Tensor, tolerance: Tensor, layout: Layout) -> str:
    if not bool(torch.isfinite(value).all()):
        return "There are NaN or infinite entries: 0/0 in a fully masked row, or an overflow?"
    if not bool(value[wrong].any()):
        return "Every wrong entry is 0: is a path missing, or the result never written?"
    found = _factor(value[wrong], reference[wrong], tolerance[wrong])
    if found is not None:
        factor, doubt = found
        every = "Every entry" if bool(wrong.all()) else "Every wrong entry"
        return f"{every} is {_factor_in_words(factor)} × the right one{_meaning(factor, doubt)}"
    for axis, n_heads in layout.axes(value):
        order = _order(value, reference, tolerance, axis, n_heads)
        if order is not None:
            return f"The heads stand in the order {order}: are they joined in another order than split?"
    if value.dim() >= 2 and value.shape[-1] == value.shape[-2]:
        slack = tolerance + tolerance.mT
        if _close(value.mT, reference, slack) and not _close(reference.mT, reference, slack):
            return "It is the transpose of the right one."
    return ""


def _factor(v: Tensor, r: Tensor, t: Tensor) -> tuple[float, float] | None:
    """The one factor by which all wrong entries are off, and its relative doubt; None if there is none, or too few entries to tell."""
    if not bool(r.any()):
        return None
    factor = float((v * r).sum() / (r * r).sum())
    left = (v - factor * r).abs()
    allowed = (1 + 4 * abs(factor)) * t + 1e-12 * v.abs().max()
    if bool((left > allowed).any()):
        return None
    error = (v - r).abs()
    accident = float((allowed / error.max()).max())  # the probability that one more entry agrees by chance
    telling = int((error > 3 * allowed).sum())
    if telling < 2 or accident ** (telling - 1) > 1e-4:
        return None
    return factor, 3 * float(left.norm() / v.norm()) / math.sqrt(telling - 1)


def _factor_in_words(factor: float) -> str:
    return (
        f"{factor:.4g}"
        if abs(factor - 1) >= 1e-3
        else f"(1 {'+' if factor > 1 else '−'} {abs(factor - 1):.1e})"
    )


def _meaning(factor: float, doubt: float) -> str:
    if abs(factor - 1) < 1e-3:
        return ": a narrower type on the way, or an ε?"
    if abs(factor + 1) <= max(doubt, 1e-9):
        return ": a sign?"
    square = factor * factor
    for n, inverse in ((1 / square, True), (square, False)):
        near = round(n)
        # the squares of two neighbours differ by 1/n: a doubt not far below that would fit any number
        if 1 < near <= LARGEST_ROOT and abs(n / near - 1) <= max(2 * doubt, 1e-9) and doubt < 0.02 / near:
            return f" (= {_root(near, inverse, factor < 0)}): {_slip(near, inverse)}?"
    return ": a scale?"


def _root(n: int, inverse: bool, negative: bool) -> str:
    root = math.isqrt(n)
    shown = str(root) if root * root == n else f"√{n}"
    return ("−" if negative else "") + (f"1/{shown}" if inverse else shown)


def _slip(n: int, inverse: bool) -> str:
    if math.isqrt(n) ** 2 != n:
        return "is the scale applied twice" if inverse else "is the scale missing"
    if inverse:
        return "a mean for a sum, or the scale applied twice"
    return "added up twice" if n == 4 else "a sum for a mean, or the scale missing"


def _order(value: Tensor, reference: Tensor, tolerance: Tensor, axis: int, n_heads: int) -> list[int] | None:
    """Which head of the reference stands at the place of each head of the value, if they are the same heads in another order."""
    came, right, slack = (
        t.movedim(axis, 0).unflatten(0, (n_heads, -1)) for t in (value, reference, tolerance)
    )
    order = []
    for i in range(n_heads):
        same = [j for j in range(n_heads) if _close(came[i], right[j], slack[i] + slack[j])]
        if len(same) != 1:
            return None
        order += same
    return order if sorted(order) == list(range(n_heads)) and order != sorted(order) else None


def _close(a: Tensor, b: Tensor, slack: Tensor) -> bool:
    """Equal to within rounding, and not merely because rounding is large."""
    return bool(((a - b).abs() <= slack + 1e-12 * b.abs().max()).all()) and bool((b.abs() > 3 * slack).any())
