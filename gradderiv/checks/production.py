"""The exact check at the size of a model in use: GPT-2 small's attention over 512 tokens."""

from __future__ import annotations

import torch

from gradderiv.checks.catalog import RULES
from gradderiv.checks.oracles import exact_records, field_pairs
from gradderiv.checks.problems import Problem, causal, layer_shapes
from gradderiv.checks.report import Record


def full_size(*, n: int = 512, d_model: int = 768, h: int = 12) -> Problem:
    """Causal self-attention with biases at the given size."""
    d = d_model // h
    shapes = layer_shapes(n=n, d_model=d_model, h=h, d_k=d, d_v=d, d_out=d_model, biases=True)
    return Problem(
        f"n={n} d_model={d_model} h={h}", "multihead", shapes, (n, d_model), {"n_heads": h, "mask": causal(n)},
        zeros=frozenset({"b_K"}), why="a proof at the size that is used",
    )  # fmt: skip


def verify_full_size(seed: int = 0, *, device: str = "cpu", lanes: int = 3) -> list[Record]:
    """Every gradient of the layer against autograd of the textbook forward, over the field, at full size."""
    problem, rule = full_size(), RULES["multihead"]
    with torch.no_grad():
        return exact_records(
            rule,
            problem,
            "full size",
            lambda field: field_pairs(rule, problem, field),
            seed,
            device,
            lanes=lanes,
        )
