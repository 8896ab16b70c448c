"""A temperature, one number or one for each head, learned or not.

    Y = S / T                                    Hinton et al. 2015, eq. 1

S, Y (..., n_q, n_k)   temperature: T, broadcasts to S; for each head (h, 1, 1)
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gradderiv.rules._inputs import require_broadcast, require_tensors, rule
from gradderiv.rules.steps import Operator


class TemperatureSaved(NamedTuple):
    """The output and the temperature."""

    Y: Tensor
    temperature: Tensor


class TemperatureGradients(NamedTuple):
    """∂ℓ/∂S, ∂ℓ/∂T."""

    S: Tensor
    temperature: Tensor


@rule
def cool(S: Tensor, temperature: Tensor) -> tuple[Tensor, TemperatureSaved]:
    """Y = S / T

    Hinton et al. 2015, eq. 1.

    Args:
        S: (..., n_q, n_k).
        temperature: T, broadcasts to S.

    Returns:
        Y (..., n_q, n_k) and what :func:`cool_vjp` needs.

    Raises:
        InputError: a temperature that does not broadcast.
        DtypeError: integers, several dtypes or devices.
    """
    require_tensors("cool", S=S, temperature=temperature)
    require_broadcast("cool", "temperature", temperature, tuple(S.shape))
    Y = S / temperature  # ... n_q n_k
    return Y, TemperatureSaved(Y, temperature)


@rule
def cool_jvp(saved: TemperatureSaved, S_dot: Tensor, temperature_dot: Tensor) -> Tensor:
    """Ẏ = (Ṡ − Y Ṫ) / T

    The quotient rule.
    """
    return (S_dot - saved.Y * temperature_dot) / saved.temperature


@rule
def cool_vjp(dY: Tensor, saved: TemperatureSaved) -> TemperatureGradients:
    """dS = dY / T,   dT = −Σ dS ∘ Y

    Summed over what T broadcasts to.
    """
    Y, temperature = saved
    dS = dY / temperature  # ... n_q n_k
    return TemperatureGradients(dS, -(dS * Y).sum_to_size(temperature.shape))


@rule
def cool_vjp_jvp(
    dY: Tensor, saved: TemperatureSaved, dY_dot: Tensor, S_dot: Tensor, temperature_dot: Tensor
) -> TemperatureGradients:
    """dṠ = (dẎ − dS Ṫ) / T,   dṪ = −Σ dṠ ∘ Y + dS ∘ Ẏ

    The product rule on :func:`cool_vjp`, line by line.
    """
    Y, temperature = saved
    dS = dY / temperature  # ... n_q n_k
    dS_dot = (dY_dot - dS * temperature_dot) / temperature  # ... n_q n_k
    Y_dot = cool_jvp(saved, S_dot, temperature_dot)  # ... n_q n_k
    return TemperatureGradients(dS_dot, -(dS_dot * Y + dS * Y_dot).sum_to_size(temperature.shape))


TEMPERATURE = Operator(cool, cool_jvp, cool_vjp, cool_vjp_jvp)
