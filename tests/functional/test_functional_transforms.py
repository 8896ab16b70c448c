"""``torch.func`` over ``functional.attention``, in every nesting, against the naive formula."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from attention_cases import CASES, case, loss
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

from gradderiv.functional import _differentiable, attention

EVERY = (0, 1, 2, 3)
"""Q, K, V and bias, all at once."""

NESTINGS = {
    "reverse": lambda f, x: grad(f, EVERY)(*x),
    "forward": lambda f, x: jvp(f, x, x),
    "forward-over-reverse": lambda f, x: jvp(grad(f, EVERY), x, x),
    "reverse-over-forward": lambda f, x: grad(lambda *y: jvp(f, y, x)[1], EVERY)(*x),
    "reverse-over-reverse": lambda f, x: jacrev(jacrev(f, 2), EVERY)(*x),
    "forward-over-forward": lambda f, x: jacfwd(jacfwd(f, 2), EVERY)(*x),
    "hessian": lambda f, x: hessian(f, EVERY)(*x),
    "per sample": lambda f, x: vmap(grad(f, EVERY), (0, 0, 0, None))(*x),
    "hessian per sample": lambda f, x: vmap(hessian(f, EVERY), (0, 0, 0, None))(*x),
    "jvp of jvp of gradient": lambda f, x: jvp(lambda *y: jvp(grad(f, EVERY), y, x), x, x),
    "gradient of jvp of jvp": lambda f, x: grad(lambda *y: jvp(lambda *z: jvp(f, z, x)[1], y, x)[1], EVERY)(
        *x
    ),
    "third order": lambda f, x: jacfwd(hessian(f, 3), 0)(*x),
}


def losses(tensors, reference):
    """The inputs, and one scalar function of them by the rules and by the naive formula."""
    *inputs, mask = tensors
    ours = lambda Q, K, V, b: attention(Q, K, V, b.masked_fill(~mask, -torch.inf)).sin().sum()  # noqa: E731
    theirs = lambda Q, K, V, b: reference(Q, K, V, bias=b, mask=mask).sin().sum()  # noqa: E731
    return tuple(x.detach() for x in inputs), ours, theirs


@pytest.mark.parametrize("name", NESTINGS)
def test_nesting(name, tensors, reference):
    inputs, ours, theirs = losses(tensors, reference)
    assert_close(NESTINGS[name](ours, inputs), NESTINGS[name](theirs, inputs), rtol=0, atol=1e-13)


@pytest.mark.parametrize("axis", [0, -1])
def test_vmap_over_each_argument_alone(axis, tensors, reference):
    Q, K, V, bias, mask = (x.detach()[0] if x.dim() == 3 else x.detach() for x in tensors)
    for position, x in enumerate((Q, K, V, mask, bias)):
        copies = [x, ~x] if x.dtype == torch.bool else [x, 2 * x]
        arguments = [Q, K, V, mask, bias]

        def call(f, y, arguments=arguments, position=position):
            a = [*arguments[:position], y, *arguments[position + 1 :]]
            return f(*a[:3], mask=a[3], bias=a[4])

        def ours(Q, K, V, mask, bias):
            return attention(Q, K, V, torch.where(mask, bias, -torch.inf))

        batched = vmap(lambda y: call(ours, y), in_dims=axis)(torch.stack(copies, axis))
        assert_close(batched, torch.stack([call(reference, y) for y in copies]), rtol=0, atol=1e-14)


OVER = {
    "reverse": lambda f, x, u: grad(f, range_of(x))(*x),
    "forward": lambda f, x, u: jvp(f, x, u),
    "forward-over-reverse": lambda f, x, u: jvp(grad(f, range_of(x)), x, u),
    "reverse-over-reverse": lambda f, x, u: grad(along(f, u), range_of(x))(*x),
    "reverse-over-forward": lambda f, x, u: grad(lambda *y: jvp(f, y, u)[1], range_of(x))(*x),
    "forward-over-forward": lambda f, x, u: jvp(lambda *y: jvp(f, y, u), x, u),
    "third order": lambda f, x, u: jvp(grad(along(f, u), range_of(x)), x, u),
    "per sample": lambda f, x, u: vmap(grad(f, range_of(x)))(*three(x)),
    "product per sample": lambda f, x, u: vmap(grad(along(f, u), range_of(x)))(*three(x)),
    "gradient of samples": lambda f, x, u: grad(lambda *y: vmap(f)(*three(y)).sin().sum(), range_of(x))(*x),
    "three times forward": lambda f, x, u: jvp(lambda *y: jvp(lambda *z: jvp(f, z, u), y, u), x, u),
    "twice forward of the double backward": lambda f, x, u: jvp(
        lambda *y: jvp(grad(along(f, u), range_of(x)), y, u), x, u
    ),
    "twice mapped": lambda f, x, u: vmap(vmap(grad(f, range_of(x))))(*three(three(x))),
}


def range_of(x):
    return tuple(range(len(x)))


def along(f, u):
    """⟨∇f, u⟩"""
    return lambda *y: sum((a * b).sum() for a, b in zip(grad(f, range_of(y))(*y), u, strict=True))


def three(x):
    return tuple(torch.stack([t, t / 2, t + 0.1]) for t in x)


FAST = {"plain", "bias", "bias-inf", "empty-row", "window", "grouped", "sinks", "dropout", "everything"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CASES]
)
@pytest.mark.parametrize("nesting", OVER)
def test_nesting_with_each_option(nesting, name, several_tiles, one_seed):
    x = case(name, n_q=3, n_k=4)
    inputs = tuple(t.detach() for t in x.inputs)
    u = tuple(torch.randn_like(t) for t in inputs)
    ours, theirs = (OVER[nesting](loss(f), inputs, u) for f in (x.ours, x.naive))
    assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("nesting", ["twice forward of the double backward"])
def test_pytorch_alone_loses_the_outer_tangent(nesting, monkeypatch):
    """The twin of the above (pytorch/pytorch#197867). When it fails, that much of ``_nested`` may go."""
    monkeypatch.setattr(_differentiable, "outer_tangents", lambda on: nullcontext())
    x = case("bias", n_q=3, n_k=4)
    inputs = tuple(t.detach() for t in x.inputs)
    ours, theirs = (OVER[nesting](loss(f), inputs, inputs) for f in (x.ours, x.naive))
    with pytest.raises(AssertionError, match="not close"):
        assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["grouped", "mask-bias", "sinks", "bias", "everything"])
@pytest.mark.parametrize("nesting", ["reverse", "forward-over-reverse"])
def test_each_variable_mapped_alone(nesting, name, several_tiles, one_seed):
    """Per-sample gradients by one tensor that differs from sample to sample, the others shared."""
    x = case(name, n_q=3, n_k=4)
    inputs = tuple(t.detach() for t in x.inputs)
    u = tuple(torch.randn_like(t) for t in inputs)
    for i, t in enumerate(inputs):
        dims = tuple(1 if j == i and t.dim() else 0 if j == i else None for j in range(len(inputs)))
        copies = [t, t / 2, t + 0.1]
        mapped = tuple(torch.stack(copies, dims[i]) if j == i else y for j, y in enumerate(inputs))
        found = vmap(lambda *y: OVER[nesting](loss(x.ours), y, u), dims)(*mapped)
        one = [OVER[nesting](loss(x.naive), (*inputs[:i], c, *inputs[i + 1 :]), u) for c in copies]
        flat = [torch.utils._pytree.tree_leaves(o) for o in one]
        expected = [torch.stack(parts) for parts in zip(*flat, strict=True)]
        assert_close(torch.utils._pytree.tree_leaves(found), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_double_backward_of_autograd_is_that_of_the_naive_formula(name, several_tiles, one_seed):
    """Without torch.func; the twin of it is another direction."""
    x = case(name)
    u = [torch.randn_like(t) for t in x.inputs]

    def second(function, u):
        first = torch.autograd.grad(loss(function)(*x.inputs), x.inputs, create_graph=True)
        return torch.autograd.grad(sum((a.sin() * b).sum() for a, b in zip(first, u, strict=True)), x.inputs)

    ours, theirs = second(x.ours, u), second(x.naive, u)
    assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(ours[0], second(x.naive, [*u[:2], 2 * u[2], *u[3:]])[0])
