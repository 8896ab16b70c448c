"""Grading: an answer is run where the exercise stands, in the chapter's namespace, and the exercise's own checker judges it.

The answer is executed in this process. There is no sandbox: grade only files that you are ready to run.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import io
import linecache
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import torch

from gradderiv.book.chain import Chain, ChainError
from gradderiv.book.exercises.guard import LIMIT, TimeIsUp, raised, within
from gradderiv.book.exercises.parse import Exercise, exercises
from gradderiv.book.exercises.verdict import ExerciseError, Part, Verdict, nothing
from gradderiv.book.laws import LAWS
from gradderiv.book.library import REDRAWS, Cell, again_at, at, cells, execute
from gradderiv.book.named import Draw, Named
from gradderiv.book.reasoning.names import leaves
from gradderiv.book.reasoning.reasons import Cited, Computed, Definition, Fact, Reason, Tangent
from gradderiv.book.written import SHOW
from gradderiv.numbers.lanes import DrawAgain
from gradderiv.numbers.nodes import Node, Symbol
from gradderiv.numbers.spelling import spell

ANSWERS = {"chain": "line", "mistake": "answer"}


@dataclass
class Attempt:
    """An answer on its way through the checker.

    Attributes:
        exercise: what it answers.
        file: where the answer stands, for the lines of errors.
        given: the namespace before the answer.
        solved: the namespace after the solution.
        begun: the chain that the answer was given to continue.
        stopped: what stopped the answer, if anything did.
        parts: the judgement.
    """

    exercise: Exercise
    file: str
    given: dict[str, Any]
    solved: dict[str, Any]
    begun: Chain | None = None
    stopped: BaseException | None = None
    parts: list[Part] = field(default_factory=list)


ATTEMPT: ContextVar[Attempt | None] = ContextVar("ATTEMPT", default=None)
JUDGES: ContextVar[bool] = ContextVar(
    "JUDGES", default=True
)  # whether a chapter that runs judges its own solutions


def judged(parts: list[Part]) -> None:
    """Hand the judgement on; where a chapter runs, its own solution must be right in every part.

    Raises:
        ExerciseError: the chapter's solution is not.
    """
    attempt = ATTEMPT.get()
    if attempt is not None:
        attempt.parts = parts
    elif any(part.verdict != "right" for part in parts):
        wrong = next(part for part in parts if part.verdict != "right")
        raise ExerciseError(f"the solution of an exercise does not get all points: {wrong.name}: {wrong.why}")


def grade(exercise: Exercise, answer: str, *, file: str = "<answer>", limit: float = LIMIT) -> Verdict:
    """Judge an answer, the source of what stands in the exercise's answer cell.

    Args:
        file: where it stands, for the lines of errors.
        limit: seconds that it may take.
    """
    try:
        compile(answer, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:  # the last two: nested too deeply
        return nothing(exercise, raised(error, file))
    linecache.cache[file] = (len(answer), None, answer.splitlines(keepends=True), file)
    draw = Draw()
    while True:
        with at(draw), contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                given, solved = _prepared(exercise.path, exercise.id, exercise.path.stat().st_mtime_ns, draw)
                return _graded(exercise, answer, _apart(given), solved, file, limit, printed)
            except DrawAgain as again:
                if draw.draw == REDRAWS:
                    return nothing(
                        exercise, "it divides by zero, or by what is zero at every point that was drawn"
                    )
                draw = again_at(draw, again)


def grade_namespace(exercise: Exercise, namespace: Mapping[str, Any]) -> Verdict:
    """Judge the answer that stands in a namespace, as of a notebook whose cells were run."""
    given, solved = dict(namespace), dict(namespace)
    attempt = Attempt(exercise, "<answer>", given, solved)
    with contextlib.redirect_stdout(io.StringIO()):
        if exercise.kind == "chain" and isinstance(namespace.get("line"), Chain):
            fresh = dict(namespace)
            for cell in exercise.given:
                _run(cell, exercise.path, fresh)
            start, said = fresh["line"].lines, namespace["line"].lines
            if [spell(x.named.node) for x in start] != [spell(x.named.node) for x in said[: len(start)]]:
                return nothing(exercise, "line is another chain than the one that was given")
            given["line"] = _fork(namespace["line"])
            del given["line"].lines[len(start) :]
            solved["line"] = _fork(given["line"])
            attempt.begun = namespace["line"]
        _run(exercise.answer, exercise.path, solved)
        return _judged(attempt, namespace)


def _graded(
    exercise: Exercise,
    answer: str,
    given: dict[str, Any],
    solved: dict[str, Any],
    file: str,
    limit: float,
    printed: io.StringIO,
) -> Verdict:
    attempt = Attempt(exercise, file, given, solved)
    mine = _apart(given)
    attempt.begun = mine.get("line")
    if isinstance(attempt.begun, Chain):
        attempt.begun = mine["line"] = Answered.continues(attempt.begun, stated_in(given))
    printed.seek(0)
    printed.truncate()
    try:
        with within(limit):
            try:
                exec(compile(answer, file, "exec", dont_inherit=True), mine)
            except DrawAgain:
                raise
            except (TimeIsUp, SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                attempt.stopped = error
            verdict = _judged(attempt, mine)
    except TimeIsUp:
        verdict = nothing(exercise, f"the answer took more than {limit:g} seconds: a loop without end?")
    except SystemExit:
        verdict = nothing(exercise, "the answer called exit")
    return replace(verdict, printed=printed.getvalue())


def _judged(attempt: Attempt, answered: Mapping[str, Any]) -> Verdict:
    """Run the checker in the namespace that was given, with nothing of the answer in it but what was asked for."""
    exercise = attempt.exercise
    names = _names(exercise)
    if attempt.stopped is not None and exercise.kind != "chain":
        return nothing(exercise, raised(attempt.stopped, attempt.file))
    missing = [name for name in names if name not in answered]
    if missing:
        return nothing(exercise, f"there is no {', '.join(missing)}: the answer must define it")
    if exercise.kind == "function":
        for name in names:
            if not isinstance(answered[name], FunctionType):
                return nothing(exercise, f"{name} must be a function: def {name}(…)")
            answered[name].__name__ = name  # a lambda has another
    if exercise.kind == "chain" and answered["line"] is not attempt.begun:
        return nothing(exercise, "line is another chain than the one that was given")
    space = {**attempt.given, **{name: answered[name] for name in names}}
    token = ATTEMPT.set(attempt)
    try:
        _run(exercise.checker, exercise.path, space)
    finally:
        ATTEMPT.reset(token)
    return Verdict(exercise.id, exercise.title, exercise.kind, exercise.points, tuple(attempt.parts))


class Answered(Chain):
    """A chain that an answer continues: by laws, and by what the chapter has stated. A fact of one's own would make any jump a step."""

    stated: Stated
    accepted: frozenset[int]

    @classmethod
    def continues(cls, line: Chain, stated: Stated) -> Answered:
        """The same chain, to be continued with what was stated."""
        out = cls.__new__(cls)
        vars(out).update(vars(_fork(line)), stated=stated, accepted=frozenset())
        return out

    def __call__(self, expression: Named, *reasons: Any, note: str = "") -> Chain:
        require_stated(reasons, self.stated)
        super().__call__(expression, *reasons, note=note)
        self.accepted |= {id(expression)}
        return self


class Stated(NamedTuple):
    """What was said before an answer: the reasons, by identity, and the names, with what they were given to."""

    reasons: frozenset[int]
    names: dict[str, set[tuple[Node, ...]]]


def require_stated(reasons: Iterable[Any], stated: Stated) -> None:
    """The reasons are laws, or were stated before the answer.

    Raises:
        ChainError: one of them was not.
    """
    for reason in reasons:
        base = reason.of if isinstance(reason, Tangent) else reason
        if (
            not isinstance(reason, Reason)
            or id(base) in stated.reasons
            or any(reason is x for x in LAWS.values())
        ):
            continue
        if (
            type(base) is Definition and base.recalls
        ):  # definition(X): what X was given to, there or in the answer
            ((name, formula),) = base.recalls.items()
            if (formula,) in stated.names.get(name, {(formula,)} if base is reason else ()):
                continue
        asked = "the reason of a line is a law, or was stated before the exercise"
        cause = "a fact, a definition, a law or words of your own: any line would follow from them"
        do = "name a law, as laws.LEFT, or what the chapter has stated"
        came = (
            getattr(base, "statement", "")
            if type(base) in (Fact, Definition, Computed, Cited)
            else type(base).__name__
        )
        raise ChainError(asked, f"«{came}»", cause, do)


def stated_in(namespace: Mapping[str, Any]) -> Stated:
    """What a namespace says."""
    found, names = list(namespace.values()), dict[str, set[tuple[Node, ...]]]()
    for x in found:
        if isinstance(x, dict) and x is not namespace:
            found += x.values()
        elif isinstance(x, (list, tuple)) and not isinstance(x, torch.Size):
            found += x
        elif isinstance(x, Chain):
            found += [line.named for line in x.lines]
        elif isinstance(x, Named):
            for leaf in leaves(x):
                meaning = leaf.node.meaning if isinstance(leaf.node, Symbol) else (leaf.node,)
                names.setdefault(getattr(leaf.node, "name", ""), set()).add(meaning)
    reasons = frozenset(id(x.of if isinstance(x, Tangent) else x) for x in found if isinstance(x, Reason))
    return Stated(reasons, names)


def _names(exercise: Exercise) -> list[str]:
    """What an answer is taken to be: the chain, the correction, or the functions that the answer cell defines."""
    if exercise.kind in ANSWERS:
        return [ANSWERS[exercise.kind]]
    return [s.name for s in ast.parse(exercise.answer.source).body if isinstance(s, ast.FunctionDef)]


def _apart(namespace: dict[str, Any]) -> dict[str, Any]:
    """A copy in which ``line`` can be continued, and a claim be changed, without a trace in the other."""
    from gradderiv.book.exercises.claims import Claim

    apart = {
        n: x for n, x in namespace.items() if isinstance(x, Claim) or (n == "line" and isinstance(x, Chain))
    }
    return namespace | {name: _fork(x) for name, x in apart.items()}


def _fork(chain: Any) -> Any:
    """The same chain or claim, to be continued apart."""
    out = copy.copy(chain)
    for name, value in vars(chain).items():
        if isinstance(value, (list, dict, set)):
            setattr(out, name, copy.copy(value))
    return out


def _run(cell: Cell, path: Path, namespace: dict[str, Any]) -> None:
    """Run a cell of the chapter, lines numbered as in its file; nobody looks at what it shows."""
    token = SHOW.set(lambda thing: None)
    try:
        execute("\n" * (cell.line - 1) + cell.source, path, namespace)
    finally:
        SHOW.reset(token)


def _prepared(path: Path, id: str, changed: int, draw: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    """The namespace that an answer is given, and that after the solution, of a file that stands as it was ``changed``."""
    return _chapter(path, changed, draw)[id]


@functools.lru_cache(maxsize=32)
def _chapter(path: Path, changed: int, draw: Draw) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """By exercise, the namespace that an answer is given and that after the solution, of the chapter as it stood when
    it was ``changed``, at this point. It is run once; its own solutions are not judged here."""
    namespace: dict[str, Any] = {}
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    every = {e.id: e for e in exercises(path)}
    token = JUDGES.set(False)
    try:
        for cell in cells(path):
            asked = every.get(cell.meta.get("answer", ""))
            if asked is not None:
                given = _apart(namespace)
                if asked.kind != "chain":
                    for name in _names(asked):
                        given.pop(name, None)  # of an earlier exercise
            if cell.is_code:
                _run(cell, path, namespace)
            if asked is not None:
                found[asked.id] = given, _apart(namespace)
            if len(found) == len(every):
                break
    finally:
        JUDGES.reset(token)
    return found
