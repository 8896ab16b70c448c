"""The critic of a WGAN-GP with self-attention over the pixels of an image.

    ℓ = E D(fake) − E D(real) + λ E (‖∇_x D(x)‖ − 1)²,   x = real + u (fake − real)
                                                          Gulrajani et al. 2017, eq. 3

The gradient of ℓ goes through ∇_x D, itself a gradient: a double backward. Real images show a disc, fake ones
noise with the same mean. −(E D(fake) − E D(real)) grows towards the distance of the two, as ‖∇D‖ goes to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradderiv.examples.compare import both_ways, compare, parser_for, sampled
from gradderiv.examples.gpt import Attend
from gradderiv.examples.network import Network
from gradderiv.functional import attention
from gradderiv.threads import one_thread

PENALTY = 10.0
"""λ."""


class Critic(nn.Module):
    """Images (batch, side, side) → one number each; a pixel is a token, and looks at all others (Zhang et al. 2019)."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.network = Network(both_ways(attend), 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.linspace(-1, 1, x.shape[-1])
        down, right = torch.meshgrid(place, place, indexing="ij")
        tokens = torch.stack([x, down.expand_as(x), right.expand_as(x)], -1).flatten(1, 2)
        score: Tensor = self.network(tokens).squeeze(-1).sum(-1) / x.shape[-1]
        return score


class Batch(NamedTuple):
    """Images (batch, side, side) and the points between, one u each."""

    real: Tensor
    fake: Tensor
    u: Tensor


def draw(side: int, images: int, generator: torch.Generator) -> Batch:
    """A bright disc somewhere in each real image; uniform noise with the same mean in each fake one."""
    centre = torch.rand(2, images, 1, 1, generator=generator) - 0.5
    place = torch.linspace(-1, 1, side)
    real = ((place[:, None] - centre[0]) ** 2 + (place - centre[1]) ** 2 < 0.4**2).float()
    noise = torch.rand(images, side, side, generator=generator)
    fake = 2 * noise * real.mean((1, 2), keepdim=True)
    return Batch(real, fake, torch.rand(images, 1, 1, generator=generator))


def penalty(critic: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """E (‖∇_x D(x)‖ − 1)², and the norms."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    norms = slope.flatten(1).norm(dim=1)
    return (norms - 1).square().mean(), norms.detach()


class Loss(NamedTuple):
    """ℓ; E D(real) − E D(fake); the mean of ‖∇D‖."""

    total: Tensor
    apart: float
    slope: float


def loss(critic: nn.Module, batch: Batch) -> Loss:
    """ℓ = E D(fake) − E D(real) + λ E (‖∇_x D(x)‖ − 1)²"""
    real, fake, u = batch
    apart = critic(real).mean() - critic(fake).mean()
    off, norms = penalty(critic, real + u * (fake - real))
    return Loss(PENALTY * off - apart, apart.item(), norms.mean().item())


def gradients(attend: Attend, side: int, images: int, seed: int) -> Sequence[Tensor]:
    """∂ℓ/∂(every parameter) of a critic before training."""
    torch.manual_seed(seed)
    critic = Critic(attend)
    total = loss(critic, draw(side, images, torch.Generator().manual_seed(seed))).total
    return torch.autograd.grad(total, list(critic.parameters()))


def train(attend: Attend, side: int, images: int, seed: int, steps: int) -> list[Loss]:
    """The losses of a few steps."""
    torch.manual_seed(seed)
    critic, generator = Critic(attend), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
    losses = []
    for _ in range(steps):
        found = loss(critic, draw(side, images, generator))
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        losses.append(found._replace(total=found.total.detach()))
    return losses


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_for("gradient_penalty", "Train the critic of a WGAN with a gradient penalty.")
    options = parser.parse_args(argv)
    n, short, steps = (64, 8, 4) if options.quick else (1024, 16, 30)
    side = math.isqrt(options.n or n)
    with one_thread():
        print(f"WGAN-GP: a critic with attention over the {side * side} pixels of an image\n")
        work = partial(gradients, side=side, images=1, seed=options.seed)
        compare(work, "The gradient of the critic's loss")
        print(f"training with gradderiv, 4 images of {short} x {short} pixels at a time")
        print("  step     loss  E D(real) - E D(fake)  |grad D|")
        for step, (total, apart, slope) in sampled(train(attention, short, 4, options.seed, steps)):
            print(f"  {step:4}  {total.item():7.3f}  {apart:21.3f}  {slope:8.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
