"""Formulas in a given number of columns."""

from __future__ import annotations

import pytest

from gradderiv.book.layout import beside, columns, fold, wrap
from gradderiv.book.remarks import plain, prose


def test_a_dot_takes_no_column() -> None:
    assert columns("Q̇ K̇ᵀ") == 4
    assert columns("𝓚̇") == 1


def test_folding_prefers_the_outside_of_brackets() -> None:
    assert fold("A (B + C) + D (E + F)", 14) == ["A (B + C)", "+ D (E + F)"]
    assert fold("A + B", 80) == ["A + B"]
    assert fold("unbreakable", 4) == ["unbreakable"]


def test_words() -> None:
    assert wrap("one two three", 7) == ["one two", "three"]


def test_a_remark_stands_beside_or_below() -> None:
    assert beside("x = ", "y", "because", column=10, width=20) == ["x = y     because"]
    assert beside("x = ", "a long formula", "because", column=10, width=20) == [
        "x = a long formula",
        "          because",
    ]
    assert beside("x = ", "y", "a longer reason", column=10, width=18) == [
        "x = y     a longer",
        "          reason",
    ]


def test_plain() -> None:
    assert (
        plain("Ẇ^Q = τ 𝓚ᵀ ∘ dẊ_kv − ⟨A, B⟩, 2⁻⁶⁶, √d")
        == "W_Q_dot = tau calK^T o dX_kv_dot - <A, B>, 2^-66, sqrt d"
    )


def test_plain_names_what_stands_above_a_letter() -> None:
    assert plain("mean(x̂²), M̃, Ṡ") == "mean(x_hat^2), M, S_dot"


def test_prose() -> None:
    assert prose("Y = P 𝓥 W^O + b^O, and only 𝓥 moves") == (
        r"$Y = P \mathcal{V} W^{O} + b^{O}$, and only $\mathcal{V}$ moves"
    )
    assert prose("as for W^V; 𝓘ᵀ = 𝓘") == r"as for $W^{V}$; $\mathcal{I}^{\top} = \mathcal{I}$"
    assert prose("dO W^Oᵀ") == r"$dO W^{O\,\top}$"
    assert prose("Ẋ_kv and Σ_ij A_ij") == r"$\dot{X}_{\mathrm{kv}}$ and $\Sigma_{ij} A_{ij}$"
    assert prose("Y = X W + b, and S = τ Q + bias") == r"$Y = X W + b$, and $S = \tau  Q + \mathrm{bias}$"
    assert prose("nothing but words") == "nothing but words"


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("⟨A, c B⟩ = sum(A ∘ B)", r"$\langle A, c B\rangle  = \operatorname{sum}(A \circ  B)$"),
        ("(c ∘ A) B, and only a moves", r"$(c \circ  A) B$, and only $a$ moves"),
        ("lse_1 = exp(S − lse)", r"$\mathrm{lse}_{1} = \operatorname{exp}(S - \mathrm{lse})$"),
        ("ṙ = −r³ v̇ / 2", r"$\dot{r} = -r^{3} \dot{v} / 2$"),
        ("db^Q = dQᵀ 1; chapter 4", "$db^{Q} = dQ^{\\top} 1$; chapter 4"),
        ("what grad_W_Q returns", r"what $\operatorname{grad\_W\_Q}$ returns"),
        ("collect (bias)˙ and (XW^K)˙", r"collect $\dot{\mathrm{bias}}$ and $\dot{(XW^{K})}$"),
        ("a row of P is 1, or 0", "a row of $P$ is 1, or 0"),
    ],
)
def test_prose_tells_letters_from_words(text: str, latex: str) -> None:
    assert prose(text) == latex
