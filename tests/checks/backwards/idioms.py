"""The same attention in the idioms of ``autograd.Function``: setup_context, needs_input_grad, a backward that is a Function too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, softmax_backward, style


class SetupContext(Function):
    """forward without ctx; P is a second output, marked as not differentiable, so that setup_context can save it."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, way: str) -> tuple[Tensor, Tensor]:
        p = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)
        return p @ v, p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, ctx.way = inputs
        _, p = output
        ctx.mark_non_differentiable(p)
        ctx.save_for_backward(q, k, v, p)

    @staticmethod
    def backward(ctx: Any, do: Tensor, _: Tensor | None) -> Any:
        q, k, v, p = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        dp = do @ v.mT
        ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
        dq = ds @ k * scale
        dk = ds.mT @ q * (scale * scale if ctx.way == "scale-twice" else scale)
        dv = p.mT @ do
        return dq, dk, (-dv if ctx.way == "sign" else dv), None


class NeedsInputGrad(Function):
    """Works out only what is asked for; ``set_materialize_grads(False)`` leaves a missing cotangent None."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, way: str) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.way = q.size(-1) ** -0.5, way
        scores = torch.bmm(q * ctx.scale, k.transpose(1, 2))
        lse = torch.logsumexp(scores, dim=-1, keepdim=True)
        out = torch.bmm((scores - lse).exp_(), v)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None, None, None
        q, k, v, out, lse = ctx.saved_tensors
        grad_q = grad_k = grad_v = None
        probs = torch.baddbmm(lse.neg(), q, k.transpose(1, 2), alpha=ctx.scale).exp_()
        if ctx.needs_input_grad[2]:
            grad_v = probs.transpose(1, 2).bmm(grad)
        if any(ctx.needs_input_grad[:2]):
            delta = torch.sum(
                grad * (q.new_ones(()) if ctx.way == "delta-strides" else out), dim=-1, keepdim=True
            )
            probs.mul_(grad.bmm(v.transpose(1, 2)).sub_(delta)).mul_(
                ctx.scale
            )  # now the gradient of the scores
            if ctx.needs_input_grad[0]:
                grad_q = probs.bmm(k)
            if ctx.needs_input_grad[0 if ctx.way != "none-returned" else 3]:
                grad_k = probs.transpose(1, 2).bmm(q)
        return grad_q, grad_k, grad_v, None


class Outer(Function):
    """Its backward is ``Inner.apply``, so that autograd sees one operation there."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, way: str) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.way = way
        return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        return *Inner.apply(do, *ctx.saved_tensors, ctx.way), None


class Inner(Function):
    """(dO, Q, K, V) -> (dQ, dK, dV); its own backward was never written, as is usual."""

    @staticmethod
    def forward(ctx: Any, do: Tensor, q: Tensor, k: Tensor, v: Tensor, way: str) -> tuple[Tensor, ...]:
        scale = q.shape[-1] ** -0.5
        p = torch.softmax(q @ k.mT * scale, -1)
        dp = do @ v.mT
        ds = softmax_backward(dp, p, way) * scale
        return ds @ k, ds.mT @ q, (p / (1 + scale) if way == "normaliser-wrong" else p).mT @ do

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError


STYLES = (
    style(
        "backward-function",
        Outer,
        lambda: draw(37, q=(3, 2), k=(4, 2), v=(4, 3)),
        {"softmax-diagonal": "q k", "normaliser-wrong": "v"},
    ),
    style(
        "setup-context",
        SetupContext,
        lambda: draw(4, q=(3, 5), k=(4, 5), v=(4, 2)),
        {"scale-twice": "k", "sign": "v"},
        ("output 1",),
    ),
    style(
        "needs-input-grad",
        NeedsInputGrad,
        lambda: draw(5, q=(2, 3, 2), k=(2, 4, 2), v=(2, 4, 3)),
        {"delta-strides": "q k", "none-returned": "k"},
    ),
)
