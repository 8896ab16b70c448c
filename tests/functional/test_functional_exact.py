"""The function that ships is its rule, in exact arithmetic: value, gradients, forward mode and second order, tile after tile.

What runs on residues is the loop over tiles. PyTorch's fused kernel, which stands for it in plain first order, is compiled code: it is compared in floats only
(test_functional_attention.py, test_functional_sizes.py, test_functional_precision.py).
"""

from __future__ import annotations

import attention_cases
import pytest
import torch
from attention_cases import CASES, case
from torch.autograd import grad

import gradderiv
from gradderiv.checks.exact import exactly
from gradderiv.functional import attention
from gradderiv.rules import tile


def proved(x, **options):
    names = tuple(x.tensors)
    return gradderiv.prove(x.ours, x.inputs, names=names, reference=x.rule, **options)


FAST = {"plain", "bias", "causal", "window", "grouped", "dropout", "sinks-empty-row", "everything"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CASES]
)
def test_each_option_is_proved_in_both_modes_and_twice(name, several_tiles, one_seed):
    """Two heads, the queries of each in a tile of two and a tile of one."""
    proof = proved(case(name, B=1, n_q=3, n_k=4, d_v=1), order=2, forward_mode=True)
    assert proof.verdict == "proved", str(proof)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("n_q", "n_k"), [(4, 1), (5, 7)])
def test_at_other_sizes(name, n_q, n_k, several_tiles, one_seed):
    proof = proved(case(name, B=1, n_q=n_q, n_k=n_k, d_v=1), order=2, forward_mode=True)
    assert proof.verdict == "proved", str(proof)


@pytest.mark.parametrize("name", ["softcap", "sinks-empty-row"])
def test_a_tile_of_all_rows_is_proved_too(name, one_seed):
    proof = proved(case(name, B=1, n_q=3), order=2, forward_mode=True)
    assert proof.verdict == "proved", str(proof)


@pytest.mark.parametrize("name", ["plain", "dropout"])
def test_another_mask_is_another_function(name, several_tiles, one_seed, monkeypatch):
    """The twin: what is proved is an equality, and one key more or less breaks it."""
    if name == "dropout":
        monkeypatch.setattr(attention_cases, "SEED", 5)
        x = case(name, B=1)
        monkeypatch.setattr(attention_cases, "SEED", 6)
    else:
        x = case(name, B=1)._replace(rule=case("causal", B=1).rule)
    assert proved(x).verdict == "refuted"


def outcomes(reference, **options):
    """Value, gradients and double backward along a direction of Q, by name: equal over the field, or not."""
    mask = torch.ones(3, 5, dtype=torch.bool).tril() if options else None
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
        ours = derivatives(lambda *a: attention(*a, **options), x, dO, u)
        theirs = derivatives(lambda Q, K, V, b: reference(Q, K, V, bias=b, mask=mask), x, dO, u)
        return {name: (ours[name], theirs[name]) for name in ours}

    return {name: outcome.equal for name, outcome in exactly(run).items()}


@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=["all", "causal"])
def test_first_and_second_order_are_those_of_the_definition(options, reference):
    assert all(outcomes(reference, **options).values())


def test_a_forgotten_row_sum_is_refuted(reference, monkeypatch):
    """In the bias alone: everything else is as it was."""
    right = tile.tile_vjp

    def vjp(d, x, lse):
        found = right(d, x, lse)
        return found if d.O is None else found._replace(bias=tile.tile(x).W * (d.O @ x.V.mT))

    monkeypatch.setattr(tile, "tile_vjp", vjp)
    equal = outcomes(reference)
    assert [name for name, same in equal.items() if not same] == ["dbias"]
