"""Mistakes in sums over rows and paths, and in how results are written."""

from __future__ import annotations

import torch
from torch import Tensor

from gradderiv.checks.catalog import Options, Tensors
from gradderiv.checks.mutants.mutant import BACKWARD, Mutant
from gradderiv.checks.mutants.stages import Layer, Pass, tangents
from gradderiv.checks.mutants.tools import tall
from gradderiv.numbers.dual import Dual

BLOCK = 4  # rows of a tile


def whole_blocks(c: Pass) -> Tensor:
    X, dXW_Q = tall(c.X), tall(c.dXW_Q)
    full = X.shape[0] // BLOCK * BLOCK
    return X[:full].mT @ dXW_Q[:full]  # d_model h·d_k


def reuse(c: Pass) -> Tensor:
    dC = c.dY @ c.W_O.mT  # n_q h·d_v
    c.dY.mul_(2)  # its buffer is taken for something else
    return dC


def one_entry(c: Pass, factor: float) -> Tensor:
    """dW_Q with one entry times ``factor``."""
    dW_Q = tall(c.X).mT @ tall(c.dXW_Q)  # d_model h·d_k
    factors = torch.ones(dW_Q.shape, dtype=c.X.dtype, device=c.X.device)
    factors[1, 1] = factor
    return dW_Q * factors


def saved_constant(
    layer: Layer, args: Tensors, options: Options, dY: Tensor, dY_dot: Tensor, dots: Tensors
) -> dict[str, Tensor]:
    return tangents(layer.gradients(args, options, Dual().make(dY, dY_dot)))


MUTANTS = (
    Mutant(
        "x-path", "dX lacks the path through K", "classroom", {"dX": lambda c: c.dX_Q + c.dX_V},
    ),
    Mutant(
        "x-path-V", "dX lacks the path through V", "classroom", {"dX": lambda c: c.dX_Q + c.dX_K},
    ),
    Mutant(
        "x-path-V-only", "dX has the path through V only", "classroom", {"dX": lambda c: c.dX_V},
    ),
    Mutant(
        "bias-mean", "db_Q averaged over the rows, not summed", "classroom",
        {"db_Q": lambda c: tall(c.dXW_Q).mean(0)}, problems=("tiny-h2-biases",),
    ),
    Mutant(
        "tail-block", f"the last n mod {BLOCK} rows never reach dW_Q", "attorch #18",
        {"dW_Q": whole_blocks}, problems=("self",), kills=BACKWARD - {"sympy"},
        reasons={"sympy": f"a problem small enough for SymPy has less than {BLOCK} rows"},
    ),
    Mutant(
        "zero-vjp", "dV accumulated into a buffer that was not cleared: vjp(0) ≠ 0", "jax-flash-attn2 #1",
        {"dV": lambda c: c.O + c.P.mT @ c.dO},
    ),
    Mutant(
        "vjp-inplace", "dY is overwritten", "Liger #1305", {"dC": reuse}, kind="aliasing",
        kills=frozenset({"identities", "dual", "blockdiag"}),
    ),
    Mutant(
        "entry-too-large", "one entry of dW_Q 10 % too large", "measured", {"dW_Q": lambda c: one_entry(c, 1.1)},
    ),
    Mutant(
        "entry-wrong-sign", "one entry of dW_Q with the wrong sign", "measured", {"dW_Q": lambda c: one_entry(c, -1.0)},
    ),
    Mutant(
        "query-key-zero", "dW_Q, dW_K and db_Q are 0", "measured",
        {"dW_Q": lambda c: torch.zeros_like(c.W_Q), "dW_K": lambda c: torch.zeros_like(c.W_K),
         "db_Q": lambda c: torch.zeros_like(c.b_Q)},
        problems=("tiny-h2-biases",),
    ),
    Mutant(
        "second-saved-constant", "what was saved treated as constant in double backward", "a Function that saves detached tensors",
        {"second": saved_constant}, kind="second", kills=frozenset({"second order"}),
    ),
)  # fmt: skip
