"""Notebooks for nbgrader and Otter: valid, with the marks that these tools read, and test cells that return the points."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from gradderiv.book.exercises import exercises
from gradderiv.cli import main

nbformat = pytest.importorskip("nbformat")

CHAPTER = Path(__file__).with_name("05_practice.py")
ASKED = {e.id: e for e in exercises(CHAPTER)}
STUB = "# YOUR CODE HERE\nraise NotImplementedError()"  # what nbgrader puts in the place of a solution


@pytest.fixture(scope="module", params=["nbgrader", "otter"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    out = tmp_path_factory.mktemp("out")
    format = str(request.param)
    assert main(["exercise", "export", "--format", format, "--out", str(out), "--chapter", str(CHAPTER)]) == 0
    notebook = nbformat.read(out / "05_practice.ipynb", as_version=4)
    nbformat.validate(notebook)
    return format, notebook


@pytest.fixture(scope="module")
def nbgrader(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("nbgrader")
    assert main(["exercise", "export", "--out", str(out), "--chapter", str(CHAPTER)]) == 0
    return nbformat.read(out / "05_practice.ipynb", as_version=4)


def test_every_answer_is_there_with_its_solution(exported: tuple[str, Any]) -> None:
    _, notebook = exported
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    for exercise in ASKED.values():
        assert all(line in code for line in exercise.solution.splitlines())
        assert exercise.checker.source not in code


def test_the_marks_of_nbgrader(nbgrader: Any) -> None:
    marks = [cell.metadata.nbgrader for cell in nbgrader.cells if "nbgrader" in cell.metadata]
    assert len({m.grade_id for m in marks}) == len(marks)
    assert all(m.schema_version == 3 and m.task is False for m in marks)
    tests = {m.grade_id: m.points for m in marks if m.grade}
    assert tests == {f"test-{e.id.replace('.', '-')}": e.points for e in ASKED.values()}
    assert all(m.locked and not m.solution for m in marks if m.grade)
    solutions = [cell.source for cell in nbgrader.cells if cell.metadata.get("nbgrader", {}).get("solution")]
    assert len(solutions) == len(ASKED)
    assert all("### BEGIN SOLUTION" in s and "### END SOLUTION" in s for s in solutions)


def graded(notebook: Any, answers: dict[str, str]) -> dict[str, Any]:
    """The last values of the test cells of a notebook whose cells are run in order, errors left standing as nbgrader does."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    found = {}
    for cell in notebook.cells:
        marks = cell.metadata.get("nbgrader", {})
        source = answers.get(marks.get("grade_id", ""), cell.source)
        if cell.cell_type != "code":
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            if marks.get("grade"):
                *first, last = source.splitlines()
                exec("\n".join(first), namespace)
                found[marks["grade_id"]] = eval(last, namespace)
            elif marks.get("solution"):
                with contextlib.suppress(Exception):
                    exec(source, namespace)
            else:
                exec(source, namespace)
    return found


def test_solved_a_notebook_gets_all_points(nbgrader: Any) -> None:
    points = graded(nbgrader, {})
    assert points == {f"test-{e.id.replace('.', '-')}": e.points for e in ASKED.values()}
    assert all(type(p) is float for p in points.values())  # anything else counts as full marks


def test_empty_a_notebook_gets_none(nbgrader: Any) -> None:
    answers = {f"answer-{e.id.replace('.', '-')}": STUB for e in ASKED.values()}
    for e in ASKED.values():
        if e.kind == "mistake":
            answers[f"answer-{e.id.replace('.', '-')}"] = f"answer = None\n{STUB}"
    points = graded(nbgrader, answers)
    assert set(points.values()) == {0.0}
    assert all(type(p) is float for p in points.values())


def test_partial_credit_in_a_notebook(nbgrader: Any) -> None:
    answers = {
        "answer-5-1": "line(inner(dO, P @ V_dot), OUTPUT.moves)\nline(inner(-P.mT @ dO, V_dot), laws.LEFT)",
        "answer-5-3": ASKED["5.3"].answer.source.replace("return scale * dS @ K", "return dS @ K"),
    }
    points = graded(nbgrader, answers)
    assert (points["test-5-1"], points["test-5-3"]) == (2.0, 3.2)
    assert points["test-5-2"] == ASKED["5.2"].points


def test_a_chain_of_ones_own_is_not_the_one_that_was_given(nbgrader: Any) -> None:
    own = "line = chain(inner(dO, P @ V_dot), 'mine')\nline(inner(P.mT @ dO, V_dot), laws.LEFT)"
    assert graded(nbgrader, {"answer-5-1": own})["test-5-1"] == 0.0


def test_nothing_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "05_practice.ipynb").write_text("mine", encoding="utf-8")
    assert main(["exercise", "export", "--out", str(tmp_path), "--chapter", str(CHAPTER)]) == 2
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "05_practice.ipynb").read_text(encoding="utf-8") == "mine"


def test_the_questions_of_otter(tmp_path: Path) -> None:
    assert (
        main(["exercise", "export", "--format", "otter", "--out", str(tmp_path), "--chapter", str(CHAPTER)])
        == 0
    )
    notebook = nbformat.read(tmp_path / "05_practice.ipynb", as_version=4)
    raw = [cell.source.splitlines()[0] for cell in notebook.cells if cell.cell_type == "raw"]
    question = [
        "# BEGIN QUESTION",
        "# BEGIN SOLUTION",
        "# END SOLUTION",
        "# BEGIN TESTS",
        "# END TESTS",
        "# END QUESTION",
    ]
    assert raw == ["# ASSIGNMENT CONFIG", *question * len(ASKED)]
    tests = [cell.source for cell in notebook.cells if "at_least" in cell.source]
    assert len(tests) == sum(e.points for e in ASKED.values())
