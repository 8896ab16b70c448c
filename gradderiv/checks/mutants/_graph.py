"""Mistakes in attention on a graph: the lists read the wrong way round, padding, neighbours that are listed twice."""

from __future__ import annotations

from torch import Tensor

from gradderiv.checks.mutants.mutant import GRADIENT, VALUE, Mutant
from gradderiv.rules._graph import as_if_symmetric
from gradderiv.rules.graph import GraphAttentionSaved, graph_attention, graph_attention_vjp, inverse_index

Gradients = tuple[Tensor | None, ...]


def by_the_query(dO: Tensor, saved: GraphAttentionSaved) -> Gradients:
    """dK, dV through the lists of the queries, as if every edge had its counterpart."""
    return graph_attention_vjp(dO, saved._replace(inverse=as_if_symmetric(saved.neighbours)))


def padded_with_zero(
    Q: Tensor, K: Tensor, V: Tensor, *, neighbours: Tensor, scale: float | None = None, inverse: object = None
) -> Tensor:
    """The padding of a list is key 0."""
    out: Tensor = graph_attention(Q, K, V, neighbours=neighbours.clamp(min=0), scale=scale)[0]
    return out


def listed_once(dO: Tensor, saved: GraphAttentionSaved) -> Gradients:
    """A neighbour that is listed twice is collected once."""
    lists = saved.neighbours.clone()
    for row in lists:
        met: set[int] = set()
        for p, key in enumerate(row.tolist()):
            if key in met:
                row[p] = -1
            met.add(key)
    right, once = graph_attention_vjp(dO, saved), inverse_index(lists, saved.K.shape[-2])
    return right._replace(
        **{n: getattr(graph_attention_vjp(dO, saved._replace(inverse=once)), n) for n in ("K", "V")}
    )


MUTANTS = (
    Mutant(
        "graph-directed", "the keys of query i taken for the queries of key i", "Pyraformer #15; right for undirected graphs alone",
        {"graph.vjp": by_the_query}, problems=("graph-directed",), kills=GRADIENT,
    ),
    Mutant(
        "graph-padding", "padding read as key 0, not as −∞", "Pyraformer #5", {"graph.f": padded_with_zero},
        kind="forward", problems=("graph-irregular",), kills=VALUE,
    ),
    Mutant(
        "graph-duplicate", "a neighbour that is listed twice counted once in dK, dV", "cudnn-frontend #384",
        {"graph.vjp": listed_once}, problems=("graph-irregular", "tiny-graph"), kills=GRADIENT | {"sympy"},
    ),
)  # fmt: skip
