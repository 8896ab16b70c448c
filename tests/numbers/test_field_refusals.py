"""What has no exact meaning is refused, with the operation and the line of code that asked for it."""

from __future__ import annotations

import linecache
import math
import re
import warnings
from fractions import Fraction

import pytest
import torch
from exact_reference import assert_is, lanes_of, same
from torch.nn import functional

from gradderiv.errors import GradderivError, NoExactMeaning
from gradderiv.numbers.field import Field
from gradderiv.numbers.lanes import DrawAgain

FIELD = Field(seed=2, lanes=2)
X, Y = FIELD.random(4), FIELD.random(4)
BAG = torch.tensor([[0, 1]])

REFUSED = [
    ("aten.any", lambda: (X > 0).any()),
    ("aten.all", lambda: (X >= Y).all()),
    ("aten._local_scalar_dense", lambda: bool(X[0] > 0)),
    ("aten._local_scalar_dense", lambda: (X[0] < Y[0]).item()),
    ("aten.nonzero", lambda: (X > 0).nonzero()),
    ("aten.index.Tensor", lambda: X[X > 0]),
    ("aten.eq.Scalar compares values with 1", lambda: X == 1),
    ("aten.eq.Scalar compares values with 3", lambda: X != 3),
    ("aten.eq.Scalar compares values with nan", lambda: X.eq(math.nan)),
    ("aten.equal.default", lambda: torch.equal(X, Y)),
    ("aten.allclose.default", lambda: torch.allclose(X, Y)),
    ("aten._local_scalar_dense", lambda: X[0].item()),
    ("aten._local_scalar_dense", lambda: float(X[:1])),
    ("aten._local_scalar_dense", lambda: int(X[1])),
    ("aten._local_scalar_dense", lambda: bool(X[2])),
    ("aten._local_scalar_dense", lambda: 1 if X.sum() else 0),
    ("aten.sort", lambda: X.sort()),
    ("aten.topk", lambda: X.topk(2)),
    ("aten.argsort", lambda: X.argsort()),
    ("aten.kthvalue", lambda: X.kthvalue(2)),
    ("aten.median", lambda: X.median()),
    ("aten.argmin", lambda: X.argmin()),
    ("aten.amin", lambda: X.amin()),
    ("aten.minimum", lambda: torch.minimum(X, Y)),
    ("aten.cummax", lambda: X.cummax(0)),
    ("aten.nonzero", lambda: X.nonzero()),
    ("aten.prod", lambda: X.prod()),
    ("aten.cumprod", lambda: X.cumprod(0)),
    ("aten.floor", lambda: X.floor()),
    ("aten.ceil", lambda: X.ceil()),
    ("aten.trunc", lambda: X.trunc()),
    ("aten.round", lambda: X.round()),
    ("aten.floor_divide", lambda: X // 2),
    ("aten.remainder", lambda: X % 2),
    ("aten.fmod", lambda: torch.fmod(X, 2)),
    ("aten.div.Tensor_mode", lambda: torch.div(X, Y, rounding_mode="floor")),
    ("aten.div.Tensor_mode", lambda: torch.div(X, 3, rounding_mode="trunc")),
    ("aten.pow.Tensor_Scalar with the exponent 0.25", lambda: X**0.25),
    ("aten.pow.Tensor_Scalar with the exponent -1.2", lambda: X**-1.2),
    ("aten.pow.Tensor_Tensor", lambda: X**Y),
    ("aten.pow.Scalar", lambda: 2**X),
    ("aten.tan", lambda: X.tan()),
    ("aten.atan", lambda: X.atan()),
    ("aten.sinh", lambda: X.sinh()),
    ("aten.erfinv", lambda: X.erfinv()),
    ("aten.lgamma", lambda: X.lgamma()),
    ("aten.softplus.default with the threshold 1", lambda: torch.nn.functional.softplus(X, threshold=1)),
    ("aten.linalg_vector_norm.default of order 1", lambda: torch.linalg.vector_norm(X, 1)),
    ("aten.linalg_vector_norm.default of order inf", lambda: torch.linalg.vector_norm(X, math.inf)),
    ("aten._to_copy.default casts to torch.int64", lambda: X.long()),
    ("aten._to_copy.default casts to torch.int32", lambda: X.to(torch.int32)),
    ("aten._to_copy.default casts to torch.bool", lambda: X.bool()),
    ("casts to torch.int64", lambda: X.sum(dtype=torch.int64)),
    ("casts to torch.int16", lambda: X.mean(dtype=torch.int16)),
    ("casts to torch.int64", lambda: X.cumsum(0, dtype=torch.int64)),
    ("aten.view.dtype", lambda: X.view(torch.int64)),
    ("aten.as_strided", lambda: X.as_strided((2,), (2,))),
    ("aten.rand_like", lambda: torch.rand_like(X)),
    ("aten.where.self asks for the truth of a number", lambda: torch.ops.aten.where.self(X, Y, Y)),
    ("aten.index_put_", lambda: torch.zeros(4).double().index_put_((torch.tensor([0, 2]),), Y[:2])),
    ("aten.scatter_reduce", lambda: X.scatter_reduce(0, torch.tensor([0]), Y, "amax")),
    (
        "aten.embedding_dense_backward.default with scale_grad_by_freq",
        lambda: torch.ops.aten.embedding_dense_backward(Y[:, None], torch.arange(4), 4, -1, True),
    ),
    (
        "aten._embedding_bag.default other than a sum",
        lambda: functional.embedding_bag(BAG, Y[:, None], mode="mean"),
    ),
    (
        "aten._embedding_bag.default other than a sum",
        lambda: functional.embedding_bag(BAG, Y[:, None], mode="max"),
    ),
]


@pytest.mark.parametrize(("operation", "program"), REFUSED)
def test_the_refusal_names_the_operation_and_the_line(operation, program):
    with pytest.raises(NoExactMeaning) as caught:
        program()
    text = str(caught.value)
    assert operation in text
    line = program.__code__.co_firstlineno
    assert f"called at {__file__}:{line}: {linecache.getline(__file__, line).strip()}" in text
    assert re.fullmatch(r"[^\n]+\n  came:  [^\n]+\n  cause: [^\n]+\n  do:    [^\n]+", text)
    assert isinstance(caught.value, GradderivError)


def test_the_text_of_a_refusal_word_for_word():
    with pytest.raises(NoExactMeaning) as caught:
        X.floor()
    line = test_the_text_of_a_refusal_word_for_word.__code__.co_firstlineno + 2
    assert str(caught.value) == (
        "exact arithmetic needs operations that are defined on every number\n"
        f"  came:  aten.floor.default has no exact meaning, called at {__file__}:{line}: X.floor()\n"
        "  cause: it compares or rounds values, reads one out, or is simply not in the table\n"
        "  do:    write that line with arithmetic, masks and structural operations, or keep its result a constant"
    )


def test_a_refusal_inside_a_backward_names_the_backward():
    class Squared(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return 2 * x.floor() * g

    x = FIELD.random(3).requires_grad_()
    with pytest.raises(NoExactMeaning, match=r"aten\.floor\.default .*return 2 \* x\.floor\(\) \* g"):
        torch.autograd.grad(Squared.apply(x).sum(), x)


def test_twin_what_has_a_meaning_is_not_refused():
    for program in (
        lambda: X.eq(-math.inf),
        lambda: X**2.0,
        lambda: X.float(),
        lambda: X.sum(dtype=torch.float32),
        lambda: torch.where(torch.tensor([True, False, True, True]), X, Y),
        lambda: X.div(Y),
        lambda: X[torch.tensor([0, 2])],
    ):
        program()


# ---------------------------------------------------------------- constants


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_constants_that_are_no_numbers(bad):
    for program in (
        lambda: X + bad,
        lambda: X * torch.tensor([1.0, bad, 1.0, 1.0]),
        lambda: X.masked_fill(torch.tensor([True, False, False, False]), bad),
        lambda: torch.full_like(X, bad),
    ):
        with pytest.raises(NoExactMeaning, match="finite constants, or −inf"):
            program()
    assert (X + torch.tensor([0.0, -math.inf, 0.0, 0.0]) == -math.inf).tolist() == [False, True, False, False]


@pytest.mark.parametrize("program", [lambda: X * 1j, lambda: X + torch.tensor([1j, 0, 0, 0])])
def test_complex_constants_have_no_meaning(program):
    """Their imaginary part must not be dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((NoExactMeaning, TypeError)):
            program()


@pytest.mark.parametrize(("constant", "root"), [(8**-0.5, 2), (math.sqrt(3) / 2, 3), (0.408248290463863, 6)])
def test_a_constant_with_a_root_asks_for_primes_that_have_it(constant, root):
    with pytest.raises(DrawAgain) as caught:
        FIELD.random(2) * constant
    assert caught.value.root == root
    assert caught.value.lanes is None
    field = Field(seed=2, lanes=3, roots=frozenset({root}))
    r = torch.ones_like(field.random(1)) * constant
    square = round(constant**2 * 24)
    assert_is(r * r * 24, [square])
    assert all(lane.item() ** 2 * 24 % p == square for lane, p in zip(lanes_of(r), field.primes, strict=True))
    assert len(field.readings) == 1
    (reading,) = field.readings
    assert "√" in reading


def test_roots_of_one_number_are_the_same_root_each_time():
    field = Field(seed=2, lanes=2, roots=frozenset({2}))
    one = torch.ones_like(field.random(1))
    assert same(one * 8**-0.5 * 4, one * math.sqrt(2))
    assert same(one * math.sqrt(2) * math.sqrt(2), one * 2)
    assert not same(one * -math.sqrt(2), one * math.sqrt(2))


def test_the_readings_are_listed_and_integers_are_not():
    field = Field(seed=0, lanes=2)
    x = field.random(2)
    (x * 0.1 + 3 - torch.tensor([0.25, 7.0])) / 5
    assert field.readings == {"0.1 = 1/10": None, "0.25 = 1/4": None}


def test_a_constant_without_a_reading_keeps_its_exact_dyadic_value():
    one = torch.ones_like(FIELD.random(1))
    assert_is(one * math.e, [math.e])
    assert_is(one * 0.1, [Fraction(1, 10)])


@pytest.mark.parametrize(
    "kind", [float, int, lambda p: torch.tensor([p]).double(), lambda p: torch.tensor([p])]
)
def test_a_constant_that_is_zero_mod_a_prime_draws_again(kind):
    """x·p is not zero; mod p it would be, and 0 is what a false identity may have on its other side."""
    field = Field(seed=4, lanes=2)
    p = field.primes[1]
    for constant in (p, 3 * p):
        with pytest.raises(DrawAgain, match=f"0 mod {p}"):
            field.random(1) * kind(constant)
    assert_is(torch.ones_like(field.random(1)) * kind(p + 1), [p + 1])
    assert_is(field.random(1) * kind(0), [0])


def test_numbers_of_another_field_cannot_enter():
    other = Field(seed=3, lanes=2).random(4)
    for program in (lambda: X + other, lambda: torch.cat([X, other]), lambda: X @ other):
        with pytest.raises(NoExactMeaning, match="another system"):
            program()
    with pytest.raises(TypeError, match="FieldTensor is compared with a Tensor"):
        FIELD.differs(X, torch.ones(4))


def test_too_few_lanes_for_the_target_ask_for_more():
    field = Field(seed=0, lanes=2, target=-80.0)
    with pytest.raises(DrawAgain, match="too few lanes") as caught:
        field.random(50).exp()
    assert caught.value.lanes == 3
    Field(seed=0, lanes=4, target=-80.0).random(50).exp()
