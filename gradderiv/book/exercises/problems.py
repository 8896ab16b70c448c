"""The true value of every name in a problem, over a field: from a forward alone, by autograd and by dual numbers.

A name is an input or a result of the forward (``S``, ``P``), a gradient (``dP``), or a tangent (``P_dot``). The last result is the
output; its cotangent is free, and so are the directions of the inputs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradderiv.book.exercises.verdict import ExerciseError
from gradderiv.numbers.dual import Dual, DualTensor

Forward = Callable[..., Mapping[str, Tensor]]
Inputs = Mapping[str, str | Callable[..., Any]]
Sizes = Mapping[str, int]
Values = dict[str, Any]


def shape(dims: str, sizes: Sizes) -> tuple[int, ...]:
    """``"n_q, h*d_k"`` → (3, 14)"""
    products = (dim.split("*") for dim in dims.split(",") if dim.strip())
    return tuple(math.prod(sizes[name.strip()] for name in product) for product in products)


def true_values(forward: Forward, inputs: Inputs, sizes: Sizes, random: Callable[..., Tensor]) -> Values:
    """Everything that has a name, at a random point.

    Args:
        random: draws a tensor of the sizes it is called with.
    """
    values: Values = dict(sizes)
    free = {name: random(*shape(dims, sizes)) for name, dims in inputs.items() if isinstance(dims, str)}
    fixed = {name: _called(make, sizes) for name, make in inputs.items() if not isinstance(make, str)}
    leaves = {name: x.clone().requires_grad_() for name, x in free.items()}
    computed = dict(_called(forward, {**sizes, **leaves, **fixed}))
    if not computed:
        raise ExerciseError("forward must return a dict of what it computes, the output last")
    output = list(computed)[-1]
    cotangent = random(*computed[output].shape)
    moving = {n: x for n, x in {**leaves, **computed}.items() if isinstance(x, Tensor) and x.requires_grad}
    gradients = torch.autograd.grad(
        computed[output], list(moving.values()), cotangent, allow_unused=True, retain_graph=True
    )
    directions = {name: random(*x.shape) for name, x in free.items()}
    values |= free | fixed | {n: x.detach() if isinstance(x, Tensor) else x for n, x in computed.items()}
    values |= {f"d{n}": g.detach() for n, g in zip(moving, gradients, strict=True) if g is not None}
    values |= {f"{n}_dot": x for n, x in directions.items()}
    values[f"d{output}"] = cotangent
    dual = Dual()
    moved = {name: dual.make(x.clone(), directions[name]) for name, x in free.items()}
    with torch.no_grad():
        for name, x in _called(forward, {**sizes, **moved, **fixed}).items():
            if isinstance(x, DualTensor):
                values[f"{name}_dot"] = x.tangent
    return values


def _called(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """The function, called with its parameters by their names."""
    parameters = inspect.signature(function).parameters
    lacking = [n for n, p in parameters.items() if n not in values and p.default is p.empty]
    if lacking:
        raise ExerciseError(
            f"{function.__name__} needs {', '.join(lacking)}, which is no input and no size of the problem"
        )
    return function(**{name: values[name] for name in parameters if name in values})
