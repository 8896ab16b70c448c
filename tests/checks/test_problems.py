"""The table of problems has a row for every way in which a real mistake got past real tests, and each row does what it promises."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch

from gradderiv import rules
from gradderiv.checks.catalog import RULES
from gradderiv.checks.oracles import against_autograd, field, identity
from gradderiv.checks.problems import PROBLEMS, Problem, causal, elements
from gradderiv.checks.reference import TEXTBOOK
from gradderiv.rules import attention, linear, multihead, softmax  # noqa: F401

F64 = torch.float64
FLOATS = [n for n, p in PROBLEMS.items() if p.rule != "blockdiag"]


def sizes(p: Problem) -> dict[str, int]:
    """The sizes of a layer, read off its shapes."""
    h, h_kv = p.options["n_heads"], p.options.get("n_kv_heads") or p.options["n_heads"]
    found = {
        "n": p.shapes["X"][-2], "d_model": p.shapes["X"][-1], "h": h, "d_k": p.shapes["W_Q"][1] // h,
        "d_v": p.shapes["W_V"][1] // h_kv, "d_out": p.output[-1],
    }  # fmt: skip
    if "X_kv" in p.shapes:
        found |= {"n_k": p.shapes["X_kv"][-2], "d_kv": p.shapes["X_kv"][-1]}
    return found


def distinct(values: list[int]) -> bool:
    return len(set(values)) == len(values)


def prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


def probabilities(p: Problem, seed: int = 0) -> torch.Tensor:
    """P of the first matrix of the layer, of attention, or of softmax."""
    args, _ = p.floats(seed, F64)
    if p.rule == "softmax":
        return softmax.softmax(**args, **p.options)[0]
    saved = RULES[p.rule] and getattr(getattr(rules, p.rule), p.rule)(**args, **p.options)[1]
    return saved.P if p.rule == "attention" else saved.heads.P


# ---------------------------------------------------------------- how real mistakes got past real tests


def never_a_constant_cotangent(p: Problem) -> bool:
    """Also a scaled one."""
    dY = p.floats(0, F64)[1]
    plain = all(float(q.floats(0, F64)[1].std()) > 0 for q in PROBLEMS.values() if math.prod(q.output) > 1)
    return plain and p.cotangent == "scaled" and float(dY.abs().median()) > 1e5


def unstructured_inputs(p: Problem) -> bool:
    """No two entries of any argument are equal, so no halves, rows or columns are."""
    return all(distinct(t.flatten().tolist()) for t in p.floats(0, F64)[0].values())


def one_part_of_the_output_alone(p: Problem) -> bool:
    rows = p.floats(0, F64)[1].reshape(-1, p.output[-1]).abs().sum(1)
    return int((rows > 0).sum()) == 1 and len(rows) > 1


def no_option_at_its_neutral_value(p: Problem) -> bool:
    d_k = p.shapes["Q"][-1] if "Q" in p.shapes else sizes(p)["d_k"]
    scale, mask = p.options["scale"], p.options["mask"]
    bias = p.floats(0, F64)[0]["bias"]
    some = bool(mask.any()) and not bool(mask.all())
    return (
        scale not in (1.0, d_k**-0.5)
        and some
        and bool((bias != 0).all())
        and bias.dim() == 3
        and bias.shape[0] == 3
    )


def distinct_sizes(p: Problem) -> bool:
    return distinct(list(sizes(p).values())) and not set(sizes(p).values()) & {1}


def heads_equal_length(p: Problem) -> bool:
    return sizes(p)["h"] == sizes(p)["n"]


def true_groups(p: Problem) -> bool:
    h, h_kv = p.options["n_heads"], p.options["n_kv_heads"]
    return 1 < h_kv < h and h % h_kv == 0 and h // h_kv != h_kv


def odd_and_prime_sizes(p: Problem) -> bool:
    return all(prime(s) and s % 2 for s in (sizes(p)[k] for k in ("n", "d_model", "h", "d_out")))


def inputs_are_looked_at_afterwards(p: Problem) -> bool:
    first, second = p.floats(0, F64), p.floats(0, F64)
    fresh = all(first[0][n].data_ptr() != second[0][n].data_ptr() for n in p.shapes)
    return fresh and "inputs unchanged" in {r.argument for r in identity(RULES[p.rule], p, 0)}


def peaked(p: Problem) -> bool:
    """Some rows have nearly decided, and not all have quite."""
    top = probabilities(p).amax(-1)
    return float(top.max()) > 0.99 and float(top.min()) < 1 - 1e-6


def small_weights(p: Problem) -> bool:
    """GPT-2's initialisation: an absolute tolerance of 10⁻³ would take zeros for dW_Q."""
    reference = against_autograd(RULES[p.rule], p, 0, F64)[1]
    weights = p.floats(0, F64)[0]["W_Q"]
    return 0.01 < float(weights.std()) < 0.03 and torch.allclose(
        torch.zeros_like(weights), reference["W_Q"], rtol=0, atol=1e-3
    )


def known_zeros(p: Problem) -> bool:
    return bool(p.zeros)


def saturates(p: Problem) -> bool:
    """Every row has decided, and dW_Q is nothing beside dW_V."""
    reference = against_autograd(RULES[p.rule], p, 0, F64)[1]
    gone = float(reference["W_Q"].abs().max()) < 1e-9 * float(reference["W_V"].abs().max())
    return (
        gone
        and bool((probabilities(p).amax(-1) > 1 - 1e-9).all())
        and p.vacuous == (F64, torch.float32, torch.bfloat16)
    )


#: a real case, the problem that has learned from it, and what that problem must be
LESSONS: list[tuple[str, str, Callable[[Problem], bool]]] = [
    ("loss was .sum(): apex #1750 wrote ones", "scaled-loss", never_a_constant_cotangent),
    ("sin tables with equal halves hid Paddle #74716", "self", unstructured_inputs),
    ("one of two outputs got no cotangent: quack #53", "one-row", one_part_of_the_output_alone),
    ("the option was pinned to neutral: flash-attention #2396", "scale-bias", no_option_at_its_neutral_value),
    (
        "the option was pinned to neutral: flash-attention #2396",
        "attention-options",
        no_option_at_its_neutral_value,
    ),
    ("heads == seq_len hid a transpose: diffusers #14338", "self", distinct_sizes),
    ("heads == seq_len hid a transpose: diffusers #14338", "cross-masked", distinct_sizes),
    ("heads == seq_len hid a transpose: diffusers #14338", "h-equals-n", heads_equal_length),
    ("MHA or MQA only hid the head map: onnx #7274", "grouped", true_groups),
    ("divisible sizes: attorch #18", "self", odd_and_prime_sizes),
    ("compared with itself: Liger #1305, #359", "cross-masked", inputs_are_looked_at_afterwards),
    ("Gaussian inputs too tame: TransformerEngine #3216", "peaked", peaked),
    ("Gaussian inputs too tame: TransformerEngine #3216", "softmax-peaked", peaked),
    ("atol hid everything at small init: gradcheck", "gpt2-init", small_weights),
    ("exact zeros raise false alarms (db_K)", "self", known_zeros),
    ("exact zeros raise false alarms (db_K)", "attention-one-key", known_zeros),
    ("at weight scale 30 a softmax saturates and dW_Q is all zero", "saturated", saturates),
]


@pytest.mark.parametrize(
    ("case", "problem", "holds"), LESSONS, ids=lambda x: x.__name__ if callable(x) else None
)
def test_a_real_mistake_has_its_problem(case: str, problem: str, holds: Callable[[Problem], bool]) -> None:
    assert holds(PROBLEMS[problem]), case


@pytest.mark.parametrize(
    ("holds", "tame"),
    [
        (never_a_constant_cotangent, "self"),
        (one_part_of_the_output_alone, "self"),
        (distinct_sizes, "h-equals-n"),
        (heads_equal_length, "self"),
        (odd_and_prime_sizes, "h-equals-n"),
        (peaked, "self"),
        (peaked, "saturated"),
        (peaked, "softmax"),
        (small_weights, "self"),
        (known_zeros, "h-equals-n"),
        (saturates, "peaked"),
    ],
)
def test_the_properties_are_not_those_of_any_problem(holds: Callable[[Problem], bool], tame: str) -> None:
    assert not holds(PROBLEMS[tame])


# ---------------------------------------------------------------- the table itself


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_row_is_complete(name: str) -> None:
    p = PROBLEMS[name]
    assert p.name == name
    assert p.rule in RULES
    assert p.why
    assert p.zeros <= set(p.shapes)
    args, dY = p.floats(0, F64)
    assert {n: tuple(t.shape) for n, t in args.items()} == p.shapes
    assert tuple(dY.shape) == p.output
    assert TEXTBOOK[p.rule](**args, **p.options).shape == dY.shape
    assert elements(p) == sum(t.numel() for t in args.values())
    assert elements(p) <= 1000  # a check of every entry stays quick


def test_every_rule_has_a_problem_for_every_number() -> None:
    for rule in RULES:
        assert {p.tiny for p in PROBLEMS.values() if p.rule == rule} == {True, False}


@pytest.mark.parametrize("rule", ["linear", "softmax", "attention", "multihead"])
def test_every_argument_of_every_rule_is_met_and_left_out(rule: str) -> None:
    parameters = inspect.signature(getattr(getattr(rules, rule), rule)).parameters.values()
    rows = [p for p in PROBLEMS.values() if p.rule == rule]
    for parameter in parameters:
        given = [parameter.name in {**p.shapes, **p.options} for p in rows]
        assert any(given), parameter.name
        assert parameter.default is inspect.Parameter.empty or not all(given), parameter.name


@pytest.mark.parametrize("name", FLOATS)
def test_the_zeros_are_those_that_are_declared(name: str) -> None:
    """Over the field: the gradient is identically zero for the arguments named, and for no other."""
    p = PROBLEMS[name]
    zero = {r.argument for r in field(RULES[p.rule], p, 0) if r.detail == "identically zero"}
    assert zero == p.zeros


@pytest.mark.parametrize(
    "name", ["softmax-masked", "attention-options", "cross-masked", "scale-bias", "block-cross"]
)
def test_a_mask_has_no_structure(name: str) -> None:
    mask = PROBLEMS[name].options["mask"]
    seen = mask[mask.any(-1)]
    assert int(seen.sum(-1).min()) >= 2  # a row of one key has gradient 0
    assert bool(mask.any(0).all())  # a key that nobody sees has gradient 0
    assert not bool(mask[:, 1:].all(0).any())
    for rows in (mask, mask.mT):
        assert distinct([tuple(r.tolist()) for r in rows])


def test_a_fully_masked_row_is_met() -> None:
    empty = {
        p.rule for p in PROBLEMS.values() if "mask" in p.options and not bool(p.options["mask"].any(-1).all())
    }
    assert empty == {"softmax", "attention", "multihead", "blockdiag"}
    assert causal(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


# ---------------------------------------------------------------- drawing


def test_the_same_seed_draws_the_same_values_and_another_other_ones() -> None:
    p = PROBLEMS["self"]
    before = torch.get_rng_state()
    (a, dY), (b, dZ) = p.floats(3, F64), p.floats(3, F64)
    assert torch.equal(dY, dZ)
    assert all(torch.equal(a[n], b[n]) for n in p.shapes)
    for other in (p.floats(4, F64), p.floats(3, F64, role="tangent"), PROBLEMS["one-row"].floats(3, F64)):
        assert not any(torch.equal(a[n], other[0][n]) for n in p.shapes)
    assert torch.equal(before, torch.get_rng_state())  # and nobody else's values change


def test_a_narrow_type_has_the_same_values_rounded() -> None:
    p = PROBLEMS["self"]
    wide, narrow = p.floats(0, F64)[0], p.floats(0, torch.bfloat16)[0]
    assert all(torch.equal(wide[n].bfloat16(), narrow[n]) for n in p.shapes)


def test_scale_is_the_standard_deviation_of_the_weights() -> None:
    for name, std in (("gpt2-init", 0.02), ("self", 0.35), ("peaked", 1.5), ("saturated", 30.0)):
        drawn = [PROBLEMS[name].floats(seed, F64)[0] for seed in range(20)]
        for argument, expected in (("W_Q", std), ("W_O", std), ("X", 1.0), ("b_Q", std / 100)):
            found = torch.stack([d[argument] for d in drawn]).std()
            assert float(found) == pytest.approx(expected, rel=0.2)


def test_draw_works_for_any_kind_of_number() -> None:
    args, dY = PROBLEMS["linear"].draw(lambda name, shape: (name, shape))
    assert args == {"X": ("X", (5, 3)), "W": ("W", (3, 7)), "b": ("b", (7,))}
    assert dY == ("dY", (5, 7))
