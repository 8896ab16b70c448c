"""Problems of attention on neighbour lists: directed graphs, and every way in which a list can be irregular."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.problems.problem import Problem
from gradderiv.rules.graph import inverse_index, symmetric_shortcut
from gradderiv.rules.graphs import pyramidal

#: A list with padding in its middle, an empty one, a key listed twice and three times; nobody lists key 4, and 0 → 3 has no way back.
IRREGULAR = [[3, -1, 0, 6], [-1, -1, -1, -1], [5, 0, -1, 5], [2, 2, 2, 1], [-1, 6, 3, -1]]
DIRECTED = [[1, 2, 4], [0, 3, 2], [4, 1, -1], [0, -1, 2], [3, 0, 1]]


def graph(
    name: str, why: str, lists: list[list[int]] | Tensor, n_k: int, *, batch: tuple[int, ...] = (), d_k: int = 3, d_v: int = 2,
    options: dict[str, Any] | None = None, **more: Any,
) -> Problem:  # fmt: skip
    neighbours = torch.as_tensor(lists)
    n_q = len(neighbours)
    shapes = {"Q": (*batch, n_q, d_k), "K": (*batch, n_k, d_k), "V": (*batch, n_k, d_v)}
    given = {"neighbours": neighbours, **(options or {})}
    return Problem(name, "graph", shapes, (*batch, n_q, d_v), given, why=why, **more)


def problems() -> list[Problem]:
    pyramid = pyramidal(7, children=2, levels=3)
    irregular = torch.tensor(IRREGULAR)
    return [
        graph("graph-directed", "the keys of a query taken for the queries of a key (Pyraformer #15)", DIRECTED, 5, d_k=4),
        graph("graph-irregular", "padding 0 for −∞ (Pyraformer #5), a neighbour listed twice (cudnn-frontend #384), an empty list", IRREGULAR, 7,
              batch=(2, 3), options={"scale": 0.3, "inverse": inverse_index(irregular, 7)}),
        graph("graph-pyramid", "Pyraformer's own graph, with its own index", pyramid, len(pyramid), batch=(2,),
              options={"inverse": symmetric_shortcut(pyramid)}),
        graph("graph-peaked", "Gaussian inputs are too tame (TransformerEngine #3216)", DIRECTED, 6, std=5.0, vacuous=(torch.bfloat16,)),
        graph("graph-one-neighbour", "one key in every list: P is 1, and dQ and dK are exactly 0", [[2], [0], [2]], 4, zeros=frozenset({"Q", "K"})),
        graph("tiny-graph", "symbols, a key twice", [[1, -1, 1], [0, 1, -1]], 2, d_k=1, d_v=1, options={"scale": 1.0}),
    ]  # fmt: skip
