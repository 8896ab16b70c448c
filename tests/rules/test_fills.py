"""What systems write where a key is hidden: every value against a loop, every derivative against autograd and exactly, and wrong ones refused."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import Function
from transformers.masking_utils import causal_mask_function, eager_mask

import gradderiv
from gradderiv.checks.exact import exactly
from gradderiv.errors import DtypeError, InputError
from gradderiv.numbers.dual import Dual
from gradderiv.numbers.field import Field
from gradderiv.rules.fills import (
    SEMANTICS,
    Fill,
    masked_fill,
    masked_fill_jvp,
    masked_fill_vjp,
    masked_fill_vjp_jvp,
)
from gradderiv.rules.masks import causal, padding
from gradderiv.rules.softmax import softmax

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F32, F64 = torch.float32, torch.float64
PADDING = torch.tensor([[False, True, True, False, True]])
LATER = torch.ones(4, 5, dtype=torch.bool).tril(1)
MASKS = [PADDING, LATER]
FILLED = [name for name in SEMANTICS if name != "zero"]
FINITE = [name for name in FILLED if name != "nan"]


def fill_of(name, dtype=F64, **options):
    return SEMANTICS[name].options(MASKS, dtype, **options)["fill"]


# ---------------------------------------------------------------- values


def looped(name, s, padded, later, fill, dtype):
    """One score, as the system treats it."""
    low = torch.finfo(dtype).min
    masked = padded or later
    return {
        "nan": lambda: -torch.inf if masked else s,
        "replace": lambda: fill if masked else s,
        "add": lambda: s + fill if masked else s,
        "add each": lambda: s + ((fill if padded else 0) + (fill if later else 0)),
        "lowest": lambda: s + low if masked else s,
        "onnxruntime": lambda: low if later else s + fill if padded else s,
        "onnxruntime 1.13": lambda: (fill if padded else 0) + fill if later else s + fill if padded else s,
    }[name]()


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("fill", [-10000.0, -256.0])
@pytest.mark.parametrize("name", FILLED)
def test_every_score_is_what_the_system_makes_of_it(name, fill, dtype):
    S = torch.randn(2, 4, 5, dtype=dtype)
    found, _ = masked_fill(S, fill=fill_of(name, dtype, fill=fill))
    expected = torch.tensor(
        [
            [
                [
                    looped(name, float(S[b, i, j]), not PADDING[0, j], not LATER[i, j], fill, dtype)
                    for j in range(5)
                ]
                for i in range(4)
            ]
            for b in range(2)
        ],
        dtype=dtype,
    )
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    other = FILLED[FILLED.index(name) - 1]
    assert not torch.equal(masked_fill(S, fill=fill_of(other, dtype, fill=fill))[0], expected)


def test_the_row_that_sees_something_is_the_same_for_all():
    """To the last bit: what −10000 makes of a hidden key has no place in a float beside a score near 0."""
    S = torch.randn(4, 5, dtype=F64)
    ours, _ = softmax(S, mask=PADDING & LATER)
    for name in FILLED:
        P, _ = softmax(masked_fill(S, fill=fill_of(name))[0])
        assert torch.equal(P[1:], ours[1:]), name
        assert not torch.equal(P[:, ~PADDING[0]][1:], S[:, ~PADDING[0]][1:])
    deep, _ = softmax(masked_fill(S - 10001, fill=fill_of("replace"))[0])
    assert not torch.allclose(deep[1:], ours[1:])


def test_a_replaced_score_may_be_anything_and_minus_infinity_makes_no_nan():
    S = torch.tensor([[torch.nan, 1.0, torch.inf, -torch.inf]], dtype=F64)
    keep = torch.tensor([False, True, False, False])
    found, saved = masked_fill(S, fill=Fill(keep, torch.tensor([-torch.inf, 0.0, -5.0, 2.0], dtype=F64)))
    assert found.tolist() == [[-torch.inf, 1.0, -5.0, 2.0]]
    assert masked_fill_vjp(S, saved).S.tolist() == [[0.0, 1.0, 0.0, 0.0]]
    assert masked_fill_jvp(saved, S).tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_one_mask_is_padding():
    for name in ("add", "add each", "onnxruntime", "onnxruntime 1.13"):
        fill = SEMANTICS[name].options([PADDING], F64)["fill"]
        S = torch.randn(4, 5, dtype=F64)
        assert torch.equal(masked_fill(S, fill=fill)[0], S + torch.where(PADDING, 0.0, -10000.0))


def test_lowest_is_what_transformers_adds():
    masks = padding([3], side="left").on((1, 1, 4, 4)), causal().on((1, 1, 4, 4))
    theirs = eager_mask(
        batch_size=1,
        q_length=4,
        kv_length=4,
        mask_function=causal_mask_function,
        attention_mask=masks[0][:, 0, 0],
        dtype=F32,
    )
    assert torch.equal(theirs, SEMANTICS["lowest"].options(masks, F32)["fill"].constant)
    assert not torch.equal(theirs, SEMANTICS["add"].options(masks, F32)["fill"].constant)


def test_two_lowest_floats_are_minus_infinity_and_a_row_of_them_nan():
    low = torch.finfo(F32).min
    hides_all = torch.zeros(1, 5, dtype=torch.bool)
    fill = SEMANTICS["add each"].options([hides_all, hides_all], F32, low)["fill"]
    assert bool(torch.isneginf(fill.constant).all())
    assert bool(softmax(masked_fill(torch.randn(1, 5), fill=fill)[0])[0].isnan().all())
    once = SEMANTICS["add"].options([hides_all, hides_all], F32, low)["fill"]
    assert bool((softmax(masked_fill(torch.randn(1, 5), fill=once)[0])[0] == 0.2).all())


# ---------------------------------------------------------------- derivatives


@pytest.mark.parametrize("kind", ["float64", "field"])
@pytest.mark.parametrize("name", FINITE)
def test_forward_tangent_and_cotangents_through_another_forward(name, kind):
    """torch.where and a sum, differentiated by autograd over dual numbers: first and second order."""
    field = Field(seed=5, lanes=2)
    make = field.random if kind == "field" else lambda *s: torch.randn(s, dtype=F64)
    keep, C = fill = fill_of(name)
    S, S_dot, d, d_dot = (make(2, 4, 5) for _ in range(4))
    Y, saved = masked_fill(S, fill=fill)
    dual = Dual()
    leaf = dual.make(S, S_dot).requires_grad_()
    naive = (leaf if keep is None else torch.where(keep, leaf, torch.zeros_like(leaf))) + C
    (g,) = torch.autograd.grad(naive, leaf, dual.make(d, d_dot))
    pairs = [
        (Y, naive.detach().primal),
        (masked_fill_jvp(saved, S_dot), naive.detach().tangent),
        (masked_fill_vjp(d, saved).S, g.primal),
        (masked_fill_vjp_jvp(d, saved, d_dot, S_dot).S, g.tangent),
    ]
    for x, y in pairs:
        assert same(x, y, field if kind == "field" else None)
        assert not same(2 * x, y, field if kind == "field" else None)  # a twin


def same(x, y, field):
    return torch.equal(x, y) if field is None else not bool(field.differs(x, y).any())


@pytest.mark.parametrize("name", FILLED)
def test_the_pairing_holds_exactly(name):
    """⟨d, Ṡ′⟩ = ⟨dS, Ṡ⟩, and the twin that forgets κ is seen wherever a score was replaced."""
    fill = fill_of(name)

    def run(field):
        S, S_dot, d = (field.random(4, 5) for _ in range(3))
        _, saved = masked_fill(S, fill=fill)
        forward = (d * masked_fill_jvp(saved, S_dot)).sum()
        return {
            "ours": ((masked_fill_vjp(d, saved).S * S_dot).sum(), forward),
            "twin": ((d * S_dot).sum(), forward),
        }

    found = exactly(run)
    assert found["ours"].equal
    assert found["ours"].log2_failure <= -40
    assert found["twin"].equal == (fill.keep is None)


class Filled(Function):
    """softmax(masked_fill(S)) V, its backward put together from the rules."""

    @staticmethod
    def forward(ctx, S, V, fill, way):
        filled, saved = masked_fill(S, fill=fill)
        P, _ = softmax(filled)
        ctx.save_for_backward(P, V)
        ctx.saved, ctx.way = saved, way
        return P @ V

    @staticmethod
    def backward(ctx, dO):
        P, V = ctx.saved_tensors
        dP = dO @ V.mT
        d = P * (dP - (P * dP).sum(-1, keepdim=True))
        if ctx.way == "forgets that scores were replaced":
            return d, P.mT @ dO, None, None
        if ctx.way == "clears what was added to":
            return d.masked_fill(~(PADDING & LATER)[1:], 0.0), P.mT @ dO, None, None
        return masked_fill_vjp(d, ctx.saved).S, P.mT @ dO, None, None


@pytest.mark.parametrize("name", FILLED)
def test_it_is_proved_and_its_twins_are_refuted(name):
    """A fill is a number here, and a hidden key still has a share: the field sees what floats do not."""
    inputs = {"S": torch.randn(3, 5, dtype=F64), "V": torch.randn(5, 2, dtype=F64)}

    def proof(way, **options):
        fill = Fill(*(None if t is None else t[1:] for t in fill_of(name, **options)))  # −∞ has no empty row
        return gradderiv.prove(lambda S, V: Filled.apply(S, V, fill, way), inputs)

    assert proof("").verdict == "proved"
    if name != "nan":  # −∞ leaves nothing to forget: P is 0 there
        twin = (
            "clears what was added to" if fill_of(name).keep is None else "forgets that scores were replaced"
        )
        assert not proof(twin).passed
        shallow = proof(twin, fill=-2.0)  # where floats have digits for it too
        assert shallow.verdict == ("inconclusive" if name in ("lowest", "onnxruntime") else "refuted"), (
            shallow
        )


# ---------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: masked_fill(torch.randn(3, 4), fill=Fill(None, torch.zeros(4, 3))), InputError, "constant that broadcasts"),
        (lambda: masked_fill(torch.randn(3, 4), fill=Fill(None, torch.zeros(3, 4, dtype=F64))), DtypeError, "one dtype"),
        (lambda: masked_fill(torch.randn(3, 4), fill=Fill(torch.ones(3, 4), torch.zeros(3, 4))), DtypeError, "True = may attend"),
        (lambda: SEMANTICS["add"].options([causal()], F64), DtypeError, "boolean mask"),
        (lambda: SEMANTICS["add"].options([PADDING], torch.float16, -1e8), InputError, "number of torch.float16"),
        (lambda: SEMANTICS["add"].options([], F64), InputError, "made of masks"),
        (lambda: SEMANTICS["add each"].options([], F64), InputError, "made of masks"),
    ],
)  # fmt: skip
def test_misuse_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
