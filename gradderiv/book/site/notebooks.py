"""A chapter as a notebook: run here, cell by cell, with what each cell shows.

No kernel is started: importing torch once for each chapter would take longer than all chapters together.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from gradderiv.book.chain import Chain
from gradderiv.book.exercises.parse import BEGIN, END, Exercise, exercise_cells
from gradderiv.book.library import REDRAWS, again_at, at, execute
from gradderiv.book.named import Draw
from gradderiv.book.site.outputs import Outputs
from gradderiv.errors import GradderivError, message
from gradderiv.numbers.lanes import DrawAgain

ADMONITION = re.compile(r"^```\{admonition\}(.*)\n((?:(?!```).*\n)*)```$", re.M)
COLAB = 'import sys\n\nif "google.colab" in sys.modules:\n    %pip install -q gradderiv'

PYTHON = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SOLUTION = {  # folded on a page, in JupyterLab and in Colab
    "tags": ["hide-cell", "solution"],
    "mystnb": {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"},
    "jupyter": {"source_hidden": True},
    "cellView": "form",
}


class ChapterError(GradderivError):
    """A chapter that stops before its end."""


class Written(NamedTuple):
    """A chapter that was run: its notebook, and the chains in it, all of which hold."""

    path: Path
    notebook: nbformat.NotebookNode
    chains: list[Chain]

    @property
    def name(self) -> str:
        return self.path.stem


def written(path: Path, *, seed: int = 0) -> Written:
    """Run a chapter, at another point where the first has a zero denominator.

    Raises:
        ChapterError: a cell raises; says which, and on which line of the file.
    """
    draw = Draw(seed)
    while True:
        try:
            with at(draw) as (chains, _):
                return Written(path, _run(path), chains)
        except DrawAgain as again:
            if draw.draw == REDRAWS:
                raise
            draw = again_at(draw, again)


def download(chapter: Written) -> nbformat.NotebookNode:
    """The notebook for Jupyter and Colab: LaTeX, which both draw also where they do not trust HTML, and how to install."""
    notebook = nbformat.from_dict(chapter.notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = ADMONITION.sub(_quoted, cell.source)
        for output in cell.get("outputs", ()):
            if "text/latex" in output.get("data", {}):
                output.data.pop("text/html", None)
    notebook.cells.insert(1, new_code_cell(COLAB, id="install"))
    return notebook


def _quoted(admonition: re.Match[str]) -> str:
    """A box of the site as a quotation: Jupyter knows no boxes."""
    said = [line for line in admonition[2].rstrip("\n").split("\n") if not re.match(r":\w+:", line)]
    lines = [f"**{admonition[1].strip()}.**", "", *said]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _run(path: Path) -> nbformat.NotebookNode:
    namespace: dict[str, Any] = {}
    made: list[Any] = []
    for number, (cell, role, exercise) in enumerate(exercise_cells(path), 1):
        if not cell.is_code:
            made.append(new_markdown_cell(cell.source if exercise is None else _asked(exercise)))
            continue
        if exercise is not None and role == "answer":
            made.append(new_code_cell(exercise.blank))
        outputs = Outputs()
        try:
            with outputs.collected():  # the empty lines: a traceback names the lines of the file
                execute("\n" * (cell.line - 1) + cell.source, path, namespace)
        except DrawAgain:
            raise
        except Exception as error:
            raise _stopped(path, number, cell.line, error) from error
        if exercise is not None and role == "answer":
            made.append(new_code_cell(_solved(exercise), outputs=outputs.all, metadata=SOLUTION))
        elif role == "checker":  # what it shows is the finished answer
            made[-1].outputs += outputs.all
        else:
            made.append(new_code_cell(cell.source, outputs=outputs.all, metadata=outputs.metadata))
    for number, cell in enumerate(made):
        cell.id = f"cell-{number}"
    return new_notebook(cells=made, metadata=PYTHON)


def _asked(exercise: Exercise) -> str:
    points = "1 point" if exercise.points == 1 else f"{exercise.points} points"
    return f"### Exercise {exercise.id}: {exercise.title} ({points})\n\n{exercise.text.source}"


def _solved(exercise: Exercise) -> str:
    """The answer with its solution, without the markers."""
    lines = exercise.answer.source.splitlines()
    return "\n".join(line for line in lines if line.strip() not in (BEGIN, END))


def _stopped(path: Path, cell: int, start: int, error: Exception) -> ChapterError:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = (frames[-1].lineno if frames else getattr(error, "lineno", None)) or start + 1
    return ChapterError(
        message(
            f"chapter {path.name} must run to its end; cell {cell} stops in line {line}",
            f"{type(error).__name__}: {error}".replace("\n", "\n         "),
            "the chapter, or what it imports, has changed",
            f"run it alone: python {path}",
        )
    )
