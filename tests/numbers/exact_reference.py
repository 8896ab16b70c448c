"""What the numbers are held against: Python's integers and fractions. Nothing here comes from gradderiv but the classes entered."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from hypothesis import settings

from gradderiv.numbers.lanes import Note
from gradderiv.numbers.ledger import CONSTANT

modest = settings(deadline=None, max_examples=30, derandomize=True, database=None)
brief = settings(modest, max_examples=8)  # where a table of cases is the variety


def mod(value, p):
    """A fraction (or integer, or float taken at its exact value) as a residue mod p."""
    q = Fraction(value)
    return q.numerator * pow(q.denominator, -1, p) % p


def objects(nested):
    """A nested list or float tensor as an object array of exact fractions."""
    values = np.array(nested.tolist() if isinstance(nested, torch.Tensor) else nested, dtype=object)
    return np.frompyfunc(Fraction, 1, 1)(values) if values.shape else np.array(Fraction(values.item()))


def residues_of(values, p):
    """Exact values as an int64 tensor of residues mod p."""
    values = np.asarray(values, dtype=object)
    flat = [mod(v, p) for v in values.reshape(-1)]
    return torch.tensor(flat, dtype=torch.int64).reshape(values.shape)


def entered(field, values):
    """Exact values as a FieldTensor, without passing through the reading of constants."""
    parts = {f"v{j}": residues_of(values, p) for j, p in enumerate(field.primes)}
    return field.wrap(parts, Note(CONSTANT))


def lanes_of(x):
    """The residues of a FieldTensor in every lane; it must hold no logarithm and no −∞."""
    for name in x.names:
        part = x.part(name)
        assert not (name.startswith("log") and bool((part != 1).any())), "an unexpected log part"
        assert not (name == "hole" and bool(part.any())), "an unexpected −∞"
    return [x.part(name) for name in x.system.values]


def assert_is(x, values):
    """x stands for exactly these values, in every lane."""
    values = np.asarray(values, dtype=object)
    assert tuple(x.shape) == values.shape, (tuple(x.shape), values.shape)
    for lane, p in zip(lanes_of(x), x.system.primes, strict=True):
        expected = residues_of(values, p)
        assert lane.dtype == torch.int64
        assert torch.equal(lane, expected), (lane, expected)


def same(x, y):
    """Whether two FieldTensors agree in shape and in every part of every lane, missing parts spelled out."""
    if x.shape != y.shape:
        return False
    names = {*x.names, *y.names}
    hole = x.full("hole")
    if not torch.equal(hole, y.full("hole")):
        return False
    return all(bool(((x.full(n) == y.full(n)) | hole).all()) for n in names)
