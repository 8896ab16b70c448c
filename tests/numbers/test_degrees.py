"""Degree records against degrees that are measured: programs are evaluated along a line, and the rational function is found again.

On a line x₀ + t x₁ through the inputs and the values of the opaque functions every entry is a rational function of t. Its degrees
follow from enough of its values by Cauchy's interpolation, the extended Euclidean algorithm on (∏(t − t_i), interpolant). The evaluation
below is on Python's integers mod a prime, and shares no line with gradderiv.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from measured import P, degrees, inverses, line

from gradderiv.numbers.field import Field
from gradderiv.rules.multihead import multihead, multihead_vjp


def test_degrees_of_known_functions():
    points = list(range(1, 30))

    def values(f):
        return [f(t) % P for t in points]

    def over(numerator, denominator):
        return numerator * pow(denominator, -1, P)

    assert degrees(points, values(lambda t: 5)) == (0, 0)
    assert degrees(points, values(lambda t: 0))[0] == -1
    assert degrees(points, values(lambda t: 3 * t**7 - 1)) == (7, 0)
    assert degrees(points, values(lambda t: over(t**3 + 2, t**5 - 3))) == (3, 5)
    assert degrees(points, values(lambda t: over((t + 1) * (t + 2), (t + 2) * (t + 3)))) == (1, 1)
    with pytest.raises(AssertionError, match="too few points"):
        degrees(points[:8], values(lambda t: over(t**3 + 2, t**5 - 3))[:8])


# ---------------------------------------------------------------- random programs, evaluated twice


class OnLine:
    """The operations of a random program, on values mod P along a line."""

    def __init__(self, rng, points):
        self.rng, self.points = rng, points

    def input(self, *shape):
        return line(self.rng, shape, self.points)

    def exp(self, x):
        return line(self.rng, x.shape[1:], self.points)  # free variables: every argument here is another one

    def reciprocal(self, x):
        return inverses(x)

    def constant(self, x, numerator, denominator):
        return x * numerator * pow(denominator, -1, P) % P

    def matmul(self, x, y):
        return np.matmul(x, y) % P

    def rowsum(self, x):
        return x.sum(-1, keepdims=True) % P + np.zeros_like(x)

    def swap(self, x):
        return np.swapaxes(x, -1, -2)

    def mix(self, x, y):
        return np.concatenate([x[:, :1], y[:, 1:]], 1)


class OnField:
    """The same operations on residues, with their records."""

    def __init__(self):
        self.field = Field(0, 2)

    def input(self, *shape):
        return self.field.random(*shape)

    def exp(self, x):
        return x.exp()

    def reciprocal(self, x):
        return 1 / x

    def constant(self, x, numerator, denominator):
        return x * numerator / denominator

    def matmul(self, x, y):
        return x @ y

    def rowsum(self, x):
        return x.sum(-1, keepdim=True).expand_as(x) + 0

    def swap(self, x):
        return x.mT

    def mix(self, x, y):
        return torch.cat([x[:1], y[1:]])


OPERATIONS = {
    "add": lambda on, x, y: x + y,
    "sub": lambda on, x, y: x - y,
    "mul": lambda on, x, y: x * y,
    "mul again": lambda on, x, y: x * y,
    "matmul": lambda on, x, y: on.matmul(x, y),
    "quotient": lambda on, x, y: x * on.reciprocal(y),
    "quotient by rows": lambda on, x, y: x * on.reciprocal(on.rowsum(y)),
    "reciprocal": lambda on, x, y: on.reciprocal(x + y),
    "constant": lambda on, x, y: on.constant(x, 3, 7) - y,
    "rowsum": lambda on, x, y: on.rowsum(x) * y,
    "transpose": lambda on, x, y: on.swap(x) + y,
    "mix": lambda on, x, y: on.mix(x, y),
    "exp": lambda on, x, y: on.exp(x * y),
    "softmax": lambda on, x, y: (lambda E: E * on.reciprocal(on.rowsum(E)))(on.exp(x - y)),
}


def draw(seed, limit=40):
    """A program as a list of (operation, first, second), none of whose records passes the limit; and its records."""
    rng, on = random.Random(seed), OnField()
    nodes = [on.input(2, 2) for _ in range(2)]
    program = []
    while len(program) < 5:
        name = rng.choice(list(OPERATIONS))
        i, j = rng.randrange(len(nodes)), rng.randrange(max(len(nodes) - 2, 0), len(nodes))
        if name in ("sub", "mix", "exp", "softmax") and i == j:
            continue
        ledger = on.field.ledger
        kept = len(ledger.groups)
        out = OPERATIONS[name](on, nodes[i], nodes[j])
        if ledger.numerator(out.note.value) > limit:
            del ledger.groups[kept:]
            continue
        nodes.append(out)
        program.append((name, i, j))
    return program, nodes, on.field.ledger


def evaluate(program, rng, points):
    on = OnLine(rng, points)
    nodes = [on.input(2, 2) for _ in range(2)]
    for name, i, j in program:
        nodes.append(OPERATIONS[name](on, nodes[i], nodes[j]) % P)
    return nodes


def test_no_true_degree_passes_its_record():
    exact, measured = 0, 0
    for seed in range(40):
        program, records, ledger = draw(seed)
        rng = random.Random(f"line {seed}")
        bound = max(ledger.numerator(x.note.value) for x in records)
        points = list(range(1, 2 * bound + 12))
        values = evaluate(program, rng, points)
        for k, (record, value) in enumerate(zip(records, values, strict=True)):
            N = ledger.numerator(record.note.value)
            a, b = rng.randrange(2), rng.randrange(2)
            top, _ = degrees(points, value[:, a, b].tolist())
            assert top <= N, (program[: k - 1], top, N)
            exact += top == N
            measured += 1
    assert measured == 40 * 7
    assert exact > measured / 3  # the records are bounds, and not idle ones


def test_no_difference_of_two_results_passes_the_joined_record():
    """What the test of an identity looks at: also between results with different denominators."""
    exact = 0
    for seed in range(40, 60):
        program, records, ledger = draw(seed, limit=25)
        field = records[0].system
        rng = random.Random(f"line {seed}")
        i, j = sorted(rng.sample(range(len(records)), 2))
        N = ledger.numerator(field._difference((records[i], records[j])))
        points = list(range(1, 2 * N + 12))
        values = evaluate(program, rng, points)
        top, _ = degrees(points, ((values[i] - values[j]) % P)[:, 0, 1].tolist())
        assert top <= N, (program, i, j, top, N)
        exact += top == N
    assert exact >= 4


def test_no_difference_of_two_arguments_of_exp_passes_the_record_of_arguments():
    measured = 0
    for seed in range(60, 100):
        program, _, ledger = draw(seed, limit=25)
        arguments = [(i, j, name) for name, i, j in program if name in ("exp", "softmax")]
        if not arguments:
            continue
        N = ledger.apart(ledger.argument).e
        points = list(range(1, 2 * N + 12))
        values = evaluate(program, random.Random(f"line {seed}"), points)
        for i, j, name in arguments:
            x, y = values[i], values[j]
            argument = (x * y if name == "exp" else x - y) % P
            for a, b in (((0, 0), (1, 1)), ((0, 1), (1, 0))):
                top, _ = degrees(points, ((argument[:, *a] - argument[:, *b]) % P).tolist())
                assert top <= N
                measured += 1
    assert measured > 20


def test_twin_a_record_that_forgets_the_poles_is_too_small():
    """x/y + y/x over a 2 × 2 tensor: e alone says 0; the numerator over the common denominators has degree 8."""
    on = OnField()
    x, y = on.input(2, 2), on.input(2, 2)
    out = (x * on.reciprocal(y) + y * on.reciprocal(x)).sum()
    ledger = on.field.ledger
    points = list(range(1, 40))
    rng = random.Random(0)
    a, b = line(rng, (2, 2), points), line(rng, (2, 2), points)
    value = (a * inverses(b) + b * inverses(a)).sum((1, 2)) % P
    assert degrees(points, value.tolist()) == (8, 8)
    assert out.note.value.e == 0
    assert ledger.numerator(out.note.value) == 8


# ---------------------------------------------------------------- the layer


def gradient_on_a_line(n, points, rng, d=2):
    """One entry of dW_Q of a single head, with exp S as free variables; from the textbook's formulas."""
    X, W_K, W_V, W_O = (line(rng, s, points) for s in ((n, d), (d, d), (d, d), (d, d)))
    dY, E = line(rng, (n, d), points), line(rng, (n, n), points)
    K, V = (np.matmul(X, W) % P for W in (W_K, W_V))
    weights = E * inverses(E.sum(-1, keepdims=True) % P) % P
    dP = np.matmul(np.matmul(dY, np.swapaxes(W_O, 1, 2)) % P, np.swapaxes(V, 1, 2)) % P
    dS = weights * (dP - (weights * dP).sum(-1, keepdims=True)) % P
    dQ = np.matmul(dS, K) % P
    return (np.matmul(np.swapaxes(X, 1, 2), dQ) % P)[:, 0, 0].tolist()


@pytest.mark.parametrize(("n", "degree"), [(2, 11), (3, 13), (5, 17)])
def test_the_gradient_of_the_layer_has_the_degree_of_its_record(n, degree):
    points = list(range(1, 2 * degree + 12))
    assert degrees(points, gradient_on_a_line(n, points, random.Random(n)))[0] == degree == 7 + 2 * n
    field = Field(0, 2)
    _, saved = multihead(field.random(n, 2), *(field.random(2, 2) for _ in range(4)), n_heads=1, scale=1.0)
    g = multihead_vjp(field.random(n, 2), saved)
    assert field.ledger.numerator(g.W_Q.note.value) == degree
