"""Every exercise of the book fails empty, fails with each listed mistake for the reason listed, and passes solved."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradderiv.book import chapters, run
from gradderiv.book.exercises import Exercise, all_exercises, exercises, grading, trial
from gradderiv.book.exercises.trial import cases, fault
from gradderiv.book.exercises.verdict import ExerciseError, Part

CHAPTER = Path(__file__).with_name("05_practice.py")
CHAPTERS = [CHAPTER, *(path for path in chapters() if exercises(path))]


@pytest.mark.parametrize("path", CHAPTERS, ids=[p.stem for p in CHAPTERS])
def test_every_answer_gets_its_verdict(path: Path, record_property: pytest.RecordProperty) -> None:  # type: ignore[name-defined]
    found = exercises(path)
    tried = {e.id: cases(e) for e in found}
    record_property("exercises", len(found))
    record_property("mistakes", sum(len(c) - 2 for c in tried.values()))
    faults = [f"{e.id}: {why}" for e in found for case in tried[e.id] if (why := fault(e, case))]
    assert not faults, "\n\n".join(faults)


def test_the_book_has_exercises_of_every_kind() -> None:
    book = all_exercises()
    assert {e.kind for e in book} == {"chain", "function", "mistake"}
    assert all(e.id.split(".")[0] == str(int(e.path.stem[:2])) for e in book)


# ---------------------------------------------------------------- graders that are wrong on purpose


def faults_of(exercise: Exercise) -> list[str]:
    """The cases whose verdict is not as it should be."""
    return [case.name for case in cases(exercise) if fault(exercise, case)]


@pytest.mark.parametrize("exercise", exercises(CHAPTER), ids=lambda e: e.id)
def test_a_grader_that_accepts_everything_is_caught(
    exercise: Exercise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading, "_judged", lambda attempt, answered: _all_right(attempt.exercise))
    assert faults_of(exercise) == [case.name for case in cases(exercise) if case.name != "solved"]


@pytest.mark.parametrize("exercise", exercises(CHAPTER), ids=lambda e: e.id)
def test_a_grader_that_refuses_everything_is_caught(
    exercise: Exercise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading, "_judged", lambda attempt, answered: grading.nothing(attempt.exercise, "no"))
    assert faults_of(exercise) == [case.name for case in cases(exercise) if case.name != "empty"]


def test_the_wrong_reason_is_caught() -> None:
    exercise = next(e for e in exercises(CHAPTER) if e.id == "5.2")
    case = next(c for c in cases(exercise) if c.name == "without_P")
    other = trial.Case(case.name, case.answer, "a sign")
    assert "does not say" in fault(exercise, other)


def _all_right(exercise: Exercise) -> grading.Verdict:
    part = Part("answer", "right", 1, 1, "fine")
    return grading.Verdict(exercise.id, exercise.title, exercise.kind, exercise.points, (part,))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("check_functions({'dS': f}, forward)", "lists no mistake"),
        ("check_functions({'dS': f}, forward, mistakes=['no-such-mutant'])", "neither a function of its checker nor a mutant"),
        ("check_functions({'dS': f}, forward, mistakes=[f, f])", "lists a mistake twice"),
        ("check_functions({'dS': f}, forward, mistakes=[silent])", "has no docstring"),
        ("check_functions({'dS': f}, forward, mistakes=[short])", "say what is wrong"),
        ("check_functions({'dS': f}, forward, mistakes=[f, twin])", "two mistakes have the same words"),
        ("check_functions({'dS': f}, forward, mistakes=every)", "a list written out"),
    ],
)  # fmt: skip
def test_what_is_listed_must_be_readable(tmp_path: Path, call: str, words: str) -> None:
    path = tmp_path / "01_one.py"
    path.write_text(
        '# %% [markdown] exercise="1.1" kind="function" points=1\n# Write f.\n'
        '# %% answer="1.1"\ndef f(S):\n    ### BEGIN SOLUTION\n    return S\n    ### END SOLUTION\n'
        f'# %% checker="1.1"\ndef f(S):\n    """a sign is wrong"""\n'
        'def twin(S):\n    """a sign is wrong"""\ndef short(S):\n    """dS"""\n'
        f"def silent(S):\n    return S\n{call}\n",
        encoding="utf-8",
    )
    with pytest.raises(ExerciseError, match=words):
        cases(exercises(path)[0])


# ---------------------------------------------------------------- exercises that are none

SOFTMAX = "return P * (dP - (P * dP).sum(-1, keepdim=True))"
NONE = {
    "a wrong solution": (SOFTMAX, "return P * dP", "does not get all points: dS"),
    "a solution that stops half-way": ("line(inner(P.mT @ dO, V_dot), laws.LEFT)\n### END", "### END", "does not get all points: chain"),
    "a claim that holds": ("wrong(inner(-tau * Q.mT", "wrong(inner(tau * Q.mT", "no line of the claim is false"),
    "two false lines": ("wrong(inner(Q.mT @ dS, K_dot.mT)", "wrong(inner(3 * Q.mT @ dS, K_dot.mT)", "two lines of the claim are false"),
    "sizes that hide a transpose": ('{"n_q": 5, "n_k": 2}', '{"n_q": 5, "n_k": 5}', "pairwise different"),
    "one size": (', {"n_q": 5, "n_k": 2}]', "]", "two sizes at least"),
    "a gradient that is zero": ("torch.softmax(S, -1)}", "torch.softmax(0 * S, -1)}", "zero everywhere"),
    "an unknown result": ('{"dS": softmax_backward}', '{"dX": softmax_backward}', "dX is no name of the problem"),
}  # fmt: skip


@pytest.mark.parametrize("name", NONE)
def test_a_chapter_with_an_exercise_that_is_none_stops(tmp_path: Path, name: str) -> None:
    old, new, words = NONE[name]
    text = CHAPTER.read_text(encoding="utf-8")
    assert text.count(old) >= 1
    path = tmp_path / "05_wrong.py"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ExerciseError, match=words):
        run(path)
