"""Exercises that stand in the chapters, and grading that says what went wrong.

In a chapter: :func:`check_chain`, :func:`check_functions`, :func:`check_mistake` with :func:`claim` and :func:`correct`. Around it:
:func:`all_exercises`, :func:`grade`, and :func:`exercise_cells` for whoever renders a chapter. An answer is executed; nothing is sandboxed.
"""

from gradderiv.book.exercises.chains import check_chain
from gradderiv.book.exercises.claims import check_mistake, claim, correct
from gradderiv.book.exercises.functions import check_functions
from gradderiv.book.exercises.grading import grade, grade_namespace
from gradderiv.book.exercises.parse import Exercise, all_exercises, exercise_cells, exercises, find
from gradderiv.book.exercises.verdict import ExerciseError, Part, Verdict

__all__ = [
    "Exercise",
    "ExerciseError",
    "Part",
    "Verdict",
    "all_exercises",
    "check_chain",
    "check_functions",
    "check_mistake",
    "claim",
    "correct",
    "exercise_cells",
    "exercises",
    "find",
    "grade",
    "grade_namespace",
]
