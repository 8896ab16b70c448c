"""The result of :mod:`gradderiv.bench.prove` as text, 80 columns wide."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import torch

from gradderiv.bench.checkers import PROVERS
from gradderiv.bench.layers import D, H, N
from gradderiv.bench.sizes import REPEATS, AtSize
from gradderiv.bench.text import duration, legend, wrap
from gradderiv.bench.verify import TIMED_AT
from gradderiv.checks.render import power_of_two

if TYPE_CHECKING:
    from gradderiv.bench.prove import BenchProve

UNITS = (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def render(result: BenchProve) -> str:
    """What is caught, what the smallest proof costs, what large ones cost, and where the time goes."""
    parts = [_layer(result), _tiny(result), _sizes(result), _shares(result)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _layer(result: BenchProve) -> list[str]:
    what = (
        f"{result.asked()} wrong attention backwards and a right one, each a hand-written autograd.Function. n={N}, d={D}, h={H}, "
        f"self-attention with biases, float64; X ~ N(0, 1), weights and biases ~ N(0, {TIMED_AT:g}²). torch {torch.__version__}, one thread; "
        f"time: of the processor, on the right layer, the median of {len(result.times['prove'])}."
    )
    wrong = f"{result.asked()} wrong ones"
    lines = [
        *wrap(what, ""),
        "",
        f"{'':<15}{wrong:>32}{'right one':>14}",
        f"{'':<15}{'caught':>8}{'accepted':>10}{'inconclusive':>14}{'':>14}{'time':>10}{'÷ prove':>9}",
    ]
    for checker in PROVERS:
        counts = [result.count(checker, verdict) for verdict in ("caught", "accepted", "refused")]
        caught, accepted, refused = ("–" if c is None else str(c) for c in counts)
        right = {"refused": "inconclusive"}.get(result.right(checker), result.right(checker))
        took = result.median(checker)
        lines.append(
            f"{checker:<15}{caught:>8}{accepted:>10}{refused:>14}{right:>14}{duration(took):>10}{_ratio(took / result.median('prove')):>9}"
        )
    if result.refuting:
        took = statistics.median(result.refuting)
        text = f"A wrong one takes prove {duration(took)}, the median of {len(result.refuting)}: it looks for the place, and asks float64."
        lines += ["", *wrap(text, "")]
    return [*lines, "", *legend(PROVERS)]


def _tiny(result: BenchProve) -> list[str]:
    from gradderiv.bench.prove import SLOW, TINY

    n, d = TINY
    ours, theirs = (statistics.median(result.tiny[name]) for name in ("prove", SLOW))
    text = (
        f"softmax(q kᵀ) v, n={n}, d={d}: prove {duration(ours)}, {_ratio(ours / theirs)} × gradcheck's {duration(theirs)}; of the processor, "
        f"the median of {len(result.tiny['prove'])} after a first call."
    )
    return wrap(text, "")


def _sizes(result: BenchProve) -> list[str]:
    if not result.sizes:
        return []
    what = (
        "Whole layers, causal, by all weights, biases and X: gradderiv.functional.multi_head_attention, whose attention has a backward of its own. "
        "Each in a process of its own, one thread; time: of the processor. "
        "÷: by a forward and backward pass in float64. Peak: of the memory of the process; before: what it was before the proof. "
        "dY/dW_Q: the Jacobian of one weight, which gradcheck would have to fill."
    )
    head = f"{'n':>4}{'d_model':>8}{'h':>4}{'prove':>10}{'float64':>9}{'÷':>6}{'peak':>9}{'before':>8}{'primes':>7}{'bound':>7}{'dY/dW_Q':>8}"
    lines = [*wrap(what, ""), "", head]
    for at in result.sizes:
        lines.append(f"{at.size.n:>4}{at.size.d_model:>8}{at.size.h:>4}{_figures(at)}")
    for at in result.sizes:
        if at.verdict != "proved":
            lines += wrap(f"{at.size}: {at.trouble or at.verdict}, not proved", "")
    several = [str(at.size.n) for at in result.sizes if len(at.seconds) > 1]
    if several:
        lines += ["", *wrap(f"Medians of up to {REPEATS} at n = {', '.join(several)}.", "")]
    return lines


def _figures(at: AtSize) -> str:
    jacobian = f"{_bytes(at.size.jacobian):>8}"
    if at.trouble:
        return f"{'–':>10}{'–':>9}{'–':>6}{'–':>9}{'–':>8}{'–':>7}{'–':>7}{jacobian}"
    ratio = _ratio(at.took / at.float_took)
    bound = (
        power_of_two(2.0**at.log2_failure) if at.verdict == "proved" and at.log2_failure is not None else "–"
    )
    return (
        f"{duration(at.took):>10}{duration(at.float_took):>9}{ratio:>6}{_bytes(at.peak):>9}{_bytes(at.before):>8}"
        f"{at.lanes:>7}{bound:>7}{jacobian}"
    )


def _shares(result: BenchProve) -> list[str]:
    if result.shares is None:
        return []
    names = {
        "products": "products of matrices",
        "reduction": "remainders mod p",
        "hashing": "hashing",
        "rest": "the rest",
    }
    shares = ", ".join(f"{words} {100 * result.shares.of(part):.0f}%" for part, words in names.items())
    return wrap(f"Where the time goes, at {result.shares.size}, by cProfile: {shares}.", "")


def _bytes(count: int | None) -> str:
    if count is None:
        return "–"
    for unit, size in UNITS:
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _ratio(x: float) -> str:
    return f"{x:.2g}" if x < 100 else f"{x:.0f}"
