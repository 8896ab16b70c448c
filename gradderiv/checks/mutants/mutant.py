"""What a wrong-on-purpose rule declares: what is wrong with it, who has to notice, and why the others need not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gradderiv.checks.catalog import Rule
from gradderiv.checks.mutants import operators
from gradderiv.checks.mutants.stages import Layer
from gradderiv.checks.problems import Problem

ORACLES = frozenset({
    "forward", "autograd", "finite differences", "dual", "field", "second order", "sympy", "blockdiag", "identities",
})  # fmt: skip

#: Who has to notice a wrong term in the backward pass: everybody who looks at a gradient.
BACKWARD = ORACLES - {"forward"}
#: Who has to notice a wrong forward pass that is differentiated consistently: everybody who brings a forward of his own.
FORWARD = ORACLES - {"dual", "identities"}

#: Who has to notice a wrong gradient where the layer is no plain one: the identities and the block-diagonal form are about plain layers.
GRADIENT = BACKWARD - {"sympy", "blockdiag", "identities"}
#: Who has to notice a wrong value there.
VALUE = FORWARD - {"sympy", "blockdiag"}

#: Who has to notice what is too small for floats: those who compute exactly and bring a forward of their own.
EXACT = frozenset({"field", "second order", "sympy", "blockdiag"})
#: An oracle that is not run. The difference of two expressions with unlike exponentials is put over a common denominator, which takes minutes.
UNLIKE = {
    "sympy": "SymPy takes minutes over exponentials of unlike arguments; the field says the same exactly"
}

REASONS: dict[str, dict[str, str]] = {
    "formula": {
        "forward": "the value is right: only the backward pass is wrong",
        "identities": "the wrong gradient is linear in the cotangent too, and no identity is about this term",
        "blockdiag": "the block-diagonal form has no options, no grouped heads and no batch",
        "sympy": "no problem small enough for SymPy shows it",
    },
    "forward": {
        "dual": "the gradients are right for the wrong value: the rule's own forward agrees with its backward",
        "identities": "they hold for any layer that is differentiated consistently",
        "blockdiag": "the block-diagonal form has no options, no grouped heads and no batch",
        "sympy": "no problem small enough for SymPy shows it",
    },
    "float": {
        "blockdiag": "the block-diagonal form has no options, no grouped heads and no batch",
        "sympy": "no problem small enough for SymPy shows it",
        "dual": "the gradients are right for the wrong value: the rule's own forward agrees with its backward",
        "identities": "they hold for any layer that is differentiated consistently",
        **dict.fromkeys(
            ("forward", "autograd", "finite differences"),
            "in a row that sees something exp(−10000) is 0 for floats, and the mask is one",
        ),
    },
    "aliasing": {
        "forward": "the value is right, and no gradient is asked for",
        "autograd": "every gradient is right, and nobody reads dY afterwards",
        "finite differences": "every gradient is right, and nobody reads dY afterwards",
        "field": "every gradient is right, and nobody reads dY afterwards",
        "second order": "every gradient is right, and nobody reads dY afterwards",
        "sympy": "every gradient is right, and nobody reads dY afterwards",
    },
    "tangent": {
        **dict.fromkeys(
            ("forward", "autograd", "finite differences", "field", "second order", "sympy", "blockdiag", "identities"),
            "value and gradients are right: only the tangent is wrong",
        ),
    },
    "right": dict.fromkeys(ORACLES, "nothing is wrong"),
    "second": {
        **dict.fromkeys(
            ("forward", "autograd", "finite differences", "dual", "field", "sympy", "blockdiag", "identities"),
            "value, gradients and tangent are right: only their derivative is wrong",
        ),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A rule that is wrong on purpose in one term.

    Attributes:
        id: as in the list of mistakes.
        what: the wrong term, in one line.
        seen: where it happened; "classroom" for a slip that teachers meet, "measured" for a stock case of detection power,
            "ours" for one of our own.
        kind: "formula" (a wrong backward), "forward" (a wrong value, differentiated consistently), "float" (a matter of size or
            range), "aliasing", "tangent", "second" (of second order), or "right" where nothing is wrong.
        replaced: what is exchanged: of a plain layer its stages (:mod:`gradderiv.checks.mutants.stages`), of any other rule functions of
            its operators (:mod:`gradderiv.checks.mutants.operators`).
        problems: names of problems on which it shows; an oracle takes the first that it can work on.
        kills: the oracles that must notice.
        reasons: for every other oracle, why it cannot or need not; what is not here is taken from :data:`REASONS`.
        elsewhere: for an oracle that is to be asked on another problem than the first.
        skips: oracles that are not run, and why.
    """

    id: str
    what: str
    seen: str
    replaced: Mapping[str, Callable[..., Any]]
    kind: str = "formula"
    problems: tuple[str, ...] = ("tiny-h1",)
    kills: frozenset[str] = BACKWARD
    reasons: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    skips: Mapping[str, str] = field(default_factory=dict)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of what is exchanged."""
        return tuple(self.replaced)

    def must(self, oracle: str) -> bool:
        """Whether this oracle has to notice."""
        return oracle in self.kills and oracle not in self.skips

    def reason(self, oracle: str) -> str:
        """Why this oracle need not notice; empty where it must, or where nobody has said."""
        if self.must(oracle):
            return ""
        return (
            self.skips.get(oracle) or self.reasons.get(oracle) or REASONS.get(self.kind, {}).get(oracle, "")
        )

    def asked_on(self, oracle: str) -> tuple[str, ...]:
        """The problems on which this oracle may be asked."""
        return (self.elsewhere[oracle],) if oracle in self.elsewhere else self.problems

    def layer(self) -> Layer:
        """A mutant of the plain layer, as its stages."""
        return Layer(self.replaced)

    def rule(self) -> Rule:
        """The layer under the interface of the catalogue, so that every oracle runs on it."""
        return self.layer().rule(self.id)

    def on(self, problem: Problem) -> Rule:
        """The rule that this problem is for, made wrong; where nothing is exchanged, the layer in stages or the catalogue's own rule."""
        return self.rule() if problem.plain else operators.rule(problem.rule, self.replaced)
