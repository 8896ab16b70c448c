"""The package's exceptions, and the one way in which an error is worded.

Every message says what was asked, what came, the likely cause and what to do, in that order.
"""

from __future__ import annotations


class GradderivError(Exception):
    """Base of every exception that gradderiv raises on purpose."""


class InputError(GradderivError, ValueError):
    """An argument that the call cannot use: shapes that do not fit, empty tensors, unknown names."""


class DtypeError(GradderivError, TypeError):
    """An argument of a type, dtype or device that the call cannot use."""


class NoExactMeaning(GradderivError, RuntimeError):
    """An operation that the number inside the tensor cannot give an exact meaning."""


def message(asked: str, came: str, cause: str, do: str) -> str:
    """Word an error: ``asked`` for, what ``came``, the likely ``cause`` and what to ``do``."""
    return f"{asked}\n  came:  {came}\n  cause: {cause}\n  do:    {do}"
