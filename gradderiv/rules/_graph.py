"""The inverse of neighbour lists, the shortcut that undirected graphs have, and what is refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.errors import DtypeError, message
from gradderiv.rules._inputs import kind, require, require_tensors, shape, shapes


class Inverse(NamedTuple):
    """For every key the queries that list it, and where in their lists it stands: neighbours[queries, positions] = key. Both (n_k, m_k), −1 = nothing.

    In the words of Pyraformer #15, queries is the reporter's k_q_mask, and M[k_q_mask[i, j], i] is positions[i, j].
    """

    queries: Tensor
    positions: Tensor


def inverse_index(neighbours: Tensor, n_k: int) -> Inverse:
    """{(i, p): N(i, p) = j} for every key j, in the order of the queries

    The index matrix M of Pyraformer #15, kept where it has entries. It depends on the graph alone: make it once. A hub that all queries list makes it n_q wide.

    Args:
        neighbours: integers (n_q, m), −1 = nothing.
        n_k: how many keys there are.

    Returns:
        queries and positions, (n_k, m_k); m_k is the most lists that a key is in, and at least 1.

    Raises:
        InputError: no lists, keys that are not there.
        DtypeError: not a tensor of integers.
    """
    require_lists("inverse_index", neighbours, n_k)
    keys, edges, counts = by_key(neighbours, n_k)
    m = neighbours.shape[1]
    width = max(int(counts.max()), 1)
    turn = (
        torch.arange(len(keys), device=keys.device) - (counts.cumsum(0) - counts)[keys]
    )  # of a key's own edges
    queries, positions = torch.full((2, n_k, width), -1, device=keys.device)
    queries[keys, turn] = edges // m
    positions[keys, turn] = edges % m
    return Inverse(queries, positions)


def by_key(neighbours: Tensor, n_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The edges (i, p), as i·m + p, in the order of their keys; these keys; and how many edges each key has."""
    flat = neighbours.reshape(-1).long()
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat + 1, minlength=n_k + 1)  # of nothing, then of every key
    edges = order[int(counts[0]) :]
    return flat[edges], edges, counts[1:]


# ---------------------------------------------------------------- undirected graphs


def one_way(neighbours: Tensor) -> Tensor:
    """Where an edge has no counterpart: True at (i, p) if N(i, p) lists i less often than i has listed N(i, p) up to there. (n, m)"""
    return (neighbours >= 0) & (counterpart(neighbours) < 0)


def counterpart(neighbours: Tensor) -> Tensor:
    """Where i stands in the list of N(i, p): the r-th time for the r-th time that i lists it; −1 where there is none. (n, m)

    With one edge between two nodes it is what Pyraformer's get_k_q looks up, and its author calls k_q_mask.
    """
    n, m = neighbours.shape
    lists = neighbours.long()
    here = lists >= 0
    names = torch.arange(n, device=lists.device)[:, None].expand(n, m)
    to = lists.clamp(min=0)
    forth = torch.where(here, names * n + to, -1).reshape(-1)  # an edge by its two ends
    back = torch.where(here, to * n + names, -1).reshape(-1)  # and the edge that would answer it
    found = _matched(back, forth).reshape(n, m)
    return torch.where(here & (found >= 0), found % m, -1)


def _matched(wanted: Tensor, names: Tensor) -> Tensor:
    """The place in ``names`` of the r-th entry that equals the r-th such entry of ``wanted``; −1 where there are fewer."""
    order = torch.argsort(names, stable=True)
    ordered = names[order]
    place = torch.searchsorted(ordered, wanted) + _turns(wanted)
    inside = place.clamp(max=len(names) - 1)
    return torch.where((place < len(names)) & (ordered[inside] == wanted), order[inside], -1)


def _turns(x: Tensor) -> Tensor:
    """How often each entry came before."""
    order = torch.argsort(x, stable=True)
    ordered = x[order]
    turns = torch.empty_like(x)
    turns[order] = torch.arange(len(x), device=x.device) - torch.searchsorted(ordered, ordered)
    return turns


def is_symmetric(neighbours: Tensor) -> bool:
    """N(i, ·) has j as often as N(j, ·) has i, for all i and j: the graph is undirected

    What :func:`symmetric_shortcut` needs, and what Pyraformer's pyramid is.
    """
    require_lists("is_symmetric", neighbours, neighbours.shape[0])
    return not one_way(neighbours).any()


def first_one_way(neighbours: Tensor) -> tuple[int, int] | None:
    """The first edge (query, key) without a counterpart; None in an undirected graph."""
    where = one_way(neighbours).nonzero()
    if not len(where):
        return None
    i, p = where[0]
    return int(i), int(neighbours[i, p])


def symmetric_shortcut(neighbours: Tensor) -> Inverse:
    """queries of i = N(i, ·): in an undirected graph those that list i are those that i lists

    Pyraformer's own index, right for its undirected pyramid: no sorting, and as wide as the lists.

    Args:
        neighbours: integers (n, m), −1 = nothing; queries and keys are the same n nodes.

    Returns:
        queries and positions, (n, m), padded where the lists are.

    Raises:
        InputError: a directed graph, with the first edge that has no counterpart and how many terms dK and dV would lack.
        DtypeError: not a tensor of integers.
    """
    require_lists("symmetric_shortcut", neighbours, neighbours.shape[0])
    edge, wrong = first_one_way(neighbours), one_way(neighbours).sum()
    total = (neighbours >= 0).sum()
    require(
        edge is None,
        "symmetric_shortcut needs an undirected graph: query i lists key j as often as query j lists key i",
        f"{wrong} of {total} edges without a counterpart, the first from query {edge and edge[0]} to key {edge and edge[1]}",
        f"a directed graph: of the {total} terms of dK and of dV the shortcut would lose {wrong}, without an error",
        "inverse_index(neighbours, n_k), which is right for every graph",
    )
    return as_if_symmetric(neighbours)


def as_if_symmetric(neighbours: Tensor) -> Inverse:
    """:func:`symmetric_shortcut` without its check: in a directed graph, an edge without a counterpart is not there."""
    positions = counterpart(neighbours)
    return Inverse(torch.where(positions < 0, -1, neighbours.long()), positions)


# ---------------------------------------------------------------- what is refused


def require_lists(where: str, neighbours: Tensor, n_k: int) -> None:
    """Demand integers (n_q, m) of −1 … n_k − 1.

    Raises:
        DtypeError: not a tensor of integers.
        InputError: another shape, keys that are not there.
    """
    if not isinstance(neighbours, Tensor) or neighbours.dtype not in (torch.int64, torch.int32):
        raise DtypeError(
            message(
                f"{where} needs neighbours as a tensor of int64 or int32",
                kind(neighbours),
                "a mask, a list of lists, or numbers that went through floats",
                "graphs.from_mask(mask) for a mask; lists of different lengths are padded with -1",
            )
        )
    require(
        neighbours.dim() == 2 and neighbours.numel() > 0,
        f"{where} needs neighbours (n_q, m): a list for every query, of at least one place",
        f"neighbours {shape(neighbours)}",
        "one list, or a graph for every head",
        "the same graph for all heads and all of a batch; -1 where a list is shorter",
    )
    low, high = map(int, torch.aminmax(neighbours))
    require(
        low >= -1 and high < n_k,
        f"{where} needs neighbours of 0 … {n_k - 1}, the keys, or -1 for nothing",
        f"neighbours from {low} to {high}",
        "another number of keys, or another number for the padding",
        "neighbours.masked_fill(neighbours == padding, -1)",
    )


def require_graph(where: str, Q: Tensor, K: Tensor, V: Tensor, neighbours: Tensor) -> None:
    """Demand queries, keys and values that fit one another and the lists.

    Raises:
        InputError, DtypeError: they do not.
    """
    require_tensors(where, Q=Q, K=K, V=V)
    asked = f"{where} needs Q (..., n_q, d_k), K (..., n_k, d_k) and V (..., n_k, d_v)"
    require(
        min(Q.dim(), K.dim(), V.dim()) >= 2 and Q.shape[-1] == K.shape[-1] and K.shape[-2] == V.shape[-2],
        asked,
        shapes(Q=Q, K=K, V=V),
        "queries and keys of different widths, or another number of keys than of values",
        "Q and K share their last axis, d_k; K and V the one before it, n_k",
    )
    require(
        Q.shape[:-2] == K.shape[:-2] == V.shape[:-2],
        asked,
        shapes(Q=Q, K=K, V=V),
        "different leading axes (batch, heads); grouped key/value heads are not repeated by this rule",
        "K.repeat_interleave(h // h_kv, -3), or K.expand(…)",
    )
    require_lists(where, neighbours, K.shape[-2])
    require(
        neighbours.shape[0] == Q.shape[-2],
        f"{where} needs a list for every query: neighbours (n_q, m)",
        shapes(Q=Q, neighbours=neighbours),
        "lists of the keys' queries (the inverse index), or axes (heads, n) exchanged in Q",
        "neighbours[i] holds the keys of query i; Q is (..., h, n_q, d_k)",
    )


def require_inverse(where: str, inverse: Inverse, neighbours: Tensor, n_k: int) -> None:
    """Demand the inverse index of these lists: every edge once, under its own key.

    Raises:
        InputError: the index of another graph, or of an undirected one.
    """
    queries, positions = inverse
    listed = queries >= 0
    (n_q, m), count = neighbours.shape, int(listed.sum())
    edges = int((neighbours >= 0).sum())
    fits: Any = queries.dim() == 2 and queries.shape[0] == n_k and positions.shape == queries.shape
    if fits:
        places = torch.where(listed, queries * m + positions, -1).reshape(-1)
        inside = ((queries < n_q) & (positions < m) & ((positions >= 0) | ~listed)).all()
        found = neighbours.reshape(-1).index_select(0, places.clamp(0, n_q * m - 1)).reshape(queries.shape)
        own = torch.arange(n_k, device=queries.device)[:, None]
        seen = torch.zeros(n_q * m + 1, dtype=torch.bool, device=queries.device)
        seen.index_fill_(0, places.clamp(-1, n_q * m - 1) + 1, True)  # an edge named twice leaves another out
        fits = inside & ((found == own) | ~listed).all() & (count == edges) & (seen[1:].sum() == edges)
    require(
        fits,
        f"{where} needs the inverse index of its neighbours: every edge once, under its own key",
        f"{count} of {edges} edges, inverse {shape(queries)} for {n_k} keys",
        "the inverse index of another graph, or the shortcut of an undirected one",
        "inverse_index(neighbours, n_k), made again when the graph changes",
    )
