"""Mistakes with masks: forgotten, turned round, or finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.mutants.mutant import BACKWARD, EXACT, FORWARD, UNLIKE, Mutant
from gradderiv.checks.mutants.stages import Pass
from gradderiv.checks.mutants.tools import softmax

EMPTY_ROW = ("cross-masked", "tiny-cross-masked")  # floats take a finite number for −∞ in all other rows


def visible(c: Pass) -> Tensor:
    """The mask, on the scores; all of these mutants are for problems with a mask."""
    assert c.mask is not None
    return c.mask.expand(c.S.shape)


def hidden(c: Pass, fill: float) -> Tensor:
    """``fill`` where a key is hidden, else 0."""
    return torch.zeros(c.S.shape, dtype=c.S.dtype, device=c.S.device).masked_fill(~visible(c), fill)


def above_diagonal(c: Pass, fill: float) -> Tensor:
    """``fill`` above the diagonal, where it is hidden too, else 0."""
    later = torch.ones(c.S.shape, dtype=torch.bool, device=c.S.device).triu(1)
    return torch.zeros(c.S.shape, dtype=c.S.dtype, device=c.S.device).masked_fill(~visible(c) & later, fill)


def lowest(c: Pass) -> float:
    """The lowest finite number of the dtype."""
    return torch.finfo(c.S.dtype).min


def plain(c: Pass) -> Tensor:
    """softmax A, whatever is in A."""
    return torch.softmax(c.A, -1)


def uniform(c: Pass) -> Tensor:
    """P with 1/n_k in the rows that may attend to nothing."""
    P = softmax(c.A, c.allowed)
    return P.masked_fill(~visible(c).any(-1, keepdim=True), 1 / P.shape[-1])


def unmasked(c: Pass) -> Tensor:
    """exp(S − lse), the lse of the forward pass."""
    return torch.exp(c.S - torch.logsumexp(c.A, -1, keepdim=True))


def guessed(c: Pass) -> Tensor:
    """dS, cleared where P is 0: what a backward does that was not given the mask."""
    dS: Tensor = c.P * (c.dP - c.delta)
    return dS.masked_fill(c.P == 0, 0.0)


FINITE: dict[str, Any] = {"kind": "float", "skips": UNLIKE}

MUTANTS = (
    Mutant(
        "mask-ignored-backward", "dS and dV with P recomputed as exp(S − lse), the mask never asked for", "triton #4541",
        {"P_again": unmasked}, problems=("tiny-cross-masked",), skips=UNLIKE,
    ),
    Mutant(
        "mask-polarity", "True read as hidden", "tensorflow/text #894, nanoGPT_mlx #6", {"allowed": lambda c: ~visible(c)},
        kind="forward", problems=("tiny-cross-masked",), kills=FORWARD,
    ),
    Mutant(
        "mask-finite", "−10000 taken for −∞", "transformers #14859; llm.c; annotated-transformer",
        {"A": lambda c: c.S + hidden(c, -1e4), "P": plain},
        problems=("tiny-cross-masked",), kills=EXACT, **FINITE,
    ),
    Mutant(
        "mask-added-twice", "−10000 for padding and −10000 for later keys: −20000 where both hold",
        "onnxruntime #14363, #8549",
        {"A": lambda c: c.S + hidden(c, -1e4) + above_diagonal(c, -1e4), "P": plain},
        problems=EMPTY_ROW, kills=FORWARD | {"identities"}, elsewhere={"dual": "tiny-cross-masked"}, **FINITE,
    ),
    Mutant(
        "mask-overflow", "two masks of the lowest float, whose sum is −∞: 0/0 where everything is hidden",
        "Automodel #2658, gpt-neox #25",
        {"A": lambda c: c.S + hidden(c, lowest(c)) + hidden(c, lowest(c)), "P": plain},
        problems=EMPTY_ROW, kills=FORWARD, elsewhere={"dual": "tiny-cross-masked"}, **FINITE,
    ),
    Mutant(
        "mask-row-uniform", "a fully masked row is uniform, and gradients leak from it", "apex #1444, pytorch #41508",
        {"P": uniform}, kind="forward", problems=("cross-masked",), kills=(BACKWARD | FORWARD) - {"sympy", "identities"},
        reasons={"identities": "dS = P ∘ (dP − δ) has row sum 0 in a uniform row too"},
    ),
    Mutant(
        "mask-from-zero", "a fully masked row is uniform, and backward takes P == 0 for the mask", "apex #1444",
        {"P": uniform, "dS": guessed}, kind="forward", problems=("cross-masked",),
        kills=frozenset(
            {"forward", "autograd", "finite differences", "dual", "field", "second order", "blockdiag"}
        ),
        reasons={"identities": "dS = P ∘ (dP − δ) has row sum 0 in a uniform row too"},
    ),
)  # fmt: skip
