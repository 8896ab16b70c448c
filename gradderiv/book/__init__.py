"""Derivations whose every line is checked: the chain, the chapters, and the formulas of a rule in print.

chapters()              the files of the book
run(path)               runs one and returns its chains, all of which hold
chain.chain, …          what a chapter is written with
show.show(name)         the formulas of a rule
"""

from __future__ import annotations

from typing import Any

__all__ = ["chapters", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from gradderiv.book import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
