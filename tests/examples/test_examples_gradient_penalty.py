"""The critic trains, its gradient is MATH's, and a missing second derivative is noticed."""

from __future__ import annotations

import pytest
import torch

from gradderiv.examples.compare import distance, math_kernel
from gradderiv.examples.gradient_penalty import Critic, Loss, draw, gradients, loss, main, penalty, train
from gradderiv.functional import attention

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

SMALL = {"side": 6, "images": 2, "seed": 0}


def test_it_prints_the_error_the_table_and_the_training(output, figures):
    lines = output(main, "--quick", "--n", "16")
    assert "WGAN-GP: a critic with attention over the 16 pixels" in lines[0]
    assert "is not implemented" in lines[3]
    assert [step for step, *_ in figures(lines, 4)] == [1, 2, 3, 4]


def test_the_gradient_is_that_of_math(flat):
    expected = gradients(math_kernel, **SMALL)
    assert distance(gradients(attention, **SMALL), expected) < 1e-5
    assert distance(gradients(flat, **SMALL), expected) > 1e-3  # wrong on purpose


def test_the_gradient_is_the_slope_of_the_loss():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    critic, batch = Critic(attention), draw(5, 2, torch.Generator().manual_seed(0))
    along = [torch.randn_like(p) for p in critic.parameters()]
    g = torch.autograd.grad(loss(critic, batch).total, list(critic.parameters()), allow_unused=True)
    slope = sum((a * b).sum() for a, b in zip(g, along, strict=True) if a is not None)

    def moved(step):
        with torch.no_grad():
            for p, d in zip(critic.parameters(), along, strict=True):
                p += step * d
        return loss(critic, batch).total.item()

    ahead = moved(1e-5)
    assert slope.item() == pytest.approx((ahead - moved(-2e-5)) / 2e-5, rel=1e-6)


def test_the_penalty_of_a_linear_critic():
    a, x = torch.randn(3, 4), torch.randn(2, 3, 4)
    found, norms = penalty(lambda x: (a * x).sum((1, 2)), x)
    assert norms.allclose(a.norm())
    assert found.allclose((a.norm() - 1).square())


def test_the_images_have_equal_means():
    real, fake, u = draw(32, 200, torch.Generator().manual_seed(0))
    assert set(real.unique().tolist()) == {0, 1}
    assert real.mean().item() == pytest.approx(fake.mean().item(), rel=0.02)
    assert u.min() > 0
    assert u.max() < 1


def test_it_learns_to_tell_them_apart_with_a_slope_near_1():
    rows = train(attention, side=8, images=4, seed=0, steps=30)
    assert rows[-1].apart > rows[0].apart + 0.5
    assert abs(rows[-1].slope - 1) < 0.5 < abs(rows[0].slope - 1)


def test_it_depends_on_the_seed_alone():
    first, again, other = (
        [Loss(t.item(), a, s) for t, a, s in train(attention, 4, 2, seed, 2)] for seed in (0, 0, 1)
    )
    assert first == again != other
