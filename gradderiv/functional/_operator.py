"""An operator of the rules as a PyTorch function of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gradderiv.functional._function import Rule
from gradderiv.rules.steps import Operator, gradients_type


def as_function(operator: Operator, *names: str, **static: Any) -> Callable[..., Tensor]:
    """Y = f(x), with the operator's four closed forms as its derivatives

    Forward mode, backward, and both nestings, as :func:`gradderiv.functional.attention` has them; what ``gradderiv.prove`` and ``gradcheck`` need to look at an
    operator.

    Args:
        operator: with one output.
        names: of its variables, in order.
        static: what else it is told.

    Returns:
        A function of the variables, by position or by name.
    """
    gradients = gradients_type(names)

    def along(dots: dict[str, Tensor]) -> list[Tensor]:
        return [dots[f"{name}_dot"] for name in names]

    def fresh(found: tuple[Tensor | None, ...], given: Tensor) -> Any:
        """A cotangent that is passed on as it is has to be another tensor for PyTorch."""
        return gradients(*(g.clone() if g is not None and g is given else g for g in found))

    rule = Rule(
        lambda **x: operator.f(*x.values(), **static),
        lambda saved, **dots: operator.jvp(saved, *along(dots)),
        lambda dY, saved: fresh(operator.vjp(dY, saved), dY),
        lambda dY, saved, dY_dot, **dots: fresh(operator.vjp_jvp(dY, saved, dY_dot, *along(dots)), dY_dot),
        variables=names,
        constants=(),
    )

    def function(*x: Tensor, **named: Tensor) -> Tensor:
        return rule(*x, *(named[name] for name in names[len(x) :]))

    function.__name__ = getattr(operator.f, "__name__", "operator")
    return function
