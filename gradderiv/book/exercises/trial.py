"""Every exercise is tried: empty it fails, with each listed mistake it fails for the reason listed, and solved it passes."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from gradderiv.book.exercises.grading import grade
from gradderiv.book.exercises.parse import CALLS, Exercise
from gradderiv.book.exercises.verdict import ExerciseError, Verdict
from gradderiv.checks.mutants import MUTANTS

Function = ast.FunctionDef


@dataclass(frozen=True)
class Case:
    """An answer whose verdict is known beforehand.

    Attributes:
        name: empty, solved, or the mistake's.
        says: words that the verdict must contain.
    """

    name: str
    answer: str
    says: str = ""


def cases(exercise: Exercise) -> list[Case]:
    """The empty answer, one with each listed mistake, and the solution.

    Raises:
        ExerciseError: no mistake is listed, or one cannot be read.
    """
    wrong = [_case(exercise, target, mistake) for target, mistake in _listed(exercise)]
    if not wrong:
        raise ExerciseError(f"exercise {exercise.id} lists no mistake: which answers are to be recognised?")
    if len({case.name for case in wrong}) < len(wrong):
        raise ExerciseError(f"exercise {exercise.id} lists a mistake twice")
    told = {(target, case.says) for (target, _), case in zip(_listed(exercise), wrong, strict=True)}
    if len(told) < len(wrong) and exercise.kind == "function":
        raise ExerciseError(
            f"exercise {exercise.id}: two mistakes have the same words, so neither is told from the other"
        )
    return [Case("empty", exercise.blank), *wrong, Case("solved", exercise.answer.source)]


def fault(exercise: Exercise, case: Case) -> str:
    """What is not as it should be with the verdict on this case, or ""."""
    verdict = grade(exercise, case.answer)
    if case.name == "solved":
        return (
            ""
            if verdict.right and verdict.points == exercise.points
            else f"the solution fails:\n{verdict.text()}"
        )
    if verdict.right or verdict.points >= exercise.points:
        return f"{case.name}: the answer is accepted"
    if case.name == "empty":
        return f"the empty answer gets {verdict.points} points" if verdict.points else ""
    if case.says not in said(verdict):
        return f"{case.name}: the verdict does not say «{case.says}»:\n{verdict.text()}"
    return ""


def said(verdict: Verdict) -> str:
    """Everything that the verdict says, on one line."""
    return " ".join(" ".join(part.why for part in verdict.parts).split())


def _case(exercise: Exercise, target: str, mistake: str) -> Case:
    """The answer with one mistake, as source: that of the mistake's function, or a mutant's."""
    tree = ast.parse(exercise.checker.source)
    defined = {s.name: s for s in tree.body if isinstance(s, Function)}
    if mistake in MUTANTS:
        results = _results(exercise)[target]
        source = f"from gradderiv.book.exercises.listed import from_mutant\n{target} = from_mutant({mistake!r}, {target}, {results!r}).function"
        return Case(mistake, f"{exercise.answer.source}\n{source}", " ".join(MUTANTS[mistake].what.split()))
    if mistake not in defined:
        raise ExerciseError(
            f"exercise {exercise.id}: {mistake!r} is neither a function of its checker nor a mutant"
        )
    function = defined[mistake]
    says = " ".join((ast.get_docstring(function) or "").split())
    if not says:
        raise ExerciseError(f"exercise {exercise.id}: {mistake} has no docstring: what must the verdict say?")
    if exercise.kind == "function" and " " not in says:
        raise ExerciseError(
            f"exercise {exercise.id}: {mistake} is told to the reader as «{says}»: say what is wrong"
        )
    if exercise.kind == "function":
        function.name = target
        return Case(mistake, f"{exercise.answer.source}\n\n\n{ast.unparse(function)}", says)
    body = [_answering(s) for s in function.body[1:]]
    return Case(mistake, ast.unparse(ast.Module(body, [])), says)


def _answering(statement: ast.stmt) -> ast.stmt:
    """``return X`` as ``answer = X``."""
    if isinstance(statement, ast.Return) and statement.value is not None:
        return ast.fix_missing_locations(ast.Assign([ast.Name("answer", ast.Store())], statement.value))
    return statement


def _call(exercise: Exercise) -> ast.Call:
    """The call that judges."""
    for statement in ast.parse(exercise.checker.source).body:
        call = getattr(statement, "value", None)
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Name)
            and call.func.id == CALLS[exercise.kind]
        ):
            return call
    raise ExerciseError(f"exercise {exercise.id}: its checker does not call {CALLS[exercise.kind]}")


def _listed(exercise: Exercise) -> list[tuple[str, str]]:
    """The function that is mistaken (of exercises of that kind), and the name of the mistake."""
    written = next((k.value for k in _call(exercise).keywords if k.arg == "mistakes"), None)
    if isinstance(written, ast.Dict):
        lists = {str(ast.literal_eval(k)): v for k, v in zip(written.keys, written.values, strict=True) if k}
    else:
        target = next(iter(_results(exercise)), "") if exercise.kind == "function" else ""
        lists = {} if written is None else {target: written}
    for items in lists.values():
        if not isinstance(items, (ast.List, ast.Tuple)):
            raise ExerciseError(
                f"exercise {exercise.id}: mistakes is a list written out where it is passed, not {ast.unparse(items)}"
            )
    return [(target, _name(item)) for target, items in lists.items() for item in items.elts]  # type: ignore[attr-defined]


def _name(item: ast.expr) -> str:
    if isinstance(item, ast.Name):
        return item.id
    if isinstance(item, ast.Constant) and isinstance(item.value, str):
        return item.value
    raise ExerciseError(f"a mistake is the name of a function, or a mutant's id: {ast.unparse(item)}")


def _results(exercise: Exercise) -> dict[str, tuple[str, ...]]:
    """By the name of each function that is asked for, its results."""
    functions = _call(exercise).args[0]
    assert isinstance(functions, ast.Dict)
    out = {}
    for key, value in zip(functions.keys, functions.values, strict=True):
        names = ast.literal_eval(key) if key else ()
        out[_name(value)] = (names,) if isinstance(names, str) else tuple(names)
    return out
