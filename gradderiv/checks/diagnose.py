"""Where a wrong tensor is wrong, and what the slip may have been."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def diagnose(
    value: Tensor, reference: Tensor, wrong: Tensor, index: tuple[int, ...], n_heads: int | None = None
) -> str:
    """How many entries are wrong, where they sit, the worst of them, and what explains all of them at once."""
    parts = [f"{int(wrong.sum())} of {wrong.numel()} entries wrong{place(wrong, n_heads)}."]
    parts.append(
        f"Worst entry {list(index)}: {_number(value[index])}, should be {_number(reference[index])}."
    )
    guess = _guess(value, reference, wrong, n_heads)
    if guess:
        parts.append(guess)
    return " ".join(parts)


def _number(x: Tensor) -> str:
    return f"{float(x):.4g}"


def place(wrong: Tensor, n_heads: int | None) -> str:
    """«: head 2 only», «: rows 1, 3 only», or nothing."""
    if bool(wrong.all()):
        return ""
    for axis in (wrong.dim() - 1, wrong.dim() - 2):
        if n_heads is not None and n_heads > 1 and axis >= 0 and wrong.shape[axis] % n_heads == 0:
            by_head = wrong.movedim(axis, 0).reshape(n_heads, -1)
            hit = by_head.any(1)
            if bool(hit.any()) and not bool(hit.all()) and bool((by_head.float().mean(1)[hit] > 0.25).all()):
                heads = hit.nonzero().flatten().tolist()
                return f": {_list('head', heads)} only"
    for axis, word in ((wrong.dim() - 2, "row"), (wrong.dim() - 1, "column")):
        if axis >= 0:
            hit = wrong.movedim(axis, 0).reshape(wrong.shape[axis], -1).any(1)
            if int(hit.sum()) <= max(1, wrong.shape[axis] // 2):
                return f": {_list(word, hit.nonzero().flatten().tolist())} only"
    return ""


def _list(word: str, items: list[int]) -> str:
    shown = ", ".join(map(str, items[:6])) + (", …" if len(items) > 6 else "")
    return f"{word}{'s' if len(items) > 1 else ''} {shown}"


def _guess(value: Tensor, reference: Tensor, wrong: Tensor, n_heads: int | None) -> str:
    if not bool(torch.isfinite(value).all()):
        return "There are NaN or infinite entries: 0/0 in a fully masked row, or an overflow?"
    if not bool(value[wrong].any()):
        return "Every wrong entry is 0: is a path missing, or the result never written?"
    factor = _factor(value, reference, wrong)
    if factor is not None:
        every = "Every entry" if bool(wrong.all()) else "Every wrong entry"
        return f"{every} is {factor:.4g} × the right one{_meaning(factor)}"
    if n_heads is not None and n_heads > 1:
        for axis in (value.dim() - 1, value.dim() - 2):
            if axis >= 0 and value.shape[axis] % n_heads == 0:
                blocks = value.movedim(axis, 0).unflatten(0, (n_heads, -1))
                right = reference.movedim(axis, 0).unflatten(0, (n_heads, -1))
                order = [next((j for j in range(n_heads) if _close(b, right[j])), -1) for b in blocks]
                if sorted(order) == list(range(n_heads)):
                    return (
                        f"The heads stand in the order {order}: are they joined in another order than split?"
                    )
    if value.dim() >= 2 and value.shape[-1] == value.shape[-2] and _close(value.mT, reference):
        return "It is the transpose of the right one."
    return ""


def _factor(value: Tensor, reference: Tensor, wrong: Tensor) -> float | None:
    """The one factor by which all wrong entries are off, if there is one."""
    v, r = value[wrong], reference[wrong]
    if not bool(r.any()):
        return None
    factor = float((v * r).sum() / (r * r).sum())
    spread = (v - factor * r).abs().max() / v.abs().max()
    return factor if float(spread) < 1e-3 and v.numel() > 1 else None


def _meaning(factor: float) -> str:
    if abs(factor + 1) < 1e-3:
        return ": a sign?"
    for square, words in ((1 / factor**2, "1/√{}"), (factor**2, "√{}")):
        n = round(square)
        if n > 1 and math.isclose(square, n, rel_tol=2e-3):
            root = math.isqrt(n)
            shown = words.format(n) if root * root != n else words.replace("√", "").format(root)
            return f" (= {shown}): a scale missing, or applied twice, or a mean for a sum?"
    return ": a scale?"


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-3 * b.abs().max())
