"""Every way in which a proof could become a lie, and what stands in it: each test fails when its guard is gone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gradderiv
from gradderiv.checks import exact, prover
from gradderiv.checks.runs import Runs
from gradderiv.numbers.field import Field
from gradderiv.numbers.residues import Keyed


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def softmax_with(backward, forward=None):
    """softmax over the last axis, with that backward: (g, P, S) -> dS."""

    class Softmax(torch.autograd.Function):
        @staticmethod
        def forward(ctx, S):
            P = torch.softmax(S, -1) if forward is None else forward(S)
            ctx.save_for_backward(P, S)
            return P

        @staticmethod
        def backward(ctx, g):
            return backward(g, *ctx.saved_tensors)

    return Softmax.apply


def right(g: Tensor, P: Tensor, S: Tensor) -> Tensor:
    return P * (g - (P * g).sum(-1, keepdim=True))


# ---------------------------------------------------------------- the shift that stands for a maximum


def test_a_maximum_as_a_value_is_not_proved():
    proof = gradderiv.prove(lambda S: S.amax(-1), (x(2, 3),))
    assert proof.verdict == "inconclusive"
    assert "depends on the maximum of a row" in proof.reason


def unnormalised(S: Tensor) -> Tensor:
    """Where the shift is left in: both sides take it for a constant, and agree."""
    return torch.exp(S - S.amax(-1, keepdim=True).detach())


def test_a_shift_that_is_left_in_is_not_proved():
    proof = gradderiv.prove(unnormalised, (x(2, 3),))
    assert proof.verdict == "inconclusive"
    assert "depends on the maximum of a row" in proof.reason


def test_its_twin_without_the_second_shift_would_be(monkeypatch):
    monkeypatch.setattr(prover, "on_floats", lambda *_: None)
    monkeypatch.setattr(
        Field, "shift_used", property(lambda self: False, lambda self, used: None), raising=False
    )
    assert gradderiv.prove(unnormalised, (x(2, 3),)).verdict == "proved"


def test_a_gradient_that_depends_on_the_maximum_is_not_proved():
    def leaky(g, P, S):
        m = S.amax(-1, keepdim=True)
        return right(g, P, S) + 0 * g + (m - m) * g + (torch.exp(S - m) - torch.exp(S - m.detach())) * g

    def moved(g, P, S):  # right times exp(m − m′), which is 1 for reals and for one shift only
        return (
            right(g, P, S)
            * torch.exp(S.amax(-1, keepdim=True) - S.logsumexp(-1, keepdim=True))
            / P.amax(-1, keepdim=True)
        )

    assert gradderiv.prove(softmax_with(leaky), (x(2, 3),)).passed
    assert not gradderiv.prove(softmax_with(moved), (x(2, 3),)).passed


@pytest.mark.parametrize(
    "function",
    [
        lambda S: S.gather(-1, S.argmax(-1, keepdim=True)),
        lambda S: torch.where(S.argmax(-1, keepdim=True) == 0, S, -S),
        lambda S: S * S.max(-1, keepdim=True).indices,
        lambda S: S[S.argmax()],
    ],
)
def test_the_place_of_the_maximum_is_not_relied_on(function):
    proof = gradderiv.prove(function, (x(3, 2),))
    assert proof.verdict == "inconclusive"
    assert "where a maximum stands" in proof.reason or "takes numbers for indices" in proof.reason


def test_a_recomputed_maximum_is_the_same_shift():
    def forward(S):
        E = torch.exp(S - S.amax(-1, keepdim=True))
        return E / E.sum(-1, keepdim=True)

    def recomputed(g, P, S):
        m = S.clone().amax(-1, keepdim=True)
        lse = m + torch.exp(S - m).sum(-1, keepdim=True).log()
        return right(g, torch.exp(S - lse), S)

    assert gradderiv.prove(softmax_with(recomputed, forward), (x(2, 3),)).passed


# ---------------------------------------------------------------- constants, casts, overloads


@pytest.mark.parametrize("close", [0.35355339, 0.3535534, 0.35355339059327, 0.353553390593273])
def test_a_constant_that_is_only_close_is_not_taken_for_the_other(close):
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, S):
            return S * 8**-0.5

        @staticmethod
        def backward(ctx, g):
            return g * close

    assert gradderiv.prove(Scaled.apply, (x(3),)).verdict != "proved"


def test_a_tiny_constant_is_not_zero():
    class Tiny(torch.autograd.Function):
        @staticmethod
        def forward(ctx, S):
            return S + S * 1e-30

        @staticmethod
        def backward(ctx, g):
            return g.clone()

    proof = gradderiv.prove(Tiny.apply, (x(3),))
    assert proof.verdict == "inconclusive"  # the field refutes it, and float64 cannot see it
    assert "ε below rounding" in proof.reason


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda S: torch.div(S, 2.0, rounding_mode="floor"), "div.Tensor_mode"),
        (lambda S: S.long().double(), "casts to torch.int64"),
        (lambda S: torch.round(S), "round"),
        (lambda S: S.floor(), "floor"),
        (lambda S: S * float(S.detach().sum()), "_local_scalar_dense"),
        (lambda S: S if S.sum() > 0 else -S, "is_nonzero"),
        (lambda S: S * (S > 0).any(), "any"),
        (lambda S: S.sort(-1).values, "sort"),
        (lambda S: S.topk(2).values, "topk"),
        (lambda S: S.cumprod(-1), "cumprod"),
    ],
)
def test_what_has_no_exact_meaning_names_itself_and_its_line(function, named):
    proof = gradderiv.prove(function, (x(2, 3),))
    assert proof.verdict == "inconclusive"
    assert named in proof.reason
    assert "test_prove_soundness.py:" in proof.reason
    assert "do: " in proof.reason


# ---------------------------------------------------------------- the log part, and both parts of a pair


def test_a_mask_inside_addmm_is_not_lost():
    mask = torch.zeros(3, 3, dtype=torch.float64).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
    f = lambda Q, K: torch.softmax(torch.addmm(mask, Q, K.mT), -1)  # noqa: E731
    causal = lambda Q, K: torch.softmax((Q @ K.mT).masked_fill(mask < 0, -torch.inf), -1)  # noqa: E731
    plain = lambda Q, K: torch.softmax(Q @ K.mT, -1)  # noqa: E731
    assert gradderiv.prove(f, (x(3, 2), x(3, 2)), reference=causal).passed
    assert gradderiv.prove(f, (x(3, 2), x(3, 2)), reference=plain).verdict == "refuted"


def test_a_logarithm_is_not_dropped_by_a_product():
    proof = gradderiv.prove(lambda S: S.logsumexp(-1) * 0.5, (x(2, 3),))
    assert proof.verdict == "inconclusive"
    assert "without logarithms" in proof.reason


def test_the_log_part_is_compared():
    lse = lambda S: S.logsumexp(-1)  # noqa: E731
    other = lambda S: (2 * S.exp()).sum(-1).log()  # noqa: E731  the same derivative, another value
    assert gradderiv.prove(lse, (x(2, 3),)).passed
    assert gradderiv.prove(lse, (x(2, 3),), reference=other).verdict == "refuted"


def test_exp_and_exp2_of_one_maximum_do_not_cancel():
    def f(S):
        m = S.amax(-1, keepdim=True)
        return torch.exp(S - m) * torch.exp2(m - S)

    proof = gradderiv.prove(f, (x(2, 3),))
    assert proof.verdict == "inconclusive"
    assert "one base" in proof.reason


# ---------------------------------------------------------------- keys, and points that do not carry


def test_another_seed_is_another_point():
    fields = [Field(seed, 2) for seed in (0, 1)]
    assert fields[0].primes != fields[1].primes
    words = [torch.arange(5), torch.arange(5)]
    digests = [f.keys["exp"][0].digest([w.clone() for w in words]) for f in fields]
    assert not bool((digests[0] == digests[1]).any())


def test_a_hash_that_collides_would_prove_what_is_false(monkeypatch):
    class Symmetric(torch.autograd.Function):
        """exp(S) whose backward takes the exponential of another entry."""

        @staticmethod
        def forward(ctx, S):
            ctx.save_for_backward(S)
            return S.exp()

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0].flip(-1).exp()

    assert gradderiv.prove(Symmetric.apply, (x(2, 3),)).verdict == "refuted"
    monkeypatch.setattr(prover, "on_floats", lambda *_: None)
    monkeypatch.setattr(Keyed, "digest", lambda self, words: torch.full_like(words[0], 12345))
    assert gradderiv.prove(Symmetric.apply, (x(2, 3),)).verdict == "proved"


def test_a_zero_denominator_is_drawn_again_and_counted(monkeypatch):
    honest = Field.random

    def unlucky(self, *shape, dtype=torch.float64):
        out = honest(self, *shape, dtype=dtype)
        if self.draw == 0:
            out.cell.parts["v0"].view(-1)[0] = 0
        return out

    monkeypatch.setattr(Field, "random", unlucky)
    proof = gradderiv.prove(lambda S: 1 / S, (x(3),))
    assert (proof.verdict, proof.draws) == ("proved", 1)
    assert "1 point drawn again" in str(proof)


def test_a_division_by_what_is_always_zero_is_not_proved():
    proof = gradderiv.prove(lambda S: S / (S - S.clone()), (x(3),))
    assert proof.verdict == "inconclusive"


def test_the_bound_is_reached_and_not_only_printed():
    loose = gradderiv.prove(lambda Q, K: torch.softmax(Q @ K.mT, -1), (x(3, 2), x(3, 2)), target=-20)
    tight = gradderiv.prove(lambda Q, K: torch.softmax(Q @ K.mT, -1), (x(3, 2), x(3, 2)), target=-150)
    assert loose.lanes < tight.lanes
    assert tight.log2_failure <= -150
    with pytest.raises(gradderiv.errors.NoExactMeaning, match="out of reach"):
        exact.exactly(lambda field: {"a": (field.random(2).exp(), field.random(2).exp())}, target=-10000)


# ---------------------------------------------------------------- cut graphs, missing gradients, dropout


def test_detach_is_told_from_a_wrong_backward():
    def f(Q, K):
        return torch.softmax(Q @ K.mT, -1).detach() @ K

    proof = gradderiv.prove(f, (x(3, 2), x(3, 2)))
    assert proof.verdict == "inconclusive"
    assert "cut by detach or no_grad" in proof.reason
    assert "test_prove_soundness.py:" in proof.reason


def test_no_grad_likewise():
    def f(Q, K):
        with torch.no_grad():
            P = torch.softmax(Q @ K.mT, -1)
        return P @ K

    assert "cut by detach or no_grad" in gradderiv.prove(f, (x(3, 2), x(3, 2))).reason


def test_a_detached_shift_is_harmless_and_said():
    def f(S):
        E = torch.exp(S - S.amax(-1, keepdim=True).detach())
        return E / E.sum(-1, keepdim=True)

    proof = gradderiv.prove(f, (x(3, 2),))
    assert proof.passed
    assert any("detach" in remark for remark in proof.remarks)


def test_an_input_that_nothing_depends_on_is_said():
    proof = gradderiv.prove(lambda Q, K: Q.exp(), (x(3), x(3)))
    assert proof.verdict == "inconclusive"
    assert "no output depends on K" in proof.reason
    assert gradderiv.prove(lambda Q, K: Q.exp(), (x(3), x(3)), no_gradient=["K"]).passed


def test_a_gradient_of_none_that_should_be_one_is_refuted():
    class Forgotten(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(b)
            return a * b

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0], None

    proof = gradderiv.prove(Forgotten.apply, (x(3), x(3)))
    assert {r.argument for r in proof.failures} == {"b"}
    assert "no gradient came back" in proof.reason


def test_an_output_without_history_is_said():
    def f(S):
        return S.exp(), S.detach().sum()

    proof = gradderiv.prove(f, (x(3),))
    assert proof.verdict == "inconclusive"
    assert "it has no history" in proof.reason
    assert gradderiv.prove(f, (x(3),), no_gradient=["output 1"]).passed


def test_a_gradient_of_another_shape_raises_and_is_not_proved():
    class Broadcast(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            return a + b

        @staticmethod
        def backward(ctx, g):
            return g, g[:1]

    assert gradderiv.prove(Broadcast.apply, (x(2, 3), x(2, 3))).verdict != "proved"


def test_dropout_has_one_mask_for_both_sides():
    class Dropped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, S, again):
            mask = torch.rand(S.shape) > 0.5
            ctx.mask, ctx.again = mask, again
            return S * mask / 0.5

        @staticmethod
        def backward(ctx, g):
            mask = torch.rand(g.shape) > 0.5 if ctx.again else ctx.mask
            return g * mask / 0.5, None

    assert gradderiv.prove(lambda S: Dropped.apply(S, False), (x(4, 4),)).passed
    assert gradderiv.prove(lambda S: Dropped.apply(S, True), (x(4, 4),)).verdict == "refuted"


def test_memory_that_is_not_initialised_proves_nothing():
    def f(S):
        out = torch.empty(3, dtype=torch.float64)
        out[:2] = S[:2]
        return out * S

    assert gradderiv.prove(f, (x(3),)).verdict == "inconclusive"


def test_a_state_that_every_call_changes_proves_nothing():
    calls = []

    def f(S):
        calls.append(1)
        return S * len(calls)

    assert gradderiv.prove(f, (x(3),)).verdict != "proved"


# ---------------------------------------------------------------- the oracle does not share the author's mistake


def test_the_oracle_runs_no_backward(monkeypatch):
    """Forward mode is run on a function whose backward raises."""

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, S):
            return S * S

        @staticmethod
        def backward(ctx, g):
            raise AssertionError("the oracle asked for the backward")

    from gradderiv.checks.inputs import make_call, seeded_call

    call, outputs = seeded_call(make_call(Forward.apply, (x(3),)), 0)
    field = Field(0, 2)
    runs = Runs(call, outputs)
    point = runs.point(field)
    _, (tangent,) = runs.forward(field, point)
    (S,), (T,) = point.values.values(), point.tangents.values()
    assert not bool(field.differs(tangent, 2 * S * T).any())


def test_a_relation_that_the_opaque_functions_do_not_have_is_not_refuted():
    proof = gradderiv.prove(
        lambda a, b: torch.exp(a + b), (x(3), x(3)), reference=lambda a, b: a.exp() * b.exp()
    )
    assert proof.verdict == "inconclusive"
    assert not proof.failures


# ---------------------------------------------------------------- shapes and memory at the edges


@pytest.mark.parametrize("n", [1, 2])
def test_size_one(n):
    proof = gradderiv.prove(lambda Q, K, V: torch.softmax(Q @ K.mT, -1) @ V, (x(n, 1), x(1, 1), x(1, n)))
    assert proof.passed, proof


def test_an_empty_row():
    mask = torch.tensor([[True, False], [False, False]])

    def f(S):
        P = torch.softmax(S.masked_fill(~mask, -torch.inf).where(mask.any(-1, keepdim=True), S), -1)
        return P * mask

    assert gradderiv.prove(f, (x(2, 2),)).passed


def test_inputs_that_are_not_contiguous_or_expanded():
    proof = gradderiv.prove(lambda a, b: (a * b).exp(), (x(3, 2).mT, x(3).expand(2, 3)))
    assert proof.passed, proof


def test_writes_into_views_and_aliases():
    def f(S):
        out = S.clone()
        view = out.view(-1)[2:5]
        view *= 2
        out[0, :2] += out[1, 1:].clone()
        out.mT[1].exp_()
        return out

    assert gradderiv.prove(f, (x(2, 3),)).passed


def test_a_function_that_returns_its_input_or_writes_into_it():
    assert gradderiv.prove(lambda S: S, (x(3),)).passed
    proof = gradderiv.prove(lambda S: S.mul_(2), (x(3),))
    assert proof.verdict == "inconclusive"
    assert "in-place operation" in proof.reason


def test_hooks_from_outside_are_told():
    layer = torch.nn.Linear(3, 2)
    layer.weight.register_hook(lambda g: 2 * g)
    proof = gradderiv.prove(layer, (torch.randn(4, 3),))
    assert proof.passed
    assert "hooks on weight are not run: the proof is of the function without them" in proof.remarks
