"""Layers that are wrong on purpose, each in one term that was once wrong in public.

A check that cannot fail shows nothing. :data:`MUTANTS` goes through the same oracles as the rules
(:func:`gradderiv.checks.kill.kill_table`); each mutant declares which oracles must notice, and why the others need not.
"""

from __future__ import annotations

from gradderiv.checks.mutants import _heads, _masks, _scale, _softmax, _sums
from gradderiv.checks.mutants.mutant import Mutant
from gradderiv.checks.mutants.stages import Layer

__all__ = ["MUTANTS", "PEERS", "RIGHT", "Layer", "Mutant"]

#: Nothing replaced: the first row of the kill table, which nobody may kill.
RIGHT = Mutant("(right)", "nothing is wrong", "", {}, kind="right", kills=frozenset())

MUTANTS: dict[str, Mutant] = {
    m.id: m
    for part in (_softmax, _scale, _heads, _masks, _sums)
    for m in part.MUTANTS
}  # fmt: skip

#: The fourteen wrong backward passes on which checkers are compared (:mod:`gradderiv.bench.verify`), in order.
PEERS: tuple[str, ...] = (
    "softmax-diagonal",
    "softmax-no-rowsum",
    "scale-missing",
    "scale-model-backward",
    "transpose-dK",
    "transpose-dV",
    "swap-dQ-dK",
    "heads-permuted-dQ",
    "x-path-V",
    "x-path-V-only",
    "entry-too-large",
    "entry-wrong-sign",
    "query-key-zero",
    "bias-mean",
)
