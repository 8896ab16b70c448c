"""The derivatives on one tile that has all rows: plain formulas without a loop, for PyTorch to differentiate to any order.

softmax(S) V and its derivatives, as :mod:`gradderiv.rules.tile` has them
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradderiv.functional._dropout import kept
from gradderiv.functional._given import KNOWN, Given, Told
from gradderiv.functional._tiles import VARIABLES, Call, Inputs, Needs, computed_in
from gradderiv.rules import tile as rules
from gradderiv.rules.tile import Dots, Outputs, Tile

Formula = Callable[[Call, Given, Needs], tuple[Tensor, ...]]


def jvp(formula: Formula, told: Told, given: Sequence[Any], dots: Sequence[Tensor | None]) -> Any:
    """The formula's tangents along those of its tensors."""
    moved = [i for i, t in enumerate(dots) if t is not None and i not in KNOWN]
    function = _of_some(formula, told, given, moved)
    return torch.func.jvp(function, tuple(given[i] for i in moved), tuple(dots[i] for i in moved))[1]


def vjp(
    formula: Formula, told: Told, given: Sequence[Any], w: Sequence[Tensor | None], needs: Sequence[bool]
) -> dict[int, Tensor]:
    """The gradients of those of its tensors that need one, by their places."""
    needed = [i for i, need in enumerate(needs) if need and i not in KNOWN]
    function = _of_some(formula, told, given, needed)
    out, pull, *_ = torch.func.vjp(function, *(given[i] for i in needed))
    found = pull(tuple(torch.zeros_like(o) if t is None else t for o, t in zip(out, w, strict=True)))
    return dict(zip(needed, found, strict=True))


def _of_some(formula: Formula, told: Told, given: Sequence[Any], some: Sequence[int]) -> Any:
    """The formula as a function of some of its tensors. What the forward pass left is found again: it depends on them."""

    def function(*tensors: Tensor) -> Any:
        now = list(given)
        for i, t in zip(some, tensors, strict=True):
            now[i] = t
        return formula(told.call, Given.of(now), told.needs)

    return function


# ---------------------------------------------------------------- the formulas


def tangent_of_tangent(call: Call, given: Given, needs: Needs) -> tuple[Tensor, ...]:
    """The tangents of Ȯ, (lse)˙, and of the weights' tangent where it is asked for."""
    x, directions = given.x, (_wide(given.x, t) for t in (given.dot, given.by, given.dot_by))
    return _outputs(call, x, rules.tile_jvp_jvp(_tile(call, x), None, *directions))


def second(call: Call, given: Given, needs: Needs) -> tuple[Tensor, ...]:
    """The tangents of the gradients that are needed."""
    x, d, d_dot, dot = (
        given.x,
        _columns(given.x, given.d),
        _columns(given.x, given.d_dot),
        _wide(given.x, given.dot),
    )
    return _gradients(x, needs, rules.tile_vjp_jvp(d, _tile(call, x), None, d_dot, dot))


def double(call: Call, given: Given, needs: Needs) -> tuple[Tensor, ...]:
    """Both halves of the double backward."""
    x = given.x
    moved, turned = rules.tile_double(_columns(x, given.d), _tile(call, x), None, _wide(x, given.dot))
    return (*_outputs(call, x, moved), *_gradients(x, needs, turned))


def _tile(call: Call, x: Inputs) -> Tile:
    n_q, n_k = x.Q.shape[-2], x.K.shape[-2]
    band = torch.ones(n_q, n_k, dtype=torch.bool, device=x.Q.device)
    band = band if call.high is None else band.tril(call.high)
    band = band if call.low is None else band.triu(call.low)
    mask = band if x.mask is None else band & x.mask
    D = None
    if x.seeds is not None:
        keep = kept(x.seeds, slice(0, n_q), slice(0, n_k), call.dropout_p)
        D = keep.to(computed_in(x.Q.dtype)) * call.kept_scale
    Q, K, V, bias, sinks = _wide(x, x[: len(VARIABLES)])
    return Tile(Q, K, V, bias, sinks, mask, D, call.scale, call.softcap)  # type: ignore[arg-type]


def _wide(x: Inputs, tensors: Any) -> Dots:
    return Dots(*(None if t is None else t.to(computed_in(x.Q.dtype)) for t in tensors))


def _columns(x: Inputs, d: Outputs) -> Outputs:
    """lse (..., n_q, 1)"""
    O, lse, W = _wide(x, d)[:3]
    return Outputs(O, None if lse is None else lse.unsqueeze(-1), W)


def _outputs(call: Call, x: Inputs, found: Outputs) -> tuple[Tensor, ...]:
    assert found.O is not None
    assert found.lse is not None
    assert found.W is not None
    outputs = (found.O.to(x.Q.dtype), found.lse.squeeze(-1))
    return (*outputs, found.W.to(x.Q.dtype)) if call.weights else outputs


def _gradients(x: Inputs, needs: Needs, found: Dots) -> tuple[Tensor, ...]:
    """Those that are needed, each summed over what its variable is shared by."""
    named = zip(x[: len(VARIABLES)], found, needs, strict=True)
    return tuple(
        torch.zeros_like(t) if g is None else g.sum_to_size(t.shape).to(t.dtype)
        for t, g, need in named
        if need and t is not None
    )
