"""A whole decoder layer at the size that is used: proved in seconds, every parameter by itself, and a wrong one refuted."""

from __future__ import annotations

import dataclasses

import pytest

from gradderiv.checks import production
from gradderiv.checks.catalog import RULES
from gradderiv.checks.production import full_layer, verify_full_layer

NINE = {"W_Q", "W_K", "W_V", "W_O", "W_G", "W_U", "W_D", "gain_1", "gain_2"}
SMALL = full_layer(n=6, d_model=24, h=4, h_kv=2, d_ff=40)


def test_a_llama_layer_is_proved_at_full_size_in_seconds():
    records = verify_full_layer()
    assert {r.argument for r in records} == NINE | {"Y", "X", "cos", "sin"}
    assert {r.verdict for r in records} == {"pass"}
    assert {(r.rule, r.problem, r.oracle, r.number) for r in records} == {
        ("transformer", "llama n=64 d_model=256 h=8/4 d_ff=688", "full size", "field")
    }
    assert all(r.failure_probability is not None and r.failure_probability <= 2**-40 for r in records)
    assert {r.argument: r.detail for r in records}["W_U"] == f"{256 * 688} entries equal"
    assert sum(r.seconds for r in records) < 30  # 1.3 on one idle core


@pytest.mark.parametrize("style", ["llama", "gemma"])
def test_another_size_style_and_seed(style):
    problem = full_layer(n=6, d_model=24, h=4, h_kv=2, d_ff=40, style=style)
    assert problem.name == f"{style} n=6 d_model=24 h=4/2 d_ff=40"
    assert {r.verdict for r in verify_full_layer(5, problem=problem)} == {"pass"}


@pytest.mark.parametrize("argument", sorted(NINE | {"X"}))
def test_twin_one_wrong_entry_is_refuted(argument, monkeypatch):
    right = RULES["transformer"]

    def gradients(args, options, dY):
        g = right.gradients(args, options, dY)
        wrong = g[argument].clone()
        wrong.reshape(-1)[7:8].mul_(2)
        return {**g, argument: wrong}

    monkeypatch.setitem(production.RULES, "transformer", dataclasses.replace(right, gradients=gradients))
    failures = [r for r in verify_full_layer(problem=SMALL) if r.verdict == "fail"]
    assert [r.argument for r in failures] == [argument]
    assert failures[0].detail.startswith("1 of ")
