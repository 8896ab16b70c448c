"""Graphs as neighbour lists: who attends to whom, in (n_q, m) integers, −1 = nothing.

    pyramidal                     Liu et al. 2022, §3.1: a tree of coarser scales over a sequence, and a window in every scale
    sliding_window, dilated       Child et al. 2019; Beltagy et al. 2020
    block_sparse, random_graph    Zaheer et al. 2020
    from_mask, to_mask            the lists of a dense mask, and back

A list is packed: what is there stands first, and no list is longer than it has to be. Attention does not ask for that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradderiv.errors import DtypeError, message
from gradderiv.rules._graph import require_lists
from gradderiv.rules._inputs import kind, require, shape


def pyramid_sizes(n: int, children: int, levels: int) -> list[int]:
    """[n, ⌊n/C⌋, ⌊⌊n/C⌋/C⌋ …]: the nodes of each scale, the finest first"""
    sizes = [n]
    while len(sizes) < levels:
        sizes.append(sizes[-1] // children)
    require(
        min(n, children - 1, levels) >= 1 and sizes[-1] >= 1,
        "a pyramid needs a node in every scale, and more than one child for a node",
        f"n = {n}, {children} children, {levels} levels: scales of {', '.join(map(str, sizes))} nodes",
        "more levels than the sequence is long",
        "fewer levels; n of at least children ** (levels - 1)",
    )
    return sizes


def pyramidal(n: int, *, window: int = 3, children: int = 4, levels: int = 4) -> Tensor:
    """N(i) = A(i) ∪ C(i) ∪ P(i): the window around a node in its scale, its children, its parent

    Liu et al. 2022, §3.1, eq. 2, with A = window, C = children and S = levels, 3, 4 and 4 in the code that they released. Undirected. The nodes stand scale after scale, the
    finest first: node 0 … n − 1 is the sequence. Where C does not divide a scale, its last nodes are children of the last parent, as in that code.

    Args:
        n: the length of the sequence.
        window: A, odd: a node, and (A − 1)/2 on either side of it.
        children: C, how many nodes of a scale one node of the next stands for: the stride.
        levels: S, how many scales there are.

    Returns:
        neighbours (n + n/C + …, m).

    Raises:
        InputError: a scale without nodes, an even window.
    """
    sizes = pyramid_sizes(n, children, levels)
    require(
        window >= 1 and window % 2 == 1,
        "a pyramid needs an odd window: a node and as many on either side",
        f"window = {window}",
        "how many on one side, or a window that begins at the node",
        "window=3 for a node and the two beside it",
    )
    starts = [sum(sizes[:s]) for s in range(levels)]
    columns = window + 2 * children  # the last parent may have up to 2 C − 1 children
    lists = torch.full((sum(sizes), columns), -1)
    for s, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        node = torch.arange(size)[:, None]
        beside = node + torch.arange(window) - window // 2
        rows = lists[start : start + size]
        rows[:, :window] = torch.where((beside >= 0) & (beside < size), beside + start, -1)
        if s:
            below = node * children + torch.arange(2 * children - 1)
            own = (below < sizes[s - 1]) & ((below < (node + 1) * children) | (node == size - 1))
            rows[:, window:-1] = torch.where(own, below + starts[s - 1], -1)
        if s + 1 < levels:
            rows[:, -1] = (node[:, 0] // children).clamp(max=sizes[s + 1] - 1) + starts[s + 1]
    return packed(lists)


def sliding_window(n: int, left: int, right: int | None = None) -> Tensor:
    """N(i) = {j: i − left ≤ j ≤ i + right}

    Child et al. 2019. right = left unless given; right = 0 is causal, a directed graph.
    """
    return dilated(n, left, right, dilation=1)


def dilated(n: int, left: int, right: int | None = None, *, dilation: int) -> Tensor:
    """N(i) = {i + t · dilation: −left ≤ t ≤ right}

    Beltagy et al. 2020, §3.1: a window with gaps.
    """
    right = left if right is None else right
    require(
        min(n - 1, left, right, dilation - 1) >= 0,
        "a window is a number of keys to the left and to the right of each of n queries",
        f"n = {n}, left = {left}, right = {right}, dilation = {dilation}",
        "an offset with a sign, or a gap of 0",
        "sliding_window(n, 3, 0) for a query's own key and three before it",
    )
    keys = torch.arange(n)[:, None] + dilation * torch.arange(-left, right + 1)
    return packed(torch.where((keys >= 0) & (keys < n), keys, -1))


def random_graph(n_q: int, n_k: int, degree: int, *, seed: int = 0) -> Tensor:
    """N(i): ``degree`` different keys, drawn for every query by itself

    Zaheer et al. 2020, §2: the random part of BigBird. Directed.
    """
    require(
        n_q >= 1 and 1 <= degree <= n_k,
        "a random graph needs 1 … n_k keys for every query",
        f"n_q = {n_q}, n_k = {n_k}, degree = {degree}",
        "more neighbours than there are keys",
        "degree=n_k for all of them",
    )
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(n_k, generator=generator)[:degree] for _ in range(n_q)])


def block_sparse(layout: Tensor, block: int) -> Tensor:
    """N(i) = {j: layout[⌊i/b⌋, ⌊j/b⌋]}

    Child et al. 2019; Zaheer et al. 2020, app. D: a query of a block attends to the blocks of keys that its row of ``layout`` allows.
    """
    blocks = from_mask(layout)
    require(
        block >= 1,
        "block_sparse needs blocks of at least one token",
        f"block = {block}",
        "the number of blocks in place of their size",
        "n // layout.shape[0]",
    )
    inside = block * blocks[:, :, None] + torch.arange(block, device=blocks.device)  # (blocks, m, b)
    keys = torch.where(blocks[:, :, None] < 0, -1, inside).flatten(1)
    return keys.repeat_interleave(block, 0)


def from_lists(lists: Sequence[Sequence[int]]) -> Tensor:
    """N(i) = lists[i], padded to the longest"""
    width = max([1, *map(len, lists)])
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in lists], dtype=torch.int64)


def from_mask(mask: Tensor) -> Tensor:
    """N(i) = {j: M_ij}, in order; as wide as the row that allows most

    Raises:
        DtypeError: a mask that is not boolean.
        InputError: a mask that is no matrix.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise DtypeError(
            message(
                "from_mask needs a boolean mask, True = may attend",
                kind(mask),
                "an additive mask of 0 and -inf, or one of 0 and 1",
                "mask == 0 for an additive one, mask.bool() for one of 0 and 1",
            )
        )
    require(
        mask.dim() == 2 and mask.numel() > 0,
        "from_mask needs one matrix (n_q, n_k)",
        f"mask {shape(mask)}",
        "a mask for every head or sequence",
        "one graph for each: neighbour lists are shared by heads and batch",
    )
    n_q, n_k = mask.shape
    keys = torch.arange(n_k, device=mask.device).expand(n_q, n_k)
    return packed(torch.where(mask, keys, -1))


def to_mask(neighbours: Tensor, n_k: int) -> Tensor:
    """M_ij = 1 where j ∈ N(i), boolean (n_q, n_k); how often is forgotten: see :func:`multiplicity`"""
    return multiplicity(neighbours, n_k) > 0


def multiplicity(neighbours: Tensor, n_k: int) -> Tensor:
    """c_ij = |{p: N(i, p) = j}|, (n_q, n_k)

    Attention on the lists is dense attention with the bias log c, −∞ where c = 0: exp(S + log c) = c exp S.
    """
    require_lists("multiplicity", neighbours, n_k)
    n_q = neighbours.shape[0]
    counts = torch.zeros(n_q, n_k + 1, dtype=torch.int64, device=neighbours.device)
    lists = neighbours.long()
    return counts.scatter_add(1, lists + 1, torch.ones_like(lists))[:, 1:]


def packed(lists: Tensor) -> Tensor:
    """The same lists, what is there first and in its order, and no column of −1 alone but the first."""
    order = (lists < 0).to(torch.int8).argsort(dim=1, stable=True)
    width = max(int((lists >= 0).sum(1).max()), 1)
    return lists.gather(1, order[:, :width])
