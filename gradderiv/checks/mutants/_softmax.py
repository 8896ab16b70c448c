"""Mistakes in the derivative of softmax, and in softmax itself."""

from __future__ import annotations

import torch
from torch import Tensor

from gradderiv.checks.mutants.mutant import EXACT, FORWARD, UNLIKE, Mutant
from gradderiv.checks.mutants.stages import Pass


def flattened(c: Pass) -> Tensor:
    return (c.P * c.dP).sum((-2, -1), keepdim=True)  # ... 1 1


def wrong_strides(c: Pass) -> Tensor:
    delta = (c.P * c.dP).sum(-1)  # ... h n_q
    return delta.mT.reshape(delta.shape).unsqueeze(-1)  # as if its memory were n_q h


def with_epsilon(c: Pass) -> Tensor:
    E = torch.exp(c.A)  # ... n_q n_k
    return E / (E.sum(-1, keepdim=True) + 1e-15)  # ... n_q n_k


MUTANTS = (
    Mutant(
        "softmax-diagonal", "dS = P ∘ (1 − P) ∘ dP: the diagonal taken for the whole Jacobian",
        "libnd4j #440; a 2025 blog series",
        {"dS": lambda c: c.P * (1 - c.P) * c.dP}, problems=("tiny-h2-biases",),
    ),
    Mutant(
        "softmax-no-rowsum", "dS = P ∘ dP: the row sum δ dropped", "Odyssey #2134, cTensor #31",
        {"dS": lambda c: c.P * c.dP}, problems=("tiny-h2-biases",),
    ),
    Mutant(
        "softmax-flattened", "δ summed over the whole matrix: one Jacobian for all rows", "math.stackexchange 4602822",
        {"delta": flattened}, problems=("tiny-h2-biases",),
    ),
    Mutant(
        "softmax-axis", "P = softmax over the queries, not the keys", "llms-from-scratch-rs #30",
        {"axis": lambda c: -2}, kind="forward", problems=("tiny-h2-biases",), kills=FORWARD | {"identities"}, skips=UNLIKE,
    ),
    Mutant(
        "delta-strides", "δ (h, n) read as (n, h): another head's row sum", "ROCm/aiter #2808, FlagAttention #1, pytorch #141147",
        {"delta": wrong_strides}, problems=("tiny-cross-masked",),
    ),
    Mutant(
        "epsilon", "P = E / (rowsum E + 10⁻¹⁵)", "a public derivation's code, 1e-15",
        {"P": with_epsilon}, kind="forward",
        kills=EXACT, skips=UNLIKE,
        reasons=dict.fromkeys(("forward", "autograd", "finite differences"), "10⁻¹⁵ of a row sum is below float64's rounding"),
    ),
    Mutant(
        "tangent-no-rowsum", "Ṗ = P ∘ Ṡ: the row sum dropped in forward mode", "the same slip as softmax-no-rowsum",
        {"P_dot": lambda c: c.P * c.S_dot}, kind="tangent", kills=frozenset({"dual"}),
    ),
)  # fmt: skip
