"""Every wrong-on-purpose rule against every oracle: which check notices which mistake, and is that as it should be.

A cell is *killed* if a comparison fails, *alive* if none does, *inconclusive* if nothing could be said (an operation without an exact meaning, or
only vacuous comparisons), *not applicable* if the oracle has nothing to compare there, *not run* where the mutant says so, and an *error* if
the mutant raised anything else. Only a failed comparison is a kill. The table is as declared if every cell that must be killed is killed,
and every other one has a reason and is not killed; an error never is as declared.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from gradderiv._version import __version__
from gradderiv.checks.mutants import MUTANTS, RIGHT, Mutant
from gradderiv.checks.oracles import ORACLES, Oracle
from gradderiv.checks.problems import PROBLEMS
from gradderiv.checks.report import SCHEMA_VERSION, Record, write_whole
from gradderiv.errors import InputError, NoExactMeaning, message
from gradderiv.threads import one_thread

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Cell:
    """One mutant under one oracle.

    Attributes:
        outcome: "killed", "alive", "inconclusive", "not applicable", "not run" or "error".
        must: whether the mutant declares that this oracle has to notice.
        reason: if not, why; empty where nobody has said.
        numbers: the kinds of number on which a comparison failed.
        detail: the first failed comparison, or what was raised.
    """

    mutant: str
    oracle: str
    outcome: str
    must: bool
    reason: str
    problems: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    detail: str = ""
    seconds: float = 0.0

    @property
    def as_declared(self) -> bool:
        if self.must or self.outcome == "error":
            return self.must and self.outcome == "killed"
        return bool(self.reason) and self.outcome != "killed"


@dataclass
class KillTable:
    """All cells of a run. Prints as a table, reasons included; see :attr:`as_declared` and :meth:`to_json`."""

    cells: list[Cell] = field(default_factory=list)
    mutants: Mapping[str, Mutant] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0

    @property
    def mistakes(self) -> list[Cell]:
        """The cells that are not as declared."""
        return [c for c in self.cells if not c.as_declared]

    @property
    def as_declared(self) -> bool:
        """Whether every cell is as its mutant declares, and there is at least one that had to be killed and was."""
        return not self.mistakes and any(c.must for c in self.cells)

    def cell(self, mutant: str, oracle: str) -> Cell:
        return next(c for c in self.cells if (c.mutant, c.oracle) == (mutant, oracle))

    def select(self, **fields: Any) -> list[Cell]:
        """The cells whose fields have these values."""
        return [c for c in self.cells if all(getattr(c, k) == v for k, v in fields.items())]

    def text(self, *, verbose: bool = False, unicode: bool = True) -> str:
        """The table at 80 columns; with ``verbose`` what each mutant is, and every reason."""
        from gradderiv.checks._kill_text import render

        return render(self, verbose=verbose, unicode=unicode)

    def __str__(self) -> str:
        return self.text(verbose=True)

    def to_json(self, file: str | None = None) -> str:
        """The table as JSON; written whole or not at all where a file is named."""
        document = {
            "schema_version": SCHEMA_VERSION,
            "gradderiv": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "seed": self.seed,
            "seconds": self.seconds,
            "as_declared": self.as_declared,
            "mutants": [
                {"id": m.id, "what": m.what, "seen": m.seen, "kind": m.kind, "stages": m.stages}
                for m in self.mutants.values()
            ],
            "cells": [{**asdict(c), "as_declared": c.as_declared} for c in self.cells],
        }
        text = json.dumps(document, indent=1, ensure_ascii=False)
        if file is not None:
            write_whole(file, text + "\n")
        return text


def kill_table(
    mutants: Iterable[Mutant] | Iterable[str] | None = None,
    oracles: Iterable[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    workers: int = 1,
) -> KillTable:
    """Run every mutant against every oracle, and before them the right rules, on every problem that is used.

    Args:
        mutants: mutants or their names; all of them when None.
        oracles: names of oracles; all of them when None.
        seed: draws values, points and primes.
        progress: called with the number of mutants done, the number of all, and the name of the next.
        workers: processes that share the rows among them, each with an interpreter of its own; only for mutants of the table. A script
            that asks for more than one needs ``if __name__ == "__main__":``.

    Raises:
        InputError: a name that is not in its table.
    """
    wrong = [_named("mutant", m, MUTANTS) if isinstance(m, str) else m for m in mutants or MUTANTS.values()]
    used = dict.fromkeys(problem for m in wrong for problem in (*m.problems, *m.elsewhere.values()))
    chosen = [dataclasses.replace(RIGHT, problems=tuple(used)), *wrong]
    names = [name for name in oracles or ORACLES if _named("oracle", name, ORACLES)]
    start = time.perf_counter()
    cells: list[Cell] = []
    for done, row in enumerate(_rows(chosen, names, seed, workers)):
        if progress is not None:
            progress(done, len(chosen), chosen[done].id)
        cells += row()
    if progress is not None:
        progress(len(chosen), len(chosen), "")
    return KillTable(cells, {m.id: m for m in chosen}, seed, time.perf_counter() - start)


def _rows(
    mutants: list[Mutant], oracles: list[str], seed: int, workers: int
) -> Iterator[Callable[[], list[Cell]]]:
    """For each mutant, what returns its cells when called."""
    listed = all(m.kind == "right" or m is MUTANTS.get(m.id) for m in mutants)
    if workers < 2 or not listed:  # a replaced stage cannot be sent to another process: its name can
        yield from (functools.partial(judge_all, m, oracles, seed) for m in mutants)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    with pool:
        futures = [pool.submit(_judge_listed, m.id, m.problems, oracles, seed) for m in mutants]
        yield from (future.result for future in futures)


def _judge_listed(id: str, problems: tuple[str, ...], oracles: list[str], seed: int) -> list[Cell]:
    return judge_all(
        dataclasses.replace(RIGHT, problems=problems) if id == RIGHT.id else MUTANTS[id], oracles, seed
    )


def judge_all(mutant: Mutant, oracles: Iterable[str], seed: int = 0) -> list[Cell]:
    """One mutant under these oracles."""
    with one_thread():
        return [judge(mutant, name, ORACLES[name], seed) for name in oracles]


def judge(mutant: Mutant, name: str, oracle: Oracle, seed: int = 0) -> Cell:
    """One mutant under one oracle: on the first of its problems that the oracle can work on; the right rule on all."""
    if name in mutant.skips:
        return Cell(mutant.id, name, "not run", False, mutant.reason(name))
    start = time.perf_counter()
    records, raised = list[Record](), None
    tried = []
    try:
        for problem in mutant.asked_on(name):
            found = oracle(mutant.on(PROBLEMS[problem]), PROBLEMS[problem], seed)
            records += found
            tried += [problem] if found else []
            if found and mutant.kind != "right":
                break
    except Exception as error:  # whatever a wrong rule raises is an outcome
        raised = error
    failed = [r for r in records if r.verdict == "fail"]
    return Cell(
        mutant.id, name, _outcome(records, raised), mutant.must(name), mutant.reason(name), tuple(tried),
        tuple(dict.fromkeys(r.dtype if r.number == "float" else r.number for r in failed)),
        f"{type(raised).__name__}: {raised}" if raised else f"{failed[0].problem} · {failed[0].argument}: {failed[0].detail}" if failed else "",
        time.perf_counter() - start,
    )  # fmt: skip


def _outcome(records: list[Record], raised: Exception | None) -> str:
    if isinstance(raised, NoExactMeaning):
        return "inconclusive"
    if raised is not None:
        return "error"
    verdicts = {r.verdict for r in records}
    if not verdicts:
        return "not applicable"
    return "killed" if "fail" in verdicts else "alive" if "pass" in verdicts else "inconclusive"


def _named(what: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise InputError(
            message(
                f"the {what} must be in its table",
                repr(name),
                "a misspelt name",
                f"one of {', '.join(table)}",
            )
        )
    return table[name]
