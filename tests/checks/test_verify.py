"""verify(): what is chosen, what is refused, and a wrong rule from the table to the command that replays it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import gradderiv
from gradderiv.checks.catalog import RULES, Rule
from gradderiv.checks.oracles import ORACLES
from gradderiv.checks.problems import PROBLEMS
from gradderiv.checks.report import Record, Report
from gradderiv.checks.verify import CASES, QUICK, verify
from gradderiv.cli import main
from gradderiv.errors import InputError


@pytest.fixture(scope="module")
def quick() -> Iterator[Report]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield verify(quick=True, seed=5)
    torch.set_num_threads(threads)


def without_times(report: Report) -> list[Record]:
    return [replace(r, seconds=0.0) for r in report.records]


# ---------------------------------------------------------------- right rules


def test_the_rules_pass(quick: Report) -> None:
    assert quick.passed
    assert quick.exit_status == 0
    assert quick.failures == quick.vacuous == []
    assert quick.seed == 5
    assert quick.seconds > 0
    assert quick.failure_probability <= 2.0**-40


def test_quick_meets_every_rule_and_every_oracle(quick: Report) -> None:
    assert {r.rule for r in quick.records} == set(RULES)
    assert {r.oracle for r in quick.records} == set(ORACLES)
    assert {r.number for r in quick.records} == {"float", "field", "symbol"}
    assert {r.problem for r in quick.records} == set(QUICK) <= set(PROBLEMS)


def test_every_record_carries_its_command(quick: Report) -> None:
    for r in quick.records:
        words = shlex.split(r.replay)
        assert words[:2] == ["gradderiv", "verify"]
        assert words[2:] == ["--problem", r.problem, "--oracle", r.oracle, "--seed", "5"]


def test_it_is_the_public_function() -> None:
    assert gradderiv.verify is verify


# ---------------------------------------------------------------- what is chosen


@pytest.mark.parametrize(
    ("asked", "rules", "oracles", "problems", "dtypes"),
    [
        ({"rules": "linear", "oracles": "forward"}, {"linear"}, {"forward"}, {"linear", "linear-batch", "tiny-linear"}, {"float64"}),
        ({"rules": ["softmax", "linear"], "oracles": ["forward"], "quick": True}, {"softmax", "linear"}, {"forward"},
         {"linear", "softmax-masked"}, {"float64"}),
        ({"problems": "tiny-linear", "oracles": ["autograd", "sympy"], "dtypes": [torch.float32]}, {"linear"}, {"autograd", "sympy"},
         {"tiny-linear"}, {"float32", "SymPy"}),
        ({"problems": ["softmax", "attention"], "oracles": "autograd", "rules": "softmax"}, {"softmax"}, {"autograd"}, {"softmax"},
         {"float64", "float32", "bfloat16"}),
        ({"rules": "blockdiag", "oracles": "published"}, {"blockdiag"}, {"published"}, None, None),
    ],
)  # fmt: skip
def test_only_what_is_asked_for(
    asked: dict[str, Any],
    rules: set[str],
    oracles: set[str],
    problems: set[str] | None,
    dtypes: set[str] | None,
) -> None:
    report = verify(**asked)
    assert {r.rule for r in report.records} == rules
    assert {r.oracle for r in report.records} == oracles
    assert problems is None or {r.problem for r in report.records} == problems
    assert dtypes is None or {r.dtype for r in report.records} == dtypes
    assert report.passed


@pytest.mark.parametrize(
    "asked",
    [
        {"problems": "self", "rules": "linear"},
        {"problems": "self", "oracles": "sympy"},
        {"problems": "linear", "oracles": "published"},
        {"rules": "softmax", "oracles": "full size"},
        {"rules": []},
    ],
)
def test_where_nothing_applies_nothing_is_shown(asked: dict[str, Any]) -> None:
    report = verify(**asked)
    assert report.records == []
    assert (report.verdict, report.exit_status) == ("vacuous", 3)
    assert "nothing was compared" in str(report)


def test_a_case_replays_under_the_rule_it_is_for() -> None:
    (command,) = {r.replay for r in verify("blockdiag", "published", seed=3).records}
    assert command == "gradderiv verify blockdiag --oracle published --seed 3"
    assert set(CASES) == {"full size", "torch layer", "published", "transformers"}
    assert {rule for cases in CASES.values() for rule in cases} <= set(RULES)


@pytest.mark.parametrize(
    ("asked", "kind", "near"),
    [
        ({"rules": "multhead"}, "rule", "multihead"),
        ({"rules": ["linear", "sofmax"]}, "rule", "softmax"),
        ({"oracles": "autgrad"}, "oracle", "autograd"),
        ({"oracles": "finite-differences"}, "oracle", "finite differences"),
        ({"problems": "cross_masked"}, "problem", "cross-masked"),
    ],
)
def test_an_unknown_name_is_refused_and_a_near_one_offered(
    asked: dict[str, Any], kind: str, near: str
) -> None:
    with pytest.raises(InputError) as caught:
        verify(**asked)
    text = str(caught.value)
    assert text.startswith(f"gradderiv knows no {kind} '")
    assert "cause: another spelling" in text
    assert near in text.partition("do:")[2]


def test_a_name_like_no_other_gets_the_whole_list() -> None:
    with pytest.raises(InputError) as caught:
        verify("zzz")
    assert str(caught.value).endswith(f"do:    one of {', '.join(RULES)}")


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta", ""])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(InputError, match="needs a device that torch can use") as caught:
        verify("linear", device=device)
    assert repr(device) in str(caught.value)
    assert "leave --device out" in str(caught.value)


# ---------------------------------------------------------------- manners


def test_progress_is_told() -> None:
    told: list[tuple[int, int, str]] = []
    verify("linear", ["forward", "autograd"], progress=lambda *step: told.append(step))
    total = 2 * 3
    assert [done for done, _, _ in told] == list(range(total + 1))
    assert {of for _, of, _ in told} == {total}
    assert told[0][2] == "linear · forward"
    assert told[-1] == (total, total, "")


def test_the_same_seed_gives_the_same_records_whatever_the_threads() -> None:
    def told(seed: int, threads: int) -> list[Record]:
        torch.set_num_threads(threads)
        return without_times(
            verify(problems=["attention-options", "h-equals-n"], oracles=["autograd", "field"], seed=seed)
        )

    assert told(7, 1) == told(7, 2)
    other = [r.max_abs_error for r in told(8, 1) if r.number == "float"]
    assert other != [r.max_abs_error for r in told(7, 1) if r.number == "float"]


def test_threads_random_numbers_and_default_type_are_left_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float32)
    before = torch.get_rng_state()
    assert verify(["linear", "blockdiag"], ["autograd", "published"]).passed
    assert torch.equal(torch.get_rng_state(), before)
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (2, torch.float32)

    def interrupted(*_: Any, **__: Any) -> list[Record]:
        torch.manual_seed(1)
        raise KeyboardInterrupt

    monkeypatch.setitem(ORACLES, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verify("linear", "forward")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == 2


def test_it_is_silent_but_for_its_logger(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="gradderiv"):
        verify("linear", "forward")
    assert capsys.readouterr() == ("", "")
    assert [r.message for r in caplog.records if r.message.startswith("verify ")] == [
        f"verify {name} · forward" for name in ("linear", "linear-batch", "tiny-linear")
    ]


# ---------------------------------------------------------------- a wrong rule


def wrong_rule(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Rule:
    right = RULES["multihead"].gradients
    return replace(RULES["multihead"], gradients=lambda *a: change(right(*a)))


def scale_twice_in_head_2(g: dict[str, Tensor]) -> dict[str, Tensor]:
    """d_k is 2 in cross-masked: the columns 4 and 5."""
    W_K = g["W_K"].clone()
    W_K[:, 4:6] *= 2**-0.5
    return {**g, "W_K": W_K}


def test_a_wrong_rule_fails_is_located_and_can_be_replayed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RULES, "multihead", wrong_rule(scale_twice_in_head_2))
    report = verify("multihead", ["forward", "autograd", "field"], problems="cross-masked", seed=3)
    assert (report.verdict, report.passed, report.exit_status) == ("fail", False, 1)
    assert {r.argument for r in report.failures} == {"W_K"}
    assert {r.oracle for r in report.failures} == {"autograd", "field"}  # the value is right
    first = report.failures[0]
    assert (first.rule, first.problem, first.argument, first.dtype) == (
        "multihead",
        "cross-masked",
        "W_K",
        "float64",
    )
    assert first.detail.startswith("26 of 78 entries wrong: head 2 only. Worst entry [")
    assert first.detail.endswith("is 0.7071 × the right one (= 1/√2): is the scale applied twice?")
    assert first.worst_index is not None
    assert first.worst_index[1] in (4, 5)

    command = shlex.split(first.replay)
    assert command == [
        "gradderiv",
        "verify",
        "--problem",
        "cross-masked",
        "--oracle",
        "autograd",
        "--seed",
        "3",
    ]
    assert main(command[1:]) == 1
    again = " ".join(capsys.readouterr().out.split())
    assert first.detail in again
    monkeypatch.undo()
    assert main(command[1:]) == 0
    assert "FAIL" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: {k: v for k, v in g.items() if k != "W_K"}, "no gradient was returned"),
        (lambda g: {**g, "W_K": g["W_K"].mT}, "the shape is (6, 13), should be (13, 6)"),
    ],
)
def test_a_gradient_that_cannot_be_compared_is_a_failure_not_a_crash(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, "multihead", wrong_rule(change))
    report = verify(problems="cross-masked", oracles=["autograd", "dual", "field", "identities"])
    assert {r.argument for r in report.failures} == {"W_K"}
    assert {r.detail for r in report.failures} == {says}
    assert {r.oracle for r in report.failures} == {"autograd", "dual", "field", "identities"}
