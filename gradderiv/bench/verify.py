"""What five checkers catch, and what they cost: one problem, one run.

The fourteen wrong layers of :data:`gradderiv.checks.mutants.PEERS` and the right one, hand-written as ``autograd.Function``: n = 8, d = 32, h = 4,
self-attention with biases, float64, X ~ N(0, 1), weights and biases ~ N(0, s²) for several s. The right layer shows false alarms, and is what is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

from gradderiv.bench.checkers import CHECKERS
from gradderiv.bench.document import as_json
from gradderiv.bench.layers import draw, layer_of
from gradderiv.checks.mutants import MUTANTS, PEERS, RIGHT
from gradderiv.threads import one_thread

SCALES = (1e-3, 0.02, 0.3, 1.0)
TIMED_AT = 0.02  # GPT-2's initialisation
OURS = "ours, float64"  # what times are divided by

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Trial:
    """One checker's verdict on one layer: "caught", "accepted" or "refused"."""

    checker: str
    scale: float
    seed: int
    mutant: str
    verdict: str


@dataclass
class BenchVerify:
    """All verdicts and times of a run; prints as a table of 80 columns.

    Attributes:
        trials: every verdict; those on the right layer too.
        times: of every checker on the right layer, in seconds of processor time: other programs count less.
        quick: whether gradcheck's slow mode was asked about the right layer only.
    """

    trials: list[Trial] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)
    scales: tuple[float, ...] = SCALES
    seeds: tuple[int, ...] = (0,)
    quick: bool = False
    seconds: float = 0.0

    def select(self, checker: str, scale: float | None = None) -> Iterator[Trial]:
        return (t for t in self.trials if t.checker == checker and scale in (None, t.scale))

    def caught(self, checker: str, scale: float) -> list[int] | None:
        """How many of the fourteen were caught, for each seed; None where nobody asked."""
        asked = [t for t in self.select(checker, scale) if t.mutant != RIGHT.id]
        if not asked:
            return None
        return [sum(t.seed == seed and t.verdict == "caught" for t in asked) for seed in self.seeds]

    def missed(self, checker: str, scale: float) -> list[str]:
        """The wrong layers that were not caught for some seed."""
        return [
            m
            for m in PEERS
            if any(t.mutant == m and t.verdict != "caught" for t in self.select(checker, scale))
        ]

    def false_alarms(self, checker: str) -> tuple[int, int]:
        """How often the right layer was caught, of how often it was tried."""
        verdicts = [t.verdict for t in self.select(checker) if t.mutant == RIGHT.id]
        return verdicts.count("caught"), len(verdicts)

    def median(self, checker: str) -> float:
        return statistics.median(self.times[checker])

    def __str__(self) -> str:
        from gradderiv.bench.text import render

        return render(self)

    def to_json(self) -> str:
        """Every verdict and every time."""
        return as_json(
            quick=self.quick,
            scales=self.scales,
            seeds=self.seeds,
            seconds=self.seconds,
            times=self.times,
            mutants=PEERS,
            trials=[asdict(t) for t in self.trials],
        )


def bench_verify(
    seeds: Iterable[int] = (0,),
    repeats: int = 5,
    *,
    scales: Sequence[float] = SCALES,
    quick: bool = False,
    progress: Progress | None = None,
) -> BenchVerify:
    """Ask every checker about the right layer and the fourteen wrong ones, and time it on the right one.

    Args:
        seeds: draw inputs, and what the checkers draw.
        repeats: of the timing; the median counts. The checkers take turns.
        scales: the standard deviations s.
        quick: leave gradcheck's slow mode out of the count: it takes about a second for each layer.
        progress: called with (done, total, what is next).
    """
    result = BenchVerify([], {name: [] for name in CHECKERS}, tuple(scales), tuple(seeds), quick)
    layers = {m.id: layer_of(m.rule()) for m in (RIGHT, *(MUTANTS[id] for id in PEERS))}
    trials = [
        (checker, scale, seed, mutant)
        for scale in result.scales
        for checker in CHECKERS
        for seed in result.seeds
        for mutant in layers
        if mutant == RIGHT.id or not (quick and checker == "gradcheck")
    ]
    turns = [checker for _ in range(repeats) for checker in CHECKERS]
    total, start = len(trials) + len(turns), time.perf_counter()
    with one_thread():
        for done, (checker, scale, seed, mutant) in enumerate(trials):
            _tell(progress, done, total, f"{checker}, s = {scale:g}: {mutant}")
            verdict = CHECKERS[checker](layers[mutant], draw(scale, seed), seed)
            result.trials.append(Trial(checker, scale, seed, mutant, verdict))
        for done, checker in enumerate(turns, len(trials)):
            _tell(progress, done, total, f"time of {checker}")
            inputs, begin = draw(TIMED_AT, 0), time.process_time()
            CHECKERS[checker](layers[RIGHT.id], inputs, 0)
            result.times[checker].append(time.process_time() - begin)
    _tell(progress, total, total, "")
    result.seconds = time.perf_counter() - start
    return result


def run(seed: int = 0, quick: bool = False, progress: Progress | None = None) -> BenchVerify:
    """The benchmark of ``gradderiv bench verify``: all scales, or GPT-2's alone when ``quick``."""
    if quick:
        return bench_verify((seed,), 1, scales=(TIMED_AT,), quick=True, progress=progress)
    return bench_verify((seed,), progress=progress)


def _tell(progress: Progress | None, done: int, total: int, label: str) -> None:
    if progress is not None:
        progress(done, total, label)
