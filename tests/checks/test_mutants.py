"""The wrong-on-purpose layers: complete, declared in full, and wrong in the named stage only."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gradderiv.checks.mutants import MUTANTS, PEERS, RIGHT, Layer, Mutant, stages
from gradderiv.checks.mutants import mutant as declared
from gradderiv.checks.oracles import ORACLES
from gradderiv.checks.problems import PROBLEMS
from gradderiv.checks.reference import TORCH

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
    assert set(MUTANTS) == {*MISTAKES, *VARIANTS}
    assert not set(MISTAKES) & set(VARIANTS)


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
    assert must
    if mutant.kind == "formula":
        assert {"field", "autograd"} < must


@every_mutant
def test_a_wrong_backward_has_the_right_value(mutant: Mutant) -> None:
    forward = set(mutant.stages) & set(stages.FORWARD)
    assert bool(forward) == (mutant.kind in {"forward", "float"})
    if forward:
        return
    problem = PROBLEMS[mutant.problems[0]]
    args, _ = problem.floats(0, torch.float64)
    value = mutant.rule().value(args, problem.options)
    assert torch.equal(value, RIGHT.rule().value(args, problem.options))


@pytest.mark.parametrize("name", [n for n, p in PROBLEMS.items() if p.rule == "multihead"])
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


def test_completeness_can_fail() -> None:
    silent = dataclasses.replace(MUTANTS["transpose-dK"], kills=frozenset({"field"}))
    assert not silent.must("autograd")
    assert not silent.reason("autograd")
