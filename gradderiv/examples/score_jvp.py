"""Learn the score of a density by sliced score matching: reverse mode over forward mode.

    ℓ = E vᵀ ∇_x(vᵀ s(x)) + ½ ‖s(x)‖²,   s → ∇ log p           Song et al. 2019, SSM-VR; v normal

vᵀ ∇_x(vᵀ s) = vᵀ (∂s/∂x) v is one product of a forward derivative with v, by ``torch.func.jvp``; its gradient by
the weights is reverse mode over that. The data are clusters of points around an unknown centre, x_i = c + σ ε_i,
whose score is known: s_i = (m − x_i)/σ², m = Σ x_i/(n + σ²). Attention is what it takes to see m.

The norms are RMSNorm. With LayerNorm this loss has a wrong gradient in PyTorch 2.13, whatever the attention and
without a word: its forward derivative takes mean and variance for constants when it is differentiated again
(pytorch/pytorch#196700 has the same in forward mode twice).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import jvp

from gradderiv.examples.compare import both_ways, compare, parser_for, sampled
from gradderiv.examples.gpt import Attend
from gradderiv.examples.network import Network
from gradderiv.functional import attention
from gradderiv.threads import one_thread

SIGMA, BATCH = 0.7, 2
"""σ; clusters in a batch."""


def clusters(n: int, batch: int, generator: torch.Generator) -> Tensor:
    """x_i = c + σ ε_i in the plane, c and ε_i normal: (batch, n, 2)."""
    centre = torch.randn(batch, 1, 2, generator=generator)
    return centre + SIGMA * torch.randn(batch, n, 2, generator=generator)


def true_score(x: Tensor) -> Tensor:
    """s_i = −(x_i − m)/σ²,  m = Σ x_i/(n + σ²)"""
    m = x.sum(1, keepdim=True) / (x.shape[1] + SIGMA**2)
    return (m - x) / SIGMA**2


def loss(score: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    """ℓ = (vᵀ (∂s/∂x) v + ½ ‖s‖²)/n, the mean over the batch"""
    s, s_dot = jvp(score, (x,), (v,))[:2]
    total: Tensor = (v * s_dot).sum() + 0.5 * s.square().sum()
    return total / (x.shape[0] * x.shape[1])


def make(attend: Attend) -> nn.Module:
    """s: every point looks at all points."""
    return Network(both_ways(attend), 2, 2, norm=nn.RMSNorm)


def gradients(attend: Attend, n: int, seed: int) -> Sequence[Tensor]:
    """∂ℓ/∂(every weight) before training."""
    torch.manual_seed(seed)
    score, generator = make(attend), torch.Generator().manual_seed(seed)
    x = clusters(n, BATCH, generator)
    v = torch.randn(x.shape, generator=generator)
    return torch.autograd.grad(loss(score, x, v), list(score.parameters()))


def train(attend: Attend, n: int, seed: int, steps: int, batch: int = 32) -> list[tuple[float, float]]:
    """(ℓ, the error of s on clusters that were not learnt) at every step."""
    torch.manual_seed(seed)
    score, generator = make(attend), torch.Generator().manual_seed(seed)
    others = clusters(n, 4 * batch, generator)
    optimizer = torch.optim.Adam(score.parameters(), lr=3e-3)
    rows = []
    for _ in range(steps):
        x = clusters(n, batch, generator)
        value = loss(score, x, torch.randn(x.shape, generator=generator))
        optimizer.zero_grad()
        value.backward()
        rows.append((value.item(), error(score, others)))
        optimizer.step()
    return rows


@torch.no_grad()
def error(score: nn.Module, x: Tensor) -> float:
    """‖s − ∇ log p‖²/‖∇ log p‖²"""
    right = true_score(x)
    return float((score(x) - right).square().sum() / right.square().sum())


def main(argv: Sequence[str] | None = None) -> int:
    options = parser_for("score_jvp", "Sliced score matching with jvp through attention.").parse_args(argv)
    n, short, steps = (64, 8, 4) if options.quick else (1024, 16, 100)
    n = options.n or n
    with one_thread():
        print(f"sliced score matching: {BATCH} clusters of {n} points\n")
        compare(partial(gradients, n=n, seed=options.seed), "The gradient of the loss")
        print(f"training with gradderiv, {short} points\n  step     loss  error of the score")
        for step, (value, wrong) in sampled(train(attention, short, options.seed, steps)):
            print(f"  {step:4}  {value:7.3f}  {wrong:18.3f}")
        print("The error is |s - grad log p|^2/|grad log p|^2: 1 for s = 0.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
