"""Exercises as they stand in a chapter: text, given code, answer with its solution, checker, each a cell that bears the exercise's id.

    # %% [markdown] exercise="5.1" kind="chain" points=4 title="The keys"
    # %% given="5.1"
    # %% answer="5.1"             the solution between ### BEGIN SOLUTION and ### END SOLUTION
    # %% checker="5.1"

What is not exactly so is an error that names the file and the line.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gradderiv.book.library import Cell, cells, chapters
from gradderiv.errors import InputError, message

KINDS = ("chain", "function", "mistake")
ROLES = ("exercise", "given", "answer", "checker")
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
CALLS = {"chain": "check_chain", "function": "check_functions", "mistake": "check_mistake"}
STUBS = {
    "chain": "# your lines: line(EXPRESSION, REASON)",
    "function": 'raise NotImplementedError("your lines")',
    "mistake": "answer = ...  # correct(LINE, EXPRESSION, REASON)",
}


@dataclass(frozen=True)
class Exercise:
    """One exercise, as its chapter has it.

    Attributes:
        id: chapter and number, as ``5.1``.
        kind: chain (complete it), function (write it) or mistake (find it).
        points: for a whole answer.
        text: what is asked, as markdown.
        given: the code that comes before the answer.
        answer: the answer with the solution.
        checker: the code that judges an answer, with the listed mistakes.
        first: how many cells of the chapter come before it.
    """

    id: str
    kind: str
    points: int
    title: str
    path: Path
    text: Cell
    given: tuple[Cell, ...]
    answer: Cell
    checker: Cell
    first: int

    @property
    def blank(self) -> str:
        """The answer with the solution cut out."""
        return _cut(self.answer.source, STUBS[self.kind])

    @property
    def solution(self) -> str:
        """What was cut out, region below region."""
        return "\n".join(_regions(self.answer.source))


class BookCell(NamedTuple):
    """A cell and its part in an exercise: text, given, answer, checker, or "" outside of exercises."""

    cell: Cell
    role: str = ""
    exercise: Exercise | None = None


def exercise_cells(path: Path) -> list[BookCell]:
    """The cells of a chapter with their parts in exercises, for whoever renders it.

    Raises:
        InputError: an exercise is not written as it must be.
    """
    found = {e.id: e for e in exercises(path)}
    out = []
    for cell in cells(path):
        role = _role(cell)
        shown = "text" if role == "exercise" else role
        out.append(BookCell(cell, shown, found[cell.meta[role]]) if role else BookCell(cell))
    return out


def exercises(path: Path) -> list[Exercise]:
    """The exercises of one chapter, in order.

    Raises:
        InputError: one of them is not written as it must be.
    """
    return list(_parsed(path, path.stat().st_mtime_ns))


def all_exercises(paths: Sequence[Path] = ()) -> list[Exercise]:
    """The exercises of these chapters, or of the whole book.

    Raises:
        InputError: two have one id, or one is not written as it must be.
    """
    found: dict[str, Exercise] = {}
    for path in paths or chapters():
        for exercise in exercises(path):
            if exercise.id in found:
                _refuse(exercise.path, exercise.text.line, f"a second exercise {exercise.id}",
                        f"{found[exercise.id].path.name} has it, too", "give it the next number")  # fmt: skip
            found[exercise.id] = exercise
    return list(found.values())


def find(id: str, paths: Sequence[Path] = ()) -> Exercise:
    """The exercise of that id.

    Raises:
        InputError: there is none.
    """
    found = all_exercises(paths)
    for exercise in found:
        if exercise.id == id:
            return exercise
    there = ", ".join(e.id for e in found) or "none"
    raise InputError(
        message("the id of an exercise", f"{id!r}; there are {there}", "a slip of the pen", "gradderiv exercise list")
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def _parsed(path: Path, changed: int) -> tuple[Exercise, ...]:
    """The exercises as the file stood when it was ``changed``."""
    _require_known_marks(path)
    out: list[Exercise] = []
    every = cells(path)
    at = 0
    while at < len(every):
        role = _role(every[at])
        if not role:
            _require_no_markers(path, every[at])
            at += 1
            continue
        id = every[at].meta[role]
        end = next((k for k in range(at, len(every)) if every[k].meta.get(_role(every[k])) != id), len(every))
        if any(e.id == id for e in out):
            _refuse(path, _mark(path, every[at]), f"a second exercise {id}, or one of its cells apart from the others",
                    "an id was copied, or a cell was moved", "keep its cells together, and give each exercise its own number")  # fmt: skip
        out.append(_exercise(path, id, every[at:end], at))
        at = end
    return tuple(out)


def _exercise(path: Path, id: str, run: list[Cell], first: int) -> Exercise:
    roles = [_role(cell) for cell in run]
    by_role = {role: tuple(c for c, r in zip(run, roles, strict=True) if r == role) for role in ROLES}
    line = _mark(path, run[0])
    for role in ("exercise", "answer", "checker"):
        if len(by_role[role]) != 1:
            came = f"exercise {id} has {len(by_role[role]) or 'no'} cells {role}={id!r}"
            _refuse(path, line, came, "a cell was left out, or copied", f"one cell # %% {role}={id!r}")
    if roles != sorted(roles, key=ROLES.index):
        _refuse(path, line, f"the cells of exercise {id} stand as {', '.join(roles)}", "a cell was moved",
                f"this order: {', '.join(ROLES)}")  # fmt: skip
    text, answer, checker = (by_role[role][0] for role in ("exercise", "answer", "checker"))
    kind, points = text.meta.get("kind", ""), text.meta.get("points", "")
    if kind not in KINDS:
        _refuse(path, line, f"kind={kind!r}", "left out or misspelt", f"one of {', '.join(KINDS)}")
    if not re.fullmatch(r"[1-9]\d*", points):
        _refuse(path, line, f"points={points!r}", "left out, or not a whole number", "points=4")
    if text.is_code or not text.source.strip():
        _refuse(path, line, f"exercise {id} has no text", "[markdown] is missing, or nothing stands below it",
                "say what is asked")  # fmt: skip
    for cell in (*by_role["given"], answer, checker):
        if not cell.is_code:
            _refuse(path, _mark(path, cell), f"a markdown cell {_role(cell)}={id!r}", "[markdown] where code belongs",
                    "leave [markdown] out")  # fmt: skip
        if cell is not answer:
            _require_no_markers(path, cell)
    _require_solution(path, id, answer)
    if not re.search(rf"^{CALLS[kind]}\(", checker.source, re.M):
        _refuse(path, _mark(path, checker), f"the checker of exercise {id} checks nothing", f"it does not call {CALLS[kind]}",
                f"{CALLS[kind]}(…), at the left margin")  # fmt: skip
    title = text.meta.get("title") or f"Exercise {id}"
    return Exercise(id, kind, int(points), title, path, text, by_role["given"], answer, checker, first)


def _role(cell: Cell) -> str:
    """Which part of an exercise a cell is, or ""."""
    return next((role for role in ROLES if role in cell.meta), "")


# ---------------------------------------------------------------- markers


def _mark(path: Path, cell: Cell) -> int:
    """The line of the mark that begins a cell."""
    above = path.read_text(encoding="utf-8").splitlines()[: cell.line - 1]
    return max((k for k, line in enumerate(above, 1) if line.startswith("# %%")), default=1)


def _require_known_marks(path: Path) -> None:
    """What a cell's mark says is known, and says one thing."""
    known = {*ROLES, "kind", "points", "title", "tags"}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("# %%"):
            continue
        said = line.removeprefix("# %%").replace("[markdown]", "", 1)
        keys = re.findall(r'(\w+)=(?:"[^"]*"|\d+)', said)
        if not re.search(r"=|exercise|answer|checker", said):
            continue
        left = re.sub(r'\w+=(?:"[^"]*"|\d+)', "", said).strip()
        if left or set(keys) - known or sum(k in ROLES for k in keys) > 1:
            _refuse(path, number, line.strip(), "a word that is unknown, misspelt or not in quotation marks",
                    f'role="5.1", one role of {", ".join(ROLES)}')  # fmt: skip


def _require_no_markers(path: Path, cell: Cell) -> None:
    for number, line in _marks(cell):
        _refuse(
            path, number, line, "it stands outside of an answer cell", 'move it into the cell # %% answer="…"'
        )


def _require_solution(path: Path, id: str, answer: Cell) -> None:
    """Every BEGIN has its END, and something stands between."""
    began = 0
    for number, line in _marks(answer):
        if line != (END if began else BEGIN):
            _refuse(path, number, line, "nested, unbalanced or misspelt",
                    f"{END if began else BEGIN}, alone on its line")  # fmt: skip
        began = 0 if began else number
    if began:
        _refuse(path, began, f"{BEGIN} without its end", f"{END} is missing", f"{END}, below the solution")
    regions = _regions(answer.source)
    if not regions or any(not _code(region) for region in regions):
        _refuse(path, _mark(path, answer), f"exercise {id} has no solution", f"nothing between {BEGIN} and {END}",
                "write the solution there")  # fmt: skip


def _marks(cell: Cell) -> Iterator[tuple[int, str]]:
    """The lines of a cell that are markers, or look as if they were meant to be."""
    for k, line in enumerate(cell.source.splitlines()):
        if re.search(r"#+\s*(BEGIN|END|begin|end)\b|SOLUTION\b", line) and line.lstrip().startswith("#"):
            yield cell.line + k, line.strip()


def _code(region: str) -> bool:
    return any(line.strip() and not line.strip().startswith("#") for line in region.splitlines())


def _regions(source: str) -> list[str]:
    """What stands between the markers."""
    return re.findall(rf"^[ \t]*{BEGIN}\n(.*?)^[ \t]*{END}$", source, re.M | re.S)


def _cut(source: str, stub: str) -> str:
    """The stub where the solution stood."""
    pattern = rf"^([ \t]*){BEGIN}\n.*?^[ \t]*{END}$"
    return re.sub(pattern, lambda m: m[1] + stub, source, flags=re.M | re.S)


def _refuse(path: Path, line: int, came: str, cause: str, do: str) -> None:
    asked = "an exercise is a run of cells of a chapter: text, given code, answer with its solution, checker"
    raise InputError(message(asked, f"{path}:{line}: {came}", cause, do))
