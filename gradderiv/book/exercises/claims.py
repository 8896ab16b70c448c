"""Find the mistake: a claimed derivation, whose lines are not checked, and the answer that corrects one of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gradderiv.book.chain import CHAINS, Chain, ChainError, chain
from gradderiv.book.exercises.chains import gradients_in, not_ended, quotes, same
from gradderiv.book.exercises.grading import ATTEMPT, JUDGES, judged, require_stated, stated_in
from gradderiv.book.exercises.verdict import ExerciseError, Part
from gradderiv.book.layout import beside
from gradderiv.book.named import Named
from gradderiv.book.reasoning.reasons import Step
from gradderiv.book.remarks import plain, prose
from gradderiv.errors import GradderivError
from gradderiv.numbers.spelling import ASCII, TEX, UNICODE, Style, spell

STOPS = (GradderivError, RuntimeError, TypeError, ValueError, AttributeError)


class Said(NamedTuple):
    """A line that somebody claims."""

    expression: Named
    reasons: tuple[Any, ...]
    notes: dict[str, Any]


class Claim:
    """A derivation that somebody claims. Call it to add a line; nothing is checked. The start is line 1."""

    def __init__(self, start: Named, *reasons: Any, **notes: Any) -> None:
        self.lines = [Said(start, reasons, notes)]

    def __call__(self, expression: Named, *reasons: Any, **notes: Any) -> Claim:
        self.lines.append(Said(expression, reasons, notes))
        return self

    @functools.cached_property
    def false_line(self) -> int:
        """The number of the first line that does not hold; 0 if all do."""
        return self.checked(self.lines)[1]

    def checked(self, lines: Sequence[Said]) -> tuple[Chain, int, Exception | None]:
        """The lines as a checked chain: as far as it holds, the number of the first line that does not (or 0), and why."""
        token = CHAINS.set(None)
        try:
            start, *others = lines
            line = chain(start.expression, *start.reasons[:1])
            for number, (expression, reasons, notes) in enumerate(others, 2):
                try:
                    line(expression, *reasons, **notes)
                except STOPS as error:
                    return line, number, error
            return line, 0, None
        finally:
            CHAINS.reset(token)

    def words(self, number: int) -> str:
        """The reasons of a line as they are printed."""
        expression, reasons, notes = self.lines[number - 1]
        if number == 1:
            return "; ".join(map(str, reasons))
        defined = frozenset[str]().union(*(r.defines for r in reasons))
        step = Step(self.lines[number - 2].expression.node, expression.node, defined)
        return "; ".join([*(r.words(step) for r in reasons), *notes.values()])

    def text(self, style: Style, width: int = 80) -> str:
        translate = plain if style is ASCII else str
        out = []
        for number, said in enumerate(self.lines, 1):
            lead = f"{number:>2}  {'  ' if number == 1 else '= '}"
            remark = translate(self.words(number))
            out += beside(
                lead, spell(said.expression.node, style), remark, column=width * 11 // 20, width=width
            )
        return "\n".join(out)

    def unicode(self, width: int = 80) -> str:
        return self.text(UNICODE, width)

    def ascii(self, width: int = 80) -> str:
        return self.text(ASCII, width)

    def __str__(self) -> str:
        return self.unicode()

    def tex(self) -> str:
        rows = [
            rf"({number})\quad &{'' if number == 1 else '='} {spell(said.expression.node, TEX)} && \text{{{prose(self.words(number))}}}"
            for number, said in enumerate(self.lines, 1)
        ]
        return "\\begin{align*}\n" + " \\\\\n".join(rows) + "\n\\end{align*}"

    def _repr_latex_(self) -> str:
        return self.tex()


def claim(start: Named, *reasons: Any, **notes: Any) -> Claim:
    """Begin a derivation that is claimed, and not checked."""
    return Claim(start, *reasons, **notes)


class Correction(NamedTuple):
    """Which line of a claim is false, and what should stand there."""

    line: int
    said: Said


def correct(line: int, expression: Named, *reasons: Any, **notes: Any) -> Correction:
    """The answer to "find the mistake": line number ``line`` is false, ``expression`` should stand there, for these reasons."""
    return Correction(line, Said(expression, reasons, notes))


def check_mistake(
    wrong: Claim,
    answer: Any,
    direction: Named | None = None,
    shipped: Named | None = None,
    *,
    ends: Named | None = None,
    rest: Callable[[Chain], Any] | None = None,
    mistakes: Sequence[Callable[[], Correction]] = (),
) -> None:
    """Judge which line of a claim was found to be false, and its correction.

    Args:
        direction, shipped, ends: where the corrected derivation ends, as for :func:`check_chain`.
        rest: the lines after the corrected one, where the claim's own carry the error on.
        mistakes: functions that return wrong corrections; the docstring is what the verdict must say.

    Raises:
        ExerciseError: the claim has not exactly one false line.
    """
    if not JUDGES.get():
        return
    attempt = ATTEMPT.get()
    false = wrong.false_line
    if not false:
        raise ExerciseError("no line of the claim is false")
    if rest is not None:
        _, another, said = wrong.checked([wrong.lines[false - 1], *wrong.lines[false:]])
        if another:
            raise ExerciseError(
                f"two lines of the claim are false: {false} and {false + another - 1}: {said}"
            )
    solution = attempt.solved["answer"] if attempt else answer
    if not isinstance(answer, Correction) or not isinstance(answer.said, Said):
        came = f"answer is a {type(answer).__name__}, not correct(LINE, EXPRESSION, REASON)"
        judged([Part("line", "wrong", 1, 0, came), Part("correction", "wrong", 1, 0, "none")])
    elif type(answer.line) is not int or answer.line != false:
        judged([Part("line", "wrong", 1, 0, _elsewhere(wrong, answer.line, false)),
                Part("correction", "wrong", 1, 0, "of another line than the false one")])  # fmt: skip
    else:
        why = _not_corrected(wrong, answer, solution, direction, shipped, ends, rest)
        found = f"line {false} is false"
        right = "the derivation holds from here to the end"
        judged([Part("line", "right", 1, 1, found),
                Part("correction", "wrong" if why else "right", 1, 0 if why else 1, why or right)])  # fmt: skip


def _elsewhere(wrong: Claim, line: Any, false: int) -> str:
    """Why it is not this line."""
    if type(line) is not int or not 1 <= line <= len(wrong.lines):
        return f"there is no line {line}: the lines are 1 to {len(wrong.lines)}"
    if line == 1:
        return "line 1 is where the derivation starts"
    if line < false:
        return f"line {line} follows from line {line - 1}"
    return f"a line before line {line} is false already"


def _not_corrected(
    wrong: Claim,
    answer: Correction,
    solution: Correction,
    direction: Named | None,
    shipped: Named | None,
    ends: Named | None,
    rest: Callable[[Chain], Any] | None,
) -> str:
    """Why the correction does not do, or ""."""
    expression: Any = answer.said.expression
    if not isinstance(expression, Named):
        return f"a line is a named matrix, not a {type(expression).__name__}"
    attempt = ATTEMPT.get()
    if attempt is not None:
        try:
            require_stated(answer.said.reasons, stated_in(attempt.given))
        except ChainError as error:
            return str(error)
    before = wrong.lines[: answer.line - 1]
    allowed = {call for x in before for call in gradients_in(x.expression.node)}
    if why := quotes(expression, allowed):
        return f"it {why}"
    if any(spell(expression.node) == spell(x.expression.node) for x in before):
        return "it says again what a line before it says"
    after = wrong.lines[answer.line :] if rest is None else []
    line, broken, said = wrong.checked([*before, answer.said, *after])
    if broken == answer.line:
        return str(said)
    if broken:
        return f"it is true, and line {broken} does not follow from it:\n{said}"
    if rest is not None:
        if not same(expression, solution.said.expression):
            return f"it is true, and not the step that line {answer.line} takes"
        rest(line)
    return not_ended(line, direction, shipped, ends)
