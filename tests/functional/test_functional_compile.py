"""``torch.compile`` without a break, and the two operators that it sees."""

from __future__ import annotations

import pytest
import torch
from attention_cases import CASES, case, loss
from torch.testing import assert_close

from gradderiv.functional import _attention, _op, attention
from gradderiv.functional._tiles import Call

pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

SLOW = {"scale", "mask", "bias", "key-bias", "causal-mask", "window-causal", "softcap-bias", "one-sink", "lse", "weights", "bias-inf", "mask-bias", "softcap", "causal", "sinks"}  # fmt: skip


def compiled(function):
    torch.compiler.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES if n != "mask-object"],
)
def test_each_option_compiles_without_a_break(name, one_seed):
    """Value and gradients; the twin is another case."""
    x = case(name)
    expected = torch.autograd.grad(loss(x.ours)(*x.inputs), x.inputs)
    found = torch.autograd.grad(compiled(loss(x.ours))(*x.inputs), x.inputs)
    assert_close(found, expected, rtol=0, atol=1e-13)
    assert not torch.allclose(found[0], 2 * expected[0])


@pytest.mark.parametrize("is_causal", [False, True])
def test_where_the_kernel_fits_it_is_pytorchs_function_that_is_compiled(is_causal):
    """d_k = d_v: no operator of ours stands in the graph, and inference needs none either."""
    inputs = tuple(torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    seen = []

    def backend(graph, example):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compiler.reset()
    O = torch.compile(attention, backend=backend, fullgraph=True)(*inputs, is_causal=is_causal)
    assert_close(O, attention(*inputs, is_causal=is_causal), rtol=0, atol=1e-14)
    assert any("scaled_dot_product_attention" in target for target in seen)
    assert not any("gradderiv" in target for target in seen)
    seen.clear()
    torch.compile(attention, backend=backend, fullgraph=True)(*inputs, softcap=1.0)
    assert any("gradderiv" in target for target in seen)


def test_dropout_in_a_compiled_function_is_drawn_anew_in_each_call():
    Q, K, V = (torch.randn(2, 2, 5, 4) for _ in range(3))
    function = compiled(lambda *x: attention(*x, dropout_p=0.5))
    assert not torch.equal(function(Q, K, V), function(Q, K, V))


def test_second_order_under_the_compiler_is_refused():
    """Not wrong without a word."""
    x = tuple(torch.randn(2, 3, 4, requires_grad=True) for _ in range(3))
    O = compiled(lambda *y: attention(*y, softcap=1.0).sin().sum())(*x)
    first = torch.autograd.grad(O, x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(sum(g.sum() for g in first), x)


def test_the_compiler_refuses_forward_mode(monkeypatch):
    """The twin of the above: a Function that defines ``jvp``. When it fails, ``_op`` may go."""
    monkeypatch.setattr(_op, "attention", lambda call, x: _attention.Value.apply(_attention.Told(call), *x))
    function = compiled(lambda *x: attention(*x, softcap=1.0).sum())
    with pytest.raises(torch._dynamo.exc.Unsupported, match="jvp"):
        function(*(torch.randn(2, 3, 4, requires_grad=True) for _ in range(3)))


SETS = {
    "kernel": (Call(0.5, fused=True), ()),
    "kernel, bias": (Call(0.5, fused=True), ("bias", "mask")),
    "causal, lse": (Call(0.5, high=0, lse=True, fused=True), ()),
    "bias": (Call(0.5), ("bias",)),
    "softcap, window": (Call(0.5, softcap=1.5, low=-2, high=1), ()),
    "sinks, mask": (Call(0.5, lse=True), ("sinks", "mask")),
    "dropout, weights": (Call(0.5, dropout_p=0.3, weights=True), ("seeds",)),
    "all": (Call(0.5, 1.5, 0.3, -2, 1, True, True), ("bias", "sinks", "mask", "seeds")),
}


def arguments(name):
    call, given = SETS[name]
    shapes = {"Q": (2, 2, 3, 4), "K": (2, 2, 5, 4), "V": (2, 2, 5, 4), "bias": (2, 3, 5), "sinks": (2, 1, 1)}
    x = {n: torch.randn(s, dtype=torch.float64, requires_grad=True) for n, s in shapes.items()}
    x |= {"mask": torch.rand(3, 5) > 0.3, "seeds": torch.randint(0, 99, (2, 2, 1, 1))}
    return [t if n in ("Q", "K", "V", *given) else None for n, t in x.items()], call


@pytest.mark.parametrize("name", SETS)
def test_the_forward_operator_is_as_pytorch_demands(name):
    x, call = arguments(name)
    found = torch.library.opcheck(torch.ops.gradderiv.attention.default, (*x, *call))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", SETS)
def test_the_backward_operator_is_as_pytorch_demands(name):
    x, call = arguments(name)
    x = [None if t is None else t.detach() for t in x]
    O, lse, W = torch.ops.gradderiv.attention(*x, *call)
    needs = [t is not None for t in x[:5]]
    d = (torch.randn_like(O), torch.randn_like(lse) if call.lse else None, torch.randn_like(W) if call.weights else None)  # fmt: skip
    found = torch.library.opcheck(
        torch.ops.gradderiv.attention_backward.default, (*d, O, lse, needs, *x, *call)
    )
    assert set(found.values()) == {"SUCCESS"}


def test_opcheck_sees_an_operator_that_returns_its_input():
    """The twin."""
    with torch.library._scoped_library("gradderiv_tests", "FRAGMENT") as library:
        library.define("same(Tensor x) -> Tensor")
        library.impl("same", lambda x: x, "CompositeExplicitAutograd")
        with pytest.raises(Exception, match=r"alias|View operators|input"):
            torch.library.opcheck(torch.ops.gradderiv_tests.same.default, (torch.randn(3),))
