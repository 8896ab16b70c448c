"""In which layout a fused projection is written: found by comparing every reading with a reference, without rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradderiv.errors import InputError, message
from gradderiv.rules.layouts import LAYOUTS, split

ORDERS = {
    "contiguous": "[Q ‖ K ‖ V], as GPT-2 and nn.MultiheadAttention have it",
    "grouped": "[q … q k v] for each key/value head, as Falcon and litgpt have it",
    "interleaved": "[q_i k_i v_i] for each head i, as GPT-NeoX and BLOOM have it",
    "head-last": "[Q ‖ K ‖ V] in which heads vary fastest, as view(…, 3·d, h) reads it",
}
Reference = Sequence[Tensor] | Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Identified:
    """What every layout makes of a fused tensor.

    Attributes:
        distances: for each layout that the numbers of heads allow, the largest difference of an entry from the reference.
    """

    distances: dict[str, float]

    @property
    def layouts(self) -> list[str]:
        """Those that read it as the reference does, to the last bit; several where they coincide."""
        return [name for name, distance in self.distances.items() if distance == 0]

    def __str__(self) -> str:
        others = ", ".join(f"{d:.4g} as {name}" for name, d in self.distances.items() if d > 0)
        if not self.layouts:
            return f"none of the layouts: the entries are off by up to {others}"
        found = " and ".join(f"{name}, {ORDERS[name]}" for name in self.layouts)
        return f"{found}; read otherwise it is off by up to {others}" if others else found


def identify_layout(
    fused: Tensor | nn.Module,
    reference: Reference,
    *,
    n_heads: int,
    n_kv_heads: int | None = None,
    d_k: int | None = None,
) -> Identified:
    """Say in which layout W_QKV is.

    Args:
        fused: W_QKV (d_model, N), or the module that has it: nn.Linear, transformers' Conv1D, nn.MultiheadAttention.
        reference: W_Q, W_K, W_V as they should be read; or a function X ↦ (Q, K, V), such as a model's own code up to the scores, with heads side by side.
        n_heads, n_kv_heads, d_k: as for :func:`gradderiv.rules.layouts.split`.

    Returns:
        The distance of every reading from the reference. A function is asked at X = I, where a product does not round.

    Raises:
        InputError: a module without a fused weight, a reference of other shapes, heads that divide no layout.
    """
    W, b = _fused(fused)
    if callable(reference):
        with torch.no_grad():
            wanted = reference(torch.eye(W.shape[0], dtype=W.dtype, device=W.device))
        W = W if b is None else W + b
    else:
        wanted = reference
    distances = {}
    for layout in LAYOUTS:
        shared = n_kv_heads not in (None, n_heads)
        if layout == (
            "interleaved" if shared else "grouped"
        ):  # not defined there, or the same as interleaved
            continue
        parts = split(W, layout=layout, n_heads=n_heads, n_kv_heads=n_kv_heads, d_k=d_k)
        if [p.shape for p in parts] != [t.shape for t in wanted]:
            raise InputError(
                message(
                    "identify_layout needs a reference of the shapes of the parts",
                    f"{[tuple(t.shape) for t in wanted]}, where the parts have {[tuple(p.shape) for p in parts]}",
                    "heads on an axis of their own, or transposed weights",
                    "heads side by side on the last axis: t.transpose(1, 2).flatten(2); weight.mT of an nn.Linear",
                )
            )
        distances[layout] = max(float((p - t).abs().max()) for p, t in zip(parts, wanted, strict=True))
    return Identified(distances)


def _fused(fused: Tensor | nn.Module) -> tuple[Tensor, Tensor | None]:
    """W_QKV (d_model, N) and its bias."""
    if isinstance(fused, Tensor):
        return fused.detach(), None
    if isinstance(fused, nn.MultiheadAttention) and fused.in_proj_weight is not None:
        return (
            fused.in_proj_weight.detach().mT,
            None if fused.in_proj_bias is None else fused.in_proj_bias.detach(),
        )
    weight, bias = getattr(fused, "weight", None), getattr(fused, "bias", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise InputError(
            message(
                "identify_layout needs a module with one fused weight",
                type(fused).__name__,
                "a whole attention layer, or separate projections",
                "its query_key_value, c_attn or in_proj_weight",
            )
        )
    weight = weight.detach() if hasattr(fused, "nf") else weight.detach().mT  # Conv1D computes X W
    return weight, bias.detach() if isinstance(bias, Tensor) else None
