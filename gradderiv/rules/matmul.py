"""Product of two tensors in all the forms of ``torch.matmul``.

    C = A B                                                                  Giles 2008, §2.2.2

A (..., n, d)   B (..., d, e)   C (..., n, e)      leading axes broadcast, as (j, 1, n, d) and (k, d, e) to (j, k, n, e)
A (d): one row, of a matrix (1, d)   B (d): one column, of a matrix (d, 1)      the axis of size 1 is not in C
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.rules._inputs import require, require_tensors, rule, shapes
from gradderiv.rules.steps import Operator


class MatmulSaved(NamedTuple):
    """What the backward pass of :func:`matmul` needs."""

    A: Tensor
    B: Tensor


class MatmulGradients(NamedTuple):
    """∂ℓ/∂A, ∂ℓ/∂B."""

    A: Tensor
    B: Tensor


@rule
def matmul(A: Tensor, B: Tensor) -> tuple[Tensor, MatmulSaved]:
    """C = A B

    Giles 2008, §2.2.2; the forms are those of the section torch.matmul in the Chinese article on the
    transformer's structure that is built on transformers' ``modeling_llama.py``.

    Args:
        A: (..., n, d), or (d): one row.
        B: (..., d, e), or (d): one column.

    Returns:
        C (..., n, e), without n where A is a row and without e where B is a column, and what :func:`matmul_vjp`
        needs.

    Raises:
        InputError: shapes that do not fit, empty tensors.
        DtypeError: integers, several dtypes or devices.
    """
    require_tensors("matmul", A=A, B=B)
    require_product(A, B)
    saved = MatmulSaved(A, B)
    C = as_rows(A) @ as_columns(B)  # ... n e
    return as_result(C, saved), saved


@rule
def matmul_jvp(saved: MatmulSaved, A_dot: Tensor, B_dot: Tensor) -> Tensor:
    """Ċ = Ȧ B + A Ḃ

    The product rule; Giles 2008, §2.2.2.
    """
    A, B = as_rows(saved.A), as_columns(saved.B)  # ... n d, ... d e
    C_dot = as_rows(A_dot) @ B + A @ as_columns(B_dot)  # ... n e
    return as_result(C_dot, saved)


@rule
def matmul_vjp(dC: Tensor, saved: MatmulSaved) -> MatmulGradients:
    """dA = Σ dC Bᵀ,   dB = Σ Aᵀ dC,   Σ over the leading axes along which the operand was repeated

    Giles 2008, §2.2.2. The sum is one product of matrices side by side, [dC₁ dC₂] [B₁ B₂]ᵀ, or one below the other:
    products that are rounded first and added afterwards lose digits, in bfloat16 most of them.
    """
    A, B, dC = all_matrices(saved.A, saved.B, dC, saved)  # ... n d, ... d e, ... n e
    of_A, of_B = repeated(saved.A, A), repeated(saved.B, B)
    # C was A B, of matrices
    dB = tall(A, of_B).mT @ tall(dC, of_B)  # ... d e
    dA = wide(dC, of_A) @ wide(B, of_A).mT  # ... n d
    return MatmulGradients(dA.reshape(saved.A.shape), dB.reshape(saved.B.shape))


@rule
def matmul_vjp_jvp(
    dC: Tensor, saved: MatmulSaved, dC_dot: Tensor, A_dot: Tensor, B_dot: Tensor
) -> MatmulGradients:
    """dȦ = Σ dĊ Bᵀ + dC Ḃᵀ,   dḂ = Σ Ȧᵀ dC + Aᵀ dĊ

    The product rule on :func:`matmul_vjp`, line by line.
    """
    A, B, dC = all_matrices(saved.A, saved.B, dC, saved)  # ... n d, ... d e, ... n e
    A_dot, B_dot, dC_dot = all_matrices(A_dot, B_dot, dC_dot, saved)  # ... n d, ... d e, ... n e
    of_A, of_B = repeated(saved.A, A), repeated(saved.B, B)
    dB_dot = tall(A_dot, of_B).mT @ tall(dC, of_B) + tall(A, of_B).mT @ tall(dC_dot, of_B)  # ... d e
    dA_dot = wide(dC_dot, of_A) @ wide(B, of_A).mT + wide(dC, of_A) @ wide(B_dot, of_A).mT  # ... n d
    return MatmulGradients(dA_dot.reshape(saved.A.shape), dB_dot.reshape(saved.B.shape))


MATMUL = Operator(matmul, matmul_jvp, matmul_vjp, matmul_vjp_jvp)


# ---------------------------------------------------------------- operands and matrices


def as_rows(A: Tensor) -> Tensor:
    """(..., n, d) as it is, (d) as (1, d)."""
    return A.unsqueeze(0) if A.dim() == 1 else A


def as_columns(B: Tensor) -> Tensor:
    """(..., d, e) as it is, (d) as (d, 1)."""
    return B.unsqueeze(1) if B.dim() == 1 else B


def as_result(C: Tensor, saved: MatmulSaved) -> Tensor:
    """The product of matrices without the axis n of a row and the axis e of a column."""
    A, B = saved
    C = C.squeeze(-2) if A.dim() == 1 else C
    return C.squeeze(-1) if B.dim() == 1 else C


def all_matrices(A: Tensor, B: Tensor, C: Tensor, saved: MatmulSaved) -> tuple[Tensor, Tensor, Tensor]:
    """The operands, repeated, and their product, its axes n and e put back: all with the same leading axes."""
    C = C.unsqueeze(-1) if saved.B.dim() == 1 else C
    C = C.unsqueeze(-2) if saved.A.dim() == 1 else C
    leading = C.shape[:-2]
    return as_rows(A).expand(*leading, -1, -1), as_columns(B).expand(*leading, -1, -1), C


def repeated(operand: Tensor, matrices: Tensor) -> list[int]:
    """The leading axes of ``matrices`` that the operand lacks or has as 1."""
    axes = range(matrices.dim() - 2)
    own = [1] * matrices.dim() + list(operand.shape[:-2])
    return [a for a in axes if own[a - len(axes)] == 1]


def tall(X: Tensor, axes: list[int]) -> Tensor:
    """The matrices along these leading axes one below the other: (r, n, d) to (r·n, d)."""
    kept = [a for a in range(X.dim() - 2) if a not in axes]
    X = X.permute(*kept, *axes, -2, -1)
    return X.reshape(*X.shape[: len(kept)], -1, X.shape[-1])


def wide(X: Tensor, axes: list[int]) -> Tensor:
    """The matrices along these leading axes side by side: (r, n, d) to (n, r·d)."""
    return tall(X.mT, axes).mT


def require_product(A: Tensor, B: Tensor) -> None:
    """Demand that the product A B exists.

    Raises:
        InputError: a number among the operands, different inner sizes, leading axes that do not broadcast.
    """
    needs = "matmul needs A (..., n, d) or (d), and B (..., d, e) or (d)"
    require(
        A.dim() >= 1 and B.dim() >= 1,
        needs,
        shapes(A=A, B=B),
        "an operand without axes: a number times a tensor is no matrix product",
        "A * B",
    )
    d = B.shape[0] if B.dim() == 1 else B.shape[-2]
    require(
        A.shape[-1] == d,
        needs,
        shapes(A=A, B=B),
        f"the last axis of A is {A.shape[-1]} and that of B which meets it {d}: an operand that is not transposed",
        "A @ B.mT for two matrices with a common last axis, as in Q Kᵀ",
    )
    try:
        torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        fits = True
    except RuntimeError:
        fits = False
    require(
        fits,
        "matmul needs leading axes that broadcast",
        shapes(A=A, B=B),
        "axes meet from the right: equal, or one of them 1; no axis for the heads, or key/value heads not repeated",
        "K.unsqueeze(-3) for an axis of heads, K.repeat_interleave(h // h_kv, -3) for grouped ones",
    )
