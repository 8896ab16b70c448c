"""``gradderiv show``: the formulas of a rule, taken from the code that runs."""

from __future__ import annotations

import difflib
import inspect
import math
from typing import Any, NamedTuple

import torch

from gradderiv.book import library
from gradderiv.book.formulas.catalog import (
    HEADS,
    RULES,
    VARIABLES,
    dimensions,
    doc,
    forward,
    function,
    shapes,
    shown_names,
)
from gradderiv.book.formulas.trace import Step, Trace, needed
from gradderiv.book.layout import beside, columns, fold, pad, wrap
from gradderiv.book.remarks import plain
from gradderiv.errors import InputError, message
from gradderiv.numbers.nodes import Symbol
from gradderiv.numbers.spelling import ASCII, STYLES, TEX, Style
from gradderiv.numbers.tex import Tex, TexTensor

SIZES = {  # any will do whose products are different too
    "n_q": 3, "n_k": 5, "d_model": 7, "d_kv": 11, "h": 6, "h_kv": 2, "d_k": 13, "d_v": 17, "d_out": 19,
    "n": 23, "d": 29, "e": 31,
}  # fmt: skip
MARGIN = 20  # columns for the names at the left; longer ones stick out


class Shown(NamedTuple):
    """A function with the steps of its body."""

    name: str
    doc: list[str]
    steps: list[Step]
    sizes: dict[int, str]


def show(
    name: str,
    *,
    tex: bool = False,
    derivation: bool = False,
    symbolic: bool = False,
    width: int = 80,
    charset: str = "unicode",
) -> str:
    """The formulas of the rule or gradient ``name``, one line for each named step of its code.

    Args:
        name: one of :func:`shown_names`; a rule's own name stands for its forward, tangent and gradient.
        tex: as LaTeX.
        derivation: the chains of the book that derive it, a reason beside each line.
        symbolic: the first entry of each result at a tiny size, as an explicit expression.
        width: columns.
        charset: "unicode" or "ascii".

    Raises:
        InputError: an unknown name or charset; a derivation of what the book does not derive.
    """
    _require_known(name, charset)
    style = TEX if tex else STYLES[charset]
    if derivation:
        chains = library.derivations_of(_derived(name))
        return "\n\n".join(c.tex() if tex else c.text(style, width) for c in chains)
    parts = [name, f"{name}_jvp", f"{name}_vjp"] if name in RULES else [name]
    if symbolic:
        from gradderiv.book.formulas.explicit import explicit

        return "\n\n".join(f"{part}\n{explicit(part, tex=tex, width=width)}" for part in parts)
    return "\n\n".join(_tex(s) if tex else _text(s, style, width) for s in map(shown, parts))


def _require_known(name: str, charset: str) -> None:
    if name not in shown_names():
        near = difflib.get_close_matches(name, shown_names(), n=3, cutoff=0.4)
        raise InputError(
            message(
                "show needs the name of a rule or of a gradient",
                repr(name),
                f"did you mean {' or '.join(near)}?" if near else "nothing has a name like it",
                f"one of {', '.join(shown_names())}",
            )
        )
    if charset not in ("unicode", "ascii"):
        asked, do = (
            "show writes in one of two character sets",
            "charset='unicode', charset='ascii' or tex=True",
        )
        raise InputError(message(asked, repr(charset), "the name of an encoding", do))


def _derived(name: str) -> list[str]:
    """The functions whose results the book derives under this name; the layer as a whole by its weights."""
    if name in ("multihead", "multihead_vjp", "layer"):
        return ["grad_W_O", "grad_W_V", "grad_W_Q", "grad_W_K"]
    return [f"{name}_vjp" if name in RULES else function(name).__name__]


def shown(name: str) -> Shown:
    """Run the function of that name on named matrices and keep its steps."""
    sizes = {math.prod(SIZES[s] for s in dim.split("·")): dim for dim in dimensions(name)}
    system = Tex(sizes, inline=frozenset({"blocks"}))
    size_of = {dim: size for size, dim in sizes.items()}

    def matrix(parameter: str, dims: list[str]) -> TexTensor:
        dtype = torch.bool if parameter == "mask" else torch.float64
        return system.named(Symbol(parameter), torch.ones([size_of[d] for d in dims], dtype=dtype))

    def arguments(of: Any) -> dict[str, Any]:
        heads = {p: SIZES[h] for p, h in HEADS.items() if p in inspect.signature(of).parameters}
        return {p: matrix(p, dims) for p, dims in shapes(name, of).items()} | heads

    trace, before, given = Trace(system), forward(name), {}
    if before is not None:
        _, given["saved"] = trace.run(inspect.unwrap(before), **arguments(before))
        trace.steps.clear()
    result = f"d{name}" if name in VARIABLES else "Y"
    trace.run(inspect.unwrap(function(name)), **arguments(function(name)), **given, result=result)
    steps = needed(trace.steps) if name in VARIABLES else trace.steps
    return Shown(function(name).__name__, doc(name), steps, sizes)


def _shapes(s: Shown, step: Step, times: str) -> list[str]:
    return [times.join(s.sizes.get(n, str(n)) for n in shape) for shape in step.shapes]


def _text(s: Shown, style: Style, width: int) -> str:
    translate = plain if style is ASCII else str
    equation, *rest = map(translate, s.doc)
    head = fold(equation, width - 4) + [line for p in rest for line in wrap(p, width - 4)]
    out = [s.name, *(f"    {line}" for line in head), ""]
    lefts = [step.left(style) for step in s.steps]
    margin = max(columns(left) for left in lefts if columns(left) <= MARGIN)
    for step, left in zip(s.steps, lefts, strict=True):
        *lines, last = beside(f"  {pad(left, margin)} = ", step.right(style), "", column=width, width=width)
        shape = translate(", ".join(_shapes(s, step, " × ")))
        fits = columns(last) + 2 + columns(shape) <= width
        out += [*lines, pad(last, width - columns(shape)) + shape if fits else last]
    return "\n".join(line.rstrip() for line in out)


def _tex(s: Shown) -> str:
    rows = []
    for step in s.steps:
        shape = ", ".join(_shapes(s, step, " × ")).replace("×", r"\times")
        dims = " ".join(TEX.constant(d) if d != r"\times" else d for d in shape.split(" "))
        rows.append(rf"{step.left(TEX)} &= {step.right(TEX)} && {dims}")
    return f"% {s.name}\n\\begin{{align*}}\n" + " \\\\\n".join(rows) + "\n\\end{align*}"


__all__ = ["show", "shown", "shown_names"]
