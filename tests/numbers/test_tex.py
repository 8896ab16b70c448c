"""Named matrices: what is printed is what was computed. The expected strings are written by hand."""

from __future__ import annotations

import pytest
import torch

from gradderiv.numbers.nodes import Symbol
from gradderiv.numbers.tex import Tex, TexTensor
from gradderiv.rules import attention, blockdiag, heads, softmax
from gradderiv.rules._blocks import block_ones

SYSTEM = Tex({2: "h", 7: "d_k"})
Q, K, V = SYSTEM.symbol("Q", 3, 4), SYSTEM.symbol("K", 5, 4), SYSTEM.symbol("V", 5, 6)
W_O, dY, P, dP = (
    SYSTEM.symbol("W_O", 6, 9),
    SYSTEM.symbol("dY", 3, 9),
    SYSTEM.symbol("P", 3, 5),
    SYSTEM.symbol("dP", 3, 5),
)
tau = SYSTEM.symbol("scale")


@pytest.mark.parametrize(
    ("x", "unicode", "tex", "ascii"),
    [
        (tau * Q @ K.mT, "τ Q Kᵀ", r"\tau Q K^{\top}", "tau Q K^T"),
        (Q @ (tau * K.mT), "τ Q Kᵀ", r"\tau Q K^{\top}", "tau Q K^T"),
        ((tau * Q) * Q, "τ (Q ∘ Q)", r"\tau \left(Q \circ Q\right)", "tau (Q o Q)"),
        (
            P * (dP - (P * dP).sum(-1, keepdim=True)),
            "P ∘ (dP − rowsum(P ∘ dP))",
            r"P \circ \left(dP - \operatorname{rowsum}\left(P \circ dP\right)\right)",
            "P o (dP - rowsum(P o dP))",
        ),
        ((Q @ K.mT).mT @ Q, "(Q Kᵀ)ᵀ Q", r"\left(Q K^{\top}\right)^{\top} Q", "(Q K^T)^T Q"),
        (dY @ W_O.mT @ V.mT, "dY W^Oᵀ Vᵀ", r"dY W^{O\,\top} V^{\top}", "dY W_O^T V^T"),
        (-Q @ K.mT, "−Q Kᵀ", r"-Q K^{\top}", "-Q K^T"),
        (-(Q + Q), "−(Q + Q)", r"-\left(Q + Q\right)", "-(Q + Q)"),
        (Q - (Q - Q), "Q − (Q − Q)", r"Q - \left(Q - Q\right)", "Q - (Q - Q)"),
        (Q - -Q, "Q + Q", "Q + Q", "Q + Q"),
        ((Q + Q) @ K.mT, "(Q + Q) Kᵀ", r"\left(Q + Q\right) K^{\top}", "(Q + Q) K^T"),
        (P * (Q @ K.mT), "P ∘ (Q Kᵀ)", r"P \circ \left(Q K^{\top}\right)", "P o (Q K^T)"),
        ((P * P) @ V, "(P ∘ P) V", r"\left(P \circ P\right) V", "(P o P) V"),
        (torch.exp(P) / (P + P), "exp(P) ⊘ (P + P)", r"\exp\left(P\right) \oslash \left(P + P\right)", "exp(P) / (P + P)"),
        (1 / P, "1 ⊘ P", r"1 \oslash P", "1 / P"),
        (2 * (3 * Q), "2 · 3 Q", r"2 \cdot 3 Q", "2 * 3 Q"),
        (1 - P, "1 − P", "1 - P", "1 - P"),
        (Q.mT.mT, "Q", "Q", "Q"),
        (dY.sum(0), "dYᵀ 1", r"dY^{\top} 1", "dY^T 1"),
        ((P @ V).sum(), "sum(P V)", r"\operatorname{sum}\left(P V\right)", "sum(P V)"),
        ((P @ V).diagonal().sum(), "tr(P V)", r"\operatorname{tr}\left(P V\right)", "tr(P V)"),
        (torch.softmax(P, -1), "softmax(P)", r"\operatorname{softmax}\left(P\right)", "softmax(P)"),
        (P**2, "P ∘ P", r"P \circ P", "P o P"),
    ],
)  # fmt: skip
def test_formulas(x: TexTensor, unicode: str, tex: str, ascii: str) -> None:
    assert (x.unicode(), x.tex(), x.ascii()) == (unicode, tex, ascii)


@pytest.mark.parametrize(
    ("name", "unicode", "tex", "ascii"),
    [
        ("scale", "τ", r"\tau", "tau"),
        ("delta", "δ", r"\delta", "delta"),
        ("delta_dot", "δ̇", r"\dot{\delta}", "delta_dot"),
        ("W_Q", "W^Q", "W^{Q}", "W_Q"),
        ("W_Q_dot", "Ẇ^Q", r"\dot{W}^{Q}", "W_Q_dot"),
        ("dW_Q", "dW^Q", "dW^{Q}", "dW_Q"),
        ("dW_Q_dot", "dẆ^Q", r"d\dot{W}^{Q}", "dW_Q_dot"),
        ("b_O", "b^O", "b^{O}", "b_O"),
        ("db_K", "db^K", "db^{K}", "db_K"),
        ("X_kv", "X_kv", r"X_{\mathrm{kv}}", "X_kv"),
        ("dX_kv", "dX_kv", r"dX_{\mathrm{kv}}", "dX_kv"),
        ("X_kv_dot", "Ẋ_kv", r"\dot{X}_{\mathrm{kv}}", "X_kv_dot"),
        ("calK", "𝓚", r"\mathcal{K}", "calK"),
        ("calK_dot", "𝓚̇", r"\dot{\mathcal{K}}", "calK_dot"),
        ("D_K", "𝓓_K", r"\mathcal{D}_{K}", "D_K"),
        ("Pi_1", "Π_1", r"\Pi_{1}", "Pi_1"),
        ("bias", "bias", r"\mathrm{bias}", "bias"),
        ("bias_dot", "(bias)˙", r"\dot{\mathrm{bias}}", "bias_dot"),
        ("scale_dot", "τ̇", r"\dot{\tau}", "tau_dot"),
        ("dbias", "dbias", r"d\mathrm{bias}", "dbias"),
        ("mask", "M", "M", "mask"),
        ("M", "M̃", r"\tilde{M}", "M"),
        ("P_dot", "Ṗ", r"\dot{P}", "P_dot"),
        ("hidden", "hidden", r"\mathrm{hidden}", "hidden"),
        ("loss_dot", "ℓ̇", r"\dot{\ell}", "loss_dot"),
        ("XW_K", "XW^K", "XW^{K}", "XW_K"),
        ("XW_K_dot", "(XW^K)˙", r"\dot{(XW^{K})}", "XW_K_dot"),
    ],
)
def test_names(name: str, unicode: str, tex: str, ascii: str) -> None:
    x = SYSTEM.symbol(name, 2, 2)
    assert (x.unicode(), x.tex(), x.ascii()) == (unicode, tex, ascii)


def test_batches_print_as_matrices() -> None:
    q, k = SYSTEM.symbol("Q", 2, 3, 4), SYSTEM.symbol("K", 2, 5, 4)
    assert (tau * q @ k.mT).unicode() == "τ Q Kᵀ"
    assert (q @ SYSTEM.symbol("W", 4, 6)).unicode() == "Q W"
    assert q.flatten(0, 1).unicode() == "Q"


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (Q.reshape(4, 3), "reshape(Q, [4, 3])"),
        (Q[0], "select(Q, 0, 0)"),
        (SYSTEM.symbol("A", 3, 3, 4).transpose(0, 1), "transpose(A, 0, 1)"),
        (torch.cat([Q, Q]), "cat(Q, Q)"),
        (Q.diagonal(), "diagonal(Q)"),
        (torch.relu(Q), "relu(Q)"),
    ],
)
def test_a_change_of_layout_is_never_silent(x: TexTensor, text: str) -> None:
    assert x.unicode() == text


def test_a_rule_is_a_call_by_its_name() -> None:
    O, saved = attention.attention(Q, K, V, scale=tau)
    assert O.unicode() == "attention(Q, K, V, τ)"
    assert tuple(O.shape) == (3, 6)
    assert saved.Q is Q  # what was given keeps its name
    assert saved.O is O
    assert saved.P.unicode() == "P"
    assert attention.attention_vjp(O, saved).Q.unicode().endswith(".Q")


def test_sizes_are_called_by_their_names() -> None:
    x = SYSTEM.symbol("X", 3, 14)
    assert heads.split_heads(x, 2).unicode() == "split_heads(X, h)"
    assert tuple(heads.split_heads(x, 2).shape) == (2, 3, 7)


def test_what_only_gives_the_dtype_is_not_an_argument() -> None:
    assert block_ones(Q, 2, 5, 7).unicode() == "block_ones(h, 5, d_k)"


def test_the_formula_that_ships() -> None:
    x, w = SYSTEM.symbol("X", 3, 8), SYSTEM.symbol("W_Q", 8, 14)
    B = blockdiag.blocks(
        x, w, SYSTEM.symbol("W_K", 8, 14), SYSTEM.symbol("W_V", 8, 6), W_O, n_heads=2, scale=tau
    )
    formula = blockdiag.grad_W_Q.formula
    assert formula(dY, B).unicode() == "τ Xᵀ (P ∘ (dY W^Oᵀ 𝓥ᵀ − (P ∘ (dY W^Oᵀ 𝓥ᵀ)) 𝓘)) 𝓚"
    assert blockdiag.grad_b_V.formula(dY, B).unicode() == "(𝓒 (𝓓_V ∘ (Pᵀ dY W^Oᵀ)))ᵀ 1"


def test_masks_are_named_too() -> None:
    mask = SYSTEM.named(Symbol("mask"), torch.ones(3, 5).bool())
    out, _ = softmax.softmax.__wrapped__(SYSTEM.symbol("S", 3, 5), mask=mask)
    assert out.unicode() == "masked_fill(softmax(masked_fill(S, ¬M ∧ any(M), −∞)), ¬M, 0)"


def test_autograd_prints_its_own_formula() -> None:
    q = SYSTEM.symbol("Q", 3, 4).requires_grad_()
    out = torch.softmax(tau * q @ K.mT, -1) @ V
    (grad,) = torch.autograd.grad(out, q, SYSTEM.symbol("dO", 3, 6))
    p = "softmax(τ Q Kᵀ)"
    assert grad.unicode() == f"τ ({p} ∘ (dO Vᵀ − rowsum({p} ∘ (dO Vᵀ)))) K"


def test_inline_runs_the_body() -> None:
    system = Tex(inline=frozenset({"softmax_vjp"}))
    given, p = system.symbol("dP", 3, 5), system.symbol("P", 3, 5)
    assert softmax.softmax_vjp(given, softmax.SoftmaxSaved(p)).S.unicode() == "P ∘ (dP − rowsum(P ∘ dP))"


def test_a_constant_of_several_values_is_not_spelled_out() -> None:
    assert (Q * torch.tensor([1.0, 2, 3, 4])).unicode() == "Q ∘ …"
    assert (Q * torch.full((4,), 2.0)).unicode() == "Q ∘ 2"
