"""Scores kept below a cap.

    Y = c tanh(S/c)                              Gemma Team 2024 (Gemma 2), §2; not (S/c) tanh(S/c)

S, Y (..., n_q, n_k)   c = softcap, positive
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.rules._inputs import require, require_tensors, rule
from gradderiv.rules.steps import Operator


class SoftcapSaved(NamedTuple):
    """T = tanh(S/c): like softmax, tanh needs only its output back."""

    T: Tensor
    softcap: float


class SoftcapGradients(NamedTuple):
    """∂ℓ/∂S."""

    S: Tensor


@rule
def cap(S: Tensor, *, softcap: float) -> tuple[Tensor, SoftcapSaved]:
    """Y = c tanh(S/c)

    Gemma Team 2024, §2.

    Args:
        S: (..., n_q, n_k).
        softcap: c, positive; in the units of S.

    Returns:
        Y (..., n_q, n_k) and what :func:`cap_vjp` needs.

    Raises:
        InputError: a cap that is no positive number.
        DtypeError: integers.
    """
    require_tensors("cap", S=S)
    require(
        isinstance(softcap, int | float) and softcap > 0,
        "softcap needs a positive number",
        f"{softcap}",
        "0 or −1 meant as: no cap, as in FlashAttention",
        "leave softcap out",
    )
    T = torch.tanh(S / softcap)  # ... n_q n_k
    return softcap * T, SoftcapSaved(T, softcap)


@rule
def cap_jvp(saved: SoftcapSaved, S_dot: Tensor) -> Tensor:
    """Ẏ = (1 − T²) ∘ Ṡ,   T = tanh(S/c)

    tanh′ = 1 − tanh².
    """
    return (1 - saved.T**2) * S_dot


@rule
def cap_vjp(dY: Tensor, saved: SoftcapSaved) -> SoftcapGradients:
    """dS = (1 − T²) ∘ dY

    A diagonal Jacobian is its own transpose.
    """
    return SoftcapGradients((1 - saved.T**2) * dY)


@rule
def cap_vjp_jvp(dY: Tensor, saved: SoftcapSaved, dY_dot: Tensor, S_dot: Tensor) -> SoftcapGradients:
    """dṠ = (1 − T²) ∘ (dẎ − (2/c) T ∘ Ṡ ∘ dY)

    The product rule on :func:`cap_vjp`; Ṫ = (1 − T²) ∘ Ṡ/c.
    """
    T, c = saved
    return SoftcapGradients((1 - T**2) * (dY_dot - 2 / c * T * S_dot * dY))


SOFTCAP = Operator(cap, cap_jvp, cap_vjp, cap_vjp_jvp)
