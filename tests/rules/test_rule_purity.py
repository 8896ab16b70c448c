"""A rule reads its arguments and makes new tensors: nothing is overwritten, nothing is shared, and layout does not matter."""

from __future__ import annotations

import copy

import pytest
import torch
from rule_calls import SMALL, Sizes, call, results, rules, tensors

from gradderiv.rules.attention import attention, attention_vjp

SIZES = Sizes(**(vars(SMALL) | {"batch": (2,)}))
MOVE_ONLY = {
    "add_vjp",
    "add_vjp_jvp",
    "split_heads",
    "join_heads",
    "repeat_heads",
    "sum_heads",
    "append_vjp",
    "append_vjp_jvp",
}  # views, where they can be
CUT = {
    "append_vjp",
    "append_vjp_jvp",
    "attend_vjp",
    "attend_vjp_jvp",
}  # of a cache and of what is new: parts of one tensor
RULES = sorted(rules())


def randn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def storages(found):
    return {t.untyped_storage().data_ptr() for t in found.values()}


@pytest.mark.parametrize("name", RULES)
def test_arguments_are_not_modified(name):
    function, args, kwargs = call(name, randn(), SIZES)
    before = copy.deepcopy((args, kwargs))
    versions = {k: t._version for k, t in tensors((args, kwargs)).items()}
    function(*args, **kwargs)
    for (k, a), b in zip(tensors((args, kwargs)).items(), tensors(before).values(), strict=True):
        assert torch.equal(a, b), k
        assert a._version == versions[k], k


@pytest.mark.parametrize("name", [n for n in RULES if n not in MOVE_ONLY])
def test_results_share_no_memory_with_arguments(name):
    function, args, kwargs = call(name, randn(), SIZES)
    out = function(*args, **kwargs)
    if name == "blocks":  # it saves its arguments under their names, and computes the rest
        found = {
            f".{n}": getattr(out, n) for n in ("Q", "calK", "calV", "S", "P", "calI", "calC", "D_K", "D_V")
        }
    else:
        found = results(out)
    assert not storages(found) & storages(tensors((args, kwargs)))


@pytest.mark.parametrize("name", [n for n in RULES if n not in MOVE_ONLY | CUT and n != "blocks"])
def test_gradients_share_no_memory_with_one_another(name):
    function, args, kwargs = call(name, randn(), SIZES)
    found = results(function(*args, **kwargs))
    assert len(storages(found)) == len(found)


def overlapping(found):
    """Those that change when another is written to."""
    wrong = set()
    for name, t in found.items():
        before = {n: x.clone() for n, x in found.items()}
        t.add_(1)
        wrong |= {n for n, x in found.items() if n != name and not torch.equal(x, before[n])}
    return wrong


@pytest.mark.parametrize("name", sorted(CUT))
def test_what_is_cut_from_one_tensor_does_not_overlap(name):
    function, args, kwargs = call(name, randn(), SIZES)
    found = results(function(*args, **kwargs))
    assert len(found) > 1
    assert not overlapping(found)


def test_twin_what_overlaps_is_noticed():
    x = torch.randn(5)
    assert overlapping({"a": x[:3], "b": x[2:]}) == {"a", "b"}
    assert not overlapping({"a": x[:3], "b": x[3:]})


def test_the_gradient_of_a_bias_that_is_not_broadcast_is_its_own():
    Q, K, V = (randn(i)(n, 4) for i, n in enumerate((3, 5, 5)))
    bias = randn(3)(3, 5)
    O, saved = attention(Q, K, V, bias=bias)
    g = attention_vjp(torch.ones_like(O), saved)
    assert not storages({"b": g.bias}) & storages(tensors((saved, g._replace(bias=None))))


def test_twin_a_rule_that_returns_its_argument_is_noticed():
    x = torch.randn(3)
    assert storages({"": x[1:]}) & storages({"": x})
    assert not storages({"": x + 0}) & storages({"": x})


LAYOUTS = {
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() >= 2 else t,
    "a slice of a larger one": lambda t: torch.cat([t, torch.full_like(t, torch.nan)], -1)[
        ..., : t.shape[-1]
    ],
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "with an offset": lambda t: (
        torch.cat([torch.full_like(t, torch.nan), t], 0)[t.shape[0] :] if t.dim() else t
    ),
    "batch last": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0) if t.dim() >= 3 else t,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", RULES)
def test_layout_does_not_matter(name, layout):
    function, args, kwargs = call(name, randn(), SIZES)
    expected = results(function(*args, **kwargs))
    moved = relaid(args, LAYOUTS[layout]), relaid(kwargs, LAYOUTS[layout])
    found = results(function(*moved[0], **moved[1]))
    for k, y in expected.items():
        torch.testing.assert_close(found[k], y, rtol=1e-11, atol=1e-12)


def relaid(tree, move):
    if isinstance(tree, torch.Tensor):
        return move(tree) if tree.dtype.is_floating_point else tree
    if isinstance(tree, dict):
        return {k: relaid(v, move) for k, v in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(relaid(v, move) for v in tree))
    if isinstance(tree, tuple):
        return tuple(relaid(v, move) for v in tree)
    return tree


@pytest.mark.parametrize(
    "name",
    [
        "attention",
        "attention_vjp",
        "attention_vjp_jvp",
        "multihead",
        "multihead_vjp",
        "linear_vjp",
        "softmax_vjp",
    ],
)
def test_expanded_arguments(name):
    """Every argument is one row, or one batch entry, shown several times."""
    function, args, kwargs = call(name, randn(), SIZES)

    def expanded(t):
        return t[..., :1, :].expand(t.shape) if t.dim() >= 2 else t[:1].expand(t.shape) if t.dim() else t

    shared = relaid(args, expanded), relaid(kwargs, expanded)
    copied = relaid(shared[0], torch.clone), relaid(shared[1], torch.clone)
    found, expected = (results(function(*a, **k)) for a, k in (shared, copied))
    for k, y in expected.items():
        torch.testing.assert_close(found[k], y, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_the_same_call_twice_is_the_same(name):
    function, args, kwargs = call(name, randn(), SIZES)
    first, second = (results(function(*args, **kwargs)) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_tied_arguments_are_two_arguments():
    """One matrix as W_Q and W_K: each has its own gradient, and their sum is that of the matrix."""
    from gradderiv.rules.multihead import multihead, multihead_vjp

    X, W, W_V, W_O = randn()(3, 4), randn(1)(4, 6), randn(2)(4, 6), randn(3)(6, 5)
    Y, saved = multihead(X, W, W, W_V, W_O, n_heads=2)
    dY = randn(4)(3, 5)
    g = multihead_vjp(dY, saved)
    leaf = W.clone().requires_grad_()
    Y, _ = multihead(X, leaf, leaf, W_V, W_O, n_heads=2)
    (expected,) = torch.autograd.grad(Y, leaf, dY)
    torch.testing.assert_close(g.W_Q + g.W_K, expected)
    assert not torch.allclose(g.W_Q, g.W_K)
