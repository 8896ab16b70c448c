"""The steps of one proof, and what they found."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.candidate import backward, in_words
from gradderiv.checks.compare import Comparison
from gradderiv.checks.exact import Outcome, Pairs, Start, exactly
from gradderiv.checks.forward import Call
from gradderiv.checks.locate import locate, on_floats
from gradderiv.checks.proof import Proof, together
from gradderiv.checks.report import Record
from gradderiv.checks.runs import SCALAR, Runs, in_field, paired, pairing
from gradderiv.errors import NoExactMeaning
from gradderiv.numbers.field import Field
from gradderiv.numbers.lanes import DrawAgain

ALL = "all outputs"
PLANNED = 2  # steps of a proof in which nothing happens on the way
LARGE = 2**18  # entries of all inputs, from which a run without products comes first
KERNELS = (
    ". A compiled function, a Triton or a C++ kernel knows floats only: prove the formula that it computes"
)
Progress = Callable[[int, int, str], None]


def twice(one: Outcome, other: Outcome) -> Outcome:
    """The first outcome, where either of the two might have been an accident."""
    return dataclasses.replace(
        one,
        log2_failure=together([one.log2_failure, other.log2_failure]),
        log2_failure_over_q=together([one.log2_failure_over_q, other.log2_failure_over_q]),
    )


class Prover:
    """The steps of one proof, and what they found."""

    def __init__(
        self, call: Call, outputs: Sequence[Tensor], settings: dict[str, Any], cut: set[str], n_heads: int | None, progress: Progress
    ) -> None:  # fmt: skip
        self.call, self.outputs, self.settings, self.n_heads = call, outputs, settings, n_heads
        self.seed: int = settings["seed"]
        self.cut, self.progress = cut, progress
        self.runs = Runs(call, outputs, self.seed)
        self.size = sum(x.numel() for x in call.values.values() if isinstance(x, Tensor))
        self.large = self.size > LARGE
        self.records: list[Record] = []
        self.remarks: dict[str, None] = {}
        self.exponents: dict[str, tuple[float, float]] = {}
        self.field: Field | None = None
        self.start, self.steps = Start(), 0
        self.draws, self.started, self.odd = 0, time.perf_counter(), False
        positions = list(call.floating or range(len(outputs)))
        self.names = [f"output {p}" for p in positions]
        kept = [k for k, name in enumerate(self.names) if name not in cut]
        alone = {self.names[k]: [k] for k in kept} if len(kept) > 1 else {}
        self.aims: dict[str, list[int]] = {**alone, ALL: kept}

    @property
    def stopped(self) -> bool:
        return any(r.verdict != "proved" for r in self.records)

    # ---- first order

    def first_order(self, order: str = "") -> None:
        """Every output alone, then all together: the backward against forward mode."""
        unreached: dict[str, set[str]] = {}
        loose: set[int] = set()

        def run(field: Field) -> Pairs:
            point = self.runs.point(field)
            self.step(f"{order}backward, {field.lanes} primes")
            outputs, gradients = self.runs.backward(field, point, self.aims)
            loose.update(k for k, y in enumerate(outputs) if not y.requires_grad)
            for aim, found in gradients.items():
                unreached[aim] = {name for name, g in found.items() if g is None}
            left = {aim: pairing(found, point.tangents) for aim, found in gradients.items()}
            values = [y.detach() for y in outputs]
            del outputs, gradients
            self.step(f"{order}forward mode, {field.lanes} primes")
            again, tangents = self.runs.forward(field, point, last=True)
            loose.difference_update(k for k, t in enumerate(tangents) if t is None)  # nothing moves it
            pairs = {}
            for aim, which in self.aims.items():
                right = paired(tangents, point.cotangents, [k for k in which if k not in loose])
                pairs[aim] = in_field(field, left[aim], SCALAR), in_field(field, right, SCALAR)
            for k, name in enumerate(self.names):
                pairs[f"value of {name}"] = (
                    in_field(field, values[k], values[k]),
                    in_field(field, again[k], values[k]),
                )
            return pairs

        found = self.exactly(run, order)
        if found is None:
            return
        for name in self.names:
            outcome = found[f"value of {name}"]
            self.exponents[f"{order}{name}|value"] = outcome.log2_failure, outcome.log2_failure_over_q
        wrong_values = [name for name in self.names if not found[f"value of {name}"].equal]
        if wrong_values:
            self.undecided(
                ALL, "all", "dual", self._about_value(found[f"value of {wrong_values[0]}"], wrong_values[0])
            )
            return
        lost = set.intersection(*unreached.values()) - self.cut if unreached else set()
        wrong = [aim for aim in self.aims if not found[aim].equal]
        located = locate(self, wrong, found, order, loose) if wrong else {}
        if any(r.verdict == "inconclusive" for r in located.values()):
            again = self.with_odd_exponentials(run, found)
            wrong, found = (wrong, found) if again is None else ([], again)
        for aim in self.aims:
            for name in self.call.moving:
                if aim not in wrong and name in lost and aim == ALL:
                    detail = f"no gradient came back, and no output depends on {name}; if that is meant, say no_gradient={[name]}"
                    self.undecided(order + aim, name, "dual", detail)
                elif aim not in wrong:
                    self.proved(order + aim, name, "dual", found[aim])
                else:
                    self.records.append(located[aim, name])
        if not wrong:
            on_floats(self, order, loose)
        for k in sorted(loose):
            if self.names[k] not in self.cut:
                detail = f"it has no history: marked non-differentiable, detached, or constant; if that is meant, say no_gradient={[self.names[k]]}"
                self.undecided(order + self.names[k], "all", "dual", detail)

    def with_odd_exponentials(
        self, run: Callable[[Field], Pairs], first: Mapping[str, Outcome]
    ) -> dict[str, Outcome] | None:
        """The outcomes with exp(−a) = 1/exp(a), where then everything is equal; what is wrong had two chances, the ``first`` and this one."""
        if self.field is None or not self.field.opaque_used:
            return None
        try:
            found = self.run(run, odd=True)
        except (NoExactMeaning, DrawAgain):
            return None
        if not all(o.equal for o in found.values()):
            return None
        self.odd = True
        return {name: twice(outcome, first[name]) for name, outcome in found.items()}

    def _about_value(self, outcome: Outcome, name: str) -> str:
        if bool(outcome.moved.any()):
            return (
                f"{name} depends on the maximum of a row, or on where it stands, other than as a shift that cancels: "
                "max has no exact meaning as a value"
            )
        return f"{name} differs between two runs of the same program: it reads memory that is not initialised, keeps a state, or its backward writes into it"

    # ---- runs and records

    def exactly(self, run: Callable[[Field], Pairs], order: str) -> dict[str, Outcome] | None:
        """The outcomes; None where the program has no exact meaning, and then a record says so."""
        try:
            return self.run(run)
        except NoExactMeaning as error:
            self.undecided(order + ALL, "all", "dual", str(error))
        except DrawAgain as error:
            self.undecided(order + ALL, "all", "dual", f"{error}, at every point that was drawn")
        except Exception as error:
            self.undecided(order + ALL, "all", "dual", self._raised(error, order))
        return None

    def _raised(self, error: Exception, order: str) -> str:
        if order:
            return f"on exact numbers it raises {in_words(error)}"
        which = self.aims[ALL]
        ones = [torch.ones_like(y) if k in which else None for k, y in enumerate(self.outputs)]
        in_floats = backward(self.call, ones).error
        if in_floats:
            return f"its backward raises {in_floats}, in floats too"
        if len(self.aims) > 1 and "modified by an inplace operation" in str(error):
            return (
                "its backward writes into what was saved for it, and cannot be asked for one output after the other. "
                f"Prove one at a time, with the others in no_gradient. {in_words(error)}"
            )
        return f"it runs on floats, and on exact numbers raises {in_words(error)}{KERNELS}"

    def run(self, run: Callable[[Field], Pairs], **options: Any) -> dict[str, Outcome]:
        def watched(field: Field) -> Pairs:
            self.field = field
            return run(field)

        tests = len(self.aims) + len(self.names)  # each may spend its part of the failure probability
        settings = {**self.settings, "target": self.settings["target"] - math.ceil(math.log2(tests))}
        start = Start(self.start.roots, self.start.lanes) if options else self.start
        found = exactly(watched, start=start, scout=self.large, **settings, **options)
        if self.field is not None:
            self.draws = max(self.draws, self.field.draw)
        return found

    def step(self, label: str) -> None:
        self.steps += 1
        self.progress(self.steps - 1, max(self.steps, PLANNED), label)

    def proved(self, problem: str, argument: str, oracle: str, outcome: Outcome) -> None:
        self.records.append(self.record(problem, argument, oracle, "proved", outcome=outcome))

    def undecided(self, problem: str, argument: str, oracle: str, detail: str) -> None:
        self.records.append(self.record(problem, argument, oracle, "inconclusive", detail))

    def record(
        self, problem: str, argument: str, oracle: str, verdict: str, detail: str = "", *, outcome: Outcome | None = None,
        seen: Comparison | None = None,
    ) -> Record:  # fmt: skip
        proved = verdict == "proved" and outcome is not None
        if proved and outcome is not None:
            one_test = "" if oracle == "dual" else argument  # forward mode tests all arguments at once
            self.exponents[f"{problem}|{oracle}|{one_test}"] = (
                outcome.log2_failure,
                outcome.log2_failure_over_q,
            )
        numbers = (
            {} if seen is None else {k: v for k, v in seen.fields().items() if k not in ("verdict", "detail")}
        )
        dtypes = {str(self.call.values[n].dtype).removeprefix("torch.") for n in self.call.moving}
        return Record(
            self.call.name, problem, argument, oracle, "field", ", ".join(sorted(dtypes)), verdict, detail=detail,
            failure_probability=2.0**outcome.log2_failure if proved and outcome is not None else None,
            seconds=time.perf_counter() - self.started,
            replay=f"gradderiv.prove({self.call.spelled}, inputs, seed={self.seed})" if verdict == "refuted" else "",
            **numbers,
        )  # fmt: skip

    def proof(self, seconds: float) -> Proof:
        """Everything that was found."""
        exponents = list(zip(*self.exponents.values(), strict=True))
        return Proof(
            self.records, self.seed, seconds, f"gradderiv prove {self.call.name}",
            lanes=self.field.lanes if self.field else 0, draws=self.draws, remarks=list(self._remarks()),
            log2_failure=together(exponents[0]) if exponents else None,
            log2_failure_over_q=together(exponents[1]) if exponents else None,
        )  # fmt: skip

    def _remarks(self) -> Iterable[str]:
        field = self.field
        if field is None:
            return
        if field.readings:
            shown = list(field.readings)[:6]
            yield f"constants read as {', '.join(shown)}{', …' if len(field.readings) > 6 else ''}"
        types = sorted(str(t).removeprefix("torch.") for t in self.runs.casts)
        if types:
            yield f"casts to {', '.join(types)} count as the identity"
        for fill in field.fills:
            read = "as −∞" if field.fills_are_minus_infinity else "as the number that it is, not as −∞"
            yield f"the fill {fill:g} is read {read}"
        if field.shift_used:
            yield (
                "the maximum of a row is a shift, and nothing depends on it"
                if not self.stopped
                else "the maximum of a row is a shift"
            )
        if self.odd:
            yield "proved with exp(−a) = 1/exp(a)"
        for name, first in self.call.ties.items():
            if first in self.call.moving:
                yield f"{name} is the same tensor as {first}: one argument, of which the whole gradient was tested, not its parts"
        for line in self.runs.cuts:
            yield f"detach or no_grad at {line}: forward mode does not stop there"
        yield from self.runs.met
        yield from self.remarks
