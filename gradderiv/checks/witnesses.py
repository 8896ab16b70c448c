"""The three oracles of :func:`gradderiv.check`, each from the forward code alone: a tape, dual numbers, finite differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradderiv.checks.candidate import in_words
from gradderiv.checks.compare import MULTIPLE, Comparison, compare
from gradderiv.checks.differences import directional_difference, finite_differences
from gradderiv.checks.exact import Pairs, exactly
from gradderiv.checks.forward import Call, record, run
from gradderiv.checks.scatter import RUNS, scatter
from gradderiv.checks.values import value_of
from gradderiv.numbers.dual import Dual, DualTensor
from gradderiv.numbers.field import Field
from gradderiv.numbers.rounding import Rounding, RoundingTensor
from gradderiv.numbers.tape import Tape, TapeTensor

ENTRIES = 512  # of all arguments together, up to which finite differences take every entry
Cotangents = Sequence[Tensor | None]


class CannotRun(Exception):
    """An oracle has no way through this function; the text says why."""


class AnotherFunction(CannotRun):
    """On the tape it computes something else than on its own inputs."""


@dataclass(frozen=True)
class Expected:
    """What an oracle says of one gradient: every entry of it, or its pairing with a few directions.

    Attributes:
        reference: the entries, or ⟨gradient, direction⟩ for each direction.
        bound: of the error of ``reference`` itself.
        directions: (number of directions, *shape of the argument); None where ``reference`` has every entry.
    """

    reference: Tensor
    bound: Tensor
    directions: Tensor | None = None

    def judge(
        self, gradient: Tensor | None, sigma: Tensor | None, zero: bool, n_heads: int | None
    ) -> Comparison:
        """The verdict on a gradient whose own rounding error has the standard deviation ``sigma``."""
        shape = self.reference.shape if self.directions is None else self.directions.shape[1:]
        value = self.reference.new_zeros(shape) if gradient is None else gradient.detach().double()
        if sigma is None:
            size = value.abs().max().nan_to_num(nan=0.0, posinf=0.0)
            sigma = 8 * torch.finfo(torch.float64 if gradient is None else gradient.dtype).eps * size
        if self.directions is None or value.shape != shape:
            found = compare(value, self.reference, self.bound + MULTIPLE * sigma, zero=zero, n_heads=n_heads)
        else:
            axes = tuple(range(1, self.directions.dim()))
            paired = (value * self.directions).sum(axes) if axes else value * self.directions
            square = (sigma * self.directions).square()
            spread = (square.sum(axes) if axes else square).sqrt()
            found = compare(paired, self.reference, self.bound + MULTIPLE * spread, zero=zero)
            detail = f"in {len(self.directions)} random directions: {found.detail}"
            found = dataclasses.replace(
                found, detail=detail.replace("entries", "pairings").replace("entry", "pairing")
            )
        if gradient is None and found.verdict == "fail":
            detail = (
                f"no gradient came back, should be up to {float(self.reference.abs().max()):.4g}: "
                "None returned by backward, once_differentiable, or a path that is detached?"
            )
            found = dataclasses.replace(found, detail=detail)
        return found


def exact(gradient: Tensor | None, argument: Tensor) -> Expected:
    """A gradient that is known in every entry; None stands for zero."""
    zero = torch.zeros(argument.shape, dtype=torch.float64, device=argument.device)
    return Expected(zero if gradient is None else gradient.detach().double(), torch.zeros_like(zero))


# ---------------------------------------------------------------- the tape


@dataclass(frozen=True)
class Taped:
    """The gradients for every list of cotangents, with the standard deviations of rounding errors in ``dtype``."""

    gradients: list[dict[str, Tensor | None]]
    sigmas: list[dict[str, Tensor]]
    dtype: torch.dtype
    tolerance_from: str


def taped(call: Call, outputs: list[Tensor], aims: Sequence[Cotangents], seed: int) -> Taped:
    """Every entry of every gradient, through the forward code alone.

    Raises:
        CannotRun: the function leaves torch, or computes something else on the tape than on its own inputs.
    """
    try:
        wide = record(call, Tensor.double)
    except Exception as error:
        raise CannotRun(in_words(error)) from error
    types = wide.casts | {call.values[name].dtype for name in call.moving}
    dtype = max(types, key=lambda t: torch.finfo(t).eps)
    try:
        found, values, errors = _with_rounding(call, aims, dtype)
        how = f"running errors in {_short(dtype)}"
    except Exception as error:
        values = wide.outputs
        found = [wide.gradients([None if g is None else g.double() for g in aim]) for aim in aims]
        sigmas, errors = scatter(call, [list(aim) for aim in aims], dtype, seed)
        how = f"the scatter of {RUNS} runs with errors of {_short(dtype)} ({in_words(error)})"
        _require_same_values(outputs, values, errors)
        return Taped(found, sigmas, dtype, how)
    _require_same_values(outputs, values, errors)
    gradients = [{n: None if g is None else value_of(g) for n, g in aim.items()} for aim in found]
    sigmas = [{n: _error(g, call.values[n]) for n, g in aim.items()} for aim in found]
    return Taped(gradients, sigmas, dtype, how)


def _with_rounding(
    call: Call, aims: Sequence[Cotangents], dtype: torch.dtype
) -> tuple[list[dict[str, Tensor | None]], list[Tensor], list[Tensor]]:
    numbers = Rounding(dtype)
    tape = record(call, numbers.make)
    found = [tape.gradients([None if g is None else numbers.make(g) for g in aim]) for aim in aims]
    return found, [value_of(y) for y in tape.outputs], [_error(y, y) for y in tape.outputs]


def _error(x: Tensor | None, like: Tensor) -> Tensor:
    if isinstance(x, RoundingTensor):
        return x.error
    return torch.zeros(like.shape, dtype=torch.float64, device=like.device)


def _require_same_values(outputs: list[Tensor], values: list[Tensor], errors: list[Tensor]) -> None:
    """The tape computed the function that is under test."""
    for k, (y, value, error) in enumerate(zip(outputs, values, errors, strict=True)):
        u = torch.finfo(y.dtype).eps / 2
        apart = (y.double() - value).abs()
        if y.shape != value.shape or bool((apart > MULTIPLE * (error + u * value.abs())).any()):
            raise AnotherFunction(
                f"output {k} is {float(apart.max()):.1e} off on the tape: it reads values out, asks for types, or rounds more than its types say"
            )


def proved_zero(call: Call, aim: Cotangents, names: Sequence[str], seed: int) -> dict[str, float]:
    """Those of the gradients ``names`` that are identically zero, with log₂ of the failure probability of that statement.

    The tape runs over the field at a random point: zero in every lane.
    """

    def run_over(field: Field) -> Pairs:
        tape = record(call, lambda x: field.random(*x.shape), lambda x: field.constant(x, x.dtype))
        gradients = tape.gradients([None if g is None else field.random(*g.shape) for g in aim])
        return {n: (g, torch.zeros_like(g)) for n, g in gradients.items() if g is not None and n in names}

    try:
        found = exactly(run_over, seed=seed, device=str(call.values[call.moving[0]].device))
    except (
        Exception
    ):  # an operation without exact meaning: nothing is proved, and the verdict will be vacuous
        return {}
    return {name: outcome.log2_failure for name, outcome in found.items() if outcome.equal}


# ---------------------------------------------------------------- dual numbers


def dual(
    call: Call, aims: Sequence[Cotangents], directions: Mapping[str, Tensor]
) -> list[dict[str, Expected]]:
    """⟨dY, Ẏ⟩ for each argument moving alone in a few directions, for every list of cotangents.

    Raises:
        CannotRun: an operation that dual numbers do not know.
    """
    numbers, duals = Rounding(torch.float64), Dual()

    def fixed(x: Tensor) -> Tensor:
        return duals.make(numbers.make(x.clone()))  # a function that writes into its input writes into this

    others = {n: call.values[n] for n in call.moving} | call.constants()
    found: list[dict[str, Expected]] = [{} for _ in aims]
    for name, several in directions.items():
        pairings: list[list[tuple[float, float]]] = [[] for _ in aims]
        for direction in several:
            moved = duals.make(numbers.make(call.values[name].clone()), numbers.make(direction.clone()))
            still = {n: fixed(x) for n, x in others.items()}
            try:
                outputs, _ = run(call, {**still, name: moved}, fixed)
            except Exception as error:
                raise CannotRun(in_words(error)) from error
            for pairing, aim in zip(pairings, aims, strict=True):
                pairing.append(_pairing(outputs, aim))
        for at, pairing in zip(found, pairings, strict=True):
            reference, sigma = several.new_tensor(pairing).unbind(1)
            at[name] = Expected(reference, MULTIPLE * sigma, several)
    return found


def _pairing(outputs: list[Tensor], aim: Cotangents) -> tuple[float, float]:
    """⟨dY, Ẏ⟩ and the standard deviation of its rounding error."""
    total, variance = 0.0, 0.0
    for y, g in zip(outputs, aim, strict=True):
        if g is not None and isinstance(y, DualTensor) and y.part("t") is not None:
            total += float((value_of(y.tangent) * g.double()).sum())
            variance += float((_error(y.tangent, y) * g.double()).square().sum())
    return total, variance**0.5


# ---------------------------------------------------------------- finite differences


def differences(
    call: Call, aims: Sequence[Cotangents], directions: Mapping[str, Tensor]
) -> list[dict[str, Expected]]:
    """Central differences of ⟨dY, Y⟩ with their bounds, for every list of cotangents; for several outputs together, the sum of the single ones.

    Raises:
        CannotRun: neither the function nor its tape runs in float64.
    """
    single: list[dict[str, Expected]] = []
    for k in range(len(aims[0])):
        cotangent = next(aim[k] for aim in aims if aim[k] is not None)
        assert cotangent is not None
        try:
            single.append(_one_output(call, k, cotangent.double(), directions))
        except Exception as error:
            raise CannotRun(in_words(error)) from error
    return [dict(_added(single, aim, call.moving)) for aim in aims]


def _one_output(
    call: Call, k: int, cotangent: Tensor, directions: Mapping[str, Tensor]
) -> dict[str, Expected]:
    evaluate = _in_float64(call)
    args = {name: call.values[name].double() for name in call.moving}

    def loss(a: dict[str, Tensor]) -> Tensor:
        return (evaluate(a)[k] * cotangent).sum()

    if sum(x.numel() for x in args.values()) <= ENTRIES:
        return {name: Expected(*pair) for name, pair in finite_differences(loss, args).items()}
    found = {}
    for name, several in directions.items():
        pairs = [directional_difference(loss, args, {name: direction}) for direction in several]
        estimate, bound = several.new_tensor(pairs).unbind(1)
        found[name] = Expected(estimate, bound, several)
    return found


def _in_float64(call: Call) -> Callable[[Mapping[str, Tensor]], list[Tensor]]:
    """The function itself on float64 inputs where it runs and keeps to float64; else the values on its tape, where casts do nothing."""
    tape = Tape()
    constants = {name: x.double() for name, x in call.constants().items()}

    def on_tape(a: Mapping[str, Tensor]) -> list[Tensor]:
        inputs = {name: tape.make(x.double().clone()) for name, x in {**constants, **a}.items()}
        outputs, _ = run(call, inputs, lambda x: tape.make(x.double()))
        return [y.recorded.detach() if isinstance(y, TapeTensor) else y.double() for y in outputs]

    def itself(a: Mapping[str, Tensor]) -> list[Tensor]:
        return call({name: x.clone() for name, x in {**constants, **a}.items()})

    args = {name: call.values[name].double() for name in call.moving}
    try:
        with torch.no_grad():
            own = itself(args)
    except Exception:
        return on_tape
    if any(y.dtype != torch.float64 for y in own):
        return on_tape
    try:
        taped_values = on_tape(args)
    except Exception:
        return itself
    pairs = zip(own, taped_values, strict=True)
    same = all(float((y - z).abs().max()) <= 1e-10 * float(z.abs().max()) for y, z in pairs)
    return itself if same else on_tape


def _added(
    single: list[dict[str, Expected]], aim: Cotangents, names: Sequence[str]
) -> Iterator[tuple[str, Expected]]:
    for name in names:
        parts = [found[name] for found, g in zip(single, aim, strict=True) if g is not None]
        reference = torch.stack([p.reference for p in parts]).sum(0)
        yield name, Expected(reference, torch.stack([p.bound for p in parts]).sum(0), parts[0].directions)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
