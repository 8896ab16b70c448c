"""The checked chain: a derivation whose every line is printed and evaluated by the same object.

    line = chain(inner(dY, Y_dot),         "the differential of ℓ")
    line(inner(dY, X @ W_dot),             "Y = X W + b, and only W moves")
    line(inner(X.mT @ dY, W_dot),          "⟨A, B C⟩ = ⟨Bᵀ A, C⟩")
    line.reads_off(W_dot, linear_vjp(dY, saved).W)

A line holds when it equals the one before it at a random point of a field, in every entry and lane and under both
shifts: an identity of rational functions and exponentials, up to a failure probability that is at most 2⁻⁴⁰ and is
printed. A chain that starts at a true differential and ends in ⟨G, Ẋ⟩ has derived the gradient G; the function that ships must return G.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from gradderiv.book import written
from gradderiv.book.named import TARGET, Named, Point, differential, inner, moves, named
from gradderiv.book.written import display
from gradderiv.errors import GradderivError, message
from gradderiv.numbers.nodes import Call, Item, Symbol
from gradderiv.numbers.spelling import ASCII, UNICODE, Style, spell

__all__ = ["Chain", "ChainError", "Point", "chain", "differential", "display", "inner", "moves"]


class ChainError(GradderivError, AssertionError):
    """A line of a derivation that does not hold."""


class Line(NamedTuple):
    """A line of the chain, or the name that it gives to an expression (``let``)."""

    named: Named
    reason: str
    let: str = ""


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
        self.lines = [Line(start, reason)]
        self.failures: list[float] = []
        self.gradient: Named | None = None
        self.variable = self.rule = ""
        if not any(_nonzero(value) for value in start.points):
            raise ChainError(
                message(
                    "a chain needs a start that is not zero",
                    f"{spell(start.node)} = 0",
                    "nothing moves that the start depends on; then every line 0 = 0 would hold",
                    "let the variable of this derivation move",
                )
            )

    @property
    def last(self) -> Named:
        return next(line.named for line in reversed(self.lines) if not line.let)

    @property
    def steps(self) -> int:
        """How many equalities were checked."""
        return len(self.failures)

    @property
    def failure(self) -> float:
        """log₂ of the probability that one of them is wrong all the same."""
        return math.log2(sum(2**f for f in self.failures)) if self.failures else -math.inf

    def __call__(self, expression: Named, reason: str) -> Chain:
        """Add a line: equal to the one before it, for this reason.

        Raises:
            ChainError: it is not.
        """
        number = 1 + sum(not line.let for line in self.lines)
        self._require_equal(
            self.last, expression, f"line {number}, «{reason}», must equal the line before it"
        )
        self.lines.append(Line(expression, reason))
        return self

    def let(self, name: str, expression: Named, reason: str = "") -> Named:
        """Give ``expression`` a name from here on; without a reason its shape stands beside it."""
        self.lines.append(Line(expression, reason or expression.dimensions, name))
        return named(name, expression)

    def reads_off(self, direction: Named, shipped: Named) -> Named:
        """The gradient G, from a last line ⟨G, Ẋ⟩; it must be what the function that ships returns.

        Raises:
            ChainError: the last line is not ⟨G, Ẋ⟩ with G free of Ẋ, the first not ⟨dY, Ẏ⟩ with Ẏ the true tangent along
                Ẋ, or G is not what ``shipped`` is.
        """
        assert isinstance(direction.node, Symbol)
        if self.last.made_by is not inner or self.last.operands[1] is not direction:
            raise ChainError(
                message(
                    f"the gradient can be read off when the last line is ⟨G, {spell(direction.node)}⟩",
                    spell(self.last.node),
                    "a step is missing, or another variable moves",
                    "move every factor to the left with ⟨A, B C⟩ = ⟨A Cᵀ, B⟩ = ⟨Bᵀ A, C⟩",
                )
            )
        G: Named = self.last.operands[0]
        if G.node.uses(direction.node):
            raise ChainError(
                message(
                    f"a gradient does not depend on the direction {spell(direction.node)}",
                    spell(G.node),
                    "a tangent was left on the left-hand side",
                    "move it to the right, so that it stands in one place only",
                )
            )
        if not _is_true_differential(self.lines[0].named, direction):
            raise ChainError(
                message(
                    f"a derivation starts at ⟨dY, Ẏ⟩, Ẏ the true tangent of a rule along {spell(direction.node)}",
                    spell(self.lines[0].named.node),
                    "the first steps were done by hand, and were not checked",
                    "begin with chain(inner(dY, Y_dot), …) and Y_dot = differential(rule, …, moves(X, X_dot), …)",
                )
            )
        rule = _shipped(shipped)
        self._require_equal(G, shipped, f"{rule} must return the gradient that was read off")
        self.variable, self.rule, self.gradient = direction.node.name.removesuffix("_dot"), rule, G
        return G

    def vanishes(self, variable: str, shipped: Named) -> None:
        """The chain has shown that the gradient of ``variable`` is zero; the function that ships must return zeros.

        Raises:
            ChainError: it does not.
        """
        rule = _shipped(shipped)
        if any(_nonzero(value) for value in shipped.points):
            asked, came = f"{rule} must return 0", f"{spell(shipped.node)} ≠ 0"
            raise ChainError(
                message(asked, came, "the function is another one", "pass the value of the rule")
            )
        self.variable, self.rule = variable, rule

    def _require_equal(self, before: Named, now: Named, asked: str) -> None:
        shapes = tuple(before.shape), tuple(now.shape)
        if shapes[0] != shapes[1]:
            cause = "a transpose is missing, or stands where none belongs"
            raise ChainError(message(asked, f"shapes {shapes[0]} and {shapes[1]}", cause, "count dimensions"))
        failure = -math.inf
        for a, b in zip(before.points, now.points, strict=True):
            wrong = a.system.differs(a, b)
            if bool(wrong.any()):
                raise ChainError(message(asked, *_difference(before, now, a, b, wrong)))
            failure = max(failure, a.system.failure(a, b))
        if failure > TARGET:
            cause = "the point has too few lanes for matrices of this size"
            asked = f"an equality must be wrong with probability below 2^{TARGET:.0f}"
            raise ChainError(message(asked, f"2^{failure:.1f}", cause, "smaller sizes, or more lanes"))
        self.failures.append(failure)

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
        message(
            "a gradient is compared with a function of gradderiv.rules",
            spell(value.node),
            "the formula was written a second time in the derivation",
            "pass the value of the rule, as grad_W_Q(X, …) or linear_vjp(dY, saved).W",
        )
    )


def _nonzero(value: Any) -> bool:
    return bool(value.system.differs(value, torch.zeros_like(value)).any())


def _difference(before: Named, now: Named, a: Any, b: Any, wrong: torch.Tensor) -> tuple[str, str, str]:
    """What came, the likely cause and what to do, for two values that differ."""
    index = tuple(int(i) for i in wrong.nonzero()[0])
    x, y = (int(a.system.lane(t, 0)[index]) for t in (a, b))
    where = (
        f"in entry {list(index)}, {int(wrong.sum())} of {wrong.numel()} entries" if index else "as numbers"
    )
    came = f"{spell(before.node)}\n         and  {spell(now.node)}\n         differ {where}: "
    came += f"{x} and {y} mod {a.system.primes[0]}"
    cause = "a transpose, a factor or a term is not where it should be"
    if not _nonzero(b):
        cause = "the new side is zero: what moves, or what multiplies it, was lost"
    elif factor := a.system.common_factor(b, a):
        cause = f"the new side is {factor} × the one before"
    return came, cause, "compare the two sides factor by factor"
