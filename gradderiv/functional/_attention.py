"""Attention as a PyTorch function, with the arguments of ``torch.nn.functional.scaled_dot_product_attention``.

    O = softmax(τ Q Kᵀ + bias) V                                     Vaswani et al. 2017, eq. 1

Q (..., n_q, d_k)   K (..., n_k, d_k)   V (..., n_k, d_v)   O (..., n_q, d_v)
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradderiv.functional._autocast import autocast_on_entry
from gradderiv.functional._function import Rule
from gradderiv.rules import attention as rules

_attention = Rule(
    rules.attention,
    rules.attention_jvp,
    rules.attention_vjp,
    rules.attention_vjp_jvp,
    variables=("Q", "K", "V", "bias"),
    constants=("mask", "scale"),
)


@autocast_on_entry
def attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """O = softmax(τ Q Kᵀ + bias) V

    Vaswani et al. 2017, eq. 1; the gradient is Dao et al. 2022, app. B.2.

    Takes the place of ``torch.nn.functional.scaled_dot_product_attention``. Reverse mode, forward mode, double
    backward, ``torch.func`` transforms in any nesting and ``vmap`` use the closed forms of
    :mod:`gradderiv.rules.attention`; third order and more are PyTorch's derivatives of these. Under
    ``torch.compile`` there is reverse mode of first order. Everything is computed in the dtype of the inputs.

    Args:
        Q: (..., n_q, d_k).
        K: (..., n_k, d_k).
        V: (..., n_k, d_v). The leading axes of all three are equal; ``expand`` those that are not.
        attn_mask: broadcasts to the scores (..., n_q, n_k). Boolean: True = may attend. Floating: a bias, added
            after scaling, with a gradient; where it is −∞ the key may not be attended to, and the gradient is 0.
        is_causal: query i may attend to the keys 0 … i only. Together with ``attn_mask`` both apply; of
            PyTorch's kernels some refuse the two together.
        scale: τ, 1/√d_k unless given. A number: multiply Q by a temperature that is learned.

    Returns:
        O (..., n_q, d_v). A row that may attend to nothing is 0, and so are its gradients: by definition here,
        where a plain ``torch.softmax`` gives NaN.

    Raises:
        InputError: shapes that do not fit, empty tensors.
        DtypeError: integers, complex numbers, several dtypes or devices, a mask that is neither boolean nor
            floating, a tensor for ``scale``.
    """
    floating = isinstance(attn_mask, Tensor) and attn_mask.is_floating_point()
    mask, bias = (None, attn_mask) if floating else (attn_mask, None)
    rules.require_attention(Q, K, V, mask, bias)
    if bias is not None:
        hidden = bias == -torch.inf
        mask, bias = ~hidden, bias.masked_fill(hidden, 0.0)
    if is_causal:
        causal = torch.ones(Q.shape[-2], K.shape[-2], dtype=torch.bool, device=Q.device).tril()
        mask = causal if mask is None else mask & causal
    return _attention(Q, K, V, bias, mask, scale)
