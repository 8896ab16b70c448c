"""A layer of :mod:`gradderiv.checks.mutants` as people write one: a hand-written ``torch.autograd.Function``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.catalog import Rule

N, D, H = 8, 32, 4  # tokens, width, heads: the case of the published figures

ARGUMENTS: dict[str, tuple[int, ...]] = {
    "X": (N, D),
    **dict.fromkeys(("W_Q", "W_K", "W_V", "W_O"), (D, D)),
    **dict.fromkeys(("b_Q", "b_K", "b_V", "b_O"), (D,)),
}
OPTIONS = {"n_heads": H}

Layer = Callable[..., Tensor]


class Handwritten(torch.autograd.Function):
    """The rule's value forwards, the rule's gradients backwards."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, *tensors: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(*tensors)
        return rule.value(dict(zip(ARGUMENTS, tensors, strict=True)), OPTIONS)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (dY,) = cotangents
        gradients = ctx.rule.gradients(dict(zip(ARGUMENTS, ctx.saved_tensors, strict=True)), OPTIONS, dY)
        return (None, *(gradients[name] for name in ARGUMENTS))


def layer_of(rule: Rule) -> Layer:
    """Y = layer(X, W_Q, W_K, W_V, W_O, b_Q, b_K, b_V, b_O), differentiated by the rule."""

    def layer(*tensors: Tensor) -> Tensor:
        Y: Tensor = Handwritten.apply(rule, *tensors)
        return Y

    return layer


def draw(scale: float, seed: int) -> list[Tensor]:
    """X ~ N(0, 1), weights and biases ~ N(0, scale²), float64."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64) * (1.0 if name == "X" else scale)
        for name, shape in ARGUMENTS.items()
    ]
