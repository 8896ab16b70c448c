"""Rotary embeddings inside the Function: half-split with tables that are passed in, interleaved with a tail that does not turn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


def rotate_half(x: Tensor) -> Tensor:
    """(x₁, x₂) -> (-x₂, x₁)."""
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def attend_backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK (both still rotated) and dV."""
    dp = do @ v.mT
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    return ds @ k, ds.mT @ q, p.mT @ do


class HalfSplit(Function):
    """cos, sin (n, d) are inputs without gradient; their halves need not be equal."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, way: str) -> Tensor:
        q = q * cos + rotate_half(q) * sin
        k = k * cos + rotate_half(k) * sin
        p = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
        ctx.save_for_backward(q, k, v, p, cos, sin)
        ctx.way = way
        return p @ v

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, p, cos, sin = ctx.saved_tensors
        dq, dk, dv = attend_backward(do, q, k, v, p)
        if ctx.way == "rope-only-dQ":
            return HalfSplit.unrotate(dq, cos, sin, ctx.way), dk, dv, None, None, None
        dq, dk = (HalfSplit.unrotate(g, cos, sin, ctx.way) for g in (dq, dk))
        return dq, dk, dv, None, None, None

    @staticmethod
    def unrotate(dy: Tensor, cos: Tensor, sin: Tensor, way: str) -> Tensor:
        if way == "rope-not-inverted":
            return dy * cos + rotate_half(dy) * sin
        if way == "rope-order":
            return dy * cos - rotate_half(dy) * sin
        return dy * cos - rotate_half(dy * sin)


class Interleaved(Function):
    """Pairs (x₀, x₁), (x₂, x₃) … turn, written into an empty tensor; the last features pass through."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rotary_dim: int, base: float, way: str) -> Tensor:
        q, k = (Interleaved.rotate(x, rotary_dim, base, 1) for x in (q, k))
        p = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
        ctx.save_for_backward(q, k, v, p)
        ctx.rotary_dim, ctx.base, ctx.way = rotary_dim, base, way
        return p @ v

    @staticmethod
    def rotate(
        x: Tensor, rotary_dim: int, base: float, direction: int, pairing: str = "interleaved"
    ) -> Tensor:
        powers = torch.arange(0, rotary_dim, 2, dtype=x.dtype, device=x.device) / rotary_dim
        angles = torch.outer(torch.arange(x.shape[-2], dtype=x.dtype, device=x.device), base**-powers)
        cos, sin = angles.cos(), direction * angles.sin()
        out = torch.empty_like(x)
        half = rotary_dim // 2
        even, odd = slice(0, rotary_dim, 2), slice(1, rotary_dim, 2)
        if pairing == "half-split":
            even, odd = slice(0, half), slice(half, rotary_dim)
        out[..., even] = x[..., even] * cos - x[..., odd] * sin
        out[..., odd] = x[..., even] * sin + x[..., odd] * cos
        out[..., rotary_dim:] = x[..., rotary_dim:]
        return out

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, p = ctx.saved_tensors
        dq, dk, dv = attend_backward(do, q, k, v, p)
        direction = 1 if ctx.way == "rope-not-inverted" else -1
        pairing = "half-split" if ctx.way == "rope-pairing" else "interleaved"
        dq, dk = (Interleaved.rotate(g, ctx.rotary_dim, ctx.base, direction, pairing) for g in (dq, dk))
        if ctx.way == "rope-tail":
            dk[..., ctx.rotary_dim :] = 1.0
        return dq, dk, dv, None, None, None


def _half_split() -> dict[str, Any]:
    turned = draw(33, angles=(3, 4))["angles"].detach()
    return {**draw(32, q=(2, 3, 4), k=(2, 3, 4), v=(2, 3, 2)), "cos": turned.cos(), "sin": turned.sin()}


STYLES = (
    style(
        "rope-half-split",
        HalfSplit,
        _half_split,
        {"rope-not-inverted": "q k", "rope-order": "q k", "rope-only-dQ": "k"},
    ),
    style(
        "rope-interleaved",
        Interleaved,
        lambda: {**draw(34, q=(1, 3, 5), k=(1, 4, 5), v=(1, 4, 2)), "rotary_dim": 4, "base": 100.0},
        {"rope-not-inverted": "q k", "rope-pairing": "q k", "rope-tail": "k"},
    ),
)
