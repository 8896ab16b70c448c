"""The case of the published derivation: "Transformer Attention Layer gradient" (Say-Hello2y/Transformer-attention, 2022).

n = 5 tokens, d_model = 10, h = 2 heads, no biases, the loss the mean of the output. The post derives the four weights' gradients in the block-diagonal
form, which :mod:`gradderiv.rules.blockdiag` follows, and compares W^Q with autograd by eye and by ``(theory - autograd).short()``.

Here the closed forms and the formula as printed are held against autograd with a tolerance, and the printed check is held against formulas that
are wrong.
"""

from __future__ import annotations

import textwrap
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
    X: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor, dY: Tensor, *, row_sum: bool = True
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
    Y = 1 / (A.exp() @ calI + EPSILON)  # n h·n
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


# ---------------------------------------------------------------- the account


class Seen(NamedTuple):
    """What the printed check says of one formula."""

    formula: str
    max_error: float
    relative: float
    passes: bool


def what_the_check_sees(case: Case) -> list[Seen]:
    """The printed comparison on the right formula and on wrong ones."""
    right = case.autograd["W_Q"]
    formulas = {
        "as printed": printed_W_Q(**case.args, dY=case.dY),
        "without the row sum": printed_W_Q(**case.args, dY=case.dY, row_sum=False),
        "zero": torch.zeros_like(right),
        "the opposite sign": -right,
        "1000 × the right one": 1000 * right,
        "NaN": torch.full_like(right, torch.nan),
    }
    out = []
    for name, value in formulas.items():
        error = float((value - right).abs().max())
        out.append(Seen(name, error, error / float(right.abs().max()), printed_check(value, right)))
    return out


def epsilon_on_probabilities(seed: int = 0, at: float = -34.0, spread: float = 1.0) -> tuple[float, float]:
    """What ε makes of P = exp(S)/(Σ exp(S) + ε) at unshifted scores near ``at``: the largest change, and the smallest row sum."""
    generator = torch.Generator().manual_seed(seed)
    S = at + spread * torch.randn(1000, N, generator=generator, dtype=torch.float64)
    E = S.exp()
    P = E / (E.sum(-1, keepdim=True) + EPSILON)
    return float((P - torch.softmax(S, -1)).abs().max()), float(P.sum(-1).min())


def equal_tokens_hide_a_transpose(case: Case) -> tuple[float, float]:
    """How far dV = P dO (for Pᵀ dO) is off, relative, with the post's input and with five equal tokens."""

    def off(X: Tensor) -> float:
        args = case.args | {"X": X}
        B = blockdiag.blocks(**args, n_heads=N_HEADS)
        dO = case.dY @ args["W_O"].mT  # n h·d
        heads = zip(B.P.chunk(N_HEADS, 1), dO.chunk(N_HEADS, 1), strict=True)
        wrong = torch.cat([X.mT @ P_i @ dO_i for P_i, dO_i in heads], 1)
        right = autograd(args)["W_V"]
        return float((wrong - right).abs().max() / right.abs().max())

    return off(case.args["X"]), off(torch.ones_like(case.args["X"]))


def explain_published(seed: int = 0) -> str:
    """An account at 80 columns of what the printed formula, its ε and its check do; every number is computed here."""
    case, narrow = draw(seed), draw(seed, torch.float32)
    right = case.autograd["W_Q"]
    size = float(right.abs().max())
    ours = {
        name: _relative(getattr(blockdiag, f"grad_{name}")(**case.args, dY=case.dY, n_heads=N_HEADS), g)
        for name, g in case.autograd.items()
    }
    printed = _relative(printed_W_Q(**case.args, dY=case.dY), right)
    printed32 = _relative(printed_W_Q(**narrow.args, dY=narrow.dY), narrow.autograd["W_Q"])
    change, row = epsilon_on_probabilities(seed)
    usual, equal = equal_tokens_hide_a_transpose(case)
    overflow = bool(torch.tensor(89.0).exp().isinf())
    table = [f"  {'W^Q':22} {'largest error':>13} {'relative':>9}  .short()"]
    for s in what_the_check_sees(case):
        table.append(
            f"  {s.formula:22} {s.max_error:13.1e} {s.relative:9.1e}  {'all 0: passes' if s.passes else 'seen'}"
        )
    paragraphs = [
        f'"Transformer Attention Layer gradient" (Say-Hello2y/Transformer-attention, 2022): n = {N}, d_model = {D_MODEL}, '
        f"h = {N_HEADS}, the loss the mean of the output.",
        "Our closed forms against autograd, largest error relative to the largest entry, float64: "
        + ", ".join(f"{name} {error:.1e}" for name, error in ours.items()) + ".",
        f"The post's W^Q, as printed: {printed:.1e} in float64, {printed32:.1e} in float32, its own type. The formula is right.",
        f"Its check is not. The entries of the gradient are at most {size:.1e}, and .short() makes 0 of every error below 1: an error "
        f"has to be {1 / size:,.0f} times the largest entry before it is seen.",
        "\n".join(table),
        f"Its ε = {EPSILON:.0e} in the denominator is harmless while Σ exp(S) is near {N}, as here. Scores near −34 have the same softmax, "
        f"but exp(−34) = {torch.tensor(-34.0).exp():.1e}: there P is off by up to {change:.2f}, and a row sums to {row:.2f}. "
        + ("Scores of 89 overflow exp in float32. " if overflow else "")
        + "Subtracting the greatest score of each row repairs both, and needs no ε.",
        f"The repository's check of W^V feeds equal tokens. Then P is uniform, and P dO in place of Pᵀ dO is off by {equal:.1e}, "
        f"with random tokens by {usual:.1e}. A constant cotangent, as that of the mean, hides more of this kind.",
    ]  # fmt: skip
    return "\n\n".join(p if "\n" in p else textwrap.fill(p, 80) for p in paragraphs)


def _relative(value: Tensor, reference: Tensor) -> float:
    return float((value.double() - reference).abs().max() / reference.abs().max())
