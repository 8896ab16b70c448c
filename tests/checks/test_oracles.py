"""Every oracle passes the right rules and rejects a wrong one, and says where it is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gradderiv.checks.catalog import RULES, Rule
from gradderiv.checks.oracles import ORACLES
from gradderiv.checks.problems import PROBLEMS
from gradderiv.checks.report import Record

F64, F32, BF16 = "float64", "float32", "bfloat16"
Change = Callable[[Tensor], Tensor]


def wrong_gradient(rule: str, argument: str, change: Change, part: str = "gradients") -> Rule:
    """The right rule with one gradient changed; or, for part "second", the tangent of one gradient."""
    right = getattr(RULES[rule], part)

    def changed(*args: object) -> dict[str, Tensor]:
        g = right(*args)
        return {**g, argument: change(g[argument])}

    return replace(RULES[rule], **{part: changed})


def wrong_value(rule: str, change: Change, part: str = "value") -> Rule:
    right = getattr(RULES[rule], part)
    return replace(RULES[rule], **{part: lambda *args: change(right(*args))})


def half_of_head_1(g: Tensor) -> Tensor:
    """Columns 2 and 3 are those of head 1 where d_k = 2."""
    g = g.clone()
    g[:, 2:4] = g[:, 2:4] * 0.5
    return g


def without_row_1(g: Tensor) -> Tensor:
    keep = torch.ones(g.shape[-2], 1, dtype=torch.float64)
    keep[1] = 0
    return g * keep


def with_a_leak_in_row_1(g: Tensor) -> Tensor:
    leak = torch.zeros(g.shape[-2], 1, dtype=g.dtype)
    leak[1] = 1
    return g + leak


def run(oracle: str, problem: str, rule: Rule | None = None, seed: int = 0) -> list[Record]:
    p = PROBLEMS[problem]
    return ORACLES[oracle](rule or RULES[p.rule], p, seed)


# ---------------------------------------------------------------- right rules pass

APPLIES = [
    ("forward", "softmax-masked"), ("forward", "scale-bias"),
    ("autograd", "linear"), ("autograd", "attention-options"), ("autograd", "h-equals-n"),
    ("finite differences", "softmax-masked"), ("finite differences", "scale-bias"),
    ("dual", "attention-options"), ("dual", "linear"),
    ("field", "grouped"), ("field", "attention-one-key"),
    ("second order", "softmax-masked"), ("second order", "attention"),
    ("sympy", "tiny-attention"), ("sympy", "tiny-linear"),
    ("blockdiag", "h-equals-n"), ("blockdiag", "one-token"),
    ("identities", "attention-options"), ("identities", "h-equals-n"),
]  # fmt: skip


@pytest.mark.parametrize(("oracle", "problem"), APPLIES)
def test_a_right_rule_passes(oracle: str, problem: str) -> None:
    records = run(oracle, problem)
    assert records
    assert {r.verdict for r in records} == {"pass"}


def test_each_oracle_is_tried() -> None:
    assert {oracle for oracle, _ in APPLIES} == set(ORACLES) == {oracle for oracle, *_ in WRONG}


@pytest.mark.parametrize(
    ("oracle", "problem"),
    [
        ("sympy", "self"),  # not tiny
        ("second order", "block-self"),  # the rule has no second order
        ("blockdiag", "block-self"),  # compared with itself
        ("blockdiag", "grouped"),  # the formulation has one key head for each query head
        ("blockdiag", "causal-batch"),
        ("blockdiag", "scale-bias"),
        ("blockdiag", "linear"),
        ("finite differences", "saturated"),
    ],
)
def test_an_oracle_that_does_not_apply_says_nothing(oracle: str, problem: str) -> None:
    assert run(oracle, problem) == []


# ---------------------------------------------------------------- wrong rules fail, located

#: oracle, problem, wrong rule, argument of the failing records, what each of them says
WRONG = [
    (
        "forward", "attention-options", wrong_value("attention", lambda Y: 2**0.5 * Y), "Y, loops",
        "Every wrong entry is 1.414 × the right one (= √2): is the scale missing?",
    ),
    (
        "autograd", "cross-masked", wrong_gradient("multihead", "W_K", half_of_head_1), "W_K",
        "26 of 78 entries wrong: head 1 only.",
    ),
    (
        "autograd", "grouped", wrong_gradient("multihead", "W_V", half_of_head_1), "W_V",
        "14 of 28 entries wrong: head 1 only.",
    ),
    (
        "autograd", "attention-options", wrong_gradient("attention", "Q", with_a_leak_in_row_1), "Q",
        "18 of 90 entries wrong: row 1 only, which may attend to nothing.",
    ),
    (
        "finite differences", "cross-masked", wrong_gradient("multihead", "W_K", half_of_head_1), "W_K",
        "26 of 78 entries wrong: head 1 only.",
    ),
    ("dual", "attention", wrong_gradient("attention", "V", torch.neg), "V", "every entry is -1 × the right one"),
    ("dual", "softmax", wrong_value("softmax", lambda Y: 2 * Y, "tangent"), "jvp", "every entry is 2 × the right one"),
    (
        "field", "grouped", wrong_gradient("multihead", "W_V", half_of_head_1), "W_V",
        "14 of 28 entries differ: head 1 only",
    ),
    (
        "second order", "attention", wrong_gradient("attention", "K", torch.neg, "second"), "K",
        "every entry is -1 × the right one",
    ),
    (
        "sympy", "tiny-attention", wrong_gradient("attention", "K", without_row_1), "K",
        "2 of 6 entries differ: row 1 only",
    ),
    (
        "blockdiag", "h-equals-n", wrong_gradient("multihead", "W_O", lambda g: 3 * g), "W_O",
        "40 of 40 entries differ; every entry is 3 × the right one",
    ),
    (
        "identities", "attention-options", wrong_gradient("attention", "bias", lambda g: g + 1), "rowsum(dbias) = 0",
        "3 of 3 entries differ",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("oracle", "problem", "rule", "argument", "says"), WRONG, ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_wrong_rule_fails_and_is_located(
    oracle: str, problem: str, rule: Rule, argument: str, says: str
) -> None:
    records = run(oracle, problem, rule)
    failures = [r for r in records if r.verdict == "fail"]
    assert argument in {r.argument for r in failures}
    about = [r for r in failures if r.argument == argument]
    assert says in " ".join(r.detail for r in about)
    assert all(r.worst_index is not None for r in about)
    if oracle not in ("forward", "identities"):
        assert {r.argument for r in failures} == {argument}


def test_every_type_and_number_sees_a_wrong_head() -> None:
    rule = wrong_gradient("multihead", "W_K", half_of_head_1)
    failures = [r for r in run("autograd", "cross-masked", rule) if r.verdict == "fail"]
    assert {r.dtype for r in failures} == {F64, F32, BF16}
    both = run("second order", "attention", wrong_gradient("attention", "K", torch.neg, "second"))
    assert {r.number for r in both if r.verdict == "fail"} == {"float", "field"}


def test_a_wrong_forward_is_seen_by_the_reference_not_by_the_rules_own() -> None:
    """Value, tangent and gradients all of 2 f: right derivatives of a wrong function."""
    right = RULES["softmax"]
    twice = replace(
        right, value=lambda *a: 2 * right.value(*a), tangent=lambda *a: 2 * right.tangent(*a),
        gradients=lambda *a: {n: 2 * g for n, g in right.gradients(*a).items()},
    )  # fmt: skip
    assert {r.verdict for r in run("forward", "softmax", twice)} == {"fail"}
    assert "fail" in {r.verdict for r in run("field", "softmax", twice)}
    exact = [r for r in run("dual", "softmax", twice) if r.number == "field"]
    assert {r.verdict for r in exact} == {"pass"}


# ---------------------------------------------------------------- gradients that cannot be compared


@pytest.mark.parametrize("oracle", sorted(set(ORACLES) - {"forward"}))
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: None, "no gradient was returned"),
        (lambda g: g.sum(0), "the shape is ({1},), should be ({0}, {1})"),
        (lambda g: g.unsqueeze(0), "the shape is (1, {0}, {1}), should be ({0}, {1})"),  # it would broadcast
    ],
)
def test_a_missing_or_misshapen_gradient_fails_and_nothing_raises(
    oracle: str, change: Callable[[Tensor], Tensor | None], says: str
) -> None:
    name, rule, argument = {"blockdiag": ("one-token", "multihead", "W_V")}.get(
        oracle, ("tiny-attention", "attention", "V")
    )
    shape = PROBLEMS[name].shapes[argument]
    part = "second" if oracle == "second order" else "gradients"
    right = getattr(RULES[rule], part)

    def changed(*args: object) -> dict[str, Tensor]:
        g = dict(right(*args))
        new = change(g.pop(argument))
        return g if new is None else {**g, argument: new}

    failures = [r for r in run(oracle, name, replace(RULES[rule], **{part: changed})) if r.verdict == "fail"]
    about = [r for r in failures if r.argument == argument]
    assert about
    assert {r.detail for r in about} == {says.format(*shape)}


# ---------------------------------------------------------------- what a record carries


@pytest.mark.parametrize(("oracle", "problem"), APPLIES)
def test_records_say_what_was_compared(oracle: str, problem: str) -> None:
    p = PROBLEMS[problem]
    records = run(oracle, problem)
    for r in records:
        assert (r.rule, r.problem, r.oracle) == (p.rule, problem, oracle)
        assert r.number in ("float", "field", "symbol")
        assert (r.failure_probability is not None) == (r.number != "float")
        if r.number == "field":
            assert 0 < r.failure_probability <= 2.0**-40
            assert r.dtype.startswith("F_p, ")
            assert r.seconds > 0
        elif r.number == "symbol":
            assert r.failure_probability == 0
        elif r.argument != "inputs unchanged":
            assert r.dtype in (F64, F32, BF16)
            assert 0 < r.tolerance < math.inf
            assert r.max_abs_error <= r.tolerance
            assert r.worst_index is not None
            assert r.detail
    if oracle in ("autograd", "finite differences", "blockdiag", "sympy"):
        assert {r.argument for r in records} == set(p.shapes)
    if oracle == "dual":
        assert {r.argument for r in records if r.number == "field"} == {"all arguments", "jvp"}
    if oracle in ("field", "second order"):
        assert {r.argument for r in records if r.number == "field"} - {"Y", "jvp"} == set(p.shapes)
    if oracle == "forward":
        assert [r.argument for r in records] == ["Y, loops", "Y, torch"]
    if oracle == "autograd":
        assert list(dict.fromkeys(r.dtype for r in records)) == [F64, F32, BF16]


def test_known_zeros_are_tested_as_zeros() -> None:
    for r in run("autograd", "attention-one-key"):
        assert (r.detail == "exactly zero, and is") == (r.argument in ("Q", "K"))
    exact = {r.argument: r.detail for r in run("field", "attention-one-key")}
    assert exact["Q"] == exact["K"] == "identically zero"
    assert exact["V"] == "2 entries equal"
    nearly = wrong_gradient("attention", "Q", lambda g: g + 1e-6)
    assert {r.argument for r in run("autograd", "attention-one-key", nearly) if r.verdict == "fail"} == {"Q"}


def test_a_vacuous_verdict_is_expected_where_the_problem_says_so() -> None:
    records = run("autograd", "saturated")
    vacuous = [r for r in records if r.verdict == "vacuous"]
    assert vacuous
    assert all(r.expected for r in vacuous)
    assert not any(r.expected for r in records if r.verdict == "pass")
    strict = replace(PROBLEMS["saturated"], vacuous=())
    unsaid = [r for r in ORACLES["autograd"](RULES["multihead"], strict, 0) if r.verdict == "vacuous"]
    assert not any(r.expected for r in unsaid if r.dtype == F64)


def test_what_a_narrow_type_cannot_show_is_expected_if_a_wider_one_does() -> None:
    strict = replace(PROBLEMS["peaked"], vacuous=())

    def vacuous(*dtypes: torch.dtype) -> list[Record]:
        records = ORACLES["autograd"](RULES["multihead"], strict, 0, dtypes=dtypes)
        return [r for r in records if r.verdict == "vacuous"]

    beside = vacuous(torch.bfloat16, torch.float64)
    assert {r.dtype for r in beside} == {BF16}
    assert all(r.expected and r.detail.endswith("; float64 shows it") for r in beside)
    alone = vacuous(torch.bfloat16)
    assert [r.argument for r in alone] == [r.argument for r in beside]
    assert not any(r.expected or "shows it" in r.detail for r in alone)


# ---------------------------------------------------------------- seeds and threads


@pytest.mark.parametrize(
    ("oracle", "problem"),
    [
        ("autograd", "causal-batch"),
        ("finite differences", "self"),
        ("field", "self"),
        ("dual", "linear-batch"),
    ],
)
def test_the_same_seed_gives_the_same_records_whatever_the_threads(oracle: str, problem: str) -> None:
    def told(threads: int, seed: int) -> list[Record]:
        torch.set_num_threads(threads)
        return [replace(r, seconds=0.0) for r in run(oracle, problem, seed=seed)]

    one = told(1, 5)
    assert told(4, 5) == one
    assert told(1, 5) == one


@pytest.mark.parametrize("oracle", ["autograd", "finite differences"])
def test_another_seed_draws_other_values(oracle: str) -> None:
    errors = [
        {r.argument: r.max_abs_error for r in run(oracle, "self", seed=s) if r.dtype == F64} for s in (0, 1)
    ]
    assert all(errors[0][a] != errors[1][a] for a in ("X", "W_Q", "W_V"))


def test_other_types_can_be_asked_for() -> None:
    p = PROBLEMS["linear"]
    records = ORACLES["autograd"](RULES["linear"], p, 0, dtypes=[torch.float16])
    assert {(r.dtype, r.verdict) for r in records} == {("float16", "pass")}
