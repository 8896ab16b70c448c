"""Pyraformer #15: what its case says is computed, and is so."""

from __future__ import annotations

import re

import pytest
import torch

from gradderiv.casebook import pyraformer_15 as case
from gradderiv.casebook import tell
from gradderiv.rules.graph import is_symmetric
from gradderiv.rules.graphs import sliding_window, to_mask


@pytest.fixture(scope="module")
def text() -> str:
    return tell("pyraformer-15")


@pytest.fixture(scope="module")
def plain(text: str) -> str:
    return " ".join(text.split())


def test_it_is_told_in_79_columns_and_the_same_twice(text: str) -> None:
    assert tell("pyraformer-15") == text
    assert max(map(len, text.splitlines())) <= 79


def test_both_are_right_on_the_pyramid(text: str, plain: str) -> None:
    assert is_symmetric(case.graphs()["Pyraformer's pyramid"])
    assert "42 nodes, 200 edges) is undirected" in plain
    assert text.count("equal in every entry") == 2
    assert "different" not in text


def test_only_the_three_others_are_directed_and_suffer(text: str) -> None:
    for name, graph in case.graphs().items():
        s = case.suffered(graph)
        row = re.split(
            r"\s{2,}", next(line for line in text.splitlines() if line.strip().startswith(name)).strip()
        )
        assert row[1] == f"{s.one_way} of {s.edges}"
        assert (s.one_way == 0) == is_symmetric(graph) == (name == "Pyraformer's pyramid")
        assert s.O < 1e-14
        assert s.dQ == 0
        for error in (s.dK, s.dV):
            assert error < 1e-14 if is_symmetric(graph) else error > 0.1


def test_exactly_the_shortcut_spoils_dK_and_dV_of_a_directed_graph_and_the_inverse_nothing() -> None:
    graph = sliding_window(9, 2, 0)
    wrong = case.equal_exactly(graph, case.as_if_symmetric(graph))
    assert wrong == {"dQ": True, "dK": False, "dV": False}
    assert case.equal_exactly(graph, case.inverse_index(graph, 9)) == dict.fromkeys(("dQ", "dK", "dV"), True)


def test_the_pyramid_of_children_has_the_edges_that_do_not_go_up() -> None:
    pyramid, up = case.graphs()["Pyraformer's pyramid"], case.graphs()["the pyramid, children only"]
    n = len(pyramid)
    dropped = to_mask(pyramid, n) & ~to_mask(up, n)
    assert int(dropped.sum()) == case.N + case.N // 4  # one parent for each node below the top
    assert all(j >= case.N for _, j in dropped.nonzero().tolist())


def test_M_is_where_a_key_stands() -> None:
    graph = torch.tensor([[1, 2], [1, -1], [0, 1]])
    inverse = case.inverse_index(graph, 3)
    assert case.reporters_M(graph, inverse).tolist() == [[-1, 0, 1], [-1, 0, -1], [0, 1, -1]]
    assert case.positions_are_M(graph) == (5, True)


def test_twin_other_positions_are_not_M(monkeypatch: pytest.MonkeyPatch) -> None:
    right = case.reporters_M
    monkeypatch.setattr(case, "reporters_M", lambda *a: right(*a).flip(0))
    assert not case.positions_are_M(case.graphs()["5 random keys"])[1]


def test_what_get_k_q_looks_up_and_does_not_find(plain: str) -> None:
    window = case.graphs()["a causal window of 5"]
    assert case.lookups_that_find_nothing(window) == case.suffered(window).one_way
    assert case.lookups_that_find_nothing(case.graphs()["Pyraformer's pyramid"]) == 0
    with pytest.raises(RuntimeError):  # what it would assign
        torch.zeros(2)[0] = torch.empty(0)
    assert "finds nothing for 158 edges" in plain
    assert "(it was accepted)" not in plain
