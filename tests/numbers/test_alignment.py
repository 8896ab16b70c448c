"""Which inverses an entry has: what a record says of rows, against programs in which the true degrees are measured.

Random programs move, cut, merge, write and sum what was inverted row by row. Every result is then summed along each of its axes against fresh variables: an entry that a record
says to have one inverse of a group, and that has another, shows there as a degree that is too high.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from measured import P, degrees, inverses, line

from gradderiv.errors import NoExactMeaning
from gradderiv.numbers import alignment, field, ledger
from gradderiv.numbers.alignment import (
    except_axis,
    local,
    moved,
    rows_of,
    seen_through,
    without,
    written_through,
)
from gradderiv.numbers.field import Field

# ---------------------------------------------------------------- axes of views


def views(rng, x):
    """Some views of x, each to be made when it is asked for."""
    sizes = [s for k in (1, 2, 3) for s in itertools.product([1, 2, 3, 4, 6], repeat=k)]
    sizes = [s for s in sizes if math.prod(s) == x.numel()]
    yield lambda: x.unsqueeze(0).expand(3, *x.shape)
    yield lambda: x.squeeze()
    if sizes:
        yield lambda: x.view(rng.choice(sizes))
    if x.dim():
        d = rng.randrange(x.dim())
        n = x.shape[d]
        start, size, step = rng.randrange(n), rng.randrange(1, n + 1), rng.randrange(1, 4)
        yield lambda: x.narrow(d, start, min(size, n - start))
        yield lambda: x[(slice(None),) * d + (slice(start, None, step),)]
        yield lambda: x.select(d, start)
        yield lambda: x.transpose(d, rng.randrange(x.dim()))
        yield lambda: x.unfold(d, size, step)
    if x.dim() > 1:
        yield lambda: x.diagonal(rng.choice([-1, 0, 1]))


def random_view(rng, x):
    """A view of a view of … of x."""
    for _ in range(rng.randrange(1, 5)):
        try:
            y = rng.choice(list(views(rng, x)))()
        except RuntimeError:  # a view of that shape there is not
            continue
        x = y if y.numel() else x
    return x


def test_an_axis_of_a_view_is_followed_where_every_entry_agrees():
    rng, found = random.Random(0), 0
    for _ in range(3000):
        shape = [rng.randrange(1, 5) for _ in range(rng.randrange(1, 4))]
        base = torch.arange(math.prod(shape)).reshape(shape)
        base = base.permute(*rng.sample(range(len(shape)), len(shape))).clone()  # keeps its strides
        view = random_view(rng, base)
        place = {entry: divmod_all(k, base.shape) for k, entry in enumerate(base.reshape(-1).tolist())}
        for axis, (to, minus_start) in seen_through(view, base).items():
            assert base.shape[axis] > 1
            for k, entry in enumerate(view.reshape(-1).tolist()):
                assert place[entry][axis] == divmod_all(k, view.shape)[to] - minus_start
            found += 1
        for axis, (to, start) in written_through(view, base).items():
            assert seen_through(view, base)[to] == (axis, -start)
    assert found > 2000


def divmod_all(k, shape):
    return tuple(int(i) for i in np.unravel_index(k, tuple(shape)))


@pytest.mark.parametrize(
    ("view", "axes"),
    [
        (lambda x: x, {-2: (-2, 0), -1: (-1, 0)}),
        (lambda x: x.mT, {-2: (-1, 0), -1: (-2, 0)}),
        (lambda x: x[1:, 2:5], {-2: (-2, -1), -1: (-1, -2)}),
        (lambda x: x[2], {-1: (-1, 0)}),
        (lambda x: x[:, 3], {-2: (-1, 0)}),
        (lambda x: x[:, ::2], {-2: (-2, 0)}),
        (lambda x: x.diagonal(), {-2: (-1, 0), -1: (-1, 0)}),
        (lambda x: x.expand(2, 4, 6), {-2: (-2, 0), -1: (-1, 0)}),
        (lambda x: x.view(4, 2, 3), {-2: (-3, 0)}),  # a column is 3j + k: neither axis alone
        (lambda x: x.view(2, 2, 6), {-1: (-1, 0)}),
        (lambda x: x.view(24), {}),
        (lambda x: x.unfold(1, 3, 3), {-2: (-3, 0)}),
        (lambda x: x.unfold(1, 4, 1), {-2: (-3, 0)}),
        (lambda x: x[1].unfold(0, 4, 1), {}),
    ],
)  # fmt: skip
def test_the_axes_of_common_views(view, axes):
    base = torch.arange(24).reshape(4, 6)
    assert seen_through(view(base), base) == axes


def test_rows_count_what_one_entry_has():
    rows = rows_of((5, 1, 3))
    assert rows == {(-3, -3, 0), (-1, -1, 0)}
    assert local((5, 1, 3), rows) == 1
    assert local((5, 1, 3), moved(rows, except_axis(3, -1))) == 3
    assert local((5, 1, 3), moved(rows, {})) == 15
    assert moved(rows, without(3, {-2})) == {(-3, -2, 0), (-1, -1, 0)}
    assert moved(moved(rows, {-3: (-2, 4)}), {-2: (-1, -1)}) == {(-3, -1, 3)}


# ---------------------------------------------------------------- random programs, evaluated twice


class OnField:
    """The operations on residues, with their records."""

    def __init__(self):
        self.field = Field(0, 2, roots=frozenset({-1}))
        self.ledger = self.field.ledger

    def input(self, shape):
        return self.field.random(*shape)

    def shape(self, x):
        return tuple(x.shape)

    def aligned(self, x, y):
        return x, y

    def inverse(self, x):
        return 1 / x

    def exp(self, x):
        return x.exp()

    def odd(self, x):
        self.field.odd = True
        y = x.exp()
        self.field.odd = False
        return y

    def cos(self, x):
        return x.cos()

    def rsqrt(self, x):
        """With x overwritten by what it now is."""
        x = x.clone(memory_format=torch.contiguous_format)
        return x.rsqrt() * x

    def gate(self, x, y):
        return torch.where(x > 0, x, y)

    def shifted(self, x):
        return torch.exp(x - x.amax(-1, keepdim=True))

    def online(self, x, y):
        """Softmax over two blocks, by running maxima and sums."""
        m = x.amax(-1, keepdim=True)
        E = torch.exp(x - m)
        new = torch.maximum(m, y.amax(-1, keepdim=True))
        keep, F = torch.exp(m - new), torch.exp(y - new)
        r = E.sum(-1, keepdim=True) * keep + F.sum(-1, keepdim=True)
        return (E * keep + F) / r

    def lse(self, x):
        return torch.exp(x - torch.logsumexp(x, -1, keepdim=True))

    def sum(self, x, axis, keep):
        return x.sum(axis, keepdim=keep)

    def matmul(self, x, y):
        return x @ y

    def where(self, x, y, cut):
        mask = (torch.arange(x.shape[-1]) < cut).expand(x.shape)
        return torch.where(mask, x, y)

    def masked(self, x, cut):
        return x * (torch.arange(x.shape[-1]) < cut)

    def cat(self, x, y, axis):
        return torch.cat([x, y], axis)

    def stack(self, x, y):
        return torch.stack([x, y], -1)

    def copy(self, x):
        return x.clone(memory_format=torch.contiguous_format)

    def transpose(self, x, a, b):
        return x.transpose(a, b)

    def reshape(self, x, shape):
        return x.reshape(shape)

    def expand(self, x, n):
        return x.expand(n, *x.shape)

    def flip(self, x, axis):
        return x.flip(axis)

    def select(self, x, axis, i):
        return x.select(axis, i)

    def narrow(self, x, axis, i, n):
        return x.narrow(axis, i, n)

    def step(self, x, axis):
        return x[..., ::2] if axis == -1 else x[..., ::2, :]

    def diagonal(self, x):
        return x.diagonal(0, -2, -1)

    def windows(self, x, size):
        return x.unfold(-1, size, 1)

    def taken(self, x, axis, index):
        return x.index_select(axis, torch.tensor(index))

    def put(self, x, index, y):
        return x.index_put((torch.tensor(index),), y)

    def cumsum(self, x):
        return x.cumsum(-1)

    def pad(self, x):
        return torch.nn.functional.pad(x, (1, 0))

    def write(self, view, y, how):
        if how == "copy":
            view.copy_(y)
        elif how == "add":
            view.add_(y)
        else:
            view.mul_(y)


class OnLine:
    """The same on values mod P along a line; the first axis is the point."""

    def __init__(self, rng, points):
        self.rng, self.points = rng, points

    def input(self, shape):
        return line(self.rng, shape, self.points)

    def shape(self, x):
        return x.shape[1:]

    def aligned(self, x, y):
        """With as many axes after the point."""
        n = max(x.ndim, y.ndim)
        return tuple(a.reshape(len(a), *[1] * (n - a.ndim), *a.shape[1:]) for a in (x, y))

    def inverse(self, x):
        return inverses(x % P)

    def exp(self, x):
        return self.input(x.shape[1:])

    def odd(self, x):
        H = self.input(x.shape[1:])
        minus = np.array([self.rng.random() < 0.5 for _ in range(H[0].size)]).reshape(H.shape[1:])
        return np.where(minus, inverses(H), H)

    def cos(self, x):
        w = self.input(x.shape[1:])
        return w + inverses(w)

    def rsqrt(self, x):
        r = self.input(x.shape[1:])
        return r * inverses(r * r % P) % P

    def gate(self, x, y):
        return y + self.input(x.shape[1:]) * (x - y)

    def shifted(self, x):
        return self.input(x.shape[1:]) * self.input((*x.shape[1:-1], 1))

    def online(self, x, y):
        E, F = self.input(x.shape[1:]), self.input(y.shape[1:])
        u, new = self.input((*x.shape[1:-1], 1)), self.input((*x.shape[1:-1], 1))
        E, keep, F = E * u % P, inverses(u) * new % P, F * new % P
        return (E * keep + F) * inverses((E.sum(-1, keepdims=True) * keep + F.sum(-1, keepdims=True)) % P)

    def lse(self, x):
        E = self.input(x.shape[1:])
        return E * inverses(E.sum(-1, keepdims=True) % P)

    def sum(self, x, axis, keep):
        return x.sum(axis, keepdims=keep)

    def matmul(self, x, y):
        return np.matmul(x, y)

    def where(self, x, y, cut):
        return np.where(np.arange(x.shape[-1]) < cut, x, y)

    def masked(self, x, cut):
        return x * (np.arange(x.shape[-1]) < cut).astype(object)

    def cat(self, x, y, axis):
        return np.concatenate([x, y], axis)

    def stack(self, x, y):
        return np.stack([x, y], -1)

    def copy(self, x):
        return x.copy(order="C")

    def transpose(self, x, a, b):
        return np.swapaxes(x, a, b)

    def reshape(self, x, shape):
        return x.reshape(x.shape[0], *shape)

    def expand(self, x, n):
        return np.broadcast_to(x[:, None], (x.shape[0], n, *x.shape[1:]))

    def flip(self, x, axis):
        return np.flip(x, axis)

    def select(self, x, axis, i):
        return x[..., i] if axis == -1 else x[..., i, :]

    def narrow(self, x, axis, i, n):
        return x[..., i : i + n] if axis == -1 else x[..., i : i + n, :]

    def step(self, x, axis):
        return x[..., ::2] if axis == -1 else x[..., ::2, :]

    def diagonal(self, x):
        return np.diagonal(x, 0, -2, -1)

    def windows(self, x, size):
        return np.lib.stride_tricks.sliding_window_view(x, size, -1)

    def taken(self, x, axis, index):
        return np.take(x, index, axis)

    def put(self, x, index, y):
        out = x.copy()
        out[:, index] = y
        return out

    def cumsum(self, x):
        return x.cumsum(-1)

    def pad(self, x):
        return np.concatenate([np.zeros((*x.shape[:-1], 1), dtype=object), x], -1)

    def write(self, view, y, how):
        view, y = self.aligned(view, y)
        if how == "copy":
            view[...] = y
        elif how == "add":
            view[...] = view + y
        else:
            view[...] = view * y


class Step(NamedTuple):
    """One operation of a program: its name, which results it takes, and the numbers that it was drawn with."""

    name: str
    first: int
    second: int
    draws: tuple[int, ...]


def broadcastable(a, b):
    try:
        torch.broadcast_shapes(a, b)
    except RuntimeError:
        return False
    return True


def apply(on, step, x, y):
    """The operation, or None where these shapes do not allow it."""
    s, t, (i, j, k) = on.shape(x), on.shape(y), step.draws
    n = len(s)
    axis = -1 - i % min(n, 2) if n else 0
    name = step.name
    if name in ("add", "sub", "mul", "quotient"):
        if not broadcastable(s, t):
            return None
        x, y = on.aligned(x, y)
        return {
            "add": lambda: x + y,
            "sub": lambda: x - y,
            "mul": lambda: x * y,
            "quotient": lambda: x * on.inverse(y),
        }[name]()
    if name in ("inverse", "exp", "odd", "cos", "rsqrt"):
        return getattr(on, name)(x)
    if name in ("gate", "stack") or (name == "online" and n):
        return getattr(on, name)(x, y) if s == t else None
    if name == "where" and n:
        return on.where(x, y, 1) if s == t else None
    if not n:
        return None
    if name in ("shifted", "lse", "cumsum", "pad"):
        return getattr(on, name)(x)
    if name == "masked":
        return on.masked(x, 1 + j % s[-1])
    if name == "by rows":
        return x * on.inverse(on.sum(x, axis, True))
    if name == "sum":
        return on.sum(x, axis, bool(k % 2))
    if name == "matmul":
        return on.matmul(x, y) if n == len(t) and n >= 2 and s[-1] == t[-2] and s[:-2] == t[:-2] else None
    if name == "cat":
        same = n == len(t) and all(a == b for d, (a, b) in enumerate(zip(s, t, strict=True)) if d - n != axis)
        return on.cat(x, y, axis) if same else None
    if name == "transpose":
        return on.transpose(x, -1, -1 - j % min(n, 2)) if n > 1 else None
    if name == "reshape":
        shapes = [(a, b) for a in range(1, 7) for b in range(1, 7) if a * b == math.prod(s)]
        shapes += [(*s[:-1], a, s[-1] // a) for a in (2, 3) if s[-1] % a == 0]
        shapes += [(*s[:-2], s[-2] * s[-1])] if n > 1 else [(s[0], 1)]
        return on.reshape(x, shapes[j % len(shapes)])
    if name == "expand":
        return on.expand(x, 2) if n < 3 else None
    if name == "flip":
        return on.flip(x, axis)
    if name == "neighbours":
        return (
            on.narrow(x, axis, 0, s[axis] - 1) + on.narrow(x, axis, 1, s[axis] - 1) if s[axis] > 1 else None
        )
    if name == "behind":
        z = on.copy(x)
        on.write(on.narrow(z, axis, 1, s[axis] - 1), on.narrow(x, axis, 0, s[axis] - 1), "copy")
        return z
    if name == "select":
        return on.select(x, axis, j % s[axis])
    if name == "narrow":
        start = j % s[axis]
        return on.narrow(x, axis, start, 1 + k % (s[axis] - start))
    if name == "step":
        return on.step(x, axis)
    if name == "diagonal":
        return on.diagonal(x) if n > 1 and s[-1] == s[-2] else None
    if name == "windows":
        return on.windows(x, 2) if s[-1] > 1 else None
    if name == "taken":
        return on.taken(x, axis, [j % s[axis], k % s[axis]])
    if name == "put":
        return on.put(x, [(j + 1) % s[0], j % s[0]], on.narrow(x, -n, 0, 2)) if n < 3 and s[0] > 1 else None
    if name.startswith("write"):
        z = on.copy(x)
        view = on.transpose(z, -1, -2) if n > 1 and k % 2 else z
        shape = on.shape(view)
        start = j % shape[axis]
        size = 1 + i % (shape[axis] - start)
        view = on.narrow(view, axis, start, size) if k % 3 else on.select(view, axis, start)
        if not broadcastable(on.shape(view), t) or torch.broadcast_shapes(on.shape(view), t) != on.shape(
            view
        ):
            return None
        on.write(view, y, name.removeprefix("write "))
        return z
    raise KeyError(name)


ONCE = "sub quotient inverse exp odd cos rsqrt gate stack online where shifted lse masked cumsum pad matmul flip diagonal windows taken put neighbours behind"
OFTEN = (
    "add",
    "mul",
    "sum",
    "expand",
    "cat",
    "transpose",
    "reshape",
    "select",
    "narrow",
    "step",
    "write copy",
    "write add",
    "write mul",
)
NAMES = ONCE.split() + [name for name in OFTEN for _ in range(5)]
SHAPES = [(2, 3), (3, 2), (2, 2), (4,), (6,), (3,), (2, 4), (3, 3)]
FIRST = [
    Step("inverse", 0, 0, (0, 0, 0)),
    Step("by rows", 1, 1, (0, 0, 0)),
    Step("by rows", 1, 1, (1, 0, 0)),
]  # of which the others are made


def draw(seed, limit, length=9):
    """A program of which no record passes the limit, the shapes of its inputs, and its results."""
    rng, on = random.Random(seed), OnField()
    shapes = rng.choices(SHAPES, k=2)
    nodes, program = [on.input(s) for s in shapes], []
    for attempt in range(12 * length):
        if len(program) == length:
            break
        first, second = (rng.randrange(min(2, len(nodes) - 1), len(nodes)) for _ in range(2))
        draws = tuple(rng.randrange(12) for _ in range(3))
        step = FIRST[attempt] if attempt < len(FIRST) else Step(rng.choice(NAMES), first, second, draws)
        try:
            out = apply(on, step, nodes[step.first], nodes[step.second])
        except NoExactMeaning:  # 1/(x − x)
            continue
        if out is None or out.numel() > 18 or on.ledger.numerator(out.note.value) > limit:
            continue
        nodes.append(out)
        program.append(step)
    return program, shapes, nodes, on


def probes(on, x, fresh):
    """x, and its sums along each axis against fresh variables."""
    return [x, *(on.sum(x * fresh, a, False) for a in range(-len(on.shape(x)), 0))]


def measured(points, values):
    """The degree of the numerator; infinite where it is beyond what so many points can tell."""
    try:
        return degrees(points, values)[0]
    except AssertionError:
        return math.inf


def violations(seeds, limit=24):
    """(results measured, those whose true degree is their record's, those whose true degree passes it)."""
    count = exact = passed = 0
    for seed in seeds:
        program, shapes, nodes, on = draw(seed, limit)
        records = [probes(on, x, on.input(on.shape(x))) for x in nodes]
        bound = max(on.ledger.numerator(r.note.value) for group in records for r in group)
        points = list(range(1, 2 * min(bound, 3 * limit) + 12))
        rng = random.Random(f"line {seed}")
        line_on = OnLine(rng, points)
        values = [line_on.input(s) for s in shapes]
        for step in program:
            out = apply(line_on, step, values[step.first], values[step.second])
            values.append(np.asarray(out, dtype=object) % P)
        for group, value in zip(records, values, strict=True):
            for record, found in zip(
                group, probes(line_on, value, line_on.input(value.shape[1:])), strict=True
            ):
                N = on.ledger.numerator(record.note.value)
                assert tuple(record.shape) == found.shape[1:]
                if 3 * limit < N:
                    continue
                entries = found.reshape(len(points), -1) % P
                for column in {0, rng.randrange(entries.shape[1])}:
                    top = measured(points, entries[:, column].tolist())
                    count += 1
                    exact += top == N
                    passed += top > N
    return count, exact, passed


def test_no_true_degree_passes_a_record_with_rows():
    count, exact, passed = violations(range(80))
    assert passed == 0
    assert count > 2500
    assert exact > count / 2  # the records are bounds, and not idle ones


def by_strides(view, base):
    """Wrong: an axis of the base is taken to be the view's axis of the same stride."""
    strides = {view.stride(v): v - view.dim() for v in range(view.dim()) if view.shape[v] > 1}
    axes = [b for b in range(base.dim()) if base.shape[b] > 1 and base.stride(b) in strides]
    return [(b - base.dim(), strides[base.stride(b)], 0) for b in axes]


def either(records):
    """Wrong: the rows that any of the records has."""
    found = {}
    for record in records:
        for group, rows in record.rows:
            found[group] = found.get(group, frozenset()) | rows
    return tuple(found.items())


def all_axes(dim, _=None):
    return {a: (a, 0) for a in range(-dim, 0)}


MISTAKES = {
    "an axis of a view by its stride": (alignment, "_common", by_strides),
    "a slice starts where the whole does": (
        alignment, "_common", lambda view, base, right=alignment._common: [(b, v, 0) for b, v, _ in right(view, base)],
    ),
    "rows of either operand": (ledger, "_shared", either),
    "rows after a product of matrices, and along a cat": (field, "except_axis", all_axes),
    "rows of what is summed": (field, "without", lambda dim, removed, right=without: {**all_axes(dim), **right(dim, removed)}),
    "rows of what is moved by index": (field.Field, "structured", lambda self, func, sources, args, out: out),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_twin_a_mistake_about_rows_is_measured(mistake, monkeypatch):
    monkeypatch.setattr(*MISTAKES[mistake])
    assert any(violations([seed])[2] for seed in range(400))


@pytest.mark.parametrize(
    "move",
    [
        lambda r: r.flip(0),
        lambda r: r.roll(1, 0),
        lambda r: r[torch.tensor([1, 0, 2])],
        lambda r: r.gather(0, torch.tensor([[1], [0], [2]])),
        lambda r: r.index_put((torch.tensor([1]),), r[:1]),
        lambda r: r.index_add(0, torch.tensor([1, 0]), r[:2]),
        lambda r: r.scatter(0, torch.tensor([[2]]), r),
        lambda r: r.repeat(2, 1),
        lambda r: torch.stack([r, r]),
    ],
)
def test_what_is_moved_by_index_has_no_rows(move):
    r = 1 / Field(0, 2).random(3, 1)
    assert r.note.value.rows
    assert not move(r).note.value.rows
