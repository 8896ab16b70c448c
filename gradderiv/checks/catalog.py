"""The rules under one interface: what an oracle asks of a rule, and where it finds it.

A :class:`Rule` maps named arguments to a value, to the gradient of each argument, to the tangent of the value and to the tangent
of the gradients. The wrong-on-purpose rules of :mod:`gradderiv.checks.mutants` have the same interface, so that
every oracle runs on them unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradderiv.rules import activation as _activation
from gradderiv.rules import attend as _attend
from gradderiv.rules import attention as _attention
from gradderiv.rules import blockdiag as _blockdiag
from gradderiv.rules import embedding as _embedding
from gradderiv.rules import fused as _fused
from gradderiv.rules import graph as _graph
from gradderiv.rules import layer_norm as _layer_norm
from gradderiv.rules import linear as _linear
from gradderiv.rules import matmul as _matmul
from gradderiv.rules import multihead as _multihead
from gradderiv.rules import rms_norm as _rms_norm
from gradderiv.rules import rope as _rope
from gradderiv.rules import softmax as _softmax
from gradderiv.rules import transformer as _transformer

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


def _embedding_second(
    dX: Any, saved: Any, dX_dot: Any, *, table_dot: Any = None, positions_dot: Any = None
) -> Any:
    return _embedding.embedding_vjp_jvp(dX, saved, dX_dot)  # no gradient depends on the tables


def beside(outputs: Any, names: tuple[str, ...]) -> Tensor:
    """Those outputs of attention beside one another, (..., n_q, d_v + n_k + 1): what the oracles compare is one tensor."""
    columns = {"O": outputs.O, "weights": outputs.weights, "lse": outputs.lse.unsqueeze(-1)}
    return torch.cat([columns[name].to(outputs.O.dtype) for name in names], -1)


def apart(dY: Tensor, saved: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The cotangent of each, under the name that attend_vjp has for it."""
    widths = {"O": saved.values["O"].shape[-1], "weights": saved.values["P"].shape[-1], "lse": 1}
    parts = dict(zip(names, dY.split([widths[name] for name in names], -1), strict=True))
    return {f"d{name}": d.squeeze(-1) if name == "lse" else d for name, d in parts.items()}


def _attended(args: Tensors, options: Options) -> tuple[Any, Any, tuple[str, ...]]:
    """The outputs that ``options["outputs"]`` names, O alone where it is not there."""
    rest = {name: value for name, value in options.items() if name != "outputs"}
    if "fill" in rest:
        rest["fill"] = rest["fill"]._replace(constant=rest["fill"].constant.to(args["Q"].dtype))
    attend: Callable[..., Any] = _attend.attend
    outputs, saved = attend(**args, **rest)
    return outputs, saved, options.get("outputs", ("O",))


def _attend_value(args: Tensors, options: Options) -> Tensor:
    outputs, _, names = _attended(args, options)
    return beside(outputs, names)


def _attend_gradients(args: Tensors, options: Options, dY: Tensor) -> dict[str, Tensor]:
    _, saved, names = _attended(args, options)
    return _named(_attend.attend_vjp(**{"dO": None, **apart(dY, saved, names)}, saved=saved))


def _attend_tangent(args: Tensors, options: Options, dots: Tensors) -> Tensor:
    _, saved, names = _attended(args, options)
    return beside(_attend.attend_jvp(saved, **_dotted(dots)), names)


def _attend_second(
    args: Tensors, options: Options, dY: Tensor, dY_dot: Tensor, dots: Tensors
) -> dict[str, Tensor]:
    _, saved, names = _attended(args, options)
    d: dict[str, Any] = {"dO": None, **apart(dY, saved, names)}
    d_dot: dict[str, Any] = {"dO_dot": None, **_dotted(apart(dY_dot, saved, names))}
    return _named(_attend.attend_vjp_jvp(saved=saved, **d, **d_dot, **_dotted(dots)))


def _blockdiag_value(args: Tensors, options: Options) -> Tensor:
    layer: Callable[..., Tensor] = _blockdiag.layer
    return layer(**args, **options)


def _blockdiag_gradients(args: Tensors, options: Options, dY: Tensor) -> dict[str, Tensor]:
    return {name: getattr(_blockdiag, f"grad_{name}")(**args, dY=dY, **options) for name in args}


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        from_functions(
            "linear", _linear.linear, _linear.linear_jvp, _linear.linear_vjp, _linear.linear_vjp_jvp
        ),
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
        from_functions(
            "matmul", _matmul.matmul, _matmul.matmul_jvp, _matmul.matmul_vjp, _matmul.matmul_vjp_jvp
        ),
        from_functions(
            "embedding",
            _embedding.embedding,
            _embedding.embedding_jvp,
            _embedding.embedding_vjp,
            _embedding_second,
        ),
        from_functions("rope", *_rope.ROPE),
        from_functions("rms_norm", *_rms_norm.RMS_NORM),
        from_functions("layer_norm", *_layer_norm.LAYER_NORM),
        from_functions("activation", *_activation.ACTIVATION),
        Rule("attend", _attend_value, _attend_gradients, _attend_tangent, _attend_second),
        from_functions("fused", _fused.fused, _fused.fused_jvp, _fused.fused_vjp, _fused.fused_vjp_jvp),
        from_functions(
            "transformer",
            _transformer.transformer_layer,
            _transformer.transformer_layer_jvp,
            _transformer.transformer_layer_vjp,
            _transformer.transformer_layer_vjp_jvp,
        ),
        from_functions("graph", *_graph.GRAPH),
        Rule("blockdiag", _blockdiag_value, _blockdiag_gradients),
    )
}
