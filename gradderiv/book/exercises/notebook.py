"""What a test cell of a notebook calls: the answer that stands in the notebook's namespace, judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradderiv.book.exercises.grading import grade_namespace
from gradderiv.book.exercises.parse import find
from gradderiv.book.exercises.verdict import Verdict
from gradderiv.book.written import display


def points(id: str, namespace: Mapping[str, Any], chapter: str = "") -> float:
    """Print the verdict on what ``globals()`` has as the answer to an exercise, and return its points.

    As the last value of a test cell of nbgrader, a number is partial credit.

    Args:
        chapter: the file of the chapter, if it is none of the book's.
    """
    verdict = _verdict(id, namespace, chapter)
    display(verdict.text())
    return float(verdict.points)


def at_least(id: str, namespace: Mapping[str, Any], wanted: float, chapter: str = "") -> None:
    """Raise with the verdict unless the answer gets this many points.

    Raises:
        AssertionError: it does not.
    """
    verdict = _verdict(id, namespace, chapter)
    if verdict.points < wanted:
        raise AssertionError(verdict.text())


def _verdict(id: str, namespace: Mapping[str, Any], chapter: str) -> Verdict:
    return grade_namespace(find(id, [Path(chapter)] if chapter else ()), namespace)
