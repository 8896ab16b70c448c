"""Norms, activations and whole layers of a transformer, three times over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gradderiv.checks.reference import core, options

Function = Callable[..., Tensor]

# ---------------------------------------------------------------- textbook, in torch


def layer_norm(X: Tensor, gain: Tensor, shift: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """Every row less its mean, divided by its standard deviation."""
    d = X.shape[-1]
    centred = X - torch.einsum("...d->...", X)[..., None] / d
    square = torch.einsum("...d,...d->...", centred, centred) / d
    Y = centred / torch.sqrt(square + eps)[..., None] * gain
    return Y if shift is None else Y + shift


def activation(X: Tensor, *, function: str) -> Tensor:
    """The functions as their papers have them."""
    match function:
        case "relu":
            return X.clamp(min=0)
        case "silu":
            return X / (1 + torch.exp(-X))
        case "gelu":
            return X * (1 + torch.erf(X / math.sqrt(2))) / 2
        case _:
            return X * (1 + torch.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))) / 2


# ---------------------------------------------------------------- the same as loops, entry by entry


def loop_layer_norm(X: Tensor, gain: Tensor, shift: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    gains, shifts = gain.tolist(), [0.0] * len(gain) if shift is None else shift.tolist()
    rows = []
    for row in X.reshape(-1, X.shape[-1]).tolist():
        mean = math.fsum(row) / len(row)
        root = math.sqrt(math.fsum((x - mean) ** 2 for x in row) / len(row) + eps)
        rows.append([(x - mean) / root * g + s for x, g, s in zip(row, gains, shifts, strict=True)])
    return torch.tensor(rows, dtype=X.dtype).reshape(X.shape)


def loop_activation(X: Tensor, *, function: str) -> Tensor:
    """One number after the other; Φ(x) = ½ erfc(−x/√2), tanh by its own name."""
    f: dict[str, Callable[[float], float]] = {
        "relu": lambda x: max(x, 0.0),
        "silu": lambda x: x / (1 + math.exp(-x)),
        "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
        "gelu_tanh": lambda x: x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    }
    return torch.tensor(list(map(f[function], X.flatten().tolist())), dtype=X.dtype).reshape(X.shape)


# ---------------------------------------------------------------- torch's own


def torch_layer_norm(X: Tensor, gain: Tensor, shift: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    return functional.layer_norm(X, X.shape[-1:], gain, shift, eps)


def torch_activation(X: Tensor, *, function: str) -> Tensor:
    if function == "gelu_tanh":
        return functional.gelu(X, approximate="tanh")
    f: Function = getattr(functional, function)
    return f(X)


# ---------------------------------------------------------------- whole layers


class Parts(NamedTuple):
    """What a layer is put together from; three kinds."""

    linear: Function
    multihead: Function
    rms_norm: Function
    layer_norm: Function
    activation: Function


def transformer(parts: Parts) -> Function:
    """The layers of the systems, each written down by itself."""

    def layer(
        X: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor, W_U: Tensor, W_D: Tensor, gain_1: Tensor, gain_2: Tensor, *,
        style: Any, norm_eps: float = 1e-5, norm_offset: float = 0.0, W_G: Tensor | None = None, shift_1: Tensor | None = None,
        shift_2: Tensor | None = None, b_G: Tensor | None = None, b_U: Tensor | None = None, b_D: Tensor | None = None, **heads: Any,
    ) -> Tensor:  # fmt: skip
        def attention(N: Tensor) -> Tensor:
            return parts.multihead(N, W_Q, W_K, W_V, W_O, **heads)

        def rms(H: Tensor, gain: Tensor) -> Tensor:
            return parts.rms_norm(H, gain, eps=norm_eps, offset=norm_offset)

        def norm(H: Tensor, gain: Tensor, shift: Tensor | None) -> Tensor:
            return parts.layer_norm(H, gain, shift, eps=norm_eps)

        def feed_forward(N: Tensor, function: str) -> Tensor:
            F = parts.activation(parts.linear(N, W_U, b_U), function=function)
            return parts.linear(F, W_D, b_D)

        def gated(N: Tensor, function: str) -> Tensor:
            F = parts.activation(parts.linear(N, W_G, b_G), function=function) * parts.linear(N, W_U, b_U)
            return parts.linear(F, W_D, b_D)

        match style:
            case "llama":
                H = X + attention(rms(X, gain_1))
                return H + gated(rms(H, gain_2), "silu")
            case "gemma":
                H = X + attention(rms(X, gain_1))
                return H + gated(rms(H, gain_2), "gelu_tanh")
            case "gpt-2":
                H = X + attention(norm(X, gain_1, shift_1))
                return H + feed_forward(norm(H, gain_2, shift_2), "gelu_tanh")
            case "gpt-neox":
                return (
                    X + attention(norm(X, gain_1, shift_1)) + feed_forward(norm(X, gain_2, shift_2), "gelu")
                )
            case "bert":
                H = norm(X + attention(X), gain_1, shift_1)
                return norm(H + feed_forward(H, "gelu"), gain_2, shift_2)
            case ("parallel", "rms", True, function):
                return X + attention(rms(X, gain_1)) + gated(rms(X, gain_2), function)
            case "vaswani":
                H = norm(X + attention(X), gain_1, shift_1)
                return norm(H + feed_forward(H, "relu"), gain_2, shift_2)
        raise KeyError(f"no layer of this style is written down: {style}")

    return layer


# ---------------------------------------------------------------- tables

_TEXTBOOK = Parts(core.linear, options.multihead, options.rms_norm, layer_norm, activation)
_LOOPS = Parts(
    core.loop_linear, options.loop_multihead, options.loop_rms_norm, loop_layer_norm, loop_activation
)
_TORCH = Parts(
    core.torch_linear, options.torch_multihead, options.torch_rms_norm, torch_layer_norm, torch_activation
)


def _table(parts: Parts) -> dict[str, Function]:
    return {
        "layer_norm": parts.layer_norm,
        "activation": parts.activation,
        "transformer": transformer(parts),
    }


TEXTBOOK, LOOPS, TORCH = _table(_TEXTBOOK), _table(_LOOPS), _table(_TORCH)
