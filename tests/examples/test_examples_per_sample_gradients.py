"""vmap(grad) is MATH's and a loop's, clipping clips, and wrong gradients are noticed."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gradderiv.examples.compare import attempt, distance, math_kernel
from gradderiv.examples.per_sample_gradients import (
    CLIP,
    NOISE,
    gradients,
    loop,
    main,
    norms,
    private,
    train,
)
from gradderiv.functional import attention

SMALL = {"n": 10, "batch": 3, "seed": 0}


def test_it_prints_the_warning_the_table_and_the_training(output, figures):
    lines = output(main, "--quick", "--n", "16")
    assert "texts of 16 bytes" in lines[0]
    assert lines[3] == "  runs"
    assert lines[4].startswith("  UserWarning: There is a performance")
    assert [step for step, *_ in figures(lines, 4)] == [1, 2, 3, 4]


def test_the_gradients_are_those_of_math_and_of_a_loop(constant_weights):
    expected = gradients(math_kernel, **SMALL)
    wrong = gradients(constant_weights, **SMALL)
    for found in (gradients(attention, **SMALL), loop(attention, **SMALL), loop(math_kernel, **SMALL)):
        assert distance(found, expected) < 1e-5
        assert distance(found, wrong) > 1e-3


def test_the_default_runs_and_says_that_it_is_slow():
    result, said = attempt(lambda attend: gradients(attend, **SMALL), scaled_dot_product_attention)
    assert distance(result, gradients(attention, **SMALL)) < 1e-5
    assert len(said) == 2
    assert all(line.startswith("  UserWarning: There is a performance") for line in said)


def test_the_mean_is_the_gradient_of_the_mean_and_a_row_is_one_texts():
    rows = gradients(attention, **SMALL)
    assert all(len(a) == 3 for a in rows)
    assert distance([a[0] for a in rows], [a[1] for a in rows]) > 0.1


def test_clipping_clips_the_long_ones_alone():
    g = {"a": torch.tensor([[3.0, 0.0], [0.3, 0.0]]), "b": torch.tensor([4.0, 0.4])}
    assert norms(g).tolist() == pytest.approx([5, 0.5])
    kept = private(g, torch.Generator().manual_seed(0))
    noise = 5 * NOISE * CLIP / 2
    short = CLIP / 5
    assert kept["a"].tolist() == pytest.approx([(3 * short + 0.3) / 2, 0], abs=noise)
    assert kept["b"].item() == pytest.approx((4 * short + 0.4) / 2, abs=noise)


def test_the_noise_has_its_standard_deviation():
    g = {"a": torch.zeros(4, 10_000)}
    noise = private(g, torch.Generator().manual_seed(0))["a"]
    assert noise.std().item() == pytest.approx(NOISE * CLIP / 4, rel=0.05)


def test_the_loss_falls():
    rows = train(attention, 16, 4, 0, 15)
    assert rows[-1].loss < rows[0].loss - 1
    assert 0 <= min(row.clipped for row in rows) <= max(row.clipped for row in rows) <= 1


def test_it_depends_on_the_seed_alone():
    first, again, other = (train(attention, 6, 2, seed, 2) for seed in (0, 0, 1))
    assert first == again != other
