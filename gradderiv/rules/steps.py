"""A rule made of rules: a list of steps on named values, whose derivatives are those of its steps.

    value        out = f(in …)                        first step to last
    tangent      ouṫ = f_jvp(iṅ …)                    first step to last
    cotangent    d(in …) += f_vjp(d out)              last step to first
    second       d(in …)˙ += f_vjp_jvp(d out, …)      last step to first

A step says what it reads and what it writes: ``"X W_Q b_Q -> Q"``. A name may be written again (``"Q cos sin -> Q"``): what follows reads the new value. What
is read twice collects the sum of what its readers return. A name without a value is an argument that was not given.
"""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.rules._inputs import require


class Operator(NamedTuple):
    """A rule as its four functions.

    f(in …, **static) → (out, saved)     jvp(saved, iṅ …) → ouṫ     vjp(d out, saved) → (d in …)     vjp_jvp(d out, saved, d ouṫ, iṅ …) → (d in …)˙

    Where there are several outs, out, d out and their tangents are tuples.
    """

    f: Callable[..., tuple[Any, Any]]
    jvp: Callable[..., Any]
    vjp: Callable[..., tuple[Tensor | None, ...]]
    vjp_jvp: Callable[..., tuple[Tensor | None, ...]]


def linear_map(f: Callable[..., Any], transpose: Callable[..., Tensor]) -> Operator:
    """Y = A x:   Ẏ = A ẋ,   dx = Aᵀ dY,   dẋ = Aᵀ dẎ

    Of a map without parameters; ``transpose(dY, shape of x, **static)``.
    """

    def forward(x: Tensor, **static: Any) -> tuple[Any, Any]:
        return f(x, **static), (x.shape, static)

    def cotangent(dY: Any, saved: Any) -> tuple[Tensor]:
        shape, static = saved
        return (transpose(dY, shape, **static),)

    return Operator(
        forward,
        lambda saved, x_dot: f(x_dot, **saved[1]),
        cotangent,
        lambda dY, saved, dY_dot, x_dot: cotangent(dY_dot, saved),
    )


class Step(NamedTuple):
    """An operator, the names that it reads and writes, and what it is told that is no variable."""

    operator: Operator
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    static: Mapping[str, Any]


def step(operator: Operator, wires: str, **static: Any) -> Step:
    """``step(LINEAR, "X W_Q b_Q -> Q")``"""
    reads, _, writes = wires.partition(" -> ")
    return Step(operator, tuple(reads.split()), tuple(writes.split()), static)


class Trace(NamedTuple):
    """The steps that were run, what each of them saved, the arguments, and the last value under every name."""

    steps: tuple[Step, ...]
    saved: tuple[Any, ...]
    given: dict[str, Tensor]
    values: dict[str, Tensor]


def run(steps: Iterable[Step], given: Mapping[str, Tensor | None]) -> Trace:
    """out = f(in …), first step to last"""
    steps, saved = tuple(steps), []
    arguments = {name: x for name, x in given.items() if x is not None}
    values = dict(arguments)
    for s in steps:
        out, kept = s.operator.f(*map(values.get, s.reads), **s.static)
        values |= _named(s, out)
        # zeros for an output that nobody asks about need to know its shape
        saved.append((kept, out if len(s.writes) > 1 else None))
    return Trace(steps, tuple(saved), arguments, values)


def run_jvp(trace: Trace, dots: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """ouṫ = f_jvp(iṅ …), first step to last; an argument without a tangent stands still"""
    return _tangents(trace, dots)[-1]


def run_vjp(cotangents: Mapping[str, Tensor | None], trace: Trace) -> dict[str, Tensor]:
    """d(in …) += f_vjp(d out), last step to first; the gradient of every argument that was given"""
    d = {name: x for name, x in cotangents.items() if x is not None}
    for s, (kept, out) in zip(reversed(trace.steps), reversed(trace.saved), strict=True):
        of_out = _collected(s, d, out)
        if of_out is not None:
            _add(d, s.reads, s.operator.vjp(of_out, kept))
    return {name: d[name] if name in d else torch.zeros_like(x) for name, x in trace.given.items()}


def run_vjp_jvp(
    cotangents: Mapping[str, Tensor | None],
    trace: Trace,
    cotangent_dots: Mapping[str, Tensor | None],
    dots: Mapping[str, Tensor | None],
) -> dict[str, Tensor]:
    """d(in …)˙ += f_vjp_jvp(d out, …), last step to first; beside it d(in …), which it needs"""
    before = _tangents(trace, dots)
    d = {name: x for name, x in cotangents.items() if x is not None}
    d_dot = {name: torch.zeros_like(x) for name, x in d.items()}
    d_dot |= {name: x for name, x in cotangent_dots.items() if x is not None}
    d |= {name: torch.zeros_like(x) for name, x in d_dot.items() if name not in d}
    for i in reversed(range(len(trace.steps))):
        s, (kept, out) = trace.steps[i], trace.saved[i]
        of_out, of_out_dot = _collected(s, d, out), _collected(s, d_dot, out)
        if of_out is not None:
            if of_out_dot is None:  # a vjp_jvp that returned None: the gradient stands still
                several = len(s.writes) > 1
                of_out_dot = tuple(map(torch.zeros_like, of_out)) if several else torch.zeros_like(of_out)
            _add(d, s.reads, s.operator.vjp(of_out, kept))
            x_dots = map(before[i].get, s.reads)
            _add(d_dot, s.reads, s.operator.vjp_jvp(of_out, kept, of_out_dot, *x_dots))
    return {name: d_dot[name] if name in d_dot else torch.zeros_like(x) for name, x in trace.given.items()}


@functools.cache
def gradients_type(names: tuple[str, ...]) -> Any:
    """A named tuple with a field for each argument of a call."""
    make: Any = namedtuple
    return make("Gradients", names)


def _tangents(trace: Trace, dots: Mapping[str, Tensor | None]) -> list[dict[str, Tensor]]:
    """The tangent of every value as it stands before each step, and after the last."""
    for name in (name for name, t in dots.items() if t is not None):
        require(
            name in trace.given,
            f"a tangent needs an argument that was given: one of {', '.join(trace.given)}",
            f"{name}_dot=…",
            "another spelling, or the tangent of an option that is off",
            f"pass {name} to the forward, or no tangent for it",
        )
    given = {name: dots.get(name) for name in trace.given}
    now = {name: torch.zeros_like(trace.given[name]) if t is None else t for name, t in given.items()}
    before = []
    for s, (kept, _) in zip(trace.steps, trace.saved, strict=True):
        before.append(now)
        now = now | _named(s, s.operator.jvp(kept, *map(now.get, s.reads)))
    return [*before, now]


def _named(s: Step, out: Any) -> dict[str, Tensor]:
    return dict(zip(s.writes, out if len(s.writes) > 1 else (out,), strict=True))


def _collected(s: Step, d: dict[str, Tensor], out: Any) -> Any:
    """What the readers of a step's outputs have returned to them; None where nobody has."""
    found = [d.pop(name, None) for name in s.writes]
    if all(x is None for x in found):
        return None
    if len(found) == 1:
        return found[0]
    return tuple(torch.zeros_like(o) if x is None else x for x, o in zip(found, out, strict=True))


def _add(d: dict[str, Tensor], names: tuple[str, ...], gradients: Iterable[Tensor | None]) -> None:
    for name, g in zip(names, gradients, strict=True):  # one name may come twice
        if g is not None:
            d[name] = d[name] + g if name in d else g
