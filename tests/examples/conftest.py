"""What the tests of the programs share: attentions that are wrong on purpose, and a program's output."""

from __future__ import annotations

import pytest
import torch

from gradderiv.examples.compare import math_kernel


@pytest.fixture
def flat():
    """Value and first derivatives are right, second derivatives are missing: the tangent plane of attention.

    O(x₀) + ∂O/∂x (x − x₀) at x₀ = x, which is a constant.
    """

    def attend(Q, K, V, is_causal=False):
        here = tuple(x.detach() for x in (Q, K, V))
        away = tuple(x - x0 for x, x0 in zip((Q, K, V), here, strict=True))
        O, O_dot = torch.func.jvp(lambda *x: math_kernel(*x, is_causal=is_causal), here, away)
        return O + O_dot

    return attend


@pytest.fixture
def constant_weights():
    """The value is right, Q and K have no derivative."""

    def attend(Q, K, V, is_causal=False):
        return math_kernel(Q.detach(), K.detach(), V, is_causal=is_causal)

    return attend


@pytest.fixture
def output(capsys):
    """Run a program; its lines, which fit a terminal."""

    def run(main, *argv):
        assert main(argv) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        assert all(line.isascii() for line in lines)
        return lines

    return run


@pytest.fixture
def figures():
    """The rows of a program's output that are ``columns`` numbers; a share counts as a number."""

    def numbers(line):
        try:
            return [float(cell.rstrip("%")) for cell in line.split()]
        except ValueError:
            return []

    def rows(lines, columns):
        return [row for row in map(numbers, lines) if len(row) == columns]

    return rows
