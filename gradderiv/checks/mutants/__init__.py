"""Rules that are wrong on purpose, each in one term that was once wrong in public.

A check that cannot fail shows nothing. :data:`MUTANTS` goes through the same oracles as the rules
(:func:`gradderiv.checks.kill.kill_table`); each mutant declares which oracles must notice, and why the others need not.
"""

from __future__ import annotations

from gradderiv.checks.mutants import (
    _graph,
    _heads,
    _layers,
    _layouts,
    _masks,
    _outputs,
    _products,
    _rotary,
    _scale,
    _scores,
    _softmax,
    _sums,
)
from gradderiv.checks.mutants.mutant import Mutant
from gradderiv.checks.mutants.stages import Layer

__all__ = ["MUTANTS", "PEERS", "RIGHT", "SUBJECTS", "Layer", "Mutant"]

#: Nothing replaced: the first row of the kill table, which nobody may kill.
RIGHT = Mutant("(right)", "nothing is wrong", "", {}, kind="right", kills=frozenset())

#: The wrong rules by what they are about: first a plain layer in stages, then attention with options and what else the catalogue has.
SUBJECTS: dict[str, tuple[Mutant, ...]] = {
    "plain layer: softmax": _softmax.MUTANTS,
    "plain layer: scale, and the products after dS": _scale.MUTANTS,
    "plain layer: heads": _heads.MUTANTS,
    "plain layer: masks": _masks.MUTANTS,
    "plain layer: sums over rows and paths, and writing results": _sums.MUTANTS,
    "options: fused projections, shared heads": _layouts.MUTANTS,
    "options: rotation, QK-norm": _rotary.MUTANTS,
    "options: temperature, soft cap, biases, fills": _scores.MUTANTS,
    "options: sinks, lse, weights, dropout, cache": _outputs.MUTANTS,
    "products that broadcast, embeddings": _products.MUTANTS,
    "attention on a graph": _graph.MUTANTS,
    "whole layers: norms, activations, gates, residuals": _layers.MUTANTS,
}

MUTANTS: dict[str, Mutant] = {m.id: m for mutants in SUBJECTS.values() for m in mutants}

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
