"""A person's function over the field: through autograd, which runs its backward, and in forward mode, which does not.

Both start from the same free point. In forward mode every argument moves at once, along a tangent that is free too: ⟨dY, Ẏ⟩ = Σ ⟨dθ, θ̇⟩ for a free θ̇ says
that every entry of every dθ is right, since a polynomial in θ̇ vanishes only where all its coefficients do.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gradderiv.checks.forward import Call, plain_kernels, pull_back
from gradderiv.checks.program import BornHere, Cuts, Program, caught, retried
from gradderiv.numbers.dual import Dual, DualTensor
from gradderiv.numbers.field import Field
from gradderiv.numbers.lanes import FieldTensor
from gradderiv.numbers.number import Number
from gradderiv.numbers.tape import Tape, TapeTensor

Aims = Mapping[str, Sequence[int]]  # under its name, the outputs that get a cotangent


@dataclass
class Point:
    """Free values for what is differentiated, a free direction, and free cotangents."""

    values: dict[str, Tensor]
    tangents: dict[str, Tensor]
    cotangents: list[Tensor]
    state: Tensor  # of the generator that drew them


@dataclass
class Runs:
    """One function, and what its runs have shown about it besides numbers.

    Attributes:
        call: the function and its inputs.
        outputs: what it returned for floats; their shapes and types are used.
        seed: of torch's generator at the start of every run, so that a dropout mask is the same in all.
        lines: where it makes tensors that it writes numbers into.
        casts: the types that it cast numbers to.
        cuts: the lines at which it cut the graph.
        met: what else a reader of the verdict should know.
    """

    call: Call
    outputs: Sequence[Tensor]
    seed: int = 0
    lines: set[str] = field(default_factory=set)
    casts: set[torch.dtype] = field(default_factory=set)
    cuts: dict[str, None] = field(default_factory=dict)
    met: dict[str, None] = field(default_factory=dict)

    def point(self, numbers: Field) -> Point:
        shapes = {name: self.call.values[name] for name in self.call.moving}
        state = numbers.generator.get_state()
        return Point(
            {n: numbers.random(*x.shape, dtype=x.dtype) for n, x in shapes.items()},
            {n: numbers.random(*x.shape, dtype=x.dtype) for n, x in shapes.items()},
            [numbers.random(*y.shape, dtype=y.dtype) for y in self.outputs],
            state,
        )

    # ---- backwards

    def backward(
        self, numbers: Field, point: Point, aims: Aims
    ) -> tuple[list[Tensor], dict[str, dict[str, Tensor | None]]]:
        """The outputs, and the gradient of every argument for every aim, as autograd and a hand-written backward return them."""

        def run() -> tuple[list[Tensor], dict[str, dict[str, Tensor | None]]]:
            with self._program(numbers) as mode:
                leaves = {n: x.clone().requires_grad_() for n, x in point.values.items()}
                with Cuts() as cuts:
                    outputs = self.call(leaves)
                self.cuts |= {**cuts.lines, **mode.cuts}
                gradients = {
                    aim: _gradients(outputs, leaves, which, point.cotangents) for aim, which in aims.items()
                }
                return outputs, gradients

        outputs, gradients = retried(self.lines, run)
        return outputs, gradients

    def taped(self, numbers: Field, point: Point, aims: Aims) -> dict[str, dict[str, Tensor | None]]:
        """The same through the forward code alone, recorded below a hand-written backward."""
        tape = Tape()

        def run() -> dict[str, dict[str, Tensor | None]]:
            leaves = {n: x.clone().requires_grad_() for n, x in point.values.items()}
            inputs = {n: tape.make(x) for n, x in leaves.items()}
            with self._program(numbers, tape.make), torch.no_grad():
                outputs = self.call(inputs)
            recorded = [y.recorded if isinstance(y, TapeTensor) else y for y in outputs]
            with self._program(numbers, tape.make):
                return {
                    aim: _gradients(recorded, leaves, which, point.cotangents) for aim, which in aims.items()
                }

        return retried(self.lines, run)

    # ---- forwards

    def forward(
        self, numbers: Field, point: Point, moving: Sequence[str] | None = None, *, last: bool = False
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """The outputs and their tangents on dual numbers; where ``moving`` is given, only those arguments move.

        The ``last`` run at a point takes its values and tangents, and leaves it empty: of a large layer, there should be no copies.
        """
        duals = Dual()

        def make(name: str) -> DualTensor:
            if last:
                return duals.make(point.values.pop(name), point.tangents.pop(name))
            moves = moving is None or name in moving
            return duals.make(point.values[name].clone(), point.tangents[name].clone() if moves else None)

        def run() -> tuple[list[Tensor], list[Tensor | None]]:
            if not point.values:  # taken by an attempt that came to nothing
                numbers.generator.set_state(point.state)
                drawn = self.point(numbers)
                point.values, point.tangents = drawn.values, drawn.tangents
            inputs = {name: make(name) for name in self.call.moving}
            with self._program(numbers, duals.make, DualTensor), torch.no_grad():
                outputs = self.call(inputs)
            parts = [(y.primal, y.part("t")) if isinstance(y, DualTensor) else (y, None) for y in outputs]
            return [p for p, _ in parts], [t for _, t in parts]

        values, tangents = retried(self.lines, run)
        return values, tangents

    def custom_forward(self, numbers: Field, point: Point) -> tuple[list[Tensor], list[Tensor | None]]:
        """The same by torch's forward mode, which asks a hand-written Function for its ``jvp``."""
        with warnings.catch_warnings():  # torch imports this on first use, and warns of its own torch.jit
            warnings.simplefilter("ignore", DeprecationWarning)
            importlib.import_module("torch._decomp.decompositions_for_jvp")

        def run() -> tuple[list[Tensor], list[Tensor | None]]:
            with self._program(numbers), forward_ad.dual_level():
                inputs = {
                    n: forward_ad.make_dual(x.clone(), point.tangents[n].clone())
                    for n, x in point.values.items()
                }
                parts = [forward_ad.unpack_dual(y) for y in self.call(inputs)]
                return [p.primal for p in parts], [p.tangent for p in parts]

        values, tangents = retried(self.lines, run)
        return values, tangents

    @contextlib.contextmanager
    def _program(
        self,
        numbers: Field,
        outer: Callable[[Tensor], Tensor] | None = None,
        only: type[Number] = Number,
    ) -> Iterator[Program]:
        """A run: tensors born in it are numbers of this field, inside the numbers that ``outer`` makes of them."""

        def born(x: Tensor) -> Tensor:
            inner = numbers.constant(x, x.dtype)
            return inner if outer is None else outer(inner)

        def blank(x: Tensor) -> Tensor:
            inner = numbers.random(*x.shape, dtype=x.dtype)
            return inner if outer is None else outer(inner)

        mode = Program(born, self.lines, blank, only, self.call.kept)
        try:
            with torch.random.fork_rng(devices=[]), plain_kernels(), mode:
                torch.default_generator.manual_seed(self.seed)
                yield mode
            if isinstance(mode.raised, BornHere):
                raise mode.raised
            if mode.raised is not None:
                raise caught(mode.raised) from mode.raised
        finally:
            self.casts |= mode.casts
            self.met |= mode.met


def _gradients(
    outputs: Sequence[Tensor],
    leaves: Mapping[str, Tensor],
    which: Sequence[int],
    cotangents: Sequence[Tensor],
) -> dict[str, Tensor | None]:
    given = [g.clone() if k in which else None for k, g in enumerate(cotangents)]
    return pull_back(outputs, leaves, given, retain_graph=True)


def pairing(gradients: Mapping[str, Tensor | None], tangents: Mapping[str, Tensor]) -> Tensor | None:
    """Σ ⟨dθ, θ̇⟩ over what has a gradient; None where nothing has."""
    return _total((g, tangents[name]) for name, g in gradients.items())


def _total(pairs: Any) -> Tensor | None:
    terms = [(a * b).sum() for a, b in pairs if a is not None]
    return torch.stack(terms).sum() if terms else None


def paired(
    tangents: Sequence[Tensor | None], cotangents: Sequence[Tensor], which: Sequence[int]
) -> Tensor | None:
    """Σ ⟨dY, Ẏ⟩ over the outputs ``which``."""
    return _total((tangents[k], cotangents[k]) for k in which)


def in_field(numbers: Field, x: Any, like: Tensor) -> Tensor:
    """A result as numbers of the field; None stands for zero."""
    if isinstance(x, FieldTensor):
        return x.detach()
    zero = torch.zeros(like.shape, device=numbers.device)
    return numbers.constant(zero if x is None else x.detach(), like.dtype)


def entries(
    numbers: Field,
    values: Mapping[str, Tensor],
    found: Mapping[str, Mapping[str, Tensor | None]],
    wanted: Mapping[str, Mapping[str, Tensor | None]],
) -> dict[str, tuple[Tensor, Tensor]]:
    """For every aim and argument the gradient that was found and the one that is wanted, as ``aim|argument``."""
    return {
        f"{aim}|{name}": (in_field(numbers, found[aim][name], x), in_field(numbers, wanted[aim][name], x))
        for aim in found
        for name, x in values.items()
    }


SCALAR = torch.zeros((), dtype=torch.float64)
