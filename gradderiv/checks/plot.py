"""Pictures of errors: one file for a problem, one heat map for an argument, one square for an entry.

The colour of an entry is log₁₀ (|error| / tolerance): white at the tolerance, blue below, red above; wrong entries bear a cross
as well. Lines part the heads. «26 of 78 wrong, up to 3 ×» counts in tolerances too.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.catalog import RULES, Rule
from gradderiv.checks.compare import compare
from gradderiv.checks.oracles import against_autograd
from gradderiv.checks.problems import PROBLEMS, Problem
from gradderiv.checks.records import layout
from gradderiv.checks.report import Report, write_whole
from gradderiv.errors import GradderivError, InputError, message

DECADES = 4  # the colours end at 10⁻⁴ and 10⁴ times the tolerance
COLUMNS = 3
CROSSES = 400  # wrong entries in one heat map, above which the colour alone has to do


def plot_errors(
    report: Report, folder: str | os.PathLike[str], *, rules: Mapping[str, Rule] | None = None
) -> list[Path]:
    """Draw the errors of each problem with a failing float comparison; if nothing fails, of each that autograd was asked about.

    Args:
        report: from :func:`gradderiv.checks.verify.verify`.
        folder: made if it is not there.
        rules: where the report's rules are found; the catalogue unless given.

    Returns:
        The files written, in the report's order.

    Raises:
        InputError: ``folder`` is a file.
        GradderivError: matplotlib is not installed.
    """
    folder = Path(folder)
    require(folder)
    table = RULES if rules is None else rules
    failing = [r for r in report.failures if r.number == "float"]
    chosen = failing if report.failures else report.select(oracle="autograd")
    cases: dict[tuple[str, str], str] = {}
    for r in chosen:
        if r.problem in PROBLEMS and r.rule in table:
            dtype = cases.setdefault((r.rule, r.problem), r.dtype)
            cases[r.rule, r.problem] = "float64" if r.dtype == "float64" else dtype
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for (rule, problem), dtype in cases.items():
        file = folder / (re.sub(r"[^\w.-]+", "-", f"{rule}-{problem}-{dtype}") + ".png")
        write_whole(file, _picture(table[rule], PROBLEMS[problem], report.seed, dtype))
        files.append(file)
    return files


def require(folder: Path) -> None:
    """Say before the work that the pictures could not be drawn after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise GradderivError(
            message(
                "pictures of errors need matplotlib",
                "no module named 'matplotlib'",
                "gradderiv was installed without its extra plot",
                'pip install "gradderiv[plot]"',
            )
        )
    if folder.exists() and not folder.is_dir():
        raise InputError(
            message(
                "pictures of errors need a folder",
                f"{folder} is a file",
                "the name of one picture was passed; there is one for each problem",
                "pass a folder, which is made if it is not there",
            )
        )


def _picture(rule: Rule, problem: Problem, seed: int, dtype: str) -> bytes:
    """The figure as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    value, reference, allowed = against_autograd(rule, problem, seed, getattr(torch, dtype))
    names = list(reference)
    lines = [names[i : i + COLUMNS] for i in range(0, len(names), COLUMNS)]
    heights = [max(0.7 if len(_sheet(reference[n])[0]) == 1 else 2.4 for n in line) for line in lines]
    figure = Figure(figsize=(12, 1.4 + sum(heights) + 0.5 * len(lines)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(lines), COLUMNS, squeeze=False, height_ratios=heights).flatten()
    bad, image = [], None
    for axes, name in zip(grid, names, strict=False):
        image, wrong = _heat_map(axes, problem, name, value.get(name), reference[name], allowed[name])
        bad += [name] if wrong else []
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    verdict = f"wrong: {', '.join(bad)}" if bad else "every entry is within its tolerance"
    figure.suptitle(f"{rule.name} · {problem.name} · {dtype} · seed {seed}\n{verdict}", fontsize=14)
    _scale(figure, image, list(grid))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _scale(figure: Any, image: Any, axes: list[Any]) -> None:
    """The colour bar, in words where it matters."""
    bar = figure.colorbar(image, ax=axes, fraction=0.04, aspect=30, extend="both")
    ticks = range(-DECADES, DECADES + 1, 2)
    bar.set_ticks(list(ticks), labels=["tolerance" if t == 0 else f"{10.0**t:g} ×" for t in ticks])
    bar.set_label("|error| of an entry over its tolerance")


def _heat_map(
    axes: Any, problem: Problem, name: str, value: Tensor | None, expected: Tensor, allowed: Tensor
) -> tuple[Any, bool]:
    """One argument: the image, and whether anything is wrong."""
    from matplotlib.colors import TwoSlopeNorm

    colours: dict[str, Any] = {"cmap": "RdBu_r", "norm": TwoSlopeNorm(0, -DECADES, DECADES), "aspect": "auto"}
    if value is None or value.shape != expected.shape:
        came = "no gradient" if value is None else f"{tuple(value.shape)}, should be {tuple(expected.shape)}"
        axes.set_title(f"{name}: {came}", loc="left", fontweight="bold")
        axes.set_xticks([])
        axes.set_yticks([])
        return axes.imshow([[DECADES]], **colours), True
    excess = _excess(value.detach().double(), expected.detach(), allowed)
    sheet, blocks = _sheet(excess)
    image = axes.imshow(sheet.log10().clamp(-DECADES, DECADES).numpy(), interpolation="nearest", **colours)
    wrong = sheet > 1
    for where, colour in ((wrong & (sheet <= 100), "black"), (sheet > 100, "white")):
        if int(wrong.sum()) <= CROSSES:
            rows, columns = where.nonzero().unbind(1)
            axes.plot(columns, rows, "x", color=colour, markersize=5, markeredgewidth=1.2)
    _lines(axes, problem, name, sheet, blocks)
    title = (
        f"{name}: {_in_words(sheet, compare(value, expected, allowed, zero=name in problem.zeros).verdict)}"
    )
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold" if bool(wrong.any()) else "normal")
    return image, bool(wrong.any())


def _excess(value: Tensor, expected: Tensor, allowed: Tensor) -> Tensor:
    """|error| / tolerance: above 1 where :func:`gradderiv.checks.compare.compare` calls an entry wrong."""
    error = (value - expected).abs()
    ratio = torch.where(error == 0, 0.0, error / allowed.nan_to_num(nan=math.inf, posinf=math.inf))
    return torch.where(torch.isfinite(error), ratio, math.inf)


def _in_words(sheet: Tensor, verdict: str) -> str:
    worst = float(sheet.max())
    if verdict == "fail":
        by = "not finite" if math.isinf(worst) else f"up to {worst:.1g} ×"
        return f"{int((sheet > 1).sum())} of {sheet.numel()} wrong, {by}"
    if verdict == "vacuous":
        return "vacuous, all below rounding"
    return f"right, at most {worst:.1g} ×" if worst else "right, to the last digit"


def _sheet(t: Tensor) -> tuple[Tensor, int]:
    """A tensor of any number of axes as one matrix, its leading axes side by side, and how many matrices these are."""
    if t.dim() < 2:
        return t.reshape(1, -1), 1
    blocks = t.reshape(-1, *t.shape[-2:])
    return torch.cat(list(blocks), -1), len(blocks)


def _lines(axes: Any, problem: Problem, name: str, sheet: Tensor, blocks: int) -> None:
    """Ticks, labels, and lines between heads, or between the matrices of a batch."""
    rows, columns = sheet.shape
    place = layout(problem, name)
    heads = place.n_heads or 1
    across = heads if place.axis == -1 else blocks
    down = heads if place.axis == -2 else 1
    word = "head" if heads > 1 else "matrix of the batch"
    _ticks(axes.xaxis, columns, across, heads, word, axes.axvline)
    if rows > 1:
        _ticks(axes.yaxis, rows, down, heads, word, axes.axhline)
    else:
        axes.set_yticks([])


def _ticks(axis: Any, size: int, parts: int, heads: int, word: str, line: Any) -> None:
    """Numbers of rows or columns; where they fall into parts, of the parts."""
    if parts == 1:
        axis.set_ticks(range(0, size, max(1, size // 7)))
        axis.set_label_text("column" if axis.axis_name == "x" else "row")
        return
    for i in range(1, parts):
        line(i * size / parts - 0.5, color="black", linewidth=1.5)
    labels = [str(i % heads if heads > 1 else i) for i in range(parts)]
    axis.set_ticks([(i + 0.5) * size / parts - 0.5 for i in range(parts)], labels=labels)
    axis.set_label_text(word)
