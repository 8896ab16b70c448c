"""Right in floats, and not exactly: what is lost is below rounding. Exact arithmetic may not call these wrong, nor need it prove them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style

LOG2E = 1 / math.log(2)  # as a float: exp2(LOG2E x) is exp(x) but for its rounding


class Exp2(Function):
    """Powers of two for exponentials, as kernels have it; τ log₂ e is one number, and dS knows τ alone."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sm_scale: float, way: str) -> Tensor:
        qk = (q @ k.mT) * (sm_scale * LOG2E)
        m = qk.amax(-1, keepdim=True)
        p = torch.exp2(qk - m)
        l = p.sum(-1, keepdim=True)
        out = (p @ v) / l
        ctx.save_for_backward(q, k, v, out, m + torch.log2(l))
        ctx.sm_scale, ctx.way = sm_scale, way
        return out

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, out, M = ctx.saved_tensors
        p = torch.exp2((q @ k.mT) * (ctx.sm_scale * LOG2E) - M)
        ds = p * (do @ v.mT - (do * out).sum(-1, keepdim=True)) * ctx.sm_scale
        if ctx.way == "log2-in-dS":
            ds = ds * LOG2E
        dk = ds.mT @ q
        return ds @ k, (-dk if ctx.way == "sign" else dk), p.mT @ do, None, None


class FiniteMask(Function):
    """-1e9 under the mask; backward trusts P to be 0 there."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, way: str) -> Tensor:
        s = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden, -1e9)
        p = torch.softmax(s, -1)
        ctx.save_for_backward(q, k, v, p)
        ctx.way = way
        return p @ v

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, p = ctx.saved_tensors
        dp = do @ v.mT
        ds = p * dp if ctx.way == "softmax-no-rowsum" else p * (dp - (p * dp).sum(-1, keepdim=True))
        if ctx.way != "scale-missing":
            ds = ds * q.shape[-1] ** -0.5
        return ds @ k, ds.mT @ q, p.mT @ do, None, None


def _hidden() -> dict[str, Any]:
    hidden = torch.tensor([[0, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    return {**draw(43, q=(2, 3, 2), k=(2, 4, 2), v=(2, 4, 3)), "hidden": hidden}


STYLES = (
    style(
        "exp2",
        Exp2,
        lambda: {**draw(42, q=(2, 3, 4), k=(2, 4, 4), v=(2, 4, 3)), "sm_scale": 0.5},
        {"log2-in-dS": "q k", "sign": "k"},
    ),
    style("finite-mask", FiniteMask, _hidden, {"softmax-no-rowsum": "q k", "scale-missing": "q k"}),
)
