"""``gradderiv bench verify``: what it counts, and that it can count otherwise."""

from __future__ import annotations

import json

import pytest
import torch

from gradderiv.bench.checkers import CHECKERS
from gradderiv.bench.layers import ARGUMENTS, draw, layer_of
from gradderiv.bench.verify import BenchVerify, Trial, run
from gradderiv.checks.mutants import MUTANTS, PEERS, RIGHT

STEPS: list[tuple[int, int, str]] = []


@pytest.fixture(scope="module")
def quick() -> BenchVerify:
    STEPS.clear()
    return run(quick=True, progress=lambda *step: STEPS.append(step))


def test_ours_catch_all_fourteen_at_every_scale(quick: BenchVerify) -> None:
    for scale in quick.scales:
        assert quick.caught("ours, exact", scale) == [14]
        assert quick.caught("ours, float64", scale) == [14]


def test_fast_gradcheck_accepts_most_at_gpt2s_initialisation(quick: BenchVerify) -> None:
    caught = quick.caught("gradcheck fast", 0.02)
    assert caught is not None
    assert max(caught) <= 3


def test_nobody_raises_a_false_alarm(quick: BenchVerify) -> None:
    assert {name: quick.false_alarms(name) for name in CHECKERS} == dict.fromkeys(CHECKERS, (0, 1))


def test_every_checker_was_timed(quick: BenchVerify) -> None:
    assert all(quick.median(name) > 0 for name in CHECKERS)


def test_the_table_fits_a_terminal_and_says_what_was_missed(quick: BenchVerify) -> None:
    text = str(quick)
    assert max(map(len, text.splitlines())) <= 80
    assert "gradcheck fast did not catch, at s = 0.02: all" in text
    row = next(line for line in text.splitlines() if line.startswith("ours, exact"))
    assert row.split()[2:6] == ["14", "0", "of", "1"]


def test_json_has_every_verdict_and_every_time(quick: BenchVerify) -> None:
    document = json.loads(quick.to_json())
    assert len(document["trials"]) == len(quick.trials) == 4 * 15 + 1
    assert set(document["times"]) == set(CHECKERS)
    assert document["mutants"] == list(PEERS)


def test_progress_counts_to_the_end(quick: BenchVerify) -> None:
    assert [done for done, _, _ in STEPS] == list(range(len(STEPS)))
    assert {total for _, total, _ in STEPS} == {len(STEPS) - 1}


# ---------------------------------------------------------------- the checkers


def test_slow_gradcheck_catches_what_the_fast_one_accepts() -> None:
    layer, inputs = layer_of(MUTANTS["transpose-dV"].rule()), draw(0.02, 0)
    assert CHECKERS["gradcheck"](layer, inputs, 0) == "caught"
    assert CHECKERS["gradcheck fast"](layer, inputs, 0) == "accepted"


def test_allclose_accepts_what_is_below_its_absolute_tolerance() -> None:
    layer = layer_of(MUTANTS["x-path-V-only"].rule())
    assert CHECKERS["allclose"](layer, draw(1e-3, 0), 0) == "accepted"
    assert CHECKERS["allclose"](layer, draw(1.0, 0), 0) == "caught"
    assert CHECKERS["ours, exact"](layer, draw(1e-3, 0), 0) == "caught"


def test_the_handwritten_layer_runs_the_mutants_backward() -> None:
    inputs = [x.requires_grad_() for x in draw(0.3, 0)]
    rule = MUTANTS["query-key-zero"].rule()
    found = torch.autograd.grad(layer_of(rule)(*inputs).sum(), inputs)
    gradients = dict(zip(ARGUMENTS, found, strict=True))
    assert not gradients["W_Q"].any()
    assert gradients["W_V"].any()


def test_a_false_alarm_and_a_refusal_are_counted() -> None:
    trials = [Trial("allclose", 1.0, 0, RIGHT.id, "caught"), Trial("allclose", 1.0, 0, PEERS[0], "refused")]
    result = BenchVerify(trials, {name: [1.0] for name in CHECKERS}, (1.0,))
    assert result.false_alarms("allclose") == (1, 1)
    assert result.caught("allclose", 1.0) == [0]
    assert "allclose refused 1 times" in str(result)


def test_counts_are_by_seed() -> None:
    trials = [
        Trial("allclose", 1.0, seed, m, "caught" if seed else "accepted") for seed in (0, 1) for m in PEERS
    ]
    result = BenchVerify(trials, {name: [1.0] for name in CHECKERS}, (1.0,), (0, 1))
    assert result.caught("allclose", 1.0) == [0, 14]
    assert result.caught("gradcheck", 1.0) is None
    assert "0–14" in str(result)
