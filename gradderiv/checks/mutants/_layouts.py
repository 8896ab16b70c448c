"""Mistakes in fused projections, and in heads that share keys and values where options are on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.mutants.mutant import GRADIENT, VALUE, Mutant
from gradderiv.rules.layouts import split

Parts = tuple[Tensor, ...]


def read_as(layout: str) -> Any:
    """The fused matrix read in this layout, whatever it is in."""
    return lambda QKV, **heads: tuple(split(QKV, **{**heads, "layout": layout}))


def left_contiguous(dQKV: Parts, saved: Any) -> Parts:
    """[dQ ‖ dK ‖ dV], not permuted back."""
    return (torch.cat(dQKV, -1),)


def tile(X: Tensor, n_heads: int) -> Tensor:
    """[0 1 0 1 0 1]"""
    return torch.cat([X] * (n_heads // X.shape[-3]), -3)


def last_of_group(dX: Tensor, saved: Any) -> Parts:
    """Each query head of a group overwrites what the one before it wrote."""
    h_kv = saved[0][-3]
    return (dX.unflatten(-3, (h_kv, -1)).select(-3, -1),)


FUSED: dict[str, Any] = {"kind": "forward", "kills": VALUE}

MUTANTS = (
    Mutant(
        "layout-contiguous", "[q k v] for each head read as [Q ‖ K ‖ V]", "litgpt #2201, NeMo-RL #2802, slapo #46",
        {"split.f": read_as("contiguous")}, problems=("fused-gpt-neox",), **FUSED,
    ),
    Mutant(
        "layout-per-head", "[Q ‖ K ‖ V] read as [q k v] for each head", "the same slip the other way round",
        {"split.f": read_as("interleaved")}, problems=("fused-gpt2",), **FUSED,
    ),
    Mutant(
        "layout-head-last", "view(…, 3·d, h) read as view(…, 3, h, d)", "Stack Overflow, operations vary after reshaping",
        {"split.f": read_as("contiguous")}, problems=("fused-head-last",), **FUSED,
    ),
    Mutant(
        "layout-backward", "dW_QKV = Xᵀ [dQ ‖ dK ‖ dV] without Π: left contiguous for [q … q k v] of each group", "litgpt #2201, its backward",
        {"split.vjp": left_contiguous}, problems=("fused-wide-values",), kills=GRADIENT,
    ),
    Mutant(
        "repeat-tile", "K, V of shared heads tiled [0 1 0 1 0 1], not [0 0 0 1 1 1]", "onnx #7274, jax-js #180, axlearn #842",
        {"repeat.f": tile}, kind="forward", problems=("attend-grouped",), kills=VALUE,
    ),
    Mutant(
        "repeat-no-sum", "dK, dV of the last query head of a group, not of all", "levanter #449",
        {"repeat.vjp": last_of_group}, problems=("attend-grouped", "tiny-attend-grouped"), kills=GRADIENT | {"sympy", "identities"},
    ),
)  # fmt: skip
