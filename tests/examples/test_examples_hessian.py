"""H v is MATH's and that of differences, Lanczos finds an eigenvalue, and wrong ones are noticed."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad
from torch.nn.functional import scaled_dot_product_attention

from gradderiv.examples.compare import distance, math_kernel
from gradderiv.examples.hessian import (
    Hessian,
    gpt,
    lanczos,
    main,
    next_byte_loss,
    product,
    texts,
    top,
    trained,
)
from gradderiv.functional import attention

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

N = 12


def test_it_prints_the_error_the_table_and_the_eigenvalue(output, figures):
    lines = output(main, "--quick", "--n", "16")
    assert "on 16 bytes of text" in lines[0]
    assert lines[3].startswith("  NotImplementedError: Trying to use f")
    assert [step for step, _ in figures(lines, 2)] == [1, 2, 3, 4]
    assert lines[-1].startswith("Gradient descent is stable up to")


def test_the_product_is_that_of_math(flat):
    theta = trained(N, 0, 1)
    expected = product(math_kernel, N, 0, theta)
    assert distance(product(attention, N, 0, theta), expected) < 1e-5
    assert distance(product(flat, N, 0, theta), expected) > 1e-3  # wrong on purpose


def test_the_product_is_the_difference_of_gradients_of_the_default():
    torch.set_default_dtype(torch.float64)
    theta, text = trained(N, 0, 1), texts(N, 1, torch.Generator().manual_seed(0))
    H, default = Hessian(attention, theta, text), Hessian(scaled_dot_product_attention, theta, text)
    v = torch.randn(H.width)
    parts = v.split([p.numel() for p in theta.values()])

    def gradient(step):
        there = {n: p + step * d.view_as(p) for (n, p), d in zip(theta.items(), parts, strict=True)}
        return torch.cat([g.flatten() for g in grad(default.loss)(there).values()])

    expected = (gradient(1e-5) - gradient(-1e-5)) / 2e-5
    assert distance([H(v)], [expected]) < 1e-5


def test_the_hessian_is_symmetric():
    torch.set_default_dtype(torch.float64)
    H = Hessian(attention, trained(N, 0, 1), texts(N, 2, torch.Generator().manual_seed(0)))
    u, v = torch.randn(2, H.width)
    assert (u @ H(v)).item() == pytest.approx((v @ H(u)).item(), rel=1e-9)


def test_lanczos_finds_the_largest_eigenvalue():
    eigenvalues = torch.cat([torch.linspace(-3, 1, 99), torch.tensor([2.0])])
    values, x = lanczos(lambda v: eigenvalues * v, torch.ones(100), 30)
    assert values[-1] == pytest.approx(2, rel=1e-5)
    assert values[:10] == sorted(values[:10])
    assert x.abs()[-1].item() == pytest.approx(1, rel=1e-4)
    assert values[3] < 1.9  # a few steps do not


def test_lanczos_of_a_gpt_ends_at_an_eigenvalue():
    theta = trained(N, 0, 10)
    values, residual = top(attention, N, 0, theta, 8)
    assert residual < 0.01 * values[-1]
    same, _ = top(math_kernel, N, 0, theta, 8)
    assert values[-1] == pytest.approx(same[-1], rel=1e-4)
    short, residual = top(attention, N, 0, theta, 3)
    assert residual > 0.01 * short[-1]


def test_a_text_longer_than_the_essay_is_refused():
    with pytest.raises(ValueError, match="no text of 10001"):
        texts(10_000, 1, torch.Generator())


def test_the_context_is_as_long_as_asked_and_training_helps():
    text = texts(100, 2, torch.Generator().manual_seed(0))
    assert text.shape == (2, 101)
    model = gpt(scaled_dot_product_attention, 100)
    scores = model(text[:, :-1])
    assert scores.shape == (2, 100, 256)
    before = next_byte_loss(scores, text)
    model.load_state_dict(trained(100, 0, 4))
    assert next_byte_loss(model(text[:, :-1]), text) < before - 1


def test_it_depends_on_the_seed_alone():
    first, again, other = (top(attention, 4, seed, trained(4, seed, 1), 2)[0] for seed in (0, 0, 1))
    assert first == again != other
