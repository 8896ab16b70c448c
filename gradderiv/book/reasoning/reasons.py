"""Reasons: what may stand beside a line of a derivation, and what each allows the line to change.

    OUTPUT = definition(O, P @ V)              O = P V; checked where it is stated
    line(inner(dO, P @ V_dot), OUTPUT.moves)   the product rule on it: «O = P V, and only V moves»
    line(inner(P.mT @ dO, V_dot), LEFT)        a law of :mod:`gradderiv.book.laws`

A line is accepted when it is *true*, which is decided exactly, and *follows* from the line before it by the reasons named, each
used at least once, and by nothing else but the order of writing (:mod:`gradderiv.book.reasoning.algebra`). The second is decided by
rewriting, within limits (:mod:`gradderiv.book.reasoning.rewrite`): a longer way is refused, never let through. What it cannot see is a side
condition on a shape or a value, as that a factor is a column: a law may be used where its condition fails, and the line be true
for another reason. A line may also be :class:`Computed`; then it is true, and its reason is the author's word.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from gradderiv.book.named import Named, Point, differential, require_named
from gradderiv.book.reasoning import algebra
from gradderiv.book.reasoning.derivative import derivative
from gradderiv.book.reasoning.equality import Compared, require_equal
from gradderiv.book.reasoning.rewrite import Equation, everywhere
from gradderiv.errors import InputError, message
from gradderiv.numbers.nodes import Call, Item, Node, Symbol
from gradderiv.numbers.spelling import spell


@dataclass(frozen=True)
class Step:
    """The two sides of a line, the names that its reasons define, and what was abbreviated by let."""

    before: Node
    after: Node
    defined: frozenset[str] = frozenset()
    lets: dict[Node, Node] = field(default_factory=dict)

    def form(self, node: Node) -> Node:
        """The normal form, abbreviations written out."""
        out = algebra.normal(node)
        for _ in self.lets:
            out = algebra.substituted(out, self.lets)
        return out

    def tangents(self) -> set[str]:
        """The names whose tangents stand in one of the sides."""
        names = {s.name for side in (self.before, self.after) for s in self.form(side).symbols()}
        return {n.removesuffix("_dot") for n in names if n.endswith("_dot")}


class Reason:
    """Why a line equals the one before it.

    Attributes:
        multiplies_out: the two sides are compared multiplied out.
        defines: the names to which it gives a tangent.
        about: the matrices that it speaks of.
        recalls: names, and what it says that they were given to, unchecked.
    """

    multiplies_out = False
    defines: frozenset[str] = frozenset()
    about: tuple[Named, ...] = ()
    recalls: Mapping[str, Node] = MappingProxyType({})

    def equations(self, step: Step) -> Iterable[Equation]:
        """What may be written for what."""
        raise NotImplementedError

    def words(self, step: Step) -> str:
        """What is printed beside the line."""
        raise NotImplementedError


class Checked(NamedTuple):
    """The sides of a law in normal form, and how they were compared."""

    left: Node
    right: Node
    compared: Compared


class Law(Reason):
    """An identity in named matrices that holds whatever they are; stated once, and checked once, before it is first used.

    Args:
        name: what one calls it.
        shapes: those of the parameters of ``sides``, in order, as ``"n e, n d, d e"``.
        sides: the two sides, from free matrices of these shapes.
    """

    SIZES = {"n": 3, "m": 5, "d": 4, "e": 2, "k": 7}  # noqa: RUF012

    def __init__(self, name: str, shapes: str, sides: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.name, self.shapes, self.sides = name, shapes, sides

    @property
    def parameters(self) -> list[str]:
        return list(inspect.signature(self.sides).parameters)

    @functools.cached_property
    def checked(self) -> Checked:
        """The two sides, compared at a random point.

        Raises:
            ChainError: they differ.
        """
        at = Point(**self.SIZES)
        shapes = (",".join(s.split()) for s in self.shapes.split(","))
        left, right = self.sides(*(at.free(p, s) for p, s in zip(self.parameters, shapes, strict=True)))
        assert isinstance(left, Named)
        assert isinstance(right, Named)
        compared = require_equal(left, right, f"the law «{self.name}» must hold")
        return Checked(left.node, right.node, compared)

    @property
    def statement(self) -> str:
        """The law as an equation."""
        return f"{spell(self.checked.left)} = {spell(self.checked.right)}"

    def equations(self, step: Step) -> Iterable[Equation]:
        left, right = map(algebra.normal, self.checked[:2])
        free = frozenset(self.parameters)
        yield Equation(left, right, free)
        if _is_inner(left) and _is_inner(right):
            yield Equation(_swapped(left), _swapped(right), free)

    def words(self, step: Step) -> str:
        return self.statement


def _is_inner(node: Node) -> bool:
    return isinstance(node, Call) and node.name == "inner"


def _swapped(node: Node) -> Node:
    assert isinstance(node, Call)
    return Call(node.name, node.args[::-1], node.home)


class Linearity(Reason):
    """Products, inner products, row sums and transposes are linear: what is multiplied out is equal."""

    name = "linearity"
    statement = "A (B + C) = A B + A C, and so for ∘, ⟨ , ⟩, rowsum"
    multiplies_out = True

    def equations(self, step: Step) -> Iterable[Equation]:
        return ()

    def words(self, step: Step) -> str:
        return self.name


@dataclass(frozen=True)
class Fact(Reason):
    """An equality that holds at the point of the derivation; made by :func:`fact`."""

    left: Node
    right: Node
    statement: str
    about: tuple[Named, ...] = ()

    @property
    def defines(self) -> frozenset[str]:  # type: ignore[override]
        match algebra.normal(self.left):
            case Symbol(name) if name.endswith("_dot"):
                return frozenset({name.removesuffix("_dot")})
        return frozenset()

    def equations(self, step: Step) -> Iterable[Equation]:
        yield Equation(step.form(self.left), step.form(self.right))

    def words(self, step: Step) -> str:
        return self.statement


def fact(left: Named, right: Named, statement: str = "") -> Fact:
    """left = right, checked here and now at the point; a reason for the lines that use it.

    Args:
        statement: what is printed; the equation itself unless given.

    Raises:
        ChainError: the two sides differ.
    """
    require_named("a fact", left, right)
    said = statement or f"{spell(left.node)} = {spell(right.node)}"
    require_equal(left, right, f"the fact «{said}» must hold")
    return Fact(left.node, right.node, said, (left, right))


@dataclass(frozen=True)
class Definition(Fact):
    """name = formula: either may be written for the other; made by :func:`definition`."""

    @property
    def recalls(self) -> Mapping[str, Node]:  # type: ignore[override]
        return {} if self.about or not isinstance(self.left, Symbol) else {self.left.name: self.right}

    @property
    def moves(self) -> Tangent:
        """The product rule on it: the tangent of the name is that of the formula."""
        return Tangent(self)


def definition(name: Named, formula: Named | None = None, statement: str = "") -> Definition:
    """name = formula, checked here and now; without a formula, what the name was given to.

    Raises:
        InputError: the first argument is no name, or it was given to nothing.
        ChainError: the formula has another value.
    """
    require_named("a definition", name, name if formula is None else formula)
    node = name.node
    if not isinstance(node, (Symbol, Item)):
        cause = "the two sides are exchanged, or the left one is a formula itself"
        do = "give it a name with at.let(…), or state the equality as a fact(…)"
        raise InputError(message("a definition begins with a name", spell(node), cause, do))
    if formula is not None:
        said = statement or f"{spell(node)} = {spell(formula.node)}"
        require_equal(name, formula, f"the definition «{said}» must hold")
        return Definition(node, formula.node, said, (name, formula))
    if not isinstance(node, Symbol) or not node.meaning or name.made_by is differential:
        asked, cause = "definition(X) recalls what X was given to", "it was not made by let"
        raise InputError(message(asked, spell(node), cause, "pass the formula: definition(X, …)"))
    return Definition(node, node.meaning[0], statement or f"{spell(node)} = {spell(node.meaning[0])}")


@dataclass(frozen=True)
class Tangent(Reason):
    """The product, quotient and chain rules on a definition."""

    of: Definition

    @property
    def about(self) -> tuple[Named, ...]:  # type: ignore[override]
        return self.of.about

    @property
    def recalls(self) -> Mapping[str, Node]:  # type: ignore[override]
        return self.of.recalls

    @property
    def head(self) -> Node:
        return algebra.normal(self.of.left)

    @property
    def defines(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset(s.name for s in self.head.symbols())

    def _names(self, step: Step) -> list[str]:
        return list(dict.fromkeys(s.name for s in step.form(self.of.right).symbols()))

    def moving(self, step: Step) -> list[str]:
        """The symbols of the formula that move: those whose tangents stand in the step, or are replaced in it."""
        moved = (step.tangents() | step.defined) - self.defines
        return [n for n in self._names(step) if n in moved]

    def equations(self, step: Step) -> Iterable[Equation]:
        formula = step.form(self.of.right)
        try:
            dot = derivative(formula, frozenset(self.moving(step)))
        except KeyError as unknown:
            asked = "the product rule needs a formula of sums, products, quotients, exp and log"
            cause = "the function has a derivative of its own"
            do = "state its tangent as a fact, checked against differential(…)"
            raise InputError(message(asked, f"{unknown.args[0]} in {self.of.statement}", cause, do)) from None
        if dot is not None:
            (name,) = self.defines
            recalled = everywhere(
                dot, Equation(formula, self.head)
            )  # the formula, where the tangent has it again
            for d in dict.fromkeys((dot, algebra.substituted(dot, {formula: self.head}), *recalled)):
                yield Equation(Symbol(f"{name}_dot"), d)

    def words(self, step: Step) -> str:
        names = [spell(Symbol(n)) for n in self.moving(step)]
        if len(self._names(step)) < 2 or not names:
            return self.of.statement
        if len(names) == 1:
            return f"{self.of.statement}, and only {names[0]} moves"
        return f"{self.of.statement}, and {', '.join(names[:-1])} and {names[-1]} move"


@dataclass(frozen=True)
class Cited(Reason):
    """What another chain has shown: any of its lines may be written for any other; made by ``chain.cited``."""

    lines: tuple[Node, ...]
    statement: str

    def equations(self, step: Step) -> Iterable[Equation]:
        forms = list(dict.fromkeys(map(step.form, self.lines)))
        return (Equation(a, b) for i, a in enumerate(forms) for b in forms[i + 1 :])

    def words(self, step: Step) -> str:
        return self.statement


@dataclass(frozen=True)
class Computed(Reason):
    """Both sides were evaluated, and are equal; that the words are the reason is not checked."""

    statement: str

    def equations(self, step: Step) -> Iterable[Equation]:
        return ()

    def words(self, step: Step) -> str:
        return self.statement
