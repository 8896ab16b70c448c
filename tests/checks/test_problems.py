"""The table of problems has a row for every way in which a real mistake got past real tests, and each row does what it promises."""

from __future__ import annotations

import importlib
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
from gradderiv.rules import attention, multihead, options, softmax  # noqa: F401

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
    return saved.P if p.rule == "attention" else saved.values["P"]


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


def a_tail(p: Problem) -> bool:
    return 0 < p.shapes["cos"][-1] < p.shapes["X"][-1]


def every_output(p: Problem) -> bool:
    return set(p.options.get("outputs", ())) == {"O", "weights", "lse"}


def heads_that_share(p: Problem) -> bool:
    h, h_kv = p.shapes["Q"][-3], p.shapes["K"][-3]
    return 1 < h_kv < h and h // h_kv != h_kv


def broadcast_on_both_sides(p: Problem) -> bool:
    """Over heads and over queries, and not over the batch."""
    *scores, n_k = (*p.shapes["Q"][:-1], p.shapes["K"][-2])
    full = zip((*scores, n_k), p.shapes["bias"], strict=True)
    return [a != b for a, b in full] == [False, True, True, False]


def fewer_queries_than_keys(p: Problem) -> bool:
    return p.shapes["Q"][-2] < p.shapes["K"][-2] and bool({"slopes", "table"} & p.shapes.keys())


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
    ("sin tables with equal halves hid Paddle #74716", "rope-half", unstructured_inputs),
    ("a gradient for the columns that do not turn: apex #1750", "rope-half", a_tail),
    ("one of two outputs got no cotangent: quack #53", "attend-outputs", every_output),
    ("MHA or MQA only hid the head map: onnx #7274", "attend-grouped", heads_that_share),
    ("the bias summed over the wrong axes", "attend-bias", broadcast_on_both_sides),
    ("n_q = n_k hid where the last query stands", "attend-alibi", fewer_queries_than_keys),
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
        (a_tail, "rope-interleaved"),
        (every_output, "attend-lse"),
        (heads_that_share, "attend-multi-query"),
        (broadcast_on_both_sides, "attend-softcap"),
        (fewer_queries_than_keys, "attend-temperature"),
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


#: where the function has another name than its module
FUNCTIONS = {"activation": "activate", "graph": "graph_attention", "transformer": "transformer_layer"}


@pytest.mark.parametrize("rule", [r for r in RULES if r != "blockdiag"])
def test_every_argument_of_every_rule_is_met_and_left_out(rule: str) -> None:
    module = importlib.import_module(f"gradderiv.rules.{rule}")
    function = getattr(module, FUNCTIONS.get(rule, rule))
    parameters = inspect.signature(function).parameters.values()
    rows = [p for p in PROBLEMS.values() if p.rule == rule]
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        given = [parameter.name in {**p.shapes, **p.options} for p in rows]
        assert any(given), parameter.name
        assert parameter.default is inspect.Parameter.empty or not all(given), parameter.name


def test_every_option_of_the_table_is_met_and_left_out() -> None:
    """By attention, and by a layer those that systems build layers with."""
    rows = [p for p in PROBLEMS.values() if p.rule == "attend"]
    for name in (*options.variables(), *options.constants()):
        given = [name in {**p.shapes, **p.options} for p in rows]
        assert any(given), name
        assert not all(given), name
    built = {name for p in PROBLEMS.values() if p.rule == "multihead" for name in {**p.shapes, **p.options}}
    assert built >= {"gain_Q", "cos", "K_cache", "softcap", "table", "sinks", "softmax_dtype", "eps", "scale"}


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
    assert empty == {"softmax", "attention", "attend", "multihead", "blockdiag"}
    assert causal(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_products_meet_every_form_and_broadcasting_on_both_sides() -> None:
    shapes = [tuple(p.shapes.values()) for p in PROBLEMS.values() if p.rule == "matmul"]
    axes = {tuple(min(len(s), 3) for s in pair) for pair in shapes}
    assert axes >= {(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2), (3, 3)}
    repeated = [
        [any(a == 1 < b for a, b in zip(s[:-2], t[:-2], strict=False)) for s, t in ((A, B), (B, A))]
        for A, B in shapes
        if len(A) == len(B) > 2
    ]
    assert [True, True] in repeated  # axes of size 1 on both sides of one product


def test_embeddings_repeat_tokens_and_leave_some_out() -> None:
    for p in (p for p in PROBLEMS.values() if p.rule == "embedding"):
        counts = torch.bincount(p.options["tokens"].flatten(), minlength=p.shapes["table"][0])
        assert int(counts.max()) > 1
        assert int(counts.min()) == 0
        assert counts[counts > 0].unique().numel() > 1  # and not all equally often


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
