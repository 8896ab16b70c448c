"""Masks: causal by torch.where, a sliding window by tril and triu, padding as minus ten thousand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class Causal(Function):
    """torch.where forward, masked_fill backward; dP is masked before the row sum, as some write it."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, way: str) -> Tensor:
        n = q.size(-2)
        causal = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
        s = torch.where(causal, q @ k.mT * q.size(-1) ** -0.5, torch.tensor(float("-inf"), dtype=q.dtype))
        lse = s.logsumexp(-1, keepdim=True)
        out = (s - lse).exp() @ v
        ctx.save_for_backward(q, k, v, lse)
        ctx.way = way
        return out

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, lse = ctx.saved_tensors
        n, scale = q.size(-2), q.size(-1) ** -0.5
        hidden = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(diagonal=1)
        if ctx.way == "mask-polarity":
            hidden = ~hidden
        if ctx.way == "mask-ignored-backward":
            hidden = torch.zeros_like(hidden)
        if ctx.way == "mask-one-off":
            hidden = hidden.triu(2)
        p = torch.exp((q @ k.mT).mul_(scale) - lse).masked_fill_(hidden, 0)
        dp = (do @ v.mT).masked_fill_(hidden, 0.0)
        ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
        return ds @ k, ds.mT @ q, p.mT @ do, None


class Window(Function):
    """Each query sees ``left`` keys before it and ``right`` after it. Additive mask of 0 and -inf."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, left: int, right: int, way: str) -> Tensor:
        mask = Window.band(q, k, left, right)
        p = torch.softmax(torch.baddbmm(mask, q, k.mT, alpha=q.shape[-1] ** -0.5), -1)
        out = torch.bmm(p, v)
        ctx.save_for_backward(q, k, v, out)
        ctx.window, ctx.way = (left, right), way
        return out

    @staticmethod
    def band(q: Tensor, k: Tensor, left: int, right: int) -> Tensor:
        ones = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device)
        seen = ones.tril(diagonal=right) & ones.triu(diagonal=-left)
        return q.new_zeros(seen.shape).masked_fill_(seen.logical_not(), float("-inf"))

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, out = ctx.saved_tensors
        left, right = ctx.window
        if ctx.way == "window-one-off":
            left += 1
        scale = q.shape[-1] ** -0.5
        scores = q @ k.mT * scale
        if ctx.way != "mask-ignored-backward":
            scores += Window.band(q, k, left, right)
        p = torch.softmax(scores, -1)
        delta = torch.linalg.vecdot(do, out).unsqueeze(-1)
        ds = p * (do @ v.mT - delta) * scale
        dq = torch.matmul(ds, k)
        if ctx.way == "mask-after-product":  # dQ is banded, as if it were a score
            dq = dq.tril()
        return dq, ds.mT @ q, p.mT @ do, None, None, None


class Padding(Function):
    """keep (b, n_k) of 1.0 and 0.0, a constant; hidden keys get -10000, which float exponentials make 0."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, keep: Tensor, way: str) -> Tensor:
        extended = (1.0 - keep[:, None, None, :]) * -10000.0
        p = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / q.shape[-1] ** 0.5 + extended, -1)
        ctx.save_for_backward(q, k, v, p, keep)
        ctx.way = way
        return torch.matmul(p, v)

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, p, keep = ctx.saved_tensors
        root = q.shape[-1] ** 0.5
        if ctx.way == "mask-ignored-backward":
            p = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / root, -1)
        dp = torch.matmul(do, v.transpose(-1, -2))
        inner = p * dp
        ds = inner.addcmul(p, inner.sum(-1, keepdim=True), value=-1.0).div_(root)
        dq, dk, dv = (
            torch.matmul(ds, k),
            torch.matmul(ds.transpose(-1, -2), q),
            torch.matmul(p.transpose(-1, -2), do),
        )
        if ctx.way == "mask-twice-in-dV":
            dv = torch.matmul(p.transpose(-1, -2), do * keep[:, None, : do.shape[-2], None])
        return dq, dk, dv, None, None


def _padding() -> dict[str, Any]:
    keep = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 0]], dtype=torch.float64)
    return {**draw(38, q=(2, 1, 3, 2), k=(2, 1, 4, 2), v=(2, 1, 4, 3)), "keep": keep}


STYLES = (
    style("padding", Padding, _padding, {"mask-ignored-backward": "q k v", "mask-twice-in-dV": "v"}),
    style(
        "causal",
        Causal,
        lambda: draw(28, q=(2, 4, 2), k=(2, 4, 2), v=(2, 4, 3)),
        {"mask-polarity": "q k v", "mask-ignored-backward": "q k v", "mask-one-off": "q k v"},
    ),
    style(
        "sliding-window",
        Window,
        lambda: {**draw(29, q=(2, 5, 2), k=(2, 5, 2), v=(2, 5, 3)), "left": 1, "right": 1},
        {"window-one-off": "q k v", "mask-ignored-backward": "q k v", "mask-after-product": "q"},
    ),
)
