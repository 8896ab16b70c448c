"""PyTorch's own fused kernels, where they compute what is asked: value and first derivative, at their speed.

On the CPU the kernel is called by itself, since it returns lse and takes it back. Elsewhere ``scaled_dot_product_attention`` chooses one, and is asked again, under autograd,
for the gradient; lse is then found by the tiles that need it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gradderiv.functional._arguments import PLAIN
from gradderiv.functional._tiles import Call, Inputs, four

_forward = torch._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def fits(call: Call, x: Inputs) -> bool:
    """Whether a fused kernel does this: no softcap, sinks, dropout or window, nothing of size 0, ordinary tensors of one width; and ``sdpa_kernel`` does not forbid it."""
    return (
        call.softcap is None
        and x.sinks is None
        and x.seeds is None
        and call.low is None
        and (call.high is None or (call.high == 0 and call.scale > 0))  # a kernel hides by −∞, then scales
        and not call.weights
        and x.Q.shape[-1] == x.V.shape[-1]
        and type(x.Q) in PLAIN
        and type(x.K) in PLAIN
        and type(x.V) in PLAIN
        and (x.bias is None or type(x.bias) in PLAIN)
        and (x.mask is None or type(x.mask) in PLAIN)
        and x.Q.dtype in TYPES
        and x.Q.numel() > 0
        and x.V.numel() > 0
        # a kernel's lse is 0 in a row that may attend to nothing, or is not returned
        and not (call.lse and not (x.mask is None and x.bias is None and returns_lse(x.Q)))
        # which the compiler cannot ask, and PyTorch's function asks by itself
        and (torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled())
    )


def plainest(Q: Any, K: Any, V: Any) -> bool:
    """Whether this is a training step on four axes as most are, with nothing to ask or to arrange: decided in a few microseconds."""
    return (
        type(Q) is type(K) is type(V) is Tensor
        and Q.dim() == 4
        and Q.shape == K.shape == V.shape
        and Q.dtype is K.dtype is V.dtype
        and Q.dtype in TYPES
        and Q.is_cpu
        and K.is_cpu
        and V.is_cpu
        and Q.stride(3) == K.stride(3) == V.stride(3) == 1
        and Q.numel() > 0
        and torch.is_grad_enabled()
        and (Q.requires_grad or K.requires_grad or V.requires_grad)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch.backends.cuda.flash_sdp_enabled()
    )


def whole(call: Call, x: Inputs) -> Tensor:
    """O, by PyTorch's function."""
    O = _asked(call, *_four(x))
    return O.reshape(*x.Q.shape[:-1], -1)


def _asked(call: Call, Q: Tensor, K: Tensor, V: Tensor, added: Tensor | None) -> Tensor:
    """PyTorch's function, some of whose kernels do not take a mask and ``is_causal``."""
    if added is None or call.high is None:
        return scaled_dot_product_attention(Q, K, V, added, is_causal=call.high == 0, scale=call.scale)
    seen = torch.ones(Q.shape[-2], K.shape[-2], dtype=torch.bool, device=Q.device).tril()
    return scaled_dot_product_attention(Q, K, V, added.masked_fill(~seen, -torch.inf), scale=call.scale)


def returns_lse(Q: Tensor) -> bool:
    """Whether lse comes with O."""
    return Q.is_cpu


def value(call: Call, x: Inputs) -> tuple[Tensor, Tensor]:
    """O (..., n_q, d) and lse (..., n_q); zeros where the kernel does not say it, and 0 in a row that may attend to nothing."""
    Q, K, V, added = _four(x)
    if not returns_lse(Q):
        O = _asked(call, Q, K, V, added)
        lse = Q.new_zeros(Q.shape[:-1])
    else:
        O, lse = _forward(Q, K, V, 0.0, call.high == 0, attn_mask=added, scale=call.scale)
    if x.Q.dim() == 4:
        return O, lse
    # no view: what a function returns may be written to
    O = torch.ops.aten._unsafe_view(O.contiguous(), (*x.Q.shape[:-1], O.shape[-1]))
    return O, lse.reshape(x.Q.shape[:-1])


def gradient(call: Call, x: Inputs, O: Tensor, lse: Tensor, dO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK, dV."""
    Q, K, V, added = _four(x)
    causal = call.high == 0
    if x.Q.dim() != 4:
        lead = x.Q.shape[:-2]
        dO, O, lse = four(dO, lead), four(O, lead), four(lse.unsqueeze(-1), lead).squeeze(-1)
    if returns_lse(Q):
        found = _backward(_rows(dO), Q, K, V, O, lse, 0.0, causal, attn_mask=added, scale=call.scale)
    else:
        found = _asked_again(call, Q, K, V, added, dO)
    if x.Q.dim() == 4:
        return found
    dQ, dK, dV = (g.reshape(t.shape) for g, t in zip(found, x[:3], strict=True))
    return dQ, dK, dV


def _asked_again(
    call: Call, Q: Tensor, K: Tensor, V: Tensor, added: Tensor | None, dO: Tensor
) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        Q, K, V = (t.detach().requires_grad_() for t in (Q, K, V))
        return torch.autograd.grad(_asked(call, Q, K, V, added), (Q, K, V), dO)


def _four(x: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(B, h, n, d), whose rows are contiguous, and the mask and the bias as one float mask."""
    if x.Q.dim() == 4:
        Q, K, V = _rows(x.Q), _rows(x.K), _rows(x.V)
    else:
        Q, K, V = (_rows(four(t, x.Q.shape[:-2])) for t in x[:3])
    return Q, K, V, None if x.mask is None and x.bias is None else _added(x)


def _rows(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 else t.contiguous()


def _added(x: Inputs) -> Tensor:
    lead, Q = x.Q.shape[:-2], x.Q
    if x.mask is None:
        assert x.bias is not None
        return four(x.bias, lead).to(Q.dtype)
    zero = Q.new_zeros(()) if x.bias is None else four(x.bias, lead).to(Q.dtype)
    return torch.where(four(x.mask, lead), zero, -torch.inf)
