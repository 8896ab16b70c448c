"""``gradderiv bench prove``: what it counts, measures and prints. No time is asserted."""

from __future__ import annotations

import json

import pytest
import torch

from gradderiv.bench import prove as bench
from gradderiv.bench import sizes as module
from gradderiv.bench.apart import ended
from gradderiv.bench.checkers import PROVERS
from gradderiv.bench.layers import draw, layer_of
from gradderiv.bench.prove import LARGE, QUICK_SIZES, SIZES, BenchProve, bench_prove, run
from gradderiv.bench.prove_text import _sizes
from gradderiv.bench.shares import Shares, shares
from gradderiv.bench.sizes import AtSize, Size, apart, case, peak
from gradderiv.bench.verify import Trial
from gradderiv.checks.mutants import MUTANTS, PEERS, RIGHT

SMALL = Size(4, 8, 2)
TWO = tuple(PEERS)[:2]
STEPS: list[tuple[int, int, str]] = []


@pytest.fixture(scope="module")
def small() -> BenchProve:
    STEPS.clear()
    return bench_prove(
        0, 1, peers=TWO, sizes=[SMALL], profiled=SMALL, quick=True, progress=lambda *step: STEPS.append(step)
    )


def test_prove_refutes_what_fast_gradcheck_accepts(small: BenchProve) -> None:
    assert small.count("prove", "caught") == 2
    assert small.count("prove", "refused") == 0
    assert small.count("gradcheck fast", "accepted") == 2
    assert small.count("gradcheck", "caught") is None  # quick


def test_the_right_layer_is_proved_and_accepted(small: BenchProve) -> None:
    assert {name: small.right(name) for name in PROVERS} == dict.fromkeys(PROVERS, "accepted")


def test_every_checker_was_timed(small: BenchProve) -> None:
    assert all(small.median(name) > 0 for name in PROVERS)
    assert len(small.refuting) == 2
    assert {name: len(times) for name, times in small.tiny.items()} == {"prove": 20, "gradcheck": 20}


def test_a_size_is_proved_in_a_process_of_its_own(small: BenchProve) -> None:
    (at,) = small.sizes
    assert at.size == SMALL
    assert at.verdict == "proved"
    assert at.lanes >= 2
    assert at.log2_failure is not None
    assert at.log2_failure <= -40
    assert at.took > 0
    assert at.float_took > 0
    assert not at.trouble
    if at.peak is not None and at.before is not None:
        assert 10**7 < at.before <= at.peak


def test_the_tables_fit_a_terminal(small: BenchProve) -> None:
    text = str(small)
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if line.startswith("prove  "))
    assert row.split()[1:5] == ["2", "0", "0", "accepted"]
    assert "softmax(q kᵀ) v, n=3" in text
    assert "Where the time goes, at n=4, d_model=8, h=2" in text
    assert "not proved" not in text


def test_json_has_every_verdict_time_and_peak(small: BenchProve) -> None:
    document = json.loads(small.to_json())
    assert len(document["trials"]) == 3 * len(PROVERS) - 2
    assert set(document["times"]) == set(PROVERS)
    (at,) = document["sizes"]
    assert at["size"] == {"n": 4, "d_model": 8, "h": 2}
    assert {"verdict", "lanes", "log2_failure", "seconds", "floats", "peak", "jacobian"} <= set(at)
    assert document["shares"]["total"] > 0


def test_progress_counts_to_the_end_and_shows_the_steps_of_a_proof(small: BenchProve) -> None:
    assert sorted({done for done, _, _ in STEPS}) == list(range(STEPS[-1][1] + 1))
    assert len({total for _, total, _ in STEPS}) == 1
    assert STEPS[-1][0] == STEPS[-1][1]
    assert any(label.startswith("d_model=8: backward") for _, _, label in STEPS)


# ---------------------------------------------------------------- the parts


def test_an_inconclusive_proof_is_counted_on_its_own() -> None:
    trials = [
        Trial("prove", 0.02, 0, RIGHT.id, "accepted"),
        *(Trial("prove", 0.02, 0, m, "refused" if i else "caught") for i, m in enumerate(TWO)),
    ]
    result = BenchProve(trials)
    assert result.count("prove", "caught") == 1
    assert result.count("prove", "refused") == 1
    assert result.count("check", "caught") is None
    assert result.asked() == 2


@pytest.mark.parametrize("mutant", [RIGHT.id, "entry-wrong-sign"])
def test_the_checker_says_what_the_proof_says(mutant: str) -> None:
    rule = RIGHT.rule() if mutant == RIGHT.id else MUTANTS[mutant].rule()
    expected = "accepted" if mutant == RIGHT.id else "caught"
    assert PROVERS["prove"](layer_of(rule), draw(0.02, 0), 0) == expected


def test_the_layer_is_causal_and_has_all_parameters() -> None:
    state = torch.get_rng_state()
    layer, X = case(SMALL, 0)
    assert torch.equal(state, torch.get_rng_state())
    assert len(list(layer.parameters())) == 8
    changed = X.clone()
    changed[-1] += 1
    same = (layer(X) == layer(changed)).all(-1)
    assert same.tolist() == [True, True, True, False]


def test_the_jacobian_has_all_outputs_and_all_weights() -> None:
    layer, X = case(SMALL, 0)
    J = torch.autograd.functional.jacobian(
        lambda W: torch.func.functional_call(layer, {"W_Q": W}, (X,)), layer.W_Q
    )
    assert SMALL.jacobian == J.numel() * J.element_size()


def test_a_process_that_ends_badly_is_a_row_without_figures(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "__name__", "no_such_module")
    at = apart(SMALL)
    assert "no_such_module" in capfd.readouterr().err
    assert at == AtSize(SMALL, trouble="ended with status 1")
    result = BenchProve(times={}, sizes=[at])
    text = "\n".join(_sizes(result))
    assert f"{SMALL}: ended with status 1, not proved" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_killed_process_says_so() -> None:
    assert ended(-9) == "ended by signal 9"


@pytest.mark.skipif(peak() is None, reason="the system does not say")
def test_the_peak_is_of_this_process_and_never_falls() -> None:
    before = peak()
    held = bytearray(b"x" * 2**28)
    after = peak()
    assert before is not None
    assert after is not None
    assert after >= max(before, len(held))


def test_the_shares_of_a_proof_are_parts_of_it() -> None:
    found = shares(Size(8, 16, 2))
    parts = [found.of(part) for part in ("products", "reduction", "hashing", "rest")]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(1)


def test_shares_are_read_from_a_profile() -> None:
    found = Shares(SMALL, products=1.0, reduction=2.0, hashing=1.0, total=8.0)
    assert found.of("reduction") == 0.25
    assert found.of("rest") == 0.5


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, SIZES), ({"quick": True}, QUICK_SIZES), ({"quick": True, "large": True}, (*QUICK_SIZES, LARGE))],
)
def test_the_sizes_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, bool], expected: tuple[Size, ...]
) -> None:
    asked: list[tuple[Size, ...]] = []
    monkeypatch.setattr(bench, "bench_prove", lambda *args, sizes, **rest: asked.append(sizes))
    run(**options)
    assert asked == [expected]
