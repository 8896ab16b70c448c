"""Ring attention: keys and values arrive in chunks, outputs are merged by their lse, and backward goes round once more."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


def block_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The output of one chunk, normalised for itself, and its lse."""
    s = torch.einsum("hid,hjd->hij", q, k) * scale
    lse = torch.logsumexp(s, dim=-1, keepdim=True)
    return torch.exp(s - lse) @ v, lse


class Ring(Function):
    """``merge`` is by logaddexp, or by sigmoids of the difference of the two lse."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, chunks: int, merge: str, way: str) -> Tensor:
        scale = q.shape[-1] ** -0.5
        out = lse = None
        local = []
        for ki, vi in zip(k.chunk(chunks, dim=1), v.chunk(chunks, dim=1), strict=True):
            block_out, block_lse = block_forward(q, ki, vi, scale)
            local.append((block_out, block_lse))
            if out is None:
                out, lse = block_out, block_lse
            elif merge == "logaddexp":
                new_lse = torch.logaddexp(lse, block_lse)
                out = torch.exp(lse - new_lse) * out + torch.exp(block_lse - new_lse) * block_out
                lse = new_lse
            else:
                out = out - torch.sigmoid(block_lse - lse) * (out - block_out)
                lse = lse - F.logsigmoid(lse - block_lse)
        ctx.save_for_backward(q, k, v, out, lse, *(x for pair in local for x in pair))
        ctx.scale, ctx.chunks, ctx.way = scale, chunks, way
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        q, k, v, out, lse, *local = ctx.saved_tensors
        dq, dks, dvs = None, [], []
        for step, (ki, vi) in enumerate(zip(k.chunk(ctx.chunks, 1), v.chunk(ctx.chunks, 1), strict=True)):
            block_out, block_lse = local[2 * step : 2 * step + 2]
            used = block_lse if ctx.way == "lse-of-chunk" else lse
            delta = (dout * (block_out if ctx.way == "delta-of-chunk" else out)).sum(-1, keepdim=True)
            p = torch.exp(torch.einsum("hid,hjd->hij", q, ki) * ctx.scale - used)
            dvs.append(torch.einsum("hij,hie->hje", p, dout))
            ds = p * (torch.einsum("hie,hje->hij", dout, vi) - delta) * ctx.scale
            block_dq = torch.einsum("hij,hjd->hid", ds, ki)
            dq = block_dq if dq is None or ctx.way == "block-overwritten" else dq + block_dq
            dks.append(torch.einsum("hij,hid->hjd", ds, q))
        if ctx.way == "ring-one-step-off":  # the gradients have travelled one rank too few
            dks, dvs = dks[1:] + dks[:1], dvs[1:] + dvs[:1]
        return dq, torch.cat(dks, dim=1), torch.cat(dvs, dim=1), None, None, None


STYLES = (
    style(
        "ring",
        Ring,
        lambda: {**draw(13, q=(2, 3, 2), k=(2, 6, 2), v=(2, 6, 3)), "chunks": 3, "merge": "logaddexp"},
        {
            "lse-of-chunk": "q k v",
            "delta-of-chunk": "q k",
            "block-overwritten": "q",
            "ring-one-step-off": "k v",
        },
    ),
    style(
        "ring-sigmoid",
        Ring,
        lambda: {**draw(14, q=(1, 3, 3), k=(1, 4, 3), v=(1, 4, 2)), "chunks": 2, "merge": "sigmoid"},
        {"lse-of-chunk": "q k v", "delta-of-chunk": "q k", "ring-one-step-off": "k v"},
    ),
)
