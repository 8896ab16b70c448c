"""Attention on neighbour lists and its gradients on plain tensors: n·m numbers forwards and backwards, nothing scattered, no mask of n².

    o_i = Σ_p P_ip v_N(i,p),   P_ip = exp S_ip / Σ_r exp S_ir,   S_ip = τ q_i · k_N(i,p)                 Liu et al. 2022, §3.1

All heads of a batch are one graph: row h·n + i of a table of all their rows. A sum over lists, Σ_p P_ip v_N(i,p), is ``embedding_bag`` with weights, which reads the rows where
they lie; so is what comes back, over the lists that name a key. An inner product along lists, q_i · k_N(i,p), gathers the rows of as many queries as stay in the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from gradderiv.functional._nested import ordinary
from gradderiv.rules import graph as rules
from gradderiv.rules._graph import by_key, require_graph, require_inverse
from gradderiv.threads import one_thread

GATHERED = 2**18  # numbers that are gathered at a time: 1 MB of float32, for each thread
SMALL = (
    2**23
)  # numbers on lists that are left to one thread, some 20 ms of work: on a busy machine each of many short steps would wait for the others


class Saved(NamedTuple):
    """What the closed forms need: of :class:`gradderiv.rules.graph.GraphAttentionSaved`, with an inverse index that is made when it is asked for."""

    Q: Tensor
    K: Tensor
    V: Tensor
    P: Tensor
    neighbours: Tensor
    queries: Tensor | None
    positions: Tensor | None
    scale: float

    @property
    def inverse(self) -> rules.Inverse:
        if self.queries is None or self.positions is None:
            return rules.inverse_index(self.neighbours, self.K.shape[-2])
        return rules.Inverse(self.queries, self.positions)

    def plain(self, inverse: Any) -> rules.GraphAttentionSaved:
        """For the rules; a tangent forwards does not ask for the inverse index."""
        return rules.GraphAttentionSaved(self.Q, self.K, self.V, self.P, self.neighbours, inverse, self.scale)

    def edges(self) -> tuple[Tensor, Tensor]:
        """The edges i·m + p in the order of their keys, and how many each key has."""
        if self.queries is None or self.positions is None:
            _, edges, counts = by_key(self.neighbours, self.K.shape[-2])
            return edges, counts
        listed = self.queries >= 0
        return (self.queries * self.neighbours.shape[1] + self.positions)[listed], listed.sum(1)


def require(
    Q: Tensor, K: Tensor, V: Tensor, neighbours: Tensor, queries: Tensor | None, positions: Tensor | None
) -> None:
    """Demand tensors and a graph that fit each other.

    Raises:
        InputError: shapes that do not fit, empty tensors, keys that are not there, the inverse index of another graph.
        DtypeError: integers, several dtypes or devices.
    """
    with one_thread():
        require_graph("graph_attention", Q, K, V, neighbours)
        if queries is not None and positions is not None:
            require_inverse("graph_attention", rules.Inverse(queries, positions), neighbours, K.shape[-2])


# ---------------------------------------------------------------- forwards


def value(
    Q: Tensor, K: Tensor, V: Tensor, neighbours: Tensor, queries: Tensor | None, positions: Tensor | None, scale: float
) -> tuple[Tensor, Saved]:  # fmt: skip
    """O and what is saved."""
    if not ordinary(Q, K, V):
        inverse: Any = None if queries is None else rules.Inverse(queries, positions)  # type: ignore[arg-type]
        O, kept = rules.graph_attention(Q, K, V, neighbours=neighbours, inverse=inverse, scale=scale)
        return O, Saved(Q, K, V, kept.P, neighbours, queries, positions, scale)
    with one_thread(work(Q, V, neighbours), SMALL):
        keys = of_all_heads(neighbours.clamp(min=0), K)
        S = dots(rows(Q), rows(K), keys)  # h·n_q m, without τ
        P = softmax(S.view(*Q.shape[:-1], -1), neighbours >= 0, scale)  # ... n_q m
        O = embedding_bag(keys, rows(V), per_sample_weights=P.reshape(keys.shape), mode="sum")  # h·n_q d_v
    return O.view(*Q.shape[:-1], -1), Saved(Q, K, V, P, neighbours, queries, positions, scale)


def gradients(dO: Tensor, saved: Saved) -> rules.GraphAttentionGradients:
    """dV, dS, dQ, dK: the lines of :func:`gradderiv.rules.graph.graph_attention_vjp`."""
    Q, K, V, P, N, *_, scale = saved
    if not ordinary(dO, Q, K, V):
        return rules.graph_attention_vjp(dO, saved.plain(saved.inverse))
    with one_thread(work(Q, V, N), SMALL):
        keys = of_all_heads(N.clamp(min=0), K)
        queries, edges, begins = back(saved)
        dP = dots(rows(dO), rows(V), keys).view(P.shape)  # ... n_q m
        dV = turned(P, rows(dO), edges, queries, begins)  # h·n_k d_v
        dS = P * dP  # ... n_q m
        dS = torch.addcmul(dS, P, dS.sum(-1, keepdim=True), value=-1) * scale  # ... n_q m, with τ
        dQ = embedding_bag(keys, rows(K), per_sample_weights=dS.view(keys.shape), mode="sum")  # h·n_q d_k
        dK = turned(dS, rows(Q), edges, queries, begins)  # h·n_k d_k
    return rules.GraphAttentionGradients(dQ.view(Q.shape), dK.view(K.shape), dV.view(V.shape))


def work(Q: Tensor, V: Tensor, neighbours: Tensor) -> int:
    """How many numbers the lists hold, of keys or of values."""
    return Q.shape[:-2].numel() * neighbours.numel() * max(Q.shape[-1], V.shape[-1])


def rows(X: Tensor) -> Tensor:
    """(..., n, d) → (h·n, d): all heads of a batch, one below the other. What has no gradient is read by the faster ``embedding_bag``."""
    return (X.detach() if X.requires_grad else X).reshape(-1, X.shape[-1])


def of_all_heads(lists: Tensor, X: Tensor) -> Tensor:
    """The lists of one graph as those of all of them: row j of head h is h·n + j in :func:`rows`."""
    n = X.shape[-2]
    heads = torch.arange(0, X.shape[:-1].numel(), n, device=lists.device)
    return (heads.reshape(-1, *[1] * lists.dim()) + lists.long()).flatten(0, 1)


def back(saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """Of all heads, in the order of their keys: the queries that list a key, the edges, and where those of a key begin."""
    N, (edges, counts) = saved.neighbours, saved.edges()
    heads = torch.arange(saved.P.shape[:-2].numel(), device=edges.device)[:, None]
    ends = counts.repeat(len(heads)).cumsum(0)
    queries = (heads * N.shape[0] + edges // N.shape[1]).reshape(-1)
    return queries, (heads * N.numel() + edges).reshape(-1), ends - counts.repeat(len(heads))


def dots(X: Tensor, table: Tensor, lists: Tensor) -> Tensor:
    """Σ_d X_id table_{N(i,p) d}, (n, m): gathered for some queries after the other."""
    (n, m), d = lists.shape, X.shape[-1]
    step = max(GATHERED * torch.get_num_threads() // (m * d), 1)
    parts = []
    for i in range(0, n, step):
        gathered = table.index_select(0, lists[i : i + step].reshape(-1)).view(-1, m, d)
        parts.append(torch.bmm(X[i : i + step].unsqueeze(1), gathered.mT).squeeze(1))
    return torch.cat(parts)


def softmax(S: Tensor, here: Tensor, scale: float) -> Tensor:
    """Of τ S over the last axis, which is short: the rows are laid side by side. An empty list is a row of 0."""
    bias = torch.zeros(here.shape, dtype=S.dtype, device=S.device)
    bias = bias.masked_fill(~here & here.any(-1, keepdim=True), -torch.inf)
    P = torch.softmax(torch.add(bias, S, alpha=scale).mT.contiguous(), -2).mT
    return (P * here).contiguous()


def turned(W: Tensor, table: Tensor, edges: Tensor, queries: Tensor, begins: Tensor) -> Tensor:
    """Σ_{(i,p): N(i,p)=j} W_ip table_i"""
    return embedding_bag(
        queries, table, begins, per_sample_weights=W.reshape(-1).index_select(0, edges), mode="sum"
    )
