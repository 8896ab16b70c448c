"""``gradderiv.check``: the backward of your function, entry by entry, against oracles that do not run it.

- **tape**: reverse mode through the forward code alone, recorded below a hand-written ``autograd.Function``: every entry of every gradient.
- **dual**: dual numbers through the forward code alone, ⟨dY, Ẏ⟩ = ⟨dθ, θ̇⟩ for each argument in random directions.
- **finite differences** of the values, each with a bound on its error: every entry of small inputs, random directions of larger ones.
- **identities**: what holds whatever the reference. vjp(0) = 0, vjp is linear, nothing that was passed in is written into.

The tolerance of an entry is a multiple of the rounding error that the forward code and its reverse mode make in the inputs' type: computed with running
errors where every operation is known to :mod:`gradderiv.numbers.rounding`, else measured (:mod:`gradderiv.checks.scatter`). An oracle that cannot run says so in
a record of its own.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.candidate import Gradients, backward, linear, verdict, writes, zero_at_zero
from gradderiv.checks.compare import MULTIPLE, Comparison
from gradderiv.checks.forward import Call
from gradderiv.checks.inputs import cast, first_call, make_call
from gradderiv.checks.report import Record, Report
from gradderiv.checks.witnesses import (
    CannotRun,
    Expected,
    Taped,
    differences,
    dual,
    exact,
    proved_zero,
    taped,
)
from gradderiv.threads import one_thread

DIRECTIONS = 2
LARGE = 2**16  # entries of all arguments, from which one direction has to do
ALL, SCALED = "all outputs", "all outputs, scaled"


def check(
    function: Callable[..., Any],
    inputs: Any,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    dtypes: Sequence[torch.dtype] | None = None,
    directions: int = DIRECTIONS,
    n_heads: int | None = None,
) -> Report:
    """Check the gradients of ``function`` at ``inputs``.

    Args:
        function: any callable that returns a tensor or a tuple of tensors; a hand-written ``torch.autograd.Function`` inside
            it is what is usually under test.
        inputs: the arguments, as a tuple, or as a dict of keyword arguments. Tensors with ``requires_grad`` are differentiated, or all
            floating ones if none has it; everything else is a constant.
        names: of the inputs, for the report; the function's own parameter names unless given.
        seed: draws cotangents and directions.
        dtypes: repeat the check with the inputs rounded to each of these; as they are when None.
        directions: how many random directions, where an oracle works with directions.
        n_heads: lets a failure be located in a head.

    Returns:
        A :class:`~gradderiv.checks.report.Report`. ``pass`` means that every gradient agrees with every oracle that could run;
        ``vacuous``, that some gradient is smaller than its own rounding error, so that nothing was shown.

    Raises:
        InputError: nothing to differentiate by, NaN or infinity, a function that raises, is random or returns no floating tensor.
        DtypeError: something that is not callable, complex inputs.
    """
    start = time.perf_counter()
    call = make_call(function, inputs, names)
    calls = [call] if dtypes is None else [cast(call, dtype) for dtype in dtypes]
    records: list[Record] = []
    tensors = [x for x in call.values.values() if isinstance(x, Tensor)]
    devices = sorted({x.device.index or 0 for x in tensors if x.is_cuda})
    with torch.random.fork_rng(devices=devices), one_thread(sum(x.numel() for x in tensors)):
        for one in calls:
            records += _Check(one, seed, directions, n_heads).records()
    return Report(records, seed, time.perf_counter() - start, f"gradderiv check {call.name}")


class _Check:
    """One check, of one function at one set of inputs."""

    def __init__(self, call: Call, seed: int, directions: int, n_heads: int | None) -> None:
        self.call, self.outputs = first_call(call)
        self.seed, self.n_heads = seed, n_heads
        types = {str(call.values[name].dtype).removeprefix("torch.") for name in call.moving}
        self.dtype = ", ".join(sorted(types))
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        cotangents = [normal(*y.shape).to(y.device, y.dtype) for y in self.outputs]
        narrow = any(g.dtype == torch.float16 for g in cotangents)
        self.scale = -16.0 if narrow else -1024.0  # a power of two rounds nothing
        self.aims = _aims(cotangents, self.call.floating or (), self.scale)
        moving = {name: call.values[name] for name in call.moving}
        count = directions if sum(x.numel() for x in moving.values()) < LARGE else 1
        self.directions = {name: normal(count, *x.shape).to(x.device) for name, x in moving.items()}
        self.tape: Taped | None = None
        self.zeros: dict[
            tuple[str, str], float
        ] = {}  # gradients known to be zero, with log₂ of the failure probability

    def records(self) -> list[Record]:
        found = {aim: backward(self.call, cotangents) for aim, cotangents in self.aims.items()}
        records = self._ask("tape", self._tape, list(self.aims), found)
        single = [aim for aim in self.aims if aim != SCALED]
        for oracle, witness in (("dual", dual), ("finite differences", differences)):
            records += self._ask(oracle, self._paired(witness, single), single, found)
        records += self._conduct(found)
        return _settled(records)

    def _ask(
        self, oracle: str, witness: Callable[[], list[dict[str, Expected]]], aims: list[str], found: dict[str, Gradients]
    ) -> list[Record]:  # fmt: skip
        """The records of one oracle, or the one that says why there are none."""
        start = time.perf_counter()
        try:
            answers = witness()
        except CannotRun as reason:
            silent = Comparison("vacuous", math.nan, math.nan, math.nan, None, f"could not run: {reason}")
            return [self._record("all", ALL, oracle, silent)]
        seconds = (time.perf_counter() - start) / (len(aims) * len(self.call.moving))
        return [
            self._judge(oracle, aim, name, expected, found[aim], seconds)
            for aim, answer in zip(aims, answers, strict=True)
            for name, expected in answer.items()
        ]

    def _tape(self) -> list[dict[str, Expected]]:
        self.tape = taped(self.call, self.outputs, list(self.aims.values()), self.seed)
        answers = []
        for aim, gradients, sigmas in zip(self.aims, self.tape.gradients, self.tape.sigmas, strict=True):
            for name, log2 in self._zero(aim, gradients, sigmas).items():
                self.zeros[aim, name] = log2
            answers.append({name: exact(g, self.call.values[name]) for name, g in gradients.items()})
        return answers

    def _zero(
        self, aim: str, gradients: dict[str, Tensor | None], sigmas: dict[str, Tensor]
    ) -> dict[str, float]:
        """Which gradients are zero for every input, with log₂ of the failure probability: not all that are nothing but rounding are."""
        untouched = {name: -math.inf for name, g in gradients.items() if g is None}
        found = {name: g for name, g in gradients.items() if g is not None}
        small = [name for name, g in found.items() if bool((g.abs() <= MULTIPLE * sigmas[name]).all())]
        if aim == SCALED:  # of the same
            return untouched | {name: self.zeros[ALL, name] for name in small if (ALL, name) in self.zeros}
        return untouched | (proved_zero(self.call, self.aims[aim], small, self.seed) if small else {})

    def _paired(
        self, witness: Callable[..., list[dict[str, Expected]]], aims: list[str]
    ) -> Callable[[], list[dict[str, Expected]]]:
        return lambda: witness(self.call, [self.aims[aim] for aim in aims], self.directions)

    # ---- records

    def _judge(
        self, oracle: str, aim: str, name: str, expected: Expected, found: Gradients, seconds: float
    ) -> Record:
        zero = self.zeros.get((aim, name))
        if found.error:
            outcome = verdict(False, f"the backward pass raised {found.error}")
        elif not bool(torch.isfinite(expected.reference).all()):
            detail = "the derivative is not finite here: the forward overflows on the way, or has a corner"
            outcome = Comparison("vacuous", math.nan, math.nan, math.nan, None, detail)
        else:
            sigma = self._sigma(aim, name)
            outcome = expected.judge(found.values[name], sigma, zero is not None, self.n_heads)
        if self.tape is not None and outcome.verdict == "fail" and expected.directions is None:
            outcome = _hint(outcome, self.tape.dtype)
        if self.tape is not None and outcome.verdict == "pass" and oracle == "tape":
            detail = f"{outcome.detail}; tolerance from {self.tape.tolerance_from}"
            outcome = dataclasses.replace(outcome, detail=detail)
        exactly = 2.0**zero if zero is not None and oracle == "tape" else None
        return self._record(name, aim, oracle, outcome, seconds, exactly)

    def _sigma(self, aim: str, name: str) -> Tensor | None:
        return None if self.tape is None else self.tape.sigmas[list(self.aims).index(aim)][name]

    def _conduct(self, found: dict[str, Gradients]) -> list[Record]:
        outcomes = {"inputs unchanged": writes(found.values())}
        if not any(gradients.error for gradients in found.values()):
            sigmas = None if self.tape is None else self.tape.sigmas[list(self.aims).index(ALL)]
            outcomes["vjp(0) = 0"] = zero_at_zero(self.call, self.aims[ALL])
            outcomes["vjp is linear"] = linear(found[ALL], found[SCALED], self.scale, sigmas, self.n_heads)
        return [self._record(name, ALL, "identities", outcome) for name, outcome in outcomes.items()]

    def _record(
        self, argument: str, aim: str, oracle: str, found: Comparison, seconds: float = 0.0, exactly: float | None = None
    ) -> Record:  # fmt: skip
        replay = f"gradderiv.check({self.call.spelled}, inputs, seed={self.seed})"
        return Record(
            self.call.name, aim, argument, oracle, "float", self.dtype, seconds=seconds, failure_probability=exactly,
            replay=replay if found.verdict == "fail" else "", **found.fields(),
        )  # fmt: skip


def _aims(cotangents: list[Tensor], positions: Sequence[int], scale: float) -> dict[str, list[Tensor | None]]:
    """The lists of cotangents: each output alone, then all together, then all scaled. Never a constant one."""
    aims: dict[str, list[Tensor | None]] = {}
    if len(cotangents) > 1:
        for k, position in enumerate(positions):
            aims[f"output {position}"] = [g if j == k else None for j, g in enumerate(cotangents)]
    aims[ALL] = list(cotangents)
    aims[SCALED] = [g * scale for g in cotangents]
    return aims


def _settled(records: list[Record]) -> list[Record]:
    """A vacuous record is as it should be where another oracle has shown the same gradient, one that could not run where others have."""
    judged = [r for r in records if r.oracle != "identities" and r.argument != "all"]
    shown = {(r.problem, r.argument) for r in judged if r.verdict == "pass"}
    decided = bool(judged) and {(r.problem, r.argument) for r in judged if r.verdict != "vacuous"} == {
        (r.problem, r.argument) for r in judged
    }

    def settled(r: Record) -> bool:
        return decided if r.argument == "all" else (r.problem, r.argument) in shown

    return [
        dataclasses.replace(r, expected=True) if r.verdict == "vacuous" and settled(r) else r for r in records
    ]


def _hint(found: Comparison, dtype: torch.dtype) -> Comparison:
    """Add that the errors look like those of a narrower type."""
    for narrow in (torch.float32, torch.bfloat16):
        eps = torch.finfo(narrow).eps
        ratio = eps / torch.finfo(dtype).eps
        if (
            ratio > 1
            and found.max_abs_error <= found.tolerance * ratio
            and eps / 100 < found.max_rel_error < 8 * eps
        ):
            name = str(narrow).removeprefix("torch.")
            hint = (
                f"The errors are as small as the rounding of {name}: is something cast to it in the backward?"
            )
            return dataclasses.replace(found, detail=f"{found.detail} {hint}")
    return found
