"""Every operation of the table, on residues in two lanes, against the same operation on exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from exact_reference import assert_is, brief, entered, modest, objects
from hypothesis import assume, given
from hypothesis import strategies as st
from operations import EXACT_IN_FLOAT64, FRACTIONS, GATED, LARGEST, OPAQUE, ORDINARY
from torch.utils._python_dispatch import TorchDispatchMode

from gradderiv.numbers.field import Field
from gradderiv.numbers.lanes import FieldTensor
from gradderiv.numbers.operands import ARITHMETIC
from gradderiv.numbers.structure import STRUCTURE, VIEWS

aten = torch.ops.aten
FIELD = Field(seed=5, lanes=2)


def eighths(shapes):
    """Tensors of these shapes with entries k/8, none of them zero."""
    entry = st.integers(-40, 40).filter(bool)
    tensor = lambda shape: st.lists(entry, min_size=(n := int(np.prod(shape))), max_size=n).map(  # noqa: E731
        lambda v: torch.tensor(v, dtype=torch.float64).reshape(shape) / 8
    )
    return st.tuples(*map(tensor, shapes))


def outputs(out):
    return list(out) if isinstance(out, (list, tuple)) else [out]


@pytest.mark.parametrize("name", EXACT_IN_FLOAT64)
def test_the_table_computes_what_torch_computes_where_float64_is_exact(name):
    function, shapes = EXACT_IN_FLOAT64[name]

    @brief
    @given(eighths(shapes))
    def check(tensors):
        inputs = [entered(FIELD, objects(t)) for t in tensors]
        expected, found = outputs(function(*tensors)), outputs(function(*inputs))
        assert len(found) == len(expected)
        for x, y in zip(found, expected, strict=True):
            assert isinstance(x, FieldTensor)
            assert_is(x, objects(y))
        for x, t in zip(inputs, tensors, strict=True):
            assert_is(x, objects(t))  # the arguments are as they were

    check()


@pytest.mark.parametrize("name", FRACTIONS)
def test_the_table_divides_as_fractions_do(name):
    function, reference, shapes = FRACTIONS[name]

    @brief
    @given(eighths(shapes))
    def check(tensors):
        inputs = [entered(FIELD, objects(t)) for t in tensors]
        assert_is(function(*inputs), reference(*map(objects, tensors)))
        for x, t in zip(inputs, tensors, strict=True):
            assert_is(x, objects(t))

    check()


def test_twin_a_wrong_reference_is_noticed():
    x = entered(FIELD, objects(torch.tensor([1.0, 2.0])))
    for values in ([1, 3], [1, Fraction(2, 3)], [[1, 2]], [1 + FIELD.primes[0], 2]):
        with pytest.raises(AssertionError):
            assert_is(x, np.array(values, dtype=object))


@modest
@given(st.lists(st.fractions(max_denominator=50), min_size=8, max_size=8))
def test_a_program_on_rationals(values):
    """((A B + B) / (1 + a²) − 1/3)² with entries that no float holds."""
    A, B = (np.array(v, dtype=object).reshape(2, 2) for v in (values[:4], values[4:]))
    a = values[0]
    x, y = entered(FIELD, A), entered(FIELD, B)
    out = ((x @ y + y) / (1 + x[0, 0] ** 2) - 1 / 3) ** 2
    assert_is(out, ((A.dot(B) + B) / (1 + a**2) - Fraction(1, 3)) ** 2)


@modest
@given(eighths([(3, 3)]))
def test_a_matrix_times_its_inverse_by_cofactors_is_one(tensors):
    (A,) = tensors
    assume(_determinant(objects(A)) != 0)
    x = entered(FIELD, objects(A))
    adjugate = torch.stack([torch.stack([_cofactor(x, j, i) for j in range(3)]) for i in range(3)])
    determinant = (x[0] * adjugate[:, 0]).sum()
    assert_is(determinant, np.array(_determinant(objects(A))))
    assert_is(x @ (adjugate / determinant), np.eye(3, dtype=object))


def _cofactor(x, i, j):
    rows, columns = [r for r in range(3) if r != i], [c for c in range(3) if c != j]
    (a, b), (c, d) = ([x[r, k] for k in columns] for r in rows)
    return (a * d - b * c) * (-1) ** (i + j)


def _determinant(a):
    return sum(
        a[0, i] * (a[1, (i + 1) % 3] * a[2, (i + 2) % 3] - a[1, (i + 2) % 3] * a[2, (i + 1) % 3])
        for i in range(3)
    )


# ---------------------------------------------------------------- nothing in the table is untested

ELSEWHERE = {
    aten.exp.default, aten.log.default, aten._softmax.default, aten._log_softmax.default,
    aten._log_softmax_backward_data.default, aten.logsumexp.default, aten.logaddexp.default,
    aten.amax.default, aten.maximum.default, aten.eq.Scalar,  # test_field_logs.py
    aten.empty_like.default, aten.new_empty.default, aten.new_empty_strided.default,  # test_field_writes.py
    aten._efficientzerotensor.default, aten.is_same_size.default, aten._has_same_storage_numel.default,  # below
}  # fmt: skip


class Recorder(TorchDispatchMode):
    """Notes every operation that reaches the numbers."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func)
        return func(*args, **(kwargs or {}))


def test_every_operation_of_the_table_has_a_case():
    with Recorder() as recorder:
        for cases in (EXACT_IN_FLOAT64, FRACTIONS):
            for function, *_, shapes in cases.values():
                function(*(FIELD.random(*s) for s in shapes))
        for cases in (OPAQUE, GATED, ORDINARY, LARGEST):  # test_opaque.py
            for function, shapes in cases.values():
                field = Field(seed=5, lanes=2, roots=frozenset({-1, 2}))
                function(*(field.random(*s) for s in shapes))
        with torch.inference_mode():  # composite operations arrive whole
            for name in ("square", "contiguous"):
                function, shapes = EXACT_IN_FLOAT64[name]
                function(*(FIELD.random(*s) for s in shapes))
            torch.isfinite(FIELD.random(3))
            aten._fused_rms_norm.default(FIELD.random(2, 3), [3], None, 0.5)
    table = {*ARITHMETIC, *VIEWS, *STRUCTURE}
    missing = sorted(map(str, table - recorder.seen - ELSEWHERE))
    assert not missing, missing
    assert table >= ELSEWHERE


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x.split(2, -1),
        lambda x: x.split(7),
        lambda x: x.split([2, 3], -1),
        lambda x: x.chunk(3, -1),
        lambda x: x.tensor_split(2, -1),
        lambda x: x.unbind(-1),
        lambda x: x[:0].split(2),
        lambda x: x[:0].chunk(2),
        lambda x: x[:0].unbind(),
        lambda x: x[:, :0].split([0], 1),
    ],
)
def test_pieces_are_as_many_and_as_large_as_those_of_torch(cut):
    floats = torch.arange(15.0, dtype=torch.float64).reshape(3, 5)
    found, expected = cut(entered(FIELD, objects(floats))), cut(floats)
    assert [x.shape for x in found] == [y.shape for y in expected]
    for x, y in zip(found, expected, strict=True):
        assert x.numel() == 0 or assert_is(x, objects(y)) is None


def test_the_table_under_inference_mode():
    """There torch hands over composite operations whole, and the numbers take them apart."""
    tensors = (
        torch.arange(1, 13, dtype=torch.float64).reshape(3, 4) / 8,
        torch.ones(4, 2, dtype=torch.float64),
    )
    with torch.inference_mode():
        for f in (torch.matmul, lambda x, y: (x.mT.contiguous().square() @ x).reshape(2, -1) - y.sum()):
            assert_is(f(*(entered(FIELD, objects(t)) for t in tensors)), objects(f(*tensors)))


def test_bookkeeping_of_forward_mode():
    x, y = FIELD.random(2, 3), FIELD.random(3, 2)
    assert aten.is_same_size.default(x, FIELD.random(2, 3)) is True
    assert aten.is_same_size.default(x, y) is False
    assert aten._has_same_storage_numel.default(x, y) is True
    assert aten._has_same_storage_numel.default(x, y[:1].clone()) is False


def test_scatter_takes_as_much_of_its_source_as_there_are_indices():
    x, y, index = (
        torch.zeros(3, 4).double(),
        torch.arange(9.0).double().reshape(3, 3),
        torch.tensor([[2, 0], [1, 3]]),
    )
    for scatter in (torch.scatter, torch.scatter_add):
        numbers = [entered(FIELD, objects(t)) for t in (x, y)]
        assert_is(scatter(numbers[0], 1, index, numbers[1]), objects(scatter(x, 1, index, y)))


def test_softmax_of_a_scalar_is_one():
    """Over an axis that a 0-dimensional tensor does not have, as in torch."""
    assert torch.softmax(torch.tensor(3.0), 0) == 1
    assert_is(torch.softmax(FIELD.random(), 0), np.array(1, dtype=object))


# ---------------------------------------------------------------- points


def test_random_entries_are_residues_of_their_lane_and_follow_the_seed():
    a, b, c = Field(1, 3), Field(1, 3), Field(2, 3)
    x, y, z = a.random(50, 40), b.random(50, 40), c.random(50, 40)
    assert a.primes == b.primes != c.primes
    for j, p in enumerate(a.primes):
        lane = x.part(f"v{j}")
        assert lane.dtype == torch.int64
        assert 0 <= lane.min().item() <= 2**22
        assert p - 2**22 <= lane.max().item() < p
        assert torch.equal(lane, y.part(f"v{j}"))
        assert (lane == z.part(f"v{j}")).sum().item() == 0
    assert (x.part("v0") == x.part("v1")).sum().item() == 0
    assert (a.random(50, 40).part("v0") == x.part("v0")).sum().item() == 0


def test_another_draw_is_another_point_and_another_shift_is_the_same_point():
    base, drawn, shifted = Field(1), Field(1, draw=1), Field(1, shift=1)
    assert base.primes == shifted.primes != drawn.primes
    x, y = base.random(100), shifted.random(100)
    assert torch.equal(x.part("v0"), y.part("v0"))
    assert torch.equal(base.exp(x).part("v1"), shifted.exp(y).part("v1"))
    assert not torch.equal(x.amax().full("log0"), y.amax().full("log0"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_casts_between_floats_are_the_identity(dtype):
    x = FIELD.random(2, 3)
    y = x.to(dtype)
    assert y.dtype == dtype
    assert all(torch.equal(x.part(n), y.part(n)) for n in FIELD.values)
    assert (y + y).dtype == dtype
    assert (y @ y.mT).dtype == dtype
    assert (y * 0.5).dtype == dtype
    assert torch.softmax(y, -1, dtype=torch.float32).dtype == torch.float32
    assert y.sum(dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1), (3, 4)])
def test_expanded_transposed_and_singleton_arguments(shape):
    values = torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.float64).reshape(shape) / 8
    x = entered(FIELD, objects(values))
    for move in (
        lambda a: a.expand(3, *shape),
        lambda a: a.mT,
        lambda a: a.flip(0).mT[:, ::2],
        lambda a: a[:1].expand(4, -1),
    ):
        a, b = move(x), move(values)
        assert_is(a + a.sum(0, keepdim=True), objects(b + b.sum(0, keepdim=True)))
        assert_is(a @ a.mT, objects(b @ b.mT))
        assert_is((a * 3).reshape(-1), objects((b * 3).reshape(-1)))
        assert_is(a.contiguous().view(-1), objects(b.contiguous().view(-1)))
        assert a.stride() == b.stride()
