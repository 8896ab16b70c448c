"""The constant matrices of the block-diagonal head formulation: block patterns, masks and the row shift."""

from __future__ import annotations

import torch
from torch import Tensor

from gradderiv.rules._inputs import rule


@rule
def block_ones(like: Tensor, n_heads: int, n: int, d: int) -> Tensor:
    """blockdiag(1 … 1) with h blocks n × d

    The block pattern of a head formulation, of the dtype and device of ``like``.
    """
    one, block = like.new_ones(n_heads), like.new_ones(n, d)
    return torch.kron(torch.diag(one), block)


@rule
def stack_identity(like: Tensor, n_heads: int, n: int) -> Tensor:
    """𝓒 = [I … I]  (n × h·n)

    Adds h blocks of n rows up: 𝓒 A = Σ_i Π_i A.
    """
    return torch.diag(like.new_ones(n)).repeat(1, n_heads)


@rule
def row_shift(S: Tensor, mask: Tensor, n_heads: int) -> Tensor:
    """m_ij = max over the allowed keys of row i in the head of column j; 0 where there is none

    The shift under exp. A constant: softmax does not depend on it.
    """
    rows, columns = S.shape
    allowed = mask.view(rows, n_heads, columns // n_heads)
    scores = S.detach().view(rows, n_heads, columns // n_heads).masked_fill(~allowed, -torch.inf)
    m = scores.amax(-1, keepdim=True).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return m.expand_as(scores).reshape(rows, columns)


@rule
def repeat_mask(S: Tensor, mask: Tensor | None, n_heads: int) -> Tensor:
    """M̃ = [M … M], all True without a mask. (n_q, n_k) → (n_q, h·n_k)"""
    if mask is None:
        return torch.ones(S.shape, dtype=torch.bool, device=S.device)
    return mask.expand(S.shape[0], S.shape[1] // n_heads).repeat(1, n_heads)


@rule
def empty_rows(M: Tensor, n_heads: int) -> Tensor:
    """True where the row of that head allows no key: there P = 0/1, not 0/0."""
    allowed = M.view(M.shape[0], n_heads, -1).any(-1, keepdim=True)
    return (~allowed).expand(-1, -1, M.shape[1] // n_heads).reshape(M.shape)
