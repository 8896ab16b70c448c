"""The main job: every rule, on every applicable problem, number and oracle."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
import shlex
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from gradderiv.checks.catalog import RULES, Rule
from gradderiv.checks.layers import verify_layers
from gradderiv.checks.oracles import DTYPES, ORACLES
from gradderiv.checks.problems import PROBLEMS, Problem
from gradderiv.checks.production import verify_full_size
from gradderiv.checks.published import published_case
from gradderiv.checks.report import Record, Report
from gradderiv.errors import InputError, message
from gradderiv.threads import one_thread

log = logging.getLogger("gradderiv")

Progress = Callable[[int, int, str], None]

# Oracles that bring a case of their own instead of trying a rule on a problem, and the rule that the case is for.
CASES: dict[str, tuple[str, Callable[[int], list[Record]]]] = {
    "full size": ("multihead", lambda seed: verify_full_size(seed)),
    "torch layer": ("multihead", lambda seed: verify_layers(seed=seed)),
    "published": ("blockdiag", lambda seed: published_case(seed=seed)),
}

QUICK = (
    "linear", "softmax-masked", "attention-options", "cross-masked", "grouped", "block-cross", "tiny-attention",
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
) -> Report:
    """Verify the rules of :mod:`gradderiv.rules`.

    Args:
        rules: names from :data:`gradderiv.checks.catalog.RULES`; all when None.
        oracles: names from :data:`ORACLES` and :data:`CASES`; all when None.
        problems: names from :data:`PROBLEMS`; all of the rules' when None.
        dtypes: the floating-point types of the oracle "autograd".
        device: where tensors live.
        seed: draws values, points and primes: the same seed gives the same verdict.
        quick: a few problems that between them meet every rule and oracle.
        progress: called with (done, total, what is next).

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
    jobs: list[tuple[str, Callable[[], list[Record]]]] = []
    for name in chosen_problems:
        problem = PROBLEMS[name]
        for oracle in chosen_oracles:
            if problem.rule in chosen_rules and oracle in ORACLES:
                jobs.append(
                    (f"{name} · {oracle}", _job(RULES[problem.rule], problem, oracle, seed, dtypes, device))
                )
    for case in chosen_oracles:
        if case in CASES and CASES[case][0] in chosen_rules and problems is None and not quick:
            jobs.append((case, _case(case, seed)))
    records: list[Record] = []
    for done, (label, job) in enumerate(jobs):
        if progress is not None:
            progress(done, len(jobs), label)
        log.debug("verify %s", label)
        threads = contextlib.nullcontext() if label == "full size" else one_thread()
        with threads, torch.random.fork_rng(devices=[]):  # the caller's random numbers stay his own
            records += [_with_replay(r, seed, device) for r in job()]
    if progress is not None:
        progress(len(jobs), len(jobs), "")
    return Report(records, seed=seed, seconds=time.perf_counter() - start)


def _job(
    rule: Rule, problem: Problem, oracle: str, seed: int, dtypes: Sequence[torch.dtype], device: str
) -> Callable[[], list[Record]]:
    return lambda: ORACLES[oracle](rule, problem, seed, dtypes=dtypes, device=device)


def _case(name: str, seed: int) -> Callable[[], list[Record]]:
    return lambda: CASES[name][1](seed)


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
