"""Every two options of attention together: a covering array of strength two, as problems.

Mistakes of options are mistakes of two of them meeting: a mask and a cache, a soft cap and a bias. A row of :data:`VALUES` is an option with the values that matter; the
problems are drawn greedily until every two values of two options have met in one of them.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from gradderiv.checks.problems.options import attend, fill, kept
from gradderiv.checks.problems.problem import Problem, scattered
from gradderiv.rules.score_bias import t5_buckets

N, PAST, H, D_K, D_V = 3, 2, 6, 4, 3

VALUES: dict[str, tuple[str, ...]] = {
    "heads": ("own", "grouped", "one"),
    "hiding": ("none", "mask", "causal", "replace", "add"),
    "position": ("none", "half", "interleaved"),
    "bias": ("none", "matrix", "ALiBi", "T5"),
    "QK-norm": ("no", "yes"),
    "cache": ("no", "yes"),
    "temperature": ("none", "one", "each head"),
    "softcap": ("no", "yes"),
    "sinks": ("no", "yes"),
    "wider": ("no", "yes"),
    "dropout": ("no", "yes"),
    "outputs": ("O", "weights", "lse", "all"),
    "batch": ("no", "yes"),
}
Pair = tuple[tuple[str, str], tuple[str, str]]
Choice = dict[str, str]


def wanted() -> set[Pair]:
    """Every two values of two options that can meet."""
    return {
        ((a, x), (b, y))
        for a, b in itertools.combinations(VALUES, 2)
        for x in VALUES[a]
        for y in VALUES[b]
        if possible({a: x, b: y})
    }


def possible(choice: Choice) -> bool:
    """Not every two can: lse of a row that is wholly masked is −∞, which no comparison of numbers takes, and a sink makes it finite."""
    lse = choice.get("outputs") in ("lse", "all")
    return not (choice.get("hiding") == "mask" and lse and choice.get("sinks") == "no")


def met(choice: Choice) -> set[Pair]:
    """The pairs of a choice."""
    return {(a, b) for a, b in itertools.combinations(choice.items(), 2)}


def choices() -> list[Choice]:
    """Greedily: begin with a pair that is still missing, and give every other option the value that meets most of them."""
    missing, found = wanted(), []
    while missing:
        choice: Choice = dict(min(missing))
        for option, values in VALUES.items():
            if option in choice:
                continue
            fits = [v for v in values if possible({**choice, option: v})]
            gain = {v: len(_together(choice, option, v) & missing) for v in fits}
            choice[option] = max(fits, key=lambda v: gain[v])
        choice = {option: choice[option] for option in VALUES}
        missing -= met(choice)
        found.append(choice)
    return found


def _together(choice: Choice, option: str, value: str) -> set[Pair]:
    order = list(VALUES)
    others = (((o, v), (option, value)) for o, v in choice.items())
    return {tuple(sorted(pair, key=lambda p: order.index(p[0]))) for pair in others}  # type: ignore[misc]


def problem(number: int, c: Choice) -> Problem:
    """The choice as a problem."""
    batch = (2,) if c["batch"] == "yes" else ()
    h_kv = {"own": H, "grouped": 2, "one": 1}[c["heads"]]
    past = PAST if c["cache"] == "yes" else 0
    n_k = N + past
    shapes: dict[str, tuple[int, ...]] = {
        "Q": (*batch, H, N, D_K), "K": (*batch, h_kv, N, D_K), "V": (*batch, h_kv, N, D_V),
    }  # fmt: skip
    options: dict[str, Any] = {}
    if past:
        shapes |= {"K_cache": (*batch, h_kv, past, D_K), "V_cache": (*batch, h_kv, past, D_V)}
    if c["QK-norm"] == "yes":
        shapes |= {"gain_Q": (D_K,), "gain_K": (D_K,)}
        options["eps"] = 0.01
    if c["position"] != "none":
        shapes |= {"cos": (N, 2), "sin": (N, 2)}
        options["pairing"] = c["position"]
    if c["temperature"] != "none":
        shapes["temperature"] = () if c["temperature"] == "one" else (H, 1, 1)
    if c["softcap"] == "yes":
        options["softcap"] = 1.5
    match c["bias"]:
        case "matrix":
            shapes["bias"] = (H, 1, n_k)
        case "ALiBi":
            shapes["slopes"] = (H,)
        case "T5":
            shapes["table"] = (5, H)
            options["buckets"] = t5_buckets(N, n_k, n_buckets=5, max_distance=4, bidirectional=False)
    match c["hiding"]:
        case "mask":
            options["mask"] = scattered(N, n_k, empty=1)
        case "causal":
            options["mask"] = torch.ones(N, n_k, dtype=torch.bool).tril(past)
        case "replace" | "add":
            options |= fill(c["hiding"], N, n_k)
    if c["sinks"] == "yes":
        shapes["sinks"] = (H,)
    if c["wider"] == "yes":
        options["softmax_dtype"] = torch.float64
    if c["dropout"] == "yes":
        options |= {"keep": kept(*batch, H, N, n_k), "dropout_p": 0.25}
    options["outputs"] = ("O", "weights", "lse") if c["outputs"] == "all" else (c["outputs"],)
    what = ", ".join(f"{o} {v}" for o, v in c.items() if v not in ("no", "none"))
    return attend(f"pairs-{number:02}", what, {}, options, base=shapes, zeros=zeros(c, shapes))


def zeros(c: Choice, shapes: dict[str, tuple[int, ...]]) -> frozenset[str]:
    """What has no gradient: values, where O is not looked at."""
    return frozenset({"V", "V_cache"} & shapes.keys() if c["outputs"] in ("weights", "lse") else ())


def problems() -> list[Problem]:
    return [problem(i, c) for i, c in enumerate(choices())]
