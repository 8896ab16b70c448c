"""The builders: what they list, by another road; and the way back from a mask."""

from __future__ import annotations

import pytest
import torch

from gradderiv.errors import DtypeError, InputError
from gradderiv.rules.graph import is_symmetric
from gradderiv.rules.graphs import (
    block_sparse,
    dilated,
    from_lists,
    from_mask,
    multiplicity,
    packed,
    pyramid_sizes,
    pyramidal,
    random_graph,
    sliding_window,
    to_mask,
)


def sets(neighbours):
    return [{j for j in row if j >= 0} for row in neighbours.tolist()]


def paper(n, A, C, S):
    """Liu et al. 2022, eq. 2, node by node; left-over nodes go to the last parent."""
    sizes = [n]
    for _ in range(S - 1):
        sizes.append(sizes[-1] // C)
    node = [(s, i) for s, size in enumerate(sizes) for i in range(size)]
    number = {at: k for k, at in enumerate(node)}
    out = []
    for s, i in node:
        found = {(s, j) for j in range(sizes[s]) if abs(j - i) <= (A - 1) // 2}
        if s:
            found |= {(s - 1, j) for j in range(sizes[s - 1]) if min(j // C, sizes[s] - 1) == i}
        if s + 1 < S:
            found |= {(s + 1, min(i // C, sizes[s + 1] - 1))}
        out.append({number[at] for at in found})
    return out


@pytest.mark.parametrize(
    ("n", "A", "C", "S"),
    [(16, 3, 4, 3), (22, 3, 4, 3), (23, 5, 3, 3), (9, 1, 2, 4), (7, 3, 2, 1), (64, 3, 4, 4)],
)
def test_a_pyramid_is_that_of_the_paper(n, A, C, S):
    graph = pyramidal(n, window=A, children=C, levels=S)
    assert sets(graph) == paper(n, A, C, S)
    assert is_symmetric(graph)
    assert len(graph) == sum(pyramid_sizes(n, C, S))
    assert int(multiplicity(graph, len(graph)).max()) == 1


def test_windows():
    n = 7
    for left, right, gap in ((2, 2, 1), (3, 0, 1), (1, 2, 2), (0, 0, 3)):
        expected = [{i + t * gap for t in range(-left, right + 1) if 0 <= i + t * gap < n} for i in range(n)]
        assert sets(dilated(n, left, right, dilation=gap)) == expected
    assert torch.equal(sliding_window(n, 2), sliding_window(n, 2, 2))
    assert is_symmetric(sliding_window(n, 2))
    assert not is_symmetric(sliding_window(n, 2, 0))


def test_a_random_graph_has_distinct_keys_and_one_graph_for_a_seed():
    graph = random_graph(9, 6, 4, seed=3)
    assert all(len(s) == 4 for s in sets(graph))
    assert torch.equal(graph, random_graph(9, 6, 4, seed=3))
    assert not torch.equal(graph, random_graph(9, 6, 4, seed=4))
    assert int(graph.max()) < 6


def test_blocks():
    layout = torch.tensor([[True, False, True], [False, False, False]])
    graph = block_sparse(layout, 2)
    mask = layout.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(to_mask(graph, 6), mask)
    assert sets(graph) == sets(from_mask(mask))


def test_masks_and_lists_are_each_others_way_back():
    mask = torch.rand(6, 9, generator=torch.Generator().manual_seed(0)) > 0.6
    mask[2] = False
    lists = from_mask(mask)
    assert torch.equal(to_mask(lists, 9), mask)
    assert lists.shape[1] == int(mask.sum(1).max())
    assert torch.equal(from_mask(to_mask(lists, 9)), lists)
    assert from_mask(torch.zeros(2, 3, dtype=torch.bool)).tolist() == [[-1], [-1]]


def test_multiplicity_counts_and_a_mask_forgets():
    lists = from_lists([[2, 0, 2], [], [1, -1, 1]])
    assert lists.tolist() == [[2, 0, 2], [-1, -1, -1], [1, -1, 1]]
    assert multiplicity(lists, 3).tolist() == [[1, 0, 2], [0, 0, 0], [0, 2, 0]]
    assert to_mask(lists, 3).sum() == 3


def test_packing_keeps_the_order_of_what_is_there():
    assert packed(torch.tensor([[-1, 4, -1, 2], [-1, -1, 1, -1]])).tolist() == [[4, 2], [1, -1]]


REFUSED = {
    "a scale without nodes": (lambda: pyramidal(10, levels=4), "10, 2, 0, 0 nodes"),
    "an even window": (lambda: pyramidal(64, window=4), "window = 4"),
    "one child": (lambda: pyramidal(64, children=1), "more than one child"),
    "a sign": (lambda: sliding_window(5, -2, 0), "left = -2"),
    "more neighbours than keys": (lambda: random_graph(3, 4, 5), "degree = 5"),
    "blocks of nothing": (lambda: block_sparse(torch.ones(2, 2, dtype=torch.bool), 0), "block = 0"),
    "a mask for every head": (lambda: from_mask(torch.ones(2, 3, 3, dtype=torch.bool)), "one matrix"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_graph_is_refused(name):
    program, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        program()


def test_a_float_mask_is_refused():
    with pytest.raises(DtypeError, match="boolean mask"):
        from_mask(torch.zeros(2, 2))
