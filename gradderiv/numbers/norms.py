"""Means of squares and what divides by their roots: variance, vector norms, layer normalisation and RMS normalisation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gradderiv.numbers.number import Number, System
from gradderiv.numbers.operands import arithmetic, aten, no_meaning


def _axes(x: Tensor, dim: Any) -> list[int]:
    dims = range(x.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return [d % max(x.dim(), 1) for d in dims]


@arithmetic(aten.var.correction)
def _var(system: System, x: Number, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Tensor:
    dims = _axes(x, dim)
    count = math.prod(x.shape[d] for d in dims) if x.dim() else 1
    centred = x - x.mean(dims, keepdim=True)
    total = (centred * centred).sum(dims, keepdim=keepdim)
    return total / (count - (1 if correction is None else correction))


@arithmetic(aten.var_mean.correction)
def _var_mean(
    system: System, x: Number, dim: Any = None, *, correction: Any = 1, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    return _var(system, x, dim, correction=correction, keepdim=keepdim), x.mean(
        _axes(x, dim), keepdim=keepdim
    )


@arithmetic(aten.std.correction)
def _std(system: System, x: Number, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Tensor:
    return torch.sqrt(_var(system, x, dim, correction=correction, keepdim=keepdim))


@arithmetic(aten.linalg_vector_norm.default)
def _vector_norm(
    system: System, x: Number, order: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    if order != 2:
        raise no_meaning(aten.linalg_vector_norm.default, f"of order {order}")
    return torch.sqrt((x * x).sum(_axes(x, dim), keepdim=keepdim, dtype=dtype))


# ---------------------------------------------------------------- layer normalisation


def _trailing(x: Tensor, shape: Any) -> list[int]:
    return list(range(-len(shape), 0))


@arithmetic(aten.native_layer_norm.default)
def _layer_norm(
    system: System, x: Any, shape: Any, weight: Any, bias: Any, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    axes = _trailing(x, shape)
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    rstd = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + eps)
    out = centred * rstd
    out = out if weight is None else out * weight
    return out if bias is None else out + bias, mean, rstd


@arithmetic(aten.native_layer_norm_backward.default)
def _layer_norm_backward(
    system: System, g: Any, x: Any, shape: Any, mean: Any, rstd: Any, weight: Any, bias: Any, wanted: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    axes = _trailing(x, shape)
    leading = list(range(x.dim() - len(shape)))
    normed = (x - mean) * rstd
    scaled = g if weight is None else g * weight
    inner = scaled - scaled.mean(axes, keepdim=True) - normed * (scaled * normed).mean(axes, keepdim=True)
    dweight = (g * normed).sum(leading) if leading else g * normed
    dbias = g.sum(leading) if leading else g.clone()
    return tuple(  # type: ignore[return-value]
        value if want else None for value, want in zip((inner * rstd, dweight, dbias), wanted, strict=True)
    )


@arithmetic(aten._fused_rms_norm.default)
def _rms_norm(system: System, x: Any, shape: Any, weight: Any, eps: Any) -> tuple[Tensor, Tensor]:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    rstd = torch.rsqrt((x * x).mean(_trailing(x, shape), keepdim=True) + eps)
    out = x * rstd
    return out if weight is None else out * weight, rstd


@arithmetic(aten._fused_rms_norm_backward.default)
def _rms_norm_backward(
    system: System, g: Any, x: Any, shape: Any, rstd: Any, weight: Any, wanted: Any
) -> tuple[Tensor | None, Tensor | None]:
    leading = list(range(x.dim() - len(shape)))
    normed = x * rstd
    scaled = g if weight is None else g * weight
    inner = scaled - normed * (scaled * normed).mean(_trailing(x, shape), keepdim=True)
    dweight = (g * normed).sum(leading) if leading else g * normed
    return inner * rstd if wanted[0] else None, dweight if wanted[1] else None
