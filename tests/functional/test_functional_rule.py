"""A slip in one line of the tile's formulas must fail the checks that the right ones pass: by floats, and exactly."""

from __future__ import annotations

import pytest
from attention_cases import case
from tile_mutants import FIRST, MUTANTS
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError

import gradderiv
from gradderiv.rules import tile

FORWARD = {"lse", "values", "slope of the cap"}
"""Those that are wrong in forward mode. What is wrong there is wrong in the double backward, which is made of it."""

FORWARD_ALONE = {
    "fast_mode": True,
    "check_fwd_over_rev": True,
    "check_rev_over_rev": False,
    "check_undefined_grad": False,
}


@pytest.fixture
def all_options(several_tiles, one_seed):
    return case("everything", B=1, n_q=3, n_k=3, d_k=2, d_v=1)


def test_the_right_rule_passes(all_options):
    function, inputs = all_options.ours, all_options.inputs
    assert gradcheck(function, inputs, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(function, inputs, fast_mode=True, check_fwd_over_rev=True)


ALIKE = {"sink", "values in second order"}
"""Still where another is: what the cap and the keys in second order go through."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ALIKE else ()) for n in MUTANTS]
)
def test_a_slip_fails_in_its_order_and_not_before(name, all_options, monkeypatch):
    monkeypatch.setattr(tile, *MUTANTS[name])
    function, inputs = all_options.ours, all_options.inputs
    if name in FIRST:
        with pytest.raises(GradcheckError, match="Jacobian mismatch"):
            gradcheck(function, inputs, fast_mode=True)
        return
    assert gradcheck(function, inputs, fast_mode=True)
    if name in FORWARD:
        with pytest.raises(GradcheckError, match="forward mode"):
            gradcheck(function, inputs, fast_mode=True, check_forward_ad=True)
    else:
        assert gradcheck(function, inputs, fast_mode=True, check_forward_ad=True)
    with pytest.raises(GradcheckError, match="mismatch"):
        gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["cap", "keys in second order"])
def test_a_slip_fails_forward_over_reverse(name, all_options, monkeypatch):
    monkeypatch.setattr(tile, *MUTANTS[name])
    with pytest.raises(GradcheckError, match="forward mode"):
        gradgradcheck(all_options.ours, all_options.inputs, **FORWARD_ALONE)


EXACTLY = {"row sum", "cap", "sink", "dropout"}
"""tests/rules/test_tile.py refutes all of them by the rule itself."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in EXACTLY else pytest.mark.slow) for n in MUTANTS]
)
def test_a_slip_is_refuted_exactly(name, monkeypatch, one_seed):
    """By ``prove`` alone, which has no reference: the forward is right, and its derivatives are not."""
    monkeypatch.setattr(tile, *MUTANTS[name])
    all_options = case("everything", B=1, n_q=2, n_k=2, d_k=2, d_v=1)
    first = name in FIRST
    order = {"order": 1} if first else {"order": 2, "forward_mode": name in FORWARD}
    proof = gradderiv.prove(all_options.ours, all_options.inputs, names=tuple(all_options.tensors), **order)
    assert proof.verdict == "refuted", str(proof)
