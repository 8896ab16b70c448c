"""The guide «how to add a rule» is followed, word for word; and once with a mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gradderiv
from gradderiv.checks import catalog, problems, reference

GUIDE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.M | re.S)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide writes into the tables; they are put back afterwards."""
    for module, names in (
        (catalog, ["RULES"]),
        (problems, ["PROBLEMS"]),
        (reference, ["TEXTBOOK", "LOOPS", "TORCH"]),
    ):
        for name in names:
            table = getattr(module, name)
            before = dict(table)
            monkeypatch.setattr(module, name, table)
            monkeypatch.setitem(table, "normalize", None)
            monkeypatch.setitem(table, "tiny-normalize", None)
            for key in set(table) - set(before):
                del table[key]


def follow(replace: str = "", by: str = "") -> gradderiv.Report:
    names: dict[str, object] = {"__name__": "guide"}
    assert replace in BLOCKS[0]
    for block in (BLOCKS[0].replace(replace, by, 1), *BLOCKS[1:]):
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    return gradderiv.verify("normalize")


@pytest.mark.usefixtures("tables")
def test_the_guide_is_followed() -> None:
    report = follow()
    assert report.passed, str(report)
    oracles = {r.oracle for r in report.records}
    assert {
        "forward",
        "autograd",
        "finite differences",
        "dual",
        "field",
        "second order",
        "sympy",
        "identities",
    } <= oracles


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("right", "wrong", "notice"),
    [
        ("(dY - (dY * Y).sum(-1, keepdim=True)) / s", "dY / s", {"autograd", "field", "sympy", "dual"}),
        ("X_dot - Y * X_dot.sum", "X_dot + Y * X_dot.sum", {"dual"}),
        ("dY_dot - inner - dX", "dY_dot - inner + dX", {"second order"}),
        ("s = X.sum(-1, keepdim=True)", "s = X.sum(-2, keepdim=True)", {"forward", "autograd", "field"}),
    ],
)
def test_the_guide_with_a_mistake(right: str, wrong: str, notice: set[str]) -> None:
    report = follow(right, wrong)
    assert notice <= {r.oracle for r in report.failures}
