"""The exact check at the size of a model in use: GPT-2 small's attention over 512 tokens, a whole layer of a Llama over 64."""

from __future__ import annotations

import torch

from gradderiv.checks.catalog import RULES
from gradderiv.checks.oracles import field_pairs
from gradderiv.checks.problems import Problem, causal, layer_shapes
from gradderiv.checks.problems.layers import layer
from gradderiv.checks.records import exact_records
from gradderiv.checks.report import Record
from gradderiv.threads import one_thread


def full_size(*, n: int = 512, d_model: int = 768, h: int = 12) -> Problem:
    """Causal self-attention with biases at the given size."""
    d = d_model // h
    shapes = layer_shapes(n=n, d_model=d_model, h=h, d_k=d, d_v=d, d_out=d_model, biases=True)
    return Problem(
        f"n={n} d_model={d_model} h={h}", "multihead", shapes, (n, d_model), {"n_heads": h, "mask": causal(n)},
        zeros=frozenset({"b_K"}), why="a proof at the size that is used",
    )  # fmt: skip


def full_layer(
    *, n: int = 64, d_model: int = 256, h: int = 8, h_kv: int = 4, d_ff: int = 688, style: str = "llama"
) -> Problem:
    """A causal decoder layer with rotation and shared heads at the given size: its nine parameters, its input, and the tables of the rotation."""
    d_k = d_model // h
    return layer(
        f"{style} n={n} d_model={d_model} h={h}/{h_kv} d_ff={d_ff}", style, "a proof at the size that is used",
        n=n, d_model=d_model, d_ff=d_ff, h=h, h_kv=h_kv, d_k=d_k, gated=True, extra={"cos": (n, d_k), "sin": (n, d_k)},
        mask=causal(n),
    )  # fmt: skip


def verify_full_size(seed: int = 0, *, device: str = "cpu", lanes: int = 3) -> list[Record]:
    """Every gradient of the layer against autograd of the textbook forward, over the field, at full size."""
    return _proved(full_size(), "full size", seed, device, lanes)


def verify_full_layer(
    seed: int = 0, *, device: str = "cpu", lanes: int = 4, problem: Problem | None = None
) -> list[Record]:
    """The same of a whole decoder layer; norms, feed-forward and residuals included."""
    with one_thread():
        return _proved(full_layer() if problem is None else problem, "full size", seed, device, lanes)


def _proved(problem: Problem, oracle: str, seed: int, device: str, lanes: int) -> list[Record]:
    """The rule of the problem against autograd of the textbook forward, over the field."""
    rule = RULES[problem.rule]
    with torch.no_grad():
        return exact_records(
            rule,
            problem,
            oracle,
            lambda field: field_pairs(rule, problem, field),
            seed,
            device,
            lanes=lanes,
        )
