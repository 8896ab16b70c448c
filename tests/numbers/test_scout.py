"""A scout's ledger is that of the real run; its residues are nothing."""

from __future__ import annotations

import pytest
import torch
from exact_reference import same

from gradderiv.errors import NoExactMeaning
from gradderiv.numbers.field import Field
from gradderiv.numbers.lanes import DrawAgain
from gradderiv.numbers.scout import Scout

ROOTS = frozenset({2, 3})


def attention(field):
    Q, K, V = field.random(2, 5, 3), field.random(2, 7, 3), field.random(2, 7, 4)
    leaves = [x.requires_grad_() for x in (Q, K, V)]
    mask = torch.ones(5, 7).tril(3).bool()
    out = torch.softmax((Q @ K.mT * 3**-0.5).masked_fill(~mask, -torch.inf), -1) @ V
    return torch.autograd.grad(out, leaves, field.random(*out.shape))


def layer(field):
    X, W, g = field.random(6, 4), field.random(4, 4), field.random(4)
    normed = X * torch.rsqrt((X * X).mean(-1, keepdim=True) + 1e-6) * g
    gate = torch.nn.functional.silu(normed @ W)
    return (gate @ W.mT, torch.relu(X @ W))


def online(field):
    S, V = field.random(5, 8), field.random(8, 3)
    m = torch.full((5, 1), -torch.inf)
    total, out = 0 * S[:, :1], 0 * S[:, :3]
    for block in range(0, 8, 4):
        new = torch.maximum(m, S[:, block : block + 4].amax(-1, keepdim=True))
        P, keep = torch.exp(S[:, block : block + 4] - new), torch.exp(m - new)
        total, out, m = total * keep + P.sum(-1, keepdim=True), out * keep + P @ V[block : block + 4], new
    return (out / total,)


@pytest.mark.parametrize("program", [attention, layer, online])
@pytest.mark.parametrize("odd", [False, True])
def test_its_ledger_is_that_of_the_real_run(program, odd):
    real, scout = Field(0, 2, roots=ROOTS, odd=odd), Scout(0, roots=ROOTS, odd=odd)
    outputs, sketched = program(real), program(scout)
    assert scout.ledger.groups == real.ledger.groups
    assert scout.ledger.opaque_values == real.ledger.opaque_values
    assert scout.ledger.argument == real.ledger.argument
    for x, y in zip(outputs, sketched, strict=True):
        assert x.shape == y.shape
        assert x.note == y.note
        assert scout.failure(y, y, lanes=3) == pytest.approx(real.failure(x, x, lanes=3))


def test_it_asks_for_roots_and_refuses_as_the_real_run_does():
    with pytest.raises(DrawAgain) as asked:
        attention(Scout(0))
    assert asked.value.root == 3
    x = Scout(0).random(3, 3)
    hidden = x.masked_fill(torch.eye(3).bool(), -torch.inf)
    with pytest.raises(NoExactMeaning):
        hidden @ x


def test_its_products_are_not_products():
    scout = Scout(0)
    x, y = scout.random(3, 4), scout.random(4, 2)
    assert not same(x @ y, (x.unsqueeze(-1) * y).sum(1))


def test_it_never_asks_for_lanes():
    scout = Scout(0, target=-200.0)
    scout.random(1000).exp()
    assert scout.lanes == 1
