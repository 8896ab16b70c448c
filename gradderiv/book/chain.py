"""The checked chain: a derivation whose every line is printed and evaluated by the same object.

    OUTPUT = definition(Y, X @ W + b)
    line = chain(inner(dY, Y_dot),     "the differential of ℓ")
    line(inner(dY, X @ W_dot),         OUTPUT.moves)              Y = X W + b, and only W moves
    line(inner(X.mT @ dY, W_dot),      laws.LEFT)                 ⟨A, B C⟩ = ⟨Bᵀ A, C⟩
    line.reads_off(W_dot, linear_vjp(dY, saved).W)

A line is accepted for two reasons. It is *true*: it equals the one before it at a random point of a field, in every entry and lane and
under both shifts, an identity of rational functions and exponentials up to a failure probability that is at most 2⁻⁴⁰ and is
printed. And it *follows*: the laws named beside it, and nothing else, lead to it (:mod:`gradderiv.book.reasoning.reasons`). A chain that starts
at a true differential and ends in ⟨G, Ẋ⟩ has derived the gradient G; the function that ships must return G.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import NamedTuple

import torch

from gradderiv.book import written
from gradderiv.book.named import Named, Point, differential, inner, moves, named, require_named
from gradderiv.book.reasoning import algebra
from gradderiv.book.reasoning.equality import ChainError, Compared, is_zero, require_equal
from gradderiv.book.reasoning.following import require_follows
from gradderiv.book.reasoning.names import require_one_matrix
from gradderiv.book.reasoning.reasons import Cited, Computed, Reason, Step, definition, fact
from gradderiv.book.written import display
from gradderiv.errors import InputError, message
from gradderiv.numbers.nodes import Call, Item, Node, Symbol
from gradderiv.numbers.spelling import ASCII, UNICODE, Style, spell

__all__ = [
    "Chain",
    "ChainError",
    "Point",
    "chain",
    "computed",
    "definition",
    "differential",
    "display",
    "fact",
    "inner",
    "moves",
]


class Evidence(NamedTuple):
    """How a line was checked.

    Attributes:
        law: the reasons by which it follows; empty if it was only computed.
        entries: how many were compared with those of the line before.
        lanes: in how many lanes, each with a prime of its own.
        log2_failure: log₂ of the probability that a false line passes.
        how: all of this in a sentence.
    """

    law: str
    entries: int
    lanes: int
    log2_failure: float
    how: str


class Line(NamedTuple):
    """A line of the chain, or the name that it gives to an expression (``let``)."""

    named: Named
    reason: str
    let: str = ""
    evidence: Evidence | None = None


CHAINS: ContextVar[list[Chain] | None] = ContextVar("CHAINS", default=None)


def chain(start: Named, reason: str) -> Chain:
    """Begin a chain at ``start``."""
    begun = Chain(start, reason)
    collected = CHAINS.get()
    if collected is not None:
        collected.append(begun)
    return begun


class Chain:
    """Equal expressions, each with its reason. Call it to add a line.

    Attributes:
        lines: the start, the lines and the names given on the way.
        failures: log₂ of the failure probability of each equality that was checked.
        gradient: what was read off, for which ``variable``, and the name of the ``rule`` that returns it.
    """

    def __init__(self, start: Named, reason: str) -> None:
        require_named("a chain", start)
        self.lines = [Line(start, reason)]
        self.failures: list[float] = []
        self.gradient: Named | None = None
        self.variable = self.rule = ""
        if is_zero(start):
            raise ChainError(
                "a chain needs a start that is not zero",
                f"{spell(start.node)} = 0",
                "nothing moves that the start depends on; then every line 0 = 0 would hold",
                "let the variable of this derivation move",
            )

    @property
    def expressions(self) -> list[Named]:
        """The expressions that are equal, without the names given on the way."""
        return [line.named for line in self.lines if not line.let]

    @property
    def last(self) -> Named:
        return self.expressions[-1]

    @property
    def steps(self) -> int:
        """How many equalities were checked."""
        return len(self.failures)

    @property
    def failure(self) -> float:
        """log₂ of the probability that one of them is wrong all the same."""
        return math.log2(sum(2**f for f in self.failures)) if self.failures else -math.inf

    def __call__(self, expression: Named, *reasons: Reason, note: str = "") -> Chain:
        """Add a line: equal to the one before it, for these reasons and no other.

        Args:
            note: words printed after the reasons; nothing depends on them.

        Raises:
            InputError: no reason is given, or words in the place of one; or a name stands for two matrices.
            ChainError: the line is false, or it does not follow by the reasons named.
        """
        number = 1 + len(self.expressions)
        require_named(f"line {number}", expression)
        _require_reasons(number, reasons)
        self._require_one_meaning(expression, reasons)
        step = self._step(expression, reasons)
        said = "; ".join(r.words(step) for r in reasons)
        asked = f"line {number}, «{said}», must equal the line before it"
        around = [*(line.named for line in self.lines), *(x for r in reasons for x in r.about)]
        compared = require_equal(self.last, expression, asked, around)
        only_computed = any(isinstance(r, Computed) for r in reasons)
        if not only_computed:
            require_follows(step, reasons, f"line {number} must follow by «{said}»")
        self.failures.append(compared.log2_failure)
        law = "" if only_computed else said
        self.lines.append(Line(expression, f"{said}; {note}" if note else said, "", _evidence(law, compared)))
        return self

    def _require_one_meaning(self, expression: Named, reasons: tuple[Reason, ...]) -> None:
        """Each name stands for one matrix, also those that were given by let or are recalled by a reason."""
        lets = {line.let: line.named.node for line in self.lines if line.let}
        sides = [*(line.named for line in self.lines), expression]
        for meant in (lets, *(r.recalls for r in reasons if r.recalls)):
            require_one_matrix(sides, meant)

    def _step(self, expression: Named, reasons: tuple[Reason, ...]) -> Step:
        defined = frozenset[str]().union(*(r.defines for r in reasons))
        lets: dict[Node, Node] = {}
        for line in self.lines:
            if line.let:
                lets[Symbol(line.let)] = algebra.substituted(algebra.normal(line.named.node), lets)
        return Step(self.last.node, expression.node, defined, lets)

    def cited(self, statement: str) -> Cited:
        """What this chain has shown, as a reason in another one."""
        lets = self._step(self.last, ()).form
        return Cited(tuple(lets(x.node) for x in self.expressions), statement)

    def let(self, name: str, expression: Named, reason: str = "") -> Named:
        """Give ``expression`` a name from here on; without a reason its shape stands beside it.

        Raises:
            InputError: the name stands for another matrix already.
        """
        require_named(f"the name {name}", expression)
        require_one_matrix([*(line.named for line in self.lines), expression], {name: expression.node})
        self.lines.append(Line(expression, reason or expression.dimensions, name))
        return named(name, expression)

    def reads_off(self, direction: Named, shipped: Named) -> Named:
        """The gradient G, from a last line ⟨G, Ẋ⟩; it must be what the function that ships returns.

        Raises:
            ChainError: the last line is not ⟨G, Ẋ⟩ with G free of Ẋ, the first not ⟨dY, Ẏ⟩ with Ẏ the true tangent along
                Ẋ, or G is not what ``shipped`` is.
        """
        require_named("a gradient that is read off", direction, shipped)
        assert isinstance(direction.node, Symbol)
        if self.last.made_by is not inner or self.last.operands[1] is not direction:
            raise ChainError(
                f"the gradient can be read off when the last line is ⟨G, {spell(direction.node)}⟩",
                spell(self.last.node),
                "a step is missing, or another variable moves",
                "move every factor to the left with ⟨A, B C⟩ = ⟨A Cᵀ, B⟩ = ⟨Bᵀ A, C⟩",
            )
        G: Named = self.last.operands[0]
        if G.node.uses(direction.node) or shipped.node.uses(direction.node):
            raise ChainError(
                f"a gradient does not depend on the direction {spell(direction.node)}",
                spell(G.node),
                "a tangent was left on the left-hand side",
                "move it to the right, so that it stands in one place only",
            )
        if not _is_true_differential(self.lines[0].named, direction):
            raise ChainError(
                f"a derivation starts at ⟨dY, Ẏ⟩, Ẏ the true tangent of a rule along {spell(direction.node)}",
                spell(self.lines[0].named.node),
                "the first steps were done by hand, and were not checked",
                "begin with chain(inner(dY, Y_dot), …) and Y_dot = differential(rule, …, moves(X, X_dot), …)",
            )
        rule = _shipped(shipped)
        compared = require_equal(G, shipped, f"{rule} must return the gradient that was read off")
        self.failures.append(compared.log2_failure)
        self.variable, self.rule, self.gradient = direction.node.name.removesuffix("_dot"), rule, G
        return G

    def vanishes(self, variable: str, shipped: Named) -> None:
        """The chain has shown that the gradient of ``variable`` is zero; the function that ships must return zeros.

        Raises:
            ChainError: it does not.
        """
        rule = _shipped(shipped)
        if not is_zero(shipped):
            asked, came = f"{rule} must return 0", f"{spell(shipped.node)} ≠ 0"
            raise ChainError(asked, came, "the function is another one", "pass the value of the rule")
        self.variable, self.rule = variable, rule

    def text(self, style: Style, width: int = 80) -> str:
        return written.text(self, style, width)

    def unicode(self, width: int = 80) -> str:
        return written.text(self, UNICODE, width)

    def ascii(self, width: int = 80) -> str:
        return written.text(self, ASCII, width)

    def tex(self) -> str:
        return written.tex(self)

    def __str__(self) -> str:
        return self.unicode()

    def _repr_latex_(self) -> str:
        return self.tex()


def _is_true_differential(start: Named, direction: Named) -> bool:
    """Whether ``start`` pairs a cotangent with a tangent that dual numbers found along ``direction``, in a rule."""
    if start.made_by is torch.Tensor.add:  # of several outputs, each with its cotangent
        return all(isinstance(x, Named) and _is_true_differential(x, direction) for x in start.operands)
    tangent = start.operands[1] if start.made_by is inner else None
    if not isinstance(tangent, Named) or tangent.made_by is not differential:
        return False
    rule, *directions = tangent.operands
    return str(rule.__module__).startswith("gradderiv.rules") and any(d is direction for d in directions)


def _shipped(value: Named) -> str:
    """The name of the function of ``gradderiv.rules`` that returned ``value``."""
    call = value.node.call if isinstance(value.node, Item) else value.node
    if isinstance(call, Call) and call.home.startswith("gradderiv.rules"):
        return call.name
    raise ChainError(
        "a gradient is compared with a function of gradderiv.rules",
        spell(value.node),
        "the formula was written a second time in the derivation",
        "pass the value of the rule, as grad_W_Q(X, …) or linear_vjp(dY, saved).W",
    )


def computed(statement: str) -> Computed:
    """A reason in words for a line that is only evaluated: it is true, but that it follows is not checked."""
    return Computed(statement)


def _evidence(law: str, c: Compared) -> Evidence:
    how = f"{c.entries} {'entry' if c.entries == 1 else 'entries'}, equal modulo {c.lanes} random primes, under {c.shifts} shifts"
    return Evidence(law, c.entries, c.lanes, c.log2_failure, how)


def _require_reasons(number: int, reasons: tuple[Reason, ...]) -> None:
    if reasons and all(isinstance(r, Reason) for r in reasons):
        return
    came = ", ".join(repr(r) for r in reasons) or "no reason"
    cause = "words are not a reason that can be checked" if reasons else "an equality alone explains nothing"
    do = "name a law, as laws.LEFT, a definition(…), its .moves, a fact(…) or\n         a chain's .cited(…); words go into note="
    raise InputError(message(f"line {number} needs a reason", came, cause, do))
