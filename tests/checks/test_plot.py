"""Pictures of errors: which problems are drawn, what a picture shows, and what happens when it cannot be drawn."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradderiv.checks import plot
from gradderiv.checks import report as report_module
from gradderiv.checks.catalog import RULES, Rule
from gradderiv.checks.compare import compare
from gradderiv.checks.oracles import against_autograd, autograd, field
from gradderiv.checks.plot import plot_errors
from gradderiv.checks.problems import PROBLEMS
from gradderiv.checks.report import Record, Report
from gradderiv.errors import GradderivError, InputError

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
PNG = b"\x89PNG\r\n\x1a\n"


def wrong_rule(argument: str, change: Callable[[Tensor], Tensor | None]) -> Rule:
    right = RULES["multihead"].gradients

    def gradients(*args: Any) -> dict[str, Tensor]:
        g = dict(right(*args))
        new = change(g.pop(argument))
        return g if new is None else {**g, argument: new}

    return replace(RULES["multihead"], gradients=gradients)


def half_of_head_1(g: Tensor) -> Tensor:
    g = g.clone()
    g[:, 2:4] *= 0.5
    return g


def asked(rule: Rule, *problems: str, dtypes: tuple[torch.dtype, ...] = (F64,)) -> Report:
    return Report([r for p in problems for r in autograd(rule, PROBLEMS[p], 0, dtypes=dtypes)])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures as matplotlib holds them, instead of the pixels of a file, of which few are made."""
    from matplotlib.figure import Figure

    figures: list[Any] = []
    save = Figure.savefig

    def watched(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **{**kwargs, "dpi": 20})

    monkeypatch.setattr(Figure, "savefig", watched)
    return figures


def titles(figure: Any) -> dict[str, str]:
    """«W_K» → «26 of 78 wrong, up to 4e+13 ×»"""
    found = [axes.get_title(loc="left").partition(": ") for axes in figure.axes]
    return {name: text for name, _, text in found if name}


def heat_map(figure: Any, name: str) -> Any:
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(f"{name}: "))


# ---------------------------------------------------------------- which problems


def test_a_right_report_draws_each_problem_that_autograd_was_asked_about(tmp_path: Path) -> None:
    files = plot_errors(asked(RULES["multihead"], "self", "one-token"), tmp_path / "new" / "folder")
    assert files == [
        tmp_path / "new/folder/multihead-self-float64.png",
        tmp_path / "new/folder/multihead-one-token-float64.png",
    ]
    assert all(f.read_bytes().startswith(PNG) for f in files)
    assert sorted(os.listdir(tmp_path / "new/folder")) == sorted(f.name for f in files)  # and nothing else


def test_where_something_fails_only_that_is_drawn(tmp_path: Path) -> None:
    wrong = wrong_rule("W_K", half_of_head_1)
    report = Report(asked(RULES["linear"], "linear").records + asked(wrong, "one-token").records)
    files = plot_errors(report, tmp_path, rules={**RULES, "multihead": wrong})
    assert [f.name for f in files] == ["multihead-one-token-float64.png"]


def test_the_type_is_float64_if_it_fails_there_else_the_one_that_does(tmp_path: Path) -> None:
    wrong = wrong_rule("W_K", half_of_head_1)
    every = asked(wrong, "self", dtypes=(BF16, F32, F64))
    narrow = Report([r for r in every.records if r.dtype != "float64"])
    for report, name in ((every, "float64"), (narrow, "bfloat16")):
        assert [f.stem for f in plot_errors(report, tmp_path, rules={"multihead": wrong})] == [
            f"multihead-self-{name}"
        ]


def test_what_is_no_float_or_no_problem_of_ours_is_not_drawn(tmp_path: Path) -> None:
    exact = Report(field(wrong_rule("W_K", half_of_head_1), PROBLEMS["self"]))
    assert exact.failures
    foreign = Report([Record("multihead", "somebody's", "x", "autograd", "float", "float64", "fail")])
    mutant = Report([Record("scale-twice", "self", "W_K", "autograd", "float", "float64", "fail")])
    for report in (exact, foreign, mutant, Report()):
        assert plot_errors(report, tmp_path) == []


# ---------------------------------------------------------------- what a picture shows


def test_a_right_rule_in_words_and_colours(tmp_path: Path, drawn: list[Any]) -> None:
    plot_errors(asked(RULES["multihead"], "cross-masked"), tmp_path)
    (figure,) = drawn
    heading, verdict = figure.get_suptitle().split("\n")
    assert heading == "multihead · cross-masked · float64 · seed 0"
    assert verdict == "every entry is within its tolerance"
    assert set(titles(figure)) == set(PROBLEMS["cross-masked"].shapes)
    assert all(text.startswith("right, ") for text in titles(figure).values())
    for name in titles(figure):
        image = heat_map(figure, name).images[0]
        assert image.get_array().max() < 0  # below the tolerance: the blue side
        assert (image.norm.vmin, image.norm.vcenter, image.norm.vmax) == (-4, 0, 4)
        assert image.get_cmap().name == "RdBu_r"
    bar = figure.axes[-1]
    assert "tolerance" in [t.get_text() for t in bar.get_yticklabels()]
    assert bar.get_ylabel() == "|error| of an entry over its tolerance"


def test_a_wrong_head_is_seen(tmp_path: Path, drawn: list[Any]) -> None:
    wrong = wrong_rule("W_K", half_of_head_1)
    plot_errors(asked(wrong, "cross-masked"), tmp_path, rules={"multihead": wrong})
    (figure,) = drawn
    assert figure.get_suptitle().endswith("\nwrong: W_K")
    assert {name for name, text in titles(figure).items() if "wrong" in text} == {"W_K"}
    assert titles(figure)["W_K"].startswith("26 of 78 wrong, up to ")
    axes = heat_map(figure, "W_K")
    red = torch.as_tensor(axes.images[0].get_array().data) > 0
    assert red.any(0).tolist() == [False, False, True, True, False, False]
    crosses = {
        (int(x), int(y))
        for line in axes.lines
        for x, y in zip(*line.get_data(), strict=True)
        if line.get_marker() == "x"
    }
    assert crosses == {(c, r) for c in (2, 3) for r in range(13)}


def parts(figure: Any, name: str) -> tuple[list[float], list[float], list[str], list[str]]:
    """Vertical and horizontal lines, and the labels of both axes."""
    axes = heat_map(figure, name)
    lines = [line.get_data() for line in axes.lines if line.get_marker() != "x"]
    upright = [float(x[0]) for x, y in lines if x[0] == x[1]]
    level = [float(y[0]) for x, y in lines if y[0] == y[1]]
    across, down = ([t.get_text() for t in axis.get_ticklabels()] for axis in (axes.xaxis, axes.yaxis))
    return upright, level, [axes.get_xlabel(), *across], [axes.get_ylabel(), *down]


def test_lines_part_the_heads(tmp_path: Path, drawn: list[Any]) -> None:
    plot_errors(asked(RULES["multihead"], "grouped"), tmp_path)
    (figure,) = drawn
    assert parts(figure, "W_Q")[0] == [2.5, 5.5, 8.5, 11.5, 14.5]  # six query heads of three columns
    assert parts(figure, "W_K")[0] == [2.5]  # two key heads
    assert parts(figure, "W_V")[::2] == ([1.5], ["head", "0", "1"])
    assert parts(figure, "W_O")[:2] == ([], [1.5, 3.5, 5.5, 7.5, 9.5])  # rows
    assert parts(figure, "W_O")[3] == ["head", "0", "1", "2", "3", "4", "5"]
    assert parts(figure, "b_K")[0] == [2.5]
    assert parts(figure, "X")[:2] == ([], [])
    assert parts(figure, "X")[2][0] == "column"
    assert parts(figure, "X")[3][0] == "row"


def test_batches_and_heads_with_an_axis_of_their_own_lie_side_by_side(
    tmp_path: Path, drawn: list[Any]
) -> None:
    plot_errors(asked(RULES["multihead"], "causal-batch"), tmp_path)
    plot_errors(asked(RULES["attention"], "attention-options"), tmp_path)
    layer, attention = drawn
    assert heat_map(layer, "X").images[0].get_array().shape == (5, 4 * 7)
    assert parts(layer, "X")[2] == ["matrix of the batch", "0", "1", "2", "3"]
    assert heat_map(attention, "Q").images[0].get_array().shape == (5, 6 * 3)
    assert parts(attention, "Q")[2] == ["head", "0", "1", "2", "0", "1", "2"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: None, "no gradient"),
        (lambda g: g.mT, "(3, 2), should be (2, 3)"),
        (lambda g: g + math.nan, "6 of 6 wrong, not finite"),
        (lambda g: g * math.inf, "6 of 6 wrong, not finite"),
    ],
)
def test_what_has_no_number_is_drawn_too(
    change: Callable[[Tensor], Tensor | None], says: str, tmp_path: Path, drawn: list[Any]
) -> None:
    wrong = wrong_rule("W_K", change)
    (file,) = plot_errors(asked(wrong, "one-token"), tmp_path, rules={"multihead": wrong})
    assert titles(drawn[0])["W_K"] == says
    assert drawn[0].get_suptitle().endswith("\nwrong: W_K")
    assert file.read_bytes().startswith(PNG)


def test_a_vacuous_gradient_is_not_called_right(tmp_path: Path, drawn: list[Any]) -> None:
    plot_errors(asked(RULES["multihead"], "saturated"), tmp_path)
    assert titles(drawn[0])["W_Q"] == "vacuous, all below rounding"


@pytest.mark.parametrize("name", ["self", "attention-options", "saturated"])
def test_what_is_red_is_what_compare_calls_wrong(name: str) -> None:
    p = PROBLEMS[name]
    value, reference, allowed = against_autograd(RULES[p.rule], p, 0, F64)
    generator = torch.Generator().manual_seed(0)
    for argument, expected in reference.items():
        v = value[argument].detach() + 2 * allowed[argument] * torch.rand(expected.shape, generator=generator)
        v.view(-1)[0] = math.nan
        red = plot._excess(v, expected.detach(), allowed[argument]) > 1
        for i in range(v.numel()):
            one = compare(v.view(-1)[i], expected.reshape(-1)[i], allowed[argument].reshape(-1)[i])
            assert bool(red.view(-1)[i]) == (one.verdict == "fail")


def test_no_warning_no_state_no_window(tmp_path: Path) -> None:
    """Warnings are errors here; pyplot, which keeps figures and opens windows, is not imported."""
    import subprocess
    import sys

    code = (
        "import sys; from gradderiv.checks.plot import plot_errors; from gradderiv.checks.verify import verify;"
        "print('matplotlib' in sys.modules); plot_errors(verify(problems='linear', oracles='autograd'), sys.argv[1]);"
        "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "True", "False"], done.stderr


# ---------------------------------------------------------------- what cannot be drawn


def test_without_matplotlib_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a)
    )
    with pytest.raises(GradderivError) as caught:
        plot_errors(asked(RULES["linear"], "linear"), tmp_path / "pictures")
    assert str(caught.value) == (
        "pictures of errors need matplotlib\n"
        "  came:  no module named 'matplotlib'\n"
        "  cause: gradderiv was installed without its extra plot\n"
        '  do:    pip install "gradderiv[plot]"'
    )
    assert not (tmp_path / "pictures").exists()


def test_a_file_for_a_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "errors.png"
    file.write_text("mine")
    with pytest.raises(InputError, match="need a folder"):
        plot_errors(asked(RULES["linear"], "linear"), file)
    assert file.read_text() == "mine"


def test_an_interrupted_picture_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = asked(RULES["linear"], "linear")
    (file,) = plot_errors(report, tmp_path)
    before = file.read_bytes()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report_module.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plot_errors(report, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == before
