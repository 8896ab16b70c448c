"""Formulas in a given number of columns."""

from __future__ import annotations

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
    assert prose("Ẋ_kv and Σ_ij A_ij") == r"$\dot{X}_{\mathrm{kv}}$ and $\Sigma _{ij} A_{ij}$"
    assert prose("Y = X W + b, and S = τ Q + bias") == r"$Y = X W + b$, and $S = \tau  Q + \mathrm{bias}$"
    assert prose("nothing but words") == "nothing but words"
