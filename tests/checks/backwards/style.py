"""What a hand-written backward is to the tests: a right version, inputs, and wrong versions with the gradients that each spoils."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

RIGHT = "right"


@dataclass(frozen=True)
class Wrong:
    """The same forward with a backward that is wrong in the gradients of ``arguments``; ``mistake`` names what was done."""

    function: Callable[..., Any]
    arguments: frozenset[str]
    mistake: str


@dataclass(frozen=True)
class Style:
    """One way of writing attention: ``inputs()`` are its arguments by name, in the order of the call."""

    name: str
    right: Callable[..., Any]
    inputs: Callable[[], dict[str, Any]]
    wrong: dict[str, Wrong]
    no_gradient: tuple[str, ...] = ()


def style(
    name: str,
    function: type[torch.autograd.Function],
    inputs: Callable[[], dict[str, Any]],
    wrong: Mapping[str, str],
    no_gradient: tuple[str, ...] = (),
) -> Style:
    """``function`` takes ``inputs`` and last the name of a mistake, or RIGHT. ``wrong``: mistake -> the arguments that it spoils."""
    ways = {
        way: Wrong(version(name, function, way), frozenset(spoilt.split()), way)
        for way, spoilt in wrong.items()
    }
    return Style(name, version(name, function, RIGHT), inputs, ways, no_gradient)


def version(name: str, function: type[torch.autograd.Function], way: str) -> Callable[..., Any]:
    """``function`` as one calls it: with its inputs, by position or all by name."""

    def attention(*inputs: Any, **named: Any) -> Any:
        return function.apply(*inputs, *named.values(), way)

    attention.__name__ = attention.__qualname__ = name if way == RIGHT else f"{name}, {way}"
    return attention


def draw(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Standard normal float64 leaves of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    return {n: x.requires_grad_() for n, x in drawn.items()}


def softmax_backward(dP: Tensor, P: Tensor, way: str) -> Tensor:
    """dS = P ∘ (dP - rowsum(P ∘ dP)), and the ways in which it is got wrong."""
    if way == "softmax-no-rowsum":
        return P * dP
    if way == "softmax-diagonal":
        return P * (1 - P) * dP
    if way == "softmax-flattened":
        return P * (dP - (P * dP).sum((-2, -1), keepdim=True))
    return P * (dP - (P * dP).sum(-1, keepdim=True))
