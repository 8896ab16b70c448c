"""Two outputs, the second the log-sum-exp of the scores, and both are differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class WithLse(Function):
    """(O, lse): dS = P ∘ (dP - δ + dlse)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, way: str) -> tuple[Tensor, Tensor]:
        s = q @ k.transpose(1, 2) * q.shape[2] ** -0.5
        lse = torch.logsumexp(s, dim=2)
        out = torch.exp(s - lse[:, :, None]) @ v
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.way = way
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor, dlse: Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        scale = q.shape[2] ** -0.5
        p = torch.exp(q @ k.transpose(1, 2) * scale - lse[:, :, None])
        delta = (dout * out).sum(2)
        if ctx.way == "sign":
            delta = delta + dlse
        elif ctx.way != "cotangent-ignored":
            delta = delta - dlse
        ds = p * (dout @ v.transpose(1, 2) - delta[:, :, None]) * scale
        dv = p.transpose(1, 2) @ dout
        if ctx.way == "cotangent-in-dV":
            dv = dv + p.transpose(1, 2) @ dlse[:, :, None]
        return ds @ k, ds.transpose(1, 2) @ q, dv, None


STYLES = (
    style(
        "lse-output",
        WithLse,
        lambda: draw(27, q=(2, 3, 2), k=(2, 4, 2), v=(2, 4, 3)),
        {"sign": "q k", "cotangent-ignored": "q k", "cotangent-in-dV": "v"},
    ),
)
