"""Derivations whose every line is checked, and what is made of them.

chapters()             the files of the book;  run(path): one of them, and its chains, all of which hold
chain, named, laws     what a chapter is written with;  reasoning: whether a line is true, and whether it follows
exercises              in the chapters, graded;  site: the book as pages and notebooks
formulas               the formulas of a rule, from the code that runs
written, html, mathml, pictures, layout, remarks      print
"""

from __future__ import annotations

from typing import Any

__all__ = ["chapters", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from gradderiv.book import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
