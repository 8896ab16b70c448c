"""Multi-head attention in the block-diagonal head formulation: the form one derives.

    S = τ Q 𝓚ᵀ        P = E ∘ 1/(E 𝓘),  E = exp(S) ∘ M̃        Y = P 𝓥 W_O + b_O
    dP = dY W_Oᵀ 𝓥ᵀ    dS = P ∘ (dP − (P ∘ dP) 𝓘)
    dW_O = (P 𝓥)ᵀ dY   dW_Q = τ Xᵀ dS 𝓚
    dW_K = τ X_kvᵀ Σ_i Π_i dSᵀ Q Π_iᵀ Π_i   dW_V = X_kvᵀ Σ_i Π_i Pᵀ dY W_Oᵀ Π_iᵀ Π_i

after "Transformer Attention Layer gradient" (Say-Hello2y/Transformer-attention, 2022). Everything is a 2-D
matrix and there is no loop over heads: all heads stand side by side in one n_q × h·n_k matrix of scores.

    X (n_q, d_model)   X_kv (n_k, d_kv)   Q (n_q, h·d_k)   S, P, E, M̃ (n_q, h·n_k)   Y (n_q, d_out)
    𝓚 = blockdiag(K_1 … K_h)  (h·n_k, h·d_k)       𝓥 = blockdiag(V_1 … V_h)  (h·n_k, h·d_v)
    𝓘 = blockdiag(1 … 1), blocks n_k × n_k         M̃ = [M … M]         Π_i = [0 … I … 0] picks head i

Two things make it computable. Σ_i Π_i A Π_iᵀ Π_i keeps the diagonal blocks of A and adds them up as block
columns: 𝓒 (𝓓 ∘ A) with 𝓒 = [I … I] and 𝓓 = blockdiag(1 … 1). And exp is taken of S − m, where m is the
greatest allowed score of its row and head: P does not change, since m cancels, and exp does not overflow.

Every gradient takes the arguments of the layer and the cotangent,

    grad_W_Q(X, W_Q, W_K, W_V, W_O, dY, *, n_heads, X_kv=None, b_Q=None, …, scale=None, mask=None)

with dY (n_q, d_out) and mask (n_q, n_k) boolean, True = may attend; it returns the shape of its variable.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gradderiv.rules._blocks import (
    block_ones,
    empty_rows,
    repeat_mask,
    row_shift,
    stack_identity,
)
from gradderiv.rules._inputs import require, require_mask, require_tensors, rule, shapes
from gradderiv.rules._mask import Mask, resolve
from gradderiv.rules.multihead import require_multihead


class Blocks(NamedTuple):
    """The matrices of the formulation, all 2-D: the forward pass up to P, the weights, the constants."""

    X: Tensor
    X_kv: Tensor
    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    Q: Tensor
    calK: Tensor
    calV: Tensor
    S: Tensor
    P: Tensor
    calI: Tensor
    calC: Tensor
    D_K: Tensor
    D_V: Tensor
    scale: float
    is_self: bool


@rule
def blocks(
    X: Tensor,
    W_Q: Tensor,
    W_K: Tensor,
    W_V: Tensor,
    W_O: Tensor,
    *,
    n_heads: int,
    X_kv: Tensor | None = None,
    b_Q: Tensor | None = None,
    b_K: Tensor | None = None,
    b_V: Tensor | None = None,
    b_O: Tensor | None = None,
    scale: float | None = None,
    mask: Mask | Tensor | None = None,
) -> Blocks:
    """S = τ Q 𝓚ᵀ,   E = exp(S − m) ∘ M̃,   P = E ∘ 1/(E 𝓘)

    The forward pass up to P; 𝓚 = 𝓓_K ∘ (𝓒ᵀ K) writes h copies of K under one another and keeps the blocks.

    Raises:
        InputError: tensors that are not matrices, shapes that do not fit, h that does not divide.
        DtypeError: integers, several dtypes or devices, a mask that is not boolean.
    """
    _require_matrices(X, W_Q, W_K, W_V, W_O, n_heads, X_kv, b_Q, b_K, b_V, b_O, mask)
    source = X if X_kv is None else X_kv
    n_k = source.shape[0]
    mask = resolve(mask, (X.shape[0], n_k), X.device)
    Q = X @ W_Q if b_Q is None else X @ W_Q + b_Q  # n_q h·d_k
    K = source @ W_K if b_K is None else source @ W_K + b_K  # n_k h·d_k
    V = source @ W_V if b_V is None else source @ W_V + b_V  # n_k h·d_v
    scale = (Q.shape[1] // n_heads) ** -0.5 if scale is None else scale
    calC = stack_identity(X, n_heads, n_k)  # n_k h·n_k
    calI = block_ones(X, n_heads, n_k, n_k)  # h·n_k h·n_k
    D_K = block_ones(X, n_heads, n_k, K.shape[1] // n_heads)  # h·n_k h·d_k
    D_V = block_ones(X, n_heads, n_k, V.shape[1] // n_heads)  # h·n_k h·d_v
    calK = D_K * (calC.mT @ K)  # h·n_k h·d_k
    calV = D_V * (calC.mT @ V)  # h·n_k h·d_v
    S = scale * Q @ calK.mT  # n_q h·n_k
    M = repeat_mask(S, mask, n_heads)  # n_q h·n_k
    m = row_shift(S, M, n_heads)  # n_q h·n_k
    E = torch.exp((S - m) * M) * M  # n_q h·n_k
    P = E / (E @ calI + empty_rows(M, n_heads))  # n_q h·n_k
    return Blocks(
        X, source, W_Q, W_K, W_V, W_O, Q, calK, calV, S, P, calI, calC, D_K, D_V, scale, X_kv is None
    )  # fmt: skip


@rule
def layer(
    X: Tensor,
    W_Q: Tensor,
    W_K: Tensor,
    W_V: Tensor,
    W_O: Tensor,
    *,
    n_heads: int,
    X_kv: Tensor | None = None,
    b_Q: Tensor | None = None,
    b_K: Tensor | None = None,
    b_V: Tensor | None = None,
    b_O: Tensor | None = None,
    scale: float | None = None,
    mask: Mask | Tensor | None = None,
) -> Tensor:
    """Y = P 𝓥 W_O + b_O

    The whole layer as one matrix formula. Arguments as :func:`gradderiv.rules.multihead.multihead`, all 2-D.

    Raises:
        InputError: tensors that are not matrices, shapes that do not fit, h that does not divide.
        DtypeError: integers, several dtypes or devices, a mask that is not boolean.
    """
    B = blocks(
        X, W_Q, W_K, W_V, W_O, n_heads=n_heads, X_kv=X_kv,
        b_Q=b_Q, b_K=b_K, b_V=b_V, b_O=b_O, scale=scale, mask=mask,
    )  # fmt: skip
    Y = B.P @ B.calV @ W_O  # n_q d_out
    return Y if b_O is None else Y + b_O


class Gradient(Protocol):
    """A gradient as a function of the layer's arguments and the cotangent dY."""

    def __call__(
        self, X: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor, dY: Tensor, *,
        n_heads: int, X_kv: Tensor | None = None,
        b_Q: Tensor | None = None, b_K: Tensor | None = None,
        b_V: Tensor | None = None, b_O: Tensor | None = None,
        scale: float | None = None, mask: Mask | Tensor | None = None,
    ) -> Tensor: ...  # fmt: skip


def gradient(formula: Callable[[Tensor, Blocks], Tensor]) -> Gradient:
    """Make of a formula in dY and the matrices of the formulation a function of the layer's arguments."""

    @functools.wraps(formula)
    def grad(
        X: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor, dY: Tensor, *,
        n_heads: int, X_kv: Tensor | None = None,
        b_Q: Tensor | None = None, b_K: Tensor | None = None,
        b_V: Tensor | None = None, b_O: Tensor | None = None,
        scale: float | None = None, mask: Mask | Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        B = blocks(
            X, W_Q, W_K, W_V, W_O, n_heads=n_heads, X_kv=X_kv,
            b_Q=b_Q, b_K=b_K, b_V=b_V, b_O=b_O, scale=scale, mask=mask,
        )  # fmt: skip
        require(
            dY.shape == (X.shape[0], W_O.shape[1]),
            f"{formula.__name__} needs dY ({X.shape[0]}, {W_O.shape[1]}), the shape of Y",
            shapes(dY=dY),
            "the cotangent of another output, or a scalar loss",
            "pass ∂ℓ/∂Y, one entry for each entry of Y",
        )
        return formula(dY, B)

    del grad.__wrapped__  # the signature is this one, not the formula's
    grad.formula = formula  # type: ignore[attr-defined]
    return rule(grad)


def score_gradient(dY: Tensor, B: Blocks) -> Tensor:
    """dS = P ∘ (dP − (P ∘ dP) 𝓘),   dP = dY W_Oᵀ 𝓥ᵀ

    (P ∘ dP) 𝓘 is the row sum δ of each head, repeated under the head's columns.
    """
    dP = dY @ B.W_O.mT @ B.calV.mT  # n_q h·n_k
    dS = B.P * (dP - (B.P * dP) @ B.calI)  # n_q h·n_k
    return dS


@gradient
def grad_W_O(dY: Tensor, B: Blocks) -> Tensor:
    """dW_O = (P 𝓥)ᵀ dY"""
    return (B.P @ B.calV).mT @ dY


@gradient
def grad_W_Q(dY: Tensor, B: Blocks) -> Tensor:
    """dW_Q = τ Xᵀ dS 𝓚"""
    dS = score_gradient(dY, B)  # n_q h·n_k
    return B.scale * B.X.mT @ dS @ B.calK


@gradient
def grad_W_K(dY: Tensor, B: Blocks) -> Tensor:
    """dW_K = τ X_kvᵀ 𝓒 (𝓓_K ∘ (dSᵀ Q)) = τ X_kvᵀ Σ_i Π_i dSᵀ Q Π_iᵀ Π_i"""
    dS = score_gradient(dY, B)  # n_q h·n_k
    return B.scale * B.X_kv.mT @ B.calC @ (B.D_K * (dS.mT @ B.Q))


@gradient
def grad_W_V(dY: Tensor, B: Blocks) -> Tensor:
    """dW_V = X_kvᵀ 𝓒 (𝓓_V ∘ (Pᵀ dY W_Oᵀ)) = X_kvᵀ Σ_i Π_i Pᵀ dY W_Oᵀ Π_iᵀ Π_i"""
    return B.X_kv.mT @ B.calC @ (B.D_V * (B.P.mT @ dY @ B.W_O.mT))


@gradient
def grad_b_O(dY: Tensor, B: Blocks) -> Tensor:
    """db_O = dYᵀ 1"""
    return dY.sum(0)


@gradient
def grad_b_Q(dY: Tensor, B: Blocks) -> Tensor:
    """db_Q = τ (dS 𝓚)ᵀ 1"""
    dS = score_gradient(dY, B)  # n_q h·n_k
    return B.scale * (dS @ B.calK).sum(0)


@gradient
def grad_b_K(dY: Tensor, B: Blocks) -> Tensor:
    """db_K = τ (𝓒 (𝓓_K ∘ (dSᵀ Q)))ᵀ 1, which is 0: softmax ignores a shift of its row"""
    dS = score_gradient(dY, B)  # n_q h·n_k
    return B.scale * (B.calC @ (B.D_K * (dS.mT @ B.Q))).sum(0)


@gradient
def grad_b_V(dY: Tensor, B: Blocks) -> Tensor:
    """db_V = (𝓒 (𝓓_V ∘ (Pᵀ dY W_Oᵀ)))ᵀ 1"""
    return (B.calC @ (B.D_V * (B.P.mT @ dY @ B.W_O.mT))).sum(0)


@gradient
def grad_X(dY: Tensor, B: Blocks) -> Tensor:
    """dX = τ dS 𝓚 W_Qᵀ, and in self-attention + τ 𝓒 (𝓓_K ∘ (dSᵀ Q)) W_Kᵀ + 𝓒 (𝓓_V ∘ (Pᵀ dY W_Oᵀ)) W_Vᵀ"""
    dS = score_gradient(dY, B)  # n_q h·n_k
    dX = B.scale * dS @ B.calK @ B.W_Q.mT  # n_q d_model
    return dX + source_gradient(dY, B) if B.is_self else dX


@gradient
def grad_X_kv(dY: Tensor, B: Blocks) -> Tensor:
    """dX_kv = τ 𝓒 (𝓓_K ∘ (dSᵀ Q)) W_Kᵀ + 𝓒 (𝓓_V ∘ (Pᵀ dY W_Oᵀ)) W_Vᵀ"""
    require(
        not B.is_self,
        "grad_X_kv needs X_kv, the source of keys and values",
        "X_kv=None",
        "self-attention, where X is the source and grad_X holds all three paths",
        "call grad_X",
    )
    return source_gradient(dY, B)


def source_gradient(dY: Tensor, B: Blocks) -> Tensor:
    """τ 𝓒 (𝓓_K ∘ (dSᵀ Q)) W_Kᵀ + 𝓒 (𝓓_V ∘ (Pᵀ dY W_Oᵀ)) W_Vᵀ

    What reaches the source of keys and values through both of them.
    """
    dS = score_gradient(dY, B)  # n_q h·n_k
    dK = B.scale * B.calC @ (B.D_K * (dS.mT @ B.Q))  # n_k h·d_k
    dV = B.calC @ (B.D_V * (B.P.mT @ dY @ B.W_O.mT))  # n_k h·d_v
    return dK @ B.W_K.mT + dV @ B.W_V.mT


def _require_matrices(
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
    mask: Mask | Tensor | None,
) -> None:
    require_tensors("blockdiag", X=X, W_Q=W_Q, W_K=W_K)
    require(
        W_Q.shape[-1:] == W_K.shape[-1:],
        "blockdiag needs W_Q and W_K of equal width h·d_k",
        shapes(W_Q=W_Q, W_K=W_K),
        "grouped key/value heads; every head of the formulation has its own block",
        "repeat the columns of W_K and W_V for the query heads of a group, or call gradderiv.rules.multihead",
    )
    require_multihead(X, W_Q, W_K, W_V, W_O, n_heads, X_kv, b_Q, b_K, b_V, b_O, None)
    require(
        X.dim() == 2,
        "blockdiag needs matrices: X (n_q, d_model)",
        shapes(X=X, X_kv=X_kv),
        "a batch axis; the formulation is stated for one sequence",
        "loop over the batch, or call gradderiv.rules.multihead",
    )
    n_k = (X if X_kv is None else X_kv).shape[0]
    require_mask("blockdiag", mask, (X.shape[0], n_k), or_made=True)
