"""A function called on named matrices, shown by its name instead of by what it does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gradderiv.numbers.nodes import Call, Constant, Item, Node, Symbol
from gradderiv.numbers.tex import Tex, TexTensor, number


def by_name(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call ``func(…)``, not what it does: it is run on blanks, for the shapes of its results.

    A result that is one of the arguments stays that argument, so that what a rule saves keeps its names.
    """
    given: dict[int, TexTensor] = {}

    def blank(value: Any) -> Any:
        if isinstance(value, TexTensor):
            given.setdefault(id(value.main), value)
            return value.main
        return _through(value, blank)

    flat_args, flat_kwargs = tuple(blank(a) for a in args), {k: blank(v) for k, v in kwargs.items()}
    system = system_of((*args, *kwargs.values()))
    is_rule = getattr(func, "is_rule", False)
    shown = args[1:] if _parameters(func)[:1] == ["like"] else args  # of which only dtype and device matter
    call = Call(
        func.__name__,
        tuple(n for a in (*shown, *kwargs.values()) for n in _argument(a, system, is_rule)),
        getattr(func, "__module__", None) or "",
    )
    made: dict[int, TexTensor] = dict(given)

    def back(value: Any, node: Node) -> Any:
        if isinstance(value, Tensor):
            return made.setdefault(id(value), system.named(node, value))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            told = not type(value).__name__.endswith("Gradients")
            return type(value)(
                *(back(v, Item(call, f, told)) for f, v in zip(value._fields, value, strict=True))
            )
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            return type(value)(back(v, node) for v in value)
        return value

    return back(func(*flat_args, **flat_kwargs), call)


def _parameters(func: Any) -> list[str]:
    return list(inspect.signature(func).parameters) if inspect.isfunction(func) else []


def _through(value: Any, f: Callable[[Any], Any]) -> Any:
    """``f`` on what a list, tuple or NamedTuple holds."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(f(v) for v in value))
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return type(value)(f(v) for v in value)
    return value


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, (list, tuple)):
        for v in value:
            yield from _leaves(v)
    else:
        yield value


def system_of(values: tuple[Any, ...]) -> Tex:
    """The system of the named matrices among ``values``."""
    return next(v.tex_system for v in _leaves(values) if isinstance(v, TexTensor))


def _argument(value: Any, system: Tex, is_rule: bool) -> Iterable[Node]:
    """How an argument is shown: a tuple without a name by the matrices in it, an option of a torch function not at all."""
    if isinstance(value, TexTensor):
        yield value.node
    elif id(value) in system.bundles and len(list(_leaves(value))) > 1:
        yield Symbol(system.bundles[id(value)][1])
    elif isinstance(value, (list, tuple)):
        for v in value:
            if isinstance(v, (TexTensor, list, tuple)):
                yield from _argument(v, system, is_rule)
    elif isinstance(value, Tensor):
        yield Constant("…")
    elif isinstance(value, float):
        yield number(value)
    elif isinstance(value, int) and is_rule:
        yield Constant(system.sizes.get(value, str(value)))
