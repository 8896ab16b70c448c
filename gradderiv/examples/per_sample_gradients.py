"""DP-SGD on a small GPT: the gradient of each text by itself, clipped; their sum with noise.

    g_i = ∇ℓ(θ; x_i),   ḡ_i = g_i/max(1, ‖g_i‖/C),   θ ← θ − η (Σ ḡ_i + N(0, σ²C²))/L
                                                        Abadi et al. 2016, algorithm 1

All g_i at once are ``vmap(grad(ℓ))``. The default kernel has no batching rule in PyTorch 2.13: it runs the
texts one after the other, and warns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from gradderiv.examples.compare import OURS, compare, distance, parameters, parser_for, sampled
from gradderiv.examples.gpt import Attend
from gradderiv.examples.hessian import gpt, next_byte_loss, texts
from gradderiv.functional import attention
from gradderiv.threads import one_thread

Parameters = dict[str, Tensor]

CLIP, NOISE = 1.3, 0.01
"""C, σ. A σ this small protects little; a text of 8 kB affords no more. No budget of privacy is computed."""


def loss(theta: Parameters, model: nn.Module, text: Tensor) -> Tensor:
    """ℓ(θ; x) of one text."""
    return next_byte_loss(functional_call(model, theta, (text[None, :-1],)), text[None])


def per_sample(theta: Parameters, model: nn.Module, batch: Tensor) -> tuple[Parameters, Tensor]:
    """g_i = ∇ℓ(θ; x_i) along a new first axis, and ℓ(θ; x_i)"""
    of_one = grad_and_value(lambda theta, text: loss(theta, model, text))
    found: tuple[Parameters, Tensor] = vmap(of_one, in_dims=(None, 0))(theta, batch)
    return found


def one_by_one(theta: Parameters, model: nn.Module, batch: Tensor) -> Parameters:
    """The same by a backward pass for each text."""
    theta = {name: p.detach().requires_grad_() for name, p in theta.items()}
    rows = [torch.autograd.grad(loss(theta, model, text), list(theta.values())) for text in batch]
    return {name: torch.stack(column) for name, column in zip(theta, zip(*rows, strict=True), strict=True)}


def norms(g: Parameters) -> Tensor:
    """‖g_i‖ over all parameters together."""
    return torch.stack([a.reshape(len(a), -1).norm(dim=1) for a in g.values()]).norm(dim=0)


def private(g: Parameters, generator: torch.Generator) -> Parameters:
    """(Σ g_i/max(1, ‖g_i‖/C) + N(0, σ²C²))/L"""
    keep = 1 / (norms(g) / CLIP).clamp(min=1)
    total = {name: torch.tensordot(keep, a, 1) for name, a in g.items()}
    return {
        name: (a + NOISE * CLIP * torch.randn(a.shape, generator=generator)) / len(keep)
        for name, a in total.items()
    }


class Step(NamedTuple):
    """The mean of ℓ; the median of ‖g_i‖; the share of texts that were clipped."""

    loss: float
    norm: float
    clipped: float


def train(attend: Attend, n: int, batch: int, seed: int, steps: int, rate: float = 0.3) -> list[Step]:
    """θ ← θ − η (Σ ḡ_i + noise)/L, a few times."""
    torch.manual_seed(seed)
    model, generator, rows = gpt(attend, n), torch.Generator().manual_seed(seed), list[Step]()
    theta = parameters(model)
    for _ in range(steps):
        g, losses = per_sample(theta, model, texts(n, batch, generator))
        long = norms(g)
        rows.append(Step(losses.mean().item(), long.median().item(), (long > CLIP).double().mean().item()))
        theta = {name: theta[name] - rate * d for name, d in private(g, generator).items()}
    return rows


def gradients(attend: Attend, n: int, batch: int, seed: int) -> Sequence[Tensor]:
    """g_i before training."""
    torch.manual_seed(seed)
    model = gpt(attend, n)
    text = texts(n, batch, torch.Generator().manual_seed(seed))
    return tuple(per_sample(parameters(model), model, text)[0].values())


def loop(attend: Attend, n: int, batch: int, seed: int) -> Sequence[Tensor]:
    """:func:`gradients` by :func:`one_by_one`."""
    torch.manual_seed(seed)
    model = gpt(attend, n)
    text = texts(n, batch, torch.Generator().manual_seed(seed))
    return tuple(one_by_one(parameters(model), model, text).values())


def main(argv: Sequence[str] | None = None) -> int:
    options = parser_for("per_sample_gradients", "DP-SGD on a small GPT.").parse_args(argv)
    n, batch, short, steps = (32, 2, 16, 4) if options.quick else (512, 8, 64, 20)
    n = options.n or n
    with one_thread():
        print(f"DP-SGD: the gradient of each of {batch} texts of {n} bytes\n")
        runs = compare(partial(gradients, n=n, batch=batch, seed=options.seed), "vmap(grad)")
        away = distance(runs[OURS].result, loop(attention, n, batch, options.seed))
        print(f"gradderiv off a backward pass for each text by: {away:.0e}\n")
        print(f"training with gradderiv, {2 * batch} texts of {short} bytes")
        print("  step    loss  median |g_i|  clipped")
        for step, row in sampled(train(attention, short, 2 * batch, options.seed, steps)):
            print(f"  {step:4}  {row.loss:6.3f}  {row.norm:12.3f}  {row.clipped:7.0%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
