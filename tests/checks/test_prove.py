"""``gradderiv.prove``: what is proved, refuted and left open, and what each verdict says."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradderiv
from gradderiv.errors import DtypeError, InputError


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def qkv() -> dict[str, Tensor]:
    return {"Q": x(2, 3, 4), "K": x(2, 5, 4), "V": x(2, 5, 6)}


def attention(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
    return torch.softmax(Q @ K.mT / Q.shape[-1] ** 0.5, -1) @ V


class Attention(torch.autograd.Function):
    """Attention that returns its lse as well, and forgets the scale in dQ where ``scaled`` is False."""

    @staticmethod
    def forward(ctx, Q, K, V, scaled=True):
        S = Q @ K.mT / Q.shape[-1] ** 0.5
        lse = torch.logsumexp(S, -1, keepdim=True)
        P = torch.exp(S - lse)
        ctx.save_for_backward(Q, K, V, P)
        ctx.scaled = scaled
        return P @ V, lse

    @staticmethod
    def backward(ctx, dO, dlse):
        Q, K, V, P = ctx.saved_tensors
        scale = Q.shape[-1] ** -0.5
        dP = dO @ V.mT
        dS = P * (dP - (P * dP).sum(-1, keepdim=True) + dlse)
        dQ = dS @ K * (scale if ctx.scaled else 1)
        return dQ, dS.mT @ Q * scale, P.mT @ dO, None


def test_autograd_of_attention_is_proved():
    proof = gradderiv.prove(attention, qkv())
    assert proof.passed
    assert (proof.verdict, proof.exit_status, proof.reason) == ("proved", 0, "")
    assert {r.argument for r in proof.records} == {"Q", "K", "V"}
    assert 0 < proof.failure_probability <= 2.0**-40
    assert proof.log2_failure_over_q <= -35


def test_a_right_backward_is_proved_for_each_output_alone_and_for_all():
    proof = gradderiv.prove(Attention.apply, qkv())
    assert proof.passed, proof
    assert list(dict.fromkeys(r.problem for r in proof.records)) == ["output 0", "output 1", "all outputs"]


def test_a_wrong_backward_is_refuted_where_it_is_wrong():
    proof = gradderiv.prove(lambda Q, K, V: Attention.apply(Q, K, V, False), qkv())
    assert (proof.verdict, proof.exit_status) == ("refuted", 1)
    assert {(r.argument, r.verdict) for r in proof.records} == {
        ("Q", "refuted"),
        ("K", "proved"),
        ("V", "proved"),
    }
    record = proof.failures[0]
    assert "is 2 × the right one" in record.detail
    assert record.max_abs_error > 0.01
    assert record.failure_probability is None


def test_one_cotangent_at_a_time_finds_what_all_together_would_name_too():
    class Ignored(Attention):
        @staticmethod
        def backward(ctx, dO, dlse):
            return Attention.backward(ctx, dO, torch.zeros_like(dlse))

    proof = gradderiv.prove(Ignored.apply, qkv())
    assert {(r.problem, r.argument) for r in proof.failures} == {
        (problem, name) for problem in ("output 1", "all outputs") for name in "QK"
    }


def test_only_what_requires_a_gradient_is_differentiated():
    inputs = qkv()
    inputs["K"].requires_grad_()
    proof = gradderiv.prove(attention, inputs)
    assert {r.argument for r in proof.records} == {"K"}
    assert proof.passed


def test_constants_stay_what_they_are():
    mask = torch.tensor([[True, False, True], [True, True, False]])
    index = torch.tensor([2, 0])

    def f(S, mask, index, bias, scale):
        return torch.softmax(S * scale + bias, -1).masked_fill(~mask, 0).index_select(1, index)

    proof = gradderiv.prove(
        f, (x(2, 3).requires_grad_(), mask, index, torch.tensor([0.0, -torch.inf, 1.0]), 0.5)
    )
    assert proof.passed, proof
    assert {r.argument for r in proof.records} == {"S"}


def test_an_additive_mask_is_no_variable_even_if_nothing_requires_a_gradient():
    bias = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
    proof = gradderiv.prove(lambda S, bias: torch.softmax(S + bias, -1), {"S": x(3, 3), "bias": bias})
    assert {r.argument for r in proof.records} == {"S"}


def test_a_module_is_proved_with_all_its_parameters():
    layer = nn.MultiheadAttention(12, 3, batch_first=True)
    X = torch.randn(2, 5, 12)
    proof = gradderiv.prove(layer, (X, X, X))
    assert proof.passed, proof
    assert {r.argument for r in proof.records} == {
        "in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias", "query",
    }  # fmt: skip


def test_tied_parameters_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

        def forward(self, X):
            return self.second(torch.tanh(self.first(X)))

    proof = gradderiv.prove(Tied(), (torch.randn(3, 4),))
    assert proof.passed, proof
    assert {r.argument for r in proof.records} == {"first.weight", "X"}


def test_dictionaries_and_nested_outputs():
    def f(q, *, options):
        return {"a": q * options["factor"], "b": [q.exp(), None, 3]}

    proof = gradderiv.prove(f, {"q": x(3), "options": {"factor": 2.0}})
    assert proof.passed, proof
    assert "output 1" in {r.problem for r in proof.records}


# ---------------------------------------------------------------- second order, forward mode


def test_second_order_of_our_functions():
    from gradderiv.functional import attention as ours

    proof = gradderiv.prove(ours, tuple(qkv().values()), order=2, forward_mode=True)
    assert proof.passed, proof
    problems = {r.problem for r in proof.records}
    assert {"all outputs", "jvp: output 0", "second order: all outputs"} <= problems


class Cube(torch.autograd.Function):
    """x³ with a backward and a jvp, one of them wrong where asked."""

    @staticmethod
    def forward(ctx, t, wrong):
        ctx.save_for_backward(t)
        ctx.save_for_forward(t)
        ctx.wrong = wrong
        return t * t * t

    @staticmethod
    def backward(ctx, g):
        (t,) = ctx.saved_tensors
        return CubeBackward.apply(g, t, ctx.wrong), None

    @staticmethod
    def jvp(ctx, t_dot, _):
        (t,) = ctx.saved_tensors
        return t_dot * t * t * (2 if ctx.wrong == "jvp" else 3)


class CubeBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g, t, wrong):
        ctx.save_for_backward(g, t)
        ctx.wrong = wrong
        return g * 3 * t * t

    @staticmethod
    def backward(ctx, u):
        g, t = ctx.saved_tensors
        return u * 3 * t * t, u * g * t * (3 if ctx.wrong == "double" else 6), None


@pytest.mark.parametrize(
    ("wrong", "verdict", "problem"),
    [
        ("", "proved", ""),
        ("jvp", "refuted", "jvp: output 0"),
        ("double", "refuted", "second order: all outputs"),
    ],
)
def test_each_order_is_asked_by_itself(wrong, verdict, problem):
    proof = gradderiv.prove(lambda t: Cube.apply(t, wrong), (x(3),), order=2, forward_mode=True)
    assert proof.verdict == verdict, proof
    assert {r.problem for r in proof.failures} == ({problem} if problem else set())


def test_a_backward_that_cannot_be_differentiated_is_not_proved_to_second_order():
    from torch.autograd.function import once_differentiable

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            ctx.save_for_backward(t)
            return t.exp()

        @staticmethod
        @once_differentiable
        def backward(ctx, g):
            return g * ctx.saved_tensors[0].exp()

    proof = gradderiv.prove(Once.apply, (x(3),), order=2)
    assert {r.problem for r in proof.failures} == {"second order: all outputs"}  # torch returns None for it
    assert "once_differentiable" in proof.reason


# ---------------------------------------------------------------- a reference


def test_a_reference_catches_a_wrong_forward():
    wrong = lambda Q, K, V: torch.softmax(Q @ K.mT, -1) @ V  # noqa: E731
    assert gradderiv.prove(wrong, qkv()).passed  # consistent with its own derivative
    proof = gradderiv.prove(wrong, qkv(), reference=attention)
    assert proof.verdict == "refuted"
    assert {r.argument for r in proof.failures} == {"value", "Q", "K", "V"}


def test_a_reference_written_otherwise_agrees():
    def other(Q, K, V):
        S = torch.einsum("bqd,bkd->bqk", Q, K) * Q.shape[-1] ** -0.5
        return torch.exp(S - torch.logsumexp(S, -1, keepdim=True)) @ V

    proof = gradderiv.prove(attention, qkv(), reference=other)
    assert proof.passed, proof
    assert {r.oracle for r in proof.records} == {"dual", "reference"}


def test_a_reference_that_needs_the_odd_symmetry():
    proof = gradderiv.prove(lambda a: 1 - torch.sigmoid(a), (x(4),), reference=lambda a: torch.sigmoid(-a))
    assert proof.passed, proof
    assert any("exp(−a) = 1/exp(a)" in remark for remark in proof.remarks)


# ---------------------------------------------------------------- what a reader is told


def test_readings_casts_fills_and_kernels_are_told():
    def f(Q, K, V):
        S = (Q @ K.mT * 0.5).float()
        S = S.masked_fill(torch.ones(3, 5, dtype=torch.bool).triu(2), -1e9)
        return functional.scaled_dot_product_attention(Q, K, V) + torch.softmax(S, -1).double() @ V

    proof = gradderiv.prove(f, qkv())
    assert proof.passed, proof
    text = " ".join(proof.remarks)
    assert "casts to float32, float64 count as the identity" in text
    assert "the fill -1e+09 is read as the number that it is" in text
    assert "MATH" in text
    assert "0.5 = 1/2" in text


def test_a_fill_may_be_read_as_minus_infinity():
    def f(S):
        P = torch.softmax(S.masked_fill(torch.ones(3, 3).triu(1).bool(), -1e9), -1)
        return P, P == 0

    class Guessed(torch.autograd.Function):
        """The backward takes P == 0 for the mask."""

        @staticmethod
        def forward(ctx, S):
            P, hidden = f(S)
            ctx.save_for_backward(P, hidden)
            return P

        @staticmethod
        def backward(ctx, g):
            P, hidden = ctx.saved_tensors
            return (P * (g - (P * g).sum(-1, keepdim=True))).masked_fill(hidden, 0)

    proof = gradderiv.prove(Guessed.apply, (x(3, 3),), fills_are_minus_infinity=True)
    assert proof.passed, proof
    assert "the fill -1e+09 is read as −∞" in proof.remarks


def test_the_same_seed_gives_the_same_proof_whatever_the_threads():
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        proof = gradderiv.prove(attention, qkv(), seed=3)
        found.append((proof.verdict, proof.log2_failure, proof.lanes, proof.remarks))
    assert found[0] == found[1]


def test_json_has_every_record_and_the_meaning(tmp_path):
    proof = gradderiv.prove(attention, qkv())
    document = json.loads(proof.to_json(tmp_path / "proof.json"))
    assert document == json.loads((tmp_path / "proof.json").read_text())
    assert document["verdict"] == "proved"
    assert document["lanes"] == proof.lanes
    assert document["meaning"].startswith("proved: for these shapes and all real inputs")
    assert {r["argument"] for r in document["records"]} == {"Q", "K", "V"}


def test_a_proof_says_what_it_means():
    text = str(gradderiv.prove(attention, qkv()))
    assert "for these shapes and all real inputs, the backward is the derivative" in text.replace(
        "\n      ", " "
    )
    assert max(map(len, text.splitlines())) <= 80


# ---------------------------------------------------------------- bad input


def test_no_gradient_names_must_exist():
    with pytest.raises(InputError, match=r"'Z'; there are Q, K, V, output 0"):
        gradderiv.prove(attention, qkv(), no_gradient=["Z"])


@pytest.mark.parametrize("names", [["output 0"], ["Q", "K", "V"]])
def test_something_must_be_left_to_prove(names):
    with pytest.raises(InputError, match="all outputs, or all inputs"):
        gradderiv.prove(attention, qkv(), no_gradient=names)


def test_an_order_that_does_not_exist():
    with pytest.raises(InputError, match="order=3"):
        gradderiv.prove(attention, qkv(), order=3)


def test_a_function_that_raises_on_floats():
    with pytest.raises(InputError, match="can be called on its inputs"):
        gradderiv.prove(attention, (x(2, 3), x(4, 5), x(4, 2)))


def test_not_a_function():
    with pytest.raises(DtypeError, match="a function of tensors"):
        gradderiv.prove(attention(**qkv()), qkv())


def test_a_key_bias_whose_gradient_is_nothing_but_rounding_is_proved_in_a_large_layer():
    layer = nn.MultiheadAttention(256, 4, batch_first=True)
    layer.in_proj_bias.data.normal_()
    X = torch.randn(1, 40, 256)
    proof = gradderiv.prove(layer, (X, X, X))
    assert sum(p.numel() for p in layer.parameters()) > 2**18
    assert proof.passed, proof


def test_a_large_layer_that_is_wrong_is_refuted_and_located():
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, X, W):
            ctx.save_for_backward(X, W)
            return X @ W

        @staticmethod
        def backward(ctx, g):
            X, W = ctx.saved_tensors
            dW = X.mT @ g
            dW[:, 7] *= 0.5
            return g @ W.mT, dW

    proof = gradderiv.prove(
        lambda X, W: torch.tanh(Halved.apply(X, W)), {"X": x(16, 520), "W": x(520, 512) / 20}
    )
    assert {r.argument for r in proof.failures} == {"W"}
    assert "column 7 only" in proof.reason
