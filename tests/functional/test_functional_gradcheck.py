"""``torch.autograd.gradcheck`` and ``gradgradcheck`` of every option, in reverse and forward mode, batched too."""

from __future__ import annotations

import pytest
from attention_cases import CASES, case
from torch.autograd import gradcheck, gradgradcheck

EVERY_FIRST = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
EVERY_SECOND = {"check_fwd_over_rev": True, "check_batched_grad": True}


FAST = {"plain", "bias", "empty-row", "causal", "grouped", "sinks", "weights", "everything"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CASES]
)
def test_along_a_random_direction(name, several_tiles, one_seed):
    """Fast mode: one direction of the whole Jacobian. The twin, slips that it must catch, is test_functional_rule.py."""
    x = case(name, n_q=3, n_k=4)
    assert gradcheck(x.ours, x.inputs, fast_mode=True, **EVERY_FIRST)
    assert gradgradcheck(x.ours, x.inputs, fast_mode=True, **EVERY_SECOND)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_entry_by_entry(name, several_tiles, one_seed):
    x = case(name, B=1, n_q=3, n_k=4)
    assert gradcheck(x.ours, x.inputs, **EVERY_FIRST)
    assert gradgradcheck(x.ours, x.inputs, **EVERY_SECOND)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "bias", "everything"])
def test_in_one_tile_and_by_the_fused_kernel(name, one_seed):
    """d_k = d_v: the kernel computes value and gradient, where it can."""
    x = case(name, B=1, n_q=3, n_k=4, d_v=4)
    assert gradcheck(x.ours, x.inputs, **EVERY_FIRST)
    assert gradgradcheck(x.ours, x.inputs, **EVERY_SECOND)
