"""Formulas and their reasons in 80 columns."""

from __future__ import annotations

import re
import unicodedata

OPERATORS = ("+", "−", "-", "∘", "o", "⊘", "/", "=")


def columns(text: str) -> int:
    """How many columns of a terminal the text takes: a dot above a letter takes none."""
    return sum(not unicodedata.combining(c) for c in text)


def pad(text: str, width: int) -> str:
    return text + " " * (width - columns(text))


def fold(text: str, width: int) -> list[str]:
    """Break a formula at spaces: outside brackets if it can, and before an operator."""
    lines = []
    while columns(text) > width:
        fits = [m.start() for m in re.finditer(" ", text) if 0 < columns(text[: m.start()]) <= width]
        if not fits:
            break
        late = [i for i in fits if i >= fits[-1] * 0.4]
        cut = min(late, key=lambda i: (_depth(text[:i]), text[i + 1 : i + 2] not in OPERATORS, -i))
        lines.append(text[:cut])
        text = text[cut + 1 :]
    return [*lines, text]


def _depth(text: str) -> int:
    return sum(text.count(c) for c in "(⟨[") - sum(text.count(c) for c in ")⟩]")


def wrap(text: str, width: int) -> list[str]:
    """Break prose at spaces."""
    lines = [""]
    for word in text.split():
        if lines[-1] and columns(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def beside(lead: str, formula: str, remark: str, *, column: int, width: int) -> list[str]:
    """``lead`` and the folded formula, with a remark in a column at the right, or below where there is no room."""
    indent = " " * columns(lead)
    left = fold(formula, width - columns(lead))
    left = [(lead if i == 0 else indent) + text for i, text in enumerate(left)]
    if not remark:
        return left
    if len(left) == 1 and columns(left[0]) < column - 1:
        right = wrap(remark, width - column)
        left += [""] * (len(right) - 1)
        return [f"{pad(a, column)}{b}".rstrip() for a, b in zip(left, right, strict=True)]
    return left + [" " * column + text for text in wrap(remark, width - column)]
