"""Whether a line follows from the one before it by the reasons named, all of them needed; and if not, why not."""

from __future__ import annotations

from gradderiv.book.reasoning import algebra
from gradderiv.book.reasoning.equality import ChainError
from gradderiv.book.reasoning.reasons import Reason, Step
from gradderiv.book.reasoning.rewrite import LIMIT, follows
from gradderiv.numbers.spelling import spell

WIDEST = 2000  # terms that are written, multiplied out, before the search gives up
GLANCE = 40  # expressions looked at where another law is only guessed


def require_follows(step: Step, reasons: tuple[Reason, ...], asked: str) -> None:
    """Whether the line follows by the reasons, each used.

    Raises:
        ChainError: it does not, though it is true.
    """
    if _follows(step, reasons):
        return
    came = f"{spell(step.before)}\n         and  {spell(step.after)}, which are equal"
    same = step.form(step.before) == step.form(step.after)
    do = (
        "leave it out, or go on with it" if same else "name the law that was used, or write the lines between"
    )
    raise ChainError(asked, came, lambda: _why_not(step, reasons), do)


def _follows(step: Step, reasons: tuple[Reason, ...], limit: int = LIMIT) -> bool:
    """Whether the reasons lead from one side to the other, and none of them can be left out."""
    fewer = (reasons[:i] + reasons[i + 1 :] for i in range(len(reasons)))
    return _leads(step, reasons, limit) and not any(_leads(step, others, limit) for others in fewer if others)


def _leads(step: Step, reasons: tuple[Reason, ...], limit: int = LIMIT) -> bool:
    equations = tuple(tuple(r.equations(step)) for r in reasons if not r.multiplies_out)
    before, after = step.form(step.before), step.form(step.after)
    if before == after:
        return False
    if not any(r.multiplies_out for r in reasons):
        return follows(before, after, equations, limit=limit)
    if not equations:
        return algebra.expanded(before) == algebra.expanded(after)
    width = max(algebra.width(before), algebra.width(after))
    return follows(before, after, equations, algebra.expanded, min(limit, WIDEST // width))


def _why_not(step: Step, reasons: tuple[Reason, ...]) -> str:
    """The likely cause: nothing changed, one reason too many, or another law."""
    from gradderiv.book.laws import LAWS

    if step.form(step.before) == step.form(step.after):
        return "the line only writes the one before it in another order; no reason is used"
    for i, reason in enumerate(reasons):
        others = reasons[:i] + reasons[i + 1 :]
        if others and _leads(step, others, GLANCE):
            return f"«{reason.words(step)}» is not used"
    for name, law in LAWS.items():
        if law not in reasons and _follows(step, (law,), GLANCE):
            return f"it follows by {name}, {law.statement}"
    for name, law in LAWS.items():
        if law not in reasons and _follows(step, (*reasons, law), GLANCE):
            return f"{name} is used as well, {law.statement}"
    return "another law was used, or more than one"
