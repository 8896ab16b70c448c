"""A random program with one entry of one gradient doubled or dropped."""

from __future__ import annotations

import random
from typing import Any

import torch
from programs import Program
from torch import Tensor


class Spoilt(torch.autograd.Function):
    """The identity, with a backward that multiplies by ``factors``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factors: Tensor) -> Tensor:
        ctx.factors = factors
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g * ctx.factors, None


def spoilt(program: Program) -> tuple[Any, str] | None:
    """The program with one entry of one gradient doubled or dropped, and its source; None where float64 sees no difference wherever it is tried."""
    chance = random.Random(program.seed)
    places = [k for k, line in enumerate(program.lines) if line.spoils]
    chance.shuffle(places)
    for place in places[:6]:
        factor, choice = chance.choice((0.0, 2.0)), chance.random()

        def spoil(x: Tensor, factor: float = factor, choice: float = choice) -> Tensor:
            factors = torch.ones(x.shape, dtype=x.dtype)
            factors.view(-1)[int(choice * x.numel())] = factor
            return Spoilt.apply(x, factors)

        wrong, right = program.function(place, spoil), program.function(place, lambda x: Spoilt.apply(x, 1.0))
        if _differ(program, wrong, right):
            return wrong, f"# one entry times {factor}\n{program.source(place)}"
    return None


def _differ(program: Program, *functions: Any) -> bool:
    """Whether their gradients do in float64, at the program's inputs and random cotangents."""
    found = []
    for function in functions:
        torch.manual_seed(program.seed)
        inputs = [x.requires_grad_() for x in program.inputs(torch.float64)]
        try:
            outputs = _listed(function(*inputs))
            generator = torch.Generator().manual_seed(program.seed)
            total = sum((y * torch.randn(y.shape, generator=generator)).sum() for y in outputs)
            found.append(torch.autograd.grad(total, inputs))
        except RuntimeError:  # a clone where the program relied on a view
            return False
    return any(bool(((a - b).abs() > 1e-6 * (1 + a.abs())).any()) for a, b in zip(*found, strict=True))


def _listed(outputs: Any) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, tuple) else [outputs]
