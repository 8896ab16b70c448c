"""Attention and its derivatives, four ways side by side: ours, torch's MATH kernel, torch's default kernel, and the formula under autograd.

Forward and backward, double backward, forward mode, Hessian times vector: their time in turns, their peak memory, and how this grows with n; in one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from gradderiv.bench.attention_cases import LARGE, QUICK, USUAL, Mode
from gradderiv.bench.attention_measure import apart
from gradderiv.bench.attention_result import BenchAttention
from gradderiv.bench.attention_rows import Plan, rows_of
from gradderiv.errors import InputError, message

DTYPES = ("float32", "float64", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")

Progress = Callable[[int, int, str], None]


def bench_attention(
    mode: Mode,
    *,
    seed: int = 0,
    threads: int = 2,
    dtype: str = "float32",
    device: str = "cpu",
    progress: Progress | None = None,
) -> BenchAttention:
    """Measure every task of a case in a process of its own, and the cases of memory alone in one more.

    Args:
        mode: the cases, and how long they may take.
        seed: draws inputs, and the order of every round.
        threads: with one, times are those of the processor; with more, those of the clock.
        dtype: of all tensors, by its name.
        device: cpu or cuda.
        progress: called with (done, total, what is next).
    """
    result = BenchAttention([], [], threads, dtype, device, seed)
    plan = partial(Plan, limit=mode.limit, threads=threads, dtype=dtype, device=device, seed=seed)
    # a process for each task: what an earlier one leaves behind counts as memory of the next
    alone = [
        plan(case, (task,), ways, budget=mode.budget) for case, tasks, ways in mode.cases for task in tasks
    ]
    growth = [plan(*asked, budget=0.0) for asked in mode.growth]
    total, begin = len(rows_of(alone + growth)), time.perf_counter()

    def tell(label: str) -> None:
        if progress is not None:
            progress(len(result.rows) + len(result.growth), total, label)

    for p in alone:
        result.rows.extend(apart([p], tell))
    result.growth.extend(apart(growth, tell))
    tell("")
    result.seconds = time.perf_counter() - begin
    return result


def run(
    *,
    seed: int = 0,
    quick: bool = False,
    large: bool = False,
    threads: int = 2,
    dtype: str = "float32",
    device: str = "cpu",
    progress: Progress | None = None,
) -> BenchAttention:
    """The benchmark of ``gradderiv bench attention``: the usual cases, a few small ones when ``quick``, all when ``large``.

    Raises:
        InputError: both ``quick`` and ``large``; a type or device that is not known, or is not there.
    """
    _require(quick and large, "bench attention takes --quick or --large", "both", "leave one out")
    _require(dtype not in DTYPES, f"--dtype is one of {', '.join(DTYPES)}", dtype, "name one of them")
    _require(device not in DEVICES, f"--device is one of {', '.join(DEVICES)}", device, "name one of them")
    missing = device == "cuda" and not torch.cuda.is_available()
    _require(missing, "--device cuda needs a GPU that torch can use", "none", "--device cpu")
    mode = QUICK if quick else LARGE if large else USUAL
    return bench_attention(
        mode, seed=seed, threads=threads, dtype=dtype, device=device, progress=progress
    )  # fmt: skip


def _require(wrong: bool, asked: str, came: str, do: str) -> None:
    if wrong:
        raise InputError(message(asked, came, "the options of the command", do))
