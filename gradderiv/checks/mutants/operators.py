"""The rules of the catalogue with a function of one of their operators exchanged.

A rule with options is a list of steps (:mod:`gradderiv.rules.steps`), each of which names its operator. What is exchanged is named like it:

    "rope.f"          the value, as a plain function; the derivatives are those of the wrong value
    "rope.vjp"        the gradient; its tangent is that of the wrong gradient
    "rope.jvp"        the tangent alone
    "rope.vjp_jvp"    the second order alone
    "steps"           the list of steps: their order, or what they read

Everything else is the rule that ships. No table is changed: the steps of a call are taken as the rule has made them, exchanged, and run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.catalog import RULES, Rule, from_functions
from gradderiv.numbers.dual import Dual, DualTensor
from gradderiv.rules import attend as _attend
from gradderiv.rules import embedding as _embedding
from gradderiv.rules import fused as _fused
from gradderiv.rules import multihead as _multihead
from gradderiv.rules import transformer as _transformer
from gradderiv.rules.activation import ACTIVATION
from gradderiv.rules.cache import APPEND
from gradderiv.rules.dropout import DROPOUT
from gradderiv.rules.entrywise import ADD, MULTIPLY
from gradderiv.rules.fills import MASKED_FILL
from gradderiv.rules.fused import SPLIT
from gradderiv.rules.graph import GRAPH
from gradderiv.rules.heads import REPEAT_HEADS
from gradderiv.rules.layer_norm import LAYER_NORM
from gradderiv.rules.matmul import MATMUL
from gradderiv.rules.rms_norm import RMS_NORM
from gradderiv.rules.rope import ROPE
from gradderiv.rules.score_bias import ALIBI, BIAS, RELATIVE
from gradderiv.rules.softcap import SOFTCAP
from gradderiv.rules.softmax_lse import SOFTMAX_LSE
from gradderiv.rules.steps import Operator, Step, Trace, run, run_jvp, run_vjp, run_vjp_jvp, step
from gradderiv.rules.temperature import TEMPERATURE

Replaced = Mapping[str, Callable[..., Any]]

# ---------------------------------------------------------------- the right operators


def _beside(*outputs: Tensor, names: tuple[str, ...]) -> tuple[Tensor, Any]:
    """The outputs of attention beside one another: what the oracles compare is one tensor."""
    given = zip(outputs, names, strict=True)
    columns = [t.unsqueeze(-1) if name == "lse" else t for t, name in given]
    wide = torch.cat([c.to(outputs[0].dtype) for c in columns], -1)
    return wide, (names, [c.shape[-1] for c in columns])


def _apart(dY: Tensor, saved: Any) -> tuple[Tensor, ...]:
    """The cotangent of each."""
    names, widths = saved
    parts = zip(dY.split(widths, -1), names, strict=True)
    return tuple(d.squeeze(-1) if name == "lse" else d for d, name in parts)


OUTPUTS = Operator(
    _beside,
    lambda saved, *dots: _beside(*dots, names=saved[0])[0],
    _apart,
    lambda dY, saved, dY_dot, *dots: _apart(dY_dot, saved),
)

EMBEDDING = Operator(
    _embedding.embedding,
    _embedding.embedding_jvp,
    _embedding.embedding_vjp,
    lambda dX, saved, dX_dot, *_: _embedding.embedding_vjp_jvp(dX, saved, dX_dot),
)

OPERATORS: dict[str, Operator] = {
    "split": SPLIT, "rms_norm": RMS_NORM, "rope": ROPE, "cache": APPEND, "repeat": REPEAT_HEADS,
    "temperature": TEMPERATURE, "softcap": SOFTCAP, "alibi": ALIBI, "t5": RELATIVE, "bias": BIAS, "fill": MASKED_FILL,
    "softmax": SOFTMAX_LSE, "dropout": DROPOUT, "matmul": MATMUL, "outputs": OUTPUTS, "embedding": EMBEDDING,
    "layer_norm": LAYER_NORM, "activation": ACTIVATION, "add": ADD, "multiply": MULTIPLY, "graph": GRAPH,
}  # fmt: skip

# ---------------------------------------------------------------- wrong ones


def spoiled(right: Operator, which: str, wrong: Callable[..., Any]) -> Operator:
    """The operator with this function for one of its own; what follows from it follows."""
    if which == "f":
        return of_value(wrong)
    return of_gradient(right, wrong) if which == "vjp" else right._replace(**{which: wrong})


def of_value(f: Callable[..., Any]) -> Operator:
    """The derivatives of whatever f is: autograd, on dual numbers for the second order."""

    def value(*given: Tensor | None, **static: Any) -> tuple[Any, Any]:
        return f(*given, **static), (given, static)

    def tangent(saved: Any, *dots: Tensor | None) -> Any:
        given, static = saved
        return _tangent(f(*_moving(given, dots), **static))

    def cotangent(d: Any, saved: Any) -> tuple[Tensor | None, ...]:
        given, static = saved
        with torch.enable_grad():
            leaves = [None if x is None else x.detach().requires_grad_() for x in given]
            out = f(*leaves, **static)
            found = iter(
                torch.autograd.grad(out, [x for x in leaves if x is not None], d, materialize_grads=True)
            )
        return tuple(None if x is None else next(found) for x in leaves)

    def second(d: Any, saved: Any, d_dot: Any, *dots: Tensor | None) -> tuple[Tensor | None, ...]:
        given, static = saved
        found = cotangent(_moving(d, d_dot), (_moving(given, dots), static))
        return tuple(map(_tangent, found))

    return Operator(value, tangent, cotangent, second)


def of_gradient(right: Operator, vjp: Callable[..., tuple[Tensor | None, ...]]) -> Operator:
    """The right value with this gradient, and the tangent of this gradient, by dual numbers through both."""

    def value(*given: Tensor | None, **static: Any) -> tuple[Any, Any]:
        out, saved = right.f(*given, **static)
        return out, (saved, given, static)

    def second(d: Any, saved: Any, d_dot: Any, *dots: Tensor | None) -> tuple[Tensor | None, ...]:
        _, given, static = saved
        _, moving = right.f(*_moving(given, dots), **static)
        return tuple(map(_tangent, vjp(_moving(d, d_dot), moving)))

    return Operator(
        value,
        lambda saved, *dots: right.jvp(saved[0], *dots),
        lambda d, saved: vjp(d, saved[0]),
        second,
    )


def _moving(x: Any, dot: Any) -> Any:
    """Dual numbers: of a tensor with its tangent, of tuples, and of what is no variable itself."""
    if isinstance(x, tuple) and isinstance(dot, tuple):
        return tuple(map(_moving, x, dot))
    return x if dot is None else Dual().make(x, dot)


def _tangent(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(map(_tangent, x))
    return x.tangent if isinstance(x, DualTensor) else None if x is None else torch.zeros_like(x)


# ---------------------------------------------------------------- rules


def rule(name: str, replaced: Replaced) -> Rule:
    """The rule of that name with these functions exchanged; with none, that of the catalogue.

    Raises:
        KeyError: no such operator, no such function of it, or two of one operator: a gradient belongs to one value.
    """
    if not replaced:
        return RULES[name]
    exchanged: dict[Operator, Operator] = {}
    for key in replaced.keys() - {"steps"}:
        operator, _, which = key.partition(".")
        right = OPERATORS.get(operator)
        if right is None or which not in Operator._fields:
            raise KeyError(f"no such function of an operator: {key}")
        if right in exchanged:
            raise KeyError(f"two functions of one operator: {', '.join(sorted(replaced))}")
        exchanged[right] = spoiled(right, which, replaced[key])
    return _composed(name, exchanged, replaced.get("steps", list))


def _composed(
    name: str, exchanged: Mapping[Operator, Operator], wiring: Callable[[list[Step]], list[Step]]
) -> Rule:
    def f(**given: Any) -> tuple[Tensor, Trace]:
        right = TRACES[name](**given)
        steps = [s._replace(operator=exchanged.get(s.operator, s.operator)) for s in right.steps]
        trace = run(wiring(steps), right.given)
        return trace.values["Y"], trace

    return from_functions(
        name,
        f,
        lambda saved, **dots: run_jvp(saved, _attend.undotted(dots))["Y"],
        lambda dY, saved: _attend.gradients(run_vjp({"Y": dY}, saved)),
        lambda dY, saved, dY_dot, **dots: _attend.gradients(
            run_vjp_jvp({"Y": dY}, saved, {"Y": dY_dot}, _attend.undotted(dots))
        ),
    )


def _alone(operator: Operator, wires: str) -> Callable[..., Trace]:
    """A rule that is one operator, as one step."""

    def trace(**given: Any) -> Trace:
        reads = wires.partition(" -> ")[0].split()
        static = {name: value for name, value in given.items() if name not in reads}
        return run([step(operator, wires, **static)], {name: given.get(name) for name in reads})

    return trace


def _attended(*, outputs: tuple[str, ...] = ("O",), fill: Any = None, **given: Any) -> Trace:
    """With one more step, after which the outputs stand beside one another."""
    if fill is not None:
        given["fill"] = fill._replace(constant=fill.constant.to(given["Q"].dtype))
    trace = _attend.attend(**given)[1]
    names = " ".join("P" if name == "weights" else name for name in outputs)
    return trace._replace(steps=(*trace.steps, step(OUTPUTS, f"{names} -> Y", names=outputs)))


TRACES: dict[str, Callable[..., Trace]] = {
    "rope": _alone(ROPE, "X cos sin -> Y"),
    "rms_norm": _alone(RMS_NORM, "X gain -> Y"),
    "matmul": _alone(MATMUL, "A B -> Y"),
    "embedding": _alone(EMBEDDING, "table positions -> Y"),
    "attend": _attended,
    "multihead": lambda **given: _multihead.multihead(**given)[1],
    "fused": lambda **given: _fused.fused(**given)[1],
    "layer_norm": _alone(LAYER_NORM, "X gain shift -> Y"),
    "activation": _alone(ACTIVATION, "X -> Y"),
    "graph": _alone(GRAPH, "Q K V -> Y"),
    "transformer": lambda **given: _transformer.transformer_layer(**given)[1],
}
