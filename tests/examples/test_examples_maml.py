"""The outer loss falls, its gradient is MATH's, and first order is less than all of it."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad
from torch.nn.functional import scaled_dot_product_attention

from gradderiv.examples.compare import distance, math_kernel, parameters
from gradderiv.examples.maml import INNER, adapted, gradients, loss, main, outer, train, waves
from gradderiv.examples.network import Network
from gradderiv.functional import attention

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def test_it_prints_the_error_the_table_and_the_training(output, figures):
    lines = output(main, "--quick", "--n", "16")
    assert "an inner step on 16 values of each" in lines[0]
    assert "is not implemented" in lines[3]
    steps = figures(lines, 3)
    assert [step for step, *_ in steps] == [1, 2, 3, 4]
    assert steps[0][1] == steps[0][2]  # the same loss, before either gradient


def test_the_gradient_is_that_of_math(flat):
    expected = gradients(math_kernel, 12, seed=0)
    assert distance(gradients(attention, 12, seed=0), expected) < 1e-5
    assert distance(gradients(flat, 12, seed=0), expected) > 1e-3  # wrong on purpose


def test_first_order_is_the_gradient_at_the_adapted_weights_and_the_default_has_it():
    torch.manual_seed(0)
    model = Network(scaled_dot_product_attention, 1, 1)
    theta, tasks = parameters(model), waves(12, 2, torch.Generator().manual_seed(0))
    there = [
        grad(loss)(adapted(theta, model, support, True), model, query) for support, query in tasks.unbind()
    ]
    expected = [sum(g[name] for g in there) / 2 for name in theta]
    assert distance(gradients(scaled_dot_product_attention, 12, 0, first_order=True), expected) < 1e-5
    assert distance(gradients(attention, 12, 0, first_order=True), expected) < 1e-5
    assert distance(gradients(attention, 12, 0), expected) > 0.01


def test_the_full_gradient_is_the_slope_of_the_outer_loss():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model, tasks = Network(attention, 1, 1), waves(6, 2, torch.Generator().manual_seed(0))
    theta = parameters(model)
    along = {name: torch.randn_like(p) for name, p in theta.items()}

    def moved(step):
        there = {name: p + step * along[name] for name, p in theta.items()}
        return outer(there, model, tasks, False).item()

    slopes = [
        sum((g * along[name]).sum().item() for name, g in grad(outer)(theta, model, tasks, first).items())
        for first in (False, True)
    ]
    expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert slopes[0] == pytest.approx(expected, rel=1e-6)
    assert slopes[1] != pytest.approx(expected, rel=1e-2)


def test_the_inner_step_is_one_of_gradient_descent():
    torch.manual_seed(0)
    model = Network(attention, 1, 1)
    theta, (support,) = parameters(model), waves(6, 1, torch.Generator().manual_seed(0))[:, 0]
    found = adapted({name: p.clone() for name, p in theta.items()}, model, support, False)
    loss(dict(model.named_parameters()), model, support).backward()
    torch.optim.SGD(model.parameters(), lr=INNER).step()
    assert distance(list(found.values()), [p.detach() for p in model.parameters()]) < 1e-7


def test_query_and_support_are_one_wave():
    (wave,) = waves(40, 1, torch.Generator().manual_seed(0))
    wave = wave.flatten().double()
    following = (wave[2:] + wave[:-2]) / wave[1:-1]  # 2 cos ω, everywhere
    assert following[wave[1:-1].abs() > 0.1].std() < 1e-4


def test_the_loss_falls():
    losses = train(attention, 16, 0, 30, first_order=False)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_it_depends_on_the_seed_alone():
    first, again, other = (train(attention, 6, seed, 2, first_order=False) for seed in (0, 0, 1))
    assert first == again != other
