"""What a function keeps from one call to the next: a run on other numbers would take it for a constant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradderiv.checks.lines import calling_line, with_text
from gradderiv.errors import NoExactMeaning, message


class Kept(TorchDispatchMode):
    """Notes what a call computes from ``inputs``, to know later which of it the function has kept."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.own = {x.untyped_storage()._cdata for x in inputs}
        self.found: dict[int, StorageWeakRef] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        sources = [x.untyped_storage()._cdata for x in _strided((args, kwargs))]
        if any(s in self.own or s in self.found for s in sources):
            written = [a for a, p in zip(args, func._schema.arguments, strict=False) if _is_written(p)]
            for x in _strided((out, written)):
                storage = x.untyped_storage()
                if storage._cdata not in self.own:
                    self.found.setdefault(storage._cdata, StorageWeakRef(storage))
        return out

    def alive(self) -> dict[int, StorageWeakRef]:
        """The storages that are still in use; as long as the references are held, no other takes the place of one."""
        return {place: ref for place, ref in self.found.items() if not ref.expired()}


def _strided(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.layout == torch.strided]


def _is_written(parameter: Any) -> bool:
    return parameter.alias_info is not None and parameter.alias_info.is_write


def kept_from_earlier() -> NoExactMeaning:
    return NoExactMeaning(
        message(
            "an oracle follows what one call computes",
            f"a tensor that an earlier call computed from its inputs, used at {with_text(calling_line())}",
            "a cache or a statistic kept from call to call: its derivative is in neither side",
            "compute it in the call, or pass it as an input",
        )
    )
