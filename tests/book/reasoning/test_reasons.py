"""A line must follow by the reasons named beside it: by them, by all of them, and by nothing else."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch

from gradderiv.book import laws
from gradderiv.book.chain import (
    Chain,
    ChainError,
    Point,
    chain,
    computed,
    definition,
    differential,
    fact,
    inner,
    moves,
)
from gradderiv.book.laws import LAWS
from gradderiv.book.reasoning.reasons import Law
from gradderiv.errors import InputError
from gradderiv.rules.attention import attention
from gradderiv.rules.softmax import softmax

AT = Point(n_q=3, n_k=4, d_k=2, d_v=5)
Q, K, V = AT.free("Q", "n_q, d_k"), AT.free("K", "n_k, d_k"), AT.free("V", "n_k, d_v")
dO, TAU = AT.free("dO", "n_q, d_v"), AT.free("scale")
ALL_ONES = AT.given("calI", torch.ones(4, 4))
Q_DOT, K_DOT = AT.tangent(Q), AT.tangent(K)
O = AT.let("O", attention(Q, K, V, scale=TAU)[0])
SAVED = attention(Q, K, V, scale=TAU)[1]
S, P = SAVED.S, SAVED.P
O_DOT, DOT = differential(attention, moves(Q, Q_DOT), moves(K, K_DOT), V, scale=TAU, name="O")
SCORES, OUTPUT = definition(S, TAU * Q @ K.mT), definition(O, P @ V)
SOFTMAX = fact(DOT.P, P * (DOT.S - (P * DOT.S) @ ALL_ONES), "the tangent of softmax")


def begun() -> Chain:
    return chain(inner(dO, O_DOT), "the differential of ℓ")


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize(
    "law", [law for law in LAWS.values() if isinstance(law, Law)], ids=lambda law: law.name
)
def test_a_law_holds_and_is_not_empty(law: Law) -> None:
    left, right, compared = law.checked
    assert left != right
    assert compared.log2_failure < -40
    assert "=" in law.statement
    (equation, *_) = law.equations(None)  # type: ignore[arg-type]
    names = [{s.name for s in side.symbols()} for side in equation[:2]]
    assert names[0] <= names[1] or names[1] <= names[0]  # one side is known from the other


def test_names_of_laws_are_their_own() -> None:
    assert len({law.name for law in LAWS.values()}) == len(LAWS)
    assert len({law.statement for law in LAWS.values()}) == len(LAWS)
    for name, law in LAWS.items():
        assert getattr(laws, name) is law


@pytest.mark.parametrize(
    ("shapes", "sides"),
    [
        ("n e, n d, d e", lambda A, B, C: (inner(A, B @ C), inner(A @ C.mT, 2 * B))),
        ("n d, n d, n 1", lambda A, B, c: (inner(A, B * c), inner((A + B).sum(-1, keepdim=True), c))),
        ("n d, d n", lambda A, B: ((A @ B).diagonal().sum(), -(B @ A).diagonal().sum())),
    ],
)
def test_a_false_law_is_not_used(shapes: str, sides: object) -> None:
    with pytest.raises(ChainError, match="the law «wishful» must hold"):
        _ = Law("wishful", shapes, sides).checked  # type: ignore[arg-type]


# ---------------------------------------------------------------- what a line may change


def test_the_laws_named_and_no_other() -> None:
    line = begun()
    line(inner(dO, DOT.P @ V), OUTPUT.moves)
    after = inner(dO @ V.mT, DOT.P)
    for name, law in LAWS.items():
        if name != "RIGHT":
            with pytest.raises(ChainError, match=r"line 3 must follow by .*(\n.*)*it follows by RIGHT"):
                line(after, law)
    line(after, laws.RIGHT)


def test_every_reason_is_needed() -> None:
    line = begun()
    with pytest.raises(ChainError, match="«⟨A, B C⟩ = ⟨A Cᵀ, B⟩» is not used"):
        line(inner(dO, DOT.P @ V), OUTPUT.moves, laws.RIGHT)
    with pytest.raises(ChainError, match="RIGHT is used as well"):
        line(inner(dO @ V.mT, DOT.P), OUTPUT.moves)
    line(inner(dO @ V.mT, DOT.P), OUTPUT.moves, laws.RIGHT)


def test_a_line_must_bring_something() -> None:
    line = begun()(inner(dO, DOT.P @ V), OUTPUT.moves)
    for same in (inner(dO, DOT.P @ V), inner(dO, (V.mT @ DOT.P.mT).mT)):
        with pytest.raises(ChainError, match="in another order; no reason is used"):
            line(same, laws.RIGHT)


def test_words_alone_are_no_reason() -> None:
    with pytest.raises(InputError, match="words are not a reason that can be checked"):
        begun()(inner(dO, DOT.P @ V), "the product rule")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="line 2 needs a reason"):
        begun()(inner(dO, DOT.P @ V))


def test_what_is_computed_says_so() -> None:
    line = begun()
    line(inner(dO @ V.mT, DOT.P), computed("by some way"))
    evidence = line.lines[-1].evidence
    assert evidence is not None
    assert evidence.law == ""
    line(inner(dO, DOT.P @ V), laws.RIGHT)
    assert line.lines[-1].evidence.law == laws.RIGHT.statement  # type: ignore[union-attr]
    with pytest.raises(ChainError):
        line(inner(dO, 2 * DOT.P @ V), computed("a false one is found all the same"))


# ---------------------------------------------------------------- definitions and tangents


def test_the_product_rule_names_what_moves() -> None:
    line = chain(inner(P, DOT.S), "a start")
    line(inner(P, TAU * Q_DOT @ K.mT + TAU * Q @ K_DOT.mT), SCORES.moves)
    assert line.lines[-1].reason == "S = τ Q Kᵀ, and Q and K move"
    with pytest.raises(ChainError):  # K moves as well
        chain(inner(P, DOT.S), "a start")(inner(P, TAU * Q_DOT @ K.mT), SCORES.moves)


def test_a_definition_of_a_definition() -> None:
    line = begun()
    line(inner(dO, (P * (DOT.S - (P * DOT.S) @ ALL_ONES)) @ V), OUTPUT.moves, SOFTMAX)
    only_q = differential(attention, moves(Q, Q_DOT), K, V, scale=TAU, name="O")[1]
    line = chain(only_q.S @ K, "Ṡ K")
    line(TAU * Q_DOT @ K.mT @ K, SCORES.moves, note="and no more")
    assert line.lines[-1].reason == "S = τ Q Kᵀ, and only Q moves; and no more"


def test_exponentials_and_quotients_have_their_rules() -> None:
    at = Point(n=3, d=4)
    S = at.free("S", "n, d")
    S_dot, ones = at.tangent(S), at.given("calI", torch.ones(4, 4))
    E, R = at.let("E", S.exp()), at.let("R", S.exp() @ ones)
    P = at.let("P", softmax(S)[0])
    E_dot = differential(torch.exp, moves(S, S_dot), name="E")
    R_dot = (
        differential(lambda S: S.exp() @ ones.points[0].new_ones(4, 4), moves(S, S_dot), name="R")
        if False
        else None
    )
    assert R_dot is None
    line = chain(E_dot, "the tangent")(S.exp() * S_dot, definition(E).moves)
    line(E * S_dot, definition(E))
    quotient = definition(P, E / R)
    P_dot, _ = differential(softmax, moves(S, S_dot), name="P")
    line = chain(P_dot, "the tangent")
    whole = E * S_dot / R - E * ((E * S_dot) @ ones) / (R * R)
    sums = definition(R, E @ ones)
    line(whole, quotient.moves, sums.moves, definition(E).moves)
    with pytest.raises(ChainError, match=r"sums\.moves|is used as well|another law"):
        chain(P_dot, "the tangent")(whole, quotient.moves, definition(E).moves)


def test_a_definition_is_checked_and_begins_with_a_name() -> None:
    with pytest.raises(ChainError, match="the definition «O = 2 P V» must hold"):
        definition(O, 2 * P @ V)
    with pytest.raises(InputError, match="a definition begins with a name"):
        definition(P @ V, O)
    with pytest.raises(InputError, match="it was not made by let"):
        definition(Q)
    assert (
        definition(O).statement == "O = attention(Q, K, V, scale = τ).O"
        or "attention" in definition(O).statement
    )
    with pytest.raises(ChainError, match="the fact «two» must hold"):
        fact(Q, 2 * Q, "two")


def test_a_function_without_a_formula_has_no_product_rule() -> None:
    at = Point(n=3, d=4)
    A = at.free("A", "n, d")
    A_dot = at.tangent(A)
    B_dot = differential(lambda A: softmax(A)[0], moves(A, A_dot), name="B")
    B = at.let("B", softmax(A)[0])
    with pytest.raises(InputError, match="state its tangent as a fact"):
        chain(B_dot, "B")(B * A_dot - B * A_dot + B_dot + B_dot - B_dot, definition(B).moves)


def test_another_chain_can_be_cited() -> None:
    line = begun()
    line(inner(dO @ V.mT, DOT.P), OUTPUT.moves, laws.RIGHT)
    dP = line.let("dP", dO @ V.mT)
    line(inner(dP, P * (DOT.S - (P * DOT.S) @ ALL_ONES)), SOFTMAX)
    shown = line.cited("as shown")
    again = begun()
    with pytest.raises(ChainError):
        again(inner(dO, 2 * DOT.P @ V), shown)
    with pytest.raises(ChainError, match="must follow by «as shown»"):
        again(inner(dO, DOT.P @ V), shown)  # true, but that chain went another way
    again(inner(dO @ V.mT, DOT.P), shown)
    assert again.lines[-1].reason == "as shown"


# ---------------------------------------------------------------- what a false line says


SLIPS = {
    "sign": (lambda: inner(-(TAU * P @ K), Q_DOT), "the new side is -1 ×"),
    "scale missing": (lambda: inner(P @ K, Q_DOT), r"is the factor τ missing\?"),
    "scale twice": (lambda: inner(TAU * TAU * P @ K, Q_DOT), r"is the factor τ one too many\?"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_guessed(slip: str) -> None:
    only_q = differential(attention, moves(Q, Q_DOT), K, V, scale=TAU, name="O")[1]
    line = chain(inner(P, only_q.S), "a start")
    line(inner(P, TAU * Q_DOT @ K.mT), SCORES.moves)
    expression, words = SLIPS[slip]
    with pytest.raises(ChainError, match=words):
        line(expression(), laws.RIGHT)


def test_the_entry_where_two_sides_differ() -> None:
    at = Point(n=3, d=4, e=2)
    A, B, one = at.free("A", "n, d"), at.free("B", "n, d"), torch.zeros(3, 4)
    one[1, 2] = 1
    E = at.given("E", one)
    with pytest.raises(ChainError, match=r"differ in entry \[1, 2\], 1 of 12 entries"):
        chain(A, "A")(A + E, laws.LINEARITY)
    D = at.tangent(A)
    with pytest.raises(ChainError, match=r"differ in entry \[1, 2\] of what multiplies Ȧ, 1 of 12 entries"):
        chain(inner(A * B, D), "⟨A ∘ B, Ȧ⟩")(inner(A * B + E, D), laws.LINEARITY)
    with pytest.raises(ChainError, match="differ as numbers"):  # two directions: nothing multiplies one alone
        chain(inner(D, D), "a square")(
            2 * inner(D, D) + inner(B.mT @ D, B.mT @ at.tangent(B)), laws.LINEARITY
        )


def test_a_missing_row_sum_an_order_and_a_transpose_are_guessed() -> None:
    dP = AT.free("dP", "n_q, n_k")
    right = P * (dP - (P * dP) @ ALL_ONES)
    with pytest.raises(ChainError, match=r"is the row sum of P ∘ dP missing\?"):
        chain(right, "dS")(P * (dP - P * dP), laws.LINEARITY)
    with pytest.raises(ChainError, match=r"has \(P ∘ dP\) 𝓘 the wrong sign\?"):
        chain(right, "dS")(P * (dP + (P * dP) @ ALL_ONES), laws.LINEARITY)
    at = Point(n=3, d=4)
    A, B = at.free("A", "n, n"), at.free("B", "n, n")
    with pytest.raises(ChainError, match=r"are B and A in the wrong order\?"):
        chain(A @ B, "A B")(B @ A, laws.LEFT)
    with pytest.raises(ChainError, match=r"is A to be transposed\?"):
        chain(A.mT @ B, "Aᵀ B")(A @ B, laws.LEFT)
    with pytest.raises(InputError, match=r"these fit: Q times \(K\)ᵀ"):
        _ = Q @ K


def test_a_factor_too_many_on_a_single_name_has_words() -> None:
    """What is left of 2 Q without Q is a number, and no matrix."""
    with pytest.raises(ChainError) as error:
        chain(Q, "Q")(2 * Q, computed("twice"))
    assert "the new side is 2 ×" in str(error.value)


def test_an_error_survives_its_journey() -> None:
    with pytest.raises(ChainError) as error:
        begun()(inner(dO, DOT.P @ V), laws.RIGHT)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


# ---------------------------------------------------------------- no law lets a false thing through


def test_no_combination_of_laws_joins_what_differs() -> None:
    line = begun()(inner(dO, DOT.P @ V), OUTPUT.moves)
    for pair in itertools.combinations(LAWS.values(), 2):
        with pytest.raises(ChainError) as error:
            line(inner(dO @ V.mT, 2 * DOT.P), *pair)
        assert error.value.asked.endswith("must equal the line before it")
