"""Attention as a PyTorch function whose every derivative is a loop over tiles: n_q × n_k numbers are never held.

    Value     O, lse = f(x)              jvp  Tangent(x, ẋ)            backward  Gradient(x, d)
    Tangent   f_jvp(x, ẋ)                jvp  Twice(x, ẋ, x′, ẋ′)      backward  along ẋ  Gradient(x, w),   along x  Second(x, w, ẇ = 0, ẋ)
    Gradient  f_vjp(x, d)                jvp  Second(x, d, ḋ, ẋ)       backward  Double(x, d, u)
    Second    f_vjp_jvp(x, d, ḋ, ẋ)      jvp, backward  of third order
    Double    f_jvp(x, u), f_vjp_jvp(x, d, ḋ = 0, u)     likewise
    Twice     f_jvp_jvp(x, ẋ, x′, ẋ′)    likewise

Pearlmutter 1994. What is of third order is PyTorch's derivative of the tile's formula on one tile that has all rows: it holds n_q × n_k numbers.
Under ``vmap`` the mapped axis becomes one more leading axis. O and lse, which the forward pass leaves, spare the derivatives a pass over the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd import Function

from gradderiv.functional import _fused, _whole
from gradderiv.functional._autocast import in_one_dtype
from gradderiv.functional._given import (
    ENDS,
    NAMES,
    Given,
    Told,
    double,
    gradient,
    second,
    tangent,
    tangent_of_tangent,
    value,
)
from gradderiv.functional._mapped import mapped, run
from gradderiv.functional._nested import ordinary, outer_tangents, primal
from gradderiv.functional._tiles import VARIABLES, Call, Inputs, Needs
from gradderiv.rules.tile import Dots, Outputs


class Attention(Function):
    """What all of them share. They take :class:`Told`, and the tensors of :class:`Given` in their order."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.told, *tensors = inputs
        _keep(ctx, tensors)

    @classmethod
    def of(cls, told: Told, given: Given) -> Any:
        return cls.apply(told, *given.flat())


def _made_of(formula: Callable[[Told, Given], Any], beyond: _whole.Formula | None = None) -> Any:
    """A function whose forward is the formula, also under ``vmap``; ``beyond``: the same without tiles, where PyTorch finds the derivatives."""

    def made(function: Any) -> Any:
        def forward(told: Told, *tensors: Any) -> Any:
            return run(formula, function, told, tensors)

        def vmap(info: Any, dims: Any, told: Told, *tensors: Any) -> Any:
            return mapped(function, told, dims[1:], info.batch_size, Given.of(tensors))

        function.forward, function.vmap = staticmethod(forward), staticmethod(vmap)
        if beyond is not None:
            function.jvp = staticmethod(lambda ctx, told_dot, *dots: _beyond_jvp(beyond, ctx, dots))
            function.backward = staticmethod(lambda ctx, *w: _beyond_vjp(beyond, ctx, w))
        return function

    return made


class Fused(Function):
    """O of a fused kernel, and no more: what most calls are. In the old style, without ``setup_context``, for which PyTorch reads the signature in every call; so not for ``torch.func``."""

    @staticmethod
    def forward(ctx: Any, call: Call, Q: Tensor, K: Tensor, V: Tensor, bias: Any, mask: Any) -> Any:
        O, lse = _fused.value(call, Inputs(Q, K, V, bias, None, mask))
        ctx.call = call
        ctx.save_for_backward(Q, K, V, O, lse, bias, mask)
        ctx.save_for_forward(Q, K, V, O, lse, bias, mask)
        return O

    @staticmethod
    def jvp(ctx: Any, call_dot: None, *dots: Any) -> Any:
        given = Fused._given(ctx)
        x = Inputs(*(None if t is None else primal(t) for t in given.x))  # type: ignore[arg-type]
        return Tangent.of(Told(ctx.call), given._replace(x=x, dot=Dots(*dots[:4])))[0]

    @staticmethod
    def backward(ctx: Any, dO: Tensor) -> Any:
        _, of_Q, of_K, of_V, of_bias, _ = ctx.needs_input_grad
        if not of_bias and ordinary(dO):
            Q, K, V, O, lse, bias, mask = ctx.saved_tensors
            return None, *_fused.gradient(ctx.call, Inputs(Q, K, V, bias, None, mask), O, lse, dO), None, None
        needs = (of_Q, of_K, of_V, of_bias)
        told, given = Told(ctx.call, (*needs, False)), Fused._given(ctx)._replace(d=Outputs(dO))
        found = iter(Gradient.of(told, given))
        return None, *(next(found) if need else None for need in needs), None

    @staticmethod
    def _given(ctx: Any) -> Given:
        Q, K, V, O, lse, bias, mask = ctx.saved_tensors
        return Given(Inputs(Q, K, V, bias, None, mask), Outputs(O.detach(), lse.detach()))


@_made_of(value)
class Value(Attention):
    """O, lse and, where they are asked for, the weights."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.told, *x = inputs
        O, lse, *_ = output
        _keep(ctx, (*x, O if ctx.told.call.fused else None, lse))  # tiles do not read O

    @staticmethod
    def jvp(ctx: Any, told_dot: None, *dots: Any) -> Any:
        with outer_tangents(True):
            given = _kept(ctx, primal)
            return Tangent.of(ctx.told, given._replace(dot=Dots(*dots[: len(VARIABLES)])))

    @staticmethod
    def backward(ctx: Any, *d: Any) -> Any:
        given, needs = _kept(ctx), ctx.needs_input_grad[1 : len(VARIABLES) + 1]
        if all(t is None for t in d):
            return _spread({}, len(Inputs._fields))
        # what is found from x is no way for a gradient of its own
        known = Outputs(*(None if t is None else t.detach() for t in given.known))
        given = given._replace(known=known, d=Outputs(*d))
        told = ctx.told._replace(needs=needs)
        plain = ordinary(given.x.Q, *(t for t in d if t is not None))
        found = _alone(told, given) if plain else Gradient.of(told, given)
        return _spread(dict(zip(_places(needs, 0), found, strict=True)), len(Inputs._fields))


@_made_of(tangent)
class Tangent(Attention):
    """The tangents of O, lse and the weights."""

    @staticmethod
    def jvp(ctx: Any, told_dot: None, *dots: Any) -> Any:
        with outer_tangents(True):
            by = Given.of(dots)
            given = _kept(ctx, primal)._replace(by=Dots(*by.x[: len(VARIABLES)]), dot_by=by.dot)
            return Twice.of(ctx.told, given)

    @staticmethod
    def backward(ctx: Any, *w: Any) -> Any:
        given = _kept(ctx)._replace(d=Outputs(*w))
        needs = Given.of(ctx.needs_input_grad[1:])
        along = tuple(map(bool, needs.dot))
        of_x = tuple(map(bool, needs.x[: len(VARIABLES)]))
        found: dict[int, Tensor] = {}
        if any(of_x):
            told, places = ctx.told._replace(needs=of_x), _places(of_x, 0)
            found |= dict(zip(places, Second.of(told, given), strict=True))
        if any(along):
            told, places = ctx.told._replace(needs=along), _places(along, ENDS[Given._fields.index("dot")])
            found |= dict(zip(places, Gradient.of(told, given._replace(dot=Dots())), strict=True))
        return _spread(found)


@_made_of(tangent_of_tangent, _whole.tangent_of_tangent)
class Twice(Attention):
    """The tangents of the tangents."""


@_made_of(gradient)
class Gradient(Attention):
    """The gradients that are needed."""

    @staticmethod
    def jvp(ctx: Any, told_dot: None, *dots: Any) -> Any:
        with outer_tangents(True):
            dot = Given.of(dots)
            given = _kept(ctx, primal)._replace(d_dot=dot.d, dot=Dots(*dot.x[: len(VARIABLES)]))
            return Second.of(ctx.told, given)

    @staticmethod
    def backward(ctx: Any, *u: Any) -> Any:
        given, needs = _kept(ctx), Given.of(ctx.needs_input_grad[1:])
        along = dict(
            zip((n for n, need in zip(VARIABLES, ctx.told.needs, strict=True) if need), u, strict=True)
        )
        of_x = tuple(map(bool, needs.x[: len(VARIABLES)]))
        found = Double.of(ctx.told._replace(needs=of_x), given._replace(dot=Dots(**along)))
        outputs = len(found) - sum(of_x)
        places = dict(zip(_places(of_x, 0), found[outputs:], strict=True))
        places |= {ENDS[2] + i: t for i, t in enumerate(found[:outputs]) if given.d[i] is not None}
        return _spread(places)


@_made_of(second, _whole.second)
class Second(Attention):
    """The tangents of the gradients that are needed."""


@_made_of(double, _whole.double)
class Double(Attention):
    """The gradients of ⟨u, Gradient⟩: of the cotangents of O, lse and the weights, and of the variables that need one."""


# ---------------------------------------------------------------- what is kept and handed on


def _keep(ctx: Any, tensors: Sequence[Tensor | None]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _kept(ctx: Any, change: Callable[[Tensor], Tensor] = lambda t: t) -> Given:
    tensors = [None if t is None else change(t) for t in ctx.saved_tensors]
    return Given.of(tensors)


def _alone(told: Told, given: Given) -> tuple[Tensor, ...]:
    with in_one_dtype(given.x.Q):
        return gradient(told, given)


def _places(needs: Needs, begin: int) -> list[int]:
    return [begin + i for i, need in enumerate(needs) if need]


def _spread(places: dict[int, Tensor], count: int = len(NAMES)) -> tuple[Tensor | None, ...]:
    """None for what is told, and for every tensor without a gradient."""
    return (None, *(places.get(i) for i in range(count)))


def _beyond_jvp(formula: _whole.Formula, ctx: Any, dots: Sequence[Tensor | None]) -> Any:
    given = _kept(ctx, primal)
    with outer_tangents(True), in_one_dtype(given.x.Q):
        return _whole.jvp(formula, ctx.told, given.flat(), dots)


def _beyond_vjp(formula: _whole.Formula, ctx: Any, w: Sequence[Tensor | None]) -> Any:
    given = _kept(ctx)
    with in_one_dtype(given.x.Q):
        found = _whole.vjp(formula, ctx.told, given.flat(), w, ctx.needs_input_grad[1:])
    return _spread(found)
