"""Products in all the forms of ``torch.matmul``, and embeddings, three times over."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# ---------------------------------------------------------------- textbook, in torch


def matmul(A: Tensor, B: Tensor) -> Tensor:
    """C_…ne = Σ_d A_…nd B_…de"""
    a, n = ("d", "") if A.dim() == 1 else ("...nd", "n")
    b, e = ("d", "") if B.dim() == 1 else ("...de", "e")
    return torch.einsum(f"{a},{b}->{'...' * bool(n + e)}{n}{e}", A, B)


def embedding(
    table: Tensor, positions: Tensor | None = None, *, tokens: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    """Rows of zeros with a single one, times the table."""
    X = _one_hot(tokens, table) @ table
    if positions is None:
        return X
    counted = torch.arange(tokens.shape[-1], device=tokens.device)
    return X + _one_hot(counted if position_ids is None else position_ids, positions) @ positions


def _one_hot(ids: Tensor, table: Tensor) -> Tensor:
    return (ids[..., None] == torch.arange(table.shape[0], device=ids.device)).to(table.dtype)


TEXTBOOK: dict[str, Callable[..., Tensor]] = {"matmul": matmul, "embedding": embedding}

# ---------------------------------------------------------------- the same as loops


def loop_matmul(A: Tensor, B: Tensor) -> Tensor:
    """Every entry by its own sum; a leading axis that an operand lacks, or has as 1, is not moved along."""
    a = A.reshape(1, -1) if A.dim() == 1 else A
    b = B.reshape(-1, 1) if B.dim() == 1 else B
    count = max(a.dim(), b.dim()) - 2
    leading = [max(_size(a, axis), _size(b, axis)) for axis in range(-2 - count, -2)]
    C = A.new_zeros(*leading, a.shape[-2], b.shape[-1])
    for *i, n, e in C.new_ones(C.shape).nonzero().tolist():
        row, column = a[(*_own(i, a), n)].tolist(), b[(*_own(i, b), slice(None), e)].tolist()
        C[(*i, n, e)] = math.fsum(x * y for x, y in zip(row, column, strict=True))
    shape = leading + [a.shape[-2]] * (A.dim() > 1) + [b.shape[-1]] * (B.dim() > 1)
    return C.reshape(shape)


def _size(x: Tensor, axis: int) -> int:
    return x.shape[axis] if -axis <= x.dim() else 1


def _own(index: list[int], x: Tensor) -> list[int]:
    """The index of a matrix of the product as one of the operand's own."""
    own = index[len(index) - (x.dim() - 2) :]
    return [i if n > 1 else 0 for i, n in zip(own, x.shape, strict=False)]


def loop_embedding(
    table: Tensor, positions: Tensor | None = None, *, tokens: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    X = table.new_zeros(*tokens.shape, table.shape[1])
    for *batch, i in torch.ones(tokens.shape).nonzero().tolist():
        X[(*batch, i)] = table[int(tokens[(*batch, i)])]
        if positions is not None:
            p = i if position_ids is None else int(position_ids.expand(tokens.shape)[(*batch, i)])
            X[(*batch, i)] += positions[p]
    return X


LOOPS: dict[str, Callable[..., Tensor]] = {"matmul": loop_matmul, "embedding": loop_embedding}

# ---------------------------------------------------------------- torch's own


def torch_matmul(A: Tensor, B: Tensor) -> Tensor:
    return torch.matmul(A, B)


def torch_embedding(
    table: Tensor, positions: Tensor | None = None, *, tokens: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    X = functional.embedding(tokens, table)
    if positions is None:
        return X
    n = tokens.shape[-1]
    return X + (positions[:n] if position_ids is None else functional.embedding(position_ids, positions))


TORCH: dict[str, Callable[..., Tensor]] = {"matmul": torch_matmul, "embedding": torch_embedding}
