"""One piece of work with three attentions: does PyTorch's default do it, and what do ours and MATH take for it?

    default   torch.nn.functional.scaled_dot_product_attention, a fused kernel
    ours      gradderiv.functional.attention
    MATH      the default under ``sdpa_kernel(SDPBackend.MATH)``: plain operations and their autograd

Work is any function of an attention. It returns tensors, and the same ones each time.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gradderiv.examples.gpt import Attend
from gradderiv.functional import attention
from gradderiv.memory import forget, peak

Work = Callable[[Attend], Sequence[Tensor]]
Row = TypeVar("Row")

COLUMNS, REPEATS = 80, 3
OURS, DEFAULT, MATH = "gradderiv", "PyTorch's default", "PyTorch's MATH"


def math_kernel(Q: Tensor, K: Tensor, V: Tensor, *, is_causal: bool = False) -> Tensor:
    """softmax(Q Kᵀ/√d_k) V by PyTorch's plain operations."""
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(Q, K, V, is_causal=is_causal)


def both_ways(attend: Attend) -> Attend:
    """The same without a causal mask, for a block that asks for one: no query comes before a key."""
    return lambda Q, K, V, is_causal: attend(Q, K, V)


class Attempt(NamedTuple):
    """How a piece of work ended: its result, or None; and what PyTorch said, a line for each message."""

    result: Sequence[Tensor] | None
    said: list[str]


def attempt(work: Work, attend: Attend) -> Attempt:
    """Run it once. Its error is caught, its warnings to users are collected."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            result = work(attend)
        except RuntimeError as error:
            return Attempt(None, [first_line(error)])
    return Attempt(result, list(dict.fromkeys(first_line(warning.message) for warning in heard)))


def first_line(message: Warning | Exception | str) -> str:
    """The kind and the first sentence of a message, its middle left out where it is too long for a line."""
    sentence = str(message).strip().splitlines()[0].partition(". ")[0]
    line = f"  {type(message).__name__}: {sentence}"
    half = (COLUMNS - 3) // 2
    return line if len(line) <= COLUMNS else f"{line[:half]}...{line[-half:]}"


class Run(NamedTuple):
    """The result of a piece of work, the processor time it took, and the bytes that it held at most beyond what was held before."""

    result: Sequence[Tensor]
    seconds: float
    extra: int | None


def measure(work: Work, attend: Attend, repeats: int = REPEATS) -> Run:
    """One run to warm up, one for the memory, and the median time of some more."""
    times = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        work(attend)
        before = forget()
        result = work(attend)
        most = peak()
        for _ in range(repeats):
            begin = time.process_time()
            work(attend)
            times.append(time.process_time() - begin)
    extra = None if before is None or most is None else max(most - before, 0)
    return Run(result, median(times), extra)


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """‖found − expected‖/‖expected‖, all entries of all tensors together."""
    pairs = list(zip(found, expected, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        raise ValueError(f"shapes differ: {[(tuple(a.shape), tuple(b.shape)) for a, b in pairs]}")
    squares = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return float((squares / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5)


def saved(ours: Run, other: Run) -> str:
    """What ours takes beside another: "3.1 x faster, 1/40 of the memory"."""
    ratio = other.seconds / ours.seconds
    words = f"{ratio:.1f} x faster" if ratio >= 1 else f"{1 / ratio:.1f} x slower"
    if not ours.extra or not other.extra:
        return words
    less = other.extra / ours.extra
    return f"{words}, " + (f"1/{less:.0f} of the memory" if less >= 1.5 else f"{1 / less:.1f} x the memory")


def compare(work: Work, what: str, repeats: int = REPEATS) -> dict[str, Run]:
    """Print what the default says, then a row for every attention that can do the work, then what ours saves.

    Ours is measured before MATH: what an earlier one leaves behind could hide what a later one takes.
    """
    print(f"{what}, with PyTorch's default kernel:")
    result, said = attempt(work, scaled_dot_product_attention)
    print("\n".join(said if result is None else ["  runs", *said]))
    attends: dict[str, Attend] = {OURS: attention, DEFAULT: scaled_dot_product_attention, MATH: math_kernel}
    if result is None:
        del attends[DEFAULT]
    print(f"\n{'the same with':21}  seconds  extra MB  result off MATH by")
    runs = {name: measure(work, attend, repeats) for name, attend in attends.items()}
    for name, run in runs.items():
        extra = "?" if run.extra is None else f"{run.extra / 1e6:.1f}"
        away = "" if name == MATH else f"{distance(run.result, runs[MATH].result):.0e}"
        print(f"  {name:19}  {run.seconds:7.2f}  {extra:>8}  {away:>18}".rstrip())
    for name in attends:
        if name != OURS:
            print(f"{OURS} beside {name}: {saved(runs[OURS], runs[name])}.")
    print(flush=True)
    return runs


def sampled(rows: Sequence[Row], count: int = 5) -> Iterator[tuple[int, Row]]:
    """The number of the step and what it gave: of the first, and of ``count`` more at equal distances."""
    stride = max(len(rows) // count, 1)
    return ((step, row) for step, row in enumerate(rows, 1) if step == 1 or step % stride == 0)


def parser_for(name: str, description: str) -> argparse.ArgumentParser:
    """``--seed``, ``--n`` and ``--quick``, which every program here takes."""
    parser = argparse.ArgumentParser(prog=f"python -m gradderiv.examples.{name}", description=description)
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    parser.add_argument("--n", type=int, help="length of a sequence in the comparison")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: it runs, and the measurements say nothing"
    )
    return parser


def parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters of a model by name, cut from it: to be handed to ``torch.func.functional_call``."""
    return {name: p.detach() for name, p in model.named_parameters()}
