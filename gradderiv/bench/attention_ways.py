"""What ``gradderiv bench attention`` compares: four ways to attention, and four things asked of each.

O = softmax(τ Q Kᵀ) V        Q, K, V, O, dO and the directions (1, heads, n, d), one sequence
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gradderiv.functional import attention

OURS, MATH, PLAIN, DEFAULT, AGAIN = "ours", "MATH", "plain", "default", "default again"
FIRST, DOUBLE, JVP, HVP = "first", "double backward", "jvp", "hvp"

Attend = Callable[..., Tensor]
Mark = Callable[[], None]


class Case(NamedTuple):
    """How many heads (batch × heads), tokens, entries of a head; and whether a query sees the keys up to its own only."""

    heads: int
    n: int
    d: int
    causal: bool

    def __str__(self) -> str:
        return f"{self.heads} heads, n = {self.n}, d_k = {self.d}{', causal' if self.causal else ''}"


class Given(NamedTuple):
    """Q, K, V; dO; and a direction for each of Q, K, V."""

    QKV: tuple[Tensor, ...]
    dO: Tensor
    along: tuple[Tensor, ...]
    causal: bool


def inputs(case: Case, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Given:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, case.heads, case.n, case.d)
    drawn = tuple(torch.randn(shape, generator=generator).to(device, dtype) for _ in range(7))
    return Given(drawn[:3], drawn[3], drawn[4:], case.causal)


# ---------------------------------------------------------------- the ways


def ours(Q: Tensor, K: Tensor, V: Tensor, causal: bool) -> Tensor:
    """gradderiv.functional.attention"""
    return attention(Q, K, V, is_causal=causal)


def math(Q: Tensor, K: Tensor, V: Tensor, causal: bool) -> Tensor:
    """torch's scaled_dot_product_attention under sdpa_kernel(SDPBackend.MATH)"""
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(Q, K, V, is_causal=causal)


def plain(Q: Tensor, K: Tensor, V: Tensor, causal: bool) -> Tensor:
    """the formula in plain torch, differentiated by autograd"""
    S = Q * Q.shape[-1] ** -0.5 @ K.mT
    if causal:
        seen = torch.ones(S.shape[-2:], dtype=torch.bool, device=S.device).tril()
        S = S.masked_fill(~seen, -torch.inf)
    return torch.softmax(S, -1) @ V


def default(Q: Tensor, K: Tensor, V: Tensor, causal: bool) -> Tensor:
    """torch's scaled_dot_product_attention as it is, with the kernel that torch chooses"""
    return scaled_dot_product_attention(Q, K, V, is_causal=causal)


WAYS: dict[str, Attend] = {OURS: ours, DEFAULT: default, PLAIN: plain, MATH: math}
NULL: dict[str, Attend] = {AGAIN: default}  # its times beside the default's say what the noise is


# ---------------------------------------------------------------- what is asked


def first(attend: Attend, given: Given, mark: Mark) -> Sequence[Tensor]:
    """forward and backward: O, dQ, dK, dV"""
    QKV = _leaves(given.QKV)
    O = attend(*QKV, given.causal)
    return O.detach(), *torch.autograd.grad(O, QKV, given.dO)


def double_backward(attend: Attend, given: Given, mark: Mark) -> Sequence[Tensor]:
    """dQ, dK, dV with create_graph=True; from these, along fixed cotangents, back to Q, K, V and dO (second step)"""
    *QKV, dO = _leaves((*given.QKV, given.dO))
    dQKV = torch.autograd.grad(attend(*QKV, given.causal), QKV, dO, create_graph=True)
    mark()
    return torch.autograd.grad(dQKV, (*QKV, dO), given.along)


def jvp(attend: Attend, given: Given, mark: Mark) -> Sequence[Tensor]:
    """torch.func.jvp of O: forward mode"""
    return torch.func.jvp(lambda *QKV: attend(*QKV, given.causal), given.QKV, given.along)


def hvp(attend: Attend, given: Given, mark: Mark) -> Sequence[Tensor]:
    """torch.func.jvp of torch.func.grad of ⟨O, dO⟩: Hessian times vector, forward over reverse, for all ways"""

    def loss(*QKV: Tensor) -> Tensor:
        return (attend(*QKV, given.causal) * given.dO).sum()

    gradient = torch.func.grad(loss, argnums=(0, 1, 2))
    return torch.func.jvp(gradient, given.QKV, given.along)[1]


def _leaves(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.detach().requires_grad_() for x in tensors)


TASKS: dict[str, Callable[[Attend, Given, Mark], Sequence[Tensor]]] = {
    FIRST: first,
    DOUBLE: double_backward,
    JVP: jvp,
    HVP: hvp,
}
