"""One meta-step of MAML through a small transformer that continues waves.

    θ' = θ − α ∇ℓ(θ; support)          the inner step, one for each task
    dθ = ∇_θ Σ ℓ(θ'; query)            the outer gradient, through the inner step      Finn et al. 2017, eq. 1

A task is a wave A sin(ω t + φ); support and query are two stretches of it, and the model is to predict each next
value. First-order MAML leaves out the derivative of ∇ℓ by θ, the only part that needs a second derivative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value
from torch.nn.functional import cosine_similarity, mse_loss

from gradderiv.examples.compare import compare, parameters, parser_for, sampled
from gradderiv.examples.gpt import Attend
from gradderiv.examples.network import Network
from gradderiv.functional import attention
from gradderiv.threads import one_thread

Parameters = dict[str, Tensor]

INNER, TASKS = 0.01, 2
"""α; tasks in a meta-step."""


def waves(n: int, tasks: int, generator: torch.Generator) -> Tensor:
    """(tasks, 2, n + 1): two stretches of A sin(ω t + φ) for each task, 1/2 ≤ A ≤ 2, periods of 8 to 32."""
    A, w, phase = torch.rand(3, tasks, 1, 1, generator=generator)
    A, w = 0.5 + 1.5 * A, 2 * math.pi / (8 + 24 * w)
    t = torch.arange(2.0 * (n + 1)).view(2, -1)
    return A * torch.sin(w * t + 2 * math.pi * phase)


def loss(theta: Parameters, model: nn.Module, wave: Tensor) -> Tensor:
    """ℓ(θ; wave) = mean (predicted − next value)²"""
    predicted: Tensor = functional_call(model, theta, (wave[None, :-1, None],))
    return mse_loss(predicted[0, :, 0], wave[1:])


def adapted(theta: Parameters, model: nn.Module, support: Tensor, first_order: bool) -> Parameters:
    """θ' = θ − α ∇ℓ(θ; support)"""
    dtheta = grad(loss)(theta, model, support)
    if first_order:
        dtheta = {name: g.detach() for name, g in dtheta.items()}
    return {name: p - INNER * dtheta[name] for name, p in theta.items()}


def outer(theta: Parameters, model: nn.Module, tasks: Tensor, first_order: bool) -> Tensor:
    """mean ℓ(θ'; query) over the tasks"""
    losses = [
        loss(adapted(theta, model, support, first_order), model, query) for support, query in tasks.unbind()
    ]
    return torch.stack(losses).mean()


def gradients(attend: Attend, n: int, seed: int, first_order: bool = False) -> Sequence[Tensor]:
    """dθ = ∇_θ ℓ(θ'; query) before training."""
    torch.manual_seed(seed)
    model = Network(attend, 1, 1)
    tasks = waves(n, TASKS, torch.Generator().manual_seed(seed))
    return tuple(grad(outer)(parameters(model), model, tasks, first_order).values())


def train(attend: Attend, n: int, seed: int, steps: int, first_order: bool) -> list[float]:
    """The outer loss at every meta-step."""
    torch.manual_seed(seed)
    model, generator, losses = Network(attend, 1, 1), torch.Generator().manual_seed(seed), []
    theta = parameters(model)
    optimizer = torch.optim.Adam(theta.values(), lr=3e-3)
    for _ in range(steps):
        tasks = waves(n, TASKS, generator)
        dtheta, value = grad_and_value(outer)(theta, model, tasks, first_order)
        for name, p in theta.items():
            p.grad = dtheta[name]
        optimizer.step()
        losses.append(value.item())
    return losses


def main(argv: Sequence[str] | None = None) -> int:
    options = parser_for("maml", "MAML and first-order MAML on waves.").parse_args(argv)
    n, short, steps = (64, 16, 4) if options.quick else (1024, 64, 30)
    n = options.n or n
    with one_thread():
        print(f"MAML: {TASKS} waves, an inner step on {n} values of each\n")
        compare(partial(gradients, n=n, seed=options.seed), "The outer gradient")
        full, first = (
            torch.cat([g.flatten() for g in gradients(attention, short, options.seed, first_order)])
            for first_order in (False, True)
        )
        print(f"cosine of the full and the first-order gradient: {cosine_similarity(full, first, 0):.3f}")
        print(f"\nthe loss after the inner step, training with gradderiv on {short} values of a wave")
        print("  step  full MAML  first-order MAML")
        runs = [train(attention, short, options.seed, steps, first_order) for first_order in (False, True)]
        for step, (full_loss, first_loss) in sampled(list(zip(*runs, strict=True))):
            print(f"  {step:4}  {full_loss:9.4f}  {first_loss:16.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
