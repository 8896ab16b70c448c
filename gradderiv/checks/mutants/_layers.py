"""Mistakes in norms, activations, gates and residuals: in what stands around attention in a whole layer."""

from __future__ import annotations

import torch
from torch import Tensor

from gradderiv.checks.mutants.mutant import GRADIENT, Mutant
from gradderiv.rules.activation import FUNCTIONS, ActivationSaved
from gradderiv.rules.entrywise import ADD, EntrywiseSaved
from gradderiv.rules.layer_norm import LayerNormSaved, layer_norm_vjp, layer_norm_vjp_jvp
from gradderiv.rules.rms_norm import RmsNormSaved, rms_norm_vjp
from gradderiv.rules.steps import Operator, Step, step

Gradients = tuple[Tensor | None, ...]

#: X + A, whose gradient goes to A and to what the norm has made of X, and on through the norm's Jacobian.
THROUGH_THE_NORM = Operator(
    lambda X, A, N: (X + A, None),
    lambda saved, X_dot, A_dot, N_dot: X_dot + A_dot,
    lambda dY, saved: (None, dY, dY),
    lambda dY, saved, dY_dot, *dots: (None, dY_dot, dY_dot),
)


def residual_through_the_norm(steps: list[Step]) -> list[Step]:
    """The sum that reads X."""
    return [
        step(THROUGH_THE_NORM, f"{' '.join(s.reads)} N_1 -> {s.writes[0]}")
        if s.operator is ADD and s.reads[0] == "X"
        else s
        for s in steps
    ]


def residual_lost(dY: Tensor, saved: None) -> Gradients:
    """0 for dY along the residual."""
    return torch.zeros_like(dY), dY


def gate_swapped(dY: Tensor, saved: EntrywiseSaved) -> Gradients:
    """dA = dY ∘ A, dB = dY ∘ B"""
    return dY * saved.A, dY * saved.B


def without_the_offset(dY: Tensor, saved: RmsNormSaved) -> Gradients:
    """dX̂ = dY ∘ γ where Y is X̂ ∘ (1 + γ)"""
    right = rms_norm_vjp(dY, saved)
    return right._replace(X=rms_norm_vjp(dY, saved._replace(gain=saved.gain - 1)).X)


def without_the_mean(dY: Tensor, saved: LayerNormSaved) -> Gradients:
    """r (dX̂ − X̂ mean(X̂ ∘ dX̂)): RMSNorm's"""
    N, r, gain, _ = saved
    dN = dY * gain  # ... n d
    dX = r * (dN - N * (N * dN).mean(-1, keepdim=True))  # ... n d
    return layer_norm_vjp(dY, saved)._replace(X=dX)


def constant_deviation(
    dY: Tensor,
    saved: LayerNormSaved,
    dY_dot: Tensor,
    X_dot: Tensor,
    gain_dot: Tensor,
    shift_dot: Tensor | None = None,
) -> Gradients:
    """Without −r m dX"""
    right = layer_norm_vjp_jvp(dY, saved, dY_dot, X_dot, gain_dot, shift_dot)
    m = (saved.N * X_dot).mean(-1, keepdim=True)  # ... n 1
    return right._replace(X=right.X + saved.r * m * layer_norm_vjp(dY, saved).X)


def the_other_gelu(dY: Tensor, saved: ActivationSaved) -> Gradients:
    """½ (1 + t) + ½ x (1 − t²) u′ for Φ + x φ"""
    return (FUNCTIONS["gelu_tanh"].first(saved.X) * dY,)


def gate_of_the_cotangent(dY: Tensor, saved: ActivationSaved) -> Gradients:
    """max(dY, 0): "guided" backpropagation without the gate of X."""
    return (torch.relu(dY),)


def no_curvature(dY: Tensor, saved: ActivationSaved, dY_dot: Tensor, X_dot: Tensor) -> Gradients:
    """f′ ∘ dẎ, without f″ ∘ Ẋ ∘ dY"""
    return (FUNCTIONS[saved.function].first(saved.X) * dY_dot,)


MUTANTS = (
    Mutant(
        "norm-residual", "dY of the residual sent through the norm's Jacobian: dX = norm_vjp(dN + dH)", "quack #53",
        {"steps": residual_through_the_norm}, problems=("llama-layer", "tiny-parallel-layer"),
        kills=GRADIENT | {"sympy", "identities"},
    ),
    Mutant(
        "residual-lost", "a residual hands nothing back: of two paths one gets no cotangent", "the same slip as norm-residual",
        {"add.vjp": residual_lost}, problems=("gemma-layer", "tiny-parallel-layer"), kills=GRADIENT | {"sympy"},
    ),
    Mutant(
        "norm-gain-offset", "dX̂ = dY ∘ γ where the gain is 1 + γ", "Liger #74", {"rms_norm.vjp": without_the_offset},
        problems=("rms-norm-offset",), kills=GRADIENT,
    ),
    Mutant(
        "layer-norm-no-mean", "LayerNorm's dX without the term of the mean", "classroom", {"layer_norm.vjp": without_the_mean},
        problems=("layer-norm", "tiny-layer-norm"), kills=GRADIENT | {"sympy", "identities"},
    ),
    Mutant(
        "second-layer-norm", "dẊ lacks the tangent of r", "ours", {"layer_norm.vjp_jvp": constant_deviation}, kind="second",
        problems=("layer-norm",), kills=frozenset({"second order"}),
    ),
    Mutant(
        "gelu-other", "the derivative of the GELU by tanh for that of the GELU", "ours", {"activation.vjp": the_other_gelu},
        problems=("gelu",), kills=GRADIENT,
    ),
    Mutant(
        "relu-gate", "the gate of the cotangent for that of X: not linear in dY", "guided backpropagation, as a mistake",
        {"activation.vjp": gate_of_the_cotangent}, problems=("relu",), kills=GRADIENT | {"identities"},
    ),
    Mutant(
        "second-activation", "dẊ = f′ ∘ dẎ, without f″", "ours", {"activation.vjp_jvp": no_curvature}, kind="second",
        problems=("silu",), kills=frozenset({"second order"}),
    ),
    Mutant(
        "gate-swapped", "dA = dY ∘ A, dB = dY ∘ B: each factor gets itself", "classroom", {"multiply.vjp": gate_swapped},
        problems=("llama-layer", "tiny-parallel-layer"), kills=GRADIENT | {"sympy", "identities"},
    ),
)  # fmt: skip
