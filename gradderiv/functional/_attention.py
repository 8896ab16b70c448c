"""Attention as a PyTorch function, with the arguments of ``torch.nn.functional.scaled_dot_product_attention``.

    O = W V,   W = dropout(P),   P = softmax(S),   S = c tanh(τ Q Kᵀ / c) + bias            Vaswani et al. 2017, eq. 1

Q (..., n_q, d_k)   K (..., n_k, d_k)   V (..., n_k, d_v)   O (..., n_q, d_v)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gradderiv.functional import _fused, _op
from gradderiv.functional._arguments import (
    fit,
    require_numbers,
    require_on_scores,
    require_tensors,
    same_leading_axes,
)
from gradderiv.functional._autocast import autocast_on_entry
from gradderiv.functional._differentiable import Fused, Value
from gradderiv.functional._dropout import seeds_like
from gradderiv.functional._given import Given, Told, value
from gradderiv.functional._nested import nobody_differentiates
from gradderiv.functional._tiles import Call, Inputs
from gradderiv.rules.masks import Mask, resolve


@autocast_on_entry
def attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    attn_mask: Tensor | Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    window: tuple[int, int] | None = None,
    return_lse: bool = False,
    return_weights: bool = False,
) -> Any:
    """O = dropout(softmax(S)) V,   S = c tanh(τ Q Kᵀ / c) + bias

    Vaswani et al. 2017, eq. 1; the derivatives are those of :mod:`gradderiv.rules.tile`, after Dao et al. 2022, app. B.

    Takes the place of ``torch.nn.functional.scaled_dot_product_attention``. Value and first derivative come from PyTorch's fused kernel wherever it computes what is asked. Double backward,
    forward mode, ``torch.func`` transforms in any nesting, ``vmap``, and what the kernel lacks are the closed forms, tile after tile: in first and second order no tensor of n_q × n_k is made,
    but for one that is asked for (the weights, the gradient of a bias of that size, a mask). Third order is PyTorch's derivatives of the closed forms, and holds n_q × n_k numbers.
    Under ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` no kernel is used, and all is tiles. Under ``torch.compile`` there is reverse mode of first order; forward mode raises. Tiles compute float16 and bfloat16 in float32. On the CPU the same inputs give the same bits.

    Args:
        Q: (..., n_q, d_k).
        K: (..., n_k, d_k).
        V: (..., n_k, d_v). The leading axes of all three broadcast.
        attn_mask: broadcasts to the scores (..., n_q, n_k). Boolean: True = may attend. A :class:`gradderiv.rules.masks.Mask`. Floating: a bias, added after scaling, with a
            gradient; where it is −∞ the key may not be attended to, and the gradient is 0.
        dropout_p: the probability with which a weight is dropped, each call anew from PyTorch's generator, **also in evaluation**: as PyTorch's function.
        is_causal: query i may attend to the keys 0 … i only. With a mask, both apply.
        scale: τ, 1/√d_k unless given. A number: multiply Q by a temperature that is learned.
        enable_gqa: K and V have h_kv heads, a divisor of h, on their axis −3; each serves h/h_kv query heads in a row.
        bias: floating, broadcasts to the scores; added after scaling, with a gradient. Beside a boolean mask, or instead of a floating one.
        softcap: c > 0.
        sinks: (h), a score for nothing in each head (Xiao et al. 2023; gpt-oss), or one number ().
        window: (left, right), FlashAttention's ``window_size``: query i may attend to the keys i + n_k − n_q − left … i + n_k − n_q + right; −1 = unbounded. ``is_causal`` counts from the first key, also beside a window.
        return_lse: return also lse (..., n_q), log Σ exp over the keys that may be attended to (and the sink), with its gradient; −∞ where there are none.
        return_weights: return also the weights (..., n_q, n_k) as they multiply V, with their gradient.

    Returns:
        O (..., n_q, d_v), or a tuple of O and what else was asked for, lse first. A row that may attend to nothing is 0, and so are its gradients: by definition here,
        where a plain ``torch.softmax`` gives NaN.

    Raises:
        InputError: shapes that do not fit, a probability or a cap out of range, two float masks.
        DtypeError: integers, complex numbers, several dtypes or devices, a mask that is neither boolean nor floating, a tensor for ``scale``.
    """
    tensors = attn_mask is None and bias is None and sinks is None
    numbers = scale is None and softcap is None and window is None and not dropout_p
    if tensors and numbers and not (return_lse or return_weights) and _fused.plainest(Q, K, V):
        call = Call(Q.shape[-1] ** -0.5, high=0 if is_causal else None, fused=True)
        return Fused.apply(call, Q, K, V, None, None)
    if not fit(Q, K, V):
        require_tensors(Q, K, V, enable_gqa)
        Q, K, V = same_leading_axes(Q, K, V, enable_gqa)
    n_q, n_k = Q.shape[-2], K.shape[-2]
    if isinstance(attn_mask, Mask):
        attn_mask = resolve(attn_mask, (*Q.shape[:-1], n_k), Q.device)
    require_numbers(scale, softcap, dropout_p, window)
    require_on_scores(Q, K, attn_mask, bias, sinks)
    mask = attn_mask
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        mask, bias = None, attn_mask.to(Q.dtype)
    low, high = (None, None) if window is None else _band(window, n_k - n_q)
    if is_causal:
        high = 0 if high is None else min(high, 0)
    tau = Q.shape[-1] ** -0.5 if scale is None else scale
    sinks = None if sinks is None else sinks[..., None, None]
    seeds = seeds_like(Q) if dropout_p > 0 else None
    call = Call(tau, softcap, dropout_p, low, high, return_weights, return_lse)
    if n_k == 0:  # nothing to attend to: as one key that is hidden
        K, V = pad(K, (0, 0, 0, 1)), pad(V, (0, 0, 0, 1))
        bias = pad(bias, (0, 1)) if bias is not None and bias.shape[-1] == 0 else bias
        mask = torch.zeros(1, 1, dtype=torch.bool, device=Q.device)
    x = Inputs(Q, K, V, bias, sinks, mask, seeds)
    O, *others = _called(call._replace(fused=_fused.fits(call, x)), x)
    if not (return_lse or return_weights):
        return O
    lse, *weights = others
    return (O, *([lse] if return_lse else []), *(W[..., :n_k] for W in weights))


def _called(call: Call, x: Inputs) -> tuple[Tensor, ...]:
    """By PyTorch's compiler, by nobody who differentiates, and otherwise."""
    if torch.compiler.is_compiling():
        return _op.attention(call, x)
    if torch._C._are_functorch_transforms_active():
        return Value.apply(Told(call), *x)
    if nobody_differentiates(x):
        return value(Told(call), Given(x))
    if not call.fused or call.lse:
        return Value.apply(Told(call), *x)
    return (Fused.apply(call, x.Q, x.K, x.V, x.bias, x.mask),)


def _band(window: tuple[int, int], offset: int) -> tuple[int | None, int | None]:
    left, right = window
    return None if left < 0 else offset - left, None if right < 0 else offset + right
