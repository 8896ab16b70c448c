"""ant-research/Pyraformer #15, in Chinese: which queries does a key collect its gradient from?

jlidw reads the backward of Pyraformer's sparse attention, finds that the gradient of K is collected by ``q_k_mask``, the keys of a query, and asks for the queries of a key and an index matrix M
of where the key stands in their lists. Zhazhan answers that the graph is undirected and that ``k_q_mask`` holds those positions.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import torch
from torch import Tensor

from gradderiv.checks.exact import exactly
from gradderiv.checks.reference import TEXTBOOK
from gradderiv.numbers.field import Field
from gradderiv.rules import graph as rule
from gradderiv.rules._graph import as_if_symmetric, one_way
from gradderiv.rules.graph import Inverse, inverse_index, is_symmetric, symmetric_shortcut
from gradderiv.rules.graphs import packed, pyramidal, random_graph, sliding_window

N, LEVELS, HEADS, WIDTH = 32, 3, 2, 4


def upwards(neighbours: Tensor) -> Tensor:
    """The pyramid in which a node sees its children and no longer its parent: scales are told apart by where they stand."""
    starts = torch.tensor([0, N, N + N // 4, N + N // 4 + N // 16])
    scale = torch.bucketize(torch.arange(len(neighbours)), starts, right=True)
    parent = scale[neighbours.clamp(min=0)] > scale[:, None]
    return packed(neighbours.masked_fill(parent, -1))


def graphs() -> dict[str, Tensor]:
    pyramid = pyramidal(N, levels=LEVELS)
    n = len(pyramid)
    return {
        "Pyraformer's pyramid": pyramid,
        "the pyramid, children only": upwards(pyramid),
        "a causal window of 5": sliding_window(n, 4, 0),
        "5 random keys": random_graph(n, n, 5, seed=0),
    }


def reporters_M(neighbours: Tensor, inverse: Inverse) -> Tensor:
    """M[k_q[i, j], i] = where(q_k[k_q[i, j]] == i), as #15 writes it: a loop; −1 where it says nothing."""
    n = len(neighbours)
    M = torch.full((n, n), -1)
    for i, queries in enumerate(inverse.queries.tolist()):
        for query in (q for q in queries if q >= 0):
            M[query, i] = torch.where(neighbours[query] == i)[0]
    return M


def positions_are_M(neighbours: Tensor) -> tuple[int, bool]:
    """How many entries M has, and whether they are the positions of the inverse index, every one."""
    inverse = inverse_index(neighbours, len(neighbours))
    M, (queries, positions) = reporters_M(neighbours, inverse), inverse
    keys = torch.arange(len(neighbours))[:, None].expand_as(queries)
    here = queries >= 0
    same = torch.equal(M[queries[here], keys[here]], positions[here])
    return int((M >= 0).sum()), same and int(here.sum()) == int((M >= 0).sum())


def lookups_that_find_nothing(neighbours: Tensor) -> int:
    """How often ``torch.where(q_k[q_k[i, j]] == i)[0]``, by which Pyraformer's get_k_q finds positions, is empty."""
    found = [
        len(torch.where(neighbours[j] == i)[0])
        for i, row in enumerate(neighbours.tolist())
        for j in row
        if j >= 0
    ]
    return found.count(0)


@dataclass(frozen=True)
class Suffered:
    """What the shortcut does to one graph: relative errors, and where.

    Attributes:
        one_way: edges without a counterpart, of ``edges``.
        wrong: keys whose row of dK is off; ``gone``: those whose row is 0 and should not be.
    """

    edges: int
    one_way: int
    O: float
    dQ: float
    dK: float
    dV: float
    cosine: float
    wrong: int
    gone: int


def suffered(neighbours: Tensor, seed: int = 0) -> Suffered:
    """Gradients by the shortcut, unchecked, against those by the inverse index: float64, a random cotangent."""
    generator = torch.Generator().manual_seed(seed)
    shape = (HEADS, len(neighbours), WIDTH)
    Q, K, V, dO = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    O, saved = rule.graph_attention(Q, K, V, neighbours=neighbours)
    right = rule.graph_attention_vjp(dO, saved)
    short = saved._replace(inverse=as_if_symmetric(neighbours))
    wrong = rule.graph_attention_vjp(dO, short)
    dense = TEXTBOOK["graph"](Q, K, V, neighbours=neighbours)
    dQ, dK, dV = (float((a - b).abs().max() / b.abs().max()) for a, b in zip(wrong, right, strict=True))
    rows = (wrong.K - right.K).abs().amax((0, 2)) > 1e-9 * right.K.abs().max()
    gone = (wrong.K.abs().amax((0, 2)) == 0) & (right.K.abs().amax((0, 2)) > 0)
    cosine = float((wrong.K * right.K).sum() / (wrong.K.norm() * right.K.norm()))
    edges, lost = int((neighbours >= 0).sum()), int(one_way(neighbours).sum())
    error = float((O - dense).abs().max() / dense.abs().max())
    return Suffered(edges, lost, error, dQ, dK, dV, cosine, int(rows.sum()), int(gone.sum()))


def equal_exactly(neighbours: Tensor, inverse: Inverse) -> dict[str, bool]:
    """dQ, dK, dV by this index against autograd of dense masked attention, over the field."""

    def run(field: Field) -> dict[str, tuple[Tensor, Tensor]]:
        shape = (HEADS, len(neighbours), WIDTH)
        leaves = [field.random(*shape).requires_grad_() for _ in range(3)]
        dO = field.random(*shape)
        expected = torch.autograd.grad(TEXTBOOK["graph"](*leaves, neighbours=neighbours), leaves, dO)
        _, saved = rule.graph_attention(*(x.detach() for x in leaves), neighbours=neighbours)
        found = rule.graph_attention_vjp(dO, saved._replace(inverse=inverse))
        return {f"d{name}": pair for name, pair in zip("QKV", zip(found, expected, strict=True), strict=True)}

    return {name: outcome.equal for name, outcome in exactly(run).items()}


# ---------------------------------------------------------------- told


def tell() -> str:
    parts = (thread(), both_right(), directed())
    return "\n\n".join(p if p.startswith("  ") else textwrap.fill(p, 79) for part in parts for p in part)


def thread() -> list[str]:
    return [
        "ant-research/Pyraformer #15. Every node of a pyramid attends to the few nodes in its list, and a kernel written by hand computes S and O on the lists, and their gradients. For "
        "dK and dV it walks through q_k_mask[i], the keys of query i. jlidw: that must be the queries of key i, k_q_mask[i], and with them a matrix M of where i stands in the list of each, "
        "M[k_q_mask[i, j], i] = where(q_k_mask[k_q_mask[i, j]] == i). Zhazhan: the graph is undirected, so those whom i attends to are those who attend to i; and k_q_mask holds what you call M. "
        "One word, two meanings: for jlidw k_q_mask[i] is who, for Zhazhan where."
    ]


def both_right() -> list[str]:
    pyramid = graphs()["Pyraformer's pyramid"]
    shortcut, inverse = symmetric_shortcut(pyramid), inverse_index(pyramid, len(pyramid))
    exact = [all(equal_exactly(pyramid, index).values()) for index in (shortcut, inverse)]
    entries, same = positions_are_M(pyramid)
    table = ["  over the field against autograd of dense masked attention, dQ, dK, dV"]
    for name, equal in zip(
        ("Zhazhan's index (symmetric_shortcut)", "jlidw's index (inverse_index)"), exact, strict=True
    ):
        table.append(f"    {name:38}{'equal in every entry' if equal else 'different'}")
    return [
        f"Both are right. Pyraformer's pyramid over {N} tokens ({LEVELS} scales, {len(pyramid)} nodes, {int((pyramid >= 0).sum())} edges) is {'undirected' if is_symmetric(pyramid) else 'directed'}:",
        "\n".join(table),
        f"M, filled as #15 writes it, has {entries} entries, one for every edge, and they {'are' if same else 'are not'} the positions of gradderiv's inverse index, which keeps "
        f"{inverse.queries.numel()} places for them where M has {len(pyramid) ** 2}.",
    ]  # fmt: skip


def directed() -> list[str]:
    found = {name: suffered(g) for name, g in graphs().items()}
    table = [f"  {'the shortcut on':28}{'one-way':>10}{'O':>9}{'dQ':>9}{'dK':>8}{'dV':>8}"]
    for name, s in found.items():
        cells = "".join(f"{_size(x):>{w}}" for x, w in ((s.O, 9), (s.dQ, 9), (s.dK, 8), (s.dV, 8)))
        table.append(f"  {name:28}{f'{s.one_way} of {s.edges}':>10}{cells}")
    upward, random = found["the pyramid, children only"], found["5 random keys"]
    window = graphs()["a causal window of 5"]
    nodes = len(window)
    general = all(all(equal_exactly(g, inverse_index(g, nodes)).values()) for g in graphs().values())
    matches = all(positions_are_M(g)[1] for g in graphs().values())
    missing = lookups_that_find_nothing(window)
    return [
        "On a directed graph only jlidw is. The shortcut loses every edge without a counterpart. Errors relative to the largest entry:",
        "\n".join(table),
        f"O and dQ are right all the same: they walk the lists forwards, and no test of the output or of dQ sees it. In the pyramid of children {upward.wrong} of {nodes} rows of dK are wrong, and its "
        f"cosine with the right one is {upward.cosine:.2f}: the loss may still fall. With random keys {random.wrong} are wrong, {random.gone} of them 0, and the cosine is {random.cosine:.2f}.",
        f"The inverse index is {'right' if general else 'wrong'} on all four, exactly, and {'equals' if matches else 'is not'} jlidw's M on each. Pyraformer's get_k_q would not have gone wrong in silence: its "
        f"where(…)[0] finds nothing for {missing} edges of the causal window, and cannot be assigned. symmetric_shortcut refuses such a graph:",
        _refusal(window),
    ]  # fmt: skip


def _size(x: float) -> str:
    return f"{x:.0e}" if 0 < x < 0.01 else f"{x:.2g}"


def _refusal(neighbours: Tensor) -> str:
    try:
        symmetric_shortcut(neighbours)
    except ValueError as error:
        lines = str(error).splitlines()
        return "\n".join(
            textwrap.fill(line, 79, initial_indent="  ", subsequent_indent="         ") for line in lines
        )
    return "  (it was accepted)"
