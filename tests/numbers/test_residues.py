"""Arithmetic mod p against Python's integers, at the edges of every bound."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from exact_reference import modest
from hypothesis import given
from hypothesis import strategies as st

from gradderiv.numbers import residues

LARGEST = 2**31 - 1  # a Mersenne prime: the worst case of every bound
PRIMES = [1879048201, 2000000011, LARGEST]
EDGES = [0, 1, 2, 2**15, 2**16 - 1, 2**16, 2**31 - 2**16 - 1]


def is_prime(n):
    """By trial division."""
    sieve = np.ones(50_000, dtype=bool)
    sieve[:2] = False
    for i in range(2, 224):
        sieve[i * i :: i] &= not sieve[i]
    divisors = np.flatnonzero(sieve)
    assert n < 50_000**2
    return n > 1 and not np.any((n % divisors == 0) & (divisors < n))


def an_element(p):
    return st.sampled_from([*(e for e in EDGES if e < p), p - 1, p - 2, p // 2, p // 2 + 1]) | st.integers(
        0, p - 1
    )


a_case = st.sampled_from(PRIMES).flatmap(lambda p: st.tuples(st.just(p), *(an_element(p) for _ in range(3))))


def t(*values):
    return torch.tensor(values)


@pytest.mark.parametrize("p", PRIMES)
def test_the_primes_of_these_tests_are_primes(p):
    assert is_prime(p)
    assert not is_prime(p + 1)
    assert residues.SMALLEST <= p < 2**31


@modest
@given(a_case)
def test_operations_are_those_of_integers_mod_p(case):
    p, a, b, _ = case
    x, y = t(a, b), t(b, a)
    for out, expected in (
        (residues.mul(x, y, p), [a * b % p] * 2),
        (residues.add(x, y, p), [(a + b) % p] * 2),
        (residues.neg(x, p), [-a % p, -b % p]),
        (residues.inverse(x, p), [pow(a, p - 2, p), pow(b, p - 2, p)]),
        (residues.matmul(x[None], y[:, None], p), [[2 * a * b % p]]),
        (residues.total(x, (0,), False, p), (a + b) % p),
    ):
        assert out.dtype == torch.int64
        assert out.tolist() == expected
    assert x.tolist() == [a, b]
    assert y.tolist() == [b, a]


@modest
@given(a_case)
def test_the_operations_make_a_field(case):
    p, *abc = case
    a, b, c = (t(x) for x in abc)

    def add(x, y):
        return residues.add(x, y, p)

    def mul(x, y):
        return residues.mul(x, y, p)

    assert torch.equal(add(a, b), add(b, a))
    assert torch.equal(mul(a, b), mul(b, a))
    assert torch.equal(add(add(a, b), c), add(a, add(b, c)))
    assert torch.equal(mul(mul(a, b), c), mul(a, mul(b, c)))
    assert torch.equal(mul(a, add(b, c)), add(mul(a, b), mul(a, c)))
    assert add(a, residues.neg(a, p)).item() == 0
    assert torch.equal(add(a, t(0)), a)
    assert torch.equal(mul(a, t(1)), a)
    if a.item():
        assert mul(a, residues.inverse(a, p)).item() == 1


def test_twin_a_composite_modulus_is_no_field():
    m = 2**31 - 2  # even
    many = torch.full((residues.FEW + 1,), 2)
    assert not (residues.mul(many, residues.inverse(many, m), m) == 1).any()
    with pytest.raises(ValueError, match="not invertible"):
        residues.inverse(t(2), m)


@pytest.mark.parametrize("p", [LARGEST, residues.draw_prime("0", frozenset())])
def test_few_and_many_are_inverted_alike(p):
    """One by one up to FEW, all at once beyond; 0 for 0, and laid out as what is inverted."""
    a = torch.randint(1, p, (2, residues.FEW), generator=torch.Generator().manual_seed(3)).mT
    a[0, 0] = 0
    many = residues.inverse(a, p)
    few = [residues.inverse(row, p) for row in a]
    assert torch.stack(few).equal(many)
    assert residues.mul(a, many, p).flatten().tolist() == [0] + [1] * (a.numel() - 1)
    part = a[: residues.FEW // 2]
    assert residues.inverse(part, p).stride() == torch.ones_like(part).stride() != part.contiguous().stride()
    assert many.stride() == a.stride()


def test_neg_of_zero_is_a_residue():
    assert residues.neg(t(0), LARGEST).item() == 0


@pytest.mark.parametrize(("dims", "keepdim"), [((0,), False), ((1,), True), ((0, 2), False), ((), False)])
def test_total_of_the_worst_residues(dims, keepdim):
    p = LARGEST
    a = torch.full((3, 50, 7), p - 1)
    out = residues.total(a, dims, keepdim, p)
    count = int(np.prod([a.shape[d] for d in dims]))
    assert out.shape == (a.sum(dims, keepdim=keepdim).shape if dims else a.shape)
    assert set(out.reshape(-1).tolist()) == {-count % p}
    assert out.data_ptr() != a.data_ptr()


# ---------------------------------------------------------------- matrix products


SHAPES = [
    ((1, 1), (1, 1)),
    ((2, 3), (3, 5)),
    ((7, 64), (64, 2)),
    ((3, 2, 5), (3, 5, 4)),
    ((2, 1, 2, 5), (3, 5, 4)),
    ((1, 997), (997, 1)),
]


@pytest.mark.parametrize("p", PRIMES)
@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_matmul_is_exact(left, right, p):
    generator = torch.Generator().manual_seed(0)
    for draw in (
        lambda s: torch.randint(0, p, s, generator=generator),
        lambda s: torch.full(s, p - 1),
        lambda s: torch.full(s, (2**15 - 2) * 2**16 + 2**16 - 1),
        lambda s: torch.randint(0, 2, s, generator=generator) * (p - 1),
    ):
        a, b = draw(left), draw(right)
        before = a.clone(), b.clone()
        expected = np.matmul(a.numpy().astype(object), b.numpy().astype(object)) % p
        out = residues.matmul(a, b, p)
        assert out.dtype == torch.int64
        assert out.tolist() == expected.tolist()
        assert torch.equal(a, before[0])
        assert torch.equal(b, before[1])


def test_matmul_of_views_that_are_not_contiguous():
    p = LARGEST
    a = torch.randint(0, p, (5, 4), generator=torch.Generator().manual_seed(1))
    b = torch.tensor([[p - 1]]).expand(5, 3)
    expected = a.mT.numpy().astype(object) @ b.numpy().astype(object) % p
    assert residues.matmul(a.mT, b, p).tolist() == expected.tolist()


def test_longest_is_the_largest_length_that_the_inequality_allows():
    """Again from exact integers: which intermediate is the largest, and how many of them fit float64 and int64."""
    halves = [(a >> 16, a & 0xFFFF) for a in (2**31 - 1, 2**31 - 2, 2**31 - 2**16 - 1)]
    top = max(high + low for high, low in halves)
    assert top == (2**15 - 1) + (2**16 - 1)
    assert residues.LONGEST * top**2 <= 2**53 < (residues.LONGEST + 1) * top**2
    for x, y in itertools.product(halves, repeat=2):  # the other two products are smaller
        assert max(x[0] * y[0], x[1] * y[1]) < top**2
    p = 2**31
    assert (p - 1) * (p - 1) + (
        p - 1
    ) * 2**16 + 2**53 < 2**63  # high 2³² + middle 2¹⁶ + low, before the last %


def test_the_docstring_names_the_length_that_the_code_has():
    assert f"{residues.LONGEST:,}" in residues.__doc__


def unsplit(a, b, p):
    """The product of :func:`residues.matmul` without the split of a long contraction."""
    a1, a0 = (a >> 16).double(), (a & 0xFFFF).double()
    b1, b0 = (b >> 16).double(), (b & 0xFFFF).double()
    high, low = a1 @ b1, a0 @ b0
    middle = (a1 + a0) @ (b1 + b0) - high - low
    return (high.long() % p * (2**32 % p) + middle.long() % p * 2**16 + low.long()) % p


def test_short_is_the_largest_length_of_two_products():
    """a₁ b and a₀ b, each summed: the largest is a₀ b."""
    assert (
        residues.SHORT * (2**16 - 1) * (2**31 - 1) < 2**53 < (residues.SHORT + 1) * (2**16 - 1) * (2**31 - 1)
    )
    assert (2**31 - 1) * 2**16 + 2**53 < 2**63  # high 2¹⁶ + low, before the last %
    assert f"`SHORT` = {residues.SHORT}" in residues.__doc__


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("residue", [LARGEST - 1, LARGEST - 2, 2**31 - 2**16 - 1])
def test_matmul_where_two_products_become_three(residue, extra):
    p, K = LARGEST, residues.SHORT + extra
    out = residues.matmul(torch.full((1, K), residue), torch.full((K, 1), residue), p)
    assert out.item() == residue * residue * K % p


def test_twin_two_products_are_wrong_beyond_the_bound():
    """An odd sum above 2⁵³ is no float64, whatever the order of summation."""
    K = 2 * residues.SHORT + 1
    exact = K * (2**16 - 1) * (2**31 - 1)
    assert exact % 2 == 1
    b = torch.full((K, 1), 2**31 - 1).double()
    assert (torch.full((1, K), 2**16 - 1).double() @ b).long().item() != exact


@pytest.mark.parametrize("extra", [-1, 0, 1, 5, residues.LONGEST + 1])
@pytest.mark.parametrize("residue", [LARGEST - 1, LARGEST - 2, 2**31 - 2**16 - 1])
def test_matmul_at_the_edge_of_the_bound(residue, extra):
    p, K = LARGEST, residues.LONGEST + extra
    out = residues.matmul(torch.full((1, K), residue), torch.full((K, 1), residue), p)
    assert out.item() == residue * residue * K % p


def test_matmul_of_random_residues_at_the_edge_of_the_bound():
    p, K = LARGEST, residues.LONGEST + 1
    generator = torch.Generator().manual_seed(2)
    a, b = (p - 1 - torch.randint(0, 50, (K,), generator=generator) for _ in range(2))
    expected = sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)) % p
    assert residues.matmul(a[None], b[:, None], p).item() == expected


def test_twin_beyond_the_bound_the_unsplit_product_is_wrong():
    """An odd sum above 2⁵³ is no float64, whatever the order of summation."""
    p, residue = LARGEST, LARGEST - 1
    top = (residue >> 16) + (residue & 0xFFFF)
    for K in (2 * residues.LONGEST + 1, 4 * residues.LONGEST + 1):
        assert top**2 * K > 2**53
        assert top**2 * K % 2 == 1
        a, b = torch.full((1, K), residue), torch.full((K, 1), residue)
        assert unsplit(a, b, p).item() != residue * residue * K % p
        assert residues.matmul(a, b, p).item() == residue * residue * K % p
    K = 1001
    a, b = torch.full((1, K), residue), torch.full((K, 1), residue)
    assert unsplit(a, b, p).item() == residue * residue * K % p


def test_twin_an_int64_dot_product_of_eight_residues_overflows():
    p = LARGEST
    a = torch.full((8,), p - 1)
    assert (a @ a).item() % p != 8 * (p - 1) ** 2 % p
    assert residues.matmul(a[None], a[:, None], p).item() == 8 * (p - 1) ** 2 % p


# ---------------------------------------------------------------- primes


@pytest.mark.parametrize("roots", [frozenset(), frozenset({2}), frozenset({2, 3, 5, 7})])
def test_drawn_primes_are_primes_in_range_with_the_roots_asked_for(roots):
    drawn = [residues.draw_prime(f"seed {i}", roots) for i in range(12)]
    for p in drawn:
        assert 2**31 - 2**28 <= p < 2**31
        assert is_prime(p)
        for q in roots:
            assert residues.root_mod(q, p) ** 2 % p == q
    assert len(set(drawn)) == len(drawn)
    assert drawn == [residues.draw_prime(f"seed {i}", roots) for i in range(12)]


def test_twin_without_the_demand_about_half_of_the_primes_have_no_root_of_two():
    drawn = [residues.draw_prime(f"seed {i}", frozenset()) for i in range(60)]
    squares = sum(p % 8 in (1, 7) for p in drawn)  # the second supplement to quadratic reciprocity
    assert 15 <= squares <= 45
