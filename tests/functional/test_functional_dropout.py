"""Dropout: a function of a seed, the query and the key. That it is random enough, with bounds; that every derivative sees what the forward pass dropped; 0 and 1.

Bounds are five standard deviations of a fair coin's statistic; the seeds are fixed, so a test that passes passes again.
"""

from __future__ import annotations

import pytest
import torch
from attention_cases import naive
from torch.func import grad, jvp, vmap
from torch.testing import assert_close

from gradderiv.functional import _tiles, attention
from gradderiv.functional._dropout import kept, seeds_like

N = 256
RATES = [0.01, 0.1, 0.5, 0.9]


def drawn(p, *, heads=8, n=N):
    """keep (heads, n, n)"""
    return kept(seeds_like(torch.empty(heads, 1, 1)), slice(0, n), slice(0, n), p)


def centred(keep, p):
    """Mean 0, variance 1."""
    return (keep.double() - (1 - p)) / (p * (1 - p)) ** 0.5


def assert_small(values, n):
    """A mean of n independent numbers of variance 1."""
    assert float(values.abs().max()) <= 5 / n**0.5


@pytest.mark.parametrize("p", RATES)
def test_the_rate_is_right_in_all_in_each_head_row_and_column(p):
    x = centred(drawn(p), p)
    assert_small(x.mean(), x.numel())
    assert_small(x.mean((1, 2)), N * N)
    assert_small(x.mean((0, 1)), 8 * N)
    assert_small(x.mean((0, 2)), 8 * N)
    # the twin: a rate that is off by a hundredth
    with pytest.raises(AssertionError):
        assert_small(centred(drawn(p + 0.01), p).mean(), x.numel())


@pytest.mark.parametrize("p", RATES)
def test_neighbours_in_every_direction_are_uncorrelated(p):
    x = centred(drawn(p), p)
    for shift in (1, 2, 3, 16, 64, 128):
        for axis in (0, 1, 2):
            y = x.roll(shift, axis) if axis or shift < 8 else None
            if y is not None:
                assert_small((x * y).mean(), x.numel())
        assert_small((x * x.roll((shift, shift), (1, 2))).mean(), x.numel())
        assert_small((x * x.roll((shift, -shift), (1, 2))).mean(), x.numel())
    assert_small((x * x.mT)[:, *torch.triu_indices(N, N, 1)].mean(), 8 * N * (N - 1) // 2)


@pytest.mark.parametrize("p", RATES)
def test_rectangles_are_uncorrelated(p):
    """Four points k_ij k_il k_mj k_ml: what a key made as row ⊕ column would give away. That is the twin."""

    def rectangles(x):
        return torch.stack([x * x.roll(a, 1) * x.roll(b, 2) * x.roll((a, b), (1, 2)) for a, b in
                            ((1, 1), (1, 2), (2, 1), (5, 7), (64, 64), (128, 1), (1, 128))])  # fmt: skip

    x = centred(drawn(p), p)
    assert_small(rectangles(x).mean((1, 2, 3)), x.numel() / 4)
    # k_ij k_il k_mj k_ml against (1 − p)⁴, as it stands
    keep = drawn(p).double()
    assert abs(float(rectangles(keep).mean() - (1 - p) ** 4)) <= 0.01
    rows, cols = torch.rand(8, N, 1) > p, torch.rand(8, 1, N) > p
    with pytest.raises(AssertionError):
        assert_small(rectangles(centred(rows ^ cols, 0.5)).mean((1, 2, 3)), x.numel() / 4)


def test_the_count_of_a_row_is_binomial():
    """Its variance, too, and not only its mean: nothing is evened out within a row, a column or a block."""
    p = 0.25
    x = drawn(p, heads=32).double()
    for counts in (x.sum(-1), x.sum(-2), x.unflatten(-1, (-1, 16)).unflatten(1, (-1, 16)).sum((2, 4))):
        n = N
        variance = counts.flatten().var() / (n * p * (1 - p))
        assert abs(float(variance) - 1) <= 5 * (2 / counts.numel()) ** 0.5
    even = torch.ones(N, N).double()
    even[:, ::4] = 0
    assert float(even.sum(-1).var()) == 0  # the twin


def test_seeds_and_far_away_rows_are_unlike():
    """Neighbouring seeds, and rows beyond 2³¹."""
    p, size = 0.5, slice(0, N)
    seeds = torch.tensor([0, 1, 2, 2**62, -1])[:, None, None]
    x = centred(kept(seeds, size, size, p), p).flatten(1)
    products = x @ x.T / x.shape[1]
    assert_small(products[~torch.eye(5, dtype=torch.bool)], x.shape[1])
    far = centred(kept(seeds[:1], slice(2**31, 2**31 + N), size, p), p).flatten()
    assert_small((far * x[0]).mean(), len(far))


@pytest.mark.parametrize("cut", [(0, 5, 0, 7), (3, 9, 2, 40), (250, 256, 255, 256)])
def test_a_tile_of_the_mask_is_the_mask_of_the_tile(cut):
    a, b, c, d = cut
    seeds = seeds_like(torch.empty(4, 1, 1))
    whole, tile = kept(seeds, slice(0, N), slice(0, N), 0.3), kept(seeds, slice(a, b), slice(c, d), 0.3)
    assert torch.equal(tile, whole[:, a:b, c:d])
    assert not torch.equal(kept(seeds + 1, slice(0, N), slice(0, N), 0.3), whole)


def inputs(n_q=7, n_k=9):
    return tuple(torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (n_q, n_k, n_k))


def test_calls_differ_and_a_seed_repeats_them():
    x = inputs()
    torch.manual_seed(3)
    first, second = attention(*x, dropout_p=0.5), attention(*x, dropout_p=0.5)
    torch.manual_seed(3)
    assert torch.equal(attention(*x, dropout_p=0.5), first)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    attention(*x)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn that is not used


def test_heads_and_batches_differ():
    x = tuple(torch.ones(2, 3, n, 4) for n in (7, 9, 9))
    W = attention(*x, dropout_p=0.5, return_weights=True)[1].flatten(0, 1)
    assert all(not torch.equal(W[i], W[j]) for i in range(6) for j in range(i))


@pytest.mark.parametrize("rows", [1, 2, 3, 128])
def test_the_same_weights_fall_in_tiles_of_every_size_and_in_every_derivative(rows, monkeypatch):
    """The weights say what was kept; with it the naive formula gives every derivative."""
    monkeypatch.setattr(_tiles, "ROWS", rows)
    monkeypatch.setattr(_tiles, "FEWEST", rows)
    x = inputs()

    def ours(*y):
        torch.manual_seed(11)
        return attention(*y, dropout_p=0.5)

    torch.manual_seed(11)
    keep = attention(*x, dropout_p=0.5, return_weights=True)[1] > 0

    def theirs(*y):
        return naive(*y, keep=keep, dropout_p=0.5)[0]

    def all_of(f):
        loss = lambda *y: f(*y).sin().sum()  # noqa: E731
        g = lambda *y: sum(t.cos().sum() for t in grad(loss, (0, 1, 2))(*y))  # noqa: E731
        return f(*x), jvp(f, x, x), grad(loss, (0, 1, 2))(*x), jvp(grad(loss, (0, 1, 2)), x, x), grad(g)(*x)

    assert_close(all_of(ours), all_of(theirs), rtol=0, atol=1e-12)
    keep[0, 0, 0, 0] ^= True
    with pytest.raises(AssertionError, match="not close"):
        assert_close(all_of(ours), all_of(theirs), rtol=0, atol=1e-12)


def test_the_mean_of_many_calls_is_attention_without_dropout():
    x = inputs(3, 5)
    torch.manual_seed(5)
    many = torch.stack([attention(*x, dropout_p=0.3) for _ in range(2000)])
    error = many.std(0) / 2000**0.5
    assert ((many.mean(0) - attention(*x)).abs() <= 5 * error).all()
    assert not ((0.7 * many.mean(0) - attention(*x)).abs() <= 5 * error).all()  # without 1/(1 − p)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_nothing_and_everything(softcap):
    """p = 0 is no dropout, bit by bit; p = 1 is 0, with gradients of 0, and lse as it was."""
    Q, K, V = (t.requires_grad_() for t in inputs())
    options = {"softcap": softcap, "return_lse": True}
    plain, lse = attention(Q, K, V, **options)
    assert torch.equal(attention(Q, K, V, dropout_p=0.0, **options)[0], plain)
    O, same = attention(Q, K, V, dropout_p=1.0, **options)
    assert_close(same, lse, rtol=0, atol=1e-14)
    assert not O.any()
    first = torch.autograd.grad(O.sum(), (Q, K, V), create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), (Q, K, V), allow_unused=True)
    assert not any(g.any() for g in (*first, *(g for g in second if g is not None)))
    assert kept(torch.zeros(1, 1).long(), slice(0, N), slice(0, N), 0.0).all()
    assert plain.any()


@pytest.mark.parametrize("derivative", ["value", "gradient"])
def test_samples_of_vmap_differ_or_are_the_same_as_asked(derivative):
    x = tuple(t.expand(4, *t.shape) for t in inputs())

    def one(*y):
        return attention(*y, dropout_p=0.5)

    f = one if derivative == "value" else grad(lambda *y: one(*y).sin().sum())
    different = vmap(f, randomness="different")(*x)
    same = vmap(f, randomness="same")(*x)
    assert all(torch.equal(same[0], t) for t in same)
    assert all(not torch.equal(different[i], different[j]) for i in range(4) for j in range(i))
    with pytest.raises(RuntimeError, match="random"):
        vmap(f)(*x)


@pytest.mark.parametrize("randomness", ["different", "same"])
def test_under_vmap_the_gradient_sees_what_the_value_dropped(randomness):
    """W = ∂O/∂V, each with what its own forward pass dropped."""
    Q, K, V = (torch.stack([t, t / 2, t / 3]) for t in inputs())

    def both(Q, K, V):
        def weights_of(V):
            O, W = attention(Q, K, V, dropout_p=0.5, return_weights=True)
            return O[..., 0].sum(), W

        return grad(weights_of, has_aux=True)(V)

    dV, W = vmap(both, randomness=randomness)(Q, K, V)
    assert_close(dV[..., 0], W.sum(-2), rtol=0, atol=1e-14)
    assert (W == 0).any()
