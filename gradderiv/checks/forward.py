"""A person's function as the oracles of :func:`gradderiv.check` see it: its forward code, run on other numbers.

Hand-written backwards play no part here: on a tape of numbers (:mod:`gradderiv.numbers.tape`) and on dual numbers only the forward
runs. What other people's code does and a formula does not is answered by :class:`~gradderiv.checks.values.Values`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from gradderiv.checks.program import retried
from gradderiv.checks.values import Values
from gradderiv.numbers.tape import Tape, TapeTensor


@dataclass(frozen=True)
class Call:
    """The function with its inputs: which of them are differentiated, and how it is called.

    Attributes:
        values: every input under its name, in the order of the call.
        moving: the names of those that are differentiated.
        by_name: the inputs are keyword arguments.
        spelled: the function as one would write it.
        floating: positions of the outputs that are floating tensors; None until a first call has told.
        ties: names under which an input is given again, and the first name of each.
        kept: storages that a first call computed from its inputs, and that are still in use.
    """

    function: Callable[..., Any]
    name: str
    values: Mapping[str, Any]
    moving: tuple[str, ...]
    by_name: bool = False
    spelled: str = ""
    floating: tuple[int, ...] | None = None
    ties: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kept: Mapping[int, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The floating outputs, for these inputs in place of the function's own."""
        outputs = self.all(inputs)
        if self.floating is None:
            return [y for y in outputs if isinstance(y, Tensor) and y.dtype.is_floating_point]
        return [outputs[k] for k in self.floating]

    def all(self, inputs: Mapping[str, Any]) -> list[Any]:
        values = {**self.values, **inputs}
        values |= {name: values[first] for name, first in self.ties.items()}
        out = self.function(**values) if self.by_name else self.function(*values.values())
        return tree_leaves(out)

    def copies(self) -> dict[str, Tensor]:
        """Every tensor among the inputs, copied: a function may write into its own."""
        return {n: x.detach().clone() for n, x in self.values.items() if isinstance(x, Tensor)}

    def constants(self) -> dict[str, Tensor]:
        """The floating inputs that are not differentiated."""
        given = {n: x for n, x in self.values.items() if isinstance(x, Tensor) and n not in self.moving}
        return {name: x for name, x in given.items() if x.dtype.is_floating_point}


# ---------------------------------------------------------------- running it on other numbers


@dataclass(frozen=True)
class Recorded:
    """Outputs with the history that reverse mode needs, the leaves to differentiate by, and the types that results were cast to."""

    outputs: list[Tensor]
    leaves: dict[str, Tensor]
    casts: set[torch.dtype]
    values: Callable[[], Values]

    def gradients(self, cotangents: Sequence[Tensor | None]) -> dict[str, Tensor | None]:
        """Of Σ ⟨dY, Y⟩ by every leaf; None for a leaf that no output depends on."""
        with self.values(), plain_kernels():
            return pull_back(self.outputs, self.leaves, cotangents, retain_graph=True)


def pull_back(
    outputs: Sequence[Tensor],
    leaves: Mapping[str, Tensor],
    cotangents: Sequence[Tensor | None],
    **options: bool,
) -> dict[str, Tensor | None]:
    """The gradient of Σ ⟨dY, Y⟩, over the outputs that have a cotangent and a history, by every leaf; None for a leaf that none depends on."""
    given = zip(outputs, cotangents, strict=True)
    pairs = [(y, g) for y, g in given if g is not None and y.requires_grad]
    if not pairs:
        return dict.fromkeys(leaves)
    ends, grads = zip(*pairs, strict=True)
    found = torch.autograd.grad(ends, list(leaves.values()), grads, allow_unused=True, **options)
    return dict(zip(leaves, found, strict=True))


def record(
    call: Call,
    make: Callable[[Tensor], Tensor],
    constant: Callable[[Tensor], Tensor] | None = None,
    values: Callable[..., Values] | None = None,
) -> Recorded:
    """Run the function on a tape: of the numbers that ``make`` makes of what is differentiated, and ``constant`` of what is not."""
    tape, fixed = Tape(), constant or make
    leaves = {name: make(call.values[name].clone()).requires_grad_() for name in call.moving}
    inputs = {name: tape.make(fixed(x.clone())) for name, x in call.constants().items()}
    inputs |= {name: tape.make(x) for name, x in leaves.items()}
    outputs, casts = run(call, inputs, lambda x: tape.make(fixed(x)), values)
    recorded = [y.recorded if isinstance(y, TapeTensor) else y for y in outputs]
    return Recorded(recorded, leaves, casts, values or Values)


def run(
    call: Call,
    inputs: Mapping[str, Tensor],
    born: Callable[[Tensor], Tensor],
    values: Callable[..., Values] | None = None,
) -> tuple[list[Tensor], set[torch.dtype]]:
    """The function's floating outputs on Numbers, and the types that it cast Numbers to.

    ``born`` makes a Number of a tensor that the function creates and later writes Numbers into. Which ones those are shows only when it
    writes: then the call starts again with the tensors born at that line made Numbers.
    """
    lines: set[str] = set()

    def once() -> tuple[list[Tensor], set[torch.dtype]]:
        with (values or Values)(born, lines) as mode, plain_kernels(), torch.no_grad():
            return call(inputs), mode.casts

    outputs, casts = retried(lines, once)
    return outputs, casts


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention as torch spells it out: its fused kernels know floats only."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def normal(generator: torch.Generator, like: Tensor, *leading: int) -> Tensor:
    """Standard normal float64 of the shape of ``like``, drawn on the CPU and put where that is."""
    drawn = torch.randn((*leading, *like.shape), generator=generator, dtype=torch.float64)
    return drawn.to(like.device)
