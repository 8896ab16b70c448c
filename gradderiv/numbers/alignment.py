"""Which few inverses an entry has in its denominator, where a tensor's inverses lie in rows.

An inversion of a tensor of R elements makes a group of R denominators. After a product along the rows an entry has all R of them; but in softmax(S), in an
online softmax, in a norm, entry (i, j) has only those of row i, and a bound that counts all of them counts R² where rows are inverted again. So a
:class:`~gradderiv.numbers.ledger.Degree` notes for a group the pairs (axis of the group, axis of the tensor, offset): the entry at position t along
the tensor's axis has only the element at t − offset along the group's. Axes count from the right, so that broadcasting changes nothing; an axis
without a pair stands for all elements along it, which is always right.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Pair = tuple[int, int, int]  # axis of the group, axis of the tensor, offset
Rows = frozenset[Pair]
Moves = Mapping[int, tuple[int, int]]  # old axis: new axis, and what is added to the position along it


def rows_of(shape: tuple[int, ...]) -> Rows:
    """The pairs of a tensor with the group that was made of it."""
    return frozenset((a, a, 0) for a in range(-len(shape), 0) if shape[a] > 1)


def moved(rows: Rows, moves: Moves) -> Rows:
    """The pairs after the tensor's axes have moved; those of axes that are not named are lost."""
    return frozenset((g, *_after(moves[t], offset)) for g, t, offset in rows if t in moves)


def _after(move: tuple[int, int], offset: int) -> tuple[int, int]:
    axis, shift = move
    return axis, offset + shift


def local(shape: tuple[int, ...], rows: Rows) -> int:
    """How many elements of a group of that shape one entry has."""
    single = {g for g, _, _ in rows}
    count = 1
    for axis in range(-len(shape), 0):
        count *= 1 if axis in single else shape[axis]
    return count


def seen_through(view: Tensor, base: Tensor) -> Moves:
    """From the axes of a tensor to those of its view."""
    return {b: (v, -start) for b, v, start in _common(view, base)}


def written_through(view: Tensor, base: Tensor) -> Moves:
    """From the axes of a view to those of the tensor it writes into."""
    return {v: (b, start) for b, v, start in _common(view, base)}


def _common(view: Tensor, base: Tensor) -> list[tuple[int, int, int]]:
    """(axis of the base, axis of the view, start): where position t along the one is position start + t along the other, for every entry.

    A place in memory is a number in mixed radix, and the positions along the base's axes are its digits. A step along an axis of the view adds the digits of
    its stride; a digit is such a sum wherever the sum does not overflow and what lies below it does not carry.
    """
    axes = sorted((b for b in range(base.dim()) if base.shape[b] > 1), key=base.stride)
    moving = [v for v in range(view.dim()) if view.shape[v] > 1]
    start = _digits(int(view.storage_offset() - base.storage_offset()), axes, base)
    steps = {v: _digits(int(view.stride(v)), axes, base) for v in moving}
    found, radix, below = [], 1, 0
    for b in axes:
        if base.stride(b) % radix:
            break
        radix = base.stride(b) * base.shape[b]
        largest = start[b] + sum(steps[v][b] * (view.shape[v] - 1) for v in moving)
        along = [v for v in moving if steps[v][b]]
        if below < base.stride(b) and largest < base.shape[b] and [steps[v][b] for v in along] == [1]:
            found.append((b - base.dim(), along[0] - view.dim(), start[b]))
        below += largest * base.stride(b)
    return found


def _digits(place: int, axes: list[int], base: Tensor) -> dict[int, int]:
    digits = {}
    for b in reversed(axes):
        digits[b], place = divmod(place, int(base.stride(b)))
    return digits


def without(dim: int, removed: set[int]) -> Moves:
    """The axes of a tensor of ``dim`` axes when some are summed over and go."""
    kept = [a for a in range(-dim, 0) if a not in removed]
    return {a: (a + sum(1 for r in removed if r > a), 0) for a in kept}


def except_axis(dim: int, axis: int) -> Moves:
    """All axes stay where they are, but the entries along ``axis`` are mixed."""
    return {a: (a, 0) for a in range(-dim, 0) if a != axis}
