"""A chain in print: in plain characters, in LaTeX, in a notebook."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from gradderiv.book.layout import beside, columns, wrap
from gradderiv.book.remarks import plain, prose
from gradderiv.numbers.nodes import Call, Node, Symbol
from gradderiv.numbers.spelling import ASCII, TEX, Style, spell

if TYPE_CHECKING:
    from gradderiv.book.chain import Chain

SHOW: ContextVar[Callable[[Any], None] | None] = ContextVar(
    "SHOW", default=None
)  # who collects what is displayed
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def text(chain: Chain, style: Style, width: int = 80) -> str:
    """The chain, one line below the other, the reasons at the right."""
    translate = plain if style is ASCII else str
    column = width * 11 // 20
    label = label_of(chain.lines[0].named.node, style)
    starts = label == spell(chain.lines[0].named.node, style)  # no label: the first expression stands alone
    gap, out = " " * (0 if starts else columns(label)), []
    for i, (named, reason, let, _) in enumerate(chain.lines):
        lead, formula = f"{gap} = ", spell(named.node, style)
        if let:
            lead, formula = f"{gap}   with ", f"{style.symbol(let)} = {formula}"
        elif i == 0:
            lead = "   " if starts else f"{label} = "
        out += beside(lead, formula, translate(reason), column=column, width=width)
    if chain.rule:
        result = f"{style.symbol('d' + chain.variable)} = {_gradient(chain, style)}"
        remark = f"is what {chain.rule} returns"
        out += ["", *beside("", result, remark, column=column, width=width)]
    return "\n".join([*out, "", *wrap(translate(footer(chain)), width)])


def footer(chain: Chain) -> str:
    """How sure one can be."""
    if not chain.steps:
        return "no equality checked yet"
    bound = f"2{str(math.ceil(chain.failure)).translate(SUPERSCRIPT)}"
    equalities = "1 equality" if chain.steps == 1 else f"{chain.steps} equalities"
    return f"{equalities} checked; probability of a mistake below {bound}"


def tex(chain: Chain) -> str:
    """The chain as a LaTeX ``align*``."""
    rows = []
    for i, (named, reason, let, _) in enumerate(chain.lines):
        formula = spell(named.node, TEX)
        label = label_of(named.node, TEX) if i == 0 else ""
        if let:
            row = rf"&\quad\text{{with }} {TEX.symbol(let)} = {formula}"
        else:
            row = f"{formula} &" if label == formula else f"{label} &= {formula}"
        rows.append(rf"{row} && \text{{{prose(reason)}}}" if reason else row)
    if chain.rule:
        rows.append(f"{TEX.symbol('d' + chain.variable)} &= {_gradient(chain, TEX)}")
    return "\\begin{align*}\n" + " \\\\\n".join(rows) + "\n\\end{align*}"


def display(thing: Any) -> None:
    """Show a chain, a named matrix, a picture or a text: as mathematics in a notebook, in what characters there are elsewhere."""
    show = SHOW.get()
    if show is not None:
        show(thing)
        return
    if "ipykernel" in sys.modules and not isinstance(thing, (str, Exception)):
        importlib.import_module("IPython.display").display(thing)
        return
    out, encoding = str(thing), sys.stdout.encoding or "utf-8"
    try:
        out.encode(encoding)
    except UnicodeEncodeError:
        out = thing.ascii() if hasattr(thing, "ascii") else plain(out)
    print(out.encode(encoding, "replace").decode(encoding))


def _gradient(chain: Chain, style: Style) -> str:
    return "0" if chain.gradient is None else spell(chain.gradient.node, style)


def label_of(start: Node, style: Style) -> str:
    """What all lines are equal to: ℓ̇ where a gradient meets a true tangent, otherwise the start itself."""
    match start:
        case Call("inner", (_, Symbol(_, meaning))) if meaning:
            return style.symbol("loss_dot")
    return spell(start, style)
