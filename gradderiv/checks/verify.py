"""The main job: every rule, on every applicable problem, number and oracle."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
import shlex
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import NamedTuple

import torch

from gradderiv.checks import models
from gradderiv.checks.catalog import RULES
from gradderiv.checks.layers import verify_layers
from gradderiv.checks.oracles import DTYPES, ORACLES
from gradderiv.checks.problems import PROBLEMS
from gradderiv.checks.production import verify_full_layer, verify_full_size
from gradderiv.checks.published import published_case
from gradderiv.checks.report import Record, Report
from gradderiv.errors import InputError, message
from gradderiv.threads import one_thread

log = logging.getLogger("gradderiv")

Progress = Callable[[int, int, str], None]

# Oracles that bring cases of their own instead of trying a rule on a problem: for which rule, and how.
CASES: dict[str, dict[str, Callable[[int], list[Record]]]] = {
    "full size": {
        "multihead": lambda seed: verify_full_size(seed),
        "transformer": lambda seed: verify_full_layer(seed),
    },
    "torch layer": {"multihead": lambda seed: verify_layers(seed=seed)},
    "transformers": {
        "multihead": lambda seed: models.verify_models(seed, systems=models.ATTENTION),
        "transformer": lambda seed: models.verify_models(seed, systems=models.LAYERS),
    },
    "published": {"blockdiag": lambda seed: published_case(seed=seed)},
}

QUICK = (
    "linear", "softmax-masked", "attention-options", "cross-masked", "grouped", "block-cross", "tiny-attention",
    "matmul-broadcast", "embedding-batch", "rope-half", "rms-norm-heads", "attend-sinks", "attend-decode", "llama", "fused-gpt-neox",
    "layer-norm", "gelu-tanh", "llama-layer", "graph-irregular",
)  # fmt: skip


def verify(
    rules: str | Iterable[str] | None = None,
    oracles: str | Iterable[str] | None = None,
    *,
    problems: str | Iterable[str] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    device: str = "cpu",
    seed: int = 0,
    quick: bool = False,
    progress: Progress | None = None,
    workers: int = 1,
) -> Report:
    """Verify the rules of :mod:`gradderiv.rules`.

    Args:
        rules: names from :data:`gradderiv.checks.catalog.RULES`; all when None.
        oracles: names from :data:`ORACLES` and :data:`CASES`; all when None, "transformers" only where that is installed.
        problems: names from :data:`PROBLEMS`; all of the rules' when None.
        dtypes: the floating-point types of the oracle "autograd".
        device: where tensors live.
        seed: draws values, points and primes: the same seed gives the same verdict.
        quick: a few problems that between them meet every rule and oracle.
        progress: called with (done, total, what is next; with several workers, what was done last).
        workers: processes that share the work where there is enough of it; a script that asks for more than one needs
            ``if __name__ == "__main__":``. The records are the same.

    Returns:
        A :class:`~gradderiv.checks.report.Report`; ``print`` it, or ask ``.passed``.

    Raises:
        InputError: an unknown rule, oracle or problem, or a device that is not there.
    """
    chosen_rules = _choose("rule", rules, RULES)
    chosen_oracles = _choose("oracle", oracles, {**ORACLES, **CASES})
    chosen_problems = _choose(
        "problem", problems if problems is not None else QUICK if quick else None, PROBLEMS
    )
    _require_device(device)
    start = time.perf_counter()
    jobs = [
        Job(oracle, problem, PROBLEMS[problem].rule, seed, tuple(dtypes), device)
        for problem in chosen_problems
        for oracle in chosen_oracles
        if PROBLEMS[problem].rule in chosen_rules and oracle in ORACLES
    ]
    if problems is None and not quick:
        left_out = {"transformers"} if oracles is None and not models.available() else set()
        jobs += [
            Job(case, "", rule, seed, tuple(dtypes), device)
            for case in chosen_oracles
            for rule in CASES.get(case, {})
            if rule in chosen_rules and case not in left_out
        ]
    found: dict[Job, list[Record]] = {}
    for job, records in _run_all(jobs, workers if len(jobs) >= WORTH_A_PROCESS else 1, progress):
        found[job] = records
    records = [r for job in jobs for r in found[job]]
    return Report(records, seed=seed, seconds=time.perf_counter() - start)


class Job(NamedTuple):
    """An oracle on a problem, or a case of its own; what another process can be told."""

    oracle: str
    problem: str
    rule: str
    seed: int
    dtypes: tuple[torch.dtype, ...]
    device: str

    @property
    def label(self) -> str:
        return f"{self.problem or self.rule} · {self.oracle}"


WORTH_A_PROCESS = 60  # jobs, below which another process costs more than it saves


def run_job(job: Job) -> list[Record]:
    """The records of a job. The caller's random numbers stay his own."""
    threads = contextlib.nullcontext() if job.oracle == "full size" else one_thread()
    with threads, torch.random.fork_rng(devices=[]):
        if not job.problem:
            records = CASES[job.oracle][job.rule](job.seed)
        else:
            oracle, problem = ORACLES[job.oracle], PROBLEMS[job.problem]
            records = oracle(RULES[job.rule], problem, job.seed, dtypes=job.dtypes, device=job.device)
    return [_with_replay(r, job.seed, job.device) for r in records]


def _run_all(
    jobs: Sequence[Job], workers: int, progress: Progress | None
) -> Iterator[tuple[Job, list[Record]]]:
    """Every job with its records, as they come; ``progress`` is told of the next."""
    told = progress or (lambda done, total, label: None)
    if workers < 2:
        for done, job in enumerate(jobs):
            told(done, len(jobs), job.label)
            log.debug("verify %s", job.label)
            yield job, run_job(job)
        told(len(jobs), len(jobs), "")
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_leave_interrupts_to_the_parent)
    try:
        first = sorted(jobs, key=lambda job: bool(job.problem))  # cases take longest
        futures = {pool.submit(run_job, job): job for job in first}
        for done, future in enumerate(as_completed(futures)):
            told(done, len(jobs), futures[future].label)
            yield futures[future], future.result()
        told(len(jobs), len(jobs), "")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _with_replay(record: Record, seed: int, device: str) -> Record:
    what = f"--problem {record.problem}" if record.problem in PROBLEMS else record.rule
    command = f"gradderiv verify {what} --oracle {shlex.quote(record.oracle)} --seed {seed}"
    command += "" if device == "cpu" else f" --device {device}"
    return dataclasses.replace(record, replay=command)


def _choose(kind: str, names: str | Iterable[str] | None, table: Iterable[str]) -> list[str]:
    known = list(table)
    if names is None:
        return known
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.4)
            raise InputError(
                message(
                    f"gradderiv knows no {kind} {name!r}",
                    name,
                    "another spelling" if near else f"a {kind} that does not exist",
                    f"one of {', '.join(near or known)}",
                )
            )
    return names


def _require_device(device: str) -> None:
    try:
        torch.zeros(1, device=device).item()  # a tensor on "meta" has no value
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            message(
                "gradderiv needs a device that torch can use",
                f"{device!r}: {str(error).splitlines()[0]}",
                "no such device on this machine, or a build of torch without it",
                "leave --device out to use the CPU",
            )
        ) from error
