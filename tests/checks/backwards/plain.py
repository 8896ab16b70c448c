"""The textbook: P is saved, four products in backward. Once with matmul, once with einsum, once with exponentials and their sum."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .style import draw, softmax_backward, style


class Plain(Function):
    """Saves the probabilities."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, way: str) -> Tensor:
        scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(query.size(-1))
        probs = F.softmax(scores, dim=-1)
        ctx.save_for_backward(query, key, value, probs)
        ctx.way = way
        return torch.matmul(probs, value)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        query, key, value, probs = ctx.saved_tensors
        grad_value = torch.matmul(probs.transpose(-2, -1), grad_output)
        grad_probs = torch.matmul(grad_output, value.transpose(-2, -1))
        grad_scores = softmax_backward(grad_probs, probs, ctx.way)
        if ctx.way != "scale-missing":
            grad_scores = grad_scores / math.sqrt(query.size(-1))
        grad_query = torch.matmul(grad_scores, key)
        grad_key = torch.matmul(grad_scores.transpose(-2, -1), query)
        if ctx.way == "entry-too-large":
            grad_key[1, 2, 0] *= 1.1
        if ctx.way == "sign":
            grad_query.neg_()
        return grad_query, grad_key, grad_value, None


class Einsum(Function):
    """(batch, time, head, feature), as einsum lets one keep it. Self-attention: n_q = n_k, so a transposition can be forgotten."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, way: str) -> Tensor:
        ctx.way = way
        attn = torch.einsum("bihd,bjhd->bhij", q, k).mul(q.shape[-1] ** -0.5).softmax(dim=-1)
        ctx.save_for_backward(q, k, v, attn)
        return torch.einsum("bhij,bjhe->bihe", attn, v)

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, attn = ctx.saved_tensors
        way = ctx.way
        dv = torch.einsum("bhij,bjhe->bihe" if way == "transpose-dV" else "bhij,bihe->bjhe", attn, do)
        da = torch.einsum("bihe,bjhe->bhij", do, v)
        ds = attn * (da - torch.einsum("bhij,bhij->bhi", attn, da).unsqueeze(-1)) * q.shape[-1] ** -0.5
        dq = torch.einsum("bhij,bjhd->bihd", ds, k)
        dk = torch.einsum("bhij,bjhd->bihd" if way == "transpose-dK" else "bhij,bihd->bjhd", ds, q)
        return (dk, dq, dv, None) if way == "swap-dQ-dK" else (dq, dk, dv, None)


class Exponentials(Function):
    """E = exp(S), Z = E 1 + ε, O = E V / Z, and the backward of each: of the division too."""

    @staticmethod
    def forward(ctx: Any, Q: Tensor, K: Tensor, V: Tensor, scale: float, way: str) -> Tensor:
        E = torch.exp(scale * (Q @ K.mT))
        Z = E.sum(dim=-1, keepdim=True) + 1e-12
        O = (E @ V) / Z
        ctx.save_for_backward(Q, K, V, E, Z, O)
        ctx.scale, ctx.way = scale, way
        return O

    @staticmethod
    def backward(ctx: Any, dO: Tensor) -> Any:
        Q, K, V, E, Z, O = ctx.saved_tensors
        dN = dO / Z  # of the numerator E V
        dZ = -(dO * O).sum(-1, keepdim=True) / Z
        if ctx.way == "division-sign":
            dZ = -dZ
        if ctx.way == "division-no-denominator":
            dZ = torch.zeros_like(dZ)
        dV = E.mT @ (dO if ctx.way == "normaliser-missing" else dN)
        dE = dN @ V.mT + dZ
        dS = ctx.scale * dE * E
        return dS @ K, dS.mT @ Q, dV, None, None


STYLES = (
    style(
        "plain",
        Plain,
        lambda: draw(1, query=(2, 3, 3), key=(2, 4, 3), value=(2, 4, 2)),
        {
            "softmax-no-rowsum": "query key",
            "softmax-diagonal": "query key",
            "softmax-flattened": "query key",
            "scale-missing": "query key",
            "entry-too-large": "key",
            "sign": "query",
        },
    ),
    style(
        "einsum",
        Einsum,
        lambda: draw(2, q=(1, 3, 2, 4), k=(1, 3, 2, 4), v=(1, 3, 2, 4)),
        {"transpose-dK": "k", "transpose-dV": "v", "swap-dQ-dK": "q k"},
    ),
    style(
        "exponentials",
        Exponentials,
        lambda: {**draw(3, Q=(3, 2), K=(4, 2), V=(4, 3)), "scale": 0.3},
        {"division-sign": "Q K", "division-no-denominator": "Q K", "normaliser-missing": "V"},
    ),
)
