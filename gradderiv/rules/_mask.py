"""A mask before it has a shape: a rule that makes M, and the logic by which masks combine; what masks there are is in :mod:`gradderiv.rules.masks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from gradderiv.errors import InputError, message
from gradderiv.rules._inputs import require, require_broadcast, require_mask, shape

Make = Callable[[tuple[int, ...], torch.device], Tensor]
OR, AND, NOT, ATOM = range(4)  # how tightly a written mask binds


class Mask:
    """Where queries may attend, for scores of any shape. Immutable; made by the functions of this module and by & | ~."""

    __slots__ = ("_binds", "_make", "_written")
    _binds: int
    _make: Make
    _written: str

    def __init__(self, make: Make, written: str, binds: int = ATOM) -> None:
        for name, value in (("_make", make), ("_written", written), ("_binds", binds)):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a mask is immutable: {name} of {self!r} cannot be set")

    def on(self, scores: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """M, boolean, True = may attend; broadcasts to the scores (..., n_q, n_k).

        Raises:
            InputError: no axes n_q and n_k, or scores that the mask does not fit.
        """
        size = tuple(scores)
        require(
            len(size) >= 2,
            "a mask needs the shape of the scores (..., n_q, n_k)",
            str(size),
            "the shape of one sequence",
            "(*Q.shape[:-1], K.shape[-2])",
        )
        return self._make(size, torch.device(device))

    def __and__(self, other: Mask | Tensor) -> Mask:
        return self._joined(other, "&", AND, torch.logical_and)

    def __or__(self, other: Mask | Tensor) -> Mask:
        return self._joined(other, "|", OR, torch.logical_or)

    def __rand__(self, other: Tensor) -> Mask:
        return _as_mask(other) & self

    def __ror__(self, other: Tensor) -> Mask:
        return _as_mask(other) | self

    def __invert__(self) -> Mask:
        return Mask(lambda size, device: ~self._make(size, device), f"~{self._within(NOT)}", NOT)

    def _joined(self, other: Any, sign: str, binds: int, combine: Callable[..., Tensor]) -> Mask:
        right = _as_mask(other)
        written = f"{self._within(binds)} {sign} {right._within(binds)}"
        return Mask(
            lambda size, device: combine(self._make(size, device), right._make(size, device)), written, binds
        )

    def _within(self, binds: int) -> str:
        return self._written if self._binds >= binds else f"({self._written})"

    def __repr__(self) -> str:
        return self._written

    def _arithmetic(self, other: Any) -> NoReturn:
        raise InputError(
            message(
                "masks combine by logic: & where both allow, | where either does, ~ for the other keys",
                f"+, − or × with {self!r}",
                "additive masks, of which two do not add up to one: −10000 + −10000 = −20000, and the lowest float + the lowest float = −inf",
                "mask & mask; a finite number that belongs to the scores is a bias",
            )
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _arithmetic

    def __bool__(self) -> NoReturn:
        raise InputError(
            message(
                "a mask is neither true nor false",
                repr(self),
                "`and`, `or`, `not` for &, |, ~; Python's `a and b` would be b alone",
                "mask & mask, or `mask is None`",
            )
        )


def _as_mask(other: Any) -> Mask:
    if isinstance(other, Tensor):
        return boolean(other)
    require(
        isinstance(other, Mask),
        "a mask combines with a mask or a boolean tensor",
        repr(other),
        "a number, a list or an array",
        "boolean(torch.as_tensor(…)), True = may attend",
    )
    return other


def boolean(tensor: Tensor) -> Mask:
    """M = tensor, True = may attend: ``attn_mask`` of scaled_dot_product_attention, ``attention_mask.bool()`` of transformers"""
    require_mask("boolean", tensor, tuple(getattr(tensor, "shape", ())))
    kept = tensor.detach().clone()
    written = f"boolean({shape(kept)})"

    def make(size: tuple[int, ...], device: torch.device) -> Tensor:
        require_broadcast(written, "mask", kept, size)
        return kept.to(device)

    return Mask(make, written)


def resolve(
    mask: Mask | Tensor | None, scores: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor | None:
    """M of a mask; a tensor and None as they are."""
    return mask.on(scores, device) if isinstance(mask, Mask) else mask
