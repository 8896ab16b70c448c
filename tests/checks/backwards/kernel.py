"""A kernel's loop written in PyTorch: one program a head and block, the scale folded into Q, dK and dV first, then dQ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class Kernel(Function):
    """(b, h, n, d) flattened to (b·h, n, d). Q comes in scaled: so dK needs no scale, and dQ gets it at the end."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sm_scale: float, way: str) -> Tensor:
        b, h, n, d = q.shape
        q_ = q.reshape(b * h, n, d).mul(sm_scale)
        k_, v_ = k.reshape(b * h, -1, d), v.reshape(b * h, -1, v.shape[-1])
        o = q.new_empty(b * h, n, v.shape[-1])
        L = q.new_empty(b * h, n)
        BLOCK_M, BLOCK_N = 2, 3
        for pid in range(b * h):
            for m0 in range(0, n, BLOCK_M):
                rows = slice(m0, min(m0 + BLOCK_M, n))
                m_i = torch.full_like(L[pid, rows], float("-inf"))
                l_i = torch.zeros_like(L[pid, rows])
                acc = torch.zeros_like(o[pid, rows])
                for n0 in range(0, k_.shape[1], BLOCK_N):
                    qk = q_[pid, rows] @ k_[pid, n0 : n0 + BLOCK_N].T
                    m_ij = torch.maximum(m_i, qk.max(dim=1).values)
                    p = (qk - m_ij[:, None]).exp()
                    alpha = (m_i - m_ij).exp()
                    l_i = l_i * alpha + p.sum(1)
                    acc *= alpha[:, None]
                    acc += p @ v_[pid, n0 : n0 + BLOCK_N]
                    m_i = m_ij
                o[pid, rows] = acc / l_i[:, None]
                L[pid, rows] = m_i + l_i.log()
        ctx.save_for_backward(q_, k_, v_, o, L)
        ctx.sm_scale, ctx.shapes, ctx.way = sm_scale, (q.shape, k.shape, v.shape), way
        return o.view(b, h, n, -1)

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q_, k_, v_, o, L = ctx.saved_tensors
        way, scale = ctx.way, ctx.sm_scale
        do = do.contiguous().view(o.shape)
        delta = torch.empty_like(L)
        for pid in range(o.shape[0]):
            source = q_ if way == "delta-strides" else o
            delta[pid] = (do[pid] * source[pid]).sum(-1)
        dq, dk, dv = torch.empty_like(q_), torch.empty_like(k_), torch.empty_like(v_)
        BLOCK = 2
        for pid in range(o.shape[0]):
            for n0 in range(0, k_.shape[1], BLOCK):  # one program of the dK, dV kernel
                cols = slice(n0, n0 + BLOCK)
                dk_acc, dv_acc = torch.zeros_like(k_[pid, cols]), torch.zeros_like(v_[pid, cols])
                for m0 in range(0, q_.shape[1], BLOCK):
                    rows = slice(m0, m0 + BLOCK)
                    pT = torch.exp(k_[pid, cols] @ q_[pid, rows].T - L[pid, None, rows])
                    dv_acc += pT @ do[pid, rows]
                    dpT = v_[pid, cols] @ do[pid, rows].T
                    dsT = pT * (dpT - delta[pid, None, rows])
                    dk_acc += dsT @ q_[pid, rows]
                dk[pid, cols] = dk_acc * scale if way == "scale-twice" else dk_acc
                dv[pid, cols] = dv_acc
            for m0 in range(0, q_.shape[1], BLOCK):  # one program of the dQ kernel
                rows = slice(m0, m0 + BLOCK)
                p = torch.exp(q_[pid, rows] @ k_[pid].T - L[pid, rows, None])
                ds = p * (do[pid, rows] @ v_[pid].T - delta[pid, rows, None])
                dq[pid, rows] = ds @ k_[pid]
        if way == "head-dropped":
            dv[1:] = dv[:1]
        if way != "scale-missing":
            dq *= scale
        q_shape, k_shape, v_shape = ctx.shapes
        return dq.view(q_shape), dk.view(k_shape), dv.view(v_shape), None, None


def _inputs() -> dict[str, Any]:
    """Q, K, V as a layer gives them: transposed views of (b, n, h, d)."""
    drawn = draw(12, q=(1, 3, 2, 2), k=(1, 4, 2, 2), v=(1, 4, 2, 2))
    views = {name: x.detach().transpose(1, 2).requires_grad_() for name, x in drawn.items()}
    return {**views, "sm_scale": 2**-0.5}


STYLES = (
    style(
        "kernel",
        Kernel,
        _inputs,
        {"delta-strides": "q k", "scale-twice": "k", "scale-missing": "q", "head-dropped": "v"},
    ),
)
