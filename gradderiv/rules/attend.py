"""Attention with every option that models have, each a row of one table (:mod:`gradderiv.rules.options`).

    Q, K ↦ QK-norm, rotation     K, V ↦ [cache ; new], shared by groups of query heads
    S = τ Q Kᵀ ↦ temperature, softcap, biases, fill     P, lse = softmax(S)     P ↦ dropout     O = P V

    option                     argument              shape, and what it is
    QK-norm                    gain_Q, gain_K        (d_k); eps                      Henry et al. 2020
    rotary embedding           cos, sin              (..., n, r), r ≤ d_k; pairing   Su et al. 2021
    cache                      K_cache, V_cache      (..., h_kv, n_past, d)          Shazeer 2019
    grouped heads              K, V with h_kv heads  found from their shapes         Ainslie et al. 2023
    scale                      scale=                τ, 1/√d_k unless given          Vaswani et al. 2017
    temperature                temperature           broadcasts to the scores        Hinton et al. 2015
    softcap                    softcap=              a number                        Gemma Team 2024
    ALiBi                      slopes                (h)                             Press et al. 2021
    T5's bias                  table                 (n_buckets, h); buckets         Raffel et al. 2020
    bias                       bias                  broadcasts to the scores        added after scaling
    sinks                      sinks                 (h)                             Xiao et al. 2023
    mask                       mask=                 a Mask or a boolean tensor, True = may attend
    a finite fill for −∞       fill=                 instead of mask: gradderiv.rules.fills
    wider softmax              softmax_dtype=        a dtype
    dropout                    keep=, dropout_p=     boolean, broadcasts to the scores; True = kept

Q (..., h, n_q, d_k)   K (..., h_kv, n_k, d_k)   V (..., h_kv, n_k, d_v)   O (..., h, n_q, d_v)   weights (..., h, n_q, n_k)   lse (..., h, n_q)
Every argument in the middle column that is a tensor, but for mask, fill and keep, has a gradient under its name. With none of them this is :mod:`gradderiv.rules.attention`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.rules import options as table
from gradderiv.rules._inputs import require, require_tensors, rule, shapes
from gradderiv.rules.fills import require_fill
from gradderiv.rules.masks import Mask, resolve
from gradderiv.rules.steps import Step, Trace, gradients_type, run, run_jvp, run_vjp, run_vjp_jvp


class Attended(NamedTuple):
    """The three outputs: O, the weights as they multiply V, and lse, so that P = exp(S − lse) before dropout."""

    O: Tensor
    weights: Tensor
    lse: Tensor


@rule
def attend(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    *,
    scale: float | None = None,
    mask: Mask | Tensor | None = None,
    bias: Tensor | None = None,
    **options: Any,
) -> tuple[Attended, Trace]:
    """O = P V,   P = softmax(S),   S = τ Q Kᵀ + bias, and what the options make of each

    Vaswani et al. 2017, eq. 1; the options' sources stand in the table above.

    Args:
        Q: (..., h, n_q, d_k).
        K: (..., h_kv, n_k, d_k).
        V: (..., h_kv, n_k, d_v).
        scale: τ, 1/√d_k unless given.
        mask: True = may attend. A fully masked row gives 0.
        bias: broadcasts to the scores (..., h, n_q, n_k); added after scaling.
        options: as in the table above.

    Returns:
        O, weights and lse, and what :func:`attend_vjp` needs.

    Raises:
        InputError: shapes that do not fit, an unknown option or one without its partner, a fill beside a mask.
        DtypeError: integers, several dtypes or devices, a mask that is not boolean.
    """
    options = {"scale": scale, "mask": mask, "bias": bias, **options}
    require_attend(Q, K, V)
    require_options("attend", Q, options)
    h_kv = K.shape[-3] if K.dim() > 2 else 1
    steps = attention_steps((*Q.shape[:-1], K.shape[-2]), h_kv, Q.device, options)
    trace = run(steps, {"Q": Q, "K": K, "V": V, **tensors(options)})
    return _outputs(trace.values), trace


@rule
def attend_jvp(saved: Trace, Q_dot: Tensor, K_dot: Tensor, V_dot: Tensor, **dots: Tensor | None) -> Attended:
    """Ȯ = Ṗ V + P V̇,   Ṗ = P ∘ (Ṡ − (lse)˙), and so on through the table

    The chain rule, first row to last; ``sinks_dot=…`` and so on for the options.
    """
    return _outputs(run_jvp(saved, {"Q": Q_dot, "K": K_dot, "V": V_dot, **undotted(dots)}))


@rule
def attend_vjp(
    dO: Tensor | None, saved: Trace, *, dweights: Tensor | None = None, dlse: Tensor | None = None
) -> Any:
    """dV = Pᵀ dO,   dS = P ∘ (dP − δ + dlse),   dQ = τ dS K,   dK = τ dSᵀ Q, and so on through the table

    The chain rule, last row to first. The gradient of every argument that was given, under its name: ``g.Q``, ``g.sinks``.
    """
    return gradients(run_vjp({"O": dO, "P": dweights, "lse": dlse}, saved))


@rule
def attend_vjp_jvp(
    dO: Tensor | None,
    saved: Trace,
    dO_dot: Tensor | None,
    Q_dot: Tensor,
    K_dot: Tensor,
    V_dot: Tensor,
    *,
    dweights: Tensor | None = None,
    dlse: Tensor | None = None,
    dweights_dot: Tensor | None = None,
    dlse_dot: Tensor | None = None,
    **dots: Tensor | None,
) -> Any:
    """dQ̇ = τ (dṠ K + dS K̇),   dK̇ = τ (dṠᵀ Q + dSᵀ Q̇),   dV̇ = Ṗᵀ dO + Pᵀ dȮ, and so on through the table

    The tangent of :func:`attend_vjp`, last row to first.
    """
    d = {"O": dO, "P": dweights, "lse": dlse}
    d_dot = {"O": dO_dot, "P": dweights_dot, "lse": dlse_dot}
    return gradients(run_vjp_jvp(d, saved, d_dot, {"Q": Q_dot, "K": K_dot, "V": V_dot, **undotted(dots)}))


def attention_steps(
    scores: tuple[int, ...], n_kv_heads: int, device: torch.device, options: Mapping[str, Any]
) -> list[Step]:
    """The rows of the table for scores of this shape, without the cache: what the mask is there, and whether heads are shared."""
    cached = options.get("K_cache")
    n_k = scores[-1] + (0 if cached is None or cached.dim() < 2 else cached.shape[-2])
    mask = resolve(options.get("mask"), (*scores[:-1], n_k), device)
    shared = len(scores) > 2 and n_kv_heads != scores[-3]
    return table.steps({**options, "mask": mask, "n_heads": scores[-3] if shared else None})


def tensors(options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Those of the options that have a gradient."""
    return {name: options[name] for name in table.variables() if options.get(name) is not None}


def gradients(found: Mapping[str, Tensor]) -> Any:
    """A named tuple of the gradients."""
    return gradients_type(tuple(found))(**found)


def undotted(dots: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """``sinks_dot`` is the tangent of ``sinks``."""
    return {name.removesuffix("_dot"): t for name, t in dots.items()}


def _outputs(values: Mapping[str, Tensor]) -> Attended:
    return Attended(values["O"], values["P"], values["lse"])


def require_options(where: str, X: Tensor, options: Mapping[str, Any]) -> None:
    """Demand options of the table, of the dtype and on the device of X."""
    table.require_options(where, options)
    require_tensors(where, X=X, **tensors(options))
    require(
        options.get("mask") is None or options.get("fill") is None,
        f"{where} hides keys by a mask or by a finite fill, not by both",
        "mask and fill",
        "a fill meant for what the mask hides",
        "give the mask to a row of gradderiv.rules.fills.SEMANTICS, and pass what that returns",
    )
    require_fill(where, options.get("fill"))
    keys, values = options.get("K_cache"), options.get("V_cache")
    require(
        keys is None or values is None or keys.shape[-2:-1] == values.shape[-2:-1],
        f"{where} needs as many cached values as keys",
        shapes(K_cache=keys, V_cache=values),
        "caches of different steps, or one that was cut and one that was not",
        "K_cache (..., h_kv, n_past, d_k), V_cache (..., h_kv, n_past, d_v)",
    )


def require_attend(Q: Tensor, K: Tensor, V: Tensor) -> None:
    require_tensors("attend", Q=Q, K=K, V=V)
    asked = "attend needs Q (..., h, n_q, d_k), K (..., h_kv, n_k, d_k) and V (..., h_kv, n_k, d_v), h_kv dividing h"
    came = shapes(Q=Q, K=K, V=V)
    require(
        min(Q.dim(), K.dim(), V.dim()) >= 2,
        asked,
        came,
        "a vector for a matrix of one row",
        "Q.unsqueeze(-2)",
    )
    require(
        Q.shape[-1] == K.shape[-1] and K.shape[-2] == V.shape[-2],
        asked,
        came,
        "queries and keys of different widths, or another number of keys than of values",
        "Q and K share their last axis, K and V their last but one",
    )
    require(
        K.shape[:-2] == V.shape[:-2] and Q.shape[:-3] == K.shape[:-3] and Q.dim() == K.dim(),
        asked,
        came,
        "different leading axes (batch), or keys and values with different numbers of heads",
        "expand the batch axes first",
    )
    require(
        Q.dim() == 2 or Q.shape[-3] % K.shape[-3] == 0,
        asked,
        came,
        "a number of key/value heads that does not divide the query heads",
        "h a multiple of h_kv",
    )
