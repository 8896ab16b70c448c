"""Mistakes in rotary embedding, and in the norm of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor

from gradderiv.checks.mutants.mutant import GRADIENT, VALUE, Mutant
from gradderiv.rules.rms_norm import RmsNormSaved, rms_norm_vjp, rms_norm_vjp_jvp
from gradderiv.rules.rope import RopeSaved, rope, rope_jvp, rope_vjp, rope_vjp_jvp, turn
from gradderiv.rules.steps import Step

Gradients = tuple[Tensor | None, ...]


def _with_tail(back: Tensor, dY: Tensor) -> Tensor:
    return torch.cat([back, dY[..., back.shape[-1] :]], -1)


def not_inverted(dY: Tensor, saved: RopeSaved) -> Gradients:
    """dY ∘ c + R(dY ∘ s)"""
    dR = dY[..., : saved.cos.shape[-1]]
    back = dR * saved.cos + turn(dR * saved.sin, saved.pairing)
    return rope_vjp(dY, saved)._replace(X=_with_tail(back, dY))


def sine_outside(dY: Tensor, saved: RopeSaved) -> Gradients:
    """dY ∘ c − R(dY) ∘ s"""
    dR = dY[..., : saved.cos.shape[-1]]
    back = dR * saved.cos - turn(dR, saved.pairing) * saved.sin
    return rope_vjp(dY, saved)._replace(X=_with_tail(back, dY))


def tail_of_ones(dY: Tensor, saved: RopeSaved) -> Gradients:
    """1 in the columns that do not turn."""
    g = rope_vjp(dY, saved)
    r = saved.cos.shape[-1]
    return g._replace(X=torch.cat([g.X[..., :r], torch.ones_like(dY[..., r:])], -1))


def half(X: Tensor, cos: Tensor, sin: Tensor, *, pairing: str) -> Tensor:
    """Pairs (i, i + r/2) under tables that are made for neighbours."""
    return rope(X, cos, sin, pairing="half")[0]


def tables_averaged(dY: Tensor, saved: RopeSaved) -> Gradients:
    """Averaged over what the tables broadcast along."""
    g = rope_vjp(dY, saved)
    copies = saved.turned.numel() // saved.cos.numel()
    return g._replace(cos=g.cos / copies, sin=g.sin / copies)


def tables_stand_still(saved: RopeSaved, X_dot: Tensor, cos_dot: Tensor, sin_dot: Tensor) -> Tensor:
    """Ẋ ∘ c + R(Ẋ) ∘ s"""
    return rope_jvp(saved, X_dot, torch.zeros_like(cos_dot), torch.zeros_like(sin_dot))


def second_tables_stand_still(
    dY: Tensor, saved: RopeSaved, dY_dot: Tensor, X_dot: Tensor, cos_dot: Tensor, sin_dot: Tensor
) -> Gradients:
    """dẎ ∘ c − R(dẎ ∘ s)"""
    return rope_vjp_jvp(dY, saved, dY_dot, X_dot, torch.zeros_like(cos_dot), torch.zeros_like(sin_dot))


def diagonal(dY: Tensor, saved: RmsNormSaved) -> Gradients:
    """r dX̂"""
    return rms_norm_vjp(dY, saved)._replace(X=saved.r * dY * saved.gain)


def outside(X: Tensor, gain: Tensor, *, eps: float) -> Tensor:
    """X / (√mean(x²) + ε)"""
    return X / (torch.sqrt((X * X).mean(-1, keepdim=True)) + eps) * gain


def constant_root(
    dY: Tensor, saved: RmsNormSaved, dY_dot: Tensor, X_dot: Tensor, gain_dot: Tensor
) -> Gradients:
    """r (dX̂˙ − X̂˙ q − X̂ q̇), without −r m (dX̂ − X̂ q) r"""
    right = rms_norm_vjp_jvp(dY, saved, dY_dot, X_dot, gain_dot)
    N, r, _ = saved
    m = (N * X_dot).mean(-1, keepdim=True)  # ... n 1
    return right._replace(X=right.X + r * m * rms_norm_vjp(dY, saved).X)


def rotated_first(steps: list[Step]) -> list[Step]:
    """The two rows of QK-norm behind the two of the rotation."""
    norms = [s for s in steps if any(n.startswith("gain") for n in s.reads)]
    turns = [s for s in steps if "cos" in s.reads]
    first = steps.index(norms[0])
    return [*steps[:first], *turns, *norms, *steps[first + len(norms) + len(turns) :]]


MUTANTS = (
    Mutant(
        "rope-not-inverted", "dX = dY ∘ c + R(dY ∘ s): rotated by +θ", "classroom", {"rope.vjp": not_inverted},
        problems=("rope-half", "tiny-rope"), kills=GRADIENT | {"sympy", "identities"}, elsewhere={"identities": "gpt-oss"},
    ),
    Mutant(
        "rope-order", "dX = dY ∘ c − R(dY) ∘ s: right while both halves of the table are equal", "Paddle #74716",
        {"rope.vjp": sine_outside}, problems=("rope-half", "tiny-rope"), kills=GRADIENT | {"sympy"},
    ),
    Mutant(
        "rope-tail", "1 for dY in the columns of dX that do not turn", "apex #1750", {"rope.vjp": tail_of_ones},
        problems=("rope-half", "tiny-rope"), kills=GRADIENT | {"sympy", "identities"},
    ),
    Mutant(
        "rope-pairing", "interleaved angles with half-split rotation", "how-to-train-your-gpt #6, nanotron #427, LLMs-from-scratch #747",
        {"rope.f": half}, kind="forward", problems=("rope-interleaved",), kills=VALUE,
    ),
    Mutant(
        "rope-table-mean", "dc, ds averaged over the heads and sequences that share the table", "the same slip as bias-mean",
        {"rope.vjp": tables_averaged}, problems=("rope-half",), kills=GRADIENT,
    ),
    Mutant(
        "tangent-rope", "Ẏ = Ẋ ∘ c + R(Ẋ) ∘ s: the tables stand still", "ours", {"rope.jvp": tables_stand_still},
        kind="tangent", problems=("rope-half", "tiny-rope"), kills=frozenset({"dual"}),
    ),
    Mutant(
        "second-rope", "dẊ = dẎ ∘ c − R(dẎ ∘ s): the tables stand still", "ours", {"rope.vjp_jvp": second_tables_stand_still},
        kind="second", problems=("rope-half", "tiny-rope"), kills=frozenset({"second order"}),
    ),
    Mutant(
        "rms-norm-diagonal", "dX = r dX̂: the projection −X̂ mean(X̂ ∘ dX̂) dropped", "ours", {"rms_norm.vjp": diagonal},
        problems=("rms-norm", "tiny-rms-norm"), kills=GRADIENT | {"sympy"},
    ),
    Mutant(
        "rms-norm-epsilon", "X / (√mean(x²) + ε): ε outside the root", "ours", {"rms_norm.f": outside},
        kind="forward", problems=("rms-norm-heads", "tiny-rms-norm"), kills=VALUE | {"sympy"},
    ),
    Mutant(
        "second-rms-norm", "dẊ lacks the tangent of r", "ours", {"rms_norm.vjp_jvp": constant_root}, kind="second",
        problems=("rms-norm",), kills=frozenset({"second order"}),
    ),
    Mutant(
        "qk-norm-after-rope", "Q, K rotated first and normalized then: the gains stand at other columns", "ours",
        {"steps": rotated_first}, kind="forward", problems=("attend-qk-norm",), kills=VALUE,
    ),
)  # fmt: skip
