"""In a program: layouts, autocast, checkpoints, copies, threads, determinism, and gradients of some inputs only."""

from __future__ import annotations

import copy
import itertools
import threading

import pytest
import torch
from attention_cases import CASES, case, loss
from torch import nn
from torch.func import grad, jvp
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from gradderiv.functional import _fused, attention


def everything(x, function=None):
    """Outputs, gradients, double backward."""
    function = function or x.ours
    first = torch.autograd.grad(loss(function)(*x.inputs), x.inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.sin().sum() for g in first), x.inputs)
    return [t.detach() for t in (*function(*x.inputs), *first, *second)]


@pytest.mark.parametrize("name", CASES)
def test_the_same_inputs_give_the_same_bits_and_stay(name, several_tiles, one_seed):
    x = case(name)
    before = [t.detach().clone() for t in x.inputs]
    versions = [t._version for t in x.inputs]
    first, second = everything(x), everything(x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, x.inputs, strict=True))
    assert versions == [t._version for t in x.inputs]


def test_deterministic_algorithms_are_what_is_used():
    x = case("everything")
    torch.use_deterministic_algorithms(True)
    try:
        everything(x)
        everything(case("plain", d_v=4))
        with pytest.raises(RuntimeError, match="deterministic"):  # the twin: the mode is on
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", CASES)
def test_layouts_do_not_matter(name, several_tiles, one_seed):
    """The same numbers, transposed in memory, with gaps, and expanded."""
    x = case(name)
    gaps = [torch.stack([t, t + 1], -1)[..., 0].detach().requires_grad_() for t in x.inputs]
    turned = [t.mT.contiguous().mT.detach().requires_grad_() if t.dim() > 1 else t for t in x.inputs]
    assert not all(t.is_contiguous() for t in gaps)
    expected = everything(x)
    for inputs in (gaps, turned):
        other = x._replace(tensors=dict(zip(x.tensors, inputs, strict=True)))
        assert_close(everything(other), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_expanded_inputs_have_gradients_of_what_was_expanded(softcap):
    """Stride 0, and a whole head from one number."""
    one = [
        torch.randn(1, 1, 5, 4).double().requires_grad_(),
        torch.randn(2, 1, 1, 4).double().requires_grad_(),
    ]
    V = torch.randn(2, 3, 5, 4).double().requires_grad_()

    def gradients(function):
        Q, K = one[0].expand(2, 3, 5, 4), one[1].expand(2, 3, 5, 4)
        return torch.autograd.grad(function(Q, K, V).sin().sum(), (*one, V))

    odd = gradients(lambda *x: attention(*x, softcap=softcap))
    even = gradients(lambda *x: attention(*(t.contiguous() for t in x), softcap=softcap))
    assert_close(odd, even, rtol=0, atol=1e-14)


VARIABLES = ("Q", "K", "V", "bias", "sinks")


@pytest.mark.parametrize(
    "needed", [c for n in (1, 2, 4) for c in itertools.combinations(VARIABLES, n)], ids=str
)
def test_gradients_of_some_inputs_only(needed, several_tiles, one_seed):
    """In both orders, each as it is among all."""
    x = case("everything")
    for n, t in x.tensors.items():
        t.requires_grad_(n in needed)
    some = [t for n, t in x.tensors.items() if n in needed]

    def both(function):
        first = torch.autograd.grad(loss(function)(*x.inputs), some, create_graph=True)
        return (*first, *torch.autograd.grad(sum(g.sin().sum() for g in first), some, allow_unused=True))

    ours, theirs = both(x.ours), both(x.naive)
    assert_close(list(ours), list(theirs), rtol=1e-11, atol=1e-11)
    assert x.ours(*(t.detach() for t in x.inputs))[0].grad_fn is None


@pytest.mark.parametrize("fused", [True, False])
def test_only_what_is_asked_for_is_computed(fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(_fused, "plainest", lambda *x: False)
        monkeypatch.setattr(_fused, "fits", lambda call, x: False)
    Q, K, V = (torch.randn(2, 3, 4) for _ in range(3))
    node = attention(Q, K.requires_grad_(), V).grad_fn
    found = [g is not None for g in node.apply(torch.ones(2, 3, 4), *([None] * (not fused)))]
    assert found == [False, False, True, *[False] * (len(found) - 3)]
    assert attention(Q, K.detach(), V).grad_fn is None
    with torch.no_grad():
        assert attention(Q, K, V).grad_fn is None


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"bias": (5, 5)}], ids=["all", "causal", "bias"]
)
def test_where_the_kernel_returns_no_lse_it_is_asked_again(options, monkeypatch):
    """As on other devices than the CPU: every derivative is the same."""
    given = {n: torch.randn(5, 5).double() if n == "bias" else v for n, v in options.items()}
    x = tuple(torch.randn(2, 3, 5, 4).double() for _ in range(3))
    u = tuple(torch.randn_like(t) for t in x)

    def f(*y):
        return attention(*y, **given).sin().sum()

    def all_of():
        leaves = [t.clone().requires_grad_() for t in x]
        first = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), leaves)
        return (*first, *second, *jvp(f, x, u), *jvp(grad(f, (0, 1, 2)), x, u)[1], attention(*x, **given, return_lse=True)[1])  # fmt: skip

    expected = all_of()
    monkeypatch.setattr(_fused, "returns_lse", lambda Q: False)
    assert_close(all_of(), expected, rtol=0, atol=1e-12)


class Layer(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.W = nn.Parameter(torch.randn(3, 4, 4).double())
        self.bias = nn.Parameter(torch.randn(5, 5).double())
        self.options = options

    def forward(self, X):
        return attention(*(X @ W for W in self.W), bias=self.bias, **self.options)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_a_checkpoint_computes_the_same_again(dropout_p, use_reentrant):
    """The same weights fall: PyTorch puts its generator back. The twin does not."""
    layer, X = Layer(dropout_p=dropout_p), torch.randn(2, 5, 4).double().requires_grad_()

    def gradients(function, seed=3):
        torch.manual_seed(seed)
        return torch.autograd.grad(function(X).sin().sum(), (X,))

    parameters = list(layer.parameters())

    def by_backward(**options):
        for p in (X, *parameters):
            p.grad = None
        torch.manual_seed(3)
        checkpoint(layer, X, use_reentrant=use_reentrant, **options).sin().sum().backward()
        return [p.grad.clone() for p in (X, *parameters)]

    torch.manual_seed(3)
    expected = torch.autograd.grad(layer(X).sin().sum(), (X, *parameters))
    assert_close(by_backward(), list(expected), rtol=0, atol=1e-14)
    if dropout_p:
        assert not torch.allclose(by_backward(preserve_rng_state=False)[0], expected[0])


def test_a_module_that_uses_it_is_copied():
    layer, X = Layer(softcap=2.0), torch.randn(2, 5, 4).double()
    layer(X).sum().backward()
    other = copy.deepcopy(layer)
    assert torch.equal(other(X), layer(X))
    with torch.no_grad():
        layer.bias.add_(torch.eye(5))
    assert not torch.equal(other(X), layer(X))


def test_several_threads_at_once_say_the_same(several_tiles, one_seed):
    x = case("everything")
    expected, found = everything(x), [None] * 4

    def work(i):
        found[i] = everything(x)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_lowers_every_tensor_and_every_option(dtype):
    Q, K, V = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    bias, sinks = torch.randn(5, 5, requires_grad=True), torch.randn(3, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        O = attention(Q, K, V, bias=bias, sinks=sinks, softcap=2.0)
    assert O.dtype == dtype
    found = torch.autograd.grad(O.float().sin().sum(), (Q, K, V, bias, sinks))
    lower = [t.detach().to(dtype).requires_grad_() for t in (Q, K, V, bias, sinks)]
    same = attention(*lower[:3], bias=lower[3], sinks=lower[4], softcap=2.0)
    assert torch.equal(O, same)
    expected = torch.autograd.grad(same.float().sin().sum(), lower)
    assert all(g.dtype == torch.float32 for g in found)
    assert_close(found, tuple(g.float() for g in expected), rtol=0, atol=0)
    with torch.autocast("cpu", dtype=dtype, enabled=False):  # the twin
        assert attention(Q, K, V).dtype == torch.float32
