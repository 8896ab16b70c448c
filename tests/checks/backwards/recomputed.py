"""The whole forward once more in backward: by operations that autograd can differentiate again, or by autograd itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class Twice(Function):
    """Saves inputs alone and recomputes by operations that autograd knows: the backward has a backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, way: str) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.way = way
        return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v = ctx.saved_tensors
        root = q.shape[-1] ** (0.25 if ctx.way == "scale-wrong-in-backward" else 0.5)
        p = torch.softmax(q @ k.mT / root, -1)
        dp = do @ v.mT
        ds = p * (dp - (p * dp).sum(-1, keepdim=True)) / root
        if ctx.way == "sign":
            ds = -ds
        return ds @ k, ds.mT @ q, p.mT @ do, None


class AutogradInside(Function):
    """Gradient checkpointing by hand: backward runs the forward again with gradients on, and asks autograd."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, way: str) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.way = way
        return AutogradInside.run(q, k, v, mask, q.shape[-1] ** -0.5)

    @staticmethod
    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        s = torch.matmul(q, k.transpose(-1, -2)) * scale
        return torch.matmul(torch.softmax(s if mask is None else s.masked_fill(~mask, float("-inf")), -1), v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, mask = ctx.saved_tensors
        scale = 1.0 if ctx.way == "scale-missing" else q.shape[-1] ** -0.5
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            out = AutogradInside.run(*leaves, None if ctx.way == "mask-ignored-backward" else mask, scale)
        dq, dk, dv = torch.autograd.grad(out, leaves, grad)
        return dq, (None if ctx.way == "none-returned" else dk), dv, None, None


def _masked() -> dict[str, Any]:
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    return {**draw(7, q=(2, 3, 2), k=(2, 4, 2), v=(2, 4, 3)), "mask": mask}


STYLES = (
    style(
        "twice-differentiable",
        Twice,
        lambda: draw(6, q=(3, 2), k=(4, 2), v=(4, 3)),
        {"scale-wrong-in-backward": "q k v", "sign": "q k"},
    ),
    style(
        "autograd-inside",
        AutogradInside,
        _masked,
        {"mask-ignored-backward": "q k v", "scale-missing": "q k v", "none-returned": "k"},
    ),
)
