"""Chapters with their exercises as source notebooks for nbgrader and Otter-Grader. The course's tool cuts the solutions out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gradderiv.book.exercises.parse import BEGIN, END, BookCell, Exercise, exercise_cells
from gradderiv.book.library import chapters
from gradderiv.errors import InputError, message

Cells = Iterator[Any]


def export(out: Path, format: str, paths: Sequence[Path] = ()) -> list[Path]:
    """Write one notebook for each chapter that has exercises.

    A chapter that is not of the book is named by its whole path in the test cells: there, they read the exercise.

    Args:
        format: nbgrader or otter.
        paths: the chapters; the whole book if none is given.

    Raises:
        InputError: nbformat is not installed, a notebook is there already, or no chapter has an exercise.
    """
    cells_of = {"nbgrader": _nbgrader, "otter": _otter}[format]
    notebooks = []
    for path in paths or chapters():
        of_chapter = exercise_cells(path)
        if any(c.exercise for c in of_chapter):
            notebooks.append((out / f"{path.stem}.ipynb", _notebook(of_chapter, path, cells_of, bool(paths))))
    if not notebooks:
        raise InputError(message("chapters with exercises", "none has one", "other files", "gradderiv exercise list"))  # fmt: skip
    there = [str(file) for file, _ in notebooks if file.exists()]
    if there:
        raise InputError(message("new notebooks", f"{there[0]} exists", "an earlier export", "another folder, or remove it"))  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    for file, text in notebooks:
        file.write_text(text, encoding="utf-8")
    return [file for file, _ in notebooks]


def _notebook(
    of_chapter: list[BookCell], path: Path, cells_of: Callable[[list[BookCell], Path, str], Cells], own: bool
) -> str:
    try:
        import nbformat
    except ImportError as error:
        raise InputError(message("notebooks are written with nbformat", "it is not installed", "it comes with an extra", "pip install 'gradderiv[book]'")) from error  # fmt: skip
    book = nbformat.v4.new_notebook(
        cells=list(cells_of(of_chapter, path, f", chapter={str(path.resolve())!r}" if own else "")),
        metadata={"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
    )
    for k, cell in enumerate(book.cells):
        cell["id"] = f"cell-{k}"
    nbformat.validate(book)
    return str(nbformat.writes(book)) + "\n"


def _kept(exercise: Exercise) -> str:
    """The name of what an answer left behind: a later exercise may use its names again."""
    return "after_" + re.sub(r"\W+", "_", exercise.id)


def _id(exercise: Exercise) -> str:
    return re.sub(r"\W+", "-", exercise.id)


# ---------------------------------------------------------------- nbgrader


def _nbgrader(of_chapter: list[BookCell], path: Path, chapter: str) -> Cells:
    """Cells with nbgrader's marks: given code is read-only, an answer is a solution cell, a test cell returns the points."""
    from nbformat.v4 import new_code_cell, new_markdown_cell

    for k, (cell, role, exercise) in enumerate(of_chapter):
        if not cell.is_code:
            yield new_markdown_cell(cell.source)
        elif exercise is None or role == "given":
            yield new_code_cell(cell.source, metadata=_marks(f"given-{k}", locked=True))
        elif role == "answer":
            source = _with_blank(exercise, cell.source)
            yield new_code_cell(source, metadata=_marks(f"answer-{_id(exercise)}", solution=True))
        else:
            test = f"from gradderiv.book.exercises.notebook import points\n\npoints({exercise.id!r}, globals(){chapter})"
            marks = _marks(f"test-{_id(exercise)}", grade=True, locked=True, points=exercise.points)
            yield new_code_cell(test, metadata=marks)


def _marks(grade_id: str, **said: Any) -> dict[str, Any]:
    """A cell's metadata as nbgrader's schema 3 has it."""
    marks = {"grade": False, "solution": False, "locked": False, "task": False, "schema_version": 3, **said}
    return {"nbgrader": {"grade_id": grade_id, "cell_type": "code", **marks}}


def _with_blank(exercise: Exercise, source: str) -> str:
    """An answer of an earlier exercise must not stand for a missing one."""
    return f"answer = None\n{source}" if exercise.kind == "mistake" else source


# ---------------------------------------------------------------- Otter-Grader


def _otter(of_chapter: list[BookCell], path: Path, chapter: str) -> Cells:
    """Cells in the format of ``otter assign``: raw cells around each question, one test for each point."""
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_raw_cell

    yield new_raw_cell(f"# ASSIGNMENT CONFIG\nname: {path.stem}\ninit_cell: false\nexport_cell: false\nrun_tests: true")  # fmt: skip
    for cell, role, exercise in of_chapter:
        if exercise is None:
            yield new_code_cell(cell.source) if cell.is_code else new_markdown_cell(cell.source)
        elif role == "text":
            yield new_raw_cell(f"# BEGIN QUESTION\nname: q{_id(exercise)}\npoints: {exercise.points}")
            yield new_markdown_cell(cell.source)
        elif role == "given":
            yield new_code_cell(cell.source)
        elif role == "answer":
            source = _with_blank(exercise, cell.source)
            yield new_raw_cell("# BEGIN SOLUTION")
            yield new_code_cell(source.replace(BEGIN, "# BEGIN SOLUTION").replace(END, "# END SOLUTION"))
            yield new_raw_cell("# END SOLUTION")
            yield new_code_cell(f"{_kept(exercise)} = dict(globals())  # the tests run after the last cell")
        else:
            yield new_raw_cell("# BEGIN TESTS")
            for wanted in range(1, exercise.points + 1):
                yield new_code_cell(f"from gradderiv.book.exercises.notebook import at_least\nat_least({exercise.id!r}, {_kept(exercise)}, {wanted}{chapter})")  # fmt: skip
            yield new_raw_cell("# END TESTS")
            yield new_raw_cell("# END QUESTION")
