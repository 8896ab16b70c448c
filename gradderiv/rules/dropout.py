"""Dropout with a given keep mask.

    Y = P ∘ keep / (1 − p)                       Srivastava et al. 2014, §10, inverted as torch does

P, Y (..., n_q, n_k)   keep: boolean, broadcasts to P, True = kept   dropout_p: p, below 1. A diagonal map: its own tangent and its own transpose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradderiv.errors import DtypeError, message
from gradderiv.rules._inputs import kind, require, require_broadcast, rule
from gradderiv.rules.steps import linear_map


@rule
def drop(P: Tensor, *, keep: Tensor, dropout_p: float) -> Tensor:
    """Y = P ∘ keep / (1 − p)

    Srivastava et al. 2014, §10; the division is torch's, so that evaluation needs none.

    Args:
        P: (..., n_q, n_k).
        keep: boolean, broadcasts to P; True = kept.
        dropout_p: p, at least 0 and below 1.

    Returns:
        Y (..., n_q, n_k).

    Raises:
        InputError: a p outside [0, 1), a mask that does not broadcast.
        DtypeError: a mask that is not boolean.
    """
    require(
        0 <= dropout_p < 1,
        "dropout needs the probability of dropping, at least 0 and below 1",
        f"dropout_p={dropout_p}",
        "the probability of keeping, or a percentage",
        "dropout_p=1 − the probability of keeping",
    )
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
        raise DtypeError(
            message(
                "dropout needs a boolean mask, True = kept",
                kind(keep),
                "a mask of 0 and 1, or one that is already divided by 1 − p",
                "keep.bool()",
            )
        )
    require_broadcast("dropout", "keep", keep, tuple(P.shape))
    return P.masked_fill(~keep, 0.0) / (1 - dropout_p)


DROPOUT = linear_map(drop, lambda dY, shape, **static: drop(dY, **static))
