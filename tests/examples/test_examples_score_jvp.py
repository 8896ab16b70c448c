"""The score is learnt, its gradient is MATH's and that of a double backward, and wrong ones are noticed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradderiv.examples.compare import both_ways, distance, math_kernel
from gradderiv.examples.network import Network
from gradderiv.examples.score_jvp import (
    SIGMA,
    clusters,
    error,
    gradients,
    loss,
    main,
    make,
    train,
    true_score,
)
from gradderiv.functional import attention

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def test_it_prints_the_error_the_table_and_the_training(output, figures):
    lines = output(main, "--quick", "--n", "16")
    assert "clusters of 16 points" in lines[0]
    assert lines[3].startswith("  NotImplementedError: Trying to use f")
    assert [step for step, *_ in figures(lines, 3)] == [1, 2, 3, 4]


def test_the_gradient_is_that_of_math(flat, constant_weights):
    expected = gradients(math_kernel, 8, seed=0)
    assert distance(gradients(attention, 8, seed=0), expected) < 1e-5
    for wrong in (flat, constant_weights):
        assert distance(gradients(wrong, 8, seed=0), expected) > 1e-3


def by_double_backward(score, x, v):
    """The same loss in reverse mode twice: ∇_x(vᵀ s), then the gradient of its product with v."""
    x = x.clone().requires_grad_()
    s = score(x)
    (g,) = torch.autograd.grad((v * s).sum(), x, create_graph=True)
    return ((v * g).sum() + 0.5 * s.square().sum()) / (x.shape[0] * x.shape[1])


@pytest.mark.parametrize(("norm", "right"), [(nn.RMSNorm, True), (nn.LayerNorm, False)])
def test_reverse_over_forward_mode_is_double_backward_but_for_layer_norm(norm, right):
    torch.manual_seed(0)
    score = Network(both_ways(attention), 2, 2, norm=norm).double()
    x, v = torch.randn(2, 2, 5, 2, dtype=torch.float64)
    found, expected = (f(score, x, v) for f in (loss, by_double_backward))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    away = distance(*(torch.autograd.grad(f, list(score.parameters())) for f in (found, expected)))
    assert (away < 1e-12) if right else (away > 1e-2)  # pytorch/pytorch#196700


def test_the_norms_are_root_mean_squares():
    assert not any(isinstance(part, nn.LayerNorm) for part in make(attention).modules())


def test_the_true_score_is_the_gradient_of_the_log_density():
    x = clusters(5, 3, torch.Generator().manual_seed(0)).double().requires_grad_()
    covariance = 1 + SIGMA**2 * torch.eye(5, dtype=torch.float64)
    density = torch.distributions.MultivariateNormal(torch.zeros(5, dtype=torch.float64), covariance)
    (expected,) = torch.autograd.grad(density.log_prob(x.mT).sum(), x)
    assert distance([true_score(x.detach())], [expected]) < 1e-12
    assert error(true_score, x) == 0
    assert error(torch.zeros_like, x) == pytest.approx(1)


def test_the_true_score_has_the_least_loss():
    """E ℓ(s) − E ℓ(true) = ½ E ‖s − true‖², here of scores longer by a tenth; per point and averaged."""
    generator = torch.Generator().manual_seed(0)
    x = clusters(8, 4000, generator)
    v = torch.randn(x.shape, generator=generator)
    more = loss(lambda x: 1.1 * true_score(x), x, v) - loss(true_score, x, v)
    expected = 0.5 * 0.01 * true_score(x).square().sum() / x[..., 0].numel()
    assert more.item() == pytest.approx(expected.item(), rel=0.5)


def test_the_score_is_learnt_and_attention_is_what_learns_it():
    def last(attend):
        return train(attend, 8, 0, 40, batch=16)[-1][1]

    assert last(attention) < 0.25
    assert last(lambda Q, K, V: V) > 0.4  # sees the point itself only


def test_it_depends_on_the_seed_alone():
    first, again, other = (train(attention, 4, seed, 2) for seed in (0, 0, 1))
    assert first == again != other
