"""As in C: one number at a time, written into buffers that were made beforehand. Tensors are kept as attributes of ctx."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class Loops(Function):
    """inp (T, 3·C) holds q, k, v beside each other; causal; NH heads."""

    @staticmethod
    def forward(ctx: Any, inp: Tensor, NH: int, way: str) -> Tensor:
        T, C = inp.shape[0], inp.shape[1] // 3
        hs = C // NH
        att, out = inp.new_zeros(NH, T, T), torch.zeros(T, C, dtype=inp.dtype)
        for h in range(NH):
            for t in range(T):
                q_t = inp[t, h * hs : (h + 1) * hs]
                maxval = torch.full((), float("-inf"), dtype=inp.dtype)
                for t2 in range(t + 1):
                    k_t2 = inp[t2, C + h * hs : C + (h + 1) * hs]
                    att[h, t, t2] = q_t.dot(k_t2) / math.sqrt(hs)
                    maxval = torch.maximum(maxval, att[h, t, t2])
                expsum = inp.new_zeros(())
                for t2 in range(t + 1):
                    att[h, t, t2] = torch.exp(att[h, t, t2] - maxval)
                    expsum += att[h, t, t2]
                for t2 in range(t + 1):
                    att[h, t, t2] /= expsum
                    for i in range(hs):
                        out[t, h * hs + i] += att[h, t, t2] * inp[t2, 2 * C + h * hs + i]
        ctx.inp, ctx.att, ctx.NH, ctx.way = inp, att, NH, way
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        inp, att, NH, way = ctx.inp, ctx.att, ctx.NH, ctx.way
        T, C = dout.shape
        hs = C // NH
        dinp, datt, dpreatt = torch.zeros_like(inp), torch.zeros_like(att), torch.zeros_like(att)
        for h in range(NH):
            q0, k0, v0 = h * hs, C + h * hs, 2 * C + h * hs
            for t in range(T if way != "tail-block" else T - 1):
                for t2 in range(t + 1):
                    datt[h, t, t2] = dout[t, q0 : q0 + hs] @ inp[t2, v0 : v0 + hs]
                    dinp[t2, v0 : v0 + hs] += att[h, t, t2] * dout[t, q0 : q0 + hs]
                for t2 in range(t + 1):
                    for t3 in range(t + 1):
                        indicator = 1.0 if t2 == t3 else 0.0
                        if way == "softmax-diagonal" and not indicator:
                            continue
                        dpreatt[h, t, t3] += att[h, t, t2] * (indicator - att[h, t, t3]) * datt[h, t, t2]
                for t2 in range(t + 1):
                    for i in range(hs):
                        dinp[t, q0 + i] += inp[t2, k0 + i] * dpreatt[h, t, t2] / math.sqrt(hs)
                        root = math.sqrt(C if way == "scale-model" else hs)
                        dinp[t2, k0 + i] += inp[t, q0 + i] * dpreatt[h, t, t2] / root
        return dinp, None, None


STYLES = (
    style(
        "loops",
        Loops,
        lambda: {**draw(41, inp=(3, 12)), "NH": 2},
        {"softmax-diagonal": "inp", "tail-block": "inp", "scale-model": "inp"},
    ),
)
