"""Named cases: shapes, options, values and cotangents. One table.

A problem says what a rule is tried on; :meth:`Problem.draw` fills it with numbers of any kind. Each row exists because a real mistake got
past tests that lacked it, and says so.
"""

from __future__ import annotations

from gradderiv.checks.problems import core, graph, layers, options, pairs, products
from gradderiv.checks.problems.problem import Problem, causal, elements, layer_shapes

__all__ = ["PROBLEMS", "Problem", "causal", "elements", "layer_shapes"]

PROBLEMS: dict[str, Problem] = {
    p.name: p for part in (core, products, options, layers, graph, pairs) for p in part.problems()
}
