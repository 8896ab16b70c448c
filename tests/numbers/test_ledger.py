"""The failure probability: its formula, its table, its monotony, and the constants in it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact_reference import modest
from hypothesis import given
from hypothesis import strategies as st

from gradderiv.numbers.field import Field
from gradderiv.numbers.ledger import CONSTANT, PRIMES, SMALLEST, VARIABLE, Degree, Group, Ledger, join


def layer(n, heads, d_a=4):
    """The ledger of one attention layer and the record of two ways to dW_Q, each with its own row sums."""
    ledger = Ledger()
    ledger.opaque(heads * n * n, Degree(d_a))
    one, two = (ledger.group(n * heads, 1, math.log2(n)) for _ in range(2))
    return ledger, Degree(7, 40.0, ((one, 2), (two, 2)))


# ---------------------------------------------------------------- the formula


def exact_failure(M, d_a, D, k, groups=(), zeros=()):
    """log₂ of the bound, from integers and fractions: [C(M+1, 2)(d_a/(p−1))ᵏ + (D/(p−1))ᵏ + …] / (1 − δ)."""
    p1 = SMALLEST - 1
    total = Fraction(math.comb(M + 1, 2)) * Fraction(d_a, p1) ** k + Fraction(D, p1) ** k
    total += sum((count * Fraction(d, p1) ** k for count, d in zeros), Fraction(0))
    bound = total / (1 - Fraction(k * sum(r * d for r, d in groups), p1))
    return math.log2(bound.numerator) - math.log2(bound.denominator)


@modest
@given(
    st.integers(0, 10**7),
    st.integers(1, 50),
    st.integers(1, 10**5),
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), max_size=3),
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 100)), max_size=2),
)
def test_failure_is_the_formula(M, d_a, e, k, groups, zeros):
    ledger = Ledger()
    if M:
        ledger.opaque(M, Degree(d_a))
    poles = tuple((ledger.group(r, d, 0.0), 2) for r, d in groups)
    D = e + sum(2 * r * d for r, d in groups)
    ledger.zeros += [(count, Degree(d)) for count, d in zeros]
    found = ledger.failure(Degree(e, 0.0, poles), k)
    assert found == pytest.approx(min(0.0, exact_failure(M, d_a, D, k, groups, zeros)), abs=1e-6)


TABLE = {512: (-15, -44, -65), 1024: (-11, -40, -61), 2048: (-7, -36, -57)}


@pytest.mark.parametrize("n", TABLE)
@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_table_for_twelve_heads(n, k):
    ledger, record = layer(n, 12)
    assert ledger.numerator(record) == 7 + 2 * (2 * n * 12)
    bound = ledger.failure(record, k)
    assert abs(bound - TABLE[n][k - 2]) <= 1
    assert bound == pytest.approx(exact_failure(12 * n * n, 4, 7 + 48 * n, k, [(24 * n, 1)]), abs=1e-6)


def test_the_degree_of_one_way_to_the_gradient():
    ledger, record = layer(512, 12)
    assert ledger.numerator(record._replace(poles=record.poles[:1])) == 12_295


def test_one_lane_gives_no_useful_bound():
    ledger, record = layer(512, 12)
    assert ledger.failure(record, 1) == 0.0


@pytest.mark.parametrize("n", [16, 512, 2048])
def test_more_values_higher_degrees_and_fewer_lanes_fail_more_often(n):
    ledger, record = layer(n, 12)
    base = ledger.failure(record, 3)
    assert ledger.failure(record, 4) < base < ledger.failure(record, 2)
    assert ledger.failure(record._replace(e=10**7), 3) > base
    more, _ = layer(n, 24)
    assert more.failure(record, 3) > base
    deeper, _ = layer(n, 12, d_a=8)
    assert deeper.failure(record, 3) > base
    zeros, _ = layer(n, 12)
    zeros.zeros.append((10**9, Degree(50)))
    assert zeros.failure(record, 3) > base
    redrawn, _ = layer(n, 12)
    redrawn.group(10**4, 10**4, 0.0)
    assert redrawn.failure(record, 3) > base


@modest
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 10**6), st.integers(1, 5), st.floats(0, 1e5))
def test_failure_is_monotone_in_everything(M, d_a, e, k, size):
    def failure(M=M, d_a=d_a, e=e, k=k, size=size, pool=None):
        ledger = Ledger()
        ledger.opaque(M, Degree(d_a))
        return ledger.failure(Degree(e, size), k, pool=pool)

    base = failure()
    assert base <= 0.0
    assert failure(M=M + 1000) >= base
    assert failure(d_a=d_a + 1) >= base
    assert failure(e=e * 2) >= base
    assert failure(k=k + 1) <= base
    assert failure(pool=PRIMES) >= base
    assert failure(pool=PRIMES / 4) >= failure(pool=PRIMES)
    assert failure(size=size + 100, pool=PRIMES) >= failure(pool=PRIMES)
    assert failure(size=size + 100) == base


def test_coincidence_is_the_part_that_grows_with_exponentials():
    ledger, record = layer(512, 12)
    pairs = math.comb(12 * 512 * 512 + 1, 2)
    assert ledger.coincidence(3) == pytest.approx(math.log2(pairs) + 3 * math.log2(4 / (SMALLEST - 1)))
    assert ledger.coincidence(3) <= ledger.failure(record, 3)
    assert Ledger().coincidence(2) == -math.inf


def test_the_second_figure_counts_errors_that_are_a_multiple_of_a_prime():
    """A difference of L1 norm 2^λ is divisible by at most λ/30.8 of the drawn primes, all above 2^30.8."""
    assert math.log2(SMALLEST) >= 30.8
    ledger = Ledger()
    for size in (0.0, 1e3, 1e6):
        chance = 5 / (SMALLEST - 1) + size / (30.8 * PRIMES)
        assert ledger.failure(Degree(5, size), 3, pool=PRIMES) == pytest.approx(3 * math.log2(chance))


def test_the_number_of_primes_is_a_lower_bound():
    """Counted with a sieve of Eratosthenes over the odd numbers of [2³¹ − 2²⁸, 2³¹)."""
    small = np.ones(46_342, dtype=bool)
    small[:2] = False
    for i in range(2, 216):
        small[i * i :: i] &= not small[i]
    odd_primes = np.flatnonzero(small)[1:]
    assert odd_primes[-1] ** 2 < 2**31 < 46_349**2  # 46,349 is the next prime
    count, piece = 0, 2**22
    for low in range(SMALLEST + 1, 2**31, 2 * piece):
        sieve = np.ones(piece, dtype=bool)  # of low + 2i
        for q in odd_primes.tolist():
            sieve[(-low * (q + 1) // 2) % q :: q] = False  # 1/2 is (q + 1)/2 mod q
        count += int(sieve.sum())
    assert PRIMES <= count <= PRIMES * 1.003
    assert count == 12_530_588


# ---------------------------------------------------------------- records


def test_sums_take_the_maximum_and_products_add():
    a, b = Degree(3, 5.0, ((0, 2), (1, 1))), Degree(4, 1.0, ((1, 3), (2, 1)))
    joined, product = join([a, b]), a * b
    assert (joined.e, joined.size, dict(joined.poles)) == (4, 5.0, {0: 2, 1: 3, 2: 1})
    assert (product.e, product.size, dict(product.poles)) == (7, 6.0, {0: 2, 1: 4, 2: 1})
    assert a.power(3) == a * a * a
    assert a.sum_of(8) == a._replace(size=8.0)
    assert a.sum_of(0) == a.sum_of(1) == a


def test_an_inverse_opens_a_group():
    ledger = Ledger()
    first = ledger.invert(Degree(2, 3.0), 10)
    assert first == Degree(-2, -3.0, ((0, 1),))
    assert ledger.groups == [Group(10, 2, 3.0)]
    assert ledger.numerator(first) == 10 * 2 - 2
    nested = ledger.invert(join([first, VARIABLE]), 5)
    assert ledger.groups[1].degree == ledger.numerator(join([first, VARIABLE])) == 1 + 20
    assert ledger.numerator(nested) == 5 * 21 - 1
    assert ledger.log_norm(first * VARIABLE) == -3.0 + 10 * 3.0


FIELD_RECORDS = {
    "input": (lambda x, y: x, 1),
    "constant": (lambda x, y: torch.ones_like(x), 0),
    "sum": (lambda x, y: x + y * y, 2),
    "product": (lambda x, y: x * y, 2),
    "matmul": (lambda x, y: x @ y, 2),
    "long matmul": (lambda x, y: x.repeat(1, 30) @ y.repeat(30, 1), 2),
    "power": (lambda x, y: x**5, 5),
    "structure": (lambda x, y: torch.cat([x.mT, (y * y)[:1]]).flip(0), 2),
    "where": (lambda x, y: torch.where(torch.eye(3, dtype=torch.bool), x, y**3), 3),
    "sum over an axis": (lambda x, y: (x * y).sum(-1), 2),
    "exp": (lambda x, y: (x**3).exp(), 1),
    "exp of a logarithm": (lambda x, y: (x + (y * y).log()).exp(), 3),
    "softmax": (lambda x, y: torch.softmax(x, -1), 0 + 1),
    "softmax, then a column's sum": (lambda x, y: torch.softmax(x, -1).sum(0), 0 + 3),
    "quotient": (lambda x, y: x / y, 1 - 1 + 1),
    "quotient, then a row's sum": (lambda x, y: (x / y).sum(-1), 1 - 1 + 3),
    "quotient, then all": (lambda x, y: (x / y).sum(), 1 - 1 + 9),
    "quotient by rows": (lambda x, y: x / y.sum(-1, keepdim=True), 1 - 1 + 1),
    "quotient times a matrix": (lambda x, y: (x / y) @ x, 1 - 1 + 1 + 3),
    "quotient in another place": (lambda x, y: (x / y).flip(0), 1 - 1 + 9),
    "quotient and its transpose": (lambda x, y: (lambda r: x * r * r.mT)(1 / y), 1 - 2 + 2 * 9),
    "inverse square": (lambda x, y: y**-2, -2 + 2 * 1),
    "shifted": (lambda x, y: torch.exp(x - x.amax(-1, keepdim=True)), 2),
    "mean": (lambda x, y: (x * y).mean(), 2),
}


@pytest.mark.parametrize("name", FIELD_RECORDS)
def test_the_rules_of_the_table(name):
    program, N = FIELD_RECORDS[name]
    field = Field(0, 2)
    out = program(field.random(3, 3), field.random(3, 3))
    assert field.ledger.numerator(out.note.value) == N


@pytest.mark.parametrize(("n", "heads"), [(2, 1), (3, 2), (5, 3), (8, 2)])
def test_the_degree_of_the_gradient_of_the_layer(n, heads):
    """D = 7 + 2 n h for dW_Q, whatever the widths; the arguments of exp have degree 4."""
    from gradderiv.rules.multihead import multihead, multihead_vjp

    for d_model, d in ((5, 4), (7, 9)):
        field = Field(0, 2)
        X, W_O, dY = field.random(n, d_model), field.random(heads * d, 3), field.random(n, 3)
        Ws = [field.random(d_model, heads * d) for _ in range(3)]
        Y, saved = multihead(X, *Ws, W_O, n_heads=heads)
        g = multihead_vjp(dY, saved)
        degree = {
            name: field.ledger.numerator(getattr(g, name).note.value) for name in ("W_Q", "W_K", "W_V", "W_O")
        }
        assert degree == {
            "W_Q": 7 + 2 * n * heads,
            "W_K": 7 + 2 * n * heads,
            "W_V": 3 + n * heads,
            "W_O": 3 + n * heads,
        }
        assert field.ledger.numerator(field.ledger.argument) == 4
        assert field.ledger.opaque_values == heads * n * n
        assert field.ledger.numerator(Y.note.value) == 3 + heads  # a token has only the sums of its own rows


def test_views_and_writes_carry_their_records():
    field = Field(0, 2)
    x = field.random(4)
    z = torch.zeros_like(x)
    assert z.note.value.e == 0
    view = z[1:]
    view[0] = x[0] ** 3
    assert z.note.value.e == view.note.value.e == 3  # some entries may still be of the old degree
    z.copy_(x)
    assert view.note.value.e == 1
    z[:2] = x[:2] * x[2:]
    assert z.note.value.e == 2


def test_an_argument_of_exp_is_counted_element_by_element():
    field = Field(0, 2)
    x = field.random(3, 4)
    x.exp()
    torch.softmax(x[:, :2] * x[:, 2:], -1)
    torch.logsumexp(x.expand(5, 3, 4) + 0, -1)
    assert field.ledger.opaque_values == 12 + 6 + 60
    field.random(5, 2).amax(-1), torch.maximum(x, x[:1])  # shifts are drawn from contents, too
    assert field.ledger.opaque_values == 12 + 6 + 60 + 5 + 12
    assert field.ledger.numerator(field.ledger.argument) == 2


# ---------------------------------------------------------------- the L1 norm


def test_log_norms_of_closed_forms():
    """λ bounds log₂ of the sum of the absolute coefficients: (x + y)ⁿ has 2ⁿ, a sum of L products L."""
    field = Field(0, 2)
    x, y = field.random(1), field.random(1)
    for n in (1, 5, 20):
        assert field.ledger.log_norm(((x + y) ** n).note.value) == pytest.approx(n)
    a, b = field.random(2, 24), field.random(24, 3)
    assert field.ledger.log_norm((a @ b).note.value) == pytest.approx(math.log2(24))
    assert field.ledger.log_norm((a * 1000).note.value) >= math.log2(1000)
    assert field.ledger.log_norm((a * 0.001).sum().note.value) >= math.log2(48)
    assert field.ledger.log_norm((a - 3 * a).note.value) >= math.log2(2)


@pytest.mark.parametrize("denominators", [[2, 2, 2, 2], [2, 3, 5, 7], [11, 13, 17, 19, 23, 29, 31, 37]])
def test_the_norm_of_a_sum_over_several_denominators(denominators):
    """Σ x_i / q_i = Σ x_i (L/q_i) / L with L the least common multiple: numerators without a common factor."""
    field = Field(0, 2)
    L = math.lcm(*denominators)
    numerators = [L // q for q in denominators]
    assert math.gcd(*numerators, L) == 1 or len(set(denominators)) == 1
    true = math.log2(sum(numerators) // math.gcd(*numerators))
    constants = torch.tensor([1 / q for q in denominators], dtype=torch.float64)
    out = (field.random(len(denominators)) * constants).sum()
    assert field.ledger.log_norm(out.note.value) >= true - 1e-9


def test_constants_have_degree_zero():
    field = Field(0, 2)
    for value in (3.0, 0.1, math.e):
        record = (torch.ones_like(field.random(2)) * value).note.value
        assert field.ledger.numerator(record) == 0
        assert field.ledger.log_norm(record) >= math.log2(Fraction(value).limit_denominator(10).numerator)
    assert Degree(0) == CONSTANT


def test_free_constants_count_as_variables():
    """1/√π and log 2 are values that were drawn; what is divided by them has them as a denominator."""
    field = Field(0, 2, roots=frozenset({2}))
    one = torch.ones_like(field.random(2))
    for value, N in (
        (2 / math.sqrt(math.pi), 1),
        (math.log(2), 1),
        (1 / math.pi, 2),
        (math.pi, 0),
        (1 / math.log(2), 0),
    ):
        assert field.ledger.numerator((one * value).note.value) == N
        assert field.ledger.numerator((one * value + field.random(2)).note.value) == max(
            N, 1 + 2 * (value == math.pi) + (value == 1 / math.log(2))
        )
    mixed = one * torch.tensor([math.pi, math.sqrt(2 / math.pi)], dtype=torch.float64)
    assert field.ledger.numerator(mixed.note.value) == 3


def test_values_of_odd_functions_must_not_meet_negatives_either():
    plain, odd = Ledger(), Ledger()
    plain.opaque(100, VARIABLE), odd.opaque(100, VARIABLE, odd=True)
    assert odd.pairs == 2 * plain.pairs == 2 * 101 * 50
    assert odd.coincidence(3) == pytest.approx(plain.coincidence(3) + 1)
    for program, expected in (
        (torch.exp, False),
        (torch.erf, True),
        (torch.relu, True),
        (torch.rsqrt, False),
    ):
        field = Field(0, 2)
        program(field.random(3))
        assert field.ledger.odd == expected
    field = Field(0, 2, odd=True)
    field.random(3).exp()
    assert field.ledger.odd


# ---------------------------------------------------------------- the same arguments again


def test_arguments_that_are_met_again_count_once_and_one_accident_each():
    field = Field(0, 2)
    x, y = field.random(5), field.random(5)
    x.exp()
    assert (field.ledger.opaque_values, field.ledger.repeated_values) == (5, 0)
    assert field.ledger.pairs == 15
    (x + 0).exp()
    assert (field.ledger.opaque_values, field.ledger.repeated_values) == (5, 5)
    assert field.ledger.pairs == 20
    y.exp()
    assert (field.ledger.opaque_values, field.ledger.repeated_values) == (10, 5)


@pytest.mark.parametrize("other", [lambda x: x.flip(0), lambda x: x[:4], lambda x: x.sqrt(), lambda x: x + 1])
def test_other_arguments_or_another_function_are_not_the_same(other):
    field = Field(0, 2, roots=frozenset({2}))
    x = field.random(5)
    x.exp()
    before = field.ledger.opaque_values
    out = other(x.clone())
    if field.ledger.opaque_values == before:
        out.exp()
    assert field.ledger.opaque_values > before
    assert field.ledger.repeated_values == 0
