"""An error is caught and shown, time and memory are measured, and the ratios say what they should."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gradderiv.examples import compare as module
from gradderiv.examples.compare import (
    DEFAULT,
    MATH,
    OURS,
    Run,
    attempt,
    both_ways,
    compare,
    distance,
    first_line,
    math_kernel,
    measure,
    sampled,
    saved,
)
from gradderiv.functional import attention

Q, K, V = torch.randn(3, 1, 2, 9, 4, generator=torch.Generator().manual_seed(0)).unbind()


def twice(attend):
    """A gradient of a gradient."""
    x = Q.clone().requires_grad_()
    (g,) = torch.autograd.grad(attend(x, K, V).square().sum(), x, create_graph=True)
    return torch.autograd.grad(g.square().sum(), x)


def test_the_defaults_error_is_the_real_one():
    with pytest.raises(RuntimeError, match="is not implemented") as real:
        twice(scaled_dot_product_attention)
    result, (said,) = attempt(twice, scaled_dot_product_attention)
    assert result is None
    assert said == first_line(real.value)
    start, end = said.split("...")
    assert str(real.value).startswith(start.removeprefix("  RuntimeError: "))
    assert str(real.value).endswith(end)
    assert 78 <= len(said) <= 80


def test_a_slip_of_the_program_is_not_taken_for_an_answer():
    def slip(attend):
        raise TypeError

    with pytest.raises(TypeError):
        attempt(slip, attention)


def test_warnings_are_told_once_each_and_short():
    def work(attend):
        for _ in range(2):
            warnings.warn("slow. And more\nof it", stacklevel=1)
        return [attend(Q, K, V)]

    result, said = attempt(work, attention)
    assert len(result) == 1
    assert said == ["  UserWarning: slow"]


def test_ours_is_math_and_the_table_says_so(capsys):
    runs = compare(twice, "Twice", repeats=1)
    assert list(runs) == [OURS, MATH]
    assert distance(runs[OURS].result, runs[MATH].result) < 1e-6
    text = capsys.readouterr().out
    assert text.startswith("Twice, with PyTorch's default kernel:\n  RuntimeError: derivative for")
    assert "gradderiv beside PyTorch's MATH: " in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_the_default_can_do_has_a_row(capsys):
    assert list(compare(lambda attend: [attend(Q, K, V)], "Once", 1)) == [OURS, DEFAULT, MATH]
    text = capsys.readouterr().out
    assert "kernel:\n  runs\n" in text
    assert "gradderiv beside PyTorch's default: " in text


def test_a_wrong_attention_shows_in_the_table(capsys, monkeypatch):
    monkeypatch.setattr(module, "attention", lambda Q, K, V: attention(Q, K, V, scale=1.0))
    compare(twice, "Twice", repeats=1)
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  {OURS}"))
    assert float(row.split()[-1]) > 0.1


def test_distance_is_relative_and_sees_a_shape():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])
    assert distance([a, b], [a, b]) == 0
    assert distance([a, 0 * b], [a, b]) == pytest.approx(12 / 13)
    with pytest.raises(ValueError, match="shapes differ"):
        distance([a], [a[None]])
    with pytest.raises(ValueError, match="argument 2"):
        distance([a], [a, b])


@pytest.mark.parametrize(
    ("ours", "other", "words"),
    [
        ((1.0, 10), (3.1, 400), "3.1 x faster, 1/40 of the memory"),
        ((2.0, 10), (1.0, 10), "2.0 x slower, 1.0 x the memory"),
        ((1.0, 25), (1.0, 10), "1.0 x faster, 2.5 x the memory"),
        ((1.0, None), (2.0, None), "2.0 x faster"),
        ((1.0, 0), (2.0, 10), "2.0 x faster"),
    ],
)
def test_the_ratio_in_words(ours, other, words):
    assert saved(Run([], *ours), Run([], *other)) == words


def test_memory_is_what_was_held_at_most(monkeypatch):
    held = iter([100, None])
    monkeypatch.setattr(module, "forget", lambda: next(held))
    monkeypatch.setattr(module, "peak", lambda: 130)
    assert measure(lambda attend: [], attention, 1).extra == 30
    assert measure(lambda attend: [], attention, 1).extra is None


def test_the_time_is_the_median(monkeypatch):
    clock = iter([0.0, 1.0, 1.0, 6.0, 6.0, 8.0])
    monkeypatch.setattr(module.time, "process_time", lambda: next(clock))
    assert measure(lambda attend: [], attention, 3).seconds == 2


def test_a_large_tensor_is_seen():
    def work(attend):
        return [torch.ones(2**23).sum()]  # 32 MiB for a moment

    extra = measure(work, attention, 1).extra
    assert extra is None or 0.9 < extra / 2**25 < 2


def test_both_ways_lifts_the_causal_mask():
    lifted = both_ways(math_kernel)(Q, K, V, is_causal=True)
    assert lifted.equal(math_kernel(Q, K, V))
    assert not lifted.equal(math_kernel(Q, K, V, is_causal=True))


def test_the_first_step_and_some_more():
    assert list(sampled("abcdefghij", 3)) == [(1, "a"), (3, "c"), (6, "f"), (9, "i")]
    assert list(sampled("ab")) == [(1, "a"), (2, "b")]
