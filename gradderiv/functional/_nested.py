"""Forward mode inside forward mode, for ``torch.autograd.Function.jvp``.

PyTorch runs a Function's ``jvp`` with every tangent switched off, those of enclosing transforms too, so that
``jacfwd(jacfwd(f))`` comes out wrong without a word (pytorch/pytorch#197867, torch 2.13). The remedy has two
halves: switch the tangents on again, and take from each input the tangent of the level at work, which
``jvp`` is handed separately.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torch._C import _functorch
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual

outer_tangents = _set_fwd_grad_enabled


def primal(x: Tensor) -> Tensor:
    """x + ε ẋ ↦ x

    Of the innermost ε only. ``unpack_dual`` has no batching rule: below a ``vmap`` it is applied inside.
    """
    if not _functorch.is_batchedtensor(x):
        return cast(Tensor, unpack_dual(x).primal)
    inner = primal(_functorch.get_unwrapped(x))
    axis, level = _functorch.maybe_get_bdim(x), _functorch.maybe_get_level(x)
    return _functorch._add_batch_dim(inner, axis, level)
