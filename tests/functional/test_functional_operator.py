"""An operator of the rules as a function of its own: every order, both modes, and proved."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import gradderiv
from gradderiv.functional import as_function
from gradderiv.rules.linear import LINEAR
from gradderiv.rules.matmul import MATMUL
from gradderiv.rules.rms_norm import RMS_NORM
from gradderiv.rules.rope import ROPE
from gradderiv.rules.score_bias import ALIBI, BIAS
from gradderiv.rules.scores import SCORES
from gradderiv.rules.softcap import SOFTCAP
from gradderiv.rules.steps import Operator
from gradderiv.rules.temperature import TEMPERATURE

CASES = {
    "linear": (LINEAR, {"X": (2, 5, 3), "W": (3, 4), "b": (4,)}, {}),
    "matmul": (MATMUL, {"A": (2, 1, 3, 4), "B": (5, 4)[1:]}, {}),
    "rope": (ROPE, {"X": (2, 3, 5, 6), "cos": (5, 4), "sin": (5, 4)}, {"pairing": "interleaved"}),
    "rms_norm": (RMS_NORM, {"X": (2, 5, 3), "gain": (3,)}, {"eps": 0.1}),
    "scores": (SCORES, {"Q": (2, 5, 3), "K": (2, 4, 3)}, {"scale": 0.3}),
    "softcap": (SOFTCAP, {"S": (5, 4)}, {"softcap": 2.0}),
    "temperature": (TEMPERATURE, {"S": (3, 5, 4), "temperature": (3, 1, 1)}, {}),
    "bias": (BIAS, {"S": (2, 3, 5, 4), "bias": (3, 1, 4)}, {}),
    "ALiBi": (ALIBI, {"S": (2, 3, 5, 7), "slopes": (3,)}, {}),
}


def drawn(shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        (1.5 + torch.rand(s, generator=generator, dtype=dtype)).requires_grad_() for s in shapes.values()
    )


@pytest.mark.parametrize("name", CASES)
def test_it_is_proved_in_both_modes_and_twice(name):
    operator, shapes, static = CASES[name]
    proof = gradderiv.prove(
        as_function(operator, *shapes, **static), drawn(shapes), order=2, forward_mode=True
    )
    assert proof.verdict == "proved", str(proof)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_agrees(name):
    operator, shapes, static = CASES[name]
    function = as_function(operator, *shapes, **static)
    assert gradcheck(function, drawn(shapes), check_forward_ad=True)
    assert gradgradcheck(function, drawn(shapes))


def test_arguments_go_by_position_and_by_name():
    function = as_function(SCORES, "Q", "K", scale=0.5)
    Q, K = drawn({"Q": (5, 3), "K": (4, 3)})
    assert torch.equal(function(Q, K), function(Q, K=K))
    assert torch.equal(function(Q, K), function(K=K, Q=Q))
    assert function.__name__ == "scores"


@pytest.mark.parametrize("spoilt", ["jvp", "vjp", "vjp_jvp"])
def test_a_wrong_closed_form_is_refuted(spoilt):
    def wrong(*given):
        found = getattr(SOFTCAP, spoilt)(*given)
        return 2 * found if torch.is_tensor(found) else tuple(2 * x for x in found)

    operator = Operator(**{**SOFTCAP._asdict(), spoilt: wrong})
    function = as_function(operator, "S", softcap=2.0)
    proof = gradderiv.prove(function, drawn({"S": (5, 4)}), order=2, forward_mode=True)
    assert proof.verdict == "refuted"
