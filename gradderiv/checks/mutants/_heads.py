"""Mistakes in splitting, joining and sharing heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.mutants.mutant import BACKWARD, FORWARD, UNLIKE, Mutant
from gradderiv.checks.mutants.stages import Pass
from gradderiv.checks.mutants.tools import join_heads


def split_by_reshape(X: Tensor, h: int) -> Tensor:
    """(..., n, h·d) → (..., h, n, d) without the transpose."""
    return X.reshape(*X.shape[:-2], h, X.shape[-2], X.shape[-1] // h)


def join_by_reshape(X: Tensor) -> Tensor:
    """Its inverse."""
    return X.reshape(*X.shape[:-3], X.shape[-2], X.shape[-3] * X.shape[-1])


def last_of_group(dX: Tensor, c: Pass) -> Tensor:
    """(..., h, n, d) → (..., h_kv, n, d): each query head overwrites what the one before it wrote."""
    last = {j: i for i, j in enumerate(c.head_of)}
    return torch.stack([dX.select(-3, last[j]) for j in range(c.h_kv)], -3)


GROUPED: dict[str, Any] = {
    "problems": ("grouped",),
    "kills": (FORWARD | {"identities"}) - {"sympy", "blockdiag"},
    "kind": "forward",
}

MUTANTS = (
    Mutant(
        "heads-permuted", "concat(O_h … O_1): heads joined in another order than they were split", "classroom",
        {"C": lambda c: join_heads(c.O.flip(-3)), "dO": lambda c: c.split(c.dC, c.h).flip(-3),
         "C_dot": lambda c: join_heads((c.P_dot @ c.V + c.P @ c.V_dot).flip(-3))},
        kind="forward", problems=("tiny-cross-masked",), kills=FORWARD | {"identities"},
    ),
    Mutant(
        "heads-permuted-dQ", "the heads of dQ joined in reverse", "measured",
        {"dXW_Q": lambda c: c.join(c.dQ.flip(-3))}, problems=("tiny-cross-masked",),
    ),
    Mutant(
        "head-reshape", "Q, K, V split by reshape(h, n, d), without the transpose", "1bit-MONSTER #2451",
        {"split": lambda c: split_by_reshape, "dXW_Q": lambda c: join_by_reshape(c.dQ),
         "dXW_K": lambda c: join_by_reshape(c.dK_kv), "dXW_V": lambda c: join_by_reshape(c.dV_kv)},
        kind="forward", problems=("tiny-cross-masked",), kills=FORWARD | {"identities"}, skips=UNLIKE,
    ),
    Mutant(
        "gqa-no-sum", "dK, dV of the last query head of a group, not of all", "levanter #449",
        {"dK_kv": lambda c: last_of_group(c.dK, c), "dV_kv": lambda c: last_of_group(c.dV, c)},
        problems=("grouped",), kills=BACKWARD - {"sympy", "blockdiag"},
    ),
    Mutant(
        "gqa-tile", "key/value heads in the order [0 1 0 1 0 1], not [0 0 0 1 1 1]", "onnx #7274, jax-js #180, axlearn #842",
        {"head_of": lambda c: [i % c.h_kv for i in range(c.h)]}, **GROUPED,
    ),
    Mutant(
        "gqa-divisor", "head i served by i // h_kv, not i // (h/h_kv)", "native-sparse-attention-triton #27",
        {"head_of": lambda c: [min(i // c.h_kv, c.h_kv - 1) for i in range(c.h)]}, **GROUPED,
    ),
)  # fmt: skip
