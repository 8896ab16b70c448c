"""The example trains, its figure holds for the closed forms, and does not for a wrong one."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gradderiv.examples import train_gpt
from gradderiv.examples.gpt import CONTEXT, GPT
from gradderiv.examples.train_gpt import Comparison, Run, compare, main, train
from gradderiv.rules import tile

STEPS = "30"

once = functools.cache(train)


@pytest.fixture(autouse=True)
def each_run_once_on_one_thread(monkeypatch):
    """The runs of PyTorch's kernels serve several tests."""
    monkeypatch.setattr(train_gpt, "train", once)
    with train_gpt.one_thread():
        yield


def test_the_figure_holds_and_is_printed_in_80_columns(capsys):
    assert main(["--steps", STEPS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.isascii() for line in lines)
    assert lines[0].split()[:4] == ["step", "ours", "default", "MATH"]
    table = [[float(cell) for cell in line.split()] for line in lines[1 : lines.index("")]]
    assert [int(row[0]) for row in table] == [5, 10, 15, 20, 25, 30]
    assert table[-1][1] < table[0][1] - 0.5  # it learns
    for _, ours, default, math, near, far in table:
        assert max(abs(ours - default), abs(default - math)) <= 1.1e-5  # as far as the digits show
        assert max(near, far) < 1e-5
    assert lines[-1] == "Ours differs from PyTorch's default no more than its two kernels differ."


def test_a_wrong_backward_pass_is_told(monkeypatch, capsys):
    right = tile._arriving

    def without_row_sum(d, x, now):
        dP, back = right(d, x, now)
        return dP, torch.zeros_like(back)

    monkeypatch.setattr(tile, "_arriving", without_row_sum)
    # not the runs that are kept, which are of the right one
    monkeypatch.setattr(
        train_gpt,
        "train",
        lambda attend, *more: (train if attend is train_gpt.closed_forms else once)(attend, *more),
    )
    assert main(["--steps", STEPS]) == 1
    assert "MORE THAN" in capsys.readouterr().out.splitlines()[-1]


def test_the_thread_count_is_put_back(monkeypatch):
    monkeypatch.setattr(train_gpt, "train", lambda *_: [float(torch.get_num_threads())] * 25)
    torch.set_num_threads(2)
    main(["--steps", "25"])
    assert torch.get_num_threads() == 2


def test_too_few_steps_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--steps", "24"])
    assert stop.value.code == 2
    assert "too few" in capsys.readouterr().err


def test_training_depends_on_the_seed_alone():
    def distracting(Q, K, V, is_causal):
        torch.rand(1)
        return scaled_dot_product_attention(Q, K, V, is_causal=is_causal)

    expected = train(scaled_dot_product_attention, 7, 3)
    assert train(distracting, 7, 3) == expected
    assert train(scaled_dot_product_attention, 8, 3) != expected


@pytest.mark.parametrize("is_causal", [True, False])
def test_the_model_does_not_see_the_future(is_causal):
    torch.manual_seed(0)
    model = GPT(lambda Q, K, V, **_: scaled_dot_product_attention(Q, K, V, is_causal=is_causal))
    tokens = torch.randint(256, (1, CONTEXT))
    other = tokens.clone()
    other[0, -1] = (tokens[0, -1] + 1) % 256
    change = (model(tokens) - model(other)).abs().amax((0, 2))
    assert change[-1] > 0.1
    assert (change[:-1].max() < 1e-5) == is_causal


@pytest.mark.parametrize(
    ("unequal", "limit"),
    # (C(20,19) + 1)/2²⁰ = 2.0e-5 and with C(20,18) 2.0e-4; 2⁻¹⁴ = 6.1e-5; 2⁻¹³ = 1.2e-4: no count is enough
    [(20, 19), (14, 14), (13, 14), (0, 1)],
)
def test_the_limit_is_that_of_the_sign_test(unequal, limit):
    assert Comparison([], [], 0, unequal).limit == limit


def test_the_sign_test_counts_sampled_steps_and_skips_ties():
    step = [0.0] * 4
    run = Run(ours=[*step, 3.0, *step, 1.0], default=[*step, 1.0, *step, 1.0], math=[*step, 0.0, *step, 1.0])
    assert compare([run]) == Comparison([2.0, 0.0], [1.0, 0.0], further=1, unequal=1)
    near = Comparison([], [], further=18, unequal=20)
    assert near.holds
    assert not near._replace(further=19).holds
