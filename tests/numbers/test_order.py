"""The place of a maximum: it can be carried along, and nothing may depend on it."""

from __future__ import annotations

import pytest
import torch
from exact_reference import same

from gradderiv.errors import NoExactMeaning
from gradderiv.numbers.dual import Dual
from gradderiv.numbers.field import Field
from gradderiv.numbers.rounding import Rounding


def rows(shift):
    here = Field(seed=3, lanes=2, shift=shift)
    return here, here.random(50, 4)


def test_the_place_of_a_maximum_has_a_shape_and_no_value():
    here, x = rows(0)
    assert x.argmax(-1).shape == (50,)
    assert x.argmax(-1, keepdim=True).shape == (50, 1)
    assert x.argmax().shape == ()
    values, place = x.max(-1)
    assert place.dtype == torch.int64
    assert same(values, x.amax(-1))
    assert here.shift_used


@pytest.mark.parametrize(
    "use",
    [
        lambda x, place: x.gather(1, place.unsqueeze(-1)),
        lambda x, place: x[torch.arange(50), place],
        lambda x, place: x.index_select(1, place[:1]),
        lambda x, place: torch.where((place == 0).unsqueeze(-1), x, -x),
        lambda x, place: x * place.unsqueeze(-1),
        lambda x, place: x * (place > 1).unsqueeze(-1),
        lambda x, place: torch.nn.functional.one_hot(place, 4) * x,
        lambda x, place: place.double(),
        lambda x, place: int(place[0]),
        lambda x, place: bool(place[0] == 0),
        lambda x, place: torch.zeros(50, 4, dtype=torch.float64).scatter(1, place.unsqueeze(-1), x),
    ],
)
def test_any_use_of_it_is_refused(use):
    _, x = rows(0)
    with pytest.raises(NoExactMeaning):
        use(x, x.argmax(-1))


def test_the_gradient_of_a_maximum_with_its_place():
    """max(-1) hands its gradient to one entry: nothing, where it is a shift that cancels; else it is refused."""
    _, x = rows(0)
    leaf = x.clone().requires_grad_()
    values = leaf.max(-1, keepdim=True).values
    with pytest.raises(NoExactMeaning, match="more than a shift"):
        torch.autograd.grad(values, leaf, torch.ones_like(x[:, :1]), retain_graph=True)
    E = torch.exp(leaf - values)
    (still,) = torch.autograd.grad(E / E.sum(-1, keepdim=True), leaf, x)
    P = torch.softmax(x, -1)
    assert same(still, P * (x - (P * x).sum(-1, keepdim=True)))


def test_floats_have_their_own_order():
    x = torch.tensor([[1.0, 3.0, 2.0], [5.0, -1.0, 4.0]], dtype=torch.float64)
    for numbers in (Dual().make(x, x), Rounding(torch.float32).make(x)):
        assert torch.equal(numbers.argmax(-1), x.argmax(-1))
        assert torch.equal(numbers.max(0).indices, x.max(0).indices)
    with pytest.raises(NoExactMeaning):
        int(Dual().make(Field(3, 2).random(9, 4)).argmax())


def test_an_order_of_more_than_the_first_is_refused():
    _, x = rows(0)
    for program in (x.sort, lambda: x.topk(2), x.argmin, lambda: x.argsort(-1), lambda: x.cummax(-1)):
        with pytest.raises(NoExactMeaning):
            program()
