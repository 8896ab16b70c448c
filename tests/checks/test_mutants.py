"""The wrong-on-purpose rules: complete, declared in full, and wrong in the named term only."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gradderiv.checks.catalog import RULES
from gradderiv.checks.mutants import MUTANTS, PEERS, RIGHT, SUBJECTS, Layer, Mutant, operators, stages
from gradderiv.checks.mutants import mutant as declared
from gradderiv.checks.oracles import ORACLES
from gradderiv.checks.problems import PROBLEMS
from gradderiv.checks.reference import TORCH
from gradderiv.rules.options import PARTS
from gradderiv.rules.softmax_lse import softmax_lse_vjp

# The list of mistakes, typed by hand.
MISTAKES = [
    "softmax-diagonal",
    "softmax-no-rowsum",
    "softmax-flattened",
    "softmax-axis",
    "delta-strides",
    "scale-missing",
    "scale-model",
    "scale-inverted",
    "scale-heads",
    "scale-twice",
    "transpose-dK",
    "transpose-dV",
    "swap-dQ-dK",
    "heads-permuted",
    "head-reshape",
    "x-path",
    "bias-mean",
    "gqa-no-sum",
    "gqa-tile",
    "gqa-divisor",
    "mask-ignored-backward",
    "mask-polarity",
    "mask-added-twice",
    "mask-finite",
    "mask-overflow",
    "mask-row-uniform",
    "mask-from-zero",
    "epsilon",
    "tail-block",
    "zero-vjp",
    "vjp-inplace",
    "layout-contiguous",
    "rope-not-inverted",
    "rope-order",
    "rope-tail",
    "rope-pairing",
    "softcap-argument",
]

# The same slip elsewhere in the layer, and the stock cases of measured detection power that are no mistake of the list.
VARIANTS = [
    "scale-missing-forward",
    "scale-model-backward",
    "heads-permuted-dQ",
    "x-path-V",
    "x-path-V-only",
    "entry-too-large",
    "entry-wrong-sign",
    "query-key-zero",
    "tangent-no-rowsum",
    "second-saved-constant",
]

# Slips in the options of attention, in products and in embeddings: of the same kind, or of our own.
OPTIONS = [
    "layout-per-head",
    "layout-head-last",
    "layout-backward",
    "repeat-tile",
    "repeat-no-sum",
    "rope-table-mean",
    "tangent-rope",
    "second-rope",
    "rms-norm-diagonal",
    "rms-norm-epsilon",
    "second-rms-norm",
    "qk-norm-after-rope",
    "temperature-sum",
    "temperature-sign",
    "tangent-temperature",
    "second-temperature",
    "softcap-passed",
    "softcap-last",
    "second-softcap",
    "alibi-no-distance",
    "alibi-upper-left",
    "t5-overwritten",
    "t5-heads",
    "bias-broadcast-mean",
    "fill-leak",
    "fill-doubled",
    "fill-added-twice",
    "sinks-no-gradient",
    "sinks-delta",
    "sinks-per-group",
    "tangent-sinks",
    "second-sinks",
    "lse-dropped",
    "lse-without-P",
    "weights-dropped",
    "softmax-row-uniform",
    "softmax-narrow",
    "dropout-scale",
    "dropout-redrawn",
    "dropout-ignored",
    "dropout-undropped",
    "cache-no-gradient",
    "cache-cut",
    "tangent-cache",
    "matmul-no-sum",
    "matmul-row",
    "embedding-overwritten",
    "embedding-mean",
    "graph-directed",
    "graph-padding",
    "graph-duplicate",
    "norm-residual",
    "residual-lost",
    "norm-gain-offset",
    "layer-norm-no-mean",
    "second-layer-norm",
    "gelu-other",
    "relu-gate",
    "second-activation",
    "gate-swapped",
]

# What no oracle can notice, and says why.
BEYOND = ["softmax-narrow"]

FOURTEEN = [
    "softmax-diagonal",
    "softmax-no-rowsum",
    "scale-missing",
    "scale-model-backward",
    "transpose-dK",
    "transpose-dV",
    "swap-dQ-dK",
    "heads-permuted-dQ",
    "x-path-V",
    "x-path-V-only",
    "entry-too-large",
    "entry-wrong-sign",
    "query-key-zero",
    "bias-mean",
]

every_mutant = pytest.mark.parametrize("mutant", MUTANTS.values(), ids=list(MUTANTS))


def test_every_mistake_of_the_list_has_a_mutant_and_no_mutant_is_off_the_list() -> None:
    every = [*MISTAKES, *VARIANTS, *OPTIONS]
    assert set(MUTANTS) == set(every)
    assert len(set(every)) == len(every)
    assert sum(map(len, SUBJECTS.values())) == len(MUTANTS), "an id used twice"


def test_the_fourteen_in_their_order() -> None:
    assert list(PEERS) == FOURTEEN


def test_the_declared_oracles_are_the_oracles_there_are() -> None:
    assert set(ORACLES) == declared.ORACLES


@every_mutant
def test_every_cell_has_either_a_kill_or_a_reason(mutant: Mutant) -> None:
    assert mutant.kills <= set(ORACLES)
    assert set(mutant.problems) | set(mutant.elsewhere.values()) <= set(PROBLEMS)
    for oracle in ORACLES:
        assert mutant.must(oracle) != bool(mutant.reason(oracle)), oracle
    assert not mutant.kills & set(mutant.reasons), "a kill with a reason not to"


@every_mutant
def test_a_mutant_says_what_it_is(mutant: Mutant) -> None:
    assert mutant.what
    assert mutant.seen
    assert "\n" not in mutant.what
    assert mutant.kind in {"formula", "forward", "float", "aliasing", "tangent", "second"}
    assert mutant.stages


@every_mutant
def test_somebody_must_kill_every_mutant(mutant: Mutant) -> None:
    must = {o for o in ORACLES if mutant.must(o)}
    assert bool(must) != (mutant.id in BEYOND)
    if mutant.kind == "formula":
        assert {"field", "autograd"} < must
    if mutant.kind in {"forward", "float"} and must:
        assert "field" in must
    if mutant.kind == "tangent":
        assert "dual" in must
    if mutant.kind == "second":
        assert must == {"second order"}


@every_mutant
def test_a_mutant_is_wrong_in_its_own_term_and_right_before_it(mutant: Mutant) -> None:
    problem = PROBLEMS[mutant.problems[0]]
    wrong, right = mutant.on(problem), RIGHT.on(problem)
    (args, dY), (dots, dY_dot) = (problem.floats(0, torch.float64, role=r) for r in ("", "tangent"))
    tangent, second = (getattr(wrong, name) or getattr(right, name) for name in ("tangent", "second"))
    passes = {
        "forward": lambda r: [r.value(args, problem.options)],
        "formula": lambda r: list(r.gradients(args, problem.options, dY.clone()).values()),
        "tangent": lambda r: [r.tangent(args, problem.options, dots)],
        "second": lambda r: list(r.second(args, problem.options, dY, dY_dot, dots).values()),
    }
    assert tangent
    assert second
    unlike = {name for name, run in passes.items() if not all(map(torch.equal, run(wrong), run(right)))}
    expected = {
        "forward": {"forward", "formula"},
        "formula": {"formula"},
        "tangent": {"tangent"},
        "second": {"second"},
    }
    if (
        mutant.kind in {"float", "aliasing"} or mutant.id == "epsilon"
    ):  # too small to be seen here, or not there
        return
    assert expected[mutant.kind] <= unlike
    before = {
        "formula": {"forward", "tangent"},
        "tangent": {"forward", "formula"},
        "second": set(passes) - {"second"},
    }
    assert not unlike & before.get(mutant.kind, set())


@pytest.mark.parametrize("name", [n for n, p in PROBLEMS.items() if p.rule == "multihead" and p.plain])
def test_the_right_stages_are_torchs_layer_and_its_gradients(name: str) -> None:
    problem = PROBLEMS[name]
    args, dY = problem.floats(0, torch.float64)
    leaves = {n: x.clone().requires_grad_() for n, x in args.items()}
    Y = TORCH["multihead"](**leaves, **problem.options)
    expected = torch.autograd.grad(Y, list(leaves.values()), dY)
    found = RIGHT.rule().gradients(args, problem.options, dY)
    torch.testing.assert_close(RIGHT.rule().value(args, problem.options), Y.detach())
    for (argument, g), e in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(g, e, atol=1e-9 * float(dY.abs().max()), rtol=1e-7, msg=argument)


def test_stages_have_different_names_in_different_tables() -> None:
    names = [*stages.FORWARD, *stages.BACKWARD, *stages.TANGENT]
    assert len(names) == len(set(names))


def test_a_stage_that_does_not_exist_cannot_be_replaced() -> None:
    with pytest.raises(KeyError, match="no such stage: dT"):
        Layer({"dT": lambda c: c.dS})


@pytest.mark.parametrize(
    "name", ["tiny-rope", "rms-norm-row", "matmul-row", "tiny-embedding", "attend-sinks", "attend-decode", "fused-gpt2", "qwen-3"]
)  # fmt: skip
def test_with_nothing_exchanged_the_steps_are_the_rule(name: str) -> None:
    problem = PROBLEMS[name]
    assert operators.rule(problem.rule, {}) is RULES[problem.rule]
    through = operators.rule(problem.rule, {"steps": list})
    for oracle in ("forward", "autograd", "dual", "second order"):
        verdicts = [r.verdict for r in ORACLES[oracle](through, problem)]
        assert "pass" in verdicts, oracle
        assert "fail" not in verdicts, oracle


def test_a_value_as_a_plain_function_has_all_its_derivatives() -> None:
    problem = PROBLEMS["attend-softcap"]
    plain = operators.rule("attend", {"softcap.f": lambda S, softcap: softcap * torch.tanh(S / softcap)})
    for name, oracle in ORACLES.items():
        assert {r.verdict for r in oracle(plain, problem)} <= {"pass"}, name


def test_a_gradient_that_is_right_after_all_has_the_right_second_order() -> None:
    again = operators.rule("attend", {"softmax.vjp": softmax_lse_vjp})
    assert {r.verdict for r in ORACLES["second order"](again, PROBLEMS["attend-sinks"])} == {"pass"}


def test_a_wrong_rule_leaves_the_tables_as_they_are() -> None:
    before = list(PARTS), dict(operators.OPERATORS), dict(RULES)
    problem = PROBLEMS["attend-softcap"]
    args, dY = problem.floats(0, torch.float64)
    right = RULES["attend"].gradients(args, problem.options, dY)
    MUTANTS["softcap-passed"].on(problem).gradients(args, problem.options, dY)
    assert before == (PARTS, operators.OPERATORS, RULES)
    for name, g in RULES["attend"].gradients(args, problem.options, dY).items():
        assert torch.equal(g, right[name])


@pytest.mark.parametrize("key", ["softcup.vjp", "softcap.backward", "softcap", "dS"])
def test_a_function_that_does_not_exist_cannot_be_exchanged(key: str) -> None:
    with pytest.raises(KeyError, match=f"no such function of an operator: {key}"):
        operators.rule("attend", {key: torch.tanh})


def test_one_operator_has_one_wrong_function() -> None:
    with pytest.raises(KeyError, match=r"two functions of one operator: softcap\.jvp, softcap\.vjp"):
        operators.rule("attend", {"softcap.vjp": torch.tanh, "softcap.jvp": torch.tanh})


@pytest.mark.parametrize("name", operators.OPERATORS)
def test_every_operator_has_a_mutant(name: str) -> None:
    assert any(key.startswith(f"{name}.") for m in MUTANTS.values() for key in m.stages)


def test_completeness_can_fail() -> None:
    silent = dataclasses.replace(MUTANTS["transpose-dK"], kills=frozenset({"field"}))
    assert not silent.must("autograd")
    assert not silent.reason("autograd")
