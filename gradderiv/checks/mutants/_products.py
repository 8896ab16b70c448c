"""Mistakes in matrix products that broadcast, and in embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from gradderiv.checks.mutants.mutant import GRADIENT, Mutant
from gradderiv.rules.embedding import EmbeddingSaved, embedding_vjp
from gradderiv.rules.matmul import MatmulSaved, matmul_vjp

Gradients = tuple[Tensor | None, ...]


def last_repeated(X: Tensor, shape: torch.Size) -> Tensor:
    """(..., n, d) → ``shape``: where the operand was repeated, the last copy alone."""
    X = X[(-1,) * (X.dim() - len(shape))]
    for axis, size in enumerate(shape):
        X = X if X.shape[axis] == size else X.narrow(axis, X.shape[axis] - 1, 1)
    return X


def last_product(dC: Tensor, saved: MatmulSaved) -> Gradients:
    A, B = saved
    return last_repeated(dC @ B.mT, A.shape), last_repeated(A.mT @ dC, B.shape)


def column_as_row(dC: Tensor, saved: MatmulSaved) -> Gradients:
    """dA = B dC as (d, n), read as (n, d), for dA = dC Bᵀ."""
    A, B = saved
    return matmul_vjp(dC, saved)._replace(A=(B[:, None] * dC[None, :]).reshape(A.shape))


def last_token(dX: Tensor, saved: EmbeddingSaved) -> Gradients:
    """Row v of dE from the last place of token v: each overwrites the one before it."""
    rows = dX.reshape(-1, dX.shape[-1])
    last = {t: i for i, t in enumerate(saved.tokens.flatten().tolist())}
    none = torch.zeros_like(rows[0])
    table = torch.stack([rows[last[v]] if v in last else none for v in range(saved.n_vocab)])
    return embedding_vjp(dX, saved)._replace(table=table)


def over_the_batch(dX: Tensor, saved: EmbeddingSaved) -> Gradients:
    """dR averaged over the sequences."""
    g = embedding_vjp(dX, saved)
    assert g.positions is not None
    return g._replace(positions=g.positions / (saved.tokens.numel() // saved.tokens.shape[-1]))


MUTANTS = (
    Mutant(
        "matmul-no-sum", "dA, dB of the last of the matrices that share an operand, not of all", "the same slip as gqa-no-sum",
        {"matmul.vjp": last_product}, problems=("matmul-broadcast", "tiny-matmul"), kills=GRADIENT | {"sympy"},
    ),
    Mutant(
        "matmul-row", "a vector taken for a row where it is a column: dA = B dCᵀ, not dC Bᵀ", "ours",
        {"matmul.vjp": column_as_row}, problems=("matmul-column",), kills=GRADIENT,
    ),
    Mutant(
        "embedding-overwritten", "dE of the last place of a token, not of all", "ours", {"embedding.vjp": last_token},
        problems=("embedding", "tiny-embedding"), kills=GRADIENT | {"sympy"},
    ),
    Mutant(
        "embedding-mean", "dR averaged over the sequences of a batch", "the same slip as bias-mean", {"embedding.vjp": over_the_batch},
        problems=("embedding-batch",), kills=GRADIENT,
    ),
)  # fmt: skip
