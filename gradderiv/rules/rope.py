"""Rotary position embedding, of queries and keys, with tables of any content.

    Y = X ∘ c + R(X) ∘ s  in the first r columns, Y = X in the others                         Su et al. 2021, eq. 34

    half           R(x) = [−x_{r/2+1} … −x_r ‖ x_1 … x_{r/2}]            Llama, GPT-NeoX: column i turns with column i + r/2
    interleaved    R(x) = [−x_2, x_1, −x_4, x_3, …]                      RoFormer, GPT-J: neighbours turn together

X, Y (..., n, d)   cos, sin (..., n, r) broadcast to X[..., :r], r even and at most d.   Rᵀ = −R. Where the two columns of a pair have one angle, the gradient is the
rotation by −θ; where they have not (tables are arbitrary), the sine stands inside R: −R(dY ∘ s), not −R(dY) ∘ s.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.rules._inputs import require, require_tensors, rule, shapes
from gradderiv.rules.steps import Operator

PAIRINGS = ("half", "interleaved")


class RopeSaved(NamedTuple):
    """The arguments, and R(X)."""

    X: Tensor
    cos: Tensor
    sin: Tensor
    turned: Tensor
    pairing: str


class RopeGradients(NamedTuple):
    """∂ℓ/∂X, ∂ℓ/∂cos, ∂ℓ/∂sin, the last two summed over what the tables broadcast to."""

    X: Tensor
    cos: Tensor
    sin: Tensor


@rule
def turn(X: Tensor, pairing: str) -> Tensor:
    """R(x) = a quarter turn of every pair; Rᵀ = −R"""
    if pairing == "half":
        first, second = X.chunk(2, -1)  # ... n r/2, ... n r/2
        return torch.cat([-second, first], -1)  # ... n r
    first, second = X[..., 0::2], X[..., 1::2]  # ... n r/2, ... n r/2
    return torch.stack([-second, first], -1).reshape(X.shape)  # ... n r


@rule
def rope(X: Tensor, cos: Tensor, sin: Tensor, *, pairing: str = "half") -> tuple[Tensor, RopeSaved]:
    """Y = X ∘ c + R(X) ∘ s in the first r columns, X in the others

    Su et al. 2021, eq. 34; partial rotation as GPT-J and GPT-NeoX have it.

    Args:
        X: (..., n, d).
        cos: (..., n, r), broadcasts to X[..., :r]; both columns of a pair have their own entry.
        sin: likewise.
        pairing: "half" or "interleaved": which columns turn together.

    Returns:
        Y (..., n, d) and what :func:`rope_vjp` needs.

    Raises:
        InputError: tables that do not fit, an odd r, an unknown pairing.
        DtypeError: integers, several dtypes or devices.
    """
    require_rope(X, cos, sin, pairing)
    r = cos.shape[-1]
    turned = turn(X[..., :r], pairing)  # ... n r
    rotated = X[..., :r] * cos + turned * sin  # ... n r
    return _beside_tail(rotated, X, r), RopeSaved(X, cos, sin, turned, pairing)


@rule
def rope_jvp(saved: RopeSaved, X_dot: Tensor, cos_dot: Tensor, sin_dot: Tensor) -> Tensor:
    """Ẏ = Ẋ ∘ c + R(Ẋ) ∘ s + X ∘ ċ + R(X) ∘ ṡ

    The product rule; R is linear.
    """
    X, cos, sin, turned, pairing = saved
    r = cos.shape[-1]
    moved = X_dot[..., :r] * cos + turn(X_dot[..., :r], pairing) * sin  # ... n r
    moved = moved + X[..., :r] * cos_dot + turned * sin_dot  # ... n r
    return _beside_tail(moved, X_dot, r)


@rule
def rope_vjp(dY: Tensor, saved: RopeSaved) -> RopeGradients:
    """dX = dY ∘ c − R(dY ∘ s),   dc = Σ dY ∘ X,   ds = Σ dY ∘ R(X)

    Rᵀ = −R: the rotation by −θ.
    """
    X, cos, sin, turned, pairing = saved
    r = cos.shape[-1]
    dR = dY[..., :r]  # ... n r
    dcos = (dR * X[..., :r]).sum_to_size(cos.shape)  # ... n r
    dsin = (dR * turned).sum_to_size(sin.shape)  # ... n r
    back = dR * cos - turn(dR * sin, pairing)  # ... n r
    return RopeGradients(_beside_tail(back, dY, r), dcos, dsin)


@rule
def rope_vjp_jvp(
    dY: Tensor, saved: RopeSaved, dY_dot: Tensor, X_dot: Tensor, cos_dot: Tensor, sin_dot: Tensor
) -> RopeGradients:
    """dẊ = dẎ ∘ c + dY ∘ ċ − R(dẎ ∘ s + dY ∘ ṡ),   dċ = Σ dẎ ∘ X + dY ∘ Ẋ,   dṡ = Σ dẎ ∘ R(X) + dY ∘ R(Ẋ)

    The product rule on :func:`rope_vjp`, line by line.
    """
    X, cos, sin, turned, pairing = saved
    r = cos.shape[-1]
    dR, dR_dot, XR_dot = dY[..., :r], dY_dot[..., :r], X_dot[..., :r]
    dcos_dot = (dR_dot * X[..., :r] + dR * XR_dot).sum_to_size(cos.shape)  # ... n r
    dsin_dot = (dR_dot * turned + dR * turn(XR_dot, pairing)).sum_to_size(sin.shape)  # ... n r
    back_dot = dR_dot * cos + dR * cos_dot - turn(dR_dot * sin + dR * sin_dot, pairing)  # ... n r
    return RopeGradients(_beside_tail(back_dot, dY_dot, r), dcos_dot, dsin_dot)


ROPE = Operator(rope, rope_jvp, rope_vjp, rope_vjp_jvp)


def rotary_tables(
    positions: Tensor, width: int, *, base: float = 10000.0, pairing: str = "half"
) -> tuple[Tensor, Tensor]:
    """cos and sin of θ_{p,i} = p · base^(−2i/r)

    Su et al. 2021, eq. 15. Both columns of a pair get the angle of the pair.

    Args:
        positions: (n) of floating-point type, which the tables get.
        width: r, even.
        base: 10000, unless a model says otherwise.
        pairing: of the tables, as for :func:`rope`.

    Returns:
        cos (n, r) and sin (n, r).

    Raises:
        InputError: an odd width, an unknown pairing.
    """
    require_pairing(pairing)
    require(
        width > 0 and width % 2 == 0,
        "rotary tables need an even width",
        f"width={width}",
        "the number of pairs, or a fraction of a head's width",
        "r, at most d_k; two columns for each angle",
    )
    frequencies = base ** (-torch.arange(0, width, 2, dtype=positions.dtype, device=positions.device) / width)
    angles = positions[:, None] * frequencies  # n r/2
    angles = torch.cat([angles, angles], -1) if pairing == "half" else angles.repeat_interleave(2, -1)  # n r
    return angles.cos(), angles.sin()


def _beside_tail(rotated: Tensor, X: Tensor, r: int) -> Tensor:
    """The columns that do not turn are passed on."""
    return rotated if r == X.shape[-1] else torch.cat([rotated, X[..., r:]], -1)


def require_pairing(pairing: str) -> None:
    require(
        pairing in PAIRINGS,
        f"rope pairs columns as one of {', '.join(PAIRINGS)}",
        repr(pairing),
        "the name of a model instead of that of its pairing",
        "half for Llama and GPT-NeoX, interleaved for GPT-J and RoFormer",
    )


def require_rope(X: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> None:
    require_tensors("rope", X=X, cos=cos, sin=sin)
    require_pairing(pairing)
    r = cos.shape[-1] if cos.dim() else 0
    try:
        fits = torch.broadcast_shapes(cos.shape, (*X.shape[:-1], r)) == (*X.shape[:-1], r)
    except RuntimeError:
        fits = False
    require(
        fits and cos.shape == sin.shape and r % 2 == 0 and 0 < r <= X.shape[-1],
        "rope needs tables cos and sin (..., n, r) that broadcast to the first r columns of X, r even",
        shapes(X=X, cos=cos, sin=sin),
        "a table of r/2 angles, one for each pair; tables of other positions; no axis for the heads",
        "torch.cat([cos, cos], -1) for half, cos.repeat_interleave(2, -1) for interleaved; cos.unsqueeze(-3) for heads",
    )
