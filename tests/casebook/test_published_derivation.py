"""The published derivation: what its case says is computed, and is so."""

from __future__ import annotations

import pytest
import torch
from tables import rows

import gradderiv
from gradderiv.casebook import published_derivation as case
from gradderiv.casebook import tell
from gradderiv.checks.published import EPSILON, WEIGHTS, N, draw, printed_check
from gradderiv.rules import blockdiag


@pytest.fixture(scope="module")
def text() -> str:
    return tell("published-derivation")


def test_it_is_told_in_79_columns(text):
    assert tell("published-derivation") == text
    assert max(map(len, text.splitlines())) <= 79


def test_equal_tokens_hide_what_random_tokens_show():
    usual, equal = case.equal_tokens_hide_a_transpose(draw())
    assert equal < 1e-12
    assert usual > 1e-3


def test_the_closed_forms_hold_in_floats_and_exactly(text):
    table = {row[0]: row[1:] for row in rows(text, "gradient")}
    assert {f"W^{w[2]}" for w in WEIGHTS} < set(table)
    for name, (wide, narrow, exact) in table.items():
        assert float(wide) <= 1
        assert float(narrow) <= 1
        assert (exact == "equal") == (name != "W^Q printed")


def test_the_unit_is_the_tolerance():
    published = draw()
    right = blockdiag.grad_W_Q(**published.args, dY=published.dY, n_heads=case.N_HEADS)
    units, found = case.in_floats(right, "W_Q", published)
    assert units <= 1
    assert found.verdict == "pass"
    units, found = case.in_floats(1.001 * right, "W_Q", published)
    assert units > 1
    assert found.verdict == "fail"


def test_wrong_formulas_print_zeros_and_fail_here(text):
    table = {row[0]: row[1:] for row in rows(text, "W^Q error")}
    assert set(table) == set(case.FORMULAS)
    for name, (error, zeros, floats, exact) in table.items():
        assert zeros == "100 zeros"
        assert (float(error) < 1e-12) == (floats == "pass") == name.startswith("as printed")
        assert (exact == "pass") == (name == "as printed, ε = 0")
    flat = " ".join(text.split())
    assert "(= √5): is the scale missing?" in flat
    assert "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]" in flat


def test_an_error_of_one_would_be_printed():
    right = draw().autograd["W_Q"]
    assert printed_check(right + 0.999, right)
    assert not printed_check(right + 1.001, right)


def test_what_a_constant_cotangent_hides(text):
    for name, mean, random in rows(text, "a backward with"):
        assert float(mean) < 1e-12, name
        assert float(random) > 0.1, name
    published = draw()
    assert int(torch.linalg.matrix_rank(case.gradients_of(published, published.dY)["W_O"])) == 1
    assert int(torch.linalg.matrix_rank(case.gradients_of(published, case.another_cotangent())["W_O"])) == N
    scaled = case.hidden_by_the_mean(published, lambda dY: 2 * dY)
    assert min(scaled) == pytest.approx(1)  # a mistake that the mean does show


def test_epsilon_moves_a_softmax_of_low_scores_and_the_shift_repairs_it(text):
    high, low = case.level(0), case.level(-34)
    assert high.P < 2 * EPSILON
    assert 0.05 < low.P < 0.3
    assert low.row < 0.9
    assert low.dS > 0.05
    for at in case.LEVELS:
        assert max(case.level(at, shift=True)[::2]) < 4 * EPSILON
    assert f"is off by {low.P:.2f}" in " ".join(text.split())
    equal = case.level(-34, spread=0.0)  # then Σ exp(S) is known
    total = N * torch.tensor(-34.0, dtype=torch.float64).exp()
    assert equal.row == pytest.approx(float(total / (total + EPSILON)))
    assert case.level(-200).dS > 1  # the row sum is gone


def test_prove_says_the_same_of_a_softmax_with_epsilon():
    def with_epsilon(S):
        E = S.exp()
        return E / (E.sum(-1, keepdim=True) + EPSILON)

    def without(S):
        return S.exp() / S.exp().sum(-1, keepdim=True)

    def reference(S):
        return torch.softmax(S, -1)

    inputs = {"S": torch.randn(3, 5)}
    assert gradderiv.prove(with_epsilon, inputs, reference=reference).verdict == "inconclusive"
    assert gradderiv.prove(without, inputs, reference=reference).passed


def test_another_draw_tells_the_same_of_other_numbers(text, monkeypatch):
    monkeypatch.setattr(case, "draw", lambda seed=3, **kind: draw(seed, **kind))
    other = tell("published-derivation")
    assert other != text
    assert [r[-1] for r in rows(other, "gradient")] == [r[-1] for r in rows(text, "gradient")]
    assert [r[2:] for r in rows(other, "W^Q error")] == [r[2:] for r in rows(text, "W^Q error")]
