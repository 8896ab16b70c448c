"""The mistakes that an exercise lists, as functions: its own ones, and those of the wrong-on-purpose layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from gradderiv.book.exercises.verdict import ExerciseError
from gradderiv.checks.mutants import MUTANTS
from gradderiv.checks.mutants.stages import BACKWARD

Mistakes = Sequence[str | Callable[..., Any]]


class Listed(NamedTuple):
    """A mistake: what it is, in words, and the wrong function."""

    words: str
    function: Callable[..., Any]


def listed(mistakes: Mistakes, function: Callable[..., Any], results: Sequence[str]) -> list[Listed]:
    """The mistakes of one function that returns ``results``; a text is the id of a mutant of the plain layer.

    Raises:
        ExerciseError: there is no such mutant, or a mistake has no words.
    """
    out = []
    for mistake in mistakes:
        if isinstance(mistake, str):
            out.append(from_mutant(mistake, function, results))
        elif not inspect.getdoc(mistake):
            raise ExerciseError(
                f"the mistake {mistake.__name__} has no docstring: what must the verdict say?"
            )
        else:
            out.append(Listed(str(inspect.getdoc(mistake)), mistake))
    return out


def from_mutant(id: str, function: Callable[..., Any], results: Sequence[str]) -> Listed:
    """The wrong layer of that id as a function with the parameters of ``function``."""
    if id not in MUTANTS:
        raise ExerciseError(f"no mutant {id!r}: gradderiv/checks/mutants has {', '.join(MUTANTS)}")
    mutant = MUTANTS[id]
    signature = inspect.signature(function)
    names = list(signature.parameters)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        values = {**dict(zip(names, args, strict=False)), **kwargs}
        stages = _stages(mutant.replaced, values)
        found = tuple(stages[name] for name in results)
        return found[0] if len(found) == 1 else found

    wrong.__signature__ = signature  # type: ignore[attr-defined]
    wrong.__name__ = function.__name__
    return Listed(mutant.what, wrong)


def _stages(replaced: Mapping[str, Callable[..., Any]], values: Mapping[str, Any]) -> dict[str, Any]:
    """The backward stages from the first one that is exchanged; those for which something is lacking are left out."""
    layer = SimpleNamespace(axis=-1, bias=None, **values)
    layer.P_again = values.get("P")
    changed = False
    for name, right in BACKWARD.items():
        changed = changed or name in replaced
        if changed or name not in values:
            try:
                setattr(layer, name, replaced.get(name, right)(layer))
            except AttributeError:
                continue
    return vars(layer)
