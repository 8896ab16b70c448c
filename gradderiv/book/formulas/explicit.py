"""The first entry of every result of a rule at a tiny size, as an explicit expression in the entries of its arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import sympy as sp
from torch import Tensor

from gradderiv.book.formulas.catalog import HEADS, VARIABLES, family, forward, function, shapes
from gradderiv.book.layout import fold
from gradderiv.numbers.symbols import Exp, Symbols

TWO = {"n_k", "n"}  # two keys, so that there is something to choose between; every other dimension is 1


def explicit(name: str, *, tex: bool = False, width: int = 80) -> str:
    """The results of the function of that name on SymPy symbols, factored; exponentials are called e_1, e_2 …"""
    out = []
    exponentials: dict[sp.Expr, sp.Symbol] = {}
    for label, entry in entries(name):
        for e in sorted(entry.atoms(Exp), key=sp.default_sort_key):
            exponentials.setdefault(e, sp.Symbol(f"e_{len(exponentials) + 1}"))
        out.append((label, sp.factor(entry.xreplace(exponentials))))
    used = set().union(*(value.free_symbols for _, value in out))
    out += [(str(e), sp.exp(x.args[0])) for x, e in exponentials.items() if e in used]
    if tex:
        return "\n".join(f"{sp.latex(sp.Symbol(label))} = {sp.latex(value)}" for label, value in out)
    return "\n".join(line for label, value in out for line in _folded(label, value, width))


def _folded(label: str, value: sp.Expr, width: int) -> list[str]:
    first, *rest = fold(str(value).replace("**", "^"), width - len(label) - 3)
    return [f"{label} = {first}", *(" " * (len(label) + 3) + line for line in rest)]


def entries(name: str) -> Iterable[tuple[str, sp.Expr]]:
    """The first entry of each result, unfactored, under its name."""
    system = Symbols()

    def symbols(parameter: str, dims: list[str]) -> Tensor:
        """Without the indices that can only be 1."""
        shape = [2 if dim in TWO else 1 for dim in dims]
        label = "tau" if parameter == "scale" else parameter
        return system.symbols(label, *(n for n in shape if n > 1)).view(shape)

    def arguments(of: Any) -> dict[str, Any]:
        biases = {p for p in inspect.signature(of).parameters if re.match("b(ias|_.)?(_dot)?$", p)}
        skipped = (biases | {"mask"}) - {name, "b", "b_dot"}
        heads = {p: 1 for p in HEADS if p in inspect.signature(of).parameters}
        return {p: symbols(p, dims) for p, dims in shapes(name, of).items() if p not in skipped} | heads

    given = arguments(function(name))
    before = forward(name)
    if before is not None:
        _, given["saved"] = before(**arguments(before))
    for label, x in _results(name, function(name)(**given)).items():
        if isinstance(x, Tensor):
            yield label + "_1" * any(n > 1 for n in x.shape), system.entries(x).reshape(-1)[0]


def _results(name: str, result: Any) -> dict[str, Any]:
    """What a function returned, under the names of the mathematics."""
    if name in VARIABLES:
        return {f"d{name}": result}
    ending = "_dot" if name.endswith("_jvp") else ""
    if hasattr(result, "_fields"):
        return {f"d{f}{ending}": x for f, x in zip(result._fields, result, strict=True)}
    output = {"softmax": "P", "attention": "O"}.get(family(name), "Y")
    return {output + ending: result[0] if isinstance(result, tuple) else result}
