"""Each identity holds for the right rules, is violated by a suitable wrong gradient, and is asked for only where it is true."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gradderiv.checks.catalog import RULES, Rule
from gradderiv.checks.exact import Outcome, exactly
from gradderiv.checks.identities import IDENTITIES, Case, aliasing, identities
from gradderiv.checks.problems import PROBLEMS, Problem

LAYERS = ("self", "cross-masked", "grouped", "scale-bias", "h-equals-n", "one-token", "causal-batch")
SYSTEMS = ("llama", "qwen-3", "gpt-oss", "decode", "fused-gpt-neox")
OTHERS = ("linear", "softmax-masked", "attention-options", "attention-one-key", "rope-half", "rms-norm-heads", "attend-softcap",
          "attend-sinks", "attend-outputs", "attend-decode", "attend-fill-add")  # fmt: skip


def outcomes(identity: str, problem: str | Problem, rule: Rule | None = None) -> dict[str, Outcome]:
    p = PROBLEMS[problem] if isinstance(problem, str) else problem
    return exactly(lambda field: IDENTITIES[identity](Case(rule or RULES[p.rule], p, field)))


def of_the_right_rule(problem: str) -> dict[str, Outcome]:
    """All identities that apply, of one run."""
    p = PROBLEMS[problem]
    return exactly(lambda field: identities(RULES[p.rule], p, field))


def violated(identity: str, problem: str, rule: Rule) -> set[str]:
    return {name for name, outcome in outcomes(identity, problem, rule).items() if not outcome.equal}


Gradients = Mapping[str, Tensor]


def wrong(rule: str, change: Callable[[Gradients, Mapping[str, Tensor], Tensor], Gradients]) -> Rule:
    """The right rule with some of its gradients replaced by ``change(gradients, args, dY)``."""
    right = RULES[rule].gradients

    def gradients(args: Mapping[str, Tensor], options: Mapping[str, Any], dY: Tensor) -> dict[str, Tensor]:
        g = right(args, options, dY)
        return {**g, **change(g, args, dY)}

    return replace(RULES[rule], gradients=gradients)


# ---------------------------------------------------------------- they hold


WHOLE = (
    "layer-norm",
    "llama-layer",
    "gemma-layer",
    "gpt-2-layer",
    "gpt-neox-layer",
    "bert-layer",
    "vaswani-layer",
)


@pytest.mark.parametrize("problem", LAYERS + SYSTEMS + OTHERS + WHOLE)
def test_the_right_rules_satisfy_every_identity(problem: str) -> None:
    found = of_the_right_rule(problem)
    assert found
    for name, outcome in found.items():
        assert outcome.equal, name
        assert outcome.log2_failure <= -40


def test_the_block_diagonal_form_satisfies_every_identity() -> None:
    found = of_the_right_rule("tiny-block")
    assert "⟨dX, X⟩" in found
    assert all(o.equal for o in found.values())


# ---------------------------------------------------------------- where they are asked for

SELF = {"⟨dW_V, W_V⟩ = ⟨dW_O, W_O⟩", "⟨dW_Q, W_Q⟩ = ⟨dW_K, W_K⟩", "⟨dX, X⟩"}
CROSS = SELF | {"⟨dX_kv, X_kv⟩"}


@pytest.mark.parametrize(
    ("problem", "sums", "products", "heads", "tokens"),
    [
        ("linear", set(), set(), False, False),
        ("softmax-masked", {"rowsum(dS) = 0"}, set(), False, False),
        ("attention-options", {"rowsum(dbias) = 0"}, set(), False, False),
        ("self", {"db_K = 0"}, SELF, True, True),
        ("cross-masked", {"db_K = 0"}, CROSS, True, True),
        ("grouped", {"db_K = 0"}, SELF, True, True),
        ("scale-bias", {"rowsum(dbias) = 0"}, CROSS, True, True),
        ("one-token", set(), CROSS, False, True),  # one head
        ("causal-batch", {"db_K = 0"}, SELF, True, True),
        ("llama", set(), SELF, False, False),
        (
            "qwen-3",
            set(),
            SELF - {"⟨dW_Q, W_Q⟩ = ⟨dW_K, W_K⟩"},
            False,
            False,
        ),  # a norm does not see the length of a key
        (
            "gpt-oss",
            set(),
            SELF,
            False,
            False,
        ),  # keys shifted by b_K are rotated, and a sink beside them is not
        ("decode", set(), {"⟨dX, X⟩"}, False, False),  # of the cache there is no W_K
        ("attend-softcap", {"rowsum(dbias) = 0"}, set(), False, False),
        ("attend-outputs", set(), set(), False, False),  # lse moves with a shift of the scores
    ],
)
def test_an_identity_is_asked_for_where_it_is_true(
    problem: str, sums: set[str], products: set[str], heads: bool, tokens: bool
) -> None:
    arguments = set(PROBLEMS[problem].shapes)
    assert set(outcomes("zero sums", problem)) == sums
    assert set(outcomes("inner products", problem)) == products
    assert set(outcomes("heads", problem)) == ({f"heads turned, {a}" for a in arguments} if heads else set())
    assert set(outcomes("tokens", problem)) == (
        {f"tokens reversed, {a}" for a in arguments} if tokens else set()
    )
    linear = {f"vjp linear, {a}" for a in arguments} | {f"vjp(0) = 0, {a}" for a in arguments}
    assert set(outcomes("vjp linear", problem)) == linear


def test_the_conditions_are_needed() -> None:
    """Grouped heads turn with their group: turned one by one, as if each had a key/value head of its own, they do not."""

    class Unaware(Case):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.h_kv = self.h

    turned = exactly(lambda f: IDENTITIES["heads"](Unaware(RULES["multihead"], PROBLEMS["grouped"], f)))
    assert not all(o.equal for o in turned.values())


def test_a_mask_and_a_bias_for_each_head_turn_with_the_heads() -> None:
    """Self-attention, three heads, each with its own mask and bias; a mask for all of them does not turn."""
    plain = PROBLEMS["self"]
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 5, 5, generator=generator) < 0.7
    shapes = {**plain.shapes, "bias": (3, 5, 5)}
    problem = replace(plain, shapes=shapes, options={**plain.options, "mask": mask})
    for identity in IDENTITIES:
        found = outcomes(identity, problem)
        others = (
            "scaled scores",
            "norms",
            "whole layers",
        )  # of attention with options, of LayerNorm, of a layer with both
        assert bool(found) == (identity not in others)
        assert all(o.equal for o in found.values())


def test_a_bias_of_one_column_has_no_zero_row_sums() -> None:
    shapes = {**PROBLEMS["attention-options"].shapes, "bias": (3, 5, 1)}
    assert outcomes("zero sums", replace(PROBLEMS["attention-options"], shapes=shapes)) == {}


def test_inner_products_are_taken_head_by_head() -> None:
    assert outcomes("inner products", "self")["⟨dW_Q, W_Q⟩ = ⟨dW_K, W_K⟩"].wrong.shape == (3,)
    assert outcomes("inner products", "grouped")["⟨dW_Q, W_Q⟩ = ⟨dW_K, W_K⟩"].wrong.shape == (2,)

    def double_head_2(g: Gradients, args: Gradients, dY: Tensor) -> Gradients:
        W_K = g["W_K"].clone()
        W_K[:, 4:] = 2 * W_K[:, 4:]
        return {"W_K": W_K}

    found = outcomes("inner products", "self", wrong("multihead", double_head_2))
    assert found["⟨dW_Q, W_Q⟩ = ⟨dW_K, W_K⟩"].wrong.tolist() == [False, False, True]


# ---------------------------------------------------------------- they are violated


def scaled(argument: str, factor: float) -> Callable[..., Gradients]:
    return lambda g, args, dY: {argument: factor * g[argument]}


def shifted(argument: str) -> Callable[..., Gradients]:
    return lambda g, args, dY: {argument: g[argument] + 1}


VIOLATIONS = [
    ("vjp linear", "linear", lambda g, a, dY: {"b": g["b"] + (dY * dY).sum(-2)}, {"vjp linear, b"}),
    ("vjp linear", "linear", shifted("b"), {"vjp linear, b", "vjp(0) = 0, b"}),
    ("zero sums", "softmax-masked", shifted("S"), {"rowsum(dS) = 0"}),
    ("zero sums", "scale-bias", shifted("bias"), {"rowsum(dbias) = 0"}),
    ("zero sums", "self", shifted("b_K"), {"db_K = 0"}),
    ("inner products", "self", scaled("W_V", 2), {"⟨dW_V, W_V⟩ = ⟨dW_O, W_O⟩", "⟨dX, X⟩"}),
    ("inner products", "cross-masked", scaled("W_K", -1), {"⟨dW_Q, W_Q⟩ = ⟨dW_K, W_K⟩", "⟨dX_kv, X_kv⟩"}),
    ("inner products", "cross-masked", scaled("X", 2), {"⟨dX, X⟩"}),
    ("inner products", "grouped", scaled("W_O", 2), {"⟨dW_V, W_V⟩ = ⟨dW_O, W_O⟩"}),
    (
        "heads", "self", lambda g, a, dY: {"W_V": torch.cat([2 * g["W_V"][:, :4], g["W_V"][:, 4:]], 1)},
        {"heads turned, W_V"},
    ),
    (
        "heads", "grouped", lambda g, a, dY: {"W_O": torch.cat([2 * g["W_O"][:2], g["W_O"][2:]])},
        {"heads turned, W_O"},
    ),
    ("heads", "scale-bias", lambda g, a, dY: {"bias": g["bias"] * 2 + g["bias"][:1]}, {"heads turned, bias"}),
    ("tokens", "scale-bias", lambda g, a, dY: {"X": g["X"] + g["X"][:1]}, {"tokens reversed, X"}),
    ("tokens", "self", lambda g, a, dY: {"W_V": g["W_V"] + a["X"][0].unsqueeze(-1)}, {"tokens reversed, W_V"}),
    ("tokens", "cross-masked", lambda g, a, dY: {"X": g["X"] + g["X"][:1]}, {"tokens reversed, X"}),
    ("scaled scores", "attend-grouped", scaled("K", 2), {"⟨dQ, Q⟩ = ⟨dK, K⟩"}),
    ("scaled scores", "attend-temperature", scaled("temperature", -1), {"⟨dtemperature, temperature⟩"}),
    ("scaled scores", "pairs-01", scaled("sinks", 2), {"Σ dbias + dsinks = 0"}),
    ("scaled scores", "attend-qk-norm", scaled("gain_Q", 2), {"⟨dgain_Q, gain_Q⟩ = ⟨dgain_K, gain_K⟩"}),
    ("norms", "layer-norm", shifted("X"), {"rowsum(dX) = 0"}),
    ("whole layers", "llama-layer", scaled("W_V", 2), {"⟨dW_V, W_V⟩ = ⟨dW_O, W_O⟩", "⟨dγ_1, γ_1⟩"}),
    ("whole layers", "llama-layer", scaled("W_U", 2), {"⟨dW_U, W_U⟩ = ⟨dW_D, W_D⟩", "⟨dγ_2, γ_2⟩"}),
    ("whole layers", "gemma-layer", scaled("gain_1", 2), {"⟨dγ_1, γ_1⟩"}),
    ("whole layers", "gpt-neox-layer", scaled("shift_2", 2), {"⟨dγ_2, γ_2⟩"}),
    ("whole layers", "vaswani-layer", scaled("W_D", -1), {"⟨dW_U, W_U⟩ = ⟨dW_D, W_D⟩"}),
    ("whole layers", "bert-layer", scaled("b_Q", 2), {"⟨dW_Q, W_Q⟩ = ⟨dW_K, W_K⟩"}),
]  # fmt: skip


@pytest.mark.parametrize(("identity", "problem", "change", "names"), VIOLATIONS)
def test_a_wrong_gradient_violates_the_identity(
    identity: str, problem: str, change: Callable[..., Gradients], names: set[str]
) -> None:
    assert violated(identity, problem, wrong(PROBLEMS[problem].rule, change)) == names


def test_every_identity_has_been_violated() -> None:
    assert {identity for identity, *_ in VIOLATIONS} == set(IDENTITIES)


def test_what_identities_cannot_see() -> None:
    """Right derivatives of twice the layer: every identity holds, which is why other oracles stand beside them."""
    twice = wrong("multihead", lambda g, a, dY: {name: 2 * t for name, t in g.items()})
    assert not {v for identity in IDENTITIES for v in violated(identity, "self", twice)}


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "problem", ["linear", "softmax-masked", "attention-options", "self", "grouped", "tiny-block"]
)
def test_the_rules_change_nothing_and_share_nothing(problem: str) -> None:
    assert aliasing(RULES[PROBLEMS[problem].rule], PROBLEMS[problem], 0) == ""


def overwrites(name: str) -> Callable[..., Gradients]:
    def change(g: Gradients, args: Gradients, dY: Tensor) -> Gradients:
        {**args, "dY": dY}[name].mul_(2)
        return {}

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (overwrites("dY"), "dY was overwritten"),
        (overwrites("W"), "W was overwritten"),
        (lambda g, args, dY: {"X": args["X"]}, "the gradient of X shares memory with X"),
        (lambda g, args, dY: {"b": dY[0]}, "the gradient of b shares memory with dY"),
    ],
)
def test_overwriting_and_sharing_are_named(change: Callable[..., Gradients], says: str) -> None:
    assert aliasing(wrong("linear", change), PROBLEMS["linear"], 0) == says
