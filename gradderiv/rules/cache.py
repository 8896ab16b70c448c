"""Keys and values that were computed before, in front of the new ones.

    K = [K_cache ; K_new]                        Shazeer 2019, §2.2; Pope et al. 2022

cache (..., n_past, d)   new (..., n, d)   K (..., n_past + n, d). The gradient is cut at the same place: what is cached has one too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.rules._inputs import require, require_tensors, rule, shapes
from gradderiv.rules.steps import Operator


class CacheGradients(NamedTuple):
    """∂ℓ/∂cache, ∂ℓ/∂new."""

    cache: Tensor
    new: Tensor


@rule
def append(cache: Tensor, new: Tensor) -> tuple[Tensor, int]:
    """K = [K_cache ; K_new], below one another

    Shazeer 2019, §2.2.

    Args:
        cache: (..., n_past, d), keys as they are used: rotated, where there is a rotation.
        new: (..., n, d).

    Returns:
        K (..., n_past + n, d) and n_past, which is all that :func:`append_vjp` needs.

    Raises:
        InputError: other leading axes or another width.
        DtypeError: integers, several dtypes or devices.
    """
    require_tensors("append", cache=cache, new=new)
    require(
        cache.dim() == new.dim() >= 2
        and (*cache.shape[:-2], cache.shape[-1]) == (*new.shape[:-2], new.shape[-1]),
        "a cache needs the shape of what is appended, but for the number of positions",
        shapes(cache=cache, new=new),
        "a cache (batch, n, heads, d), or one whose heads are already repeated",
        "(batch, h_kv, n_past, d)",
    )
    return torch.cat([cache, new], -2), cache.shape[-2]


@rule
def append_jvp(n_past: int, cache_dot: Tensor, new_dot: Tensor) -> Tensor:
    """K̇ = [K̇_cache ; K̇_new]

    The map is linear.
    """
    return torch.cat([cache_dot, new_dot], -2)


@rule
def append_vjp(dK: Tensor, n_past: int) -> CacheGradients:
    """dK_cache = the first n_past rows of dK,   dK_new = the others

    The transpose of putting below one another is cutting.
    """
    return CacheGradients(dK[..., :n_past, :], dK[..., n_past:, :])


@rule
def append_vjp_jvp(
    dK: Tensor, n_past: int, dK_dot: Tensor, cache_dot: Tensor, new_dot: Tensor
) -> CacheGradients:
    """dK̇_cache, dK̇_new = the rows of dK̇

    The map is linear.
    """
    return append_vjp(dK_dot, n_past)


APPEND = Operator(append, append_jvp, append_vjp, append_vjp_jvp)
