"""``torch.func`` over ``functional.attention``, in every nesting, against the naive formula; and the compiler."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

from gradderiv.functional import _function, attention

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


@pytest.mark.parametrize("name", ["forward-over-forward", "jvp of jvp of gradient"])
def test_pytorch_alone_loses_the_outer_tangent(name, tensors, reference, monkeypatch):
    """The twin of the above (pytorch/pytorch#197867). When it fails, ``_nested`` may go."""
    monkeypatch.setattr(_function, "outer_tangents", lambda on: nullcontext())
    monkeypatch.setattr(_function, "primal", lambda x: x)
    inputs, ours, theirs = losses(tensors, reference)
    with pytest.raises(AssertionError, match="not close"):
        assert_close(NESTINGS[name](ours, inputs), NESTINGS[name](theirs, inputs))


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


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("is_causal", [False, True])
def test_compiles_without_a_break(is_causal, tensors):
    *inputs, _ = tensors

    def loss(*x):
        return attention(*x, is_causal=is_causal).sin().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(loss(*inputs), inputs)
    assert_close(torch.autograd.grad(compiled(*inputs), inputs), expected, rtol=0, atol=1e-15)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_compiler_refuses_forward_mode(tensors, monkeypatch):
    """The twin of the above. When it fails, ``FirstOrder`` may go."""
    monkeypatch.setattr(_function, "FirstOrder", _function.Value)
    compiled = torch.compile(lambda *x: attention(*x).sum(), backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="jvp"):
        compiled(*tensors[:3])
