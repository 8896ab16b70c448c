"""Write the function: called on residues, at several sizes, and compared exactly with what the forward alone says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.book.exercises.explain import Compared, explain
from gradderiv.book.exercises.grading import ATTEMPT, JUDGES, judged
from gradderiv.book.exercises.guard import Watch, raised
from gradderiv.book.exercises.listed import Mistakes, listed
from gradderiv.book.exercises.problems import Forward, Inputs, Sizes, Values, true_values
from gradderiv.book.exercises.verdict import ExerciseError, Part
from gradderiv.checks.exact import exactly
from gradderiv.errors import NoExactMeaning
from gradderiv.numbers.field import Field
from gradderiv.numbers.lanes import DrawAgain, FieldTensor

Wanted = str | tuple[str, ...]
LEANS = "It leans on what exact arithmetic does not know, as exp(a + b) = exp(a) exp(b), or the order of numbers. Write it without, or ask a person."
HALF = 2.0**-26  # half the digits of float64


class Asked(NamedTuple):
    """A function that was asked for, and the names of its results."""

    function: Callable[..., Any]
    results: tuple[str, ...]


class Answer(NamedTuple):
    """What a call came to: the results, or why there are none."""

    results: tuple[Any, ...] = ()
    fault: str = ""


def check_functions(
    functions: Mapping[Wanted, Callable[..., Any]],
    forward: Forward,
    *,
    inputs: Inputs,
    sizes: Sequence[Sizes],
    mistakes: Mistakes | Mapping[str, Mistakes] = (),
    shares: Mapping[str, float] | None = None,
) -> None:
    """Judge functions that were to be written, each by itself, each result by itself.

    A function is called with its parameters by their names, on the true values (:mod:`gradderiv.book.exercises.problems`).

    Args:
        functions: under the name of what it returns, as ``"dS"``, or several names in a tuple.
        forward: computes what the loss is a function of; returns a dict, the output last. The derivatives are its own.
        inputs: dimensions of the free inputs, as ``"n_q, d_k"``; or functions of sizes that make constants.
        sizes: the problems, two at least.
        mistakes: wrong functions, whose docstrings the verdict must say, or ids of mutants; by the name of the function where there are several.
        shares: of the points, by result; even where it is not given.

    Raises:
        ExerciseError: the exercise is not as it must be.
    """
    if not JUDGES.get():
        return
    asked = [
        Asked(function, (names,) if isinstance(names, str) else names)
        for names, function in functions.items()
    ]
    by_function = mistakes if isinstance(mistakes, Mapping) else {asked[0].function.__name__: mistakes}
    if len(asked) > 1 and not isinstance(mistakes, Mapping):
        raise ExerciseError("with several functions, mistakes is a dict: function name → mistakes")
    _require_telling(sizes)
    faults: dict[str, str] = {}
    for problem in sizes:
        for one, compared in _compare(asked, forward, inputs, problem):
            if compared.equal or compared.name in faults:
                continue
            wrong = by_function.get(one.function.__name__, ())
            others = {} if compared.fault else _others(one, wrong, compared)
            faults[compared.name] = explain(compared, others, problem)
    agree = [_agree(asked, faults, forward, inputs, s) for s in sizes] if faults else []
    undecided = set[str].intersection(*agree) if agree else set()
    names = [name for one in asked for name in one.results]
    judged([_part(n, faults.get(n, ""), n in undecided, (shares or {}).get(n, 1), len(sizes)) for n in names])


def _part(name: str, fault: str, undecided: bool, share: float, problems: int) -> Part:
    if not fault:
        return Part(name, "right", share, 1, f"equal in every entry, at {problems} sizes")
    if undecided:
        why = f"Residues differ: {fault}\nIn float64 it is right. {LEANS}"
        return Part(name, "undecided", share, 0, why)
    return Part(name, "wrong", share, 0, fault)


def _compare(
    asked: Sequence[Asked], forward: Forward, inputs: Inputs, sizes: Sizes
) -> list[tuple[Asked, Compared]]:
    """Each result beside the true one."""
    seen: dict[str, Compared] = {}

    def run(field: Field) -> dict[str, tuple[Tensor, Tensor]]:
        values = true_values(forward, inputs, sizes, field.random)
        pairs = {}
        for one in asked:
            _require_known(one.results, values)
            answer = _call(one, values)
            for k, name in enumerate(one.results):
                right = values[name]
                fault = answer.fault or _unlike(answer.results[k], right)
                value = right if fault else _in(field, answer.results[k])
                seen[name] = Compared(name, value, right, field, values, fault)
                pairs[name] = value, right
        return pairs

    try:
        outcomes = exactly(run, lanes=3)
    except NoExactMeaning as error:
        raise ExerciseError(str(error)) from error
    for name, outcome in outcomes.items():
        if outcome.zero:
            raise ExerciseError(
                f"the true {name} is zero everywhere: a function that returns zeros would be right"
            )
        seen[name] = seen[name]._replace(equal=outcome.equal and not seen[name].fault)
    return [(one, seen[name]) for one in asked for name in one.results]


def _others(one: Asked, mistakes: Mistakes, compared: Compared) -> dict[str, Tensor]:
    """What each listed mistake returns in the place of this result, by its words."""
    found = {}
    for words, function in listed(mistakes, _as_asked(one.function), one.results):
        answer = _call(Asked(function, one.results), compared.values)
        if answer.fault:
            raise ExerciseError(f"the listed mistake «{words}»: {answer.fault}")
        result = answer.results[one.results.index(compared.name)]
        if not _unlike(result, compared.right):
            found[words] = _in(compared.field, result)
    return found


def _as_asked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as the solution has it: an answer may have other parameters."""
    attempt = ATTEMPT.get()
    found: Callable[..., Any] = attempt.solved.get(function.__name__, function) if attempt else function
    return found


def _call(asked: Asked, values: Values) -> Answer:
    """The function on copies of the true values, watched."""
    parameters = inspect.signature(asked.function).parameters
    if any(name not in values or name in asked.results for name in parameters):  # nor what is asked for
        return Answer(fault=f"its parameters must keep their names\n  came:  {', '.join(parameters)}")
    given = {n: v.clone() if isinstance(v, Tensor) else v for n, v in values.items() if n in parameters}
    watch = Watch()
    fault = ""
    try:
        with watch.watching():
            found = asked.function(**given)
    except DrawAgain:
        raise
    except NotImplementedError as error:
        fault = f"not written yet ({error})" if str(error) else "not written yet"
    except Exception as error:
        fault = raised(error, asked.function.__code__.co_filename)
    if watch.call:
        fault = f"it calls {watch.call}: write the derivative yourself"
    if fault:
        return Answer(fault=fault)
    changed = [n for n, v in given.items() if isinstance(v, Tensor) and not _same(v, values[n])]
    if changed:
        return Answer(fault=f"it writes into {', '.join(changed)}, which belongs to the caller")
    results = (found,) if len(asked.results) == 1 and not isinstance(found, tuple) else found
    if isinstance(results, list):
        results = tuple(results)
    if results is None or results == (None,):
        return Answer(fault="it returns None: is the return missing?")
    if not isinstance(results, tuple) or len(results) != len(asked.results):
        came = f"{len(results)} values" if isinstance(results, tuple) else "one value"
        return Answer(fault=f"it must return {', '.join(asked.results)}\n  came:  {came}")
    return Answer(results)


def _unlike(value: Any, right: Tensor) -> str:
    """Why a result cannot be compared with the right one, or "". Nothing is broadcast."""
    if not isinstance(value, Tensor):
        return f"it must be a tensor of shape {tuple(right.shape)}\n  came:  {type(value).__name__}"
    if value.shape != right.shape:
        turned = right.dim() > 1 and value.shape == right.mT.shape
        cause = "\n  cause: it is transposed, or a product is" if turned else ""
        return f"its shape must be {tuple(right.shape)}\n  came:  {tuple(value.shape)}{cause}"
    if not value.dtype.is_floating_point or value.layout is not torch.strided or value.is_meta:
        return f"its entries must be real numbers, as those of {tuple(right.shape)} {right.dtype}\n  came:  {value.dtype}, {value.layout}"
    if not isinstance(value, FieldTensor) and not bool(value.isfinite().all()):
        return "its entries must be real numbers\n  came:  NaN or an infinity"
    return ""


def _agree(
    asked: Sequence[Asked], names: Iterable[str], forward: Forward, inputs: Inputs, sizes: Sizes
) -> set[str]:
    """Those of the results that are right in float64, to half its digits."""
    generator = torch.Generator().manual_seed(0)
    values = true_values(
        forward, inputs, sizes, lambda *s: torch.randn(s, generator=generator, dtype=torch.float64)
    )
    found: dict[str, Any] = {}
    for one in asked:
        found |= zip(one.results, _call(one, values).results, strict=False)
    right = {n for n in names if n in found and not _unlike(found[n], values[n])}
    return {n for n in right if bool((found[n] - values[n]).abs().max() <= HALF * values[n].abs().max())}


def _in(field: Field, value: Tensor) -> Tensor:
    """A result as numbers of the field."""
    return value.detach() if isinstance(value, FieldTensor) else field.constant(value.detach(), value.dtype)


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, FieldTensor):
        system: Any = x.system
        return x.shape == y.shape and not bool(system.differs(x, y).any())
    return x.shape == y.shape and bool((x == y).all())


def _require_telling(sizes: Sequence[Sizes]) -> None:
    """Two problems at least, and in each no two sizes that are equal: no transpose hides."""
    if len(sizes) < 2:
        raise ExerciseError("a function is judged at two sizes at least")
    for one in sizes:
        if len(set(one.values())) < len(one):
            raise ExerciseError(f"sizes must be pairwise different, so that no transpose hides: {dict(one)}")


def _require_known(results: Sequence[str], values: Values) -> None:
    unknown = [n for n in results if n not in values]
    if unknown:
        raise ExerciseError(f"{', '.join(unknown)} is no name of the problem, which has {', '.join(values)}")
