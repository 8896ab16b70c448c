"""Every two values of two options meet in some problem: counted from what the problems are, not from how they were chosen."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor

from gradderiv.checks.catalog import RULES
from gradderiv.checks.problems import PROBLEMS, Problem, pairs
from gradderiv.rules import options as table

F64 = torch.float64
ROWS = {name: p for name, p in PROBLEMS.items() if name.startswith("pairs-")}
Values = dict[str, str]


def hiding(p: Problem) -> str:
    mask, fill = p.options.get("mask"), p.options.get("fill")
    if fill is not None:
        return "add" if fill.keep is None else "replace"
    if mask is None:
        return "none"
    past = mask.shape[-1] - mask.shape[-2]
    return "causal" if torch.equal(mask, torch.ones_like(mask).tril(past)) else "mask"


def read(p: Problem) -> Values:
    """What a problem is, from its shapes and options alone."""
    s, o = p.shapes, p.options
    h, h_kv = s["Q"][-3], s["K"][-3]
    outputs = o["outputs"]

    def yes(name: str) -> str:
        return "yes" if name in s or name in o else "no"

    bias = [title for title, name in (("matrix", "bias"), ("ALiBi", "slopes"), ("T5", "table")) if name in s]
    assert len(bias) <= 1
    return {
        "heads": "own" if h_kv == h else "one" if h_kv == 1 else "grouped",
        "hiding": hiding(p),
        "position": o["pairing"] if "cos" in s else "none",
        "bias": bias[0] if bias else "none",
        "QK-norm": yes("gain_K"),
        "cache": yes("V_cache"),
        "temperature": "none" if "temperature" not in s else "each head" if s["temperature"] else "one",
        "softcap": yes("softcap"),
        "sinks": yes("sinks"),
        "wider": yes("softmax_dtype"),
        "dropout": yes("keep"),
        "outputs": "all" if len(outputs) == 3 else outputs[0],
        "batch": "yes" if len(s["Q"]) > 3 else "no",
    }


def met(rows: list[Values]) -> Counter[frozenset[tuple[str, str]]]:
    return Counter(frozenset(pair) for row in rows for pair in itertools.combinations(row.items(), 2))


READ = {name: read(p) for name, p in ROWS.items()}


def test_the_problems_are_what_was_chosen() -> None:
    assert list(READ.values()) == pairs.choices()
    assert all(row.keys() == pairs.VALUES.keys() for row in READ.values())
    for option, values in pairs.VALUES.items():
        assert {row[option] for row in READ.values()} == {*values}


def every_pair() -> set[frozenset[tuple[str, str]]]:
    """Of all values that the problems have, and one cannot be: a row that is wholly masked has lse −∞ without a sink."""
    values = {option: sorted({row[option] for row in READ.values()}) for option in pairs.VALUES}
    both = itertools.combinations(values, 2)
    return {frozenset({(a, x), (b, y)}) for a, b in both for x in values[a] for y in values[b]}


def test_every_two_values_meet() -> None:
    missing = every_pair() - met(list(READ.values())).keys()
    assert not missing
    assert len(every_pair()) == len(pairs.wanted())


def test_what_cannot_meet_does_not() -> None:
    """A wholly masked row, its lse, and no sink: three values, every two of which meet."""
    for row in READ.values():
        assert not (row["hiding"] == "mask" and row["outputs"] in ("lse", "all") and row["sinks"] == "no")
    assert not pairs.possible({"hiding": "mask", "outputs": "lse", "sinks": "no"})
    assert pairs.possible({"hiding": "mask", "outputs": "lse", "sinks": "yes"})
    assert pairs.possible({"hiding": "causal", "outputs": "lse", "sinks": "no"})


def needless(rows: dict[str, Values]) -> set[str]:
    """Those without which no pair is lost."""
    counts = met(list(rows.values()))
    return {name for name, row in rows.items() if all(counts[pair] > 1 for pair in met([row]))}


def test_every_row_is_needed() -> None:
    """But for the first, where everything is off, and of which others have come to meet every pair."""
    assert needless(READ) <= {"pairs-00"}
    for name in READ.keys() - needless(READ):
        rest = [row for other, row in READ.items() if other != name]
        assert every_pair() - met(rest).keys()


def test_twin_a_row_that_comes_twice_is_needless() -> None:
    assert needless({**READ, "again": READ["pairs-07"]}) >= {"again", "pairs-07"}


def test_the_rows_are_few() -> None:
    """No array is smaller than the largest product of two numbers of values; a greedy one need not be twice as large."""
    sizes = sorted((len(v) for v in pairs.VALUES.values()), reverse=True)
    least = sizes[0] * sizes[1]
    assert least <= len(ROWS) <= 2 * least


def test_the_choice_is_the_same_every_time() -> None:
    assert pairs.choices() == pairs.choices()
    again = pairs.problems()
    assert [(p.name, p.shapes, p.output, p.zeros, p.why) for p in again] == [
        (p.name, p.shapes, p.output, p.zeros, p.why) for p in ROWS.values()
    ]


def test_every_option_of_the_table_has_a_place_in_the_pairs() -> None:
    """A row that is added to the table is to be added here; scale is tried elsewhere."""
    met_here = {name for p in ROWS.values() for name in {**p.shapes, **p.options}}
    assert {*table.variables(), *table.constants()} - met_here == {"scale"}


# ---------------------------------------------------------------- no option is at its neutral value

#: what makes an option neutral, of each row that has it
NEUTRAL = {
    "mask": lambda t: t.all() or not t.any(), "keep": lambda t: t.all() or not t.any(), "fill": lambda f: not f.constant.any(),
    "dropout_p": lambda p: p == 0, "softcap": lambda c: c > 10, "eps": lambda e: e < 1e-4,
    "buckets": lambda t: t.unique().numel() < 3,
}  # fmt: skip


def test_no_option_is_neutral() -> None:
    for name, p in ROWS.items():
        for option, value in p.options.items():
            assert option not in NEUTRAL or not bool(NEUTRAL[option](value)), (name, option)


def without(p: Problem, option: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The same problem with one option taken away, with its partners."""
    rows = [r for r in table.PARTS if option in (*r.needs, *r.may)]
    gone = {n for r in table.PARTS if r.name in {x.name for x in rows} for n in (*r.needs, *r.may)}
    gone = {option} if option in ("mask", "softmax_dtype") else gone - {"mask", "softmax_dtype"}
    gone |= {"sinks"} if option == "sinks" else set()
    args = {n: t for n, t in p.floats(0, F64)[0].items() if n not in gone}
    return args, {n: o for n, o in p.options.items() if n not in gone}


@pytest.mark.parametrize("name", ROWS)
def test_every_option_matters(name: str) -> None:
    """Taken away, each changes the value, but for dropout that of lse; a cache changes the shape, and float64 is the wider type."""
    p, rule = ROWS[name], RULES["attend"]
    args = p.floats(0, F64)[0]
    value = rule.value(args, p.options)
    switches = {
        "gain_Q",
        "cos",
        "temperature",
        "softcap",
        "slopes",
        "table",
        "bias",
        "fill",
        "mask",
        "sinks",
        "keep",
    }
    found = switches & {*p.shapes, *p.options}
    for option in sorted(found):
        other = rule.value(*without(p, option))
        unseen = option == "keep" and p.options["outputs"] == ("lse",)  # lse is taken before
        assert torch.allclose(value, other, rtol=1e-6, atol=1e-9) == unseen, option
    assert found or READ[name]["bias"] == READ[name]["hiding"] == "none"
