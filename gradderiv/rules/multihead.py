"""Multi-head attention, head by head: the form one ships.

    Q = X W_Q + b_Q   K = X_kv W_K + b_K   V = X_kv W_V + b_V        cut into h heads
    O_i = softmax(τ Q_i K_iᵀ + bias) V_i
    Y = concat(O_1 … O_h) W_O + b_O                                  Vaswani et al. 2017, §3.2.2

X (..., n_q, d_model)   X_kv (..., n_k, d_kv)   W_Q (d_model, h·d_k)   W_K (d_kv, h_kv·d_k)   W_V (d_kv, h_kv·d_v)
W_O (h·d_v, d_out)   Q (..., h, n_q, d_k)   S, P (..., h, n_q, n_k)   O (..., h, n_q, d_v)   Y (..., n_q, d_out)
Each W is the transpose of ``nn.Linear.weight``; head i owns the columns i·d … (i+1)·d of its projection. With
h_kv < h each key/value head serves h/h_kv query heads in a row (Ainslie et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from gradderiv.rules._inputs import require, require_tensors, rule, shapes
from gradderiv.rules.attend import attention_steps, gradients, require_options, tensors, undotted
from gradderiv.rules.heads import JOIN_HEADS, SPLIT_HEADS
from gradderiv.rules.linear import LINEAR
from gradderiv.rules.masks import Mask
from gradderiv.rules.steps import Step, Trace, run, run_jvp, run_vjp, run_vjp_jvp, step


class MultiheadGradients(NamedTuple):
    """The gradient of each argument under its name; None for an argument that was not given."""

    X: Tensor
    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    X_kv: Tensor | None
    b_Q: Tensor | None
    b_K: Tensor | None
    b_V: Tensor | None
    b_O: Tensor | None
    bias: Tensor | None


@rule
def multihead(
    X: Tensor,
    W_Q: Tensor,
    W_K: Tensor,
    W_V: Tensor,
    W_O: Tensor,
    *,
    n_heads: int,
    n_kv_heads: int | None = None,
    X_kv: Tensor | None = None,
    b_Q: Tensor | None = None,
    b_K: Tensor | None = None,
    b_V: Tensor | None = None,
    b_O: Tensor | None = None,
    scale: float | None = None,
    mask: Mask | Tensor | None = None,
    bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Trace]:
    """Y = concat_i( softmax(τ Q_i K_iᵀ + bias) V_i ) W_O + b_O

    Vaswani et al. 2017, §3.2.2.

    Args:
        X: (..., n_q, d_model), the queries' source.
        W_Q, W_K, W_V, W_O: (d_model, h·d_k), (d_kv, h_kv·d_k), (d_kv, h_kv·d_v), (h·d_v, d_out).
        n_heads: h.
        n_kv_heads: h_kv, a divisor of h; h when None.
        X_kv: (..., n_k, d_kv), the source of keys and values; X when None (self-attention).
        b_Q, b_K, b_V, b_O: biases of the four projections.
        scale: τ, 1/√d_k unless given.
        mask: a Mask or a boolean tensor that broadcasts to the scores (..., h, n_q, n_k); True = may attend.
        bias: broadcasts to the scores; added after scaling.
        options: those of :mod:`gradderiv.rules.attend`, of each head: ``cos=, sin=``, ``softcap=``, ``sinks=`` …

    Returns:
        Y (..., n_q, d_out) and what :func:`multihead_vjp` needs.

    Raises:
        InputError: shapes that do not fit, h that does not divide, empty tensors, an unknown option.
        DtypeError: integers, several dtypes or devices, a mask that is not boolean.
    """
    n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    require_multihead(X, W_Q, W_K, W_V, W_O, n_heads, X_kv, b_Q, b_K, b_V, b_O, bias, n_kv_heads)
    source, n_k = ("X", X.shape[-2]) if X_kv is None else ("X_kv", X_kv.shape[-2])
    options = {"scale": scale, "mask": mask, "bias": bias, **options}
    steps = [
        step(LINEAR, "X W_Q b_Q -> XW_Q"),
        step(LINEAR, f"{source} W_K b_K -> XW_K"),
        step(LINEAR, f"{source} W_V b_V -> XW_V"),
        *heads_steps("multihead", X, n_k, n_heads, n_kv_heads, options),
        step(LINEAR, "C W_O b_O -> Y"),
    ]
    given = {
        "X": X, "W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": W_O,
        "X_kv": X_kv, "b_Q": b_Q, "b_K": b_K, "b_V": b_V, "b_O": b_O, **tensors(options),
    }  # fmt: skip
    trace = run(steps, given)
    return trace.values["Y"], trace


@rule
def multihead_jvp(
    saved: Trace,
    X_dot: Tensor,
    W_Q_dot: Tensor,
    W_K_dot: Tensor,
    W_V_dot: Tensor,
    W_O_dot: Tensor,
    *,
    X_kv_dot: Tensor | None = None,
    b_Q_dot: Tensor | None = None,
    b_K_dot: Tensor | None = None,
    b_V_dot: Tensor | None = None,
    b_O_dot: Tensor | None = None,
    bias_dot: Tensor | None = None,
    **options_dot: Tensor | None,
) -> Tensor:
    """Ẏ = concat_i(Ȯ_i) W_O + concat_i(O_i) Ẇ_O + ḃ_O

    The product rule through the parts of :func:`multihead`, first to last.
    """
    dots = {
        "X": X_dot, "W_Q": W_Q_dot, "W_K": W_K_dot, "W_V": W_V_dot, "W_O": W_O_dot, "X_kv": X_kv_dot,
        "b_Q": b_Q_dot, "b_K": b_K_dot, "b_V": b_V_dot, "b_O": b_O_dot, "bias": bias_dot, **undotted(options_dot),
    }  # fmt: skip
    return run_jvp(saved, dots)["Y"]


@rule
def multihead_vjp(dY: Tensor, saved: Trace) -> MultiheadGradients:
    """dW_O = Cᵀ dY,   dW_Q = Xᵀ dQ,   dW_K = X_kvᵀ dK,   dW_V = X_kvᵀ dV,   dX = dQ W_Qᵀ (+ dK W_Kᵀ + dV W_Vᵀ)

    The parts of :func:`multihead` recited backwards; each is the vjp of its rule. In self-attention X is the source of all three paths, and their
    gradients add up. The gradients of options stand beside the others, under their names.
    """
    return _every(run_vjp({"Y": dY}, saved))


@rule
def multihead_vjp_jvp(
    dY: Tensor,
    saved: Trace,
    dY_dot: Tensor,
    X_dot: Tensor,
    W_Q_dot: Tensor,
    W_K_dot: Tensor,
    W_V_dot: Tensor,
    W_O_dot: Tensor,
    *,
    X_kv_dot: Tensor | None = None,
    b_Q_dot: Tensor | None = None,
    b_K_dot: Tensor | None = None,
    b_V_dot: Tensor | None = None,
    b_O_dot: Tensor | None = None,
    bias_dot: Tensor | None = None,
    **options_dot: Tensor | None,
) -> MultiheadGradients:
    """dẆ_O = Ċᵀ dY + Cᵀ dẎ,   dẆ_Q = Ẋᵀ dQ + Xᵀ dQ̇,   …

    The product rule on :func:`multihead_vjp`, part by part, beside the tangents of the forward pass.
    """
    dots = {
        "X": X_dot, "W_Q": W_Q_dot, "W_K": W_K_dot, "W_V": W_V_dot, "W_O": W_O_dot, "X_kv": X_kv_dot,
        "b_Q": b_Q_dot, "b_K": b_K_dot, "b_V": b_V_dot, "b_O": b_O_dot, "bias": bias_dot, **undotted(options_dot),
    }  # fmt: skip
    return _every(run_vjp_jvp({"Y": dY}, saved, {"Y": dY_dot}, dots))


def heads_steps(
    where: str, X: Tensor, n_k: int, n_heads: int, n_kv_heads: int, options: Mapping[str, Any]
) -> list[Step]:
    """From the projections XW_Q, XW_K, XW_V (..., n, h·d) to C (..., n_q, h·d_v): cut into heads, attend, join."""
    require_options(where, X, options)
    scores = (*X.shape[:-2], n_heads, X.shape[-2], n_k)
    return [
        step(SPLIT_HEADS, "XW_Q -> Q", n_heads=n_heads),
        step(SPLIT_HEADS, "XW_K -> K", n_heads=n_kv_heads),
        step(SPLIT_HEADS, "XW_V -> V", n_heads=n_kv_heads),
        *attention_steps(scores, n_kv_heads, X.device, options),
        step(JOIN_HEADS, "O -> C"),
    ]


def _every(found: dict[str, Tensor]) -> MultiheadGradients:
    """None for an argument that was not given."""
    named: dict[str, Any] = {**dict.fromkeys(MultiheadGradients._fields), **found}
    plain = len(named) == len(MultiheadGradients._fields)
    every: MultiheadGradients = MultiheadGradients(**named) if plain else gradients(named)
    return every


def require_multihead(
    X: Tensor,
    W_Q: Tensor,
    W_K: Tensor,
    W_V: Tensor,
    W_O: Tensor,
    n_heads: int,
    X_kv: Tensor | None,
    b_Q: Tensor | None,
    b_K: Tensor | None,
    b_V: Tensor | None,
    b_O: Tensor | None,
    bias: Tensor | None,
    n_kv_heads: int | None = None,
) -> None:
    n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    require_tensors(
        "multihead", X=X, W_Q=W_Q, W_K=W_K, W_V=W_V, W_O=W_O,
        X_kv=X_kv, b_Q=b_Q, b_K=b_K, b_V=b_V, b_O=b_O, bias=bias,
    )  # fmt: skip
    source = X if X_kv is None else X_kv
    require(
        X.dim() >= 2 and source.shape[:-2] == X.shape[:-2] and source.dim() == X.dim(),
        "multihead needs X (..., n_q, d_model) and X_kv (..., n_k, d_kv) with equal leading axes",
        shapes(X=X, X_kv=X_kv),
        "a vector for a matrix of one row, or another batch size",
        "X.unsqueeze(-2), or expand the batch axis",
    )
    whole = all(isinstance(h, int) and h > 0 for h in (n_heads, n_kv_heads))
    whole = whole and min(W_Q.dim(), W_K.dim(), W_V.dim()) > 0
    require(
        whole
        and n_heads % n_kv_heads == 0
        and not (W_Q.shape[-1] % n_heads or W_K.shape[-1] % n_kv_heads or W_V.shape[-1] % n_kv_heads),
        "multihead needs n_heads to divide the columns of W_Q, and n_kv_heads those of W_K and W_V and n_heads",
        f"n_heads={n_heads}, n_kv_heads={n_kv_heads}, {shapes(W_Q=W_Q, W_K=W_K, W_V=W_V)}",
        "the width of one head passed for the number of heads, or a fused W_QKV",
        "n_heads is h; split a fused matrix first",
    )
    group = n_heads // n_kv_heads
    for name, W, rows, what in (
        ("W_Q", W_Q, X.shape[-1], "d_model of X"),
        ("W_K", W_K, source.shape[-1], "the width of the keys' source"),
        ("W_V", W_V, source.shape[-1], "the width of the values' source"),
        ("W_O", W_O, W_V.shape[-1] * group, "h·d_v, the columns of W_V for every query head"),
    ):
        require(
            W.dim() == 2 and W.shape[0] == rows,
            f"multihead needs {name} with {rows} rows ({what})",
            shapes(X=X, X_kv=X_kv, **{name: W}),
            f"{name} is the transpose of nn.Linear.weight",
            "pass layer.weight.mT",
        )
    require(
        W_Q.shape[1] == W_K.shape[1] * group,
        "multihead needs heads of W_Q and W_K of equal width d_k",
        f"n_heads={n_heads}, n_kv_heads={n_kv_heads}, {shapes(W_Q=W_Q, W_K=W_K)}",
        "grouped key/value heads without n_kv_heads",
        "pass n_kv_heads, the number of heads in W_K",
    )
    for name, b, W in (("b_Q", b_Q, W_Q), ("b_K", b_K, W_K), ("b_V", b_V, W_V), ("b_O", b_O, W_O)):
        require(
            b is None or b.shape == (W.shape[1],),
            f"multihead needs {name} ({W.shape[1]},)",
            shapes(**{name: b}),
            "the bias of another projection",
            f"one entry for each column of W_{name[-1]}",
        )
