"""Complete the chain: accepted, or stopped at the first wrong line, with the points of the way that was gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gradderiv.book.chain import Chain, ChainError
from gradderiv.book.exercises.grading import ATTEMPT, JUDGES, Answered, judged
from gradderiv.book.exercises.guard import GRADIENTS, raised
from gradderiv.book.exercises.verdict import Part
from gradderiv.book.named import Named, differential, inner
from gradderiv.book.reasoning.equality import equal
from gradderiv.numbers.nodes import Call, Item, Node, Symbol
from gradderiv.numbers.spelling import spell


def check_chain(
    line: Chain,
    direction: Named | None = None,
    shipped: Named | None = None,
    *,
    ends: Named | None = None,
    mistakes: Sequence[Callable[[Chain], Any]] = (),
) -> None:
    """Judge a chain that was to be completed.

    Args:
        line: the chain, as the answer left it.
        direction: the gradient that is multiplied by it is read off in the end, and must be what ``shipped`` is.
        ends: instead of these, the expression in which the chain must end.
        mistakes: functions that take a chain and write wrong lines; the docstring is what the verdict must say.
    """
    if not JUDGES.get():
        return
    attempt = ATTEMPT.get()
    given = attempt.given["line"].expressions if attempt else line.expressions[:1]
    solution = attempt.solved["line"] if attempt else line
    solved, own = solution.expressions[len(given) :], line.expressions[len(given) :]
    allowed = {c for x in (*given, *solved) for c in gradients_in(x.node)}
    known = {id(t) for x in (attempt.given.values() if attempt else own) for t in _tangents(x)}
    bare = _computed(line) if not _computed(solution) else set()
    if isinstance(line, Answered):
        bare |= {id(x) for x in own} - line.accepted
    empty = _vacuous(own, allowed, known, bare)
    good = own[: empty[0]] if empty else own
    new = [x for k, x in enumerate(good) if spell(x.node) not in {spell(y.node) for y in (*given, *good[:k])}]
    reached = max((k + 1 for x in new for k, y in enumerate(solved) if same(x, y)), default=0)
    credit = min(reached, len(solved) - 1) / max(len(solved), 1)
    why = ""
    if attempt and attempt.stopped is not None:
        why = raised(attempt.stopped, attempt.file)
    elif empty:
        why = f"line {len(given) + empty[0] + 1} {empty[1]}"
    elif not new:
        repeats = "every line says again what one before it says" if own else "no line was added"
        judged([Part("chain", "wrong", 1, 0, repeats)])
        return
    else:
        why = not_ended(line, direction, shipped, ends)
    if not why:
        judged([Part("chain", "right", 1, 1, _lines_of(len(new)) + ", to the end")])
        return
    got = f"{reached} of the {len(solved)} lines of the way were reached" if reached else ""
    if new and not reached:
        got = f"{_lines_of(len(new))} that the machine accepts; they count when the end is reached"
    judged([Part("chain", "partly" if credit else "wrong", 1, credit, "\n".join(filter(None, [why, got])))])


def not_ended(line: Chain, direction: Named | None, shipped: Named | None, ends: Named | None) -> str:
    """Why the chain does not end where it should, or ""."""
    if ends is not None:
        if spell(line.last.node) == spell(ends.node):
            return ""
        return f"the last line must be {spell(ends.node)}\n  came:  {spell(line.last.node)}"
    assert direction is not None
    assert shipped is not None
    try:
        line.reads_off(direction, shipped)
    except ChainError as error:
        return str(error)
    return ""


def same(x: Any, y: Any) -> bool:
    """Whether two lines are one stage of a derivation: the same value, and in ⟨A, B⟩ and in sums part by part."""
    if not isinstance(x, Named) or not isinstance(y, Named):
        return bool(x is y)
    if spell(x.node) == spell(y.node):
        return True
    if x.made_by is inner and y.made_by is inner:
        return all(equal(a, b) for a, b in zip(x.operands, y.operands, strict=True))
    if x.made_by is y.made_by and len(x.operands) == len(y.operands) > 1:
        return all(same(a, b) for a, b in zip(x.operands, y.operands, strict=True))
    return False


def quotes(x: Named, allowed: set[str]) -> str:
    """Why an expression is no derivation: it calls a gradient that ships, or differentiates; or ""."""
    called = next((c for c in gradients_in(x.node) if c not in allowed), "")
    return f"quotes {called}, which is what is to be derived" if called else ""


def _vacuous(own: list[Named], allowed: set[str], known: set[int], bare: set[int]) -> tuple[int, str] | None:
    """The first line that is no step: its place among the own ones, and why."""
    for k, x in enumerate(own):
        if id(x) in bare:
            return k, "has no law for a reason"
        if why := quotes(x, allowed):
            return k, why
        if x.made_by is inner and _is_tangent(x.operands[1]) and id(x.operands[1]) not in known:
            return k, "is another differential(…): the machine's own derivative, and no step"
    return None


def _tangents(x: Any) -> Iterator[Named]:
    """The true tangents in a value of a namespace, or that a line was made with."""
    if _is_tangent(x):
        yield x
    for part in x.operands if isinstance(x, Named) else x if isinstance(x, (tuple, list)) else ():
        yield from _tangents(part)


def _is_tangent(x: Any) -> bool:
    return isinstance(x, Named) and x.made_by is differential


def gradients_in(node: Node) -> Iterator[str]:
    """The gradients of gradderiv.rules that an expression calls, in the meaning of its names, too."""
    call = node.call if isinstance(node, Item) else node
    if isinstance(call, Call) and call.home.startswith("gradderiv.rules") and GRADIENTS.search(call.name):
        yield call.name
    for child in node.children():
        yield from gradients_in(child)
    if isinstance(node, Symbol):
        for meaning in node.meaning:
            yield from gradients_in(meaning)


def _computed(chain: Chain) -> set[int]:
    """The lines that follow by no law, by identity."""
    return {id(line.named) for line in chain.lines if line.evidence and not line.evidence.law}


def _lines_of(count: int) -> str:
    return "1 line" if count == 1 else f"{count} lines"
