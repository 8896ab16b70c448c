"""Biases of the scores: a matrix, a slope times a distance, a table of relative positions.

    matrix     Y = S + B                         B broadcasts to S; its gradient is summed over every broadcast axis
    ALiBi      Y = S − m_h |i − j|               Press et al. 2021, §3; the slopes m (h) may be learned
    T5         Y = S + t[bucket(i, j), h]        Raffel et al. 2020, §2.1; Shaw et al. 2018

S, Y (..., h, n_q, n_k)   slopes (h)   table (n_buckets, h)   buckets (n_q, n_k), integers.   The last query stands at the last key: with n_q ≠ n_k, i counts from
n_k − n_q, as FlashAttention's ALiBi has it and as decoding with a cache needs it. All three are linear in S and in their parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.errors import DtypeError, message
from gradderiv.rules._inputs import kind, require, require_broadcast, require_tensors, rule, shape, shapes
from gradderiv.rules.steps import Operator


class BiasGradients(NamedTuple):
    """∂ℓ/∂S, and that of the matrix, the slopes or the table."""

    S: Tensor
    parameter: Tensor


@rule
def add_bias(S: Tensor, bias: Tensor) -> Tensor:
    """Y = S + B

    Added after scaling, as ``attn_mask`` of torch's scaled_dot_product_attention; Raffel et al. 2020, §2.1, for one that is learned.

    Args:
        S: (..., n_q, n_k).
        bias: B, broadcasts to S.

    Returns:
        Y (..., n_q, n_k).

    Raises:
        InputError: a bias that does not broadcast.
        DtypeError: integers, several dtypes or devices.
    """
    require_tensors("add_bias", S=S, bias=bias)
    require_broadcast("add_bias", "bias", bias, tuple(S.shape))
    return S + bias


@rule
def add_alibi(S: Tensor, slopes: Tensor) -> Tensor:
    """Y = S − m_h |i − j|

    Press et al. 2021, §3.

    Args:
        S: (..., h, n_q, n_k).
        slopes: m, (h).

    Returns:
        Y (..., h, n_q, n_k).

    Raises:
        InputError: scores without heads, another number of slopes.
        DtypeError: integers, several dtypes or devices.
    """
    require_tensors("add_alibi", S=S, slopes=slopes)
    require(
        S.dim() > 2 and slopes.shape == S.shape[-3:-2],
        "ALiBi needs one slope for each head: slopes (h)",
        shapes(S=S, slopes=slopes),
        "slopes already multiplied by the distances, or scores without an axis for the heads",
        "pass the product as bias, and slopes as they are",
    )
    return S - slopes[:, None, None] * distance(S)


@rule
def add_relative(S: Tensor, table: Tensor, *, buckets: Tensor) -> Tensor:
    """Y = S + t[bucket(i, j), h]

    Raffel et al. 2020, §2.1.

    Args:
        S: (..., h, n_q, n_k).
        table: t, (n_buckets, h).
        buckets: (n_q, n_k), the row of the table for every place; see :func:`t5_buckets`.

    Returns:
        Y (..., h, n_q, n_k).

    Raises:
        InputError: a table or buckets that do not fit, a bucket that the table does not have.
        DtypeError: integers in S or the table, several dtypes or devices; buckets that are not integers.
    """
    require_tensors("add_relative", S=S, table=table)
    if not isinstance(buckets, Tensor) or buckets.dtype not in (torch.int32, torch.int64):
        raise DtypeError(
            message(
                "add_relative needs buckets (n_q, n_k) as integers",
                kind(buckets),
                "distances, or a one-hot matrix, instead of row numbers",
                "t5_buckets(n_q, n_k, n_buckets=…)",
            )
        )
    fits = (
        S.dim() > 2 and table.dim() == 2 and table.shape[1] == S.shape[-3] and buckets.shape == S.shape[-2:]
    )
    low, high = (int(buckets.min()), int(buckets.max())) if buckets.numel() else (0, 0)
    require(
        fits and low >= 0 and high < table.shape[0],
        "a table of relative positions needs shape (n_buckets, h), and buckets (n_q, n_k) its row numbers",
        f"{shapes(S=S, table=table)}, buckets {shape(buckets)} from {low} to {high}",
        "the transpose of an embedding's weight, or buckets of another sequence length",
        "embedding.weight, and t5_buckets(n_q, n_k, n_buckets=…)",
    )
    return S + table[buckets].movedim(-1, -3)


def distance(S: Tensor) -> Tensor:
    """|i − j|, the last query at the last key: (n_q, n_k), of the dtype of S."""
    n_q, n_k = S.shape[-2:]
    i = torch.arange(n_k - n_q, n_k, device=S.device)[:, None]
    return (i - torch.arange(n_k, device=S.device)).abs().to(S.dtype)


def _summed(dY: Tensor, shape: torch.Size) -> Tensor:
    """dB = Σ dY, over every axis that B broadcasts along."""
    return dY.sum_to_size(shape)


def _of_slopes(dY: Tensor, shape: torch.Size) -> Tensor:
    """dm_h = −Σ dY_h ∘ |i − j|"""
    return -(dY * distance(dY)).sum((-1, -2)).sum_to_size(shape)


def _of_table(dY: Tensor, shape: torch.Size, buckets: Tensor) -> Tensor:
    """dt[b, h] = Σ dY_h over the places with bucket b"""
    places = dY.sum_to_size(dY.shape[-3:]).movedim(-3, -1).flatten(0, 1)  # n_q·n_k h
    return dY.new_zeros(shape).index_add(0, buckets.flatten(), places)


def _linear(f: Callable[..., Tensor], of_parameter: Callable[..., Tensor]) -> Operator:
    """Y = S + L(θ):   Ẏ = Ṡ + L(θ̇),   dS = dY,   dθ = Lᵀ dY,   and the same of their tangents"""

    def value(
        S: Tensor, parameter: Tensor, **static: Tensor
    ) -> tuple[Tensor, tuple[torch.Size, dict[str, Tensor]]]:
        return f(S, parameter, **static), (parameter.shape, static)

    def cotangent(dY: Tensor, saved: tuple[torch.Size, dict[str, Tensor]]) -> BiasGradients:
        return BiasGradients(dY, of_parameter(dY, saved[0], **saved[1]))

    return Operator(
        value,
        lambda saved, S_dot, parameter_dot: f(S_dot, parameter_dot, **saved[1]),
        cotangent,
        lambda dY, saved, dY_dot, S_dot, parameter_dot: cotangent(dY_dot, saved),
    )


BIAS = _linear(add_bias, _summed)
ALIBI = _linear(add_alibi, _of_slopes)
RELATIVE = _linear(add_relative, _of_table)


def alibi_slopes(n_heads: int) -> Tensor:
    """m_i = 2^(−8i/h), i = 1 … h, for h a power of two; else those of the power below, and every second of the one above

    Press et al. 2021, §3 and its code.
    """
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    between = [2 ** (-4 * i / power) for i in range(1, 2 * (n_heads - power), 2)]
    return torch.tensor(slopes + between, dtype=torch.float64)


def t5_buckets(
    n_q: int, n_k: int, *, n_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
) -> Tensor:
    """bucket(i, j): the distance itself where it is small, its logarithm where it is large

    Raffel et al. 2020, §2.1 and its code; transformers' ``T5Attention._relative_position_bucket``.

    Args:
        n_q, n_k: numbers of queries and keys; the last query stands at the last key.
        n_buckets: rows of the table.
        max_distance: from here on all share the last bucket.
        bidirectional: keys behind and ahead have buckets of their own, half of the rows each; else keys ahead share bucket 0.

    Returns:
        (n_q, n_k), integers.

    Raises:
        InputError: too few buckets for a logarithm, or a distance that lies among those with a bucket of their own.
    """
    rows = n_buckets // 2 if bidirectional else n_buckets
    require(
        rows >= 2 and max_distance > rows // 2,
        f"t5_buckets needs n_buckets at least {4 if bidirectional else 2}, and a max_distance above {max(rows // 2, 1)}",
        f"n_buckets={n_buckets}, max_distance={max_distance}",
        "the two exchanged",
        "n_buckets=32, max_distance=128, as T5 has them",
    )
    ahead = torch.arange(n_k) - torch.arange(n_k - n_q, n_k)[:, None]
    first = (ahead > 0) * rows if bidirectional else torch.zeros_like(ahead)
    far = ahead.abs() if bidirectional else (-ahead).clamp(min=0)
    exact = rows // 2
    ratio = torch.log(far.clamp(min=1).to(torch.float32) / exact) / math.log(max_distance / exact)
    large = (exact + (ratio * (rows - exact)).long()).clamp(max=rows - 1)
    return first + torch.where(far < exact, far, large)
