"""A rule as a PyTorch function: each derivative that PyTorch asks for is one of the rule's closed forms.

    Y = f(x)        jvp       Ẏ = f_jvp(ẋ)
                    backward  dx = f_vjp(dY)          itself a function of (dY, x), whose
                              jvp       f_vjp_jvp(dY, dẎ, ẋ)
                              backward  along u: ∂/∂dY = f_jvp(u),   ∂/∂x = f_vjp_jvp(dY, dẎ = 0, ẋ = u)

The last line is Pearlmutter 1994: ⟨u, f_vjp(dY)⟩ = ⟨dY, f_jvp(u)⟩, whose derivative by dY is f_jvp(u), and by x,
second derivatives being symmetric, the tangent of f_vjp along u.

Only the arguments are kept from the forward pass to the backward pass; the rule's intermediates are computed
again, once. The closed forms of second order are plain PyTorch operations, so third order and more follow from
PyTorch's own derivatives of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from gradderiv.functional._arguments import LEARNED, require_number, require_real
from gradderiv.functional._nested import is_mapped_unasked, outer_tangents, primal


@dataclass(frozen=True)
class Rule:
    """A rule as data: its four closed forms and the names of what they take.

    ``variables`` have a gradient, ``constants`` (masks, numbers) have none. ``arguments`` below are the values of
    both, in this order; None stands for a variable that was not given.
    """

    f: Callable[..., tuple[Tensor, Any]]
    jvp: Callable[..., Tensor]
    vjp: Callable[..., Any]
    vjp_jvp: Callable[..., Any]
    variables: tuple[str, ...]
    constants: tuple[str, ...]

    def __call__(self, *arguments: Any) -> Tensor:
        """f(arguments), differentiable to every order.

        Raises:
            DtypeError: complex numbers, a tensor for ``scale``; and what the rule raises.
        """
        self._require_real_numbers(arguments)
        # torch.compile refuses a Function that defines jvp
        function = FirstOrder if torch.compiler.is_compiling() else Value
        return cast(Tensor, function.apply(self, *arguments))

    def evaluate(self, arguments: Sequence[Any]) -> tuple[Tensor, Any]:
        """The value, and the saved values that the closed forms need."""
        return self.f(**dict(zip(self.variables + self.constants, arguments, strict=True)))

    def along(self, arguments: Sequence[Any], tangents: Sequence[Any]) -> dict[str, Tensor]:
        """The tangents under their names; PyTorch fills in zeros for what stands still."""
        return {
            f"{n}_dot": t
            for n, x, t in zip(self.variables, arguments, tangents, strict=False)
            if x is not None
        }

    def gradients(self, g: Any) -> tuple[Tensor | None, ...]:
        """The fields of the rule's gradients in the order of the variables."""
        return tuple(getattr(g, name) for name in self.variables)

    def _require_real_numbers(self, arguments: Sequence[Any]) -> None:
        for name, value in zip(self.variables + self.constants, arguments, strict=True):
            if isinstance(value, Tensor):
                require_real(**{name: value})
                if name == "scale":
                    require_number(name, value, LEARNED)


class FirstOrder(Function):
    """Y = f(x) with dx = f_vjp(dY): all that ``torch.compile`` can trace."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rule: Rule, *arguments: Any) -> Tensor:
        Y, _ = rule.evaluate(arguments)
        return Y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
        rule, arguments = _kept(ctx)
        _, saved = rule.evaluate(arguments)
        return _needed(ctx, rule.gradients(rule.vjp(dY, saved)))


class Value(FirstOrder):
    """Y = f(x) with forward mode, and a backward pass that can be differentiated in turn."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep(ctx, inputs, forward_mode=True)

    @staticmethod
    def jvp(ctx: Any, rule_dot: None, *tangents: Any) -> Tensor:
        with outer_tangents(True):
            rule, arguments = _kept(ctx, primal)
            _, saved = rule.evaluate(arguments)
            Y_dot = rule.jvp(saved, **rule.along(arguments, tangents))
            return Y_dot

    @staticmethod
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
        rule, arguments = _kept(ctx)
        if is_mapped_unasked(dY):  # what a Function records of such a tensor is lost
            return _needed(ctx, rule.gradients(rule.vjp(dY, rule.evaluate(arguments)[1])))
        return _needed(ctx, Gradient.apply(rule, dY, *arguments))


class Gradient(Function):
    """dx = f_vjp(dY), as a function of dY and x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rule: Rule, dY: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
        _, saved = rule.evaluate(arguments)
        return rule.gradients(rule.vjp(dY, saved))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep(ctx, inputs, forward_mode=True)

    @staticmethod
    def jvp(ctx: Any, rule_dot: None, dY_dot: Tensor, *tangents: Any) -> tuple[Tensor | None, ...]:
        with outer_tangents(True):
            rule, (dY, *arguments) = _kept(ctx, primal)
            _, saved = rule.evaluate(arguments)
            along = rule.along(arguments, tangents)
            return rule.gradients(rule.vjp_jvp(dY, saved, dY_dot, **along))

    @staticmethod
    def backward(ctx: Any, *u: Any) -> tuple[Tensor | None, ...]:
        rule, (dY, *arguments) = _kept(ctx)
        _, saved = rule.evaluate(arguments)
        along = rule.along(arguments, u)
        g = rule.vjp_jvp(dY, saved, torch.zeros_like(dY), **along)
        return _needed(ctx, (rule.jvp(saved, **along), *rule.gradients(g)))


def _keep(ctx: Any, inputs: tuple[Any, ...], forward_mode: bool = False) -> None:
    """Remember the rule and the arguments: tensors where PyTorch guards them, the others beside them."""
    ctx.rule, *arguments = inputs
    tensors = tuple(a if isinstance(a, Tensor) else None for a in arguments)
    ctx.others = tuple(None if isinstance(a, Tensor) else a for a in arguments)
    ctx.save_for_backward(*tensors)
    if forward_mode:
        ctx.save_for_forward(*tensors)


def _kept(ctx: Any, change: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[Rule, list[Any]]:
    """What :func:`_keep` remembered, each tensor passed through ``change``."""
    pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
    return ctx.rule, [other if x is None else change(x) for x, other in pairs]


def _needed(ctx: Any, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The gradients that were asked for; None for the rule in front and the constants at the end."""
    return tuple(g if need else None for g, need in zip_longest((None, *gradients), ctx.needs_input_grad))
