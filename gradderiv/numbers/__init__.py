"""What a rule can be run on: kinds of number that stand in for the floats inside a tensor. They know no rule.

    field      residues modulo random primes, in lanes: the exact test, with its failure probability (ledger, alignment); opaque functions (opaque)
    scout      the same without its products: what a large run will need
    symbols    SymPy expressions: a proof for a tiny size (rational decides what is zero)
    tex        named matrices: the formula as it is printed (nodes, spelling, calls)
    dual       p + ε t: the tangent, through forward code alone
    rounding   floats that carry the size of their rounding error: where tolerances come from
    tape       floats whose operations are recorded below a hand-written backward

What operations mean is written down once: structure, arithmetic, indexing, order (comparisons), smooth (exp and its kin, with their derivatives) and norms.
A :class:`~gradderiv.numbers.number.Number` is a tensor subclass; :mod:`~gradderiv.numbers.table` answers every aten operation that reaches one, with
structure and arithmetic written down once for all kinds. A new kind is one file: a :class:`~gradderiv.numbers.number.System` with a dozen methods.
"""

from __future__ import annotations

import warnings

import torch

TESTED = "2.13"

if not torch.__version__.startswith(f"{TESTED}."):
    warnings.warn(
        f"gradderiv's numbers lean on parts of PyTorch that change, and are tested with {TESTED}; this is {torch.__version__}. "
        f'What they refuse or report may be a difference between the two: pip install "torch=={TESTED}.*"',
        stacklevel=2,
    )
