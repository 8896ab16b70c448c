"""The published derivation, re-enacted: "Transformer Attention Layer gradient" (Say-Hello2y/Transformer-attention, 2022).

Its case is n = 5, d_model = 10, h = 2, weights as ``nn.Linear`` makes them, without biases, and as loss the mean of the output, so that dY = 1/50
everywhere. Its formula for W^Q is right. Two things around it are not what they seem:

- the softmax is exp(S) / (exp(S) 𝓘 + ε) with ε = 10⁻¹⁵ and no shift under exp. Where all scores of a row are near −34, exp(S) is as small
  as ε, and the probabilities no longer sum to 1;
- the comparison with autograd is printed through ``.short()``, as 16-bit integers: every error below 1 is printed as 0, that of a gradient of zeros too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import torch
from torch import Tensor

from gradderiv.checks import tolerance
from gradderiv.checks.compare import compare
from gradderiv.checks.reference import TEXTBOOK
from gradderiv.checks.report import Record
from gradderiv.rules import blockdiag

N, D_MODEL, HEADS = 5, 10, 2
EPSILON = 1e-15
WEIGHTS = ("W_Q", "W_K", "W_V", "W_O")


def case(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], Tensor]:
    """X and the four weights, and dY, the gradient of the mean."""
    torch.manual_seed(seed)
    X = torch.rand(N, D_MODEL)
    weights = {name: torch.nn.Linear(D_MODEL, D_MODEL, bias=False).weight.detach().mT for name in WEIGHTS}
    dY = torch.full((N, D_MODEL), 1 / (N * D_MODEL))
    return {"X": X.to(dtype), **{name: W.to(dtype) for name, W in weights.items()}}, dY.to(dtype)


def published_grad_W_Q(
    args: dict[str, Tensor], dY: Tensor, epsilon: float = EPSILON, row_sum: bool = True
) -> Tensor:
    """dW_Q = [… τ Xᵀ dA Π_iᵀ K_i …],   dA = dP ∘ P − ((dP ∘ P ∘ r) 𝓘ᵀ) ∘ exp(A),   r = 1/(exp(A) 𝓘 + ε)

    As the article's code computes it, in our letters (A is S). Without ``row_sum`` its second term is left out: a wrong formula.
    """
    X, W_Q, W_K, W_V, W_O = (args[name] for name in ("X", *WEIGHTS))
    d = D_MODEL // HEADS
    calI = torch.block_diag(*[X.new_ones(N, N)] * HEADS)
    calV = torch.block_diag(*(X @ W_V).split(d, 1))
    A = d**-0.5 * torch.cat(
        [q @ k.mT for q, k in zip((X @ W_Q).split(d, 1), (X @ W_K).split(d, 1), strict=True)], 1
    )
    r = 1 / (A.exp() @ calI + epsilon)
    P = A.exp() * r
    dP = dY @ W_O.mT @ calV.mT
    dA = dP * P
    if row_sum:
        dA = dA - ((dP * P * r) @ calI.mT) * A.exp()
    return torch.cat(
        [d**-0.5 * X.mT @ a @ k for a, k in zip(dA.split(N, 1), (X @ W_K).split(d, 1), strict=True)], 1
    )


def published_case(seed: int = 0) -> list[Record]:
    """All four closed forms, and the article's formula for W^Q, against autograd, in float64 and float32."""
    records = []
    for dtype in (torch.float64, torch.float32):
        args, dY = case(seed, dtype)
        wide = {name: x.double().requires_grad_() for name, x in args.items()}
        Y = TEXTBOOK["multihead"](**wide, n_heads=HEADS)
        expected = dict(zip(wide, torch.autograd.grad(Y, list(wide.values()), dY.double()), strict=True))
        allowed = tolerance.of_gradients(lambda a: TEXTBOOK["multihead"](**a, n_heads=HEADS), args, dY, dtype)
        values = {name: getattr(blockdiag, f"grad_{name}")(**args, dY=dY, n_heads=HEADS) for name in WEIGHTS}
        values["W_Q, as published"] = published_grad_W_Q(args, dY)
        for name, value in values.items():
            of = name.split(",")[0]
            found = compare(value, expected[of], allowed[of], n_heads=HEADS)
            records.append(
                Record(
                    "blockdiag", "n=5 d_model=10 h=2, loss the mean", name, "published", "float",
                    str(dtype).removeprefix("torch."), **found.fields(),
                )
            )  # fmt: skip
    return records


def lost_to_epsilon(score: float, seed: int = 0) -> float:
    """How far ε moves a probability, at most, where the scores are normal around ``score`` with deviation 1."""
    torch.manual_seed(seed)
    S = score + torch.randn(N, N, dtype=torch.float64)
    P = S.exp() / (S.exp().sum(1, keepdim=True) + EPSILON)
    return float((torch.softmax(S, 1) - P).abs().max())


def explain_published(seed: int = 0) -> str:
    """The article's own check, what it cannot see, and what ε does; every number is computed here."""
    args, dY = case(seed, torch.float32)
    wide = {name: x.double().requires_grad_() for name, x in args.items()}
    Y = TEXTBOOK["multihead"](**wide, n_heads=HEADS)
    (right,) = torch.autograd.grad(Y, [wide["W_Q"]], dY.double())
    candidates: dict[str, Callable[[], Tensor]] = {
        "as published": lambda: published_grad_W_Q(args, dY),
        "without the row sum": lambda: published_grad_W_Q(args, dY, row_sum=False),
        "a matrix of zeros": lambda: torch.zeros_like(args["W_Q"]),
        "1000 times too large": lambda: 1000 * published_grad_W_Q(args, dY),
    }
    lines = [f"{'gradient of W^Q':24}{'relative error':>16}{'max .short() error':>22}"]
    for name, candidate in candidates.items():
        error = candidate().double() - right
        relative = float(error.abs().max() / right.abs().max())
        lines.append(f"{name:24}{relative:16.1e}{int(error.short().abs().max()):22d}")
    moved = "  ".join(
        f"{score:+.0f}: {lost_to_epsilon(score, seed):.1e}" for score in (0, -20, -30, -34, -38)
    )
    text = (
        f"All entries of dW^Q are below {float(right.abs().max()):.0e} here, since the loss is a mean: printed as 16-bit integers, every one of "
        "these errors is 0. The formula as published is right all the same."
    )
    lines += ["", *textwrap.wrap(text, 78)]
    lines += ["", "largest change of a probability by ε = 1e-15, for scores around", f"  {moved}"]
    return "\n".join(lines)
