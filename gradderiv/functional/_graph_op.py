"""Attention on neighbour lists as operators of ``torch.library``, for PyTorch's compiler: reverse mode of first order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.functional._lists import Saved, gradients, require, value


@torch.library.custom_op("gradderiv::graph_attention", mutates_args=())
def forward(
    Q: Tensor, K: Tensor, V: Tensor, neighbours: Tensor, queries: Tensor | None, positions: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """O (..., n_q, d_v) and P (..., n_q, m)."""
    require(Q, K, V, neighbours, queries, positions)
    with torch.no_grad():
        O, saved = value(Q, K, V, neighbours, queries, positions, scale)
    return O.contiguous(), saved.P.contiguous()


@forward.register_fake
def _(
    Q: Tensor, K: Tensor, V: Tensor, neighbours: Tensor, queries: Tensor | None, positions: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return Q.new_empty(*Q.shape[:-1], V.shape[-1]), Q.new_empty(*Q.shape[:-1], neighbours.shape[-1])


@torch.library.custom_op("gradderiv::graph_attention_backward", mutates_args=())
def backward(
    dO: Tensor, Q: Tensor, K: Tensor, V: Tensor, P: Tensor,
    neighbours: Tensor, queries: Tensor | None, positions: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dQ, dK, dV."""
    with torch.no_grad():
        g = gradients(dO, Saved(Q, K, V, P, neighbours, queries, positions, scale))
    return g.Q.contiguous(), g.K.contiguous(), g.V.contiguous()


@backward.register_fake
def _(
    dO: Tensor, Q: Tensor, K: Tensor, V: Tensor, P: Tensor,
    neighbours: Tensor, queries: Tensor | None, positions: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return Q.new_empty(Q.shape), K.new_empty(K.shape), V.new_empty(V.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    Q, K, V, neighbours, queries, positions, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(Q, K, V, output[1], neighbours, queries, positions)


def _backward(ctx: Any, dO: Tensor, dP: Tensor) -> tuple[Any, ...]:
    return (*backward(dO, *ctx.saved_tensors, ctx.scale), None, None, None, None)


forward.register_autograd(_backward, setup_context=_keep)
