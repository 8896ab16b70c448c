"""The text that the examples learn and that real layers are fed with: an essay on how the gradient of attention is derived and checked."""

from __future__ import annotations

from importlib import resources


def prose() -> str:
    """The essay, about 8 kB of plain English in ASCII."""
    return resources.files("gradderiv").joinpath("prose.txt").read_text(encoding="ascii")
