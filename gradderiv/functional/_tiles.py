"""The loops around :mod:`gradderiv.rules.tile`: attention and its derivatives of first and second order, with no tensor of n_q × n_k.

A tile is some rows of one head, or of several heads where they are short. What belongs to a query is put in its place, what belongs to a key or to the scores is added up,
always in the same order: the same inputs give the same bits. How large a tile is depends on the shapes and the device alone. float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.functional._dropout import kept
from gradderiv.rules import tile as rules
from gradderiv.rules.tile import Dots, Outputs, Tile

ROWS = 128  # queries of a tile
ENTRIES = {"cpu": 2**18, "cuda": 2**26}  # scores of a tile, if ROWS of them are not more
FEWEST = 64  # queries of a tile, however many keys there are


class Call(NamedTuple):
    """What a call is told that is no tensor.

    Query i sees the keys i + low … i + high; None is no bound. ``weights`` and ``lse`` are asked for, and not only O. ``fused``: a kernel of PyTorch does it.
    """

    scale: float
    softcap: float | None = None
    dropout_p: float = 0.0
    low: int | None = None
    high: int | None = None
    weights: bool = False
    lse: bool = False
    fused: bool = False

    @property
    def kept_scale(self) -> float:
        """1/(1 − p); 0 where nothing is kept."""
        return 0.0 if self.dropout_p == 1 else 1 / (1 - self.dropout_p)


class Inputs(NamedTuple):
    """Q, K, V (..., n, d) with the same leading axes; the others broadcast to the scores (..., n_q, n_k), sinks and seeds as (..., 1, 1)."""

    Q: Tensor
    K: Tensor
    V: Tensor
    bias: Tensor | None = None
    sinks: Tensor | None = None
    mask: Tensor | None = None
    seeds: Tensor | None = None


VARIABLES = ("Q", "K", "V", "bias", "sinks")
Needs = tuple[bool, ...]
"""Which of the variables need a gradient."""


def value(call: Call, x: Inputs) -> tuple[Tensor, ...]:
    """O (..., n_q, d_v), lse (..., n_q) and, where they are asked for, the weights (..., n_q, n_k)."""
    found = _Outputs(call, x)
    for cut in tiles(call, x):
        found.put(cut, rules.tile(cut.tile(x)))
    return found.all()


def tangent(call: Call, x: Inputs, lse: Tensor | None, dot: Dots) -> tuple[Tensor, ...]:
    """The tangents of :func:`value`."""
    found = _Outputs(call, x)
    for cut in tiles(call, x):
        found.put(cut, rules.tile_jvp(cut.tile(x), cut.lse(lse), cut.dots(dot)))
    return found.all()


def tangent_of_tangent(
    call: Call, x: Inputs, lse: Tensor | None, dot: Dots, by: Dots, dot_by: Dots
) -> tuple[Tensor, ...]:
    """The tangents of :func:`tangent` along ``by``, in which the tangents move by ``dot_by``."""
    found = _Outputs(call, x)
    for cut in tiles(call, x):
        directions = (cut.dots(dot), cut.dots(by), cut.dots(dot_by))
        found.put(cut, rules.tile_jvp_jvp(cut.tile(x), cut.lse(lse), *directions))
    return found.all()


def gradient(call: Call, x: Inputs, lse: Tensor | None, d: Outputs, needs: Needs) -> tuple[Tensor, ...]:
    """The gradients of those variables that need one."""
    found = _Gradients(x, needs)
    for cut in tiles(call, x):
        found.add(cut, rules.tile_vjp(cut.outputs(d), cut.tile(x), cut.lse(lse)))
    return found.all()


def second(
    call: Call, x: Inputs, lse: Tensor | None, d: Outputs, d_dot: Outputs, dot: Dots, needs: Needs
) -> tuple[Tensor, ...]:
    """The tangents of :func:`gradient`."""
    found = _Gradients(x, needs)
    for cut in tiles(call, x):
        of_outputs = cut.outputs(d), cut.tile(x), cut.lse(lse), cut.outputs(d_dot)
        found.add(cut, rules.tile_vjp_jvp(*of_outputs, cut.dots(dot)))
    return found.all()


def double(
    call: Call, x: Inputs, lse: Tensor | None, d: Outputs, u: Dots, needs: Needs
) -> tuple[Tensor, ...]:
    """The gradients of ⟨u, gradient⟩: of the cotangents d, and of those variables that need one."""
    outputs, gradients = _Outputs(call, x), _Gradients(x, needs)
    for cut in tiles(call, x):
        moved, turned = rules.tile_double(cut.outputs(d), cut.tile(x), cut.lse(lse), cut.dots(u))
        outputs.put(cut, moved)
        gradients.add(cut, turned)
    return (*outputs.all(), *gradients.all())


# ---------------------------------------------------------------- how the work is cut


class Cut(NamedTuple):
    """One tile: which batches, heads, queries and keys it has, of (B, h, n_q, n_k)."""

    call: Call
    lead: torch.Size
    b: slice
    h: slice
    rows: slice
    cols: slice
    dtype: torch.dtype

    def tile(self, x: Inputs) -> Tile:
        D = None if x.seeds is None else self._kept(x.seeds)
        mask = self._both(None if x.mask is None else self.of_scores(x.mask), x.Q.device)
        Q, K, V = self.of_queries(x.Q), self.of_keys(x.K), self.of_keys(x.V)
        bias, sinks = (None if t is None else self.of_scores(t) for t in (x.bias, x.sinks))
        return Tile(Q, K, V, bias, sinks, mask, D, self.call.scale, self.call.softcap)

    def outputs(self, d: Outputs) -> Outputs:
        """O and lse of the tile's queries, W of its scores."""
        O = None if d.O is None else self.of_queries(d.O)
        return Outputs(O, self.lse(d.lse), None if d.W is None else self.of_scores(d.W))

    def lse(self, lse: Tensor | None) -> Tensor | None:
        return None if lse is None else self.of_queries(lse.unsqueeze(-1))

    def dots(self, dot: Dots) -> Dots:
        cutters = (self.of_queries, self.of_keys, self.of_keys, self.of_scores, self.of_scores)
        return Dots(*(None if t is None else cut(t) for t, cut in zip(dot, cutters, strict=True)))

    def of_queries(self, t: Tensor) -> Tensor:
        return self._widened(four(t, self.lead)[self.b, self.h, self.rows])

    def of_keys(self, t: Tensor) -> Tensor:
        return self._widened(four(t, self.lead)[self.b, self.h, self.cols])

    def of_scores(self, t: Tensor) -> Tensor:
        found = self.within(four(t, self.lead))
        if found.shape[:2].numel() > 1:  # one of the two may be shared
            found = found.expand(self.b.stop - self.b.start, self.h.stop - self.h.start, -1, -1)
        return self._widened(found)

    def within(self, t: Tensor) -> Tensor:
        """The part of (B|1, h|1, n_q|1, n_k|1) that the tile reads."""
        cuts = (self.b, self.h, self.rows, self.cols)
        return t[tuple(slice(None) if n == 1 else c for n, c in zip(t.shape, cuts, strict=True))]

    def folded(self, piece: Tensor) -> Tensor:
        """(b·h, ·, ·) → (b, h, ·, ·)"""
        return piece.unflatten(0, (self.b.stop - self.b.start, -1))

    def _widened(self, t: Tensor) -> Tensor:
        t = t.flatten(0, 1)
        return t.to(self.dtype) if t.is_floating_point() else t

    def _both(self, mask: Tensor | None, device: torch.device) -> Tensor | None:
        """The mask, and the band where it cuts through the tile."""
        (low, high), rows, cols = (self.call.low, self.call.high), self.rows, self.cols
        begin, size = rows.start - cols.start, (rows.stop - rows.start, cols.stop - cols.start)
        within = high is None or cols.stop - 1 - rows.start <= high
        if within and (low is None or cols.start - (rows.stop - 1) >= low):
            return mask
        band = torch.ones(size, dtype=torch.bool, device=device)
        band = band if high is None else band.tril_(begin + high)
        band = band if low is None else band.triu_(begin + low)
        return band if mask is None else mask & band

    def _kept(self, seeds: Tensor) -> Tensor:
        keep = kept(self.of_scores(seeds), self.rows, self.cols, self.call.dropout_p)
        return keep.to(self.dtype) * self.call.kept_scale


def tiles(call: Call, x: Inputs) -> Iterator[Cut]:
    """All queries, each with the keys that it may see."""
    lead, n_q, n_k = x.Q.shape[:-2], x.Q.shape[-2], x.K.shape[-2]
    B, h = lead[:-1].numel(), lead[-1] if lead else 1
    if B * h * n_q * n_k == 0:
        return
    entries = ENTRIES.get(x.Q.device.type, ENTRIES["cuda"])
    m = min(n_q, max(min(ROWS, entries // n_k), FEWEST))
    heads = max(entries // (m * n_k), 1)  # of a tile
    batches, heads = max(heads // h, 1), min(heads, h)
    for b in _steps(B, batches):
        for g in _steps(h, heads):
            for rows in _steps(n_q, m):
                cols = _seen(call, rows, n_k)
                yield Cut(call, lead, b, g, rows, cols, computed_in(x.Q.dtype))


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _steps(n: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def _seen(call: Call, rows: slice, n_k: int) -> slice:
    """The keys that some of the queries see; one, which the band hides, where there are none."""
    start = 0 if call.low is None else min(max(rows.start + call.low, 0), n_k - 1)
    stop = n_k if call.high is None else min(max(rows.stop + call.high, start + 1), n_k)
    return slice(start, stop)


def four(t: Tensor, lead: Sequence[int]) -> Tensor:
    """(..., r, c) → (B|1, h|1, r, c): all leading axes but the last, the heads, in one. A copy only where some axes of the batch are shared and others are not."""
    if t.dim() == 4 and len(lead) == 2:
        return t
    if t.dim() < 2:
        t = t.reshape(*[1] * (2 - t.dim()), *t.shape)
    own = (*[1] * (len(lead) + 2 - t.dim()), *t.shape[:-2])
    if len(own) < 2:
        return t.reshape(1, *own or (1,), *t.shape[-2:])
    batches = 1
    if not all(n == 1 for n in own[:-1]):
        t, batches = t.expand(*lead[:-1], own[-1], *t.shape[-2:]), math.prod(lead[:-1])
    return t.reshape(batches, own[-1], *t.shape[-2:])


# ---------------------------------------------------------------- what is collected


class _Outputs:
    """O, lse and the weights of all queries."""

    def __init__(self, call: Call, x: Inputs) -> None:
        self.lead, n_q = x.Q.shape[:-2], x.Q.shape[-2]
        self.O = x.Q.new_zeros(*self.lead, n_q, x.V.shape[-1])
        self.lse = x.Q.new_zeros(*self.lead, n_q, dtype=computed_in(x.Q.dtype))
        self.W = x.Q.new_zeros(*self.lead, n_q, x.K.shape[-2]) if call.weights else None

    def put(self, cut: Cut, found: Outputs) -> None:
        assert found.O is not None
        assert found.lse is not None
        four(self.O, self.lead)[cut.b, cut.h, cut.rows] = cut.folded(found.O).to(self.O.dtype)
        lse = four(self.lse.unsqueeze(-1), self.lead)
        lse[cut.b, cut.h, cut.rows] = cut.folded(found.lse)
        if self.W is not None and found.W is not None:
            W = four(self.W, self.lead)
            W[cut.b, cut.h, cut.rows, cut.cols] = cut.folded(found.W).to(W.dtype)

    def all(self) -> tuple[Tensor, ...]:
        return (self.O, self.lse) if self.W is None else (self.O, self.lse, self.W)


class _Gradients:
    """The gradients that are needed, each in the shape of its variable, summed over the tiles."""

    def __init__(self, x: Inputs, needs: Needs) -> None:
        self.x, self.lead, dtype = x, x.Q.shape[:-2], computed_in(x.Q.dtype)
        given = [(name, getattr(x, name)) for name, need in zip(VARIABLES, needs, strict=True) if need]
        self.sums = {name: torch.zeros_like(four(t, self.lead), dtype=dtype) for name, t in given}

    def add(self, cut: Cut, found: Dots) -> None:
        for name, total in self.sums.items():
            piece = getattr(found, name)
            if piece is None:
                continue
            place: Callable[[Tensor], Tensor] = {
                "Q": lambda t: t[cut.b, cut.h, cut.rows],
                "K": lambda t: t[cut.b, cut.h, cut.cols],
                "V": lambda t: t[cut.b, cut.h, cut.cols],
            }.get(name, cut.within)
            there = place(total)
            there += cut.folded(piece).sum_to_size(there.shape)

    def all(self) -> tuple[Tensor, ...]:
        return tuple(self._own(getattr(self.x, name), total) for name, total in self.sums.items())

    def _own(self, t: Tensor, total: Tensor) -> Tensor:
        """(B|1, h|1, r, c) → the shape and the type of the variable."""
        if len(self.lead) > 2 and total.shape[0] > 1:
            own = (*[1] * (len(self.lead) + 2 - t.dim()), *t.shape)
            total = total.reshape(*self.lead[:-1], *total.shape[1:]).sum_to_size(own)
        return total.reshape(t.shape).to(t.dtype)
