"""The backward of a function as a function: of its inputs and of the cotangents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.forward import Call, normal, pull_back


def second_order(
    call: Call, outputs: Sequence[Tensor], which: Sequence[int], seed: int
) -> tuple[Call, list[Tensor]]:
    """The gradients of ⟨dY, Y⟩, each an output, of the inputs that are differentiated and of a cotangent for every output ``which``.

    An output that has no gradient gets none; an input that is not reached has zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    cotangents = {f"dY{k}": normal(generator, outputs[k]).to(outputs[k].dtype) for k in which}
    arguments = list(call.moving)

    def gradients(**values: Any) -> list[Tensor]:
        live = {
            n: values[n] if values[n].requires_grad else values[n].detach().requires_grad_()
            for n in arguments
        }
        with torch.enable_grad():
            found = call(live)
            grads = pull_back(
                found, live, [values.get(f"dY{k}") for k in range(len(found))], create_graph=True
            )
        return [
            torch.zeros_like(x) if g is None else g
            for g, x in zip(grads.values(), live.values(), strict=True)
        ]

    values = {n: call.values[n] for n in arguments} | cotangents
    made = Call(
        gradients, f"the backward of {call.name}", values, tuple(values), by_name=True, spelled=call.spelled,
        floating=tuple(range(len(arguments))),
    )  # fmt: skip
    return made, [call.values[n] for n in arguments]
