"""What a rule accepts: the checks that stand before its first line, and the tools all rules share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from gradderiv.errors import DtypeError, InputError, message

F = TypeVar("F", bound=Callable[..., Any])


OPTIONAL = {"X_kv", "b", "b_Q", "b_K", "b_V", "b_O", "bias"}


def rule(function: F) -> F:
    """Let a tensor subclass see the call under its own name (``torch.overrides``).

    A ``TexTensor`` prints ``softmax(S)`` by its name for this reason; every other tensor runs the body.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = _tensors((*args, *kwargs.values()))
        if has_torch_function(tensors):
            return handle_torch_function(call, tensors, *args, **kwargs)
        return function(*args, **kwargs)

    call.is_rule = True  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def _tensors(arguments: Iterable[Any]) -> tuple[Tensor, ...]:
    """Those among the arguments, and in a plain tuple of several cotangents."""
    flat = (x for a in arguments for x in (a if type(a) is tuple else (a,)))
    return tuple(x for x in flat if isinstance(x, Tensor))


def kind(given: Any) -> str:
    """What came in the place of a tensor or a mask, for the wording of an error: ``list``, ``dtype torch.int64``."""
    return f"dtype {given.dtype}" if isinstance(given, Tensor) else type(given).__name__


def shape(tensor: Tensor) -> str:
    """``(2, 7, 12)`` as text."""
    return f"({', '.join(map(str, tensor.shape))})"


def shapes(**tensors: Tensor | None) -> str:
    """``X (2, 7, 12), W (12, 8)`` as text; what is None is left out."""
    return ", ".join(f"{name} {shape(t)}" for name, t in tensors.items() if t is not None)


def require(condition: bool, asked: str, came: str, cause: str, do: str) -> None:
    """Raise :class:`InputError` in the package's wording unless ``condition`` holds."""
    if not condition:
        raise InputError(message(asked, came, cause, do))


def require_tensors(where: str, **tensors: Tensor | None) -> None:
    """Demand floating tensors of one dtype on one device, none of them empty.

    Raises:
        DtypeError: not a tensor, an integer tensor, several dtypes or several devices.
        InputError: a tensor without elements.
    """
    require_floating(where, **tensors)
    for name, t in tensors.items():
        require(
            t is None or t.numel() > 0,
            f"{where} needs tensors with elements",
            "" if t is None else f"{name} has shape {shape(t)}",
            "an empty batch or sequence",
            "skip the call when there is nothing to attend to",
        )


def require_floating(where: str, **tensors: Tensor | None) -> None:
    """Demand floating tensors of one dtype on one device.

    Raises:
        DtypeError: not a tensor, an integer tensor, several dtypes or several devices.
    """
    given: dict[str, Any] = {n: t for n, t in tensors.items() if t is not None or n not in OPTIONAL}
    for name, t in given.items():
        if not isinstance(t, Tensor):
            raise DtypeError(
                message(
                    f"{where} needs {name} as a tensor",
                    type(t).__name__,
                    "a list or a NumPy array was passed",
                    f"torch.as_tensor({name})",
                )
            )
        if not (t.dtype.is_floating_point or t.dtype.is_complex):
            raise DtypeError(
                message(
                    f"{where} needs floating-point tensors",
                    f"{name} has dtype {t.dtype}",
                    "integers have no derivative; token numbers must pass through an embedding first",
                    f"{name}.double(), or look up its embedding",
                )
            )
    dtypes = {name: t.dtype for name, t in given.items()}
    if len(set(dtypes.values())) > 1:
        raise DtypeError(
            message(
                f"{where} needs one dtype",
                ", ".join(f"{n} {d}" for n, d in dtypes.items()),
                "a module and its input in different precisions, or autocast around a rule",
                "cast the inputs to the dtype of the weights",
            )
        )
    devices = {name: t.device for name, t in given.items()}
    if len(set(devices.values())) > 1:
        raise DtypeError(
            message(
                f"{where} needs one device",
                ", ".join(f"{n} {d}" for n, d in devices.items()),
                "a tensor was left behind when the model was moved",
                "move all of them with .to(device)",
            )
        )


def require_mask(where: str, mask: Any, scores: tuple[int, ...], *, or_made: bool = False) -> None:
    """Demand a boolean mask (True = may attend) that broadcasts to the scores; where it may be made, a ``Mask``, which is made to fit.

    Raises:
        DtypeError: a mask that is not boolean.
        InputError: a mask that does not broadcast.
    """
    if mask is None or (or_made and hasattr(mask, "on")):
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise DtypeError(
            message(
                f"{where} needs a boolean mask, True = may attend",
                kind(mask),
                "an additive mask of 0 and -inf, or an attention_mask of 0 and 1",
                "read an additive mask by gradderiv.rules.masks.read_additive, and pass 0/1 as mask.bool()",
            )
        )
    require_broadcast(where, "mask", mask, scores)


def require_broadcast(where: str, name: str, tensor: Tensor, scores: tuple[int, ...]) -> None:
    """Demand that ``tensor`` broadcasts to the shape of the scores.

    Raises:
        InputError: it does not.
    """
    try:
        fits = torch.broadcast_shapes(tensor.shape, scores) == torch.Size(scores)
    except RuntimeError:
        fits = False
    require(
        fits,
        f"{where} needs {'an' if name[0] in 'aeiou' else 'a'} {name} that broadcasts to the scores {tuple(scores)}",
        f"{name} {shape(tensor)}",
        "queries and keys exchanged, or no axis for the heads",
        f"the last two axes are n_q, n_k; {'an' if name[0] in 'aeiou' else 'a'} {name} per sequence needs a head axis: {name}.unsqueeze(-3)",
    )
