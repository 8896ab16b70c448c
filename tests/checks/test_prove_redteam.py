"""Wrong backwards that were once called proved, and right ones whose message misled: found by attack."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import gradderiv
from gradderiv.errors import InputError
from gradderiv.numbers.field import Field
from gradderiv.numbers.ledger import CONSTANT, VARIABLE, Degree, Ledger


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def written_by_hand(forward, backward):
    """A Function with that forward, and that backward: (g, *tensors) -> gradients."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.save_for_backward(*(a for a in args if isinstance(a, Tensor)))
            return forward(*args)

        @staticmethod
        def backward(ctx, g):
            return backward(g, *ctx.saved_tensors)

    return Function.apply


wrong = written_by_hand(lambda a: a * a, lambda g, a: 5 * g * a)

# ---------------------------------------------------------------- equality of what a gate went into

OFTEN_TRUE = {
    "relu == 0": lambda a: a.relu() == 0,
    "clamp == x": lambda a: a.clamp(-1, 1) == a,
    "same sign": lambda a: (a > 0) == (a.flip(0) > 0),
    "sign == sign": lambda a: a.sign() == a.flip(0).sign(),
    "through exp": lambda a: a.relu().exp() - 1 == 0,
    "through a reciprocal": lambda a: 1 / (1 + a.relu()) - 1 == 0,
    "through a root": lambda a: (1 + a.relu()).sqrt() - 1 == 0,
    "through log": lambda a: a.relu().log() == -torch.inf,
    "through erf": lambda a: torch.erf(a.relu()) == 0,
    "through cos": lambda a: a.relu().cos() - 1 == 0,
    "through a product": lambda a: torch.ones(4, 4, dtype=a.dtype) @ a.relu() == 0,
}


@pytest.mark.parametrize("often", OFTEN_TRUE.values(), ids=OFTEN_TRUE)
def test_equality_that_holds_for_half_of_the_inputs_is_refused(often):
    f = written_by_hand(
        lambda a: torch.where(often(a), a * a, a), lambda g, a: torch.where(often(a), 77 * g, g)
    )
    proof = gradderiv.prove(f, (x(4),))
    assert proof.verdict == "inconclusive"
    assert "relu or clamp" in proof.reason
    assert "test_prove_redteam.py:" in proof.reason


def test_equality_with_zero_stays_where_no_gate_went_in():
    def safe(S, a):
        E = S.exp()
        total = E.sum(-1, keepdim=True)
        return E / torch.where(total == 0, 1, total) * a.relu()

    assert gradderiv.prove(safe, (x(2, 3), x(2, 3))).passed


# ---------------------------------------------------------------- another way on floats than on numbers


def caught(a: Tensor) -> Tensor:
    try:
        return wrong(a + 0 * a.cumprod(-1))
    except Exception:
        return a * a


def test_a_refusal_that_the_function_catches_is_a_refusal():
    proof = gradderiv.prove(caught, (x(3),))
    assert proof.verdict == "inconclusive"
    assert "cumprod" in proof.reason
    assert "catches this error" in proof.reason


def by_numpy(a: Tensor) -> Tensor:
    try:
        a.detach().numpy()
        return wrong(a)
    except RuntimeError:
        return a * a


ONE_WAY = {
    "type": lambda a: wrong(a) if type(a) is Tensor else a * a,
    "data_ptr": lambda a: wrong(a) if a.data_ptr() else a * a,
    "numpy": by_numpy,
}


@pytest.mark.parametrize("function", ONE_WAY.values(), ids=ONE_WAY)
def test_a_way_that_only_floats_go_is_seen_in_floats(function):
    proof = gradderiv.prove(function, (x(3),))
    assert proof.verdict == "inconclusive"
    assert "may go another way on floats" in proof.reason


def test_a_mask_of_floats_that_lost_its_zeros():
    f = written_by_hand(lambda a, m: a.masked_fill(m == 0, 0.0), lambda g, a, m: (g, torch.zeros_like(m)))
    mask = torch.tensor([1.0, 0, 1, 0], dtype=torch.float64)
    assert gradderiv.prove(f, (x(4), mask)).verdict == "inconclusive"
    kept = gradderiv.prove(f, (x(4).requires_grad_(), mask))
    assert kept.verdict == "refuted"  # as a constant


def test_a_narrow_constant_is_not_what_it_is_read_as():
    third = torch.tensor(1 / 3)
    f = written_by_hand(lambda a: a * third, lambda g, a: g / 3)
    assert gradderiv.prove(f, (x(3),)).verdict == "inconclusive"


def test_rounding_in_the_backward_is_not_taken_for_another_way():
    f = written_by_hand(lambda a: a * a, lambda g, a: (g.float() * a.float() * 2).double())
    assert gradderiv.prove(f, (x(3),)).passed


def test_dropout_has_one_mask_in_floats_too():
    def f(a):
        return nn.functional.dropout(a.exp(), 0.5) * (torch.rand(a.shape) > 0.5)

    assert gradderiv.prove(f, (x(4, 4),)).passed


# ---------------------------------------------------------------- what is kept from call to call


class Kept:
    def __init__(self, which) -> None:
        self.which, self.cache = which, None

    def __call__(self, a: Tensor) -> Tensor:
        if self.which(self.cache):
            self.cache = a.exp().detach()
        return a * (a.exp() if self.cache is None else self.cache)


@pytest.mark.parametrize("which", [lambda c: c is None, lambda c: torch.is_grad_enabled()])
def test_a_cache_of_the_inputs_is_no_constant(which):
    proof = gradderiv.prove(Kept(which), (x(3),))
    assert proof.verdict == "inconclusive"
    assert "an earlier call computed from its inputs" in proof.reason


def test_a_cache_that_depends_on_shapes_only_is_one():
    tables: dict[int, Tensor] = {}

    def f(a):
        return a * tables.setdefault(a.shape[0], torch.arange(3).double())

    assert gradderiv.prove(f, (x(3),)).passed


def test_what_is_kept_and_not_used_is_no_reason():
    seen = []

    def f(a):
        seen.append(a.exp())
        return seen[-1] * a

    assert gradderiv.prove(f, (x(3),)).passed


def test_memory_that_happens_to_be_zero():
    f = written_by_hand(
        lambda a: a * 2, lambda g, a: g * 2 + torch.empty(100_000, dtype=torch.float64)[50_000:50_003]
    )
    proof = gradderiv.prove(f, (x(3),))
    assert proof.verdict == "inconclusive"
    assert "read before it was written" in proof.reason


# ---------------------------------------------------------------- what was not looked at is said


def test_an_output_inside_an_object_is_not_passed_over():
    @dataclasses.dataclass
    class Output:
        y: Tensor

    with pytest.raises(InputError, match="wrap it"):
        gradderiv.prove(lambda a: (a.exp(), Output(wrong(a))), (x(3),))


def test_a_parameter_in_a_closure_is_said():
    weight = nn.Parameter(x(3))
    proof = gradderiv.prove(lambda a: a * wrong(weight), (x(3),))
    assert any("is no argument" in remark for remark in proof.remarks)


def test_a_tensor_given_twice_is_said():
    swapped = written_by_hand(lambda a, b: a * b.exp(), lambda g, a, b: (g * a * b.exp(), g * b.exp()))
    both = x(3)
    proof = gradderiv.prove(swapped, (both, both))
    assert any("is the same tensor" in remark for remark in proof.remarks)
    assert gradderiv.prove(swapped, (x(3), x(3) + 1)).verdict == "refuted"


# ---------------------------------------------------------------- messages


def test_a_reference_may_name_its_arguments_otherwise():
    assert gradderiv.prove(lambda S: S.exp(), (x(3),), reference=lambda T: T.exp()).passed


def test_a_backward_that_raises_in_floats_too_is_not_laid_on_exact_numbers():
    f = written_by_hand(lambda a, b: a * b, lambda g, a, b: (g * b, g.sum() + a.sum()))
    assert "in floats too" in gradderiv.prove(f, (x(3), x(3))).reason


def test_a_backward_that_can_run_once_is_proved_output_by_output():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, S):
            lse = S.logsumexp(-1, keepdim=True)
            P = torch.exp(S - lse)
            ctx.save_for_backward(P.clone())
            return P, lse

        @staticmethod
        def backward(ctx, g, dlse):
            (P,) = ctx.saved_tensors
            return P.mul_(g - (P * g).sum(-1, keepdim=True) + dlse)

    assert "Prove one at a time" in gradderiv.prove(Once.apply, (x(2, 3),)).reason
    for other in ("output 0", "output 1"):
        assert gradderiv.prove(Once.apply, (x(2, 3),), no_gradient=[other]).passed


# ---------------------------------------------------------------- the bound


def test_a_repeated_argument_counts_with_the_larger_of_its_records():
    ledger = Ledger()
    ledger.opaque(10, VARIABLE)
    before = ledger.coincidence(1)
    ledger.repeated(10, Degree(50))
    assert ledger.argument.e == 50
    assert ledger.coincidence(1) > before + 5


def test_the_mark_of_a_gate_costs_nothing():
    ledger = Ledger()
    gate = ledger.gated()
    assert ledger.numerator(gate * gate) == 2
    inverse = ledger.invert(gate * VARIABLE, 3)
    assert ledger.gates_of(inverse)
    assert not ledger.gates_of(CONSTANT * VARIABLE)
    field = Field(0, 2)
    assert not field.ledger.gates_of(field.random(2).exp().note.value)


def test_a_value_that_only_floats_have_is_not_the_references():
    def f(a):
        return a * a + 1 if type(a) is Tensor else a * a

    assert gradderiv.prove(f, (x(3),)).passed  # its derivative is right
    proof = gradderiv.prove(f, (x(3),), reference=lambda a: a * a)
    assert proof.verdict == "inconclusive"
    assert "equals the reference's on exact numbers" in proof.reason


def test_a_derivative_that_is_nan_at_these_inputs_is_not_proved():
    proof = gradderiv.prove(lambda a: torch.where(a > 0, a.sqrt(), a), (x(8),))
    assert proof.verdict == "inconclusive"
    assert "NaN" in proof.reason


def test_a_second_chance_counts_twice():
    f = written_by_hand(lambda a: a.exp(), lambda g, a: g / (-a).exp())
    proof = gradderiv.prove(f, (x(3),))
    assert proof.passed
    assert "proved with exp(−a) = 1/exp(a)" in proof.remarks


def test_dropout_inside_a_fused_kernel_is_not_taken_for_another_way():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1).double()
    assert gradderiv.prove(layer, (x(2, 3, 8),)).passed
