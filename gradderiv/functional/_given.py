"""What a derivative of attention may read, and how it is found on plain tensors: by a fused kernel of PyTorch where there is one, by tiles otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.functional import _fused, _tiles
from gradderiv.functional._tiles import VARIABLES, Call, Inputs, Needs
from gradderiv.rules.tile import Dots, Outputs


class Told(NamedTuple):
    """What a function is told that is no tensor: the call, and which of the variables need a gradient."""

    call: Call
    needs: Needs = ()


class Given(NamedTuple):
    """All that a derivative may read: the arguments, what the forward pass left, cotangents, their tangents, tangents of the arguments, and a second direction of both."""

    x: Inputs
    known: Outputs = Outputs()
    d: Outputs = Outputs()
    d_dot: Outputs = Outputs()
    dot: Dots = Dots()
    by: Dots = Dots()
    dot_by: Dots = Dots()

    def flat(self) -> tuple[Tensor | None, ...]:
        return tuple(t for group in self for t in group)

    @staticmethod
    def of(flat: Sequence[Any]) -> Given:
        """Of the first so many; the others are None."""
        groups = zip(GROUPS, ENDS, ENDS[1:], strict=False)
        return Given(*(group(*flat[a:b]) for group, a, b in groups if a < len(flat)))


GROUPS: tuple[Any, ...] = (Inputs, Outputs, Outputs, Outputs, Dots, Dots, Dots)
ENDS = [0, *accumulate(len(group._fields) for group in GROUPS)]
NAMES = tuple(name for group in GROUPS for name in group._fields)
KNOWN = range(ENDS[1], ENDS[2])
SHARED = ("bias", "sinks", "mask", "seeds")
"""What broadcasts to the scores; everything else has all leading axes."""


# ---------------------------------------------------------------- on plain tensors


def value(told: Told, given: Given) -> tuple[Tensor, ...]:
    """O, lse, and the weights where they are asked for; by a fused kernel where there is one."""
    return (_fused if told.call.fused else _tiles).value(told.call, given.x)


def gradient(told: Told, given: Given) -> tuple[Tensor, ...]:
    """The gradients that are needed; by a fused kernel where dO is all that arrives, and of the bias nothing is asked."""
    call, needs, x, known, d = told.call, told.needs, given.x, given.known, given.d
    of_bias = needs[VARIABLES.index("bias")]
    if d.O is None or d.lse is not None or of_bias or not call.fused:
        return _tiles.gradient(call, x, _lse(told, given), d, needs)
    assert known.O is not None
    assert known.lse is not None
    found = _fused.gradient(call, x, known.O, known.lse, d.O)
    return tuple(_laid_out(g, t) for g, t, need in zip(found, x[:3], needs, strict=False) if need)


def _laid_out(g: Tensor, t: Tensor) -> Tensor:
    """As its variable is in memory, and as the tiles leave it: PyTorch copies a tangent that is laid out in another way than what it belongs to."""
    return g if g.stride() == t.stride() else torch.empty_like(t).copy_(g)


def tangent(told: Told, given: Given) -> tuple[Tensor, ...]:
    return _tiles.tangent(told.call, given.x, _lse(told, given), given.dot)


def tangent_of_tangent(told: Told, given: Given) -> tuple[Tensor, ...]:
    lse = _lse(told, given)
    return _tiles.tangent_of_tangent(told.call, given.x, lse, given.dot, given.by, given.dot_by)


def second(told: Told, given: Given) -> tuple[Tensor, ...]:
    lse = _lse(told, given)
    return _tiles.second(told.call, given.x, lse, given.d, given.d_dot, given.dot, told.needs)


def double(told: Told, given: Given) -> tuple[Tensor, ...]:
    lse = _lse(told, given)
    return _tiles.double(told.call, given.x, lse, given.d, given.dot, told.needs)


def _lse(told: Told, given: Given) -> Tensor | None:
    """What the forward pass left, but for an lse that a kernel did not return."""
    silent = told.call.fused and not _fused.returns_lse(given.x.Q)
    return None if silent else given.known.lse
