"""Mistakes in softmax with sinks, in its other outputs, in dropout, and in the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.mutants.mutant import GRADIENT, VALUE, Mutant
from gradderiv.rules.cache import append_vjp
from gradderiv.rules.dropout import drop
from gradderiv.rules.softmax_lse import (
    SoftmaxLseGradients,
    SoftmaxLseSaved,
    softmax_lse,
    softmax_lse_jvp,
    softmax_lse_vjp,
    softmax_lse_vjp_jvp,
)
from gradderiv.rules.steps import Operator, Step

Gradients = tuple[Tensor | None, ...]
Pair = tuple[Tensor, Tensor]
GROUP = 3  # query heads of a key/value head, in the problems with six and two


# ---------------------------------------------------------------- sinks


def no_gradient_of_sinks(d: Pair, saved: SoftmaxLseSaved) -> Gradients:
    assert saved.sinks is not None
    return softmax_lse_vjp(d, saved)._replace(sinks=torch.zeros_like(saved.sinks))


def among_keys_only(d: Pair, saved: SoftmaxLseSaved) -> Gradients:
    """δ = rowsum(P ∘ dP) / rowsum(P): as if the keys had the whole row."""
    g, P, dP = softmax_lse_vjp(d, saved), saved.P, d[0]
    delta = (P * dP).sum(-1, keepdim=True)  # ... n_q 1
    assert saved.p is not None
    return g._replace(S=g.S + P * (delta - delta / (1 - saved.p)))


def for_each_group(S: Tensor, sinks: Tensor, *, mask: Tensor | None = None) -> Pair:
    """The first h_kv of the sinks, each for a group of query heads."""
    shared = torch.stack([sinks[i // GROUP] for i in range(sinks.shape[0])])
    return softmax_lse(S, shared, mask=mask)[0]


def sinks_stand_still(saved: SoftmaxLseSaved, S_dot: Tensor, sinks_dot: Tensor) -> Pair:
    return softmax_lse_jvp(saved, S_dot, torch.zeros_like(sinks_dot))


def share_stands_still(
    d: Pair, saved: SoftmaxLseSaved, d_dot: Pair, S_dot: Tensor, sinks_dot: Tensor
) -> Gradients:
    """dṡ = Σ p (d(lse)˙ − δ̇)"""
    right = softmax_lse_vjp_jvp(d, saved, d_dot, S_dot, sinks_dot)
    P, p, sinks, _ = saved
    assert p is not None
    assert sinks is not None
    p_dot = p * (sinks_dot[..., None, None] - softmax_lse_jvp(saved, S_dot, sinks_dot)[1].unsqueeze(-1))
    back = d[1].unsqueeze(-1) - (P * d[0]).sum(-1, keepdim=True)  # ... n_q 1
    assert right.sinks is not None
    return right._replace(sinks=right.sinks - (p_dot * back).squeeze(-1).sum(-1).sum_to_size(sinks.shape))


# ---------------------------------------------------------------- lse, the weights, the empty row, the type


def without_lse(d: Pair, saved: SoftmaxLseSaved) -> SoftmaxLseGradients:
    return softmax_lse_vjp((d[0], torch.zeros_like(d[1])), saved)


def lse_without_P(d: Pair, saved: SoftmaxLseSaved) -> Gradients:
    """P ∘ (dP − δ) + dlse"""
    g = without_lse(d, saved)
    return g._replace(S=g.S + d[1].unsqueeze(-1))


def without_weights(dY: Tensor, saved: Any) -> Gradients:
    names, widths = saved
    found = zip(dY.split(widths, -1), names, strict=True)
    return tuple(None if n == "weights" else d.squeeze(-1) if n == "lse" else d for d, n in found)


def uniform_row(S: Tensor, sinks: None = None, *, mask: Tensor) -> Pair:
    """1/n_k in the rows that may attend to nothing."""
    P, lse = softmax_lse(S, mask=mask)[0]
    return P.masked_fill(~mask.any(-1, keepdim=True), 1 / P.shape[-1]), lse


def narrow(S: Tensor, sinks: None = None, *, mask: Tensor | None = None, softmax_dtype: torch.dtype) -> Pair:
    """The type that was asked for is not looked at."""
    return softmax_lse(S, mask=mask)[0]


# ---------------------------------------------------------------- dropout


def unscaled(dP: Tensor, saved: Any) -> Gradients:
    return (dP.masked_fill(~saved[1]["keep"], 0.0),)


def redrawn(dP: Tensor, saved: Any) -> Gradients:
    keep, p = saved[1].values()
    return (drop(dP, keep=keep.flip(-1), dropout_p=p),)


def kept_all(dP: Tensor, saved: Any) -> Gradients:
    return (dP / (1 - saved[1]["dropout_p"]),)


def _context_vjp(dO: Tensor, saved: Any) -> Gradients:
    _, P, V = saved
    return dO @ V.mT, None, P.mT @ dO


UNDROPPED = Operator(
    lambda dropped, P, V: (dropped @ V, (dropped, P, V)),
    lambda saved, dropped_dot, P_dot, V_dot: dropped_dot @ saved[2] + saved[0] @ V_dot,
    _context_vjp,
    lambda dO, saved, dO_dot, dropped_dot, P_dot, V_dot: (
        dO_dot @ saved[2].mT + dO @ V_dot.mT,
        None,
        P_dot.mT @ dO + saved[1].mT @ dO_dot,
    ),
)


def undropped(steps: list[Step]) -> list[Step]:
    """dV from the weights as they were before dropout, which keep their name; those after it are "dropped"."""
    before = next(i for i, s in enumerate(steps) if "keep" in s.static)
    dropped = [steps[before]._replace(writes=("dropped",))]
    context = [steps[before + 1]._replace(operator=UNDROPPED, reads=("dropped", "P", "V"))]
    rest = [
        s._replace(reads=tuple("dropped" if n == "P" else n for n in s.reads)) for s in steps[before + 2 :]
    ]
    return [*steps[:before], *dropped, *context, *rest]


# ---------------------------------------------------------------- cache


def cached_without_gradient(dK: Tensor, n_past: int) -> Gradients:
    g = append_vjp(dK, n_past)
    return torch.zeros_like(g.cache), g.new


def cut_from_the_end(dK: Tensor, n_past: int) -> Gradients:
    n = dK.shape[-2] - n_past
    return dK[..., n:, :], dK[..., :n, :]


def cache_stands_still(n_past: int, cache_dot: Tensor, new_dot: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(cache_dot), new_dot], -2)


NARROW = {
    **dict.fromkeys(("dual", "field", "second order", "identities"), "exact arithmetic has one type"),
    **dict.fromkeys(
        ("forward", "autograd", "finite differences"),
        "S and P are rounded to the narrow type either way; what lies between them is within that rounding",
    ),
}
DROPOUT: dict[str, Any] = {"problems": ("attend-dropout",), "kills": GRADIENT}
TANGENT: dict[str, Any] = {"kind": "tangent", "kills": frozenset({"dual", "second order"})}

MUTANTS = (
    Mutant(
        "sinks-no-gradient", "ds = 0", "ours", {"softmax.vjp": no_gradient_of_sinks},
        problems=("attend-sinks", "tiny-attend-sinks"), kills=GRADIENT | {"sympy"},
    ),
    Mutant(
        "sinks-delta", "δ of softmax among the keys alone, without the sink's share", "ours",
        {"softmax.vjp": among_keys_only},
        problems=("tiny-attend-sinks",), kills=GRADIENT | {"sympy"},
    ),
    Mutant(
        "sinks-per-group", "one sink for each key/value head, not for each query head", "ours",
        {"softmax.f": for_each_group}, kind="forward", problems=("gpt-oss",), kills=VALUE,
    ),
    Mutant(
        "tangent-sinks", "(lse)˙ = rowsum(P ∘ Ṡ): the sinks stand still", "ours", {"softmax.jvp": sinks_stand_still},
        problems=("attend-sinks",), **TANGENT,
    ),
    Mutant(
        "second-sinks", "dṡ = Σ p (d(lse)˙ − δ̇): what the sink takes stands still", "ours",
        {"softmax.vjp_jvp": share_stands_still}, kind="second", problems=("attend-sinks",), kills=frozenset({"second order"}),
    ),
    Mutant(
        "lse-dropped", "dS = P ∘ (dP − δ): the cotangent of lse dropped", "eight public threads ask for it",
        {"softmax.vjp": without_lse}, problems=("attend-outputs",), kills=GRADIENT,
    ),
    Mutant(
        "lse-without-P", "dS = P ∘ (dP − δ) + dlse", "ours", {"softmax.vjp": lse_without_P}, problems=("attend-outputs",),
        kills=GRADIENT,
    ),
    Mutant(
        "weights-dropped", "the cotangent of the returned weights dropped", "as in quack #53", {"outputs.vjp": without_weights},
        problems=("attend-outputs",), kills=GRADIENT,
    ),
    Mutant(
        "softmax-row-uniform", "a fully masked row is uniform beside options too", "apex #1444, pytorch #41508",
        {"softmax.f": uniform_row}, kind="forward", problems=("attend-grouped",), kills=VALUE,
    ),
    Mutant(
        "softmax-narrow", "softmax in the type of the scores, though a wider one was asked for", "ours", {"softmax.f": narrow},
        kind="float", problems=("attend-wide",), kills=frozenset(), reasons=NARROW,
    ),
    Mutant(
        "dropout-scale", "dP without 1/(1 − p)", "ours", {"dropout.vjp": unscaled}, **DROPOUT,
    ),
    Mutant(
        "dropout-redrawn", "dP with a keep mask drawn again", "ours", {"dropout.vjp": redrawn}, **DROPOUT,
    ),
    Mutant(
        "dropout-ignored", "dP with nothing dropped", "ours", {"dropout.vjp": kept_all}, **DROPOUT,
    ),
    Mutant(
        "dropout-undropped", "dV = Pᵀ dO with P before dropout", "ours", {"steps": undropped}, **DROPOUT,
    ),
    Mutant(
        "cache-no-gradient", "dK_cache, dV_cache = 0", "ours", {"cache.vjp": cached_without_gradient},
        problems=("decode",), kills=GRADIENT,
    ),
    Mutant(
        "cache-cut", "dK cut into [new ; cached] where K was [cached ; new]", "ours", {"cache.vjp": cut_from_the_end},
        problems=("attend-decode",), kills=GRADIENT,
    ),
    Mutant(
        "tangent-cache", "K̇ = [0 ; K̇_new]: what is cached stands still", "ours", {"cache.jvp": cache_stands_still},
        problems=("attend-decode",), **TANGENT,
    ),
)  # fmt: skip
