"""Forward mode inside forward mode, for ``torch.autograd.Function.jvp``.

PyTorch runs a Function's ``jvp`` with every tangent switched off, those of enclosing transforms too, so that
``jacfwd(jacfwd(f))`` comes out wrong without a word (pytorch/pytorch#197867, torch 2.13). The remedy has two
halves: switch the tangents on again, and take from each input the tangent of the level at work, which
``jvp`` is handed separately.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
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


def ordinary(*tensors: Tensor) -> bool:
    """Nobody differentiates what is done to these, and no ``vmap`` runs over them."""
    return not torch.is_grad_enabled() and _alone(tensors)


def nobody_differentiates(tensors: Sequence[Tensor | None]) -> bool:
    """As :func:`ordinary`, of what a user passes: it may be recorded where nothing has a gradient."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return False
    return _alone([t for t in tensors if t is not None])


def require_no_forward_mode(where: str) -> None:
    """For an operator of ``torch.library``: it has no tangent, and PyTorch would take 0 without a word.

    Raises:
        NotImplementedError: a tangent may be asked for.
    """
    if forward_ad._current_level >= 0:
        raise NotImplementedError(
            f"{where} has no forward mode under torch.compile: compile the parts around it"
        )


def _alone(tensors: Iterable[Tensor]) -> bool:
    if forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled():
        return False
    return not any(_functorch.is_batchedtensor(x) or _functorch.is_legacy_batchedtensor(x) for x in tensors)


# ---------------------------------------------------------------- the older vmap, of is_grads_batched


is_mapped_unasked = _functorch.is_legacy_batchedtensor


def unasked_level() -> int:
    """The innermost level of the older ``vmap``: PyTorch says it where it changes."""
    level: int = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


def unmapped(t: Tensor, level: int) -> Tensor:
    """The mapped axis in front."""
    return torch._remove_batch_dim(t, level, 1, 0)


def mapped_again(t: Tensor, level: int) -> Tensor:
    return torch._add_batch_dim(t, 0, level)
