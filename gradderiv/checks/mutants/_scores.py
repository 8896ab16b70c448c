"""Mistakes in what happens to the scores: temperature, soft cap, biases, fills."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.mutants.mutant import GRADIENT, VALUE, Mutant
from gradderiv.rules.fills import Fill
from gradderiv.rules.softcap import SoftcapSaved
from gradderiv.rules.steps import Step
from gradderiv.rules.temperature import TemperatureSaved, cool_jvp, cool_vjp, cool_vjp_jvp

Gradients = tuple[Tensor | None, ...]


def last_query(dY: Tensor, saved: TemperatureSaved) -> Gradients:
    """dT of the last query alone."""
    dS = dY / saved.temperature
    return dS, -(dS * saved.Y)[..., -1:, :].sum_to_size(saved.temperature.shape)


def wrong_sign(dY: Tensor, saved: TemperatureSaved) -> Gradients:
    g = cool_vjp(dY, saved)
    return g.S, -g.temperature


def temperature_stands_still(saved: TemperatureSaved, S_dot: Tensor, temperature_dot: Tensor) -> Tensor:
    return cool_jvp(saved, S_dot, torch.zeros_like(temperature_dot))


def second_temperature(
    dY: Tensor, saved: TemperatureSaved, dY_dot: Tensor, S_dot: Tensor, temperature_dot: Tensor
) -> Gradients:
    return cool_vjp_jvp(dY, saved, dY_dot, S_dot, torch.zeros_like(temperature_dot))


def argument_outside(S: Tensor, *, softcap: float) -> Tensor:
    return S / softcap * torch.tanh(S / softcap)


def saved_tanh(dY: Tensor, saved: SoftcapSaved, dY_dot: Tensor, S_dot: Tensor) -> Gradients:
    return ((1 - saved.T**2) * dY_dot,)


def doubled(S: Tensor, *, fill: Fill) -> Tensor:
    """κ ∘ S + 2 C"""
    kept = S if fill.keep is None else S.masked_fill(~fill.keep, 0.0)
    return kept + 2 * fill.constant


def cap_last(steps: list[Step]) -> list[Step]:
    """The soft cap behind the bias."""
    (cap,) = (s for s in steps if "softcap" in s.static)
    (bias,) = (s for s in steps if "bias" in s.reads)
    return [s for t in steps if t is not cap for s in ((t, cap) if t is bias else (t,))]


def slopes_without_distance(dY: Tensor, saved: Any) -> Gradients:
    return dY, -dY.sum((-1, -2)).sum_to_size(saved[0])


def upper_left(S: Tensor, slopes: Tensor) -> Tensor:
    """The first query at the first key."""
    i, j = (torch.arange(n, device=S.device) for n in S.shape[-2:])
    return S - slopes[:, None, None] * (i[:, None] - j).abs().to(S.dtype)


def last_place(dY: Tensor, saved: Any) -> Gradients:
    """Row b of dt from the last place with bucket b: each overwrites the one before it."""
    shape, static = saved
    places = dY.sum_to_size(dY.shape[-3:]).movedim(-3, -1).flatten(0, 1)  # n_q·n_k h
    last = {b: i for i, b in enumerate(static["buckets"].flatten().tolist())}
    none = torch.zeros_like(places[0])
    return dY, torch.stack([places[last[b]] if b in last else none for b in range(shape[0])])


def heads_turned(S: Tensor, table: Tensor, *, buckets: Tensor) -> Tensor:
    return S + table[buckets].movedim(-1, -3).flip(-3)


def averaged(dY: Tensor, saved: Any) -> Gradients:
    total = dY.sum_to_size(saved[0])
    return dY, total / (dY.numel() // total.numel())


def twice(S: Tensor, *, fill: Fill) -> Tensor:
    """C, and once more where the key is a later one too."""
    later = torch.ones(S.shape[-2:], dtype=torch.bool, device=S.device).triu(1)
    return S + fill.constant + fill.constant.masked_fill(~later, 0.0)


TWICE_AS_SMALL = dict.fromkeys(
    ("forward", "autograd", "finite differences"),
    "exp(−8192) is 0 for floats beside a visible key, and a row without one is moved as a whole",
)
SECOND: dict[str, Any] = {"kind": "second", "kills": frozenset({"second order"})}
TANGENT: dict[str, Any] = {"kind": "tangent", "kills": frozenset({"dual", "second order"})}

MUTANTS = (
    Mutant(
        "temperature-sum", "dT of the last query, not of all", "ours", {"temperature.vjp": last_query},
        problems=("attend-temperature",), kills=GRADIENT | {"identities"},
    ),
    Mutant(
        "temperature-sign", "dT = Σ dS ∘ Y", "ours", {"temperature.vjp": wrong_sign},
        problems=("attend-temperature",), kills=GRADIENT | {"identities"},
    ),
    Mutant(
        "tangent-temperature", "Ẏ = Ṡ / T: the temperature stands still", "ours", {"temperature.jvp": temperature_stands_still},
        problems=("attend-temperature",), **TANGENT,
    ),
    Mutant(
        "second-temperature", "dṠ = dẎ / T: the temperature stands still", "ours", {"temperature.vjp_jvp": second_temperature},
        problems=("attend-temperature",), **SECOND,
    ),
    Mutant(
        "softcap-argument", "(S/c) tanh(S/c) for c tanh(S/c)", "flash-attention #2396", {"softcap.f": argument_outside},
        kind="forward", problems=("attend-softcap", "tiny-attend-softcap"), kills=VALUE | {"sympy"},
    ),
    Mutant(
        "softcap-passed", "dS passed through the soft cap as it is", "ours", {"softcap.vjp": lambda dY, saved: (dY,)},
        problems=("attend-softcap", "tiny-attend-softcap"), kills=GRADIENT | {"sympy"},
    ),
    Mutant(
        "softcap-last", "the soft cap after the bias, not before", "ours", {"steps": cap_last}, kind="forward",
        problems=("attend-softcap",), kills=VALUE | {"identities"},
    ),
    Mutant(
        "second-softcap", "dṠ = (1 − T²) ∘ dẎ: no −(2/c) T ∘ Ṡ ∘ dY", "a backward that saves tanh detached",
        {"softcap.vjp_jvp": saved_tanh}, problems=("attend-softcap",), **SECOND,
    ),
    Mutant(
        "alibi-no-distance", "dm = −Σ dS: the distance forgotten", "ours", {"alibi.vjp": slopes_without_distance},
        problems=("attend-alibi", "tiny-attend-grouped"), kills=GRADIENT | {"sympy"},
    ),
    Mutant(
        "alibi-upper-left", "with n_q < n_k the first query stands at the first key", "ours", {"alibi.f": upper_left},
        kind="forward", problems=("attend-alibi", "tiny-attend-grouped"), kills=VALUE | {"sympy"},
    ),
    Mutant(
        "t5-overwritten", "dt of the last place of a bucket, not of all", "ours", {"t5.vjp": last_place},
        problems=("attend-t5",), kills=GRADIENT,
    ),
    Mutant(
        "t5-heads", "the columns of the table given to other heads", "ours", {"t5.f": heads_turned}, kind="forward",
        problems=("attend-t5",), kills=VALUE,
    ),
    Mutant(
        "bias-broadcast-mean", "dB averaged over the axes that B broadcasts along", "the same slip as bias-mean",
        {"bias.vjp": averaged}, problems=("attend-softcap",), kills=GRADIENT,
    ),
    Mutant(
        "fill-leak", "dS passed through scores that were replaced by a number", "ours",
        {"fill.vjp": lambda dS, saved: (dS,)}, problems=("attend-fill-replace",), kills=GRADIENT,
    ),
    Mutant(
        "fill-doubled", "−16384 for −8192, wherever a key is hidden", "onnxruntime #14363, #8549", {"fill.f": doubled}, kind="float",
        problems=("attend-fill-replace",), kills=frozenset({"field", "second order"}), reasons=TWICE_AS_SMALL,
    ),
    Mutant(
        "fill-added-twice", "−8192 for a hidden key, once more where it is a later one", "onnxruntime #14363, #8549",
        {"fill.f": twice}, kind="forward", problems=("attend-fill-add",), kills=VALUE,
    ),
)  # fmt: skip
