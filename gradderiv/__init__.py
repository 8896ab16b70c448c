"""Every derivative of attention in closed form, and the proof that it is right.

verify(rules=None, …)         our rules, on floats, residues and symbols
check(function, inputs, …)    your function: its backward against independent oracles, element-wise
prove(function, inputs, …)    your function in exact arithmetic, at the size you use: proved, refuted or inconclusive
rules                         the closed forms, to import
testing                       assertions on both, for your own tests
functional                    the same as autograd Functions that a model trains with
nn                            drop-in modules: nn.MultiheadAttention, and the attention of transformers' models
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from gradderiv._version import __version__

if TYPE_CHECKING:
    from gradderiv.book.formulas.explain import explain
    from gradderiv.checks.check import check
    from gradderiv.checks.proof import Proof
    from gradderiv.checks.prove import prove
    from gradderiv.checks.report import Record, Report
    from gradderiv.checks.verify import verify

__all__ = ["Proof", "Record", "Report", "__version__", "check", "explain", "prove", "verify"]

_HOME = {
    "verify": "gradderiv.checks.verify",
    "check": "gradderiv.checks.check",
    "prove": "gradderiv.checks.prove",
    "explain": "gradderiv.book.formulas.explain",
    "Proof": "gradderiv.checks.proof",
    "Report": "gradderiv.checks.report",
    "Record": "gradderiv.checks.report",
}
_SUBPACKAGES = {
    "rules",
    "numbers",
    "checks",
    "functional",
    "nn",
    "book",
    "bench",
    "examples",
    "testing",
    "casebook",
}

logging.getLogger("gradderiv").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Load a public name on first use: the command line answers ``--help`` without importing torch."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"gradderiv.{name}")
    raise AttributeError(f"module 'gradderiv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_SUBPACKAGES})
