"""Embeddings: rows are read, and the gradients of a row that is read several times add up."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import gradderiv
from gradderiv.checks.catalog import RULES
from gradderiv.checks.oracles import dual, field
from gradderiv.checks.problems import PROBLEMS
from gradderiv.errors import DtypeError, InputError
from gradderiv.numbers.field import Field
from gradderiv.rules.embedding import embedding, embedding_jvp, embedding_vjp, embedding_vjp_jvp

CASES = [p for p in PROBLEMS.values() if p.rule == "embedding"]
N_VOCAB, N_POS, D = 5, 7, 3
some = settings(deadline=None, max_examples=60, derandomize=True, database=None)


def whole(*shape, seed=0):
    """Small whole numbers, whose sums float64 has exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, shape, generator=generator).double()


@st.composite
def ids(draw):
    """Tokens (..., n), and positions of one, of all, or None."""
    shape = [*draw(st.lists(st.integers(1, 3), max_size=2)), draw(st.integers(1, N_POS))]
    own = draw(st.sampled_from([None, shape, shape[-1:], [1, shape[-1]] if len(shape) > 1 else shape]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    tokens = torch.randint(N_VOCAB, shape, generator=generator)
    return tokens, None if own is None else torch.randint(N_POS, own, generator=generator)


@some
@given(ids(), st.sampled_from([torch.int64, torch.int32]))
def test_values_and_gradients_are_torchs_to_the_last_bit(drawn, dtype):
    tokens, position_ids = (None if t is None else t.to(dtype) for t in drawn)
    E, R = (whole(n, D, seed=n).requires_grad_() for n in (N_VOCAB, N_POS))
    counted = torch.arange(tokens.shape[-1]) if position_ids is None else position_ids
    expected = functional.embedding(tokens, E) + functional.embedding(counted, R)
    dX = whole(*expected.shape, seed=1)
    X, saved = embedding(E.detach(), R.detach(), tokens=tokens, position_ids=position_ids)
    assert torch.equal(X, expected.detach())
    for ours, torchs in zip(embedding_vjp(dX, saved), torch.autograd.grad(expected, (E, R), dX), strict=True):
        assert torch.equal(ours, torchs)


@pytest.mark.parametrize("p", CASES, ids=lambda p: p.name)
def test_the_gradient_is_the_adjoint_of_the_tangent_exactly(p):
    """⟨dX, Ẋ⟩ = ⟨dE, Ė⟩ + ⟨dR, Ṙ⟩ over the field; so it is for the tangent of the gradient, which is linear in dX."""
    numbers = Field(seed=5, lanes=2)
    args, dots = ({n: numbers.random(*s) for n, s in p.shapes.items()} for _ in range(2))
    dX, dX_dot = (numbers.random(*p.output) for _ in range(2))
    _, saved = embedding(**args, **p.options)
    X_dot = embedding_jvp(saved, **{f"{n}_dot": t for n, t in dots.items()})
    for cotangent, g in ((dX, embedding_vjp(dX, saved)), (dX_dot, embedding_vjp_jvp(dX, saved, dX_dot))):
        inner = [(getattr(g, n) * t).sum() for n, t in dots.items()]
        assert not bool(numbers.differs((cotangent * X_dot).sum(), sum(inner[1:], inner[0])).any())
        assert bool(numbers.differs((cotangent * X_dot).sum(), 2 * sum(inner[1:], inner[0])).any())


@pytest.mark.parametrize("p", CASES, ids=lambda p: p.name)
def test_the_row_of_a_token_that_does_not_come_has_no_gradient_and_the_others_have(p):
    args, dX = p.floats(0, torch.float64)
    _, saved = embedding(**args, **p.options)
    come = torch.zeros(p.shapes["table"][0], dtype=torch.bool)
    come[p.options["tokens"]] = True
    assert torch.equal(embedding_vjp(dX, saved).table.abs().sum(-1) > 0, come)
    assert come.any()
    assert not come.all()


def test_a_repeated_token_adds_its_rows_up():
    dX = whole(4, D)
    _, saved = embedding(whole(N_VOCAB, D), tokens=torch.tensor([3, 1, 3, 3]))
    g = embedding_vjp(dX, saved)
    assert torch.equal(g.table[3], dX[0] + dX[2] + dX[3])
    assert g.positions is None


# ---------------------------------------------------------------- wrong on purpose


def overwritten(dX, ids, count):
    """The last place of a token instead of the sum."""
    flat, ids = dX.reshape(-1, dX.shape[-1]), ids.expand(dX.shape[:-1]).reshape(-1)
    last = {int(v): i for i, v in enumerate(ids.tolist())}
    rows = [flat[last[v]] if v in last else torch.zeros_like(flat[0]) for v in range(count)]
    return torch.stack(rows)


def averaged(dX, ids, count):
    flat, ids = dX.reshape(-1, dX.shape[-1]), ids.expand(dX.shape[:-1]).reshape(-1)
    hot = torch.nn.functional.one_hot(ids, count).double()
    return (hot / hot.sum(0).clamp(min=1)).mT @ flat


def added(dX, ids, count):
    ids = ids.expand(dX.shape[:-1]).reshape(-1)
    return functional.one_hot(ids, count).double().mT @ dX.reshape(-1, dX.shape[-1])


def twin(put):
    def gradients(args, options, dX):
        out = {"table": put(dX, options["tokens"], args["table"].shape[0])}
        if "positions" in args:
            counted = torch.arange(options["tokens"].shape[-1])
            out["positions"] = put(dX, options.get("position_ids", counted), args["positions"].shape[0])
        return out

    return dataclasses.replace(RULES["embedding"], gradients=gradients)


@pytest.mark.parametrize("put", [overwritten, averaged])
@pytest.mark.parametrize("p", CASES, ids=lambda p: p.name)
def test_twin_rows_that_are_not_added_up_are_rejected(p, put):
    for oracle in (field, dual):
        assert any(r.verdict == "fail" for r in oracle(twin(put), p) if r.argument == "table")
        assert {r.verdict for r in oracle(twin(added), p)} == {"pass"}


# ---------------------------------------------------------------- as a custom backward

TOKENS = torch.tensor([[1, 4, 4], [0, 4, 1]])


class Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, E, R):
        X, saved = embedding(E, R, tokens=TOKENS)
        ctx.saved = saved
        return X

    @staticmethod
    def backward(ctx, dX):
        return tuple(embedding_vjp(dX, ctx.saved))


class Overwritten(Embedded):
    @staticmethod
    def backward(ctx, dX):
        E, R = Embedded.backward(ctx, dX)
        return dX.new_zeros(E.shape).index_put((TOKENS,), dX), R


def test_a_function_made_of_it_is_proved():
    assert gradderiv.prove(Embedded.apply, {"E": torch.randn(5, 3), "R": torch.randn(4, 3)}).passed


def test_twin_a_function_that_overwrites_is_refuted():
    inputs = {"E": torch.randn(5, 3), "R": torch.randn(4, 3)}
    assert gradderiv.prove(Overwritten.apply, inputs).verdict == "refuted"


# ---------------------------------------------------------------- misuse

E, R, T = torch.randn(N_VOCAB, D), torch.randn(N_POS, D), torch.tensor([0, 4, 1])


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: embedding(E, tokens=T + 1), InputError, "tokens of 0 … 4, the rows of its table\n  came:  tokens from 1 to 5"),
        (lambda: embedding(E, tokens=T - 1), InputError, "tokens from -1 to 3"),
        (lambda: embedding(E, tokens=T.float()), DtypeError, "came:  dtype torch.float32"),
        (lambda: embedding(E, tokens=T > 0), DtypeError, "came:  dtype torch.bool"),
        (lambda: embedding(E, tokens=T.to(torch.uint8)), DtypeError, "came:  dtype torch.uint8"),
        (lambda: embedding(E, tokens=[0, 4, 1]), DtypeError, "came:  [0, 4, 1]"),
        (lambda: embedding(E, tokens=T[0]), InputError, "one token without an axis"),
        (lambda: embedding(E, tokens=T[:0]), InputError, "an empty sequence"),
        (lambda: embedding(E, R, tokens=T.repeat(3)), InputError, "position_ids of 0 … 6"),
        (lambda: embedding(E, R, tokens=T, position_ids=T.double()), DtypeError, "position_ids as a tensor"),
        (lambda: embedding(E, R, tokens=T, position_ids=T[:2]), InputError, "broadcast to the tokens (3)"),
        (lambda: embedding(E, R, tokens=T, position_ids=T[None]), InputError, "position_ids (1, 3)"),
        (lambda: embedding(E, tokens=T, position_ids=T), InputError, "the table of positions was left out"),
        (lambda: embedding(E[None], tokens=T), InputError, "table (1, 5, 3)"),
        (lambda: embedding(E, R.mT, tokens=T), InputError, "positions (3, 7)"),
        (lambda: embedding(E, R.double(), tokens=T), DtypeError, "table torch.float32, positions torch.float64"),
        (lambda: embedding(E.long(), tokens=T), DtypeError, "table has dtype torch.int64"),
    ],
)  # fmt: skip
def test_misuse_is_refused_in_four_parts(call, kind, words):
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "came",
        "cause",
        "do",
    ]
