"""ε, a mean and an int16: "Transformer Attention Layer gradient" (Say-Hello2y/Transformer-attention, 2022), and what its check can see.

The post derives the gradients of the four weights of multi-head attention in block-diagonal form and compares W^Q with autograd on 5 tokens, by eye and by
``(w_q - w_q_true).short()``. :mod:`gradderiv.checks.published` has the case.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.checks import tolerance
from gradderiv.checks.catalog import RULES
from gradderiv.checks.compare import Comparison, compare
from gradderiv.checks.oracles import field
from gradderiv.checks.problems import Problem
from gradderiv.checks.published import (
    D_MODEL,
    EPSILON,
    N_HEADS,
    WEIGHTS,
    Case,
    N,
    autograd,
    draw,
    printed_check,
    printed_W_Q,
)
from gradderiv.checks.reference import multihead as textbook
from gradderiv.checks.report import Record
from gradderiv.rules import blockdiag

SHAPES: dict[str, tuple[int, ...]] = {"X": (N, D_MODEL), **dict.fromkeys(WEIGHTS, (D_MODEL, D_MODEL))}
PROBLEM = Problem(
    "published", "blockdiag", SHAPES, (N, D_MODEL), {"n_heads": N_HEADS}, why="the post's sizes"
)
LEVELS = (0, -10, -20, -30, -32, -34, -36, -40, -50)

Formula = Callable[..., Tensor]
FORMULAS: dict[str, Formula] = {
    "as printed": printed_W_Q,
    "as printed, ε = 0": lambda **given: printed_W_Q(**given, epsilon=0.0),
    "without the row sum": lambda **given: printed_W_Q(**given, row_sum=False),
    "without the scale": lambda **given: (D_MODEL / N_HEADS) ** 0.5 * printed_W_Q(**given, epsilon=0.0),
    "zero": lambda X, W_Q, **_: torch.zeros_like(W_Q),
}


def exactly(formula: Formula) -> Record:
    """W^Q by this formula against autograd over the field: at random points, with a random cotangent."""

    def gradients(args: Any, options: Any, dY: Tensor) -> dict[str, Tensor]:
        return {"W_Q": formula(**args, dY=dY)}

    rule = dataclasses.replace(RULES["blockdiag"], gradients=gradients)
    return next(r for r in field(rule, PROBLEM) if r.argument == "W_Q")


def in_floats(value: Tensor, name: str, case: Case) -> tuple[float, Comparison]:
    """The largest error of a gradient in units of its tolerance, and the verdict."""

    def forward(args: Mapping[str, Any]) -> Tensor:
        return textbook(**args, n_heads=N_HEADS)

    allowed = tolerance.of_gradients(forward, case.args, case.dY, case.dY.dtype)
    error = (value.double() - case.autograd[name]).abs() / allowed[name]
    return float(error.max()), compare(value, case.autograd[name], allowed[name], n_heads=N_HEADS)


def gradients_of(case: Case, dY: Tensor) -> dict[str, Tensor]:
    """Autograd's gradients of the four weights for the cotangent dY."""
    leaves: dict[str, Any] = {name: x.detach().requires_grad_() for name, x in case.args.items()}
    found = torch.autograd.grad(textbook(**leaves, n_heads=N_HEADS), [leaves[w] for w in WEIGHTS], dY)
    return dict(zip(WEIGHTS, found, strict=True))


def another_cotangent() -> Tensor:
    return torch.randn(N, D_MODEL, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def hidden_by_the_mean(case: Case, mistake: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """How far a backward is off that takes ``mistake(dY)`` for dY, with the mean's cotangent and with a random one."""
    off = []
    for dY in (case.dY, another_cotangent()):
        right, wrong = gradients_of(case, dY), gradients_of(case, mistake(dY))
        off.append(max(float((wrong[w] - right[w]).abs().max() / right[w].abs().max()) for w in WEIGHTS))
    return off[0], off[1]


class Level(NamedTuple):
    """What ε does to a softmax and to its gradient, at scores near a level."""

    P: float
    row: float
    dS: float


def level(at: float, *, shift: bool = False, spread: float = 1.0) -> Level:
    """1000 rows of scores around ``at``: the largest change of P, the least row sum, and the error of dS relative to its largest entry."""
    generator = torch.Generator().manual_seed(0)
    S, dP = torch.randn(2, 1000, N, generator=generator, dtype=torch.float64)
    S = at + spread * S
    P = torch.softmax(S, -1)
    right = P * (dP - (P * dP).sum(-1, keepdim=True))
    E = (S - S.amax(-1, keepdim=True) if shift else S).exp()
    Y = 1 / (E.sum(-1, keepdim=True) + EPSILON)
    dS = dP * P - (dP * P * Y).sum(-1, keepdim=True) * E
    return Level(
        float((E * Y - P).abs().max()),
        float((E * Y).sum(-1).min()),
        float((dS - right).abs().max() / right.abs().max()),
    )


# ---------------------------------------------------------------- told


def tell() -> str:
    case, narrow = draw(), draw(dtype=torch.float32)
    parts = (holds(case, narrow), sees_nothing(case), the_mean(case), epsilon())
    return "\n\n".join(p if p.startswith("  ") else textwrap.fill(p, 79) for part in parts for p in part)


def holds(case: Case, narrow: Case) -> list[str]:
    exact = {r.argument: r for r in field(RULES["blockdiag"], PROBLEM)}
    table = [f"  {'gradient':20}{'float64':>9}{'float32':>9}   over the field"]

    def row(name: str, weight: str, formula: Formula, verdict: Record) -> None:
        units = [in_floats(formula(**c.args, dY=c.dY), weight, c)[0] for c in (case, narrow)]
        said = "equal" if verdict.verdict == "pass" else verdict.detail
        table.append(f"  {name:20}{units[0]:9.2f}{units[1]:9.2f}   {said}")

    for w in WEIGHTS:

        def closed(w: str = w, **given: Any) -> Tensor:
            return getattr(blockdiag, f"grad_{w}")(**given, n_heads=N_HEADS)

        row(w.replace("_", "^"), w, closed, exact[w])
    for name in ("as printed", "as printed, ε = 0"):
        row(f"W^Q {name}".replace("as ", ""), "W_Q", FORMULAS[name], exactly(FORMULAS[name]))
    return [
        f"«Transformer Attention Layer gradient» (Say-Hello2y/Transformer-attention, 2022): multi-head attention, {N} tokens, d_model = {D_MODEL}, "
        f"h = {N_HEADS}, the loss the mean of the output. It derives the gradients of the four weights in block-diagonal form. They hold. Largest error against "
        "autograd, in units of the tolerance (at most 1 passes), and in exact arithmetic:",
        "\n".join(table),
        f"Exactly, the printed W^Q is the gradient of nothing: the ε = {EPSILON:g} that is added to Σ exp(S) stands in the formula and not in the layer. Without it the "
        "formula is right in every entry.",
    ]  # fmt: skip


def sees_nothing(case: Case) -> list[str]:
    right = case.autograd["W_Q"]
    size = float(right.abs().max())
    table, details = [f"  {'W^Q':22}{'error':>9}  {'.short()':12}{'gradderiv':11}over the field"], []
    for name, formula in FORMULAS.items():
        value = formula(**case.args, dY=case.dY)
        zeros = (
            f"{int(((value - right).short() == 0).sum())} zeros"
            if printed_check(value, right)
            else "not all 0"
        )
        found, record = in_floats(value, "W_Q", case)[1], exactly(formula)
        error = float((value - right).abs().max()) / size
        table.append(f"  {name:22}{error:9.1e}  {zeros:12}{found.verdict:11}{record.verdict}")
        if "scale" in name:
            details.append(
                f"Of the one {name}, gradderiv says: {found.detail} Over the field: {record.detail}."
            )
    wrong = (FORMULAS["without the row sum"](**case.args, dY=case.dY) - right).short()
    return [
        f"Its check cannot see that. `.short()` casts the error to int16, which makes 0 of all that is below 1, and the largest entry of this gradient is {size:.1e}: an "
        f"error must be {1 / size:,.0f} times as large as that to be printed. Errors relative to the largest entry:",
        "\n".join(table),
        "The softmax without its row sum, checked as the post does, prints ten rows of",
        f"  {wrong[0].tolist()}",
        *details,
    ]  # fmt: skip


def the_mean(case: Case) -> list[str]:
    constant = case.dY[0, 0]
    mistakes: dict[str, Callable[[Tensor], Tensor]] = {
        "1/(n·d_model) written for dY": lambda dY: torch.full_like(dY, float(constant)),
        "the tokens of dY reversed": lambda dY: dY.flip(0),
        "the columns of dY reversed": lambda dY: dY.flip(1),
        "dY averaged over the tokens": lambda dY: dY.mean(0, keepdim=True).expand_as(dY),
    }
    table = [f"  {'a backward with':32}{'mean':>9}{'random dY':>12}"]
    for name, mistake in mistakes.items():
        mean, random = hidden_by_the_mean(case, mistake)
        table.append(f"  {name:32}{mean:9.1e}{random:12.1e}")
    usual, equal = equal_tokens_hide_a_transpose(case)
    ranks = [
        int(torch.linalg.matrix_rank(gradients_of(case, dY)["W_O"])) for dY in (case.dY, another_cotangent())
    ]
    return [
        f"Nor can the loss. The cotangent of a mean is one number, {float(constant):g}, {N * D_MODEL} times: what moves or drops its entries leaves it as it is. dW^O has rank "
        f"{ranks[0]}, with a random cotangent {ranks[1]}. Errors of all four weights, relative:",
        "\n".join(table),
        f"The repository's check of W^V feeds equal tokens, too. Then P is uniform, and P dO in place of Pᵀ dO is off by {equal:.1e}, with random tokens by {usual:.1e}.",
    ]  # fmt: skip


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


def epsilon() -> list[str]:
    found = {at: level(at) for at in LEVELS}
    shifted = {at: level(at, shift=True) for at in LEVELS}
    table = [
        f"  {'scores near':12}{'P off by':>10}{'least row':>11}{'dS off by':>11}{'with the shift, P':>20}{'dS':>9}"
    ]
    for at, f in found.items():
        s = shifted[at]
        table.append(f"  {_minus(at):12}{f.P:10.1e}{f.row:11.3f}{f.dS:11.1e}{s.P:20.1e}{s.dS:9.1e}")
    near = found[-34]
    return [
        f"And ε is no matter of taste. exp(S) is not shifted by the maximum, so Σ exp(S) is as small as the scores are low: at −34 it is about {N * torch.tensor(-34.0).exp():.0e} beside "
        f"ε = {EPSILON:g}. A softmax does not know the level of its scores; this one does ({N} scores a row, spread 1):",
        "\n".join(table),
        f"Near −34 the derivation's softmax, exp(S)/(Σ exp(S) + ε), is off by {near.P:.2f} and a row sums to {near.row:.2f}; further down the second term of dS is gone, and what is left is the softmax "
        f"without the row sum. In float32 exp is 0 below {_minus(_underflow())} and inf above {_overflow():.0f}. With the maximum of each row subtracted, Σ exp(S) is at "
        "least 1: no score is too low or too high, and ε is not needed.",
    ]  # fmt: skip


def _minus(x: float) -> str:
    return f"{x:.0f}".replace("-", "−")


def _underflow() -> float:
    levels = torch.arange(-200.0, 0.0)
    return float(levels[levels.exp() > 0].min())


def _overflow() -> float:
    levels = torch.arange(0.0, 200.0)
    return float(levels[levels.exp().isfinite()].max())
