"""What a proof costs and catches, beside gradcheck and comparisons in float64: one run.

The wrong layers of :data:`gradderiv.checks.mutants.PEERS` and the right one, as in :mod:`gradderiv.bench.verify`, at GPT-2's initialisation; softmax(q kᵀ) v at n = 3, for what
a proof costs at least; and whole layers at the sizes in use, each in a process of its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import Tensor

from gradderiv.bench.checkers import PROVERS
from gradderiv.bench.document import as_json
from gradderiv.bench.layers import draw, layer_of
from gradderiv.bench.shares import Shares, shares
from gradderiv.bench.sizes import AtSize, Size, apart
from gradderiv.bench.verify import TIMED_AT, Trial
from gradderiv.checks.mutants import MUTANTS, PEERS, RIGHT
from gradderiv.checks.prove import prove
from gradderiv.threads import one_thread

SLOW = "gradcheck"  # what ``quick`` asks about the right layer only
TINY = (3, 4)  # tokens, width of a head
TINY_REPEATS = 20
QUICK_SIZES = (Size(64, 128, 4), Size(128, 256, 4))
SIZES = (*QUICK_SIZES, Size(256, 512, 8), Size(512, 768, 12))
LARGE = Size(512, 4096, 32)  # the shape of a layer of Llama 7B
PROFILED = Size(128, 256, 4)

Progress = Callable[[int, int, str], None]


@dataclass
class BenchProve:
    """All verdicts, times and peaks of a run; prints as tables of 80 columns.

    Attributes:
        trials: every verdict on one layer; on the right one too.
        times: of every checker on the right layer, in seconds of processor time: other programs count less.
        refuting: of ``prove`` on every wrong layer, the same.
        tiny: of ``prove`` and of gradcheck on softmax(q kᵀ) v, the same.
        sizes: whole layers, the same.
        shares: where the time goes.
        quick: whether gradcheck's slow mode was asked about the right layer only, and large sizes left out.
    """

    trials: list[Trial] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)
    refuting: list[float] = field(default_factory=list)
    tiny: dict[str, list[float]] = field(default_factory=dict)
    sizes: list[AtSize] = field(default_factory=list)
    shares: Shares | None = None
    seed: int = 0
    quick: bool = False
    seconds: float = 0.0

    def verdicts(self, checker: str) -> Iterator[str]:
        """On the wrong layers."""
        return (t.verdict for t in self.trials if t.checker == checker and t.mutant != RIGHT.id)

    def count(self, checker: str, verdict: str) -> int | None:
        """How many wrong layers got this verdict; None where nobody asked."""
        found = list(self.verdicts(checker))
        return found.count(verdict) if found else None

    def asked(self) -> int:
        """How many wrong layers there were."""
        return len({t.mutant for t in self.trials} - {RIGHT.id})

    def right(self, checker: str) -> str:
        """The verdict on the right layer."""
        (verdict,) = (t.verdict for t in self.trials if t.checker == checker and t.mutant == RIGHT.id)
        return verdict

    def median(self, checker: str) -> float:
        return statistics.median(self.times[checker])

    def __str__(self) -> str:
        from gradderiv.bench.prove_text import render

        return render(self)

    def to_json(self) -> str:
        """Every verdict, every time and every peak."""
        return as_json(
            quick=self.quick,
            seed=self.seed,
            seconds=self.seconds,
            scale=TIMED_AT,
            trials=[asdict(t) for t in self.trials],
            times=self.times,
            refuting=self.refuting,
            tiny=self.tiny,
            sizes=[at.fields() for at in self.sizes],
            shares=None if self.shares is None else self.shares.fields(),
        )


def bench_prove(
    seed: int = 0,
    repeats: int = 5,
    *,
    peers: Sequence[str] = tuple(PEERS),
    sizes: Sequence[Size] = SIZES,
    profiled: Size = PROFILED,
    quick: bool = False,
    progress: Progress | None = None,
) -> BenchProve:
    """Ask every checker about the right layer and the wrong ones, time it on the right one, and prove layers of several sizes.

    Args:
        seed: draws inputs, weights, primes, points, and what the checkers draw.
        repeats: of the timing; the median counts. The checkers take turns.
        peers: the wrong layers.
        sizes: of the whole layers, each in a process of its own.
        profiled: the size at which one proof is profiled.
        quick: leave gradcheck's slow mode out of the count: it takes about a second for each layer.
        progress: called with (done, total, what is next).
    """
    result = BenchProve([], {name: [] for name in PROVERS}, seed=seed, quick=quick)
    layers = {m.id: layer_of(m.rule()) for m in (RIGHT, *(MUTANTS[id] for id in peers))}
    trials = [
        (checker, mutant)
        for mutant in layers
        for checker in PROVERS
        if mutant == RIGHT.id or not (quick and checker == SLOW)
    ]
    turns = [checker for _ in range(repeats) for checker in PROVERS]
    total, done, start = len(trials) + len(turns) + 1 + len(sizes) + 1, 0, time.perf_counter()

    def tell(label: str) -> None:
        if progress is not None:
            progress(done, total, label)

    with one_thread():
        for checker, mutant in trials:
            tell(f"{checker}: {mutant}")
            inputs, begin = draw(TIMED_AT, seed), time.process_time()
            verdict = PROVERS[checker](layers[mutant], inputs, seed)
            if checker == "prove" and mutant != RIGHT.id:
                result.refuting.append(time.process_time() - begin)
            result.trials.append(Trial(checker, TIMED_AT, seed, mutant, verdict))
            done += 1
        for checker in turns:
            tell(f"time of {checker}")
            inputs, begin = draw(TIMED_AT, seed), time.process_time()
            PROVERS[checker](layers[RIGHT.id], inputs, seed)
            result.times[checker].append(time.process_time() - begin)
            done += 1
        tell("a tiny case")
        result.tiny = _tiny(seed)
        done += 1
    for size in sizes:
        tell(f"{size}")
        short = f"d_model={size.d_model}: "  # a line of progress has little room
        result.sizes.append(apart(size, seed, partial(_prefixed, tell, short)))
        done += 1
    tell(f"where the time goes, {profiled}")
    result.shares = shares(profiled, seed)
    done += 1
    tell("")
    result.seconds = time.perf_counter() - start
    return result


def _prefixed(tell: Callable[[str], None], prefix: str, label: str) -> None:
    tell(prefix + label)


def _tiny(seed: int) -> dict[str, list[float]]:
    """What softmax(q kᵀ) v takes after a first call; the two take turns."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT, -1) @ v

    generator = torch.Generator().manual_seed(seed)
    inputs = tuple(
        torch.randn(TINY, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)
    )
    ways: dict[str, Callable[[], object]] = {
        "prove": lambda: prove(attention, inputs, seed=seed),
        SLOW: lambda: torch.autograd.gradcheck(attention, inputs),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TINY_REPEATS + 1):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            if turn:
                times[name].append(time.process_time() - begin)
    return times


def run(
    *, seed: int = 0, quick: bool = False, large: bool = False, progress: Progress | None = None
) -> BenchProve:
    """The benchmark of ``gradderiv bench prove``: all sizes, the small ones alone when ``quick``, and one more when ``large``."""
    sizes = (*(QUICK_SIZES if quick else SIZES), *((LARGE,) if large else ()))
    return bench_prove(seed, 3 if quick else 5, sizes=sizes, quick=quick, progress=progress)
