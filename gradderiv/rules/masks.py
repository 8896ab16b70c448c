"""Which keys a query may attend to, said once, for scores of any shape.

    M_ij = 1 where query i may attend to key j, else 0          M broadcasts to S (..., n_q, n_k); True = may attend

    causal      j ≤ i + o                        o = 0 (upper-left) or n_k − n_q (lower-right): CausalVariant of torch.nn.attention.bias
    window      i + o − left ≤ j ≤ i + o + right                     Child et al. 2019; ``window_size`` of FlashAttention
    padding     j < length, or j ≥ n_k − length where the padding stands on the left
    packed      i and j are tokens of one document
    boolean, hidden, everything                  a tensor as it stands, a tensor with True = masked, no mask

A :class:`Mask` is a rule; :meth:`Mask.on` makes the tensor. Masks combine by logic, & | ~, and never by arithmetic: −10000 + −10000 is another fill than
−10000, and the lowest float twice is −∞. A float mask is read by :func:`read_additive`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.errors import DtypeError, message
from gradderiv.rules._inputs import require, require_tensors, shape
from gradderiv.rules._mask import Mask, boolean, resolve

__all__ = [
    "Additive", "Mask", "boolean", "causal", "documents", "everything", "hidden", "packed", "padding", "read_additive", "resolve", "window",
]  # fmt: skip

LONGEST = 8  # lengths that are spelled out


# ---------------------------------------------------------------- where keys stand


def causal(alignment: str | None = None) -> Mask:
    """M_ij = 1 where j ≤ i + o

    Vaswani et al. 2017, §3.2.3. No later key, where queries and keys are aligned at the first (``"upper-left"``, o = 0: ``is_causal`` of torch) or at the
    last (``"lower-right"``, o = n_k − n_q: FlashAttention since 2.1, a KV cache). Needed only where n_q ≠ n_k, and then nothing is assumed.
    """
    written = "causal()" if alignment is None else f"causal({alignment!r})"
    return _band(-1, 0, alignment, written)


def window(left: int, right: int, alignment: str | None = None) -> Mask:
    """M_ij = 1 where i + o − left ≤ j ≤ i + o + right

    Child et al. 2019; FlashAttention's ``window_size``, −1 = unbounded, which is aligned at the lower right. o as in :func:`causal`.
    """
    require(
        min(left, right) >= -1,
        "a window is a number of keys to the left and to the right, -1 = unbounded",
        f"left {left}, right {right}",
        "an offset with a sign",
        "window(3, 0) for the query's own key and three before it",
    )
    aligned = "" if alignment is None else f", {alignment!r}"
    return _band(left, right, alignment, f"window({left}, {right}{aligned})")


def _band(left: int, right: int, alignment: str | None, written: str) -> Mask:
    require(
        alignment in (None, "upper-left", "lower-right"),
        "an alignment is 'upper-left' or 'lower-right'",
        repr(alignment),
        "another library's word",
        "upper-left where the first query is at the first key, lower-right where the last is at the last",
    )

    def make(size: tuple[int, ...], device: torch.device) -> Tensor:
        n_q, n_k = size[-2:]
        require(
            alignment is not None or n_q == n_k,
            f"{written} needs an alignment where there are more keys than queries, or fewer",
            f"n_q = {n_q}, n_k = {n_k}",
            "a KV cache or cross-attention; systems differ in what they do here",
            "alignment='lower-right' (a KV cache, FlashAttention) or 'upper-left' (is_causal of torch)",
        )
        o = n_k - n_q if alignment == "lower-right" else 0
        ahead = torch.arange(n_k, device=device) - torch.arange(n_q, device=device)[:, None] - o  # n_q n_k
        M = torch.ones_like(ahead, dtype=torch.bool)
        M = M if left < 0 else M & (ahead >= -left)
        return M if right < 0 else M & (ahead <= right)

    return Mask(make, written)


def padding(lengths: int | Sequence[int] | Tensor, side: str = "right") -> Mask:
    """M_ij = 1 where j < length; where j ≥ n_k − length if the padding stands on the left

    The key padding of every batched model; lengths (B) belong to the first axis of the scores, lengths (A, B) to the first two: M (B, 1, 1, n_k) on scores (B, h, n_q, n_k).
    """
    counts = _integers("padding", "lengths", lengths)
    require(
        side in ("right", "left"),
        "padding stands 'right' or 'left'",
        repr(side),
        "another word",
        "side='left' for a decoder that goes on writing",
    )
    written = f"padding({_spelled(counts)}{'' if side == 'right' else ', side=' + repr(side)})"

    def make(size: tuple[int, ...], device: torch.device) -> Tensor:
        n_k = size[-1]
        here = _leading(written, counts.to(device), size)[..., None, None]  # (B, 1, …, 1, 1)
        require(
            not ((counts < 0) | (counts > n_k)).any(),
            f"{written} needs lengths from 0 to n_k",
            f"n_k = {n_k}",
            "lengths of queries, or a longer batch",
            "the number of keys of each sequence that are no padding",
        )
        j = torch.arange(n_k, device=device)
        return j < here if side == "right" else j >= n_k - here

    return Mask(make, written)


def packed(lengths: Sequence[int] | Tensor) -> Mask:
    """M_ij = 1 where i and j are tokens of one document; documents of these lengths, one after the other

    Krell et al. 2021. Block-diagonal, for n_q = n_k = Σ lengths; with ``& causal()`` each document is causal by itself.
    """
    counts = _integers("packed", "lengths", lengths)
    require(counts.dim() == 1 and not (counts < 0).any(), "packed needs the lengths of the documents, one after the other", _spelled(counts), "a batch of lengths, or cu_seqlens' differences in reverse", "documents(ids) for a batch")  # fmt: skip
    ids = torch.repeat_interleave(torch.arange(counts.shape[0]), counts)
    return _same(ids, ids, f"packed({_spelled(counts)})")


def documents(ids: Sequence[int] | Tensor, key_ids: Sequence[int] | Tensor | None = None) -> Mask:
    """M_ij = 1 where id_i = id_j

    ``segment_ids`` of JAX, ``document_id`` of FlexAttention: (n), or (B, n) with B the first axis of the scores; key_ids where keys are others than queries.
    """
    queries = _integers("documents", "ids", ids)
    keys = queries if key_ids is None else _integers("documents", "key_ids", key_ids)
    written = _spelled(queries) if key_ids is None else f"{_spelled(queries)}, {_spelled(keys)}"
    return _same(queries, keys, f"documents({written})")


def _same(queries: Tensor, keys: Tensor, written: str) -> Mask:
    def make(size: tuple[int, ...], device: torch.device) -> Tensor:
        found = queries.shape[-1:] + keys.shape[-1:]
        require(
            found == size[-2:],
            f"{written} needs one token for each query and each key",
            f"{tuple(found)} for scores {size}",
            "padding that is in no document, or other keys than queries",
            "a document of its own for the padding; documents(ids, key_ids) for cross-attention",
        )
        q, k = (t.to(device).movedim(-1, 0) for t in (queries, keys))  # (n, B)
        q, k = (torch.stack([_leading(written, row, size) for row in t], -1) for t in (q, k))  # (B, 1, …, n)
        return q[..., :, None] == k[..., None, :]

    return Mask(make, written)


# ---------------------------------------------------------------- tensors


def hidden(tensor: Tensor) -> Mask:
    """M = ¬tensor, True = masked: the polarity of nn.MultiheadAttention's ``attn_mask`` and ``key_padding_mask``, and of ``masked_fill``"""
    seen = ~boolean(tensor)
    return Mask(seen._make, f"hidden({shape(tensor)})")


def everything() -> Mask:
    """M_ij = 1; ``~everything()`` is the mask of nothing"""
    return Mask(lambda size, device: torch.ones(1, 1, dtype=torch.bool, device=device), "everything()")


class Additive(NamedTuple):
    """A float mask as what hides and what moves the scores."""

    mask: Tensor
    bias: Tensor


def read_additive(tensor: Tensor) -> Additive:
    """softmax(S + A) = softmax(S + bias) where mask,   mask = A > lowest/2,   bias = A where mask, else 0

    −∞ hides, and so does what is at most half the lowest float of the tensor's own dtype: any score vanishes in it. Every other number is a bias, with its
    gradient, and −10000 is one too: it is a finite number, from which nothing but rounding makes a mask. Where it is meant as one, say so: ``boolean(A > −10000)``.
    A row that hides everything is then 0, and not what the system made of it (:mod:`gradderiv.rules.fills`).

    Raises:
        InputError: +∞ or NaN.
        DtypeError: a tensor that is not floating.
    """
    require_tensors("read_additive", tensor=tensor)
    given = tensor.detach()
    require(
        not (given.isnan() | given.isposinf()).any(),
        "an additive mask holds finite numbers and -inf",
        "NaN or +inf",
        "0 · inf, where a mask of 0 and 1 was multiplied by -inf",
        "torch.zeros(…).masked_fill(hidden, -torch.inf)",
    )
    mask = given > torch.finfo(given.dtype).min / 2
    return Additive(mask, tensor.masked_fill(~mask, 0.0))


# ---------------------------------------------------------------- what is given


def _integers(where: str, name: str, given: Any) -> Tensor:
    found = given.detach().clone() if isinstance(given, Tensor) else torch.as_tensor(given)
    if found.dtype == torch.bool or found.dtype.is_floating_point or found.dtype.is_complex:
        raise DtypeError(
            message(
                f"{where} needs {name} as integers",
                f"dtype {found.dtype}",
                "a mask was passed, or an empty list",
                "mask.sum(-1) for lengths; boolean(mask) for a mask as it stands",
            )
        )
    return found


def _leading(written: str, t: Tensor, size: tuple[int, ...]) -> Tensor:
    """t (B) as (B, 1, …), on the leading axes of the scores."""
    axes = size[:-2]
    require(
        t.dim() <= len(axes) and all(a in (1, b) for a, b in zip(t.shape, axes, strict=False)),
        f"{written} needs scores whose first axes are its batch {tuple(t.shape)}",
        f"scores {size}",
        "another batch, or scores of one sequence",
        "scores (B, h, n_q, n_k); one length for one sequence",
    )
    return t.reshape((*t.shape, *[1] * (len(axes) - t.dim())))


def _spelled(t: Tensor) -> str:
    if t.dim() == 0:
        return f"{t}"
    return "[" + ", ".join(f"{x}" for x in t) + "]" if t.dim() == 1 and t.shape[0] <= LONGEST else shape(t)
