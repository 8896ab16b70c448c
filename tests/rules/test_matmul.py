"""Products in all the forms of ``torch.matmul``: the same values, and gradients that are summed over what was broadcast."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradderiv
from gradderiv.checks.catalog import RULES
from gradderiv.checks.oracles import autograd, field
from gradderiv.checks.problems import PROBLEMS
from gradderiv.errors import DtypeError, InputError
from gradderiv.numbers.field import Field
from gradderiv.rules.matmul import MatmulGradients, matmul, matmul_jvp, matmul_vjp, matmul_vjp_jvp

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

FORMS = [p for p in PROBLEMS.values() if p.rule == "matmul"]
BROADCAST = ["matmul-row-batch", "matmul-column-batch", "matmul-left", "matmul-right", "matmul-broadcast", "matmul-ones"]  # fmt: skip
some = settings(deadline=None, max_examples=60, derandomize=True, database=None)


def whole(*shape, seed=0):
    """Small whole numbers, whose products and sums float64 has exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, shape, generator=generator).double()


@st.composite
def operands(draw):
    """Two shapes that ``torch.matmul`` takes: 1 axis to 4, leading axes equal, 1, or missing."""
    size = st.integers(1, 4)
    n, d, e = draw(size), draw(size), draw(size)
    leading = draw(st.lists(size, max_size=2))
    shapes = []
    for matrix, vector in (((n, d), (d,)), ((d, e), (d,))):
        own = leading[draw(st.integers(0, len(leading))) :]
        own = [1 if draw(st.booleans()) else k for k in own]
        shapes.append(vector if draw(st.integers(0, 3)) == 0 else (*own, *matrix))
    return shapes


@some
@given(operands(), st.integers(0, 99))
def test_values_and_gradients_are_torchs_to_the_last_bit(shapes, seed):
    A, B = (whole(*s, seed=seed + i).requires_grad_() for i, s in enumerate(shapes))
    expected = torch.matmul(A, B)
    dC = whole(*expected.shape, seed=seed + 2)
    C, saved = matmul(A.detach(), B.detach())
    assert torch.equal(C, expected.detach())
    for ours, torchs in zip(matmul_vjp(dC, saved), torch.autograd.grad(expected, (A, B), dC), strict=True):
        assert torch.equal(ours, torchs)


@some
@given(operands(), st.integers(0, 99))
def test_tangents_are_those_of_torchs_forward_mode_to_the_last_bit(shapes, seed):
    (A, B), (A_dot, B_dot) = (
        [whole(*s, seed=seed + 2 * i + j) for i, s in enumerate(shapes)] for j in (0, 1)
    )
    C, C_dot = torch.func.jvp(torch.matmul, (A, B), (A_dot, B_dot))
    dC, dC_dot = whole(*C.shape, seed=seed + 7), whole(*C.shape, seed=seed + 8)
    _, saved = matmul(A, B)
    assert torch.equal(matmul_jvp(saved, A_dot, B_dot), C_dot)

    def pulled_back(A, B, dC):
        return torch.func.vjp(torch.matmul, A, B)[1](dC)

    _, second = torch.func.jvp(pulled_back, (A, B, dC), (A_dot, B_dot, dC_dot))
    for ours, torchs in zip(matmul_vjp_jvp(dC, saved, dC_dot, A_dot, B_dot), second, strict=True):
        assert torch.equal(ours, torchs)


@pytest.mark.parametrize("p", FORMS, ids=lambda p: p.name)
def test_the_gradient_is_the_adjoint_of_the_tangent_exactly(p):
    """⟨dC, Ċ⟩ = ⟨dA, Ȧ⟩ + ⟨dB, Ḃ⟩ over the field."""
    numbers = Field(seed=5, lanes=2)
    (A, A_dot), (B, B_dot) = ([numbers.random(*s) for _ in range(2)] for s in p.shapes.values())
    dC = numbers.random(*p.output)
    _, saved = matmul(A, B)
    g = matmul_vjp(dC, saved)
    left = (dC * matmul_jvp(saved, A_dot, B_dot)).sum()
    right = (g.A * A_dot).sum() + (g.B * B_dot).sum()
    assert not bool(numbers.differs(left, right).any())
    assert bool(numbers.differs(left, 2 * right).any())


def test_the_article_s_example_of_broadcasting():
    """«(j×1×n×n) and (k×n×n) give (j×k×n×n)»"""
    j, k, n = 2, 3, 4
    C, saved = matmul(whole(j, 1, n, n), whole(k, n, n, seed=1))
    g = matmul_vjp(torch.ones_like(C), saved)
    assert C.shape == (j, k, n, n)
    assert g.A.shape == (j, 1, n, n)
    assert g.B.shape == (k, n, n)


# ---------------------------------------------------------------- wrong on purpose


def _each(gradients, args, combine):
    """The gradients of every repeated matrix, brought to the operand's shape by ``combine`` instead of a sum."""
    out = {}
    for name, x in args.items():
        rows = x.unsqueeze(0 if name == "A" else 1) if x.dim() == 1 else x
        g = gradients[name]
        for axis in range(g.dim() - 2):
            if axis < g.dim() - rows.dim() or rows.shape[axis - g.dim()] == 1:
                g = combine(g, axis)
        out[name] = g.reshape(x.shape) if g.numel() == x.numel() else g
    return out


def products(args, dC):
    """dC Bᵀ and Aᵀ dC of all matrices, not summed."""
    A, B = args["A"], args["B"]
    dC = dC.unsqueeze(-1) if B.dim() == 1 else dC
    dC = dC.unsqueeze(-2) if A.dim() == 1 else dC
    A, B = A.unsqueeze(0) if A.dim() == 1 else A, B.unsqueeze(1) if B.dim() == 1 else B
    return {"A": dC @ B.mT, "B": A.mT @ dC}


WRONG = {
    "not summed": lambda g, axis: g,
    "the first matrix only": lambda g, axis: g.narrow(axis, 0, 1),
    "averaged": lambda g, axis: g.mean(axis, keepdim=True),
}


def twin(combine):
    def gradients(args, options, dC):
        return _each(products(args, dC), args, combine)

    return dataclasses.replace(RULES["matmul"], gradients=gradients)


@pytest.mark.parametrize("name", BROADCAST)
@pytest.mark.parametrize("mistake", WRONG)
def test_twin_a_gradient_that_is_not_summed_over_the_broadcast_is_rejected(mistake, name):
    assert any(r.verdict == "fail" for r in field(twin(WRONG[mistake]), PROBLEMS[name]))
    summed = twin(lambda g, axis: g.sum(axis, keepdim=True))
    assert {r.verdict for r in field(summed, PROBLEMS[name])} == {"pass"}


def test_twin_products_that_are_rounded_before_they_are_added_are_rejected_in_bfloat16():
    """Right in exact arithmetic and in float64; why :func:`matmul_vjp` adds inside the product."""
    rule = twin(lambda g, axis: g.sum(axis, keepdim=True))
    for name in ("matmul-left", "matmul-right"):
        verdicts = {r.dtype: r.verdict for r in autograd(rule, PROBLEMS[name]) if r.verdict == "fail"}
        assert set(verdicts) == {"bfloat16"}


# ---------------------------------------------------------------- as a custom backward


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, A, B):
        C, saved = matmul(A, B)
        ctx.save_for_backward(*saved)
        return C

    @staticmethod
    def backward(ctx, dC):
        _, saved = matmul(*ctx.saved_tensors)
        return tuple(matmul_vjp(dC, saved))


class Averaged(Product):
    @staticmethod
    def backward(ctx, dC):
        g = Product.backward(ctx, dC)
        return MatmulGradients(g[0], g[1] / dC.shape[0])


@pytest.mark.parametrize("name", ["matmul-dot", "matmul-row-batch", "matmul-left", "matmul-broadcast"])
def test_a_function_made_of_it_is_proved(name):
    args, _ = PROBLEMS[name].floats(0, torch.float64)
    assert gradderiv.prove(Product.apply, args).passed


def test_twin_a_function_that_averages_is_refuted():
    args, _ = PROBLEMS["matmul-left"].floats(0, torch.float64)
    assert gradderiv.prove(Averaged.apply, args).verdict == "refuted"


# ---------------------------------------------------------------- misuse

R = torch.randn


@pytest.mark.parametrize(
    ("A", "B", "kind", "words"),
    [
        (R(5, 3), R(5, 3), InputError, "last axis of A is 3 and that of B which meets it 5"),
        (R(3), R(4), InputError, "last axis of A is 3"),
        (R(2, 5, 3), R(4), InputError, "A (2, 5, 3), B (4)"),
        (R(()), R(4), InputError, "an operand without axes"),
        (R(4, 5, 3), R(2, 3, 7), InputError, "leading axes that broadcast"),
        (R(2, 1, 5, 3), R(4, 1, 3, 7), InputError, "K.repeat_interleave(h // h_kv, -3)"),
        (R(5, 0), R(0, 3), InputError, "A has shape (5, 0)"),
        (torch.ones(5, 3, dtype=torch.int64), R(3, 2), DtypeError, "A has dtype torch.int64"),
        (R(5, 3), R(3, 2).double(), DtypeError, "A torch.float32, B torch.float64"),
        (R(5, 3), [[1.0], [2.0], [3.0]], DtypeError, "B as a tensor"),
    ],
)  # fmt: skip
def test_misuse_is_refused(A, B, kind, words):
    with pytest.raises(kind) as caught:
        matmul(A, B)
    assert words in str(caught.value)
