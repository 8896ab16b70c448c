"""All styles by name."""

from __future__ import annotations

from . import (
    alibi,
    batched,
    bias,
    cross,
    dropout,
    flash,
    fused_qkv,
    gqa,
    idioms,
    kernel,
    kv_cache,
    linear,
    local,
    loops,
    lse,
    masked,
    multi_query,
    plain,
    qk_norm,
    recomputed,
    ring,
    rope,
    rounded,
    scores,
    varlen,
)
from .style import Style, Wrong

__all__ = ["ROUNDED", "STYLES", "Style", "Wrong"]

_FAMILIES = (
    plain, idioms, recomputed, batched, loops, flash, kernel, ring, varlen, fused_qkv, cross, gqa, multi_query, kv_cache,
    dropout, bias, alibi, scores, qk_norm, lse, masked, rope, local, linear,
)  # fmt: skip

#: Right means exactly right, for all real inputs.
STYLES: dict[str, Style] = {style.name: style for family in _FAMILIES for style in family.STYLES}
#: Right means right but for rounding: constants that are irrational in the formula, zeros that are only nearly zero.
ROUNDED: dict[str, Style] = {style.name: style for style in rounded.STYLES}
