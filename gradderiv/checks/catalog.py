"""The rules under one interface: what an oracle asks of a rule, and where it finds it.

A :class:`Rule` maps named arguments to a value, to the gradient of each argument, to the tangent of the value and to the tangent
of the gradients. The wrong-on-purpose rules of :mod:`gradderiv.checks.mutants` have the same interface, so that
every oracle runs on them unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradderiv.rules import attention as _attention
from gradderiv.rules import blockdiag as _blockdiag
from gradderiv.rules import linear as _linear
from gradderiv.rules import multihead as _multihead
from gradderiv.rules import softmax as _softmax

Tensors = Mapping[str, Tensor]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """A rule as the oracles see it; ``tangent`` and ``second`` are None where the rule has none.

    value(args, options) → Y
    gradients(args, options, dY) → {argument: gradient}
    tangent(args, options, dots) → Ẏ
    second(args, options, dY, dY_dot, dots) → {argument: tangent of its gradient}
    """

    name: str
    value: Callable[[Tensors, Options], Tensor]
    gradients: Callable[[Tensors, Options, Tensor], dict[str, Tensor]]
    tangent: Callable[[Tensors, Options, Tensors], Tensor] | None = None
    second: Callable[[Tensors, Options, Tensor, Tensor, Tensors], dict[str, Tensor]] | None = None


def from_functions(
    name: str,
    f: Callable[..., Any],
    jvp: Callable[..., Any],
    vjp: Callable[..., Any],
    vjp_jvp: Callable[..., Any],
) -> Rule:
    """A rule written as the four functions of :mod:`gradderiv.rules`."""

    def value(args: Tensors, options: Options) -> Tensor:
        return f(**args, **options)[0]

    def gradients(args: Tensors, options: Options, dY: Tensor) -> dict[str, Tensor]:
        _, saved = f(**args, **options)
        return _named(vjp(dY, saved))

    def tangent(args: Tensors, options: Options, dots: Tensors) -> Tensor:
        _, saved = f(**args, **options)
        return jvp(saved, **_dotted(dots))

    def second(
        args: Tensors, options: Options, dY: Tensor, dY_dot: Tensor, dots: Tensors
    ) -> dict[str, Tensor]:
        _, saved = f(**args, **options)
        return _named(vjp_jvp(dY, saved, dY_dot, **_dotted(dots)))

    return Rule(name, value, gradients, tangent, second)


def _named(gradients: Any) -> dict[str, Tensor]:
    return {name: g for name, g in gradients._asdict().items() if g is not None}


def _dotted(dots: Tensors) -> dict[str, Tensor]:
    return {f"{name}_dot": t for name, t in dots.items()}


def _linear_second(*args: Any, b_dot: Any = None, **dots: Any) -> Any:
    return _linear.linear_vjp_jvp(*args, **dots)  # no gradient depends on b


def _blockdiag_value(args: Tensors, options: Options) -> Tensor:
    layer: Callable[..., Tensor] = _blockdiag.layer
    return layer(**args, **options)


def _blockdiag_gradients(args: Tensors, options: Options, dY: Tensor) -> dict[str, Tensor]:
    return {name: getattr(_blockdiag, f"grad_{name}")(**args, dY=dY, **options) for name in args}


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        from_functions("linear", _linear.linear, _linear.linear_jvp, _linear.linear_vjp, _linear_second),
        from_functions(
            "softmax", _softmax.softmax, _softmax.softmax_jvp, _softmax.softmax_vjp, _softmax.softmax_vjp_jvp
        ),
        from_functions(
            "attention",
            _attention.attention,
            _attention.attention_jvp,
            _attention.attention_vjp,
            _attention.attention_vjp_jvp,
        ),
        from_functions(
            "multihead",
            _multihead.multihead,
            _multihead.multihead_jvp,
            _multihead.multihead_vjp,
            _multihead.multihead_vjp_jvp,
        ),
        Rule("blockdiag", _blockdiag_value, _blockdiag_gradients),
    )
}
