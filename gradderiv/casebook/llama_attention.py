"""The way back through LlamaAttention: the Chinese article on the transformer's structure that is built on transformers' ``modeling_llama.py``.

The article reads the forward pass line by line. Here its stations are gone through backwards, in closed form, and compared: with transformers' own module where
that is installed, with autograd, and exactly. The stations after the first are in ``_llama_parts`` and ``_llama_cache``.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gradderiv.casebook import _llama_cache as cache
from gradderiv.casebook import _llama_parts as parts
from gradderiv.checks.models import SYSTEMS, Built, System, available, build, exactly, pairs
from gradderiv.threads import one_thread

LLAMA = SYSTEMS["LlamaAttention"]


class Wide(TorchFunctionMode):
    """A softmax that is asked for in float32 is done in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def without(system: System, option: str) -> System:
    """The same module, read without an option."""
    kept: Mapping[str, Any] = {name: value for name, value in system.options.items() if name != option}
    return dataclasses.replace(system, options=kept)


def errors(system: System, built: Built) -> dict[str, float]:
    """The largest error of the value and of each gradient, relative to its largest entry."""
    found = pairs(system, built, built.leaves, built.dY)
    return {a: parts.relative(value, expected) for a, (value, expected) in found.items() if value is not None}


# ---------------------------------------------------------------- told


def tell() -> str:
    with one_thread():
        told = (
            module() if available() else missing(),
            heads_and_lengths(),
            rotation(),
            softmax(),
            empty_rows(),
            kv_cache(),
            products(),
            embeddings(),
        )
    return "\n\n".join(p if p.startswith("  ") else textwrap.fill(p, 79) for part in told for p in part)


TITLE = "A Chinese article on the transformer's structure reads LlamaAttention of transformers' modeling_llama.py line by line, forwards. This is the way back."


def missing() -> list[str]:
    return [
        f"{TITLE} LlamaAttention itself cannot be compared here, as transformers is not installed: pip install 'gradderiv[peers]'. What follows needs torch alone."
    ]


def module() -> list[str]:
    built, wide_rule = build(LLAMA), without(LLAMA, "softmax_dtype")
    ships, narrow = errors(LLAMA, built), errors(wide_rule, built)
    with Wide():
        wide = errors(wide_rule, built)
    exact = {r.argument: r for r in exactly(LLAMA, built)}
    table = [f"  {'of the module':19}{'closed form':13}{'as it ships':>12}{'in float64':>13}   exactly"]
    for a in ships:
        name = "output" if a == "Y" else LLAMA.read(a)[0]
        form = f"{a}ᵀ" if a.startswith("W") else a
        said = "equal" if exact[a].verdict == "pass" else exact[a].detail
        table.append(f"  {name:19}{form:13}{ships[a]:12.1e}{wide[a]:13.1e}   {said}")
    chance = max(r.failure_probability or 0.0 for r in exact.values())
    given = LLAMA.config
    return [
        f"{TITLE} The module of transformers {version('transformers')}, {given['num_attention_heads']} heads of {given['head_dim']} that share {given['num_key_value_heads']} of K and V, {parts.N} tokens, "
        "causal, random weights: its output, and autograd's gradient of each of its parameters and inputs, against the closed forms of "
        "gradderiv.rules.multihead. Largest errors, relative to the largest entry: with the softmax in float32, as it ships, the rest in float64; all in float64; and in exact arithmetic:",
        "\n".join(table),
        f"The module in float64 is not in float64: its softmax is in float32 for every type. A closed form without softmax_dtype=torch.float32 is up to {max(narrow.values()):.0e} "
        f"off, and that is the module's rounding, not an error. Exactly, all {len(exact)} are equal for any weights and tables; the chance that they are not is below 2^{math.ceil(math.log2(chance))}.",
    ]  # fmt: skip


def heads_and_lengths() -> list[str]:
    rows = {
        "no GQA": (parts.H, 0),
        "GQA": (parts.H_KV, 0),
        "no GQA, cache": (parts.H, parts.PAST),
        "GQA, cache": (parts.H_KV, parts.PAST),
    }
    table = [f"  {'':15}{'Q':15}{'K projected':15}{'K repeated':15}scores"]
    found = {name: parts.shapes(*row) for name, row in rows.items()}
    table += [f"  {name:15}{s.Q!s:15}{s.K!s:15}{s.every!s:15}{s.S}" for name, s in found.items()]
    equal, tiled = parts.group_sum()
    return [
        "«q_len is kv_len because GQA is not used», the article says. GQA changes the number of heads, and the cache the lengths; each does so without the other:",
        "\n".join(table),
        f"repeat_kv copies a head to the {parts.H // parts.H_KV} query heads of its group, side by side, so backwards the gradients of a group add up: dK of the shared heads is "
        f"{'exactly' if equal else 'not'} that sum of autograd's for repeated ones. Summed as if the heads were tiled (every {_nth(parts.H_KV)} head), it is off by {tiled:.1f} of its largest entry.",
    ]  # fmt: skip


def rotation() -> list[str]:
    r = parts.rotation()
    return [
        f"RoPE. The gradient of a rotation by θ is the rotation by −θ: dX = rope(dY, cos, −sin), {_off(r.one_angle)}, and as long as dY ({_off(r.norm)}). That needs one "
        f"angle for both columns of a pair; for tables with two it is −R(dY ∘ sin), with the sine inside, and −R(dY) ∘ sin is off by {r.any_tables:.2f} of the largest entry. "
        f"Columns that do not turn (GPT-NeoX) {'pass dY on as it is' if r.passes else 'are changed'}. Llama pairs column i with i + d/2; with neighbours paired, as "
        f"RoFormer and Cohere do, dX is off by {r.neighbours:.1f}; with the columns put in order 0 2 4 1 3 5 as well it is the same {_off(r.permuted)}.",
    ]  # fmt: skip


def softmax() -> list[str]:
    found, same = parts.in_bfloat16()
    names = {"float32": "softmax in float32", "torch": "torch.softmax", "written": "exp(S − max)/Σ"}
    table = [f"  {'in bfloat16':19}{'O':>9}{'dQ':>9}{'dK':>9}{'dV':>9}   ratio to the first"]
    for name, row in found.items():
        ratios = " ".join(f"{x / y:.2f}" for x, y in zip(row, found["float32"], strict=True))
        table.append(f"  {names[name]:19}" + "".join(f"{x:9.1e}" for x in row) + f"   {ratios}")
    plain, written = ([found[kind][i] / found["float32"][i] for i in (1, 2)] for kind in ("torch", "written"))
    return [
        "«upcast attention to fp32». Errors of the eager code, causal, 4 heads of 32, 128 tokens, everything else in bfloat16, against float64 on the same numbers; relative in norm, median of 5 seeds:",
        "\n".join(table),
        f"torch.softmax computes in float32 by itself: the value is {'bit for bit the same' if same else 'another'} with the upcast and without. What it improves is the gradient, by {_percent(max(plain) - 1)}: "
        f"it keeps P in float32 for P ∘ (dP − δ). Written out, with every step rounded to bfloat16, dQ and dK are {max(written):.1f} times as far off.",
    ]  # fmt: skip


def empty_rows() -> list[str]:
    r = parts.leak()
    pads = parts.N - parts.PAST
    low, high = r.weights
    return [
        f"Rows that may attend to nothing. With {pads} padding tokens on the left, the first {pads} rows of a causal mask are empty, and eager attention gets the lowest float in all "
        f"of their places. A score added to it is lost, so all {parts.N} weights are {low:g}{'' if low == high else f' to {high:g}'}: the padding attends to the padding, and to the tokens that come "
        f"later. Backwards that reaches hidden values: dV of this text is off by {_percent(r.dV)} of its norm from that with −∞ (where such rows are 0), dV of its {parts.PAST} real "
        f"tokens by {_percent(r.dV_tokens)}. dQ of an empty row, which is 0, gets {_percent(r.dQ)} of the norm of the last row's, though no change of its Q changes the output (add 1: "
        f"{r.moved:g}). All of it is {r.asked_nothing:g} where the loss asks nothing of padded positions; it is the loss that must be masked.",
    ]  # fmt: skip


def kv_cache() -> list[str]:
    equal, cut = cache.cached()
    untouched = [name for name in cut if cut[name] < 1e-12]
    theirs = ""
    if available():
        off = cache.of_transformers()
        theirs = (
            f" With transformers' DynamicCache, LlamaAttention's gradients of cached K and V are the same {_off(off['K'])} and {_off(off['V'])}: "
            "K_cache is what DynamicCache holds, keys after RoPE."
        )
    return [
        f"KV cache. {parts.PAST} tokens, then {parts.N - parts.PAST} one by one, grouped heads, RoPE: value and gradients of X and of the four weights are {'exactly' if equal else 'not'} those of one pass, "
        "if what later tokens ask of cached K and V (the gradients K_cache and V_cache) is carried back, keys through their rotation. With the cache as a constant, "
        f"as under no_grad, {', '.join(n for n in untouched if n != 'Y')} stay right, and dX is off by {_percent(cut['X'])} of its norm, W_K by {_percent(cut['W_K'])}, W_V by {_percent(cut['W_V'])}.{theirs}",
    ]  # fmt: skip


def products() -> list[str]:
    C, dB, equal, off = parts.product()
    both = parts.both_repeated()
    A, B = parts.ARTICLE
    count = math.prod(parts.article_shape())
    return [
        f"torch.matmul. The article's {_times(A)} by {_times(B)} is {_times(parts.article_shape())}, it says, and so it is ({count * 4 / 1e9:.1f} GB in float32: its shape is computed, not the "
        f"product). At {_times(parts.SMALL[0])} by {_times(parts.SMALL[1])}, to {_times(C)}: the second operand was repeated along the first axis, so dB, {_times(dB)} again, is {'exactly' if equal else 'not'} the sum of "
        f"Aᵀ dC over these {parts.SMALL[0][0]}; {off:.0e} from autograd. Of its j×1×n×n by k×n×n both are repeated: dA is the sum over k, dB that over j, {'exactly' if both else 'not exactly'}.",
    ]  # fmt: skip


def embeddings() -> list[str]:
    counts, equal, off = parts.embedded()
    most = max(range(len(counts)), key=counts.__getitem__)
    unused = [str(t) for t, n in enumerate(counts) if n == 0]
    return [
        f"Embeddings. In the {parts.TOKENS.numel()} tokens {parts.TOKENS.tolist()} token {most} stands {counts[most]} times: its row of dE is the sum of {counts[most]} rows of dX, those of {' and '.join(unused)} are 0, and "
        f"a row of the position table gets one row of dX from each of the {len(parts.TOKENS)} texts: {'exactly so' if equal else 'not so'}; {_off(off)} from nn.Embedding's.",
    ]  # fmt: skip


def _off(x: float) -> str:
    return "bit for bit" if x == 0 else f"within {x:.0e}"


def _percent(x: float) -> str:
    return f"{100 * x:.0f} %"


def _nth(n: int) -> str:
    return {2: "second", 3: "third"}.get(n, f"{n}th")


def _times(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))
