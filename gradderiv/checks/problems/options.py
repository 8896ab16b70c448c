"""Problems of attention's options: each at a value that matters, and layers put together as real systems put them together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.problems.problem import Problem, causal, layer, scattered, weights
from gradderiv.rules.fills import SEMANTICS
from gradderiv.rules.score_bias import t5_buckets

Shapes = dict[str, tuple[int, ...]]
#: Arguments that a formula divides by, or multiplies everything by, stay away from 0.
NOT_ZERO = {"temperature": 2.0, "gain_Q": 1.0, "gain_K": 1.0}
STD = {"temperature": 0.25, "gain_Q": 0.5, "gain_K": 0.5}


def kept(*shape: int) -> Tensor:
    """A keep mask without structure, about a third of it dropped."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 1 / 3


def heads(
    n: int = 5,
    *,
    batch: tuple[int, ...] = (),
    h: int = 6,
    h_kv: int = 2,
    n_k: int | None = None,
    d_k: int = 5,
    d_v: int = 3,
) -> Shapes:
    """Q, K, V of attention, cut into heads."""
    n_k = n if n_k is None else n_k
    return {"Q": (*batch, h, n, d_k), "K": (*batch, h_kv, n_k, d_k), "V": (*batch, h_kv, n_k, d_v)}


def attend(
    name: str,
    why: str,
    extra: Shapes | None = None,
    options: dict[str, Any] | None = None,
    *,
    base: Shapes | None = None,
    **more: Any,
) -> Problem:
    """A problem of attention with options; its output as wide as what it returns."""
    shapes, options = {**(base or heads()), **(extra or {})}, options or {}
    n_k = shapes["K"][-2] + shapes.get("K_cache", (0, 0))[-2]
    widths = {"O": shapes["V"][-1], "weights": n_k, "lse": 1}
    output = (*shapes["Q"][:-1], sum(widths[o] for o in options.get("outputs", ("O",))))
    return Problem(name, "attend", shapes, output, options, std=dict(STD), mean=NOT_ZERO, why=why, **more)


def fill(name: str, n_q: int, n_k: int) -> dict[str, Any]:
    """A semantics of :mod:`gradderiv.rules.fills` on padding and later keys, a row of which hides everything.

    Every dtype holds the fill exactly: −8192, and the lowest bfloat16.
    """
    padding = torch.tensor([False, True, True, False, True, True, False])[:n_k].expand(n_q, n_k)
    later = torch.ones(n_q, n_k, dtype=torch.bool).tril()
    made: dict[str, Any] = SEMANTICS[name].options((padding, later), torch.bfloat16, -8192.0)
    return made


def problems() -> list[Problem]:
    all_ = ("O", "weights", "lse")
    mask = scattered(5, 7, empty=2)
    llama: dict[str, Any] = {"n": 5, "d_model": 7, "h": 6, "h_kv": 2, "d_k": 4, "d_v": 4, "d_out": 7}
    return [
        # ---- what the options are made of
        Problem("rope-half", "rope", {"X": (2, 3, 5, 7), "cos": (5, 4), "sin": (5, 4)}, (2, 3, 5, 7), {"pairing": "half"},
                why="tables with unequal halves (Paddle #74716), a tail that does not turn (apex #1750)"),
        Problem("rope-interleaved", "rope", {"X": (3, 5, 6), "cos": (3, 1, 6), "sin": (3, 1, 6)}, (3, 5, 6), {"pairing": "interleaved"},
                why="interleaved angles with half-split rotation (nanotron #427)"),
        Problem("tiny-rope", "rope", {"X": (2, 3), "cos": (2, 2), "sin": (2, 2)}, (2, 3), why="symbols"),
        Problem("rms-norm", "rms_norm", {"X": (2, 5, 7), "gain": (7,)}, (2, 5, 7), mean={"gain": 1.0}, why="the gain's gradient is summed over rows"),
        Problem("rms-norm-heads", "rms_norm", {"X": (2, 3, 5, 7), "gain": (3, 1, 7)}, (2, 3, 5, 7), {"eps": 0.1}, mean={"gain": 1.0},
                why="ε pinned so small that it does not matter; a gain for each head"),
        Problem("tiny-rms-norm", "rms_norm", {"X": (1, 2), "gain": (2,)}, (1, 2), {"eps": 1.0}, why="symbols, a root"),
        Problem("rms-norm-row", "rms_norm", {"X": (7,), "gain": (7,)}, (7,), mean={"gain": 1.0}, why="a vector is one row"),
        # ---- one option after the other
        attend("attend-grouped", "key/value heads tiled, not repeated; the group not summed (onnx #7274, levanter #449)",
               options={"mask": mask}, base=heads(n_k=7, batch=(2,))),
        attend("attend-multi-query", "one key/value head", base=heads(n_k=7, h_kv=1)),
        attend("attend-outputs", "one of several outputs got no cotangent (quack #53)", options={"outputs": all_, "mask": scattered(5, 7)},
               base=heads(n_k=7, batch=(2,))),
        attend("attend-lse", "lse alone: its gradient is P", options={"outputs": ("lse",)}, base=heads(n_k=7), zeros=frozenset({"V"})),
        attend("attend-weights", "the weights alone", options={"outputs": ("weights",)}, base=heads(n_k=7), zeros=frozenset({"V"})),
        attend("attend-sinks", "a sink's gradient, an empty row beside it", {"sinks": (6,)}, {"mask": mask, "outputs": all_}, base=heads(n_k=7, batch=(2,))),
        attend("attend-softcap", "(s/c) tanh(s/c) for c tanh(s/c) (flash-attention #2396)", {"bias": (6, 1, 7)},
               {"softcap": 1.5, "scale": 0.9, "mask": mask}, base=heads(n_k=7)),
        attend("attend-temperature", "one for each head", {"temperature": (6, 1, 1)}, base=heads(n_k=7)),
        attend("attend-alibi", "n_q ≠ n_k: the last query stands at the last key", {"slopes": (6,)}, base=heads(n=3, n_k=7, batch=(2,))),
        attend("attend-t5", "rows of the table that many places share, and some that none does", {"table": (11, 6)},
               {"buckets": t5_buckets(5, 7, n_buckets=8, max_distance=6), "scale": 1.0}, base=heads(n_k=7, batch=(2,))),
        attend("attend-bias", "a bias summed over every axis that it broadcasts along", {"bias": (2, 1, 1, 7)}, base=heads(n_k=7, batch=(2,))),
        attend("attend-bias-of-rows", "a bias that softmax ignores", {"bias": (2, 1, 5, 1)}, base=heads(n_k=7, batch=(2,)), zeros=frozenset({"bias"})),
        attend("attend-one-head", "no axis of heads: a sink without one", {"sinks": (), "temperature": ()}, {"mask": mask, "outputs": all_},
               base={"Q": (5, 3), "K": (7, 3), "V": (7, 2)}),
        attend("attend-dropout", "the keep mask in the weights that are returned, too", options={
               "keep": kept(2, 6, 5, 7), "dropout_p": 0.25, "outputs": ("O", "weights")}, base=heads(n_k=7, batch=(2,))),
        attend("attend-qk-norm", "QK-norm before the rotation", {"gain_Q": (5,), "gain_K": (5,), "cos": (5, 4), "sin": (5, 4)}, {"eps": 0.01}),
        attend("attend-decode", "prefill and decode: gradients into cached keys and values", {
               "K_cache": (2, 2, 4, 5), "V_cache": (2, 2, 4, 3), "cos": (3, 4), "sin": (3, 4)},
               {"mask": torch.ones(3, 7, dtype=torch.bool).tril(4), "pairing": "interleaved"}, base=heads(3, batch=(2,))),
        attend("attend-wide", "softmax in a wider type than its input, as Llama does", options={"softmax_dtype": torch.float64, "mask": mask}, base=heads(n_k=7)),
        *(attend(f"attend-fill-{name.replace(' ', '-')}", f"a finite fill taken for −∞ ({name})", options=fill(name, 5, 7), base=heads(n_k=7))
          for name in ("replace", "add", "add each", "onnxruntime")),
        # ---- symbols
        attend("tiny-attend-sinks", "symbols, a sink", {"sinks": (1,)}, base={"Q": (1, 1, 1), "K": (1, 2, 1), "V": (1, 2, 1)}, options={"scale": 1.0}),
        attend("tiny-attend-softcap", "symbols, tanh", base={"Q": (1, 1), "K": (2, 1), "V": (2, 1)}, options={"softcap": 2.0, "scale": 1.0}),
        attend("tiny-attend-grouped", "symbols, heads that share", {"slopes": (4,)}, base={"Q": (4, 1, 1), "K": (2, 2, 1), "V": (2, 2, 1)}),
        # ---- layers as systems have them
        options_layer("llama", "rotation, shared heads, causal, softmax in a wider type", {"cos": (5, 4), "sin": (5, 4)},
                      {"mask": causal(5), "softmax_dtype": torch.float64, "n_heads": 6, "n_kv_heads": 2}, batch=(2,), **llama),
        options_layer("gemma-2", "a soft cap, a scale of its own", {"cos": (5, 4), "sin": (5, 4)},
                      {"mask": causal(5), "softcap": 2.0, "scale": 0.4, "n_heads": 6, "n_kv_heads": 2}, **llama),
        options_layer("qwen-3", "QK-norm", {"cos": (5, 4), "sin": (5, 4), "gain_Q": (4,), "gain_K": (4,)},
                      {"mask": causal(5), "eps": 0.01, "n_heads": 6, "n_kv_heads": 2}, **llama),
        options_layer("gpt-oss", "sinks, a window, biases", {"sinks": (6,), "cos": (5, 4), "sin": (5, 4)},
                      {"mask": causal(5).triu(-2), "n_heads": 6, "n_kv_heads": 2}, biases=True, **llama),
        options_layer("t5", "a table of relative positions, no scale", {"table": (7, 6)},
                      {"buckets": t5_buckets(5, 5, n_buckets=6, max_distance=4), "scale": 1.0, "n_heads": 6}, **{**llama, "h_kv": 6}),
        options_layer("decode", "one token against a cache", {"K_cache": (2, 4, 4), "V_cache": (2, 4, 4), "cos": (1, 4), "sin": (1, 4)},
                      {"n_heads": 6, "n_kv_heads": 2}, **{**llama, "n": 1}),
        # ---- fused projections
        fused("fused-gpt2", "[Q ‖ K ‖ V], biases", "contiguous", h=3, d=4, mask=causal(5), biases=True),
        fused("fused-gpt-neox", "[q k v] for each head, 2 of 4 columns turn", "interleaved", h=3, d=4, mask=causal(5),
              extra={"cos": (5, 2), "sin": (5, 2)}, biases=True),
        fused("fused-falcon", "[q … q k v] for each key/value head", "grouped", h=6, h_kv=2, d=3, mask=causal(5)),
        fused("fused-wide-values", "values of another width than keys", "grouped", h=6, h_kv=2, d=3, d_v=4),
        fused("fused-head-last", "view(…, 3·d, h) of the Stack Overflow answer", "head-last", h=3, d=4),
        fused("tiny-fused", "symbols, two heads", "interleaved", n=2, d_model=1, h=2, d=1, d_out=1),
    ]  # fmt: skip


def options_layer(name: str, why: str, extra: Shapes, options: dict[str, Any], **sizes: Any) -> Problem:
    """A layer with arguments of its options; ∂ℓ/∂b_K vanishes only where a shift of all keys is a shift of the scores."""
    plain = layer(name, why, options=options, **sizes)
    return Problem(
        name,
        "multihead",
        plain.shapes | extra,
        plain.output,
        options,
        std=weights(0.35) | STD,
        mean=NOT_ZERO,
        why=why,
    )


def fused(
    name: str, why: str, layout: str, *, n: int = 5, d_model: int = 7, h: int, h_kv: int | None = None, d: int, d_v: int | None = None,
    d_out: int = 11, biases: bool = False, extra: Shapes | None = None, mask: Tensor | None = None,
) -> Problem:  # fmt: skip
    groups, wide = h_kv or h, d_v or d
    N = h * d + groups * d + groups * wide
    shapes: Shapes = {"X": (n, d_model), "W_QKV": (d_model, N), "W_O": (h * wide, d_out)}
    shapes |= {"b_QKV": (N,), "b_O": (d_out,)} if biases else {}
    options = {"layout": layout, "n_heads": h, "n_kv_heads": h_kv, "d_k": d if d_v else None, "mask": mask}
    given = {k: v for k, v in options.items() if v is not None}
    std = {"W_QKV": 0.35, "W_O": 0.35, "b_QKV": 0.0035, "b_O": 0.0035}
    return Problem(name, "fused", shapes | (extra or {}), (n, d_out), given, std=std, why=why)
