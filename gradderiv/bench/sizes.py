"""One proof at one size, in a process of its own: its time and its peak memory, and those of a float64 pass beside it.

A process of its own, since the peak of a process never falls. The layer is :func:`gradderiv.functional.multi_head_attention`, whose attention has a
backward of its own, as a module: causal self-attention with all weights and biases.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradderiv.bench.apart import Apart, say
from gradderiv.checks.prove import prove
from gradderiv.functional import multi_head_attention
from gradderiv.memory import peak
from gradderiv.threads import one_thread

SCALE = 0.02  # of the weights, GPT-2's initialisation; a proof does not see it
BUDGET = 3.0  # seconds after which nothing is repeated
REPEATS = 7

Progress = Callable[[int, int, str], None]


class Size(NamedTuple):
    """Tokens, width, heads."""

    n: int
    d_model: int
    h: int

    def __str__(self) -> str:
        return f"n={self.n}, d_model={self.d_model}, h={self.h}"

    @property
    def jacobian(self) -> int:
        """The bytes of ∂Y/∂W_Q in float64, which gradcheck computes by differences."""
        return 8 * self.n * self.d_model * self.d_model**2


class Attention(nn.Module):
    """Y = layer(X): causal, with weights and biases drawn from N(0, 0.02²)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        d = size.d_model
        self.h = size.h
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            setattr(self, name, nn.Parameter(SCALE * torch.randn(d, d, dtype=torch.float64)))
        for name in ("b_Q", "b_K", "b_V", "b_O"):
            setattr(self, name, nn.Parameter(SCALE * torch.randn(d, dtype=torch.float64)))
        self.register_buffer("mask", torch.ones(size.n, size.n, dtype=torch.bool).tril())

    def forward(self, X: Tensor) -> Tensor:
        variables = dict(self.named_parameters())
        return multi_head_attention(X, **variables, n_heads=self.h, mask=self.mask)  # type: ignore[arg-type]


@dataclass
class AtSize:
    """What one size took.

    Attributes:
        verdict: of the proof; empty where the process did not live to tell.
        lanes: how many primes.
        log2_failure: log₂ of the bound of the proof.
        seconds: of processor time, of every proof.
        floats: the same of every forward and backward pass in float64.
        peak: the most memory that the process has held, in bytes; None where the system does not say.
        before: the same before the proof, after the passes in float64.
        trouble: how the process ended, where that was not as it should.
    """

    size: Size
    verdict: str = ""
    lanes: int = 0
    log2_failure: float | None = None
    seconds: list[float] = field(default_factory=list)
    floats: list[float] = field(default_factory=list)
    peak: int | None = None
    before: int | None = None
    trouble: str = ""

    @property
    def took(self) -> float:
        return statistics.median(self.seconds)

    @property
    def float_took(self) -> float:
        return statistics.median(self.floats)

    def fields(self) -> dict[str, Any]:
        return {**asdict(self), "size": self.size._asdict(), "jacobian": self.size.jacobian}


def case(size: Size, seed: int) -> tuple[Attention, Tensor]:
    """The layer and its input; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Attention(size), torch.randn(size.n, size.d_model, dtype=torch.float64)


def measure(size: Size, seed: int = 0, progress: Progress | None = None) -> AtSize:
    """Passes in float64, then proofs, on one thread: several where they are short."""
    layer, X = case(Size(2, 4, 2), seed)
    prove(layer, (X,))  # imports, and prepares what is prepared once
    layer, X = case(size, seed)
    result, proofs = AtSize(size), []
    with one_thread():  # on a busy machine the second one is waited for
        _pass(layer, X)
        result.floats = _timed(lambda: _pass(layer, X))
        result.before = peak()
        result.seconds = _timed(lambda: proofs.append(prove(layer, (X,), seed=seed, progress=progress)))
        result.peak = peak()
    last = proofs[-1]
    result.verdict, result.lanes, result.log2_failure = last.verdict, last.lanes, last.log2_failure
    return result


def _pass(layer: Attention, X: Tensor) -> None:
    X = X.requires_grad_()
    Y = layer(X)
    torch.autograd.grad(Y, [X, *layer.parameters()], torch.ones_like(Y))


def _timed(work: Callable[[], object]) -> list[float]:
    """The seconds of processor time of every repeat, until :data:`BUDGET` is spent; other programs count less."""
    times: list[float] = []
    while not times or (len(times) < REPEATS and sum(times) < BUDGET):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return times


# ---------------------------------------------------------------- in a process of its own


def apart(size: Size, seed: int = 0, step: Callable[[str], None] | None = None) -> AtSize:
    """:func:`measure` in a fresh process; ``step`` is called with what it does."""
    process = Apart(__name__, *size, seed)
    return _told(process, step) or AtSize(size, trouble=process.trouble)


def _told(told: Iterable[Any], step: Callable[[str], None] | None) -> AtSize | None:
    """The result among the lines that :func:`child` prints; None where there is none."""
    result = None
    for line in told:
        if "step" not in line:
            del line["jacobian"]
            result = AtSize(**{**line, "size": Size(**line["size"])})
        elif step is not None:
            step(line["step"])
    return result


def child() -> None:
    """Measure what the command line says; a line of JSON for every step, and one for the result."""
    n, d_model, h, seed = map(int, sys.argv[1:])

    result = measure(Size(n, d_model, h), seed, lambda done, total, label: say({"step": label}))
    say(result.fields())
