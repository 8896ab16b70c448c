"""The function that ships, both its backward passes included, equals autograd of the definition in exact arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd import grad

from gradderiv.checks.exact import exactly
from gradderiv.functional import _attention, attention
from gradderiv.rules import attention as rules


def outcomes(is_causal, reference):
    """Value, gradients and double backward along a direction of Q, by name: equal over the field, or not."""
    mask = torch.ones(3, 5, dtype=torch.bool).tril() if is_causal else None
    shapes = {"Q": (3, 4), "K": (5, 4), "V": (5, 2), "bias": (3, 5)}

    def derivatives(function, x, dO, u):
        O = function(*x.values())
        first = grad(O, list(x.values()), dO, create_graph=True)
        second = grad(first[0], list(x.values()), u)
        names = ["O", *(f"d{n}" for n in x), *(f"dd{n}" for n in x)]
        return dict(zip(names, (a.detach() for a in (O, *first, *second)), strict=True))

    def run(field):
        x = {name: field.random(*shape).requires_grad_() for name, shape in shapes.items()}
        dO, u = field.random(3, 2), field.random(3, 4)
        ours = derivatives(lambda *a: attention(*a, is_causal=is_causal), x, dO, u)
        theirs = derivatives(lambda Q, K, V, b: reference(Q, K, V, bias=b, mask=mask), x, dO, u)
        return {name: (ours[name], theirs[name]) for name in ours}

    return {name: outcome.equal for name, outcome in exactly(run).items()}


@pytest.mark.parametrize("is_causal", [False, True])
def test_first_and_second_order_are_exact(is_causal, reference):
    assert all(outcomes(is_causal, reference).values())


def test_a_forgotten_row_sum_is_refuted(reference, monkeypatch):
    def vjp(dO, saved):
        right = rules.attention_vjp(dO, saved)
        return right._replace(bias=saved.P * (dO @ saved.V.mT))

    monkeypatch.setattr(_attention, "_attention", replace(_attention._attention, vjp=vjp))
    equal = outcomes(False, reference)
    assert [name for name, same in equal.items() if not same] == ["dbias"]
