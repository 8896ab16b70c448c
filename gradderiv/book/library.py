"""The chapters: where they are, and what happens when one is run.

A chapter is a Python file in percent format (``# %% [markdown]`` and ``# %%`` cells). Running it checks every chain in it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import gradderiv
from gradderiv.book.chain import CHAINS, Chain
from gradderiv.book.named import DRAW, Draw
from gradderiv.errors import InputError, message
from gradderiv.numbers.lanes import DrawAgain
from gradderiv.threads import one_thread

REDRAWS = 3  # points tried, before giving up on one without a zero denominator


class Chapter(NamedTuple):
    """A chapter that was run: its chains, all of which hold, and what it printed."""

    path: Path
    chains: list[Chain]
    printed: str


class Cell(NamedTuple):
    """One cell of a chapter: markdown text, or code and the line it starts on; what its mark says (``given="5.1"``) is in ``meta``."""

    is_code: bool
    source: str
    line: int
    meta: Mapping[str, str] = MappingProxyType({})


def chapters() -> list[Path]:
    """The files of the book, in order: beside the package in a checkout, inside it in a wheel."""
    spec = importlib.util.find_spec("gradderiv.derivations")
    places = list(spec.submodule_search_locations or ()) if spec else []
    places.append(str(Path(gradderiv.__file__).resolve().parent.parent / "derivations"))
    for place in places:
        found = sorted(Path(place).glob("[0-9][0-9]_*.py"))
        if found:
            return found
    raise InputError(
        message(
            "the book's chapters stand in derivations/",
            f"none in {', '.join(places)}",
            "the package was copied without them",
            "install the wheel, or work in a checkout",
        )
    )


def cells(path: Path) -> list[Cell]:
    """The cells of a chapter, in order."""
    out = []
    text = path.read_text(encoding="utf-8")
    marks = [*re.finditer(r"^# %%(.*)$", text, re.M)]
    for mark, end in zip(marks, [*(m.start() for m in marks[1:]), len(text)], strict=True):
        rest = text[mark.end() : end]
        body = rest.strip("\n")
        is_code = "[markdown]" not in mark[1]
        source = body if is_code else re.sub(r"^# ?", "", body, flags=re.M)
        meta = {key: value.strip('"') for key, value in re.findall(r'(\w+)=("[^"]*"|\d+)', mark[1])}
        above = text[: mark.end()].count("\n") + len(rest) - len(rest.lstrip("\n"))
        out.append(Cell(is_code, source, above + 1, meta))
    return out


def run(path: Path, *, seed: int = 0) -> Chapter:
    """Run a chapter at a random point, and at another where that one has a zero denominator.

    Raises:
        ChainError: a line does not hold.
    """
    draw = Draw(seed)
    while True:
        with at(draw) as (chains, printed):
            try:
                execute(path.read_text(encoding="utf-8"), path, {})
            except DrawAgain as again:
                if draw.draw == REDRAWS:
                    raise
                draw = again_at(draw, again)
            else:
                return Chapter(path, chains, printed.getvalue())


def derivations_of(rules: list[str]) -> list[Chain]:
    """The chains that derive what the functions ``rules`` return.

    Raises:
        InputError: the book does not derive one of them.
    """
    found: list[Chain] = []
    for path in chapters():
        if any(f"{rule}(" in path.read_text(encoding="utf-8") for rule in rules):
            found += [c for c in _ran(path, path.stat().st_mtime_ns).chains if c.rule in rules]
        if {c.rule for c in found} == set(rules):
            return found
    raise InputError(
        message(
            "a derivation is a chain of the book that ends in a gradient that ships",
            f"none ends in {', '.join(rules)}",
            "forwards and tangents need none, and second order is the product rule on the gradient",
            "ask for linear, softmax, attention, or a gradient of the layer, as W_Q",
        )
    )


@functools.lru_cache(maxsize=32)
def _ran(path: Path, changed: int) -> Chapter:
    """The chapter as it stood when it was ``changed``, run once."""
    return run(path)


def again_at(draw: Draw, again: DrawAgain) -> Draw:
    """The next point, with the root or the lanes that were missing."""
    if again.root is not None:
        return draw._replace(roots=draw.roots | {again.root})
    if again.lanes is not None:
        return draw._replace(lanes=again.lanes)
    return draw._replace(draw=draw.draw + 1)


@contextlib.contextmanager
def at(draw: Draw) -> Any:
    """Points are drawn so, chains are collected, what is printed is kept; one thread, for the matrices are tiny."""
    chains: list[Chain] = []
    tokens = DRAW.set(draw), CHAINS.set(chains)
    try:
        with one_thread(), contextlib.redirect_stdout(io.StringIO()) as printed:
            yield chains, printed
    finally:
        DRAW.reset(tokens[0])
        CHAINS.reset(tokens[1])


def execute(source: str, path: Path, namespace: dict[str, Any]) -> None:
    """Run source code as (part of) the chapter at ``path``."""
    namespace.setdefault("__name__", "__main__")
    namespace.setdefault("__file__", str(path))
    exec(compile(source, str(path), "exec", dont_inherit=True), namespace)
