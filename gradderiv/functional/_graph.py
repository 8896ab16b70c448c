"""Attention on neighbour lists as a PyTorch function: n·m numbers forwards and backwards, nothing scattered, no mask of n².

    o_i = Σ_p P_ip v_N(i,p),   P_ip = exp S_ip / Σ_r exp S_ir,   S_ip = τ q_i · k_N(i,p)                 Liu et al. 2022, §3.1

All heads of a batch are one graph: row h·n + i of a table of all their rows. A sum over lists, Σ_p P_ip v_N(i,p), is ``embedding_bag`` with weights, which reads the rows where
they lie; so is what comes back, over the lists that name a key. An inner product along lists, q_i · k_N(i,p), gathers the rows of as many queries as stay in the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.nn.functional import embedding_bag

from gradderiv.functional._autocast import autocast_on_entry
from gradderiv.functional._function import Gradient, Rule, _keep, _kept, _needed
from gradderiv.functional._nested import outer_tangents, primal
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


def ordinary(*tensors: Tensor) -> bool:
    """Nobody differentiates what is done to these, and no ``vmap`` runs over them: ``embedding_bag`` has one derivative, no tangent and no batching rule."""
    tangents = forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()
    batched = any(_functorch.is_batchedtensor(x) or _functorch.is_legacy_batchedtensor(x) for x in tensors)
    return not (torch.is_grad_enabled() or tangents or batched)


_graph = Rule(
    value,
    lambda saved, **along: rules.graph_attention_jvp(saved.plain(None), **along),
    gradients,
    lambda dO, saved, dO_dot, **along: rules.graph_attention_vjp_jvp(
        dO, saved.plain(saved.inverse), dO_dot, **along
    ),
    variables=("Q", "K", "V"),
    constants=("neighbours", "queries", "positions", "scale"),
)


# ---------------------------------------------------------------- the function


class Value(torch.autograd.Function):
    """O, with P beside it for a backward pass that nobody differentiates; else all is computed again, as everywhere in :mod:`._function`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rule: Rule, *arguments: Any) -> tuple[Tensor, Tensor]:
        O, saved = rule.evaluate(arguments)
        return O, saved.P

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, P = output
        ctx.mark_non_differentiable(P)
        _keep(ctx, (*inputs, P), forward_mode=True)

    @staticmethod
    def jvp(ctx: Any, rule_dot: None, *tangents: Any) -> tuple[Tensor, None]:
        with outer_tangents(True):
            rule, (*arguments, _) = _kept(ctx, primal)
            _, saved = rule.evaluate(arguments)
            return rule.jvp(saved, **rule.along(arguments, tangents)), None

    @staticmethod
    def backward(ctx: Any, dO: Tensor, dP: Tensor) -> tuple[Tensor | None, ...]:
        rule, (*arguments, P) = _kept(ctx)
        if not ordinary(dO, P):
            return _needed(ctx, Gradient.apply(rule, dO, *arguments))
        Q, K, V, *rest = arguments
        return _needed(ctx, rule.gradients(rule.vjp(dO, Saved(Q, K, V, P, *rest))))


@autocast_on_entry
def graph_attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    neighbours: Tensor,
    inverse: rules.Inverse | None = None,
    scale: float | None = None,
) -> Tensor:
    """o_i = Σ_p P_ip v_N(i,p),   P_ip = exp S_ip / Σ_r exp S_ir,   S_ip = τ q_i · k_N(i,p)

    Liu et al. 2022, §3.1; the gradients are those of :mod:`gradderiv.rules.graph`, for directed graphs too.

    Attention where a query attends to the few keys that it lists, in time and memory that grow with the lists. Reverse and forward mode, double backward and ``torch.func`` transforms in
    any nesting use the closed forms. The sums have one order: the same inputs give the same bits. On the CPU, lists of less than 2²³ numbers take one thread. Not for ``torch.compile``.

    Args:
        Q: (..., n_q, d_k).
        K: (..., n_k, d_k).
        V: (..., n_k, d_v). The leading axes of all three, batch and heads, are equal and share the graph.
        neighbours: integers (n_q, m): the keys that a query lists, −1 = nothing; :mod:`gradderiv.rules.graphs` makes them.
        inverse: of the neighbours, made once by :func:`gradderiv.rules.graph.inverse_index`; each backward pass sorts the lists unless it is given.
        scale: τ, 1/√d_k unless given.

    Returns:
        O (..., n_q, d_v). An empty list gives a row of 0, and gradients of 0; a key that is listed twice counts twice.

    Raises:
        InputError: shapes that do not fit, empty tensors, keys that are not there, the inverse index of another graph.
        DtypeError: integers, complex numbers, several dtypes or devices, a tensor for ``scale``.
    """
    queries, positions = (None, None) if inverse is None else inverse
    with one_thread():
        require_graph("graph_attention", Q, K, V, neighbours)
        if inverse is not None:
            require_inverse("graph_attention", inverse, neighbours, K.shape[-2])
    tau = Q.shape[-1] ** -0.5 if scale is None else scale
    arguments = (Q, K, V, neighbours, queries, positions, tau)
    _graph._require_real_numbers(arguments)
    O, _ = Value.apply(_graph, *arguments)
    return O
