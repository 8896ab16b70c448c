"""onnxruntime #14363: the report's own numbers, what the installed onnxruntime does, and a text that would say so if it did otherwise."""

from __future__ import annotations

import math
import subprocess
import sys

import onnxruntime
import pytest
import torch

from gradderiv.casebook import _onnxruntime as operator
from gradderiv.casebook import onnxruntime_14363 as case
from gradderiv.casebook import tell
from gradderiv.casebook._onnxruntime import LOWEST, MASK, RUNS, Run, fits, inputs, layer, widened
from gradderiv.rules.fills import SEMANTICS, masked_fill

N = operator.N
# The report's third matrix, "after the magic fix": as it prints it
FIXED = """
-10006.6 -10000 -10000 -20000 -20000 -10000 -20000
-9997.57 6.5382 -10000 -20000 -20000 -10000 -20000
-10000.6 1.40028 1.95172 -20000 -20000 -10000 -20000
-10002.6 6.03383 4.56666 -10001 -20000 -10000 -20000
-9999.71 2.95622 3.41114 -9999.45 -10000 -10000 -20000
-10001.8 2.81855 3.35107 -10001.4 -10001.1 0.834866 -20000
-9999.03 1.93507 1.65966 -10000.7 -10001 2.37467 -9999.72
"""
AND = """
-10000 -10000 -10000 -10000 -10000 -10000 -10000
-10000 6.5382 -10000 -10000 -10000 -10000 -10000
-10000 1.40028 1.95172 -10000 -10000 -10000 -10000
-10000 6.03383 4.56666 -10000 -10000 -10000 -10000
-10000 2.95622 3.41114 -10000 -10000 -10000 -10000
-10000 2.81855 3.35107 -10000 -10000 0.834866 -10000
-10000 1.93507 1.65966 -10000 -10000 2.37467 -10000
"""


def matrix(text):
    return [[f"{float(x):.6g}" for x in line.split()] for line in text.split("\n") if line]


def printed(name):
    S = case.report_scores()
    fill = SEMANTICS[name].options(Run().masks(), torch.float64)["fill"]
    return [[f"{x:.6g}" for x in row] for row in masked_fill(S, fill=fill)[0].tolist()]


def test_the_reports_matrices_follow_from_its_scores():
    assert printed("onnxruntime 1.13") == matrix(FIXED)
    assert printed("replace") == matrix(AND)
    assert printed("add each") == [[f"{x:.6g}" for x in row] for row in case.ADDED]
    for name in ("add", "lowest", "onnxruntime"):
        assert printed(name) not in (matrix(FIXED), matrix(AND))


def test_the_reports_softmax():
    text = tell("onnxruntime-14363")
    assert "softmax  0.0005 0.3332 0.3332 0.0000 0.0000 0.3332 0.0000" in text
    assert "0      0.1429 0.1429" in text


# ---------------------------------------------------------------- what it does


@pytest.fixture(scope="module")
def values():
    return inputs()


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_one_semantics_is_that_of_every_run(run, values):
    found = fits(values, run, operator.onnxruntime_output(values, run))
    assert found["onnxruntime"].whole
    assert not found["zero"].whole or run == Run(False)
    fitting = {name for name, fit in found.items() if fit.whole}
    assert (
        fitting
        == {
            RUNS[0]: {"onnxruntime"},
            RUNS[1]: {"onnxruntime"},
            RUNS[2]: {"onnxruntime", "replace", "add", "lowest"},
            RUNS[3]: {"onnxruntime"},
            RUNS[4]: set(SEMANTICS),
            RUNS[5]: {"onnxruntime", "onnxruntime 1.13", "add", "add each"},
        }[run]
    )


def test_another_draw_has_the_same_semantics():
    for seed, spread in ((1, 1.0), (0, operator.D_IN**-0.5)):
        drawn = inputs(seed, spread)
        found = fits(drawn, Run(), operator.onnxruntime_output(drawn, Run()))
        assert [name for name, fit in found.items() if fit.whole] == ["onnxruntime"]


def test_the_empty_row_attends_to_the_padded_first_token(values):
    O = operator.onnxruntime_output(values, Run())
    _, V = operator.scores(*values.values())
    first = V[:, 0].flatten()
    torch.testing.assert_close(O[0], first)
    assert MASK[0] == 0
    assert not torch.allclose(O[0], V.mean(1).flatten())


def in_float32(values, name, run=RUNS[0]):
    options = run.options(name)
    narrow = {n: t.float() for n, t in widened(values, options).items()}
    return layer(options)(narrow)


@pytest.mark.parametrize("name", SEMANTICS)
def test_twin_an_operator_of_another_semantics_is_told_apart(name, values):
    """The same layer by torch in float32, once with each semantics: found as what it is."""
    found = fits(values, Run(), in_float32(values, name))
    whole = {n for n, fit in found.items() if fit.whole}
    assert whole == ({"replace", "lowest"} if name in ("replace", "lowest") else {name})


def test_twin_one_wrong_entry_is_noticed(values):
    O = operator.onnxruntime_output(values, Run())
    O[3, 40] *= 1.5
    found = fits(values, Run(), O)["onnxruntime"]
    assert found.verdicts == ("pass",) * 3 + ("fail",) + ("pass",) * 3


def test_what_rounding_could_make_anything_is_not_decided(values):
    """At −1e8 a float32 has steps of 8: a row that is what these steps made of its scores is no evidence."""
    found = fits(values, RUNS[1], in_float32(values, "add", RUNS[1]))["add"]
    assert found.verdicts == ("vacuous",) + ("pass",) * 6
    assert not found.whole


# ---------------------------------------------------------------- the condition


@pytest.mark.parametrize("delta", [0.0, -1.0, -4.0])
def test_the_condition_is_what_a_small_change_does(delta):
    """The worst direction, by autograd's Jacobian; and no direction is worse."""
    s = case.near(-10000.0, delta, torch.float64)
    J = torch.func.jacrev(lambda x: torch.softmax(x, -1))(s)
    worst = torch.linalg.svd(J).Vh[0]
    p = torch.softmax(s, -1)

    def factor(direction):
        return float((J @ direction).norm() / p.norm() / (direction.norm() / s.norm()))

    assert case.condition(s) == pytest.approx(factor(worst))
    assert all(factor(torch.randn(N, dtype=torch.float64)) < case.condition(s) for _ in range(20))
    assert case.condition(case.near(-1e8, delta, torch.float64)) == pytest.approx(
        1e4 * case.condition(s), rel=1e-3
    )


def test_a_change_below_the_spacing_never_arrives():
    at = [case.near(-1e8, d, torch.float32) for d in (0.0, -4.0, -8.0)]
    assert torch.equal(at[0], at[1])
    assert not torch.equal(at[0], at[2])
    assert not torch.equal(*(case.near(-1e8, d, torch.float64) for d in (0.0, -1.0)))
    text = tell("onnxruntime-14363")
    assert "is 8 away" in " ".join(text.split())
    assert "for delta = -1, -2, -3, -4" in " ".join(text.split())


# ---------------------------------------------------------------- the text


def test_the_text_says_what_was_found():
    text = tell("onnxruntime-14363")
    assert max(map(len, text.splitlines())) <= 79
    words = " ".join(text.split())
    assert f"What onnxruntime {onnxruntime.__version__} does" in words
    assert (
        "Within rounding in every row: onnxruntime. Row 0 may attend to nothing; the other rows agree with all of them."
        in words
    )
    assert "In all of them: onnxruntime (" in words
    assert "uniform over all 7 keys" in words


def test_twin_the_text_follows_the_operator(monkeypatch):
    monkeypatch.setattr(case, "onnxruntime_output", lambda values, run: in_float32(values, "add", run))
    words = " ".join(tell("onnxruntime-14363").split())
    assert "Within rounding in every row: add. Row 0" in words
    assert "In all of them: onnxruntime (" not in words


def test_twin_an_operator_that_is_like_nothing(monkeypatch):
    monkeypatch.setattr(case, "onnxruntime_output", lambda values, run: torch.ones(N, 481))
    words = " ".join(tell("onnxruntime-14363").split())
    assert (
        "Within rounding in every row: none. Row 0 may attend to nothing; the other rows tell more. With"
        in words
    )
    assert "In all of them: none." in words


def test_without_onnxruntime_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(case, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    text = tell("onnxruntime-14363")
    assert 'pip install "gradderiv[peers]"' in " ".join(text.split())
    assert "Within rounding" not in text
    assert "is 8 away" in " ".join(text.split())
    assert "0.0005 0.3332" in text


def test_it_starts_quietly():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "gradderiv", "casebook", "onnxruntime-14363"],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert done.stderr == ""
    assert done.stdout.startswith("microsoft/onnxruntime #14363")


def test_the_lowest_float_is_float32s():
    assert torch.tensor(LOWEST, dtype=torch.float64).float().item() == LOWEST
    assert math.isinf(torch.tensor(2 * LOWEST).item())
