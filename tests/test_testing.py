"""``gradderiv.testing``: the assertions, and the words of their failures."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor

from gradderiv.testing import assert_gradients_close, assert_proved


class Scores(torch.autograd.Function):
    """τ Q Kᵀ, whose backward forgets τ in dK."""

    @staticmethod
    def forward(ctx, Q, K):
        ctx.save_for_backward(Q, K)
        return Q @ K.mT / 2

    @staticmethod
    def backward(ctx, dS):
        Q, K = ctx.saved_tensors
        return dS @ K / 2, dS.mT @ Q


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)


def right(Q: Tensor, K: Tensor) -> Tensor:
    return Q @ K.mT / 2


def test_what_is_right_passes_and_is_returned():
    assert assert_proved(right, inputs(), order=2).verdict == "proved"
    assert assert_gradients_close(right, inputs()).verdict == "pass"


def test_the_words_of_a_refutation():
    with pytest.raises(AssertionError) as caught:
        assert_proved(Scores.apply, inputs())
    assert str(caught.value).splitlines()[:5] == [
        "the gradient is not proved: refuted",
        "",
        "all outputs  ✓ proved        Q",
        "             ✗ refuted       K",
        "",
    ]
    assert "REFUTED  Scores · K · all outputs\n      20 of 20 entries wrong." in str(caught.value)
    assert "2 × the right one" in str(caught.value)


def test_the_words_where_nothing_can_be_said():
    with pytest.raises(AssertionError, match="the gradient is not proved: inconclusive"):
        assert_proved(lambda Q, K: (Q @ K.mT).sort(-1).values, inputs())


def test_the_words_of_a_comparison():
    with pytest.raises(AssertionError) as caught:
        assert_gradients_close(Scores.apply, inputs())
    assert str(caught.value).startswith("a gradient is not what it should be: fail\n\n")
    assert "FAIL  Scores · K · float64 · tape" in str(caught.value)


def test_in_a_repository_of_ones_own(tmp_path):
    """As the README shows it: pytest prints the proof and not our frames."""
    (tmp_path / "test_mine.py").write_text(
        textwrap.dedent(
            """
            import torch
            from gradderiv.testing import assert_proved

            class Double(torch.autograd.Function):
                @staticmethod
                def forward(ctx, x):
                    return 2 * x
                @staticmethod
                def backward(ctx, g):
                    return g

            def test_double():
                assert_proved(Double.apply, (torch.randn(3),))
            """
        )
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert "REFUTED  Double · x · all outputs" in run.stdout
    assert "testing.py" not in run.stdout
