"""Real difficulties from public threads, reproduced with numbers and explained: ``gradderiv casebook``.

A case is one file with a function that returns its text, every number in it computed, and a row in :data:`CASES`.
"""

from __future__ import annotations

import importlib

CASES = {
    "fused-layout": "a fused QKV matrix read in two layouts (Stack Overflow, «PyTorch Linear operations vary widely after reshaping»)",
}


def tell(name: str) -> str:
    """The text of a case.

    Raises:
        InputError: there is no such case.
    """
    from gradderiv.errors import InputError, message

    if name not in CASES:
        raise InputError(
            message("the casebook has a case of that name", repr(name), "a slip of the pen", ", ".join(CASES))
        )
    return str(importlib.import_module(f"gradderiv.casebook.{name.replace('-', '_')}").tell())
