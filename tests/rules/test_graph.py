"""Attention on neighbour lists is dense masked attention, exactly: value, gradients, tangents and second order; and what is wrong is seen to be."""

from __future__ import annotations

import pytest
import torch

from gradderiv.checks.exact import exactly
from gradderiv.errors import DtypeError, InputError
from gradderiv.numbers.dual import Dual
from gradderiv.rules.graph import (
    GRAPH,
    Inverse,
    first_one_way,
    graph_attention,
    graph_attention_jvp,
    graph_attention_vjp,
    graph_attention_vjp_jvp,
    inverse_index,
    is_symmetric,
    symmetric_shortcut,
)
from gradderiv.rules.graphs import multiplicity, pyramidal, random_graph, sliding_window

IRREGULAR = torch.tensor([[3, -1, 0, 6], [-1, -1, -1, -1], [5, 0, -1, 5], [2, 2, 2, 1], [-1, 6, 3, -1]])
#: lists and how many keys there are
GRAPHS = {
    "directed": (random_graph(6, 5, 3, seed=1), 5),
    "padding, an empty list, duplicates, a key that nobody lists": (IRREGULAR, 7),
    "a pyramid": (pyramidal(7, children=2, levels=3), 11),
    "causal": (sliding_window(6, 2, 0), 6),
    "all lists empty": (torch.full((3, 2), -1), 4),
    "int32": (random_graph(4, 5, 2).int(), 5),
}
NAMES = ("Q", "K", "V")


def dense(Q, K, V, neighbours, scale=None):
    """P_ij = c_ij exp S_ij / Σ_k c_ik exp S_ik, in plain torch; shares no line with the rule."""
    counts = torch.stack([torch.stack([(row == j).sum() for j in range(K.shape[-2])]) for row in neighbours])
    E = torch.exp(
        torch.einsum("...ia,...ja->...ij", Q, K) * (Q.shape[-1] ** -0.5 if scale is None else scale)
    )
    E = E * counts.double()
    empty = (counts.sum(-1, keepdim=True) == 0).double()
    return torch.einsum("...ij,...jb->...ib", E / (E.sum(-1, keepdim=True) + empty), V)


def draw(make, neighbours, n_k, batch=(2, 3), d_k=4, d_v=3):
    n_q = len(neighbours)
    QKV = [make(*batch, n, d) for n, d in ((n_q, d_k), (n_k, d_k), (n_k, d_v))]
    return QKV, make(*batch, n_q, d_v)


def normal(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def unequal(neighbours, n_k, change=lambda saved: saved, vjp=graph_attention_vjp):
    """The names of the values and gradients that differ from autograd of the dense form, over the field."""

    def run(field):
        QKV, dO = draw(field.random, neighbours, n_k, batch=(2,))
        leaves = [x.requires_grad_() for x in QKV]
        expected = dense(*leaves, neighbours)
        gradients = torch.autograd.grad(expected, leaves, dO, materialize_grads=True)
        O, saved = graph_attention(*(x.detach() for x in leaves), neighbours=neighbours)
        found = vjp(dO, change(saved))
        return {"O": (O, expected.detach())} | dict(
            zip(NAMES, zip(found, gradients, strict=True), strict=True)
        )

    return {name for name, outcome in exactly(run).items() if not outcome.equal}


@pytest.mark.parametrize("name", GRAPHS)
def test_value_and_gradients_are_those_of_dense_masked_attention_exactly(name):
    assert unequal(*GRAPHS[name]) == set()


@pytest.mark.parametrize("name", GRAPHS)
def test_tangents_and_second_order_are_those_of_dense_masked_attention_exactly(name):
    neighbours, n_k = GRAPHS[name]

    def run(field):
        x, dO = draw(field.random, neighbours, n_k, batch=(2,))
        u, dO_dot = draw(field.random, neighbours, n_k, batch=(2,))
        dual = Dual()
        theta = [dual.make(a, b).requires_grad_() for a, b in zip(x, u, strict=True)]
        O = dense(*theta, neighbours)
        g = torch.autograd.grad(O, theta, dual.make(dO, dO_dot), materialize_grads=True)
        _, saved = graph_attention(*x, neighbours=neighbours)
        second = graph_attention_vjp_jvp(dO, saved, dO_dot, *u)
        pairs = {n: (a, b.tangent) for n, a, b in zip(NAMES, second, g, strict=True)}
        return {"jvp": (graph_attention_jvp(saved, *u), O.detach().tangent)} | pairs

    assert all(outcome.equal for outcome in exactly(run).values())


@pytest.mark.parametrize("name", GRAPHS)
def test_the_cotangent_is_the_adjoint_of_the_tangent(name):
    neighbours, n_k = GRAPHS[name]

    def run(field):
        x, dO = draw(field.random, neighbours, n_k)
        u, _ = draw(field.random, neighbours, n_k)
        _, saved = graph_attention(*x, neighbours=neighbours)
        g = graph_attention_vjp(dO, saved)
        there = sum((a * b).sum() for a, b in zip(g, u, strict=True))
        return {"⟨dO, Ȯ⟩": (there, (dO * graph_attention_jvp(saved, *u)).sum())}

    assert all(outcome.equal for outcome in exactly(run).values())


def test_log_multiplicity_is_the_dense_bias_that_makes_duplicates_equal():
    (Q, K, V), _ = draw(normal(), IRREGULAR, 7)
    bias = multiplicity(IRREGULAR, 7).double().log()
    O, _ = graph_attention(Q, K, V, neighbours=IRREGULAR)
    expected = torch.nn.functional.scaled_dot_product_attention(Q, K, V, attn_mask=bias)
    torch.testing.assert_close(O, expected, rtol=1e-13, atol=1e-14)
    once = torch.nn.functional.scaled_dot_product_attention(Q, K, V, attn_mask=bias > -torch.inf)
    assert not torch.allclose(O, once)


def test_an_empty_list_gives_zeros_and_a_key_that_nobody_lists_has_no_gradient():
    QKV, dO = draw(normal(), IRREGULAR, 7)
    O, saved = graph_attention(*QKV, neighbours=IRREGULAR)
    g = graph_attention_vjp(dO, saved)
    assert not O[..., 1, :].any()
    assert not g.Q[..., 1, :].any()
    assert not g.K[..., 4, :].any()
    assert not g.V[..., 4, :].any()
    assert bool((g.K[..., 0, :] != 0).all())


def test_the_order_of_a_list_and_where_its_padding_stands_change_nothing():
    QKV, dO = draw(normal(), IRREGULAR, 7)
    O, saved = graph_attention(*QKV, neighbours=IRREGULAR)
    generator = torch.Generator().manual_seed(3)
    wide = torch.cat([IRREGULAR, torch.full((5, 2), -1)], 1)
    moved = torch.stack([row[torch.randperm(6, generator=generator)] for row in wide])
    assert not torch.equal(moved, wide)
    O_moved, saved_moved = graph_attention(*QKV, neighbours=moved)
    torch.testing.assert_close(O_moved, O)
    torch.testing.assert_close(graph_attention_vjp(dO, saved_moved), graph_attention_vjp(dO, saved))


def test_renaming_the_keys_renames_their_gradients():
    (Q, K, V), dO = draw(normal(), IRREGULAR, 7)
    _, saved = graph_attention(Q, K, V, neighbours=IRREGULAR)
    g = graph_attention_vjp(dO, saved)
    names = torch.tensor([3, 0, 6, 1, 5, 2, 4])  # key j is called names[j]
    renamed = torch.where(IRREGULAR < 0, -1, names[IRREGULAR.clamp(min=0)])
    K_, V_ = (torch.empty_like(x).index_copy(-2, names, x) for x in (K, V))
    _, saved = graph_attention(Q, K_, V_, neighbours=renamed)
    found = graph_attention_vjp(dO, saved)
    torch.testing.assert_close(found.Q, g.Q)
    torch.testing.assert_close(found.K[..., names, :], g.K)
    torch.testing.assert_close(found.V[..., names, :], g.V)


# ---------------------------------------------------------------- the inverse index


@pytest.mark.parametrize("name", GRAPHS)
def test_the_inverse_index_names_every_edge_once_and_under_its_key(name):
    neighbours, n_k = GRAPHS[name]
    queries, positions = inverse_index(neighbours, n_k)
    found = [
        (int(i), int(p), j)
        for j in range(n_k)
        for i, p in zip(queries[j], positions[j], strict=True)
        if i >= 0
    ]
    edges = [(i, p, int(j)) for i, row in enumerate(neighbours) for p, j in enumerate(row) if j >= 0]
    assert sorted(found) == sorted(edges)
    assert torch.equal(queries < 0, positions < 0)


def test_the_positions_are_the_index_matrix_of_the_issue():
    """M[k_q[i, j], i] = where(q_k[k_q[i, j]] == i)"""
    neighbours = random_graph(8, 8, 3)
    k_q, positions = inverse_index(neighbours, 8)
    for i, row in enumerate(k_q.tolist()):
        for j, query in enumerate(row):
            if query >= 0:
                assert torch.equal(torch.where(neighbours[query] == i)[0], positions[i, j : j + 1])


def test_on_undirected_graphs_the_shortcut_is_the_inverse_index():
    for graph in (pyramidal(16, levels=3), sliding_window(9, 2), torch.tensor([[1, 1, 0], [0, -1, 0]])):
        assert is_symmetric(graph)
        assert first_one_way(graph) is None
        pairs = [
            [sorted(zip(q.tolist(), p.tolist(), strict=True)) for q, p in zip(*index, strict=True)]
            for index in (symmetric_shortcut(graph), inverse_index(graph, len(graph)))
        ]
        short, full = ([[e for e in row if e[0] >= 0] for row in rows] for rows in pairs)
        assert short == full


def test_the_shortcut_gives_the_gradients_of_an_undirected_graph_exactly():
    graph = pyramidal(7, children=2, levels=3)
    assert unequal(graph, len(graph), lambda s: s._replace(inverse=symmetric_shortcut(graph))) == set()


@pytest.mark.parametrize(
    ("graph", "edge"),
    [
        (sliding_window(5, 1, 0), (1, 0)),
        (torch.tensor([[1, 1], [0, -1]]), (0, 1)),  # listed twice, answered once
        (torch.tensor([[-1, -1], [1, 0]]), (1, 0)),
    ],
)
def test_a_directed_graph_is_refused_and_its_first_edge_named(graph, edge):
    assert not is_symmetric(graph)
    assert first_one_way(graph) == edge
    with pytest.raises(InputError, match=f"first from query {edge[0]} to key {edge[1]}"):
        symmetric_shortcut(graph)


def test_the_refusal_word_for_word():
    with pytest.raises(InputError) as caught:
        symmetric_shortcut(sliding_window(5, 1, 0))
    assert str(caught.value) == (
        "symmetric_shortcut needs an undirected graph: query i lists key j as often as query j lists key i\n"
        "  came:  4 of 9 edges without a counterpart, the first from query 1 to key 0\n"
        "  cause: a directed graph: of the 9 terms of dK and of dV the shortcut would lose 4, without an error\n"
        "  do:    inverse_index(neighbours, n_k), which is right for every graph"
    )


# ---------------------------------------------------------------- wrong on purpose


def test_twin_the_shortcut_on_a_directed_graph_spoils_dK_and_dV_alone():
    from gradderiv.rules._graph import as_if_symmetric

    graph = sliding_window(6, 2, 0)
    assert unequal(graph, 6, lambda s: s._replace(inverse=as_if_symmetric(graph))) == {"K", "V"}


def test_twin_the_keys_of_a_query_taken_for_the_queries_of_a_key():
    """Places kept as they stand: jlidw's reading of Pyraformer's line."""
    graph, n_k = GRAPHS["directed"][0][:5], 5
    places = torch.arange(graph.shape[1]).expand_as(graph)
    assert unequal(graph, n_k, lambda s: s._replace(inverse=Inverse(graph, places))) == {"K", "V"}


def test_twin_padding_0_for_minus_infinity():
    """Pyraformer #5: what nobody listed takes part with a score of 0."""

    def run(field):
        (Q, K, V), _ = draw(field.random, IRREGULAR, 7, batch=())
        S = (K[IRREGULAR.clamp(min=0)] @ Q.unsqueeze(-1)).squeeze(-1).masked_fill(IRREGULAR < 0, 0.0) / 2
        P = torch.softmax(S, -1).masked_fill(IRREGULAR < 0, 0.0)
        O = (P.unsqueeze(-2) @ V[IRREGULAR.clamp(min=0)]).squeeze(-2)
        return {"O": (O[2:4], dense(Q, K, V, IRREGULAR)[2:4])}

    ((_, outcome),) = exactly(run).items()
    assert not outcome.equal
    assert outcome.wrong[..., 0, :].all()  # a list with padding
    assert not outcome.wrong[..., 1, :].any()  # one without


@pytest.mark.parametrize("times", [1, 2])
def test_twin_a_duplicate_counted_once_or_twice_too_often_in_the_backward(times):
    """cudnn-frontend #384: forward is right, dK and dV are not."""
    inverse = inverse_index(IRREGULAR, 7)

    def spoilt(saved):
        q, p = inverse
        if times == 2:  # every edge of a pair collects both
            q, p = torch.cat([q, q[:, :1]], 1), torch.cat([p, p[:, :1]], 1)
        else:
            again = (q[:, 1:] == q[:, :-1]) & (q[:, 1:] >= 0)
            q = torch.cat([q[:, :1], q[:, 1:].masked_fill(again, -1)], 1)
        return saved._replace(inverse=Inverse(q, p))

    assert unequal(IRREGULAR, 7, spoilt) == {"K", "V"}


def test_twin_a_dropped_row_sum():
    def vjp(dO, saved):
        right = graph_attention_vjp(dO, saved)
        still = saved._replace(P=saved.P + saved.P)  # 2P ∘ (dP − 2δ) is no multiple of dS
        return right._replace(Q=graph_attention_vjp(dO, still).Q)

    assert unequal(*GRAPHS["directed"], vjp=vjp) == {"Q"}


# ---------------------------------------------------------------- refusals

Q, K, V = normal()(2, 5, 4), normal()(2, 7, 4), normal()(2, 7, 3)
BAD = {
    "floats": (IRREGULAR.double(), {}, DtypeError, "neighbours as a tensor of int64"),
    "a mask": (IRREGULAR >= 0, {}, DtypeError, "from_mask"),
    "a list": (IRREGULAR.tolist(), {}, DtypeError, "padded with -1"),
    "a key that is not there": (IRREGULAR + 1, {}, InputError, "neighbours from 0 to 7"),
    "another padding": (IRREGULAR.masked_fill(IRREGULAR < 0, -100), {}, InputError, "from -100 to 6"),
    "lists for other queries": (IRREGULAR[:4], {}, InputError, "a list for every query"),
    "a graph for every head": (IRREGULAR[None], {}, InputError, "a list for every query, of at least one place"),
    "no place": (IRREGULAR[:, :0], {}, InputError, "of at least one place"),
    "another graph's inverse": (IRREGULAR, {"inverse": inverse_index(IRREGULAR.flip(0), 7)}, InputError, "every edge once"),
    "an inverse of more keys": (IRREGULAR, {"inverse": inverse_index(IRREGULAR, 8)}, InputError, "for 7 keys"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_lists_are_refused(name):
    neighbours, options, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        graph_attention(Q, K, V, neighbours=neighbours, **options)


def test_an_inverse_that_names_an_edge_twice_is_refused():
    q, p = inverse_index(IRREGULAR, 7)
    q, p = q.clone(), p.clone()
    row = int((q >= 0).sum(1).argmax())
    q[row, 1], p[row, 1] = q[row, 0], p[row, 0]
    with pytest.raises(InputError, match="every edge once"):
        graph_attention(Q, K, V, neighbours=IRREGULAR, inverse=Inverse(q, p))


def test_twin_the_right_inverse_is_taken():
    O, saved = graph_attention(Q, K, V, neighbours=IRREGULAR)
    again, kept = graph_attention(Q, K, V, neighbours=IRREGULAR, inverse=saved.inverse)
    assert torch.equal(O, again)
    assert kept.inverse is saved.inverse
    assert GRAPH.f is graph_attention
