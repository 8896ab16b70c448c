"""Opaque exponentials and entries a + log r: what is exact, and what must not be."""

from __future__ import annotations

import math

import pytest
import torch
from exact_reference import assert_is, lanes_of, modest, same
from hypothesis import given
from hypothesis import strategies as st

from gradderiv.errors import NoExactMeaning
from gradderiv.numbers.field import Field
from gradderiv.numbers.lanes import DrawAgain

INF = math.inf


@pytest.fixture
def field():
    return Field(seed=1, lanes=2)


def differ_everywhere(x, y):
    """In every entry of every lane."""
    return all(bool((a != b).all()) for a, b in zip(lanes_of(x), lanes_of(y), strict=True))


def plain_softmax(S, dim=-1):
    E = S.exp()
    return E / E.sum(dim, keepdim=True)


# ---------------------------------------------------------------- exp


def test_exp_is_no_homomorphism(field):
    a, b = field.random(4, 5), field.random(4, 5)
    assert differ_everywhere(a.exp() * b.exp(), (a + b).exp())
    assert differ_everywhere((-a).exp() * a.exp(), torch.ones_like(a))
    assert differ_everywhere((2 * a).exp(), a.exp() ** 2)


def test_exp_of_zero_is_one(field):
    x = field.random(3)
    assert_is((x - x).exp(), [1, 1, 1])
    assert_is(torch.zeros_like(x).exp(), [1, 1, 1])
    assert_is((x * 0.0).exp(), [1, 1, 1])


def test_equal_arguments_have_equal_exponentials_however_they_came_about(field):
    a, b = field.random(3, 4), field.random(3, 4)
    E = ((a + b) * (a - b)).exp()
    assert same(E, (a * a - b * b).exp())
    assert same(E.mT, (a.mT.square() - b.mT**2).exp())
    assert same(E[1], (a[1] * a[1] - b[1] * b[1]).exp())
    assert same((a @ b.mT).exp(), torch.einsum("ik,jk->ij", a, b).exp())
    assert same((a / 3 * 3).exp(), a.exp())


def test_different_arguments_have_different_exponentials(field):
    a = field.random(3000)
    values = torch.stack(lanes_of(a.exp()), -1)
    assert values.unique(dim=0).shape[0] == 3000
    assert not same(a.exp(), (a + 1e-9).exp())


def test_an_exponential_depends_on_the_argument_in_every_lane(field):
    """The argument differs in one lane only; its exponential must differ in all of them."""
    parts = {"v0": torch.arange(1, 9), "v1": torch.arange(1, 9)}
    base = field.wrap(dict(parts), field.random(1).note).exp()
    for lane in parts:
        other = field.wrap(parts | {lane: parts[lane] + 1}, field.random(1).note).exp()
        assert differ_everywhere(base, other)
    assert same(base, field.wrap(dict(parts), field.random(1).note).exp())


def test_exp_is_one_only_where_the_argument_is_zero_in_every_lane(field):
    x = field.wrap({"v0": torch.tensor([0, 0]), "v1": torch.tensor([0, 5])}, field.random(1).note).exp()
    assert (x.part("v0") == 1).tolist() == [True, False]
    assert (x.part("v1") == 1).tolist() == [True, False]


def test_lanes_and_seeds_have_different_exponentials():
    x, y = Field(0, 2), Field(1, 2)
    a = x.random(1000).exp()
    assert (a.part("v0") == a.part("v1")).sum().item() == 0
    assert (a.part("v0") == y.random(1000).exp().part("v0")).sum().item() == 0


# ---------------------------------------------------------------- logarithms that cancel


def test_log_and_exp(field):
    x = field.random(3, 4)
    assert same(x.log().exp(), x)
    assert same((x.log() + x.log()).exp(), x * x)
    assert same((-x.log()).exp(), 1 / x)
    assert same((field.random(3, 4) * 0 + x.log() - x.log()).exp(), torch.ones_like(x))
    a = field.random(3, 4)
    assert same((a + x.log()).exp(), a.exp() * x)
    assert same((a - x.log()).exp(), a.exp() / x)
    assert same(torch.logsumexp(torch.stack([x.log(), a.log()]), 0).exp(), x + a)


def test_twin_a_logarithm_that_is_dropped_or_doubled_shows(field):
    x, a = field.random(3, 4), field.random(3, 4)
    assert not same((a + x.log()).exp(), a.exp())
    assert not same((a + x.log() + x.log()).exp(), a.exp() * x)
    assert not same(a + x.log(), a)
    assert bool(field.differs(a + x.log(), a).all())


def test_softmax_in_six_spellings(field):
    S = field.random(3, 5)
    P = plain_softmax(S)
    lse = torch.logsumexp(S, -1, keepdim=True)
    m = S.amax(-1, keepdim=True)
    shifted = torch.exp(S - m)
    assert same(torch.softmax(S, -1), P)
    assert same(torch.exp(S - lse), P)
    assert same(torch.log_softmax(S, -1).exp(), P)
    assert same(shifted / shifted.sum(-1, keepdim=True), P)
    assert same(torch.exp(S - (m + shifted.sum(-1, keepdim=True).log())), P)
    assert same(torch.softmax(S - 7.5 * lse.exp(), -1), plain_softmax(S - 7.5 * lse.exp()))
    assert same(P.sum(-1), torch.ones_like(P.sum(-1)))
    assert same(torch.softmax(S.mT, 0), P.mT)


def test_twin_softmax_over_the_wrong_axis_or_unnormalised(field):
    S = field.random(3, 5)
    P = plain_softmax(S)
    assert not same(torch.softmax(S, 0), P)
    assert not same(torch.exp(S - S.amax(-1, keepdim=True)), P)
    assert not same(torch.exp(S - torch.logsumexp(S, 0, keepdim=True)), P)


def online_softmax(S, V, block, *, rescale=True):
    """O and lse by blocks of keys with a running maximum, as a kernel writes it."""
    m = torch.full_like(S[..., :1], -INF)
    r = torch.zeros_like(S[..., :1])
    O = S.new_zeros(*S.shape[:-1], V.shape[-1])
    for start in range(0, S.shape[-1], block):
        s, v = S[..., start : start + block], V[start : start + block]
        m_new = torch.maximum(m, s.amax(-1, keepdim=True))
        keep = torch.exp(m - m_new) if rescale else torch.ones_like(r)
        p = torch.exp(s - m_new)
        r = r * keep + p.sum(-1, keepdim=True)
        O = O * keep + p @ v
        m = m_new
    return O / r, m + r.log()


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_online_softmax_with_a_running_maximum(field, block):
    S, V = field.random(3, 7), field.random(7, 2)
    O, lse = online_softmax(S, V, block)
    assert same(O, plain_softmax(S) @ V)
    assert same(torch.exp(S - lse), plain_softmax(S))
    # the logarithm itself: Σ exp in units of a shift, which cancels
    assert same(lse.exp(), S.exp().sum(-1, keepdim=True))


def test_twin_online_softmax_that_forgets_to_rescale(field):
    S, V = field.random(3, 7), field.random(7, 2)
    assert same(
        online_softmax(S, V, 7, rescale=False)[0], plain_softmax(S) @ V
    )  # one block: nothing to rescale
    assert not same(online_softmax(S, V, 3, rescale=False)[0], plain_softmax(S) @ V)


def test_ring_merge_by_logaddexp(field):
    S, V = field.random(3, 7), field.random(7, 2)
    whole, lse = plain_softmax(S) @ V, torch.logsumexp(S, -1, keepdim=True)
    pieces = [(S[:, s], V[s]) for s in (slice(0, 2), slice(2, 5), slice(5, 7))]
    O, merged = plain_softmax(pieces[0][0]) @ V[:2], torch.logsumexp(pieces[0][0], -1, keepdim=True)
    for s, v in pieces[1:]:
        new = torch.logsumexp(s, -1, keepdim=True)
        both = torch.logaddexp(merged, new)
        O = torch.exp(merged - both) * O + torch.exp(new - both) * (plain_softmax(s) @ v)
        merged = both
    assert same(O, whole)
    assert same(merged, lse)
    # a twin: the weights exchanged
    a, b = torch.logsumexp(S[:, :3], -1, True), torch.logsumexp(S[:, 3:], -1, True)
    both = torch.logaddexp(a, b)
    O1, O2 = plain_softmax(S[:, :3]) @ V[:3], plain_softmax(S[:, 3:]) @ V[3:]
    assert same(torch.exp(a - both) * O1 + torch.exp(b - both) * O2, whole)
    assert not same(torch.exp(b - both) * O1 + torch.exp(a - both) * O2, whole)


# ---------------------------------------------------------------- masks of −∞


MASK = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]], dtype=torch.bool)


def masked_softmax(S, mask=MASK):
    """By multiplication: no −∞ anywhere."""
    E = S.exp() * mask
    return E / E.sum(-1, keepdim=True)


MASKED = {
    "masked_fill": lambda S: S.masked_fill(~MASK, -INF),
    "where": lambda S: torch.where(MASK, S, -INF),
    "where with a tensor": lambda S: torch.where(MASK, S, torch.full_like(S, -INF)),
    "additive": lambda S: S + torch.zeros(3, 5).masked_fill(~MASK, -INF),
    "additive in float16": lambda S: S + torch.zeros(3, 5).half().masked_fill(~MASK, -INF),
    "additive from the left": lambda S: torch.log(MASK.double()) + S,
    "in place": lambda S: S.clone().masked_fill_(~MASK, -INF),
    "twice": lambda S: S.masked_fill(~MASK, -INF) + torch.zeros(3, 5).masked_fill(~MASK, -INF),
}


@pytest.mark.parametrize("way", MASKED)
def test_a_mask_of_minus_infinity_is_structural(field, way):
    S = field.random(3, 5)
    masked = MASKED[way](S)
    P = masked_softmax(S)
    assert torch.equal(masked.full("hole"), ~MASK)
    assert torch.equal(masked == -INF, ~MASK)
    assert same(torch.softmax(masked, -1), P)
    assert same(plain_softmax(masked), P)
    assert same(torch.exp(masked - torch.logsumexp(masked, -1, True)), P)
    assert same(torch.log_softmax(masked, -1).exp(), P)
    shifted = torch.exp(masked - masked.amax(-1, keepdim=True))
    assert same(shifted / shifted.sum(-1, keepdim=True), P)
    V = field.random(5, 2)
    O, lse = online_softmax(masked, V, 5)
    assert same(O, P @ V)
    assert same(torch.exp(masked - lse), P)
    assert not same(torch.softmax(masked, -1), torch.softmax(S, -1))


def test_masks_of_minus_infinity_commute_with_structure(field):
    S = field.random(3, 5)
    masked = S.masked_fill(~MASK, -INF)
    P = masked_softmax(S)
    assert same(torch.softmax(masked.mT, 0), P.mT)
    assert same(torch.softmax(masked[None].expand(2, 3, 5), -1)[1], P)
    assert same(torch.softmax(torch.cat([masked[:1], S[1:2], masked[2:]]), -1), P)
    assert same(torch.softmax(torch.stack(list(masked.unbind(0))), -1), P)
    assert same(torch.softmax(masked.reshape(5, 3).reshape(3, 5), -1), P)
    assert same(torch.softmax(masked.flip(-1), -1), P.flip(-1))


def test_an_online_softmax_skips_a_masked_block(field):
    """Whole blocks of a row are −∞: exp(−∞ − m) is 0, whichever block comes first."""
    S, V = field.random(2, 6), field.random(6, 2)
    mask = torch.tensor([[1, 1, 0, 0, 1, 0], [1, 0, 0, 1, 0, 0]], dtype=torch.bool)
    O, _ = online_softmax(S.masked_fill(~mask, -INF), V, 2)
    assert same(O, masked_softmax(S, mask) @ V)


@pytest.mark.parametrize("finite", [-10000.0, -1e9, torch.finfo(torch.float32).min])
def test_a_large_finite_number_is_no_mask(field, finite):
    S = field.random(3, 5)
    for masked in (S.masked_fill(~MASK, finite), S + torch.zeros(3, 5).masked_fill(~MASK, finite)):
        P = torch.softmax(masked, -1)
        rows = torch.tensor([0, 2])  # row 1 has nothing masked
        assert bool(field.differs(P, masked_softmax(S))[rows].all())
        assert not bool(field.differs(P, masked_softmax(S))[1].any())


def test_minus_infinity_minus_minus_infinity_has_no_meaning(field):
    S = field.random(3, 5).masked_fill(~MASK, -INF)
    empty = torch.full_like(S, -INF)
    for program in (
        lambda: S - S,
        lambda: empty - empty.amax(-1, keepdim=True),
        lambda: S - torch.logsumexp(empty, -1, keepdim=True),
        lambda: -S,
        lambda: 1.0 - S,
    ):
        with pytest.raises(NoExactMeaning, match="−∞"):
            program()
    assert bool((S - field.random(3, 5) == -INF).eq(~MASK).all())


def test_minus_infinity_times_anything_has_no_meaning(field):
    """−∞ · 0 is NaN, and a mask that multiplies is 0."""
    S = field.random(3, 5).masked_fill(~MASK, -INF)
    for program in (
        lambda: S * 2.0,
        lambda: S * S,
        lambda: S * torch.zeros(3, 5),
        lambda: S.sum(-1),
        lambda: S @ field.random(5, 2),
        lambda: S / 3.0,
        lambda: 1 / S,
    ):
        with pytest.raises(NoExactMeaning, match="−∞"):
            program()


def test_a_boolean_mask_times_minus_infinity_has_no_meaning(field):
    S = field.random(3, 5).masked_fill(~MASK, -INF)
    assert (torch.tensor([-INF]) * torch.tensor([False])).isnan().all()  # what the program means in floats
    with pytest.raises(NoExactMeaning, match="−∞"):
        S * MASK


def test_a_fully_masked_row_is_zero_over_zero(field):
    S = field.random(2, 3).masked_fill(torch.tensor([[True] * 3, [False] * 3]), -INF)
    for program in (lambda: torch.softmax(S, -1), lambda: plain_softmax(S)):
        with pytest.raises(NoExactMeaning, match="denominators that are not zero"):
            program()
    E = S.exp()
    total = E.sum(-1, keepdim=True)
    safe = torch.where(torch.tensor([[True], [False]]), 1.0, total)
    assert_is((E / safe)[0], [0, 0, 0])


def test_zero_over_zero_has_no_meaning(field):
    x = field.random(4)
    zero = x - x
    for program in (lambda: zero / zero, lambda: x / zero, lambda: zero.reciprocal(), lambda: zero**-1):
        with pytest.raises(NoExactMeaning, match="denominators that are not zero"):
            program()


def test_a_denominator_that_is_zero_in_one_lane_only_draws_again(field):
    note = field.random(1).note
    x = field.wrap({"v0": torch.tensor([0, 3]), "v1": torch.tensor([5, 4])}, note)
    for program in (lambda: 1 / x, lambda: x.log() - x.log(), lambda: field.random(2) / x):
        with pytest.raises(DrawAgain, match="zero in one lane") as caught:
            program()
        assert caught.value.root is None
        assert caught.value.lanes is None
    y = field.wrap({"v0": torch.tensor([0, 3]), "v1": torch.tensor([0, 4])}, note)
    with pytest.raises(NoExactMeaning):
        1 / y


def test_the_logarithm_of_zero_is_minus_infinity(field):
    x = field.random(3) * torch.tensor([1.0, 0.0, 1.0])
    log = x.log()
    assert (log == -INF).tolist() == [False, True, False]
    assert same(log.exp(), x)
    assert same(torch.logaddexp(log, log).exp(), x + x)


def test_logaddexp_with_nothing_is_the_other(field):
    x = field.random(3).log()
    assert same(torch.logaddexp(x, torch.full_like(x, -INF)), x)
    assert (torch.logaddexp(torch.full_like(x, -INF), torch.full_like(x, -INF)) == -INF).all()


@pytest.mark.parametrize(
    "program",
    [
        lambda x, a: x.log() * a,
        lambda x, a: a * x.log(),
        lambda x, a: x.log() * 2.5,
        lambda x, a: x.log() / 2,
        lambda x, a: x.log() * torch.tensor([2.0, 2.0, 2.0, 2.0]),
        lambda x, a: x.log().sum(),
        lambda x, a: x.log().mean(),
        lambda x, a: x.log() @ a.mT,
        lambda x, a: a.mT @ x.log(),
        lambda x, a: 1 / x.log(),
        lambda x, a: x.log() / a,
        lambda x, a: x.log().square(),
        lambda x, a: x.log().log(),
        lambda x, a: torch.addmm(torch.zeros(3, 3), x.log(), a.mT),
        lambda x, a: (x - x.amax()) * a,
        lambda x, a: torch.log_softmax(x, -1).sum(),
        lambda x, a: torch.add(a, x.log(), alpha=2),
    ],
)
def test_products_and_sums_of_a_logarithm_have_no_meaning(field, program):
    with pytest.raises(NoExactMeaning, match="operands without logarithms"):
        program(field.random(3, 4), field.random(3, 4))


def test_a_small_multiple_of_a_logarithm_is_a_sum(field):
    x = field.random(3, 4)
    for n in (1, 2, 3.0, -1, -2):
        assert same((x.log() * n).exp(), x ** int(n))
        assert same((n * (x + x.log())).exp(), (n * x).exp() * x ** int(n))
        assert not same((x.log() * n).exp(), x ** (int(n) + 1))


def test_addmm_does_not_lose_a_mask_or_a_logarithm(field):
    """torch.addmm(mask, Q, Kᵀ) and logits beside a log prior: the summand may be −∞ or a logarithm, the product not."""
    Q, K, prior = field.random(3, 4), field.random(5, 4), field.random(5)
    additive = torch.zeros(3, 5, dtype=torch.float64).masked_fill(~MASK, -INF)
    S = torch.addmm(additive + 0 * field.random(3, 5), Q, K.mT)
    assert same(torch.softmax(S, -1), masked_softmax(Q @ K.mT))
    weighted = (Q @ K.mT).exp() * prior
    expected = weighted / weighted.sum(-1, keepdim=True)
    assert same(torch.softmax(torch.addmm(prior.log(), Q, K.mT), -1), expected)
    assert not same(torch.softmax(Q @ K.mT, -1), expected)


# ---------------------------------------------------------------- the shift


def test_the_shift_depends_on_the_contents_of_the_row_and_on_nothing_else(field):
    S = field.random(4, 5)
    m = S.amax(-1, keepdim=True)
    assert same(m, (S + 0).clone().amax(-1, keepdim=True))
    assert same(m, S.flip(-1).amax(-1, keepdim=True))
    assert same(m[2], S[2].amax(-1, keepdim=True))
    assert same(m[:, 0], S.mT.amax(0))
    assert same(S.amax(), S.reshape(-1).amax(0))
    assert (
        len({tuple(row) for row in torch.stack([m.full("log0"), m.full("log1")], -1).reshape(-1, 2).tolist()})
        == 4
    )
    hidden = torch.zeros(4, 5, dtype=torch.bool)
    hidden[:, 3] = True
    kept = S[:, [0, 1, 2, 4]].amax(-1, keepdim=True)
    assert same(S.masked_fill(hidden, -INF).amax(-1, keepdim=True), kept)
    assert not same(kept, m)
    assert field.shift_used


def test_the_shift_of_logarithms_and_of_pairs(field):
    x, y = field.random(4), field.random(4)
    assert same(torch.maximum(x, y), torch.maximum(y, x))
    assert not same(torch.maximum(x, y), torch.maximum(x, x))
    assert not same(x.log().amax(), (x * 2).log().amax())
    nothing = torch.full_like(x, -INF)
    assert (torch.maximum(nothing, nothing) == -INF).all()
    assert not (torch.maximum(nothing, x) == -INF).any()
    assert nothing.amax() == -INF


def test_rows_without_a_maximum_can_be_given_one(field):
    S = field.random(2, 3).masked_fill(torch.tensor([[True] * 3, [False, True, False]]), -INF)
    m = S.amax(-1, keepdim=True)
    assert (m == -INF).tolist() == [[True], [False]]
    E = torch.exp(S - m.masked_fill(m == -INF, 0.0))
    r = E.sum(-1, keepdim=True)
    P = E / torch.where(m == -INF, 1.0, r)
    assert_is(P[0], [0, 0, 0])
    assert same(P[1], torch.softmax(S[1], -1))


@modest
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 6), st.data())
def test_any_mask_any_blocks(seed, rows, columns, data):
    """Masked softmax, whole, by recomputation from lse, and online, on any mask in which every row sees a key."""
    field = Field(seed, 2)
    bits = st.lists(st.booleans(), min_size=columns, max_size=columns).filter(any)
    mask = torch.tensor(data.draw(st.lists(bits, min_size=rows, max_size=rows)))
    block = data.draw(st.integers(1, columns))
    S, V = field.random(rows, columns), field.random(columns, 2)
    masked = torch.where(mask, S, -INF)
    P = masked_softmax(S, mask)
    assert same(torch.softmax(masked, -1), P)
    assert same(torch.exp(masked - torch.logsumexp(masked, -1, True)), P)
    first_seen = mask[:, :block].any(-1)
    if bool(first_seen.all()):  # else exp(−∞ − (−∞)) in the first block: no exact meaning, and NaN in floats
        assert same(online_softmax(masked, V, block)[0], P @ V)
