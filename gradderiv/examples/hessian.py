"""Hessian-vector products of a small GPT, and the top eigenvalue of its Hessian.

    H v = d/dε ∇ℓ(θ + ε v) at ε = 0                           Pearlmutter 1994
    V T Vᵀ ≈ H, T tridiagonal: its largest eigenvalue is nearly λ_max         Lanczos 1950

H v is forward mode over reverse mode, ``torch.func.jvp`` of ``grad``: H itself, 150,000 numbers wide, is never
formed. Gradient descent is stable on the quadratic part of ℓ where its rate is below 2/λ_max.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from gradderiv.examples.compare import compare, parameters, parser_for, sampled
from gradderiv.examples.gpt import GPT, WIDTH, Attend
from gradderiv.functional import attention
from gradderiv.text import prose
from gradderiv.threads import one_thread


def gpt(attend: Attend, n: int) -> GPT:
    """The GPT of this folder with a context of n bytes."""
    model = GPT(attend)
    model.place = nn.Embedding(n, WIDTH)
    return model


def texts(n: int, batch: int, generator: torch.Generator) -> Tensor:
    """(batch, n + 1) bytes from random places of the essay."""
    text = torch.tensor(list(prose().encode("ascii")))
    if n >= len(text):
        raise ValueError(f"the essay has {len(text)} bytes, and no text of {n + 1}")
    starts = torch.randint(len(text) - n, (batch,), generator=generator)
    return torch.stack([text[start : start + n + 1] for start in starts])


def next_byte_loss(scores: Tensor, text: Tensor) -> Tensor:
    """ℓ: the cross entropy of each next byte."""
    return cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten())


def trained(n: int, seed: int, steps: int) -> dict[str, Tensor]:
    """The parameters after a few steps; a gradient is what the default kernel has."""
    torch.manual_seed(seed)
    model, generator = gpt(scaled_dot_product_attention, n), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        text = texts(n, 4, generator)
        optimizer.zero_grad()
        next_byte_loss(model(text[:, :-1]), text).backward()
        optimizer.step()
    return parameters(model)


class Hessian:
    """v ↦ H v, on vectors as long as all parameters of a model together."""

    def __init__(self, attend: Attend, theta: dict[str, Tensor], text: Tensor) -> None:
        self.theta, self.text = theta, text
        self.model = gpt(attend, text.shape[1] - 1)
        self.width = sum(p.numel() for p in theta.values())

    def loss(self, theta: dict[str, Tensor]) -> Tensor:
        return next_byte_loss(functional_call(self.model, theta, (self.text[:, :-1],)), self.text)

    def __call__(self, v: Tensor) -> Tensor:
        """H v = d/dε ∇ℓ(θ + ε v)"""
        parts = v.split([p.numel() for p in self.theta.values()])
        theta_dot = {name: part.view_as(p) for (name, p), part in zip(self.theta.items(), parts, strict=True)}
        Hv = jvp(grad(self.loss), (self.theta,), (theta_dot,))[1]
        return torch.cat([Hv[name].flatten() for name in self.theta])


class Top(NamedTuple):
    """The largest eigenvalue λ after each step of Lanczos; x, the last one's vector, of length 1."""

    values: list[float]
    vector: Tensor


def lanczos(H: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Top:
    """λ_max of T = Vᵀ H V, V an orthonormal basis of start, H start, H² start …

    Lanczos 1950; a new vector is made orthogonal to all others, twice, so that rounding leaves no ghosts.
    """
    V, HV, values = [start / start.norm()], list[Tensor](), list[float]()
    for _ in range(steps):
        HV.append(H(V[-1]))
        basis = torch.stack(V)
        T = (basis @ torch.stack(HV).mT).double()
        found, vectors = torch.linalg.eigh((T + T.mT) / 2)
        values.append(float(found[-1]))
        x = vectors[:, -1].to(start.dtype) @ basis
        w = HV[-1]
        for _ in range(2):
            w = w - (basis @ w) @ basis
        V.append(w / w.norm())
    return Top(values, x)


def product(attend: Attend, n: int, seed: int, theta: dict[str, Tensor]) -> Sequence[Tensor]:
    """H v for one text and one random v."""
    generator = torch.Generator().manual_seed(seed)
    H = Hessian(attend, theta, texts(n, 1, generator))
    return (H(torch.randn(H.width, generator=generator)),)


def top(attend: Attend, n: int, seed: int, theta: dict[str, Tensor], steps: int) -> tuple[list[float], float]:
    """λ_max after each step of Lanczos on the mean loss of four texts; ‖H x − λ x‖ at the end.

    That bounds the distance from λ to an eigenvalue.
    """
    generator = torch.Generator().manual_seed(seed)
    H = Hessian(attend, theta, texts(n, 4, generator))
    values, x = lanczos(H, torch.randn(H.width, generator=generator), steps)
    return values, float((H(x) - values[-1] * x).norm())


def main(argv: Sequence[str] | None = None) -> int:
    options = parser_for("hessian", "The top eigenvalue of the Hessian of a small GPT.").parse_args(argv)
    n, short, training, steps = (64, 16, 2, 4) if options.quick else (1024, 64, 50, 15)
    n = options.n or n
    with one_thread():
        print(f"the Hessian of a GPT on {n} bytes of text\n")
        theta = trained(n, options.seed, 0)
        compare(partial(product, n=n, seed=options.seed, theta=theta), "One product H v")
        print(f"Lanczos with gradderiv, {short} bytes, after {training} steps of training")
        print("  step  lambda_max")
        theta = trained(short, options.seed, training)
        values, residual = top(attention, short, options.seed, theta, steps)
        for step, value in sampled(values):
            print(f"  {step:4}  {value:10.5f}")
        print(f"|H x - lambda_max x| = {residual:.0e} for its vector x, of length 1.")
        print(f"Gradient descent is stable up to a rate of 2/lambda_max = {2 / values[-1]:.3g}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
