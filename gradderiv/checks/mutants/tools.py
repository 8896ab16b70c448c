"""What the stages of :mod:`gradderiv.checks.mutants.stages` are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def affine(X: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """X W + b"""
    return X @ W if b is None else X @ W + b


def tall(X: Tensor) -> Tensor:
    """(..., n, d) as one tall matrix (… · n, d)."""
    return X if X.dim() == 2 else X.reshape(-1, X.shape[-1])


def rowsum(dY: Tensor) -> Tensor:
    """dYᵀ 1, over all leading axes."""
    return tall(dY).sum(0)


def split_heads(X: Tensor, h: int) -> Tensor:
    """(..., n, h·d) → (..., h, n, d)"""
    return X.reshape(*X.shape[:-1], h, -1).movedim(-2, -3)


def join_heads(X: Tensor) -> Tensor:
    """(..., h, n, d) → (..., n, h·d)"""
    X = X.movedim(-3, -2)
    return X.reshape(*X.shape[:-2], -1)


def serve(X: Tensor, head_of: Sequence[int]) -> Tensor:
    """Query head i is served by key/value head ``head_of[i]``."""
    if list(head_of) == list(range(X.shape[-3])):
        return X
    return torch.stack([X.select(-3, j) for j in head_of], -3)


def collect(dX: Tensor, head_of: Sequence[int], h_kv: int) -> Tensor:
    """The transpose of :func:`serve`: what the query heads return to one key/value head adds up."""
    if list(head_of) == list(range(h_kv)):
        return dX
    groups = [[dX.select(-3, i) for i, j in enumerate(head_of) if j == group] for group in range(h_kv)]
    return torch.stack([torch.stack(g).sum(0) for g in groups], -3)


def softmax(A: Tensor, allowed: Tensor | None, axis: int = -1) -> Tensor:
    """exp A / Σ exp A; a row that may attend to nothing is 0."""
    if allowed is None:
        return torch.softmax(A, axis)
    empty = ~allowed.any(axis, keepdim=True)
    return torch.softmax(A.masked_fill(empty, 0.0), axis).masked_fill(empty, 0.0)
