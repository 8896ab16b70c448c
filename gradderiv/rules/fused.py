"""Self-attention whose three projections are one matrix, in the layout of the model.

    [Q ‖ K ‖ V] = (X W_QKV + b_QKV) Πᵀ      Y = concat_i(O_i) W_O + b_O                       layouts: gradderiv.rules.layouts

    dW_QKV = Xᵀ [dQ ‖ dK ‖ dV] Π,   db_QKV = 1ᵀ [dQ ‖ dK ‖ dV] Π: one product, and the gradient stands in the layout of its matrix.

X (..., n, d_model)   W_QKV (d_model, h·d_k + h_kv·d_k + h_kv·d_v)   W_O (h·d_v, d_out)   Y (..., n, d_out)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradderiv.rules._inputs import require, require_tensors, rule, shapes
from gradderiv.rules.attend import gradients, tensors, undotted
from gradderiv.rules.layouts import fuse, key_value_heads, split
from gradderiv.rules.linear import LINEAR
from gradderiv.rules.multihead import heads_steps
from gradderiv.rules.steps import Trace, linear_map, run, run_jvp, run_vjp, run_vjp_jvp, step


def _fused(
    dQKV: tuple[Tensor, Tensor, Tensor], shape: object, d_k: int | None = None, **heads: Any
) -> Tensor:
    return fuse(*dQKV, **heads)


SPLIT = linear_map(split, _fused)


@rule
def fused(
    X: Tensor,
    W_QKV: Tensor,
    W_O: Tensor,
    *,
    layout: str,
    n_heads: int,
    n_kv_heads: int | None = None,
    d_k: int | None = None,
    b_QKV: Tensor | None = None,
    b_O: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Trace]:
    """Y = concat_i( softmax(τ Q_i K_iᵀ) V_i ) W_O + b_O,   [Q ‖ K ‖ V] = (X W_QKV + b_QKV) Πᵀ

    Vaswani et al. 2017, §3.2.2; the layouts as their systems have them.

    Args:
        X: (..., n, d_model).
        W_QKV: (d_model, N), N = h·d_k + h_kv·d_k + h_kv·d_v.
        W_O: (h·d_v, d_out).
        layout: one of :data:`gradderiv.rules.layouts.LAYOUTS`.
        n_heads: h.
        n_kv_heads: h_kv, a divisor of h; h when None.
        d_k: the width of a query head, where values are wider or narrower.
        b_QKV, b_O: (N), (d_out).
        options: scale, mask, bias, and the others of :mod:`gradderiv.rules.attend`.

    Returns:
        Y (..., n, d_out) and what :func:`fused_vjp` needs.

    Raises:
        InputError: an unknown layout, shapes that do not fit, heads that do not divide, an unknown option.
        DtypeError: integers, several dtypes or devices, a mask that is not boolean.
    """
    require_tensors(
        "fused", X=X, W_QKV=W_QKV, W_O=W_O, **({} if b_QKV is None else {"b_QKV": b_QKV}), b_O=b_O
    )
    require(
        X.dim() >= 2 and W_QKV.dim() == 2 and X.shape[-1] == W_QKV.shape[0],
        "fused needs X (..., n, d_model) and W_QKV (d_model, N)",
        shapes(X=X, W_QKV=W_QKV),
        "W_QKV is the transpose of nn.Linear.weight; GPT-2's Conv1D has it as it is wanted here",
        "pass layer.weight.mT",
    )
    h_kv = key_value_heads(layout, n_heads, n_kv_heads)
    heads = {"layout": layout, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "d_k": d_k}
    steps = [
        step(LINEAR, "X W_QKV b_QKV -> QKV"),
        step(SPLIT, "QKV -> XW_Q XW_K XW_V", **heads),
        *heads_steps("fused", X, X.shape[-2], n_heads, h_kv, options),
        step(LINEAR, "C W_O b_O -> Y"),
    ]
    given = {"X": X, "W_QKV": W_QKV, "W_O": W_O, "b_QKV": b_QKV, "b_O": b_O, **tensors(options)}
    trace = run(steps, given)
    return trace.values["Y"], trace


@rule
def fused_jvp(
    saved: Trace, X_dot: Tensor, W_QKV_dot: Tensor, W_O_dot: Tensor, **dots: Tensor | None
) -> Tensor:
    """[Q̇ ‖ K̇ ‖ V̇] = (Ẋ W_QKV + X Ẇ_QKV + ḃ_QKV) Πᵀ,   Ẏ = concat_i(Ȯ_i) W_O + concat_i(O_i) Ẇ_O + ḃ_O

    The product rule through the parts of :func:`fused`, first to last.
    """
    return run_jvp(saved, {"X": X_dot, "W_QKV": W_QKV_dot, "W_O": W_O_dot, **undotted(dots)})["Y"]


@rule
def fused_vjp(dY: Tensor, saved: Trace) -> Any:
    """dW_QKV = Xᵀ [dQ ‖ dK ‖ dV] Π,   db_QKV = 1ᵀ [dQ ‖ dK ‖ dV] Π,   dX = [dQ ‖ dK ‖ dV] Π W_QKVᵀ

    The parts of :func:`fused` recited backwards; Π is orthogonal.
    """
    return gradients(run_vjp({"Y": dY}, saved))


@rule
def fused_vjp_jvp(
    dY: Tensor,
    saved: Trace,
    dY_dot: Tensor,
    X_dot: Tensor,
    W_QKV_dot: Tensor,
    W_O_dot: Tensor,
    **dots: Tensor | None,
) -> Any:
    """dẆ_QKV = Ẋᵀ [dQ ‖ dK ‖ dV] Π + Xᵀ [dQ̇ ‖ dK̇ ‖ dV̇] Π

    The product rule on :func:`fused_vjp`, part by part.
    """
    dots = {"X": X_dot, "W_QKV": W_QKV_dot, "W_O": W_O_dot, **undotted(dots)}
    return gradients(run_vjp_jvp({"Y": dY}, saved, {"Y": dY_dot}, dots))
