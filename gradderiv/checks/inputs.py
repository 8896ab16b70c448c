"""What :func:`gradderiv.check` accepts: a function, its inputs, and what is refused before anything is computed."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from gradderiv.checks.candidate import in_words
from gradderiv.checks.forward import Call
from gradderiv.checks.kept import Kept
from gradderiv.errors import DtypeError, InputError, message
from gradderiv.numbers.order import HIDDEN


def make_call(function: Callable[..., Any], inputs: Any, names: Sequence[str] | None = None) -> Call:
    """The function with named inputs.

    Raises:
        InputError: no tensor to differentiate by, NaN or infinite entries, names that do not fit.
        DtypeError: a function that cannot be called, complex inputs.
    """
    if not callable(function):
        raise DtypeError(
            message(
                "gradderiv needs a function of tensors",
                type(function).__name__,
                "the function was called already, and its output passed",
                "gradderiv.check(f, inputs), not gradderiv.check(f(*inputs), inputs)",
            )
        )
    by_name = isinstance(inputs, Mapping)
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    listed = list(inputs.values()) if by_name else list(inputs)
    given = (
        list(names) if names is not None else list(inputs) if by_name else _parameters(function, len(listed))
    )
    if len(given) != len(listed) or len(set(given)) != len(given):
        raise InputError(
            message(
                "gradderiv needs one name for every input",
                f"{len(listed)} inputs, names {given}",
                "a name left out, or given twice",
                "as many different names as inputs, in the order of the call",
            )
        )
    values = dict(zip(given, listed, strict=True))
    tensors = {n: x for n, x in values.items() if isinstance(x, Tensor)}
    for n, x in tensors.items():
        _require_usable(n, x)
    ties = _ties(tensors)
    floating = [n for n, x in tensors.items() if x.dtype.is_floating_point and n not in ties]
    moving = _differentiated({n: tensors[n] for n in floating})
    if not moving:
        raise InputError(
            message(
                "gradderiv needs a floating-point tensor to differentiate by",
                ", ".join(f"{n} {_shown(x)}" for n, x in values.items()) or "no inputs",
                "token numbers or masks only; they have no derivative",
                "pass the tensors whose gradient you want, for example the embedded tokens",
            )
        )
    detached = {n: x.detach() if isinstance(x, Tensor) else x for n, x in values.items()}
    shown = _name(function)
    spelled = f"{shown}.apply" if _function_class(function) else shown
    return Call(function, shown, detached, tuple(moving), by_name, spelled, ties=ties)


def module_call(module: nn.Module, inputs: Any) -> Call:
    """A module as a function of all its parameters, by name, and of its inputs; ties among the parameters stay.

    Raises:
        InputError, DtypeError: as :func:`make_call`.
    """
    by_name = isinstance(inputs, Mapping)
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    given = list(inputs) if by_name else _parameters(module, len(inputs))
    arguments = dict(zip(given, inputs.values() if by_name else inputs, strict=True))
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def function(**values: Any) -> Any:
        state = {name: values.pop(name) for name in parameters}
        if by_name:
            return functional_call(module, state, (), values)
        return functional_call(module, state, tuple(values.values()))

    asked = _differentiated({n: x for n, x in arguments.items() if isinstance(x, Tensor)})
    arguments = {
        n: x.detach().requires_grad_(n in asked) if isinstance(x, Tensor) else x for n, x in arguments.items()
    }
    call = make_call(function, {**parameters, **_again(arguments, inputs, by_name)})
    name = type(module).__name__
    return dataclasses.replace(call, name=name, spelled=name)


def _again(arguments: dict[str, Any], inputs: Any, by_name: bool) -> dict[str, Any]:
    """The arguments, with those that were one tensor one tensor again."""
    given = list(inputs.values() if by_name else inputs)
    first: dict[int, Any] = {}
    return {n: first.setdefault(id(x), value) for (n, value), x in zip(arguments.items(), given, strict=True)}


def _ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The names under which a tensor is given again."""
    first: dict[int, str] = {}
    names = {n: first.setdefault(id(x), n) for n, x in tensors.items()}
    return {n: original for n, original in names.items() if n != original}


def _differentiated(tensors: Mapping[str, Tensor]) -> list[str]:
    """The floating ones that require a gradient; where none does, all but masks."""
    floating = {n: x for n, x in tensors.items() if x.dtype.is_floating_point}
    return [n for n, x in floating.items() if x.requires_grad] or [
        n for n, x in floating.items() if not _is_mask(x)
    ]


def _is_mask(x: Tensor) -> bool:
    """Whether a floating tensor hides scores: entries of −∞, or as low as people write for it."""
    return bool((x.detach() <= HIDDEN).any())


def cast(call: Call, dtype: torch.dtype) -> Call:
    """The same with every floating input rounded to ``dtype``."""

    def rounded(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.dtype.is_floating_point else x

    return dataclasses.replace(call, values={name: rounded(x) for name, x in call.values.items()})


def first_call(call: Call) -> tuple[Call, list[Tensor]]:
    """The function called once, and again: it must work, return the same twice, and return floating tensors.

    Returns:
        the call with the positions of its floating outputs, and these outputs.

    Raises:
        InputError: it raises, returns no floating tensor, is random, or returns NaN or infinity.
    """
    try:
        first, second = _outputs(call), _outputs(call)
    except Exception as error:
        raise _cannot_be_called(call, error) from error
    floating = [k for k, y in enumerate(first) if isinstance(y, Tensor) and y.dtype.is_floating_point]
    if not floating:
        raise _nothing_floating(call, first)
    for k in floating:
        _require_output(call, k, first[k], second[k])
    return dataclasses.replace(call, floating=tuple(floating)), [first[k] for k in floating]


def seeded_call(call: Call, seed: int) -> tuple[Call, list[Tensor]]:
    """The function called once on its inputs, with torch's generator at ``seed``.

    Returns:
        the call with the positions of its floating outputs, and these outputs, detached.

    Raises:
        InputError: it raises, or returns no floating tensor.
    """
    try:
        noted = Kept(call.values[name] for name in call.moving)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), noted:
            torch.default_generator.manual_seed(seed)
            found = _outputs(call)
    except Exception as error:
        raise _cannot_be_called(call, error) from error
    floating = [k for k, y in enumerate(found) if isinstance(y, Tensor) and y.dtype.is_floating_point]
    if not floating or any(_holds_tensors(y) for y in found):
        raise _nothing_floating(call, found)
    outputs = [found[k].detach() for k in floating]
    return dataclasses.replace(call, floating=tuple(floating), kept=noted.alive()), outputs


def _outputs(call: Call) -> list[Any]:
    return call.all(call.copies())


def _cannot_be_called(call: Call, error: Exception) -> InputError:
    return InputError(
        message(
            f"gradderiv needs a function that can be called on its inputs: {call.name}",
            in_words(error),
            "inputs in another order, or module parameters in another precision than the inputs",
            "call it yourself with these inputs first",
        )
    )


def _holds_tensors(y: Any) -> bool:
    """Whether an output is an object of which nothing is known, with floating tensors inside."""
    inside = [] if isinstance(y, Tensor) else list(getattr(y, "__dict__", {}).values())
    return any(isinstance(x, Tensor) and x.dtype.is_floating_point for x in tree_leaves(inside))


def _nothing_floating(call: Call, outputs: list[Any]) -> InputError:
    return InputError(
        message(
            f"gradderiv needs a floating-point tensor among the outputs of {call.name}",
            ", ".join(map(_shown, outputs)),
            "an object with the tensors inside, or a function that returns nothing",
            "wrap it: lambda *inputs: f(*inputs).logits",
        )
    )


def _require_usable(name: str, x: Tensor) -> None:
    if x.dtype.is_complex:
        raise DtypeError(
            message(
                "gradderiv needs real inputs",
                f"{name} has dtype {x.dtype}",
                "complex derivatives have another convention",
                "pass torch.view_as_real(x) and convert inside",
            )
        )
    if not x.dtype.is_floating_point:
        return
    masks = x.isneginf() if not x.requires_grad else torch.zeros_like(x, dtype=torch.bool)
    bad = ~(torch.isfinite(x) | masks)
    if x.numel() == 0 or bool(bad.any()):
        came = (
            f"{name} has {int(bad.sum())} NaN or infinite of {x.numel()} entries"
            if x.numel()
            else f"{name} is empty"
        )
        raise InputError(
            message(
                "gradderiv needs finite inputs",
                came,
                "an overflow before this function, or an additive mask that was given requires_grad",
                "pass finite values; a mask of -inf without requires_grad is a constant and may stay",
            )
        )


def _require_output(call: Call, k: int, first: Tensor, second: Tensor) -> None:
    limit = 64 * torch.finfo(first.dtype).eps * float(first.detach().double().abs().nan_to_num().max())
    apart = (first.detach().double() - second.detach().double()).abs().nan_to_num(nan=0.0)
    if first.shape != second.shape or float(apart.max()) > limit:
        raise InputError(
            message(
                "gradderiv needs a function that returns the same twice",
                f"output {k} of {call.name} changed by {float(apart.max()):.1e} from one call to the next",
                "dropout, or a state that every call updates",
                "model.eval(), or seed inside the function",
            )
        )
    if not bool(torch.isfinite(first).all()):
        raise InputError(
            message(
                "gradderiv needs a function that is finite at its inputs",
                f"output {k} of {call.name} has {int((~torch.isfinite(first)).sum())} NaN or infinite entries",
                "a fully masked row (0/0), or an overflow",
                "give such rows a value, or pass smaller inputs",
            )
        )


def _function_class(function: Callable[..., Any]) -> type[torch.autograd.Function] | None:
    """The class of which ``function`` is the ``apply``."""
    owner = getattr(function, "__self__", None)
    return owner if isinstance(owner, type) and issubclass(owner, torch.autograd.Function) else None


def _name(function: Callable[..., Any]) -> str:
    """``attention`` of a function, ``Attention`` of a module or of ``Attention.apply``."""
    owner = _function_class(function)
    if owner is not None:
        return owner.__name__
    kind = "__name__" if inspect.isbuiltin(function) else "__qualname__"
    name = getattr(function, kind, None) or type(function).__name__
    return str(name).rpartition("<locals>.")[2].replace("<lambda>", "function")


def _parameters(function: Callable[..., Any], count: int) -> list[str]:
    """The names of the first parameters, where the function has them; else x0, x1, …"""
    owner = _function_class(function)
    target = owner.forward if owner is not None else getattr(function, "forward", function)
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    if owner is not None and owner.setup_context is torch.autograd.Function.setup_context:
        parameters = parameters[1:]  # ctx
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return positional[:count] if len(positional) >= count else [f"x{i}" for i in range(count)]


def _shown(x: Any) -> str:
    return f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
