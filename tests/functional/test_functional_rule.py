"""A Function made from a wrong rule must fail the checks that the right one passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError

from gradderiv.functional._attention import _attention
from gradderiv.rules import attention as rules


def without_row_sum(dO, saved):
    """dS = P ∘ dP: the softmax's mean forgotten."""
    Q, K, V, P = saved.Q, saved.K, saved.V, saved.P
    dS = P * (dO @ V.mT)
    right = rules.attention_vjp(dO, saved)
    return right._replace(Q=saved.scale * dS @ K, K=saved.scale * dS.mT @ Q)


def with_still_weights(saved, Q_dot, K_dot, V_dot, bias_dot=None):
    """Ȯ = P V̇: Ṗ V forgotten."""
    return saved.P @ V_dot


def with_still_gradient(dO, saved, dO_dot, *tangents, **named):
    """The second-order rule with dQ̇ short of τ dS K̇."""
    right = rules.attention_vjp_jvp(dO, saved, dO_dot, *tangents, **named)
    P, V = saved.P, saved.V
    dP = dO @ V.mT
    dS = P * (dP - (P * dP).sum(-1, keepdim=True))
    return right._replace(Q=right.Q - saved.scale * dS @ named["K_dot"])


def with_swapped_fields(dO, saved):
    """The gradients of keys and values, of equal shape here, exchanged."""
    right = rules.attention_vjp(dO, saved)
    return right._replace(K=right.V, V=right.K)


@pytest.fixture
def inputs():
    torch.manual_seed(2)
    return tuple(torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 5, 5))


def function(rule):
    return lambda Q, K, V: rule(Q, K, V, None, None, None)


def test_the_right_rule_passes(inputs):
    assert gradcheck(function(_attention), inputs, check_forward_ad=True)
    assert gradgradcheck(function(_attention), inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("vjp", [without_row_sum, with_swapped_fields])
def test_a_wrong_vjp_fails_first_order(vjp, inputs):
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        gradcheck(function(replace(_attention, vjp=vjp)), inputs)


def test_a_wrong_jvp_fails_forward_mode_and_double_backward(inputs):
    wrong = function(replace(_attention, jvp=with_still_weights))
    assert gradcheck(wrong, inputs)
    with pytest.raises(GradcheckError, match="forward mode"):
        gradcheck(wrong, inputs, check_forward_ad=True)
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        gradgradcheck(wrong, inputs)


def test_a_wrong_vjp_jvp_fails_second_order_alone(inputs):
    wrong = function(replace(_attention, vjp_jvp=with_still_gradient))
    assert gradcheck(wrong, inputs, check_forward_ad=True)
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        gradgradcheck(wrong, inputs)
    forward = {"check_fwd_over_rev": True, "check_rev_over_rev": False, "check_undefined_grad": False}
    with pytest.raises(GradcheckError, match="forward mode"):
        gradgradcheck(wrong, inputs, **forward)
