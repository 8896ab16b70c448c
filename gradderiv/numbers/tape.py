"""Floats (or residues) whose operations are recorded below a hand-written backward.

``torch.autograd.grad`` through a hand-written ``autograd.Function`` runs its ``backward``. On a :class:`TapeTensor` the operations of its *forward* are
recorded one by one instead, with autograd switched on underneath, so that reverse mode gives every entry of the true gradient of the forward code
in one pass. ``detach`` and ``no_grad`` do not cut this tape: they change what autograd records, not the function.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import enable_reentrant_dispatch
from torch.utils._pytree import tree_map_only

from gradderiv.numbers.number import Number, System
from gradderiv.numbers.operands import aten
from gradderiv.numbers.structure import VIEWS, view

CUTS = {
    aten.detach.default: aten.alias.default,
    aten._embedding_bag_forward_only.default: aten._embedding_bag.default,
}


class Tape(System):
    """Records what is done to the tensors it wraps."""

    main = "x"
    rank = 3

    def __init__(self) -> None:
        self.fill = {}

    def make(self, x: Tensor) -> Number:
        """x, on the tape; ask ``torch.autograd.grad`` for the gradient with respect to x itself."""
        return self.wrap({"x": x.view_as(x) if x.requires_grad else x}, None, x.dtype)


class TapeTensor(Number):
    """A tensor whose history is recorded below ``__torch_dispatch__``."""

    @property
    def recorded(self) -> Tensor:
        """The tensor with its recorded history."""
        return self.main

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        func = CUTS.get(func, func)
        with enable_reentrant_dispatch(), torch.enable_grad(), saved_tensors_hooks(_copied, _as_it_is):
            if func in VIEWS:
                x = args[0]
                return view(x.system, func, args, kwargs)
            system = next(a.system for a in _flat((args, kwargs)) if isinstance(a, TapeTensor))
            unwrapped_args, unwrapped = tree_map_only(TapeTensor, lambda t: t.main, (args, kwargs))
            out = func(*unwrapped_args, **unwrapped)
            if func._schema.is_mutable:
                return args[0]
            return tree_map_only(Tensor, lambda t: system.wrap({"x": t}, None, t.dtype), out)


Tape.tensor = TapeTensor


def _copied(x: Tensor) -> Tensor:
    """What an operation keeps for its derivative: a program without a tape may write over it."""
    return x.detach().clone()


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _flat(tree: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(tree)
