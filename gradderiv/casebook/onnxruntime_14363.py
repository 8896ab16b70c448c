"""microsoft/onnxruntime issue #14363: masks of −10000 that add up, in ``com.microsoft.Attention``.

The report (v1.13.1, unidirectional, mask 0110010) shows that its two masks are summed, so that a query that may attend to nothing attends to some keys; and that a softmax near −10000 is ill-conditioned,
but not near −1e8. Its numbers are reproduced from its own scores; what the installed onnxruntime does is found by running it; and what −1e8 is worth is computed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gradderiv.casebook._onnxruntime import (
    D_IN,
    HEADS,
    MASK,
    RUNS,
    WIDTH,
    N,
    Run,
    Values,
    fits,
    inputs,
    onnxruntime_output,
    scores,
    textbook,
)  # fmt: skip
from gradderiv.rules.fills import FILL, SEMANTICS, Fill, masked_fill

SEEDS = range(10)
# The report's (QKᵀ) + (mask), where both masks are added: what its scores were follows
ADDED = (
    (-10006.6, -9994.52, -9997.99, -19997.9, -20000.0, -9996.66, -20000.2),
    (-9997.57, 6.5382, -9997.21, -19999.1, -19999.5, -9999.22, -20001.1),
    (-10000.6, 1.40028, 1.95172, -20002.2, -20003.8, -9998.68, -20003.3),
    (-10002.6, 6.03383, 4.56666, -10001.0, -20002.0, -10000.2, -20001.9),
    (-9999.71, 2.95622, 3.41114, -9999.45, -10000.0, -9998.97, -20001.4),
    (-10001.8, 2.81855, 3.35107, -10001.4, -10001.1, 0.834866, -20000.7),
    (-9999.03, 1.93507, 1.65966, -10000.7, -10001.0, 2.37467, -9999.72),
)

# ---------------------------------------------------------------- what the report claims


def report_scores() -> Tensor:
    """The report's QKᵀ, to the digits that it prints."""
    (each,) = Run().options("add each").values()
    return torch.tensor(ADDED, dtype=torch.float64) - each.constant


def apart(values: Values, one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Two outputs: the distance relative to the second, and the largest relative difference of an element."""
    A, B = (textbook(values, o) for o in (one, other))
    return float((A - B).norm() / B.norm()), float(((A - B) / B).abs().max())


def condition(s: Tensor) -> float:
    """|J| |s| / |p| of p = softmax(s) with J = diag(p) − p pᵀ: how much of a relative change of s reaches p, at most."""
    p = torch.softmax(s, -1)
    return float(torch.linalg.matrix_norm(torch.diag(p) - torch.outer(p, p), 2) * s.norm() / p.norm())


def near(fill: float, delta: float, dtype: torch.dtype) -> Tensor:
    """The report's row of seven: all at the fill, the first moved by delta."""
    s = torch.full((N,), fill, dtype=dtype)
    s[0] = torch.tensor(fill, dtype=dtype) + delta
    return s


# ---------------------------------------------------------------- the text


def _wrap(text: str) -> str:
    return textwrap.fill(text, 79, break_on_hyphens=False)


def _row(values: Tensor, form: str) -> str:
    return " ".join(format(x, form) for x in values.tolist())


def _what_the_report_shows() -> Iterator[str]:
    S = report_scores()
    first, _ = masked_fill(S.float(), fill=Run().options("onnxruntime 1.13")["fill"])
    P = torch.softmax(first.double()[0], -1)
    yield _wrap(
        f"microsoft/onnxruntime #14363, com.microsoft.Attention of v1.13.1: {HEADS} heads of {WIDTH}, {N} tokens of {D_IN}, mask {_bits(MASK)}, unidirectional. −10000 stands for −∞, and is "
        "added for padding and for later keys, so that where both hide a key it is −20000. From the report's own scores that gives its first row, in which nothing may be seen,"
    )
    yield f"    S′       {_row(first[0], 'g')}\n    softmax  {_row(P, '.4f')}"
    shares = ", ".join(str(i) for i, p in enumerate(P.tolist()) if p > 1 / N)
    yield _wrap(
        f"as it prints it: keys {shares} share what no key should have. Masks combine by logic; numbers that stand for them do not."
    )
    scaled, plain = (float(scores(*inputs(spread=spread).values())[0].std()) for spread in (D_IN**-0.5, 1.0))
    yield _wrap(
        f"The report draws input, weights and bias from N(0, 1). Scores then have a standard deviation of {plain:.3g}, those that it prints {float(S.std()):.2g}: as weights divided by "
        f"√{D_IN} have them, {scaled:.2g}. Both are computed here, seeds {SEEDS[0]} to {SEEDS[-1]}: how far the output moves if v1.13.1 did otherwise, and by what factor an element does (the report: 10 to 50 %, up to 2000)."
    )
    lines = [f"{'':<30}{'weights N(0, 1)':>24}{f'N(0, 1/{D_IN})':>24}"]
    (fixed,) = Run().options("onnxruntime 1.13").values()
    even = {"fill": Fill(fixed.keep, fixed.constant.clamp(min=FILL))}
    for label, other in (
        ("−10000 for −20000", even),
        ("later scores left in", Run().options("add each")),
        ("replaced by −10000", Run().options("replace")),
        ("an empty row is 0", Run().options("zero")),
    ):
        cells = []
        for spread in (1.0, D_IN**-0.5):
            found = [apart(inputs(seed, spread), other, {"fill": fixed}) for seed in SEEDS]
            low, high = (f"{100 * f(x for x, _ in found):.0f}" for f in (min, max))
            cells.append(f"{low}–{high} %, {max(x for _, x in found):.0f}×")
        lines.append(f"{label:<30}{cells[0]:>24}{cells[1]:>24}")
    yield "\n".join(lines)


def _bits(mask: tuple[int, ...]) -> str:
    return "".join(map(str, mask))


def _what_it_does() -> Iterator[str]:
    if not (find_spec("onnxruntime") and find_spec("onnx")):
        yield _wrap(
            'onnxruntime and onnx are not installed: with pip install "gradderiv[peers]", this case runs the operator and says which semantics it has. The rest needs neither.'
        )
        return
    import onnxruntime

    values = inputs()
    every = {run: fits(values, run, onnxruntime_output(values, run)) for run in RUNS}
    main = every[RUNS[0]]
    yield _wrap(
        f"What onnxruntime {onnxruntime.__version__} does, on its CPU provider in float32, found by running it: the distance of each row of its output from every semantics in float64, relative to the row "
        f"(input, weights and bias N(0, 1), seed {SEEDS[0]})."
    )
    lines = [f"{'row':<18}" + "".join(f"{i:>8}" for i in range(N))]
    lines += [f"{name:<18}" + "".join(f"{d:>8.1e}" for d in fit.distances) for name, fit in main.items()]
    yield "\n".join(lines)
    empty = [i for i, row in enumerate((Run().masks()[0] & Run().masks()[1]).tolist()) if not any(row)]
    told = ", ".join(name for name, fit in main.items() if fit.whole) or "none"
    elsewhere = all(
        v == "pass" for fit in main.values() for i, v in enumerate(fit.verdicts) if i not in empty
    )
    yield _wrap(
        f"Within rounding in every row: {told}. Row {', '.join(map(str, empty))} may attend to nothing; the other rows {'agree with all of them' if elsewhere else 'tell more'}. With other attributes (unidirectional; filter is mask_filter_value):"
    )
    lines = [f"{'unidir.':<9}{'mask':<9}{'filter':<14}reproduced by"]
    for run, found in every.items():
        names = [name for name, fit in found.items() if fit.whole]
        fill = "not given" if run.fill is None else f"{run.fill:g}"
        by = "all of them" if len(names) == len(SEMANTICS) else ", ".join(names) or "none"
        start = f"{int(run.unidirectional):<9}{_bits(run.mask):<9}{fill:<14}"
        lines.append(textwrap.fill(by, 79, initial_indent=start, subsequent_indent=" " * len(start)))
    yield "\n".join(lines)
    always = [name for name in SEMANTICS if all(found[name].whole for found in every.values())]
    yield _wrap(
        f"In all of them: {', '.join(f'{name} ({SEMANTICS[name].who})' for name in always) or 'none'}."
    )


def _condition_numbers() -> Iterator[str]:
    deep, place = -1e8, torch.tensor(-1e8)
    spacing = float(place - torch.nextafter(place, torch.tensor(-torch.inf)))
    yield _wrap(
        "The report's last experiment: seven scores at the fill, the first moved by delta; softmax of the first and of the others, and the relative condition |J| |s| / |p| of softmax there."
    )
    lines = [
        f"{'delta':<7}{'−10000, float32':<18}{'condition':<12}{'−1e8, float32':<18}{'−1e8, float64':<16}{'cond.':>7}"
    ]
    for delta in (0.0, -1.0, -2.0, -3.0, -4.0):
        shallow, narrow, wide = (
            torch.softmax(near(*at), -1)[:2]
            for at in (
                (FILL, delta, torch.float32),
                (deep, delta, torch.float32),
                (deep, delta, torch.float64),
            )
        )
        lines.append(
            f"{delta:<7g}{_row(shallow, '.4f'):<18}{condition(near(FILL, delta, torch.float64)):<12.4g}{_row(narrow, '.4f'):<18}{_row(wide, '.4f'):<16}"
            f"{condition(near(deep, delta, torch.float64)):>7.1e}"
        )
    yield "\n".join(lines)
    lost = [
        d
        for d in (-1.0, -2.0, -3.0, -4.0)
        if torch.equal(near(deep, d, torch.float32), near(deep, 0.0, torch.float32))
    ]
    yield _wrap(
        f"−1e8 looks stable because the change never arrives: the next float32 below −1e8 is {spacing:g} away, and −1e8 + delta is −1e8 for delta = {', '.join(f'{d:g}' for d in lost)}. In float64, where it "
        "arrives, p changes as at −10000, and the condition is larger by the ratio of the fills. No finite fill cures it; a row without keys has no softmax, and needs a definition: 0."
    )


def tell() -> str:
    from gradderiv.checks.semantics import semantics, table

    last = _wrap(
        "What each semantics does where a query may attend to nothing, and elsewhere: |dV| and |dK| are what hidden keys get, c is how far visible scores may all be lowered before hidden keys have "
        "half of a row (one head, n = 7, d = 5, N(0, 1), float32, the same masks)."
    )
    return "\n\n".join(
        (*_what_the_report_shows(), *_what_it_does(), *_condition_numbers(), last, table(semantics()))
    )
