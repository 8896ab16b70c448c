"""Forward passes that know nothing of ours: textbook formulas in torch, the same as loops, and torch's own layers.

A check of derivatives never sees a wrong forward: a wrong scale, axis or mask differentiates consistently. So the
oracles differentiate these, and the first oracle compares the rules' values with all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gradderiv.checks.reference import core, graph, layers, options, products
from gradderiv.checks.reference.core import multihead

__all__ = ["LOOPS", "TEXTBOOK", "TORCH", "multihead"]

Forwards = dict[str, Callable[..., Tensor]]

TEXTBOOK: Forwards = {
    name: f for part in (core, products, options, layers, graph) for name, f in part.TEXTBOOK.items()
}
LOOPS: Forwards = {
    name: f for part in (core, products, options, layers, graph) for name, f in part.LOOPS.items()
}
TORCH: Forwards = {
    name: f for part in (core, products, options, layers, graph) for name, f in part.TORCH.items()
}
