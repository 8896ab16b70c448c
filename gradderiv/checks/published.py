"""The case of the published derivation: "Transformer Attention Layer gradient" (Say-Hello2y/Transformer-attention, 2022).

n = 5 tokens, d_model = 10, h = 2 heads, no biases, the loss the mean of the output. The post derives the four weights' gradients in the block-diagonal
form, which :mod:`gradderiv.rules.blockdiag` follows, and compares W^Q with autograd by eye and by ``(theory - autograd).short()``.

Here the closed forms and the formula as printed are held against autograd with a tolerance; ``gradderiv casebook published-derivation`` tells the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.checks import tolerance
from gradderiv.checks.compare import compare
from gradderiv.checks.reference import multihead as textbook
from gradderiv.checks.report import Record
from gradderiv.rules import blockdiag

N, D_MODEL, N_HEADS = 5, 10, 2
EPSILON = 1e-15  # "add a small positive to prevent divid zero"
PROBLEM = f"published n={N} d_model={D_MODEL} h={N_HEADS} mean"
WEIGHTS = ("W_Q", "W_K", "W_V", "W_O")


class Case(NamedTuple):
    """The layer's input and weights, the cotangent of the mean, and autograd's gradients of the four weights."""

    args: dict[str, Any]
    dY: Tensor
    autograd: dict[str, Tensor]


def draw(seed: int = 0, dtype: torch.dtype = torch.float64) -> Case:
    """Uniform input in [0, 1) and weights as ``nn.Linear`` initialises them, as in the post."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(N, D_MODEL, generator=generator, dtype=torch.float64)
    bound = D_MODEL**-0.5
    drawn = torch.rand(4, D_MODEL, D_MODEL, generator=generator, dtype=torch.float64)
    args = {"X": X} | {name: bound * (2 * W - 1) for name, W in zip(WEIGHTS, drawn, strict=True)}
    args = {name: x.to(dtype) for name, x in args.items()}
    return Case(args, torch.full((N, D_MODEL), 1 / (N * D_MODEL), dtype=dtype), autograd(args))


def autograd(args: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the mean of the output, in float64."""
    leaves: dict[str, Any] = {name: x.detach().double().requires_grad_() for name, x in args.items()}
    loss = textbook(**leaves, n_heads=N_HEADS).mean()
    found = torch.autograd.grad(loss, [leaves[name] for name in WEIGHTS])
    return dict(zip(WEIGHTS, found, strict=True))


def printed_W_Q(
    X: Tensor,
    W_Q: Tensor,
    W_K: Tensor,
    W_V: Tensor,
    W_O: Tensor,
    dY: Tensor,
    *,
    row_sum: bool = True,
    epsilon: float = EPSILON,
) -> Tensor:
    """The post's formula for the gradient of W^Q, with its ε, its exponential of unshifted scores, and head by head as printed.

    dA = dP ∘ P − ((dP ∘ P ∘ Y) 𝓘) ∘ exp(A),   Y = 1/(exp(A) 𝓘 + ε);   ``row_sum=False`` leaves out the second term.
    """
    d = D_MODEL // N_HEADS
    heads = [slice(i * d, (i + 1) * d) for i in range(N_HEADS)]
    Q, K, V = X @ W_Q, X @ W_K, X @ W_V
    A = torch.cat([Q[:, i] @ K[:, i].mT / d**0.5 for i in heads], 1)  # n h·n
    P = torch.cat([torch.softmax(A_i, -1) for A_i in A.chunk(N_HEADS, 1)], 1)  # n h·n
    calI = torch.block_diag(*[torch.ones(N, N, dtype=X.dtype)] * N_HEADS)  # h·n h·n
    Y = 1 / (A.exp() @ calI + epsilon)  # n h·n
    calV = torch.block_diag(*[V[:, i] for i in heads])  # h·n h·d
    dP = dY @ W_O.mT @ calV.mT  # n h·n
    dA = dP * P - (((dP * P * Y) @ calI.mT) * A.exp() if row_sum else 0)  # n h·n
    picked = zip(dA.chunk(N_HEADS, 1), heads, strict=True)
    return torch.cat([X.mT @ dA_i @ K[:, i] / d**0.5 for dA_i, i in picked], 1)  # d_model d_model


def printed_check(formula: Tensor, autograd: Tensor) -> bool:
    """The post's comparison: the error, cast to int16, prints as zeros."""
    return not bool((formula - autograd).short().any())


def published_case(seed: int = 0) -> list[Record]:
    """Our four closed forms, and W^Q as printed, against autograd; in float64 and in float32, the type of the post."""
    records = []
    for dtype in (torch.float64, torch.float32):
        case = draw(seed, dtype)
        word = str(dtype).removeprefix("torch.")

        def forward(args: Mapping[str, Any]) -> Tensor:
            return textbook(**args, n_heads=N_HEADS)

        allowed = tolerance.of_gradients(forward, case.args, case.dY, dtype)
        for name in WEIGHTS:
            value = getattr(blockdiag, f"grad_{name}")(**case.args, dY=case.dY, n_heads=N_HEADS)
            found = compare(value, case.autograd[name], allowed[name], n_heads=N_HEADS)
            records.append(Record("blockdiag", PROBLEM, name, "published", "float", word, **found.fields()))
        printed = compare(
            printed_W_Q(**case.args, dY=case.dY), case.autograd["W_Q"], allowed["W_Q"], n_heads=N_HEADS
        )
        argument = "W_Q as printed"
        records.append(Record("blockdiag", PROBLEM, argument, "published", "float", word, **printed.fields()))
    return records
