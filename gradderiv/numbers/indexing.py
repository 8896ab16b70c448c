"""Reading and writing entries by index: what gather, scatter, index_put and their like do to numbers. The indices are ordinary integers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.numbers.number import Number, System
from gradderiv.numbers.operands import arithmetic, aten, cast, lift, no_meaning, pair
from gradderiv.numbers.structure import broadcast, number


def positions(shape: Any) -> Tensor:
    """The place of every entry in memory, for a contiguous tensor of that shape."""
    count = 1
    for n in shape:
        count *= n
    return torch.arange(count).reshape(tuple(shape))


def overwritten(x: Number, places: Tensor, source: Number) -> Number:
    """x with the entries at ``places`` replaced; where a place is named twice, by one of the two."""
    out = number(x.clone(memory_format=torch.contiguous_format))
    if places.numel():
        flat = out.view(-1)
        names = dict.fromkeys((*out.names, *source.names))
        for name in names:
            if name not in out.cell.parts:
                out.cell.parts[name] = x.system.filled(out.cell.parts[x.system.main], name)
            number(flat).part(name)[places.reshape(-1)] = source.full(name).reshape(-1)
        out.cell.note = x.system.join([x.system.scattered(x.note), x.system.scattered(source.note)])
    return out


def accumulated(system: System, x: Number, places: Tensor, source: Number) -> Number:
    """x with ``source`` added at ``places``; each time, where a place is named several times."""
    places, source = places.reshape(-1).to(source.device), number(source.reshape(-1))
    order = torch.argsort(places, stable=True)
    ordered = places[order]
    first = torch.searchsorted(ordered, ordered)  # of the run of equal places
    turn = torch.empty_like(places)
    turn[order] = torch.arange(len(places)) - first
    out = x
    for k in range(int(turn.max()) + 1 if len(places) else 0):
        now = (turn == k).nonzero().reshape(-1)
        before = number(number(out.reshape(-1)).index_select(0, places[now]))
        added = system.add(before, number(source.index_select(0, now)))
        out = overwritten(out, places[now], added)
    return out if len(places) else number(x.clone())


@arithmetic(aten.index_put.default, aten._unsafe_index_put.default)
def _index_put(system: System, x: Any, indices: Any, values: Any, accumulate: bool = False) -> Number:
    x = lift(system, x, values if isinstance(values, Number) else None)
    places = positions(x.shape)[tuple(slice(None) if i is None else i.cpu() for i in indices)]
    source = broadcast(lift(system, values, x), places.shape)
    return accumulated(system, x, places, source) if accumulate else overwritten(x, places, source)


@arithmetic(aten.index_put_.default, aten._index_put_impl_.default)
def _index_put_(
    system: System, x: Any, indices: Any, values: Any, accumulate: bool = False, unsafe: bool = False
) -> Any:
    if not isinstance(x, Number):
        raise no_meaning(aten.index_put_.default, "writes exact numbers into an ordinary tensor")
    x.write(_index_put(system, x, indices, values, accumulate))
    return x


@arithmetic(aten.index_add.default)
def _index_add(system: System, x: Any, dim: int, index: Tensor, source: Any, *, alpha: Any = 1) -> Number:
    x = lift(system, x, source if isinstance(source, Number) else None)
    source = lift(system, source, x)
    if alpha != 1:
        source = system.mul(source, lift(system, alpha, source))
    places = positions(x.shape).index_select(dim, index.cpu())
    return accumulated(system, x, places, broadcast(source, places.shape))


@arithmetic(aten.index_copy.default)
def _index_copy(system: System, x: Any, dim: int, index: Tensor, source: Any) -> Number:
    x = lift(system, x, source if isinstance(source, Number) else None)
    return overwritten(x, positions(x.shape).index_select(dim, index.cpu()), lift(system, source, x))


@arithmetic(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor)
def _index_fill(system: System, x: Any, dim: int, index: Tensor, value: Any) -> Number:
    x = lift(system, x, value if isinstance(value, Number) else None)
    places = positions(x.shape).index_select(dim, index.cpu())
    return overwritten(x, places, broadcast(lift(system, value, x), places.shape))


def _scatter_places(x: Number, dim: int, index: Tensor) -> Tensor:
    part = positions(x.shape)
    for axis, n in enumerate(index.shape):
        if axis != dim % max(x.dim(), 1):
            part = part.narrow(axis, 0, n)
    return part.gather(dim, index.cpu())


@arithmetic(aten.scatter_add.default)
def _scatter_add(system: System, x: Any, dim: int, index: Tensor, source: Any) -> Number:
    x = lift(system, x, source if isinstance(source, Number) else None)
    source = number(lift(system, source, x)[tuple(slice(n) for n in index.shape)])
    return accumulated(system, x, _scatter_places(x, dim, index), source)


@arithmetic(aten.scatter.src)
def _scatter(system: System, x: Any, dim: int, index: Tensor, source: Any) -> Number:
    x = lift(system, x, source if isinstance(source, Number) else None)
    source = number(lift(system, source, x)[tuple(slice(n) for n in index.shape)])
    if isinstance(index, Number):  # the place of a maximum
        if not bool(system.is_zero(source).all()):
            raise no_meaning(
                aten.scatter.src, "follows the derivative of a maximum that is more than a shift"
            )
        return number(x.clone())
    return overwritten(x, _scatter_places(x, dim, index), source)


@arithmetic(aten.scatter.value)
def _scatter_value(system: System, x: Number, dim: int, index: Tensor, value: Any) -> Number:
    return overwritten(x, _scatter_places(x, dim, index), broadcast(lift(system, value, x), index.shape))


@arithmetic(aten.embedding.default)
def _embedding(
    system: System, weight: Number, index: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:  # fmt: skip
    if padding_idx >= 0 and bool((index == padding_idx).any()):
        raise no_meaning(
            aten.embedding.default,
            f"reads row {padding_idx}, which padding_idx gives no gradient although the result depends on it",
        )
    return weight.index_select(0, index.reshape(-1)).reshape(*index.shape, -1)


@arithmetic(aten.embedding_dense_backward.default)
def _embedding_backward(
    system: System, g: Number, index: Tensor, count: int, padding_idx: int, scale_grad_by_freq: bool
) -> Number:
    if scale_grad_by_freq:
        raise no_meaning(aten.embedding_dense_backward.default, "with scale_grad_by_freq")
    d, flat = g.shape[-1], index.reshape(-1)
    zeros = system.born(torch.zeros(int(count), d, dtype=g.dtype, device=g.device), g)
    kept = (flat != padding_idx).nonzero().reshape(-1)
    rows = number(number(g.reshape(-1, d)).index_select(0, kept))
    return accumulated(system, zeros, positions(zeros.shape).index_select(0, flat[kept].cpu()), rows)


def _in_bags(op: Any, mode: int, padding_idx: int, scale_grad_by_freq: bool = False) -> None:
    if mode != 0 or padding_idx >= 0 or scale_grad_by_freq:
        raise no_meaning(op, "other than a sum over all that a bag holds")


@arithmetic(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def _embedding_bag(
    system: System, weight: Any, index: Tensor, offsets: Tensor, scale_grad_by_freq: bool = False, mode: int = 0,
    sparse: bool = False, per_sample_weights: Any = None, include_last_offset: bool = False, padding_idx: int = -1,
) -> tuple[Tensor, ...]:  # fmt: skip
    _in_bags(aten._embedding_bag.default, mode, padding_idx, scale_grad_by_freq)
    begins = offsets[:-1] if include_last_offset else offsets
    sizes = torch.diff(begins, append=begins.new_tensor([len(index)]))
    bags = torch.repeat_interleave(torch.arange(len(begins), device=begins.device), sizes)
    weight = lift(system, weight, per_sample_weights if isinstance(per_sample_weights, Number) else None)
    rows = number(weight.index_select(0, index))
    if per_sample_weights is not None:
        rows = system.mul(rows, number(lift(system, per_sample_weights, rows).unsqueeze(1)))
    zeros = torch.zeros(len(begins), weight.shape[1], dtype=weight.dtype, device=weight.device)
    places = positions(zeros.shape).index_select(0, bags.cpu())
    return accumulated(system, system.born(zeros, weight), places, rows), bags, sizes, begins.new_empty(0)


@arithmetic(aten._embedding_bag_backward.default)
def _embedding_bag_backward(
    system: System, g: Any, index: Tensor, offsets: Tensor, bags: Tensor, sizes: Tensor, maxima: Tensor, count: int,
    scale_grad_by_freq: bool, mode: int, sparse: bool, per_sample_weights: Any = None, padding_idx: int = -1,
) -> Number:  # fmt: skip
    _in_bags(aten._embedding_bag_backward.default, mode, padding_idx, scale_grad_by_freq)
    g = lift(system, g, per_sample_weights if isinstance(per_sample_weights, Number) else None)
    rows = number(g.index_select(0, bags))
    if per_sample_weights is not None:
        rows = system.mul(rows, number(lift(system, per_sample_weights, rows).unsqueeze(1)))
    zeros = system.born(torch.zeros(int(count), g.shape[1], dtype=g.dtype, device=g.device), g)
    return accumulated(system, zeros, positions(zeros.shape).index_select(0, index.cpu()), rows)


@arithmetic(aten._embedding_bag_per_sample_weights_backward.default)
def _embedding_bag_of_weights(
    system: System, g: Any, weight: Any, index: Tensor, offsets: Tensor, bags: Tensor, mode: int, padding_idx: int = -1
) -> Number:  # fmt: skip
    _in_bags(aten._embedding_bag_per_sample_weights_backward.default, mode, padding_idx)
    g, weight = pair(system, g, weight)
    return system.sum(
        system.mul(number(g.index_select(0, bags)), number(weight.index_select(0, index))), (1,), False
    )


@arithmetic(aten.unfold_backward.default)
def _unfold_backward(system: System, g: Number, sizes: Any, dim: int, size: int, step: int) -> Number:
    shape = [int(n) for n in sizes]
    zeros = system.born(torch.zeros(shape, dtype=g.dtype, device=g.device), g)
    return accumulated(system, zeros, positions(shape).unfold(dim, size, step), g)


@arithmetic(aten.cumsum.default)
def _cumsum(system: System, x: Number, dim: int, *, dtype: Any = None) -> Tensor:
    n = x.shape[dim] if x.dim() else 1
    triangle = torch.ones(n, n, dtype=x.dtype, device=x.device).tril()
    rows = number(x.reshape(1) if x.dim() == 0 else x.movedim(dim, 0))
    out = system.matmul(lift(system, triangle, x), number(rows.reshape(n, -1)))
    out = number(out.reshape(()) if x.dim() == 0 else out.reshape(rows.shape).movedim(0, dim).contiguous())
    return out if dtype is None else cast(out, dtype)


@arithmetic(aten.constant_pad_nd.default)
def _pad(system: System, x: Number, pad: Any, value: Any = 0) -> Tensor:
    sides = list(zip(pad[::2], pad[1::2], strict=True))
    shape, inner = list(x.shape), x
    for axis, (left, right) in zip(range(-1, -len(sides) - 1, -1), sides, strict=True):
        shape[axis] += left + right
        start, stop = max(-left, 0), inner.shape[axis] - max(-right, 0)
        inner = number(inner.narrow(axis, start, stop - start))
    out = system.born(torch.full(shape, value, dtype=x.dtype, device=x.device), x)
    view: Tensor = out
    for axis, (left, right) in zip(range(-1, -len(sides) - 1, -1), sides, strict=True):
        view = view.narrow(axis, max(left, 0), shape[axis] - max(left, 0) - max(right, 0))
    number(view).write(inner)
    return out


@arithmetic(aten.block_diag.default)
def _block_diag(system: System, tensors: Any) -> Tensor:
    like = next(x for x in tensors if isinstance(x, Number))
    blocks = [lift(system, x, like) for x in tensors]
    blocks = [number(x.reshape(1, -1)) if x.dim() < 2 else x for x in blocks]
    rows, columns = (sum(x.shape[axis] for x in blocks) for axis in (0, 1))
    out = system.born(torch.zeros(rows, columns, dtype=like.dtype, device=like.device), like)
    row = column = 0
    for x in blocks:
        number(out.narrow(0, row, x.shape[0]).narrow(1, column, x.shape[1])).write(x)
        row, column = row + x.shape[0], column + x.shape[1]
    return out


@arithmetic(aten.slice_scatter.default)
def _slice_scatter(system: System, x: Number, source: Any, *where: Any) -> Tensor:
    out = x.clone()
    number(aten.slice.Tensor(out, *where)).write(lift(system, source, x))
    return out


@arithmetic(aten.select_scatter.default)
def _select_scatter(system: System, x: Number, source: Any, dim: int, index: int) -> Tensor:
    out = x.clone()
    number(out.select(dim, index)).write(lift(system, source, x))
    return out
