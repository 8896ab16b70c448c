"""What systems write where a key is hidden, and the derivative of each.

    S′ = κ ∘ S + C,   P = softmax(S′)          κ: the score stays (1) or is replaced (0);  C: the constant, 0 where a key is seen

S, S′, C (..., n_q, n_k)   κ boolean.   A fill is κ and C: −∞ hides; a finite number only makes small, and what is left of a row in which every key has it depends on how it was
written. :data:`SEMANTICS` has the ways found in real systems: from masks M₁ (padding), M₂ … (later keys, a window), True = may attend, to the options ``mask=`` or ``fill=``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.rules._inputs import kind, require, require_broadcast, require_mask, require_tensors, rule
from gradderiv.rules.steps import Operator

FILL = -10000.0  # of BERT, and of onnxruntime's mask_filter_value


class Fill(NamedTuple):
    """κ (None: every score stays) and C; both broadcast to the scores."""

    keep: Tensor | None
    constant: Tensor


class MaskedFillSaved(NamedTuple):
    """κ is all that the derivative needs."""

    keep: Tensor | None


class MaskedFillGradients(NamedTuple):
    """∂ℓ/∂S; C is a constant."""

    S: Tensor


@rule
def masked_fill(S: Tensor, *, fill: Fill) -> tuple[Tensor, MaskedFillSaved]:
    """S′ = κ ∘ S + C

    Devlin et al. 2019 for −10000, onnxruntime #14363 for fills that add up. The score is selected, not multiplied: a replaced score may be anything, and C may be −∞.

    Args:
        S: (..., n_q, n_k), the scores.
        fill: κ, boolean or None, and C; see :data:`SEMANTICS`.

    Returns:
        S′ (..., n_q, n_k) and what :func:`masked_fill_vjp` needs.

    Raises:
        InputError: a fill that does not broadcast to S.
        DtypeError: integers, several dtypes, a κ that is not boolean.
    """
    keep, C = fill
    require_tensors("masked_fill", S=S, constant=C)
    require_mask("masked_fill", keep, tuple(S.shape))
    require_broadcast("masked_fill", "constant", C, tuple(S.shape))
    S_filled = _kept(S, keep) + C  # ... n_q n_k
    return S_filled, MaskedFillSaved(keep)


@rule
def masked_fill_jvp(saved: MaskedFillSaved, S_dot: Tensor) -> Tensor:
    """Ṡ′ = κ ∘ Ṡ"""
    return _kept(S_dot, saved.keep)


@rule
def masked_fill_vjp(dS_filled: Tensor, saved: MaskedFillSaved) -> MaskedFillGradients:
    """dS = κ ∘ dS′

    A score that was added to keeps its gradient, however small the number that was added has made it.
    """
    return MaskedFillGradients(_kept(dS_filled, saved.keep))


@rule
def masked_fill_vjp_jvp(
    dS_filled: Tensor, saved: MaskedFillSaved, dS_filled_dot: Tensor, S_dot: Tensor
) -> MaskedFillGradients:
    """dṠ = κ ∘ dṠ′

    S′ is affine in S: dS moves only with dS′.
    """
    return MaskedFillGradients(_kept(dS_filled_dot, saved.keep))


MASKED_FILL = Operator(masked_fill, masked_fill_jvp, masked_fill_vjp, masked_fill_vjp_jvp)


def _kept(t: Tensor, keep: Tensor | None) -> Tensor:
    """κ ∘ t, a new tensor."""
    return t.clone() if keep is None else t.masked_fill(~keep, 0.0)


def require_fill(where: str, fill: Any) -> None:
    """Demand a Fill, or none.

    Raises:
        InputError: something else, a number for example.
    """
    require(
        fill is None or isinstance(fill, Fill),
        f"{where} needs fill as a Fill",
        kind(fill),
        "the number that stands for −∞ alone",
        "gradderiv.rules.fills.SEMANTICS",
    )


# ---------------------------------------------------------------- what systems do


class Semantics(NamedTuple):
    """``options(masks, dtype, fill)`` gives {"mask": M} or {"fill": Fill(κ, C)}; ``fill`` is the number, where the system lets one choose it."""

    name: str
    who: str
    options: Callable[..., dict[str, Any]]


def _all(masks: Sequence[Tensor]) -> Tensor:
    require(
        len(masks) > 0,
        "a fill is made of masks",
        "none",
        "an empty list",
        "torch.ones(1, 1, dtype=torch.bool)",
    )
    for M in masks:
        require_mask("a fill", M, tuple(getattr(M, "shape", ())))
    return functools.reduce(torch.logical_and, masks)


def _where_hidden(mask: Tensor, fill: float, dtype: torch.dtype) -> Tensor:
    """C: ``fill`` where the mask hides, else 0."""
    require(
        fill == -torch.inf or fill >= torch.finfo(dtype).min,
        f"a fill is a number of {dtype}, or -inf",
        f"{fill:g}",
        "a fill for another dtype",
        f"nothing below {torch.finfo(dtype).min:g}",
    )
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, fill)


def _zero(masks: Sequence[Tensor], dtype: torch.dtype, fill: float = FILL) -> dict[str, Any]:
    return {"mask": _all(masks)}


def _nan(masks: Sequence[Tensor], dtype: torch.dtype, fill: float = FILL) -> dict[str, Any]:
    return _replace(masks, dtype, -torch.inf)


def _replace(masks: Sequence[Tensor], dtype: torch.dtype, fill: float = FILL) -> dict[str, Any]:
    M = _all(masks)
    return {"fill": Fill(M, _where_hidden(M, fill, dtype))}


def _add(masks: Sequence[Tensor], dtype: torch.dtype, fill: float = FILL) -> dict[str, Any]:
    return {"fill": Fill(None, _where_hidden(_all(masks), fill, dtype))}


def _add_each(masks: Sequence[Tensor], dtype: torch.dtype, fill: float = FILL) -> dict[str, Any]:
    _all(masks)
    return {"fill": Fill(None, functools.reduce(torch.add, [_where_hidden(M, fill, dtype) for M in masks]))}


def _lowest(masks: Sequence[Tensor], dtype: torch.dtype, fill: float = FILL) -> dict[str, Any]:
    return _add(masks, dtype, torch.finfo(dtype).min)


def _padding_and_rest(masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    M = _all(masks)
    return masks[0], _all(masks[1:]) if len(masks) > 1 else torch.ones_like(M)


def _onnxruntime(masks: Sequence[Tensor], dtype: torch.dtype, fill: float = FILL) -> dict[str, Any]:
    padding, rest = _padding_and_rest(masks)
    C = _where_hidden(padding, fill, dtype).expand(_all(masks).shape)
    return {"fill": Fill(rest, torch.where(rest, C, torch.finfo(dtype).min))}


def _onnxruntime_1_13(masks: Sequence[Tensor], dtype: torch.dtype, fill: float = FILL) -> dict[str, Any]:
    (each,) = _add_each(masks, dtype, fill).values()
    return {"fill": Fill(_padding_and_rest(masks)[1], each.constant)}


SEMANTICS: dict[str, Semantics] = {
    s.name: s
    for s in (
        Semantics("zero", "gradderiv; −∞, and an empty row is 0", _zero),
        Semantics("nan", "−∞ written into the scores, and torch.softmax", _nan),
        Semantics(
            "replace", "masked_fill(hidden, −10000); ``masked_bias`` of GPT-2 in older transformers", _replace
        ),
        Semantics("add", "scores + (1 − mask) · −10000; BERT", _add),
        Semantics("add each", "−10000 added for each mask; −20000 where two hide", _add_each),
        Semantics("lowest", "scores + mask of finfo(dtype).min; transformers, eager", _lowest),
        Semantics(
            "onnxruntime",
            "−10000 added for padding, later keys replaced by the lowest float; onnxruntime 1.31, 1.32",
            _onnxruntime,
        ),
        Semantics(
            "onnxruntime 1.13",
            "−10000 added for each mask, later scores taken out; onnxruntime #14363",
            _onnxruntime_1_13,
        ),
    )
}
