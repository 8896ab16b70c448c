"""Attention on a graph, four ways side by side: a mask of n² in plain torch and in torch's fused kernel, lists under autograd, and lists with the closed forms.

Pyraformer's pyramids over sequences of several lengths, float32; forward, forward and backward, and the memory that these take beyond their inputs, in one run.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gradderiv.bench.document import as_json
from gradderiv.bench.turns import clock_of, on
from gradderiv.functional import graph_attention
from gradderiv.rules.graph import Inverse, inverse_index
from gradderiv.rules.graphs import pyramidal, to_mask

HEADS, WIDTH = 4, 32
SIZES, QUICK, LARGE = (512, 1024, 2048, 4096), (512, 2048), 8192
OURS, WARM = "ours", 64
BUDGET = 4.0  # seconds after which a way is not timed again at a size

Progress = Callable[[int, int, str], None]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Graph(NamedTuple):
    """A pyramid over n tokens, as lists, as their inverse and as a mask."""

    neighbours: Tensor
    inverse: Inverse
    mask: Tensor

    @property
    def edges(self) -> int:
        return int((self.neighbours >= 0).sum())


def pyramid(n: int) -> Graph:
    """Pyraformer's graph: 4 scales, 4 children, a window of 3."""
    neighbours = pyramidal(n, levels=min(4, 1 + n // 16))
    return Graph(neighbours, inverse_index(neighbours, len(neighbours)), to_mask(neighbours, len(neighbours)))


# ---------------------------------------------------------------- the ways


def dense(graph: Graph) -> Attend:
    """softmax of all n² scores, masked, in plain torch"""

    def attend(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        S = (Q @ K.mT) * Q.shape[-1] ** -0.5
        return torch.softmax(S.masked_fill(~graph.mask, -torch.inf), -1) @ V

    return attend


def fused(graph: Graph) -> Attend:
    """torch's scaled_dot_product_attention with a boolean mask"""
    return lambda Q, K, V: scaled_dot_product_attention(Q, K, V, attn_mask=graph.mask)


def lists(graph: Graph) -> Attend:
    """the lists in plain torch: what is gathered, multiplied and summed; backward by autograd"""
    keys, here = graph.neighbours.clamp(min=0), graph.neighbours >= 0

    def attend(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        S = (K[..., keys, :] @ Q.unsqueeze(-1)).squeeze(-1) * Q.shape[-1] ** -0.5
        P = torch.softmax(S.masked_fill(~here, -torch.inf), -1)
        return (P.unsqueeze(-2) @ V[..., keys, :]).squeeze(-2)

    return attend


def ours(graph: Graph) -> Attend:
    """gradderiv.functional.graph_attention, with the inverse index made beforehand"""
    return lambda Q, K, V: graph_attention(Q, K, V, graph.neighbours, graph.inverse)


WAYS: dict[str, Callable[[Graph], Attend]] = {"dense": dense, "SDPA": fused, "lists": lists, OURS: ours}


def inputs(nodes: int, seed: int) -> list[Tensor]:
    """Q, K, V with gradients and dO, one sequence of :data:`HEADS` heads."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, HEADS, nodes, WIDTH)
    return [torch.randn(shape, generator=generator).requires_grad_(i < 3) for i in range(4)]


def once(attend: Attend, given: Sequence[Tensor], *, backward: bool) -> list[Tensor]:
    """O, and the three gradients with it where they are asked for."""
    *QKV, dO = given
    with contextlib.nullcontext() if backward else torch.no_grad():
        O = attend(*QKV)
        return [O.detach(), *(torch.autograd.grad(O, QKV, dO) if backward else ())]


# ---------------------------------------------------------------- the result


@dataclass
class Row:
    """One way at one length.

    Attributes:
        forward: seconds of every repeat, without gradients.
        both: the same of forward and backward.
        memory: the most bytes that forward and backward held beyond their inputs; None where the system does not say.
        error: the largest difference from the dense form in O and the gradients, relative to the largest entry of each.
    """

    way: str
    n: int
    forward: list[float] = field(default_factory=list)
    both: list[float] = field(default_factory=list)
    memory: int | None = None
    error: float | None = None


@dataclass
class BenchGraph:
    """All times and peaks of a run; prints as a table of 79 columns.

    Attributes:
        graphs: of every length, how many nodes, how long the longest list, how many edges.
    """

    rows: list[Row] = field(default_factory=list)
    graphs: dict[int, dict[str, int]] = field(default_factory=dict)
    seed: int = 0
    threads: int = 1
    seconds: float = 0.0

    def row(self, way: str, n: int) -> Row:
        (found,) = (r for r in self.rows if r.way == way and r.n == n)
        return found

    def ratio(self, way: str, n: int, what: str) -> float | None:
        """How many times as much as ours; None where one of the two is not known."""
        found = [_value(self.row(name, n), what) for name in (way, OURS)]
        return None if None in found or not found[1] else found[0] / found[1]  # type: ignore[operator]

    def __str__(self) -> str:
        from gradderiv.bench.graph_text import render

        return render(self)

    def to_json(self) -> str:
        """Every time and every peak."""
        return as_json(
            threads=self.threads,
            seed=self.seed,
            seconds=self.seconds,
            heads=HEADS,
            width=WIDTH,
            graphs=self.graphs,
            rows=[asdict(r) for r in self.rows],
        )


def _value(row: Row, what: str) -> float | None:
    if what == "memory":
        return row.memory
    times = row.forward if what == "forward" else row.both
    return statistics.median(times) if times else None


# ---------------------------------------------------------------- the run


def bench_graph(
    sizes: Sequence[int] = SIZES,
    repeats: int = 7,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> BenchGraph:
    """Time every way at every length, all in turns, and measure their memory in a process of its own.

    Args:
        sizes: lengths of the sequence; the pyramid has a third more nodes.
        repeats: the median counts; fewer where a way is slow.
        seed: draws Q, K, V and dO.
        threads: with one, times are those of the processor, and other programs count less; with more, those of the clock.
        progress: called with (done, total, what is next).
    """
    from gradderiv.bench.graph_memory import apart

    result, start = BenchGraph(seed=seed, threads=threads), time.perf_counter()
    total, done = len(sizes) * (repeats + 1) + 1, 0
    made: dict[int, tuple[dict[str, Attend], list[Tensor]]] = {}

    def tell(label: str) -> None:
        if progress is not None:
            progress(done, total, label)

    with on(threads):
        for n in sizes:
            tell(f"n = {n}: the same result")
            graph = pyramid(n)
            nodes, longest = graph.neighbours.shape
            result.graphs[n] = {"nodes": nodes, "longest": longest, "edges": graph.edges}
            made[n] = ({name: make(graph) for name, make in WAYS.items()}, inputs(nodes, seed))
            result.rows += compared(*made[n], n)
            done += 1
        for _ in range(repeats):
            for n, (ways, given) in made.items():
                tell(f"n = {n}")
                for name, attend in ways.items():
                    timed(result.row(name, n), attend, given, clock_of(threads))
                done += 1
    tell("memory")
    for way, n, peak in apart(sizes, seed, threads):
        result.row(way, n).memory = peak
    done += 1
    tell("")
    result.seconds = time.perf_counter() - start
    return result


def compared(ways: dict[str, Attend], given: Sequence[Tensor], n: int) -> Iterator[Row]:
    """A row for every way, with its difference from the dense form; a first call of each, too."""
    expected: list[Tensor] = []
    for name, attend in ways.items():
        found = once(attend, given, backward=True)
        expected = expected or found
        pairs: Any = zip(found, expected, strict=True)
        yield Row(name, n, error=max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs))


def timed(row: Row, attend: Attend, given: Sequence[Tensor], clock: Callable[[], float]) -> None:
    """One more repeat of both, unless the budget is spent."""
    if sum(row.forward) + sum(row.both) > BUDGET:
        return
    for times, backward in ((row.forward, False), (row.both, True)):
        begin = clock()
        once(attend, given, backward=backward)
        times.append(clock() - begin)


def run(
    *,
    seed: int = 0,
    quick: bool = False,
    large: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> BenchGraph:
    """The benchmark of ``gradderiv bench graph``: all lengths, two of them when ``quick``, and one more when ``large``."""
    sizes = (*(QUICK if quick else SIZES), *((LARGE,) if large else ()))
    return bench_graph(sizes, 3 if quick else 9, seed=seed, threads=threads, progress=progress)
