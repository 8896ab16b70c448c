"""Attention on a graph: every query attends to the keys in its own list, and to nothing else.

    S_ip = τ q_i · k_N(i,p)        P_ip = exp S_ip / Σ_r exp S_ir        o_i = Σ_p P_ip v_N(i,p)          Liu et al. 2022, §3.1; Veličković et al. 2018

Q (..., n_q, d_k)   K (..., n_k, d_k)   V (..., n_k, d_v)   S, P (..., n_q, m)   O (..., n_q, d_v)   leading axes: batch, heads, which share the graph
neighbours: N (n_q, m), the keys that query i lists, m the longest list; −1 = nothing, anywhere in a list.   A key that is listed twice counts twice:
it is exp S times its multiplicity, a dense bias of log multiplicity.   An empty list gives a row of 0, and gradients of 0.

Backward, a key collects from the queries that list it: the inverse index names, for every key j, each query i that lists it and the position p in the list of that
query, (n_k, m_k), m_k the most lists that a key is in. Nothing is scattered: dK_j and dV_j are sums over what is gathered, as dQ_i is.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gradderiv.rules._graph import (
    Inverse,
    first_one_way,
    inverse_index,
    is_symmetric,
    require_graph,
    require_inverse,
    symmetric_shortcut,
)
from gradderiv.rules._inputs import rule
from gradderiv.rules.softmax import SoftmaxSaved, softmax, softmax_jvp, softmax_vjp, softmax_vjp_jvp
from gradderiv.rules.steps import Operator

__all__ = [
    "GRAPH",
    "Inverse",
    "first_one_way",
    "graph_attention",
    "graph_attention_jvp",
    "graph_attention_vjp",
    "graph_attention_vjp_jvp",
    "inverse_index",
    "is_symmetric",
    "symmetric_shortcut",
]


class GraphAttentionSaved(NamedTuple):
    """What the backward pass of :func:`graph_attention` needs."""

    Q: Tensor
    K: Tensor
    V: Tensor
    P: Tensor
    neighbours: Tensor
    inverse: Inverse
    scale: float


class GraphAttentionGradients(NamedTuple):
    """∂ℓ/∂Q, ∂ℓ/∂K, ∂ℓ/∂V."""

    Q: Tensor
    K: Tensor
    V: Tensor


@rule
def graph_attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    *,
    neighbours: Tensor,
    inverse: Inverse | None = None,
    scale: float | None = None,
) -> tuple[Tensor, GraphAttentionSaved]:
    """o_i = Σ_p P_ip v_N(i,p),   P_ip = exp S_ip / Σ_r exp S_ir,   S_ip = τ q_i · k_N(i,p)

    Liu et al. 2022, §3.1, for any graph, directed too; n·m numbers where a mask has n².

    Args:
        Q: (..., n_q, d_k).
        K: (..., n_k, d_k).
        V: (..., n_k, d_v).
        neighbours: integers (n_q, m): the keys that a query lists; −1 = nothing.
        inverse: what :func:`inverse_index` makes of it; made here unless given.
        scale: τ, 1/√d_k unless given.

    Returns:
        O (..., n_q, d_v) and what :func:`graph_attention_vjp` needs.

    Raises:
        InputError: shapes that do not fit, empty tensors, keys that are not there, the inverse index of another graph.
        DtypeError: integers for numbers or numbers for integers, several dtypes or devices.
    """
    require_graph("graph_attention", Q, K, V, neighbours)
    if inverse is None:
        inverse = inverse_index(neighbours, K.shape[-2])
    else:
        require_inverse("graph_attention", inverse, neighbours, K.shape[-2])
    scale = Q.shape[-1] ** -0.5 if scale is None else scale
    S = scale * dots(Q, listed(K, neighbours))  # ... n_q m
    P, _ = softmax(S, mask=neighbours >= 0)  # ... n_q m
    O = weighted(P, listed(V, neighbours))  # ... n_q d_v
    return O, GraphAttentionSaved(Q, K, V, P, neighbours, inverse, scale)


@rule
def graph_attention_jvp(saved: GraphAttentionSaved, Q_dot: Tensor, K_dot: Tensor, V_dot: Tensor) -> Tensor:
    """Ṡ_ip = τ (q̇_i · k_N(i,p) + q_i · k̇_N(i,p)),   ȯ_i = Σ_p Ṗ_ip v_N(i,p) + P_ip v̇_N(i,p)

    The product rule, on the lists.
    """
    Q, K, V, P, N, _, scale = saved
    S_dot = scale * (dots(Q_dot, listed(K, N)) + dots(Q, listed(K_dot, N)))  # ... n_q m
    P_dot = softmax_jvp(SoftmaxSaved(P), S_dot)  # ... n_q m
    O_dot = weighted(P_dot, listed(V, N)) + weighted(P, listed(V_dot, N))  # ... n_q d_v
    return O_dot


@rule
def graph_attention_vjp(dO: Tensor, saved: GraphAttentionSaved) -> GraphAttentionGradients:
    """dv_j = Σ_{(i,p): N(i,p)=j} P_ip do_i,   dS = P ∘ (dP − δ),   dq_i = τ Σ_p dS_ip k_N(i,p),   dk_j = τ Σ_{(i,p): N(i,p)=j} dS_ip q_i

    Pyraformer #15: (i, p) runs over the inverse index of j, P_ip = P[i, M[i, j]]; Dao et al. 2022, app. B.2, for dS.
    """
    Q, K, V, P, N, inverse, scale = saved
    # o_i was Σ_p P_ip v_N(i,p): v_j went to every query that lists j
    dV = weighted(turned(P, inverse), listed(dO, inverse.queries))  # ... n_k d_v
    dP = dots(dO, listed(V, N))  # ... n_q m
    # P was softmax(S)
    (dS,) = softmax_vjp(dP, SoftmaxSaved(P))  # ... n_q m
    # S_ip was τ q_i · k_N(i,p)
    dQ = scale * weighted(dS, listed(K, N))  # ... n_q d_k
    dK = scale * weighted(turned(dS, inverse), listed(Q, inverse.queries))  # ... n_k d_k
    return GraphAttentionGradients(dQ, dK, dV)


@rule
def graph_attention_vjp_jvp(
    dO: Tensor, saved: GraphAttentionSaved, dO_dot: Tensor, Q_dot: Tensor, K_dot: Tensor, V_dot: Tensor
) -> GraphAttentionGradients:
    """dq̇_i = τ Σ_p (dṠ_ip k_N + dS_ip k̇_N),   dk̇_j = τ Σ (dṠ_ip q_i + dS_ip q̇_i),   dv̇_j = Σ (Ṗ_ip do_i + P_ip dȯ_i)

    The product rule on :func:`graph_attention_vjp`, line by line.
    """
    Q, K, V, P, N, inverse, scale = saved
    queries = inverse.queries
    S_dot = scale * (dots(Q_dot, listed(K, N)) + dots(Q, listed(K_dot, N)))  # ... n_q m
    P_dot = softmax_jvp(SoftmaxSaved(P), S_dot)  # ... n_q m
    # dV was a sum of P do, dP was do · v
    turned_dO = listed(dO, queries)  # ... n_k m_k d_v
    dV_dot = weighted(turned(P_dot, inverse), turned_dO) + weighted(
        turned(P, inverse), listed(dO_dot, queries)
    )  # ... n_k d_v
    dP = dots(dO, listed(V, N))  # ... n_q m
    dP_dot = dots(dO_dot, listed(V, N)) + dots(dO, listed(V_dot, N))  # ... n_q m
    # dS was P ∘ (dP − δ)
    (dS,) = softmax_vjp(dP, SoftmaxSaved(P))  # ... n_q m
    (dS_dot,) = softmax_vjp_jvp(dP, SoftmaxSaved(P), dP_dot, S_dot)  # ... n_q m
    # dQ was a sum of τ dS k, dK was a sum of τ dS q
    dQ_dot = scale * (weighted(dS_dot, listed(K, N)) + weighted(dS, listed(K_dot, N)))  # ... n_q d_k
    turned_dS = turned(dS, inverse)  # ... n_k m_k
    turned_dS_dot = turned(dS_dot, inverse)  # ... n_k m_k
    dK_dot = scale * (
        weighted(turned_dS_dot, listed(Q, queries)) + weighted(turned_dS, listed(Q_dot, queries))
    )  # ... n_k d_k
    return GraphAttentionGradients(dQ_dot, dK_dot, dV_dot)


GRAPH = Operator(graph_attention, graph_attention_jvp, graph_attention_vjp, graph_attention_vjp_jvp)


# ---------------------------------------------------------------- on lists


def listed(X: Tensor, lists: Tensor) -> Tensor:
    """x_N(i,p), (..., n, d) → (..., *lists.shape, d); row 0 where nothing is listed, for what is multiplied by 0 there."""
    return X[..., lists.clamp(min=0), :]


def dots(X: Tensor, Y: Tensor) -> Tensor:
    """Σ_d X_id Y_ipd"""
    return (Y @ X.unsqueeze(-1)).squeeze(-1)


def weighted(W: Tensor, Y: Tensor) -> Tensor:
    """Σ_p W_ip Y_ipd"""
    return (W.unsqueeze(-2) @ Y).squeeze(-2)


def turned(W: Tensor, inverse: Inverse) -> Tensor:
    """W_ip at the queries i that list a key, (..., n_q, m) → (..., n_k, m_k); 0 beyond them."""
    queries, positions = inverse
    return W[..., queries.clamp(min=0), positions.clamp(min=0)].masked_fill(queries < 0, 0.0)
