"""Writing in place: into slices and views, into parts that the base lacks at first, and never into an argument."""

from __future__ import annotations

import math

import pytest
import torch
from exact_reference import assert_is, entered, modest, objects, same
from hypothesis import given
from hypothesis import strategies as st
from operations import EXACT_IN_FLOAT64, FRACTIONS, WRITES

from gradderiv.errors import NoExactMeaning
from gradderiv.numbers.field import Field

INF = math.inf
FIELD = Field(seed=3, lanes=2)


def outputs(out):
    return list(out) if isinstance(out, (list, tuple)) else [out]


@pytest.mark.parametrize("name", WRITES)
def test_programs_that_write_do_what_they_do_in_torch(name):
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randint(-20, 20, (3, 4), generator=generator).double() / 8 for _ in range(2)]
    inputs = [entered(FIELD, objects(t)) for t in tensors]
    found, expected = outputs(WRITES[name](*inputs)), outputs(WRITES[name](*[t.clone() for t in tensors]))
    for x, y in zip(found, expected, strict=True):
        assert_is(x, objects(y))
    for x, y in zip(inputs, tensors, strict=True):
        assert_is(x, objects(y))


@pytest.mark.parametrize("name", [*EXACT_IN_FLOAT64, *FRACTIONS])
def test_a_result_shares_its_entries_with_an_argument_where_it_does_in_torch(name):
    """Every result is written over, on floats and on residues; the arguments must show it in both or in neither."""
    function, *_, shapes = {**EXACT_IN_FLOAT64, **FRACTIONS}[name]
    tensors = [torch.arange(1.0, 1 + math.prod(s), dtype=torch.float64).reshape(s) for s in shapes]
    inputs = [entered(FIELD, objects(t)) for t in tensors]
    before = [t.clone() for t in tensors]
    try:
        for y in outputs(function(*tensors)):
            y.sub_(1000)
    except RuntimeError as overlap:  # several entries of an expanded view are one
        assert "single memory location" in str(overlap)  # noqa: PT017
        return
    for y in outputs(function(*inputs)):
        y.sub_(1000)
    for x, t, old in zip(inputs, tensors, before, strict=True):
        changed = [
            not torch.equal(part, entered(FIELD, objects(old)).part(n)) for n, part in x.cell.parts.items()
        ]
        assert changed == [not torch.equal(t, old)] * 2


# ---------------------------------------------------------------- parts that come into being


def test_minus_infinity_written_into_a_slice_reaches_the_base_and_older_views():
    S = FIELD.random(3, 4)
    z = S.clone()
    row, column = z[1], z[:, 2]
    assert "hole" not in z.names
    z[1, 2:] = -INF
    expected = torch.zeros(3, 4, dtype=torch.bool)
    expected[1, 2:] = True
    assert torch.equal(z == -INF, expected)
    assert torch.equal(row == -INF, expected[1])
    assert torch.equal(column == -INF, expected[:, 2])
    assert not bool((S == -INF).any())
    assert same(torch.softmax(z, -1), torch.softmax(S.masked_fill(expected, -INF), -1))
    column.copy_(S[:, 2])  # a number written over −∞
    expected[1, 2] = False
    assert torch.equal(z == -INF, expected)
    assert torch.equal(row == -INF, expected[1])
    assert same(z[1, :3], S[1, :3])


def test_a_logarithm_written_into_a_view_reaches_the_base_and_older_views():
    x = FIELD.random(3, 4)
    z = torch.zeros_like(x)
    transposed, last = z.mT, z[2]
    transposed[1].copy_(x[:, 1].log())
    assert same(z[:, 1].exp(), x[:, 1])
    assert same(transposed.exp()[1], x[:, 1])
    assert same(last.exp()[1], x[2, 1])
    assert_is(z[:, 0], [0, 0, 0])
    assert_is(z.exp()[:, 2], [1, 1, 1])
    z += x.log()
    assert same(transposed[1].exp(), x[:, 1] * x[:, 1])
    assert same(last[0].exp(), x[2, 0])
    z.zero_()
    assert_is(transposed[1], [0, 0, 0])


def test_parts_that_one_operand_lacks():
    """cat, stack, where and roll of masked, logarithmic and plain tensors."""
    x, y = FIELD.random(2, 3), FIELD.random(2, 3)
    mask = torch.tensor([[True, False, False], [False, False, True]])
    masked, log = x.masked_fill(mask, -INF), y.log()
    E = x.exp() * ~mask
    for put in (
        lambda a, b, c: torch.cat([a, b, c], 1),
        lambda a, b, c: torch.stack([a, b, c]),
        lambda a, b, c: torch.cat([b, c, a]).roll(1, 0),
        lambda a, b, c: torch.where(mask, a, torch.where(torch.tensor([True, False, True]), b, c)),
        lambda a, b, c: torch.cat([a, b, c]).index_select(0, torch.tensor([5, 0, 3])),
        lambda a, b, c: torch.cat([a, b, c])[1:6:2].flip(1).repeat(2, 1),
        lambda a, b, c: torch.stack([a, b, c]).gather(0, torch.tensor([[[0, 1, 2], [2, 1, 0]]])),
    ):
        assert same(put(masked, x, log).exp(), put(E, x.exp(), y))
        assert not same(put(masked, x, log).exp(), put(E, x.exp(), y * 2))


def test_writing_a_plain_row_over_a_logarithm_drops_the_logarithm():
    x = FIELD.random(2, 3)
    z = x.log()
    z[0] = x[0]
    assert same(z[0].exp(), x[0].exp())
    assert same(z[1].exp(), x[1])


def test_a_view_taken_before_a_part_comes_into_being_writes_it_through():
    x = FIELD.random(4)
    z = FIELD.random(2, 4)
    first, again = z[0], z[0]
    first.copy_(x.log())
    again.masked_fill_(torch.tensor([True, False, False, False]), -INF)
    assert (z[0] == -INF).tolist() == [True, False, False, False]
    assert same(z[0, 1:].exp(), x[1:])
    assert same(first[1:].exp(), x[1:])


# ---------------------------------------------------------------- parts of different layout


@pytest.mark.parametrize(
    "make", [lambda z: z.mT.reshape(-1), lambda z: z.mT.view(-1), lambda z: z.mT.flatten()]
)
def test_a_masked_transpose_can_be_viewed(make):
    """S arrives transposed, a contiguous mask of −∞ is added: torch views the sum's transpose as a vector."""
    additive = torch.zeros(4, 3, dtype=torch.float64)
    additive[0, 1] = -INF
    floats = torch.randn(3, 4, dtype=torch.float64).mT + additive
    assert make(floats).shape == (12,)
    S = FIELD.random(3, 4).mT
    out = make(S + additive)
    assert torch.equal(out == -INF, make(floats) == -INF)
    keep = [i for i, hole in enumerate(out.full("hole").tolist()) if not hole]
    assert same(out[torch.tensor(keep)], S.mT.reshape(-1)[torch.tensor(keep)])


def test_a_transposed_logarithm_can_be_viewed():
    x, y = FIELD.random(3, 4).mT, FIELD.random(4, 3)
    z = x + y.log()
    assert same(z.mT.reshape(-1).exp(), (x.exp() * y).mT.reshape(-1))


@modest
@given(st.permutations(range(3)), st.permutations(range(3)), st.booleans(), st.booleans())
def test_any_layout_of_two_operands(first, second, masked, logarithm):
    """The sum of two tensors of any strides, with or without −∞ and logarithms, flattened along its strides."""
    shape = (2, 3, 4)

    def laid_out(order):
        base = FIELD.random(*(shape[i] for i in order))
        return base.permute(*(order.index(i) for i in range(3)))

    x, y = laid_out(first), laid_out(second)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[1, 2, ::2] = masked
    other = (y.log() if logarithm else y).masked_fill(mask, -INF)
    z = x + other
    E = (x.exp() * y if logarithm else (x + y).exp()) * ~mask
    order = sorted(range(3), key=lambda d: -z.stride(d))
    flat = z.permute(*order).reshape(-1)
    assert same(flat.exp(), E.permute(*order).reshape(-1))


# ---------------------------------------------------------------- what a program may not do


def test_writing_numbers_into_an_ordinary_tensor_is_refused():
    x = FIELD.random(3)
    for program in (
        lambda: torch.zeros(3, dtype=torch.float64).copy_(x),
        lambda: torch.zeros(3, dtype=torch.float64).add_(x),
        lambda: torch.zeros(2, 3, dtype=torch.float64)[0].mul_(x),
    ):
        with pytest.raises(NoExactMeaning, match="writes exact numbers into an ordinary tensor"):
            program()
    with pytest.raises(NoExactMeaning):
        torch.mul(x, x, out=torch.zeros(3, dtype=torch.float64))


def test_uninitialised_memory_is_not_zero():
    """A program that reads what ``empty_like`` left there must not be taken for one that reads zeros."""
    x = FIELD.random(2, 3)
    for empty in (
        torch.empty_like(x),
        x.new_empty(2, 3),
        torch.empty_like(x, memory_format=torch.contiguous_format),
    ):
        assert empty.shape == x.shape
        assert not same(empty, torch.zeros_like(x))
        empty[0], empty[1] = x[0], x[1]
        assert same(empty, x)


def test_a_scalar_tensor_is_written():
    x = FIELD.random()
    z = x.clone()
    z += 1
    z.mul_(2)
    assert same(z, 2 * x + 2)
