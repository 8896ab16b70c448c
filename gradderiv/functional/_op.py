"""The same as two operators of ``torch.library``, for PyTorch's compiler: it sees one node and not the loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.functional import _fused
from gradderiv.functional._given import Given, Told, gradient, value
from gradderiv.functional._nested import require_no_forward_mode
from gradderiv.functional._tiles import VARIABLES, Call, Inputs, computed_in
from gradderiv.rules.tile import Outputs


def attention(call: Call, x: Inputs) -> tuple[Tensor, ...]:
    """O, lse and, where they are asked for, the weights. Reverse mode of first order; where a fused kernel does it, PyTorch's own function, which the compiler knows."""
    if call.fused and not call.lse and not (x.bias is not None and x.bias.requires_grad):
        O = _fused.whole(call, x)
        return O, O
    require_no_forward_mode("attention")
    O, lse, W = forward(*x, *call)
    return (O, lse, W) if call.weights else (O, lse)


@torch.library.custom_op("gradderiv::attention", mutates_args=())
def forward(
    Q: Tensor, K: Tensor, V: Tensor, bias: Tensor | None, sinks: Tensor | None, mask: Tensor | None, seeds: Tensor | None,
    scale: float, softcap: float | None, dropout_p: float, low: int | None, high: int | None, weights: bool, lse: bool, fused: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """O, lse and the weights; without elements where they are not asked for."""
    x = Inputs(Q, K, V, bias, sinks, mask, seeds)
    O, lse_, *W = value(Told(Call(scale, softcap, dropout_p, low, high, weights, lse, fused)), Given(x))
    return O.contiguous(), lse_.contiguous(), W[0] if W else Q.new_empty(0)


@forward.register_fake
def _(
    Q: Tensor, K: Tensor, V: Tensor, bias: Tensor | None, sinks: Tensor | None, mask: Tensor | None, seeds: Tensor | None,
    scale: float, softcap: float | None, dropout_p: float, low: int | None, high: int | None, weights: bool, lse: bool, fused: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    O, found = Q.new_empty(*Q.shape[:-1], V.shape[-1]), Q.new_empty(Q.shape[:-1], dtype=computed_in(Q.dtype))
    return O, found, Q.new_empty(*Q.shape[:-1], K.shape[-2]) if weights else Q.new_empty(0)


@torch.library.custom_op("gradderiv::attention_backward", mutates_args=())
def backward(
    dO: Tensor | None, dlse: Tensor | None, dW: Tensor | None, O: Tensor, known: Tensor, needs: list[bool],
    Q: Tensor, K: Tensor, V: Tensor, bias: Tensor | None, sinks: Tensor | None, mask: Tensor | None, seeds: Tensor | None,
    scale: float, softcap: float | None, dropout_p: float, low: int | None, high: int | None, weights: bool, lse: bool, fused: bool,
) -> list[Tensor]:  # fmt: skip
    """The gradients that are needed, in the order of the arguments."""
    x = Inputs(Q, K, V, bias, sinks, mask, seeds)
    told = Told(Call(scale, softcap, dropout_p, low, high, weights, lse, fused), tuple(needs))
    found = gradient(told, Given(x, Outputs(O, known), Outputs(dO, dlse, dW)))
    return [g.contiguous() for g in found]


@backward.register_fake
def _(
    dO: Tensor | None, dlse: Tensor | None, dW: Tensor | None, O: Tensor, known: Tensor, needs: list[bool],
    Q: Tensor, K: Tensor, V: Tensor, bias: Tensor | None, sinks: Tensor | None, mask: Tensor | None, seeds: Tensor | None,
    scale: float, softcap: float | None, dropout_p: float, low: int | None, high: int | None, weights: bool, lse: bool, fused: bool,
) -> list[Tensor]:  # fmt: skip
    variables = (Q, K, V, bias, sinks)
    return [t.new_empty(t.shape) for t, need in zip(variables, needs, strict=True) if need and t is not None]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: len(Inputs._fields)], *output[:2])
    ctx.call = inputs[len(Inputs._fields) :]


def _backward(ctx: Any, dO: Tensor | None, dlse: Tensor | None, dW: Tensor | None) -> tuple[Any, ...]:
    *x, O, lse = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[: len(VARIABLES)])
    found = iter(backward(dO, dlse, dW if Call(*ctx.call).weights else None, O, lse, needs, *x, *ctx.call))
    none = (None,) * (len(x) + len(ctx.call) - len(needs))
    return (*(next(found) if need else None for need in needs), *none)


forward.register_autograd(_backward, setup_context=_keep)
