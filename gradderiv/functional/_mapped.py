"""``vmap``: the mapped axis as one more leading axis of attention's tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradderiv.functional import _nested
from gradderiv.functional._autocast import in_one_dtype
from gradderiv.functional._given import NAMES, SHARED, Given, Told
from gradderiv.functional._tiles import VARIABLES, Inputs


def run(formula: Callable[[Told, Given], Any], function: Any, told: Told, tensors: Sequence[Any]) -> Any:
    """The formula; where ``vmap`` is the one of ``is_grads_batched``, which does not ask the function, with the mapped axis in front."""
    unasked = [i for i, t in enumerate(tensors) if t is not None and _nested.is_mapped_unasked(t)]
    if not unasked:
        with in_one_dtype(tensors[0]):
            return formula(told, Given.of(tensors))
    level = _nested.unasked_level()
    plain = [_nested.unmapped(t, level) if i in unasked else t for i, t in enumerate(tensors)]
    dims = [0 if i in unasked else None for i in range(len(plain))]
    with (
        torch.enable_grad()
    ):  # what is recorded of the outer call is lost where its result is taken out again
        found, _ = mapped(function, told, dims, plain[unasked[0]].shape[0], Given.of(plain))
    return tuple(_nested.mapped_again(t, level) for t in found)


def mapped(function: Any, told: Told, dims: Sequence[int | None], n: int, given: Given) -> Any:
    """Under ``vmap``: the mapped axis as one more leading axis of everything; n is its size."""
    tensors, taken, dims = given.flat(), len(dims), [*dims, *[None] * (len(NAMES) - len(dims))]
    rank = given.x.Q.dim() - (dims[0] is not None)
    folded = [
        None if t is None else _folded(t, name, dim, n, rank)
        for t, name, dim in zip(tensors, NAMES, dims, strict=True)
    ]
    found = function.apply(told, *folded[:taken])
    own = {name: _own(t, dim) for t, name, dim in zip(given.x, Inputs._fields, dims, strict=False)}
    names = [name for name, need in zip(VARIABLES, told.needs, strict=False) if need]
    outputs = len(found) - len(names)
    gradients = (g.reshape(n, *own[name]) for g, name in zip(found[outputs:], names, strict=True))
    return (*found[:outputs], *gradients), (0,) * len(found)


def _folded(t: Tensor, name: str, dim: int | None, n: int, rank: int) -> Tensor:
    """The mapped axis in front; what has a gradient has it once for each sample, what has none is shared."""
    copies = 1 if name in ("mask", "seeds") else n
    t = t.expand(copies, *t.shape) if dim is None else t.movedim(dim, 0)
    return t.unflatten(0, (-1, *[1] * (rank + 1 - t.dim()))) if name in SHARED else t


def _own(t: Tensor | None, dim: int | None) -> tuple[int, ...]:
    """The shape without the mapped axis."""
    return () if t is None else tuple(size for i, size in enumerate(t.shape) if i != dim)
