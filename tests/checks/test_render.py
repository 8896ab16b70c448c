"""The report as people read it: at 80 columns, in ASCII, with colour only when asked."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradderiv.checks.render import ascii_text, power_of_two, render
from gradderiv.checks.report import Record, Report

RULES = ("linear", "softmax", "attention", "multihead", "blockdiag")
ORACLES = (
    "forward", "autograd", "finite differences", "dual", "field", "second order", "sympy", "blockdiag", "identities",
    "full size", "torch layer", "published",
)  # fmt: skip
PASS = Record("multihead", "self", "W_K", "autograd", "float", "float64", "pass")
FAIL = replace(
    PASS, verdict="fail", problem="causal-h3-n7", worst_index=(5, 9), replay="gradderiv verify --problem self --seed 0",
    detail="14 of 84 entries wrong: head 2 only. Worst entry [5, 9]: 0.0413, should be 0.1168. "
    "Every wrong entry is 0.3536 × the right one (= 1/√8): is the scale applied twice?",
)  # fmt: skip
EXACT = replace(
    PASS, number="field", dtype="F_p, 2 lanes", failure_probability=2.0**-41.5, oracle="identities"
)

RIGHT = Report(
    [replace(PASS, rule=r, oracle=o) for r in RULES for o in ORACLES for _ in range(123)] + [EXACT]
    + [replace(PASS, number="symbol", dtype="SymPy", oracle="sympy")] * 33, seconds=47.36,
)  # fmt: skip
REPORTS = {
    "right": RIGHT,
    "fail": Report([PASS, FAIL, EXACT]),
    "many failures": Report(
        [replace(FAIL, rule=r, argument=f"W_{i}", oracle=o) for r in RULES for o in ORACLES for i in range(9)]
    ),
    "long details": Report(
        [replace(FAIL, detail=f"{'word ' * 100}\n{'x' * 300} ⟨dW_V, W_V⟩ = ⟨dW_O, W_O⟩", replay="gradderiv" + " --option long" * 30)]
    ),
    "long names": Report([replace(FAIL, rule="m" * 200, argument="a" * 150, problem="p" * 150, oracle="tape")]),
    "many rules": Report([replace(PASS, rule=f"rule_number_{i}", oracle=o) for i in range(20) for o in ORACLES]),
    "vacuous": Report([PASS, replace(PASS, verdict="vacuous", detail="every entry is below its own rounding error")]),
    "declared": Report([PASS, replace(PASS, verdict="vacuous", expected=True)]),
    "empty": Report(),
}  # fmt: skip


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("name", REPORTS)
def test_no_line_is_longer_than_80_columns(name: str, ascii_only: bool) -> None:
    text = render(REPORTS[name], ascii_only=ascii_only)
    assert max(map(len, text.splitlines())) <= 80
    assert not [line for line in text.splitlines() if line != line.rstrip()]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_narrower_terminal_gets_narrower_lines(width: int) -> None:
    for report in REPORTS.values():
        assert max(map(len, render(report, width=width).splitlines())) <= min(width, 80)


@settings(deadline=None, derandomize=True, database=None)
@given(
    detail=st.text(st.characters(codec="ascii"), max_size=300),
    name=st.text("abcdefgh_[]", min_size=1, max_size=90),
)
def test_no_line_is_longer_whatever_a_record_says(detail: str, name: str) -> None:
    """And what looks like markup is text."""
    text = render(Report([replace(FAIL, detail=detail, rule=name, argument=name)]))
    assert max(map(len, text.split("\n"))) <= 80
    assert re.sub(r"\s", "", name) in re.sub(r"\s", "", text)


# ---------------------------------------------------------------- what it says


def test_a_right_report_in_full() -> None:
    text = render(RIGHT)
    assert text.splitlines()[0].split() == list(RULES)
    assert [line[:18].strip() for line in text.splitlines()[1 : 1 + len(ORACLES)]] == list(ORACLES)
    assert "finite differences   ✓ 123    ✓ 123      ✓ 123      ✓ 123      ✓ 123" in text
    assert "field       1 comparison, exact; a wrong one passes with probability ≤ 2⁻⁴¹" in text
    assert "symbol     33 comparisons, each entry's difference from sympy.diff brought to 0" in text
    assert "float    7380 comparisons in float64" in text
    assert text.endswith("PASS  7414 comparisons hold. seed 0, 47.4 s")
    assert "✗" not in text


def test_a_failure_in_full() -> None:
    assert (
        render(REPORTS["fail"])
        == """\
            multihead
autograd        ✗ 1/2
identities        ✓ 1

✓ hold   ✗ fail

float       2 comparisons in float64
field       1 comparison, exact; a wrong one passes with probability ≤ 2⁻⁴¹
gradients of W_K

FAIL  multihead · W_K · float64 · autograd
      problem causal-h3-n7. 14 of 84 entries wrong: head 2 only. Worst entry
      [5, 9]: 0.0413, should be 0.1168. Every wrong entry is 0.3536 × the right
      one (= 1/√8): is the scale applied twice?
      replay: gradderiv verify --problem self --seed 0

FAIL  1 of 3 comparisons fails. seed 0, 0.0 s"""
    )


def test_failures_of_one_gradient_are_said_once_and_counted() -> None:
    report = Report(
        [replace(FAIL, number="field", oracle="dual", detail="14 of 84 entries differ"), FAIL]
        + [replace(FAIL, oracle=o) for o in ("dual", "dual", "field")]
    )
    text = " ".join(render(report).split())
    assert text.count("FAIL multihead") == 1
    assert "Worst entry" in text  # the float record, which has the numbers, speaks for all
    assert "4 more of W_K fail, by dual, field." in text


def test_many_failures_are_cut_and_counted() -> None:
    text = render(REPORTS["many failures"])
    assert text.count("FAIL  ") == 8 + 1
    # 5 rules × 9 arguments in all, of which 8 are shown, each with 12 oracles
    assert f"… and {(45 - 8) * 12} more in other places; --json FILE has them all" in text
    assert "FAIL  540 of 540 comparisons fail." in text


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("vacuous", "VOID  1 of 2 comparisons shows nothing. seed 0, 0.0 s"),
        ("declared", "PASS  1 comparison holds; 1 vacuous where expected. seed 0, 0.0 s"),
        (
            "empty",
            "VOID  nothing was compared: no oracle applies. seed 0, 0.0 s",
        ),
    ],
)
def test_the_last_line_is_the_verdict(name: str, last: str) -> None:
    assert render(REPORTS[name]).endswith(last)


def test_the_replay_command_can_be_pasted() -> None:
    command = (
        "gradderiv verify --problem tiny-cross-masked --oracle 'finite differences' --seed 12 --device cuda:1"
    )
    text = render(Report([replace(FAIL, replay=command)]))
    lines = text[text.index("replay: ") + 8 : text.index("\n\nFAIL  1 of")]
    assert " \\\n" in lines
    assert shlex.split(lines.replace("\\\n", " ")) == shlex.split(command)


def test_every_kind_of_verdict_has_its_own_sign() -> None:
    text = render(
        Report([PASS, replace(FAIL, oracle="dual"), replace(PASS, verdict="vacuous", oracle="field")])
    )
    assert "✓ hold   ✗ fail   ? show nothing" in text
    assert re.search(r"autograd +✓ 1\n", text)
    assert re.search(r"dual +✗ 1/1\n", text)
    assert re.search(r"field +\? 1/1\n", text)


# ---------------------------------------------------------------- ASCII


def test_ascii_says_the_same() -> None:
    for report in REPORTS.values():
        plain, full = render(report, ascii_only=True), render(report)
        assert plain.isascii()
        assert "?" not in plain.replace("?\n", "").replace("? show", "").replace("? 1/", "")
        assert re.findall(r"\d+", plain.replace("^", "")) == re.findall(
            r"\d+", ascii_text(full).replace("^", "")
        )
        assert ("✗" in full) == (re.search(r"FAIL \d+/", plain) is not None)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("≤ 2⁻⁴⁰", "<= 2^-40"),
        ("⟨dW_V, W_V⟩ = ⟨dW_O, W_O⟩", "<dW_V, W_V> = <dW_O, W_O>"),
        ("0.3536 × the right one (= −1/√8)", "0.3536 x the right one (= -1/sqrt 8)"),
        ("a · b … Ẏ = θ̇", "a - b ... Y = theta"),
        ("Müller 本", "Muller ?"),
    ],
)
def test_every_glyph_has_a_spelling(text: str, plain: str) -> None:
    assert ascii_text(text) == plain


# ---------------------------------------------------------------- colour


def test_colour_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for report in REPORTS.values():
        assert "\x1b" not in render(report)
        assert "\x1b" not in str(report)
        assert "\x1b" not in report._repr_html_()
    coloured = render(REPORTS["fail"], color=True)
    assert "\x1b[1;31m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == render(REPORTS["fail"])
    assert "\x1b" in render(REPORTS["fail"], color=True, ascii_only=True)


# ---------------------------------------------------------------- probabilities


@pytest.mark.parametrize(
    ("probability", "shown"),
    [(2.0**-40, "2⁻⁴⁰"), (2.0**-40 * 1.001, "2⁻³⁹"), (2.0**-40.9, "2⁻⁴⁰"), (2.3e-13, "2⁻⁴¹"), (1.0, "2⁰"), (0.0, "0")],
)  # fmt: skip
def test_a_probability_is_rounded_up(probability: float, shown: str) -> None:
    assert power_of_two(probability) == shown


@settings(deadline=None, derandomize=True, database=None)
@given(st.floats(1e-300, 1.0))
def test_a_probability_is_never_understated(probability: float) -> None:
    shown = ascii_text(power_of_two(probability))
    exponent = int(shown.removeprefix("2^"))
    assert probability <= 2.0**exponent * (1 + 1e-9)
    assert probability > 2.0 ** (exponent - 1) * (1 - 1e-8)
