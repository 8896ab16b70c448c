"""Embeddings of tokens and of their positions.

    X_i = E[t_i] + R[p_i]                        Vaswani et al. 2017, §3.4; R learned: §3.5, Radford et al. 2019

table E (n_vocab, d)   positions R (n_pos, d)   tokens t (..., n)   position_ids p: broadcast to t   X (..., n, d)

In matrices X = 1_t E + 1_p R, row i of 1_t being 1 in column t_i: linear in E and R, so dE = 1_tᵀ dX adds up, for every
token, the rows of dX at its places. A factor √d_model on E, as §3.4 has it, is multiplied outside.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.errors import DtypeError, message
from gradderiv.rules._inputs import require, require_tensors, rule, shape, shapes


class EmbeddingSaved(NamedTuple):
    """What the backward pass of :func:`embedding` needs: which rows were read, of how many; not the rows."""

    tokens: Tensor
    position_ids: Tensor | None
    n_vocab: int
    n_pos: int


class EmbeddingGradients(NamedTuple):
    """∂ℓ/∂table, ∂ℓ/∂positions (None where there are no positions)."""

    table: Tensor
    positions: Tensor | None


@rule
def embedding(
    table: Tensor, positions: Tensor | None = None, *, tokens: Tensor, position_ids: Tensor | None = None
) -> tuple[Tensor, EmbeddingSaved]:
    """X = table[tokens] + positions[position_ids]

    Vaswani et al. 2017, §3.4 and §3.5; learned positions added to tokens: Radford et al. 2019.

    Args:
        table: (n_vocab, d).
        positions: (n_pos, d), or None.
        tokens: integers (..., n), of 0 … n_vocab − 1.
        position_ids: integers of 0 … n_pos − 1, broadcast to tokens; 0 … n − 1 when None.

    Returns:
        X (..., n, d) and what :func:`embedding_vjp` needs.

    Raises:
        InputError: tables that do not fit, tokens or positions out of range, positions without a table.
        DtypeError: tokens or positions that are not integers; tables of integers, several dtypes or devices.
    """
    require_tables(table, positions, position_ids)
    require_ids("tokens", tokens, table)
    X = table[tokens]  # ... n d
    if positions is None:
        return X, EmbeddingSaved(tokens, None, table.shape[0], 0)
    if position_ids is None:
        position_ids = torch.arange(tokens.shape[-1], device=tokens.device)  # n
    require_ids("position_ids", position_ids, positions, tokens)
    X = X + positions[position_ids]  # ... n d
    return X, EmbeddingSaved(tokens, position_ids, table.shape[0], positions.shape[0])


@rule
def embedding_jvp(saved: EmbeddingSaved, table_dot: Tensor, positions_dot: Tensor | None = None) -> Tensor:
    """Ẋ = table_dot[tokens] + positions_dot[position_ids]

    The embedding is linear in both tables.
    """
    tokens, position_ids, _, _ = saved
    X_dot = table_dot[tokens]  # ... n d
    if positions_dot is not None:
        X_dot = X_dot + positions_dot[position_ids]  # ... n d
    return X_dot


@rule
def embedding_vjp(dX: Tensor, saved: EmbeddingSaved) -> EmbeddingGradients:
    """dtable_v = Σ_{i: t_i = v} dX_i,   dpositions_p = Σ_{i: p_i = p} dX_i

    1_tᵀ dX and 1_pᵀ dX; Giles 2008, §2.2.2. A row that no token names is 0.
    """
    tokens, position_ids, n_vocab, n_pos = saved
    # X was table[tokens] + positions[position_ids]
    dpositions = None if position_ids is None else added_rows(dX, position_ids, n_pos)  # n_pos d
    dtable = added_rows(dX, tokens, n_vocab)  # n_vocab d
    return EmbeddingGradients(dtable, dpositions)


@rule
def embedding_vjp_jvp(dX: Tensor, saved: EmbeddingSaved, dX_dot: Tensor) -> EmbeddingGradients:
    """dtable_dot = 1_tᵀ dẊ,   dpositions_dot = 1_pᵀ dẊ

    :func:`embedding_vjp` is linear in dX and does not depend on the tables.
    """
    return embedding_vjp(dX_dot, saved)


def added_rows(dX: Tensor, ids: Tensor, count: int) -> Tensor:
    """1_idsᵀ dX, (count, d): row v adds up the rows of dX (..., n, d) whose id is v."""
    d = dX.shape[-1]
    places = ids.expand(dX.shape[:-1]).reshape(-1)
    return dX.new_zeros(count, d).index_add(0, places, dX.reshape(-1, d))


# ---------------------------------------------------------------- what is refused


def require_tables(table: Tensor, positions: Tensor | None, position_ids: Tensor | None) -> None:
    """Demand two tables of one width, and no places in a table that is not there.

    Raises:
        InputError, DtypeError: they are not that.
    """
    require_tensors("embedding", table=table, **({} if positions is None else {"positions": positions}))
    require(
        table.dim() == 2
        and (positions is None or (positions.dim() == 2 and positions.shape[1] == table.shape[1])),
        "embedding needs table (n_vocab, d) and positions (n_pos, d)",
        shapes(table=table, positions=positions),
        "a table with a batch axis, transposed, or of another width",
        "pass nn.Embedding's weights as they are",
    )
    require(
        positions is not None or position_ids is None,
        "embedding needs positions where position_ids are given",
        "position_ids and no positions",
        "the table of positions was left out",
        "pass positions (n_pos, d), or no position_ids",
    )


def require_ids(name: str, ids: Tensor, table: Tensor, like: Tensor | None = None) -> None:
    """Demand integers that are rows of the table and, where ``like`` is given, broadcast to it.

    Raises:
        DtypeError: not a tensor of int64 or int32.
        InputError: none at all, a row that the table does not have, a shape that does not fit.
    """
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        raise DtypeError(
            message(
                f"embedding needs {name} as a tensor of int64 or int32",
                f"dtype {ids.dtype}" if isinstance(ids, Tensor) else f"{ids!r:.60}",
                "a list, a mask, one-hot rows, or numbers that went through floats or bytes",
                f"torch.as_tensor({name}, dtype=torch.int64); for one-hot rows, rows @ table",
            )
        )
    require(
        ids.dim() >= 1 and ids.numel() > 0,
        f"embedding needs {name} (..., n), at least one of them",
        f"{name} {shape(ids)}",
        "an empty sequence, or one token without an axis",
        f"{name}.reshape(1) for one token",
    )
    size = table.shape[0]
    require(
        not ((ids < 0) | (ids >= size)).any(),
        f"embedding needs {name} of 0 … {size - 1}, the rows of its table",
        f"{name} from {ids.min()} to {ids.max()}",
        "a sequence longer than the table of positions, a tokenizer with another vocabulary, or −100 for ignored tokens",
        "cut the sequence, take the tokenizer of the table, or replace what is ignored by a token of the vocabulary",
    )
    if like is not None:
        fits = ids.dim() <= like.dim() and all(
            a in (1, b) for a, b in zip(reversed(ids.shape), reversed(like.shape), strict=False)
        )
        require(
            fits,
            f"embedding needs {name} that broadcast to the tokens {shape(like)}",
            f"{name} {shape(ids)}",
            "positions of another sequence or batch",
            "one position for each token, (n) for all sequences or (..., n)",
        )
