"""``functional.graph_attention``: equal to dense masked attention, differentiable like the other functions, proved as it ships, and small."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

from gradderiv import prove
from gradderiv.errors import DtypeError, InputError
from gradderiv.functional import _graph as module
from gradderiv.functional import _lists, graph_attention
from gradderiv.rules import graph as rules
from gradderiv.rules._graph import as_if_symmetric
from gradderiv.rules.graphs import from_lists, multiplicity, pyramidal, random_graph, sliding_window

LISTS = torch.tensor([[3, -1, 0, 6], [-1, -1, -1, -1], [5, 0, -1, 5], [2, 2, 2, 1], [-1, 6, 3, -1]])
INVERSE = rules.inverse_index(LISTS, 7)
EVERY = (0, 1, 2)


def dense(Q, K, V, neighbours=LISTS, scale=None):
    E = torch.exp(Q @ K.mT * (Q.shape[-1] ** -0.5 if scale is None else scale))
    E = E * multiplicity(neighbours, K.shape[-2]).to(Q.dtype)
    total = E.sum(-1, keepdim=True)
    return E / (total + (neighbours < 0).all(-1, keepdim=True)) @ V


def draw(n_q=5, n_k=7, d_k=3, d_v=2, batch=(), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (n_q, d_k), (n_k, d_k), (n_k, d_v)
    return tuple(torch.randn((*batch, *s), generator=generator, dtype=dtype).requires_grad_() for s in shapes)


def ours(inverse=None, scale=None):
    return lambda Q, K, V: graph_attention(Q, K, V, LISTS, inverse, scale)


@pytest.mark.parametrize("inverse", [None, INVERSE], ids=["sorted", "given"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_value_and_gradients_are_those_of_dense_masked_attention(batch, inverse):
    x = draw(batch=batch)
    O, expected = ours(inverse, 0.7)(*x), dense(*x, scale=0.7)
    dO = torch.randn_like(O)
    assert_close(O, expected, rtol=1e-13, atol=1e-14)
    assert_close(torch.autograd.grad(O, x, dO), torch.autograd.grad(expected, x, dO), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("gathered", [1, 40, 2**18])
def test_how_much_is_gathered_at_a_time_changes_nothing(gathered, monkeypatch):
    x = draw(batch=(2, 3))
    before = torch.autograd.grad(ours()(*x).sin().sum(), x)
    monkeypatch.setattr(_lists, "GATHERED", gathered)
    assert_close(torch.autograd.grad(ours()(*x).sin().sum(), x), before, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types(dtype):
    """As near to float64 as the dense form in that type is, times a few."""
    x, wide = (
        draw(batch=(2,), dtype=dtype),
        tuple(t.detach().double().requires_grad_() for t in draw(batch=(2,), dtype=dtype)),
    )
    dO = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = torch.autograd.grad(dense(*wide), wide, dO.double())
    for found, plain, e in zip(
        torch.autograd.grad(ours()(*x), x, dO), torch.autograd.grad(dense(*x), x, dO), exact, strict=True
    ):
        assert found.dtype == dtype
        assert (
            float((found.double() - e).abs().max())
            <= 4 * float((plain.double() - e).abs().max()) + torch.finfo(dtype).eps
        )


def test_the_same_bits_twice_whatever_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(_lists, "SMALL", 0)
    graph = pyramidal(256)
    x = draw(len(graph), len(graph), 16, 16, batch=(2,), dtype=torch.float32)
    first = torch.autograd.grad(graph_attention(*x, graph).sin().sum(), x)
    torch.set_num_threads(2)
    second = torch.autograd.grad(graph_attention(*x, graph).sin().sum(), x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_small_work_takes_one_thread_and_gives_the_others_back(monkeypatch):
    seen = []
    monkeypatch.setattr(
        _lists, "dots", lambda *a, f=_lists.dots: seen.append(torch.get_num_threads()) or f(*a)
    )
    torch.set_num_threads(2)
    for small in (2**23, 0):
        monkeypatch.setattr(_lists, "SMALL", small)
        x = draw()
        torch.autograd.grad(ours()(*x).sum(), x)
        assert torch.get_num_threads() == 2
    assert seen == [1, 1, 2, 2]


def test_a_hub_that_every_query_lists():
    graph = from_lists([[0, i] for i in range(1, 40)])
    x = draw(39, 40, batch=(2,))
    found = torch.autograd.grad(graph_attention(*x, graph).sin().sum(), x)
    assert_close(found, torch.autograd.grad(dense(*x, graph).sin().sum(), x))


def test_layouts_do_not_matter_and_nothing_is_written():
    x = draw(batch=(2, 3))
    moved = tuple(t.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_() for t in x)
    versions = [t._version for t in (*x, LISTS)]
    found = torch.autograd.grad(ours()(*moved).sin().sum(), moved)
    assert_close(found, torch.autograd.grad(ours()(*x).sin().sum(), x), rtol=1e-14, atol=1e-15)
    assert versions == [t._version for t in (*x, LISTS)]


# ---------------------------------------------------------------- every derivative


def test_gradcheck_to_second_order():
    assert gradcheck(ours(INVERSE), draw(), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(ours(), draw(), check_fwd_over_rev=True)


NESTINGS = {
    "reverse": lambda f, x: grad(f, EVERY)(*x),
    "forward": lambda f, x: jvp(f, x, x),
    "forward-over-reverse": lambda f, x: jvp(grad(f, EVERY), x, x),
    "reverse-over-forward": lambda f, x: grad(lambda *y: jvp(f, y, x)[1], EVERY)(*x),
    "reverse-over-reverse": lambda f, x: jacrev(jacrev(f, 2), EVERY)(*x),
    "forward-over-forward": lambda f, x: jacfwd(jacfwd(f, 2), EVERY)(*x),
    "hessian": lambda f, x: hessian(f, EVERY)(*x),
    "third order": lambda f, x: jacfwd(hessian(f, 1), 0)(*x),
    "per sample": lambda f, x: vmap(grad(f, EVERY), (0, 0, None))(*_two(x)),
    "hessian per sample": lambda f, x: vmap(hessian(f, EVERY), (0, 0, None))(*_two(x)),
}


def _two(x):
    return torch.stack([x[0], 2 * x[0]]), torch.stack([x[1], -x[1]]), x[2]


@pytest.mark.parametrize("name", NESTINGS)
def test_nesting(name):
    x = tuple(t.detach() for t in draw())
    f, reference = (lambda *y: ours()(*y).sin().sum()), (lambda *y: dense(*y).sin().sum())
    assert_close(NESTINGS[name](f, x), NESTINGS[name](reference, x), rtol=0, atol=1e-12)


def test_without_create_graph_a_tangent_passes_through_the_backward():
    """Dual inputs, and a backward that autograd does not record."""
    from torch.autograd import forward_ad

    x, u = tuple(t.detach() for t in draw()), tuple(t.detach() for t in draw(seed=1))

    def tangents(f):
        with forward_ad.dual_level():
            y = [forward_ad.make_dual(a, b).requires_grad_() for a, b in zip(x, u, strict=True)]
            return [forward_ad.unpack_dual(g).tangent for g in torch.autograd.grad(f(*y).sin().sum(), y)]

    assert_close(tangents(ours()), tangents(dense), rtol=1e-12, atol=1e-13)


def test_the_closed_forms_of_the_lists_are_what_runs_backwards(monkeypatch):
    called = []
    monkeypatch.setattr(
        module,
        "_graph",
        replace(module._graph, vjp=lambda dO, s: called.append(s) or module.gradients(dO, s)),
    )
    x = draw()
    O = ours()(*x)
    torch.autograd.grad(O, x, torch.ones_like(O))
    assert len(called) == 1
    assert called[0].P.shape == LISTS.shape


# ---------------------------------------------------------------- proved, and refuted


def test_the_function_that_ships_is_proved_to_second_order():
    proof = prove(
        ours(), draw(batch=(2,)), reference=dense, names=("Q", "K", "V"), order=2, forward_mode=True
    )
    assert proof.verdict == "proved"


@pytest.mark.parametrize(
    "graph",
    [random_graph(5, 7, 3), sliding_window(6, 2, 0), pyramidal(7, children=2, levels=3)],
    ids=["random", "causal", "pyramid"],
)
def test_directed_and_undirected_graphs_are_proved(graph):
    n_k = 7 if len(graph) == 5 else len(graph)
    inverse = rules.inverse_index(graph, n_k)
    x = draw(len(graph), n_k)
    assert (
        prove(
            lambda Q, K, V: graph_attention(Q, K, V, graph, inverse), x, reference=lambda *y: dense(*y, graph)
        ).verdict
        == "proved"
    )


def wrong_shortcut(dO, saved):
    queries, positions = as_if_symmetric(saved.neighbours)
    return module.gradients(dO, saved._replace(queries=queries, positions=positions))


def without_row_sum(dO, saved):
    right = module.gradients(dO, saved)
    plain = saved.plain(None)
    dS = plain.P * rules.dots(dO, rules.listed(plain.V, plain.neighbours))
    return right._replace(Q=plain.scale * rules.weighted(dS, rules.listed(plain.K, plain.neighbours)))


@pytest.mark.parametrize(("vjp", "argument"), [(wrong_shortcut, {"K", "V"}), (without_row_sum, {"Q"})])
def test_twin_a_wrong_backward_is_refuted(vjp, argument, monkeypatch):
    monkeypatch.setattr(module, "_graph", replace(module._graph, vjp=vjp))
    graph = sliding_window(6, 2, 0)
    proof = prove(lambda Q, K, V: graph_attention(Q, K, V, graph), draw(6, 6), names=("Q", "K", "V"))
    assert proof.verdict == "refuted"
    assert {r.argument for r in proof.records if r.verdict in ("refuted", "fail")} == argument


# ---------------------------------------------------------------- memory and refusals


def test_nothing_of_the_size_of_a_matrix_is_allocated():
    """The largest tensor that an operation makes, forward and backward, on 1024 nodes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple) else (out,):
                self.most = max(self.most, t.numel() if isinstance(t, torch.Tensor) else 0)
            return out

    graph = sliding_window(1024, 2)
    x = draw(1024, 1024, 8, 8, dtype=torch.float32)
    with Largest() as ours_:
        torch.autograd.grad(graph_attention(*x, graph).sum(), x)
    with Largest() as theirs:
        torch.autograd.grad(dense(*x, graph).sum(), x)
    assert theirs.most >= 1024**2
    assert ours_.most <= 1024 * 5 * 8


def test_it_refuses_what_it_cannot_use():
    x = draw()
    with pytest.raises(DtypeError, match="scale as a number"):
        graph_attention(*x, LISTS, scale=torch.tensor(0.5))
    with pytest.raises(InputError, match="every edge once"):
        graph_attention(*x, LISTS, rules.inverse_index(LISTS.flip(0), 7))
    with pytest.raises(InputError, match="neighbours from"):
        graph_attention(*x, LISTS + 3)
    with pytest.raises(DtypeError, match="one dtype"):
        graph_attention(x[0].float(), *x[1:], LISTS)


def test_autocast_computes_in_its_type():
    x = tuple(t.detach().float().requires_grad_() for t in draw())
    with torch.autocast("cpu", torch.bfloat16):
        assert graph_attention(*x, LISTS, INVERSE).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("inverse", [None, INVERSE], ids=["sorted", "inverse"])
def test_compiles_without_a_break(inverse):
    x = draw()

    def loss(*x):
        return graph_attention(*x, LISTS, inverse).sin().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_close(grad_of(compiled, x), grad_of(loss, x), rtol=0, atol=1e-15)
    # the twin: of another graph
    assert not torch.equal(
        grad_of(compiled, x)[0], grad_of(lambda *x: graph_attention(*x, LISTS.flip(0)).sin().sum(), x)[0]
    )


def grad_of(loss, x):
    return torch.autograd.grad(loss(*x), x)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_operators_are_as_pytorch_wants_them():
    x = draw()
    for given in ((None, None), INVERSE):
        torch.library.opcheck(torch.ops.gradderiv.graph_attention.default, (*x, LISTS, *given, 0.5))
