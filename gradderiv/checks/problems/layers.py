"""Problems of norms, activations and whole layers: each system's layer at a size of its own, every parameter away from where it would not matter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.problems.problem import Problem, causal
from gradderiv.rules.transformer import Style

Shapes = dict[str, tuple[int, ...]]
GAINS = {"gain": 1.0, "gain_1": 1.0, "gain_2": 1.0}
WEIGHTS = ("W_Q", "W_K", "W_V", "W_O", "W_G", "W_U", "W_D")
STD = dict.fromkeys(WEIGHTS, 0.35) | {"gain_1": 0.3, "gain_2": 0.3}


def problems() -> list[Problem]:
    return norms() + activations() + layers()


def norms() -> list[Problem]:
    gains = {"gain": 1.0}
    return [
        Problem("rms-norm-offset", "rms_norm", {"X": (2, 3, 7), "gain": (7,)}, (2, 3, 7), {"offset": 1.0}, std={"gain": 0.5},
                why="γ for 1 + γ (Liger #74)"),
        Problem("layer-norm", "layer_norm", {"X": (2, 5, 7), "gain": (7,), "shift": (7,)}, (2, 5, 7), {"eps": 0.1}, mean=gains | {"X": 1.0},
                why="dX without the term of the mean; γ and β summed over one axis too few"),
        Problem("layer-norm-no-shift", "layer_norm", {"X": (5, 3), "gain": (3,)}, (5, 3), mean=gains, why="a gradient of β where there is none"),
        Problem("tiny-layer-norm", "layer_norm", {"X": (1, 2), "gain": (2,), "shift": (2,)}, (1, 2), {"eps": 1.0}, why="symbols, a root"),
    ]  # fmt: skip


def either_side(*shape: int) -> Tensor:
    """±4, on which a relu is open or shut with eight standard deviations to spare where these are ½."""
    signs = torch.arange(torch.Size(shape).numel()).reshape(shape) * 3 % 7 < 4
    return 4.0 * torch.where(signs, 1.0, -1.0)


def activations() -> list[Problem]:
    def case(function: str, why: str, **more: Any) -> Problem:
        name = function.replace("_", "-")
        return Problem(
            name, "activation", {"X": (2, 3, 5)}, (2, 3, 5), {"function": function}, why=why, **more
        )

    return [
        case("relu", "the gate of the cotangent instead of that of X", std=0.5, mean={"X": either_side(2, 3, 5)}),
        case("silu", "σ + xσ(1 − σ) without its second term"),
        case("gelu", "one GELU's derivative for the other's"),
        case("gelu_tanh", "the cubic's 3 dropped in u′"),
        Problem("tiny-silu", "activation", {"X": (1, 2)}, (1, 2), {"function": "silu"}, why="symbols"),
        Problem("tiny-gelu-tanh", "activation", {"X": (1, 1)}, (1, 1), {"function": "gelu_tanh"}, why="symbols, tanh"),
    ]  # fmt: skip


def layer(
    name: str, style: str | Style, why: str, *, n: int, d_model: int, d_ff: int, h: int, d_k: int, h_kv: int | None = None, d_v: int | None = None,
    batch: tuple[int, ...] = (), gated: bool = False, shifts: bool = False, biases: tuple[str, ...] = (), extra: Shapes | None = None,
    mean: dict[str, Any] | None = None, zeros: frozenset[str] = frozenset(), **options: Any,
) -> Problem:  # fmt: skip
    """A layer of that style; ``biases`` by their letters."""
    groups, wide = h_kv or h, d_v or d_k
    shapes: Shapes = {
        "X": (*batch, n, d_model), "W_Q": (d_model, h * d_k), "W_K": (d_model, groups * d_k), "W_V": (d_model, groups * wide),
        "W_O": (h * wide, d_model), "W_U": (d_model, d_ff), "W_D": (d_ff, d_model), "gain_1": (d_model,), "gain_2": (d_model,),
    }  # fmt: skip
    if gated:
        shapes["W_G"] = (d_model, d_ff)
    if shifts:
        shapes |= {"shift_1": (d_model,), "shift_2": (d_model,)}
    shapes |= {f"b_{x}": shapes[f"W_{x}"][1:] for x in biases} | (extra or {})
    options |= {"style": style, "n_heads": h} | ({} if h_kv is None else {"n_kv_heads": h_kv})
    means = {} if "norm_offset" in options else dict(GAINS)
    return Problem(
        name, "transformer", shapes, (*batch, n, d_model), options, std=dict(STD), mean=means | (mean or {}), zeros=zeros, lanes=3, why=why
    )  # fmt: skip


def layers() -> list[Problem]:
    six: Any = {"shifts": True, "biases": tuple("QKVOUD")}
    rotary: Shapes = {"cos": (3, 2), "sin": (3, 2)}
    no_key_bias = frozenset({"b_K"})
    # the second sequence is padded: its last key is hidden from all of its queries
    padding = torch.tensor([[True, True, True], [True, True, False]])[:, None, None]
    open_or_shut = {"b_U": torch.tensor([6.0, -6.0, 6.0, 6.0, -6.0, 6.0, -6.0])}
    return [
        layer("llama-layer", "llama", "the residual's gradient sent through the norm (quack #53); gate and up exchanged",
              n=3, d_model=5, d_ff=7, h=6, h_kv=2, d_k=4, d_v=3, batch=(2,), gated=True, biases=("G", "U", "D"), extra=rotary, mask=causal(3), norm_eps=0.01),
        layer("gemma-layer", "gemma", "γ for 1 + γ (Liger #74)",
              n=3, d_model=5, d_ff=7, h=2, h_kv=1, d_k=4, gated=True, extra=rotary, mask=causal(3), softcap=2.0, scale=0.6, norm_offset=1.0),
        layer("gpt-2-layer", "gpt-2", "one GELU's derivative for the other's",
              n=3, d_model=6, d_ff=7, h=2, d_k=4, batch=(2,), mask=causal(3), zeros=no_key_bias, **six),
        layer("gpt-neox-layer", "gpt-neox", "three paths into X, none of which may be lost",
              n=3, d_model=8, d_ff=7, h=2, d_k=4, extra=rotary, mask=causal(3), **six),
        layer("bert-layer", "bert", "a residual that passes a norm of its own", n=3, d_model=6, d_ff=7, h=2, d_k=4, batch=(2,), mask=padding,
              zeros=no_key_bias, **six),
        layer("vaswani-layer", "vaswani", "the gate of a relu behind a norm", n=3, d_model=6, d_ff=7, h=3, d_k=1, d_v=2, mean=open_or_shut,
              zeros=no_key_bias, **six),
        layer("tiny-parallel-layer", Style("parallel", "rms", True, "silu"), "symbols, a root and a gate; a style of one's own", n=1, d_model=2,
              d_ff=1, h=1, d_k=1, gated=True, norm_eps=1.0, zeros=frozenset({"W_Q", "W_K"})),
    ]  # fmt: skip
