"""Prefill and decoding with a KV cache, backwards: the gradients are those of one pass, if what later tokens ask of the cache is carried back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.casebook._llama_parts import H_KV, PAST, B, D, H, N, all_equal, draw, relative
from gradderiv.checks.exact import Pairs
from gradderiv.checks.models import SYSTEMS, arguments, build
from gradderiv.numbers.field import Field
from gradderiv.rules.heads import join_heads, split_heads
from gradderiv.rules.linear import linear, linear_vjp
from gradderiv.rules.masks import causal
from gradderiv.rules.multihead import multihead, multihead_vjp
from gradderiv.rules.rope import rope, rope_vjp, rotary_tables

LLAMA = SYSTEMS["LlamaAttention"]
WIDTH = 16
WEIGHTS = ("W_Q", "W_K", "W_V", "W_O")
SIZES = {
    "X": (B, N, WIDTH),
    "W_Q": (WIDTH, H * D),
    "W_K": (WIDTH, H_KV * D),
    "W_V": (WIDTH, H_KV * D),
    "W_O": (H * D, WIDTH),
    "cos": (N, D),
    "sin": (N, D),
}
GROUPED: dict[str, Any] = {"n_heads": H, "n_kv_heads": H_KV}


class Projected(NamedTuple):
    """K and V of some tokens as the cache holds them, and what their derivatives need."""

    K: Tensor
    V: Tensor
    of_K: Any
    of_V: Any
    of_rope: Any


def whole(args: Mapping[str, Any], dY: Tensor) -> dict[str, Tensor]:
    """All tokens at once: the value, and the gradients."""
    Y, saved = multihead(**args, **GROUPED, mask=causal())
    g = multihead_vjp(dY, saved)
    return {"Y": Y, **{name: getattr(g, name) for name in ("X", *WEIGHTS)}}


def token_by_token(args: Mapping[str, Any], dY: Tensor, *, through_cache: bool = True) -> dict[str, Tensor]:
    """PAST tokens, then one after the other, with a cache; ``through_cache``: what later tokens ask of it is carried back."""
    parts = [slice(0, PAST), *(slice(t, t + 1) for t in range(PAST, N))]
    weights: dict[str, Any] = {w: args[w] for w in WEIGHTS}
    cache: list[Projected] = []
    values, found = [], []
    for part in parts:
        X, cos, sin = args["X"][:, part], args["cos"][part], args["sin"][part]
        past: dict[str, Any] = {}
        if cache:
            past = {
                "K_cache": torch.cat([c.K for c in cache], -2),
                "V_cache": torch.cat([c.V for c in cache], -2),
            }
        Y, saved = multihead(X=X, **weights, cos=cos, sin=sin, **GROUPED, **past, mask=causal("lower-right"))
        values.append(Y)
        found.append(multihead_vjp(dY[:, part], saved))
        cache.append(project(X, args["W_K"], args["W_V"], cos, sin))
    d = {name: [getattr(g, name) for g in found] for name in ("X", *WEIGHTS)}
    for i, (part, made) in enumerate(zip(parts[:-1], cache[:-1], strict=True)):
        later: list[Any] = found[i + 1 :]  # of which each has read K and V of this part
        dK, dV = (total([getattr(g, name)[:, :, part] for g in later]) for name in ("K_cache", "V_cache"))
        back = carried_back(made, dK, dV)
        if through_cache:
            d["X"][i] = d["X"][i] + back["X"]
            d["W_K"].append(back["W_K"])
            d["W_V"].append(back["W_V"])
    return {"Y": torch.cat(values, 1), "X": torch.cat(d["X"], 1), **{w: total(d[w]) for w in WEIGHTS}}


def project(X: Tensor, W_K: Tensor, W_V: Tensor, cos: Tensor, sin: Tensor) -> Projected:
    """What goes into the cache: keys are rotated before."""
    XW_K, of_K = linear(X, W_K)
    XW_V, of_V = linear(X, W_V)
    K, of_rope = rope(split_heads(XW_K, H_KV), cos, sin)
    return Projected(K, split_heads(XW_V, H_KV), of_K, of_V, of_rope)


def carried_back(made: Projected, dK: Tensor, dV: Tensor) -> dict[str, Tensor]:
    """From the cached K and V to the tokens and the weights that they were made of."""
    of_K = linear_vjp(join_heads(rope_vjp(dK, made.of_rope).X), made.of_K)
    of_V = linear_vjp(join_heads(dV), made.of_V)
    return {"X": of_K[0] + of_V[0], "W_K": of_K[1], "W_V": of_V[1]}


def total(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).sum(0)


def cached() -> tuple[bool, dict[str, float]]:
    """Are value and gradients exactly those of one pass; by how much is each off, in norm, where the cache is a constant?"""

    def run(numbers: Field) -> Pairs:
        args, dY = {n: numbers.random(*s) for n, s in SIZES.items()}, numbers.random(B, N, WIDTH)
        one, many = whole(args, dY), token_by_token(args, dY)
        return {name: (many[name], one[name]) for name in one}

    *given, dY = draw(*SIZES.values(), (B, N, WIDTH))
    args = dict(zip(SIZES, given, strict=True))
    args |= {w: args[w] / args[w].shape[0] ** 0.5 for w in WEIGHTS}
    args["cos"], args["sin"] = rotary_tables(torch.arange(N, dtype=torch.float64), D)
    one, cut = whole(args, dY), token_by_token(args, dY, through_cache=False)
    return all_equal(run), {name: float((cut[name] - one[name]).norm() / one[name].norm()) for name in one}


def of_transformers() -> dict[str, float]:
    """LlamaAttention on the tokens after PAST with a ``DynamicCache``: errors of its value and of its gradients of the cached K and V, relative."""
    from transformers import DynamicCache

    built = build(LLAMA)
    x = {name: t.detach() for name, t in arguments(LLAMA, built.leaves).items()}
    X, cos, sin = built.leaves["hidden_states"], built.leaves["cos"], built.leaves["sin"]
    held = DynamicCache()
    module, dY = built.module, built.dY[:, PAST:]
    module(X[:, :PAST], (cos[:, :PAST], sin[:, :PAST]), None, past_key_values=held)
    K, V = (t.detach().requires_grad_() for t in (held.layers[0].keys, held.layers[0].values))
    held.layers[0].keys, held.layers[0].values = K, V
    later = torch.ones(N - PAST, N, dtype=torch.bool).triu(PAST + 1)
    mask = torch.zeros(N - PAST, N, dtype=X.dtype).masked_fill(later, -torch.inf)
    new = (cos[:, PAST:], sin[:, PAST:])
    Y, _ = module(X[:, PAST:], new, mask, past_key_values=held)
    dK, dV = torch.autograd.grad(Y, (K, V), dY)
    made = project(X[:, :PAST], x["W_K"], x["W_V"], x["cos"][:, :, :PAST], x["sin"][:, :, :PAST])
    args: dict[str, Any] = {w: x[w] for w in WEIGHTS}
    args |= {"X": X[:, PAST:], "cos": x["cos"][:, :, PAST:], "sin": x["sin"][:, :, PAST:]}
    args |= {"K_cache": made.K, "V_cache": made.V, "softmax_dtype": torch.float32}
    value, saved = multihead(**args, **GROUPED, mask=causal("lower-right"))
    g: Any = multihead_vjp(dY, saved)
    found = {"Y": (value, Y.detach()), "K": (g.K_cache, dK), "V": (g.V_cache, dV)}
    return {name: relative(*pair) for name, pair in found.items()}
