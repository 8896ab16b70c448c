"""The chain: what holds, what stops it, what it says."""

from __future__ import annotations

import math
from pathlib import Path

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
from gradderiv.book.library import run
from gradderiv.book.named import DRAW, Draw
from gradderiv.errors import InputError
from gradderiv.numbers.lanes import DrawAgain
from gradderiv.rules.attention import attention
from gradderiv.rules.linear import linear, linear_vjp
from gradderiv.rules.softmax import softmax

AT = Point(n=3, d=4, e=2)
X, W, dY = AT.free("X", "n, d"), AT.free("W", "d, e"), AT.free("dY", "n, e")
W_DOT = AT.tangent(W)
Y_DOT, _ = differential(linear, X, moves(W, W_DOT), name="Y")
SAVED = linear(X, W)[1]
OUTPUT = definition(AT.let("Y", linear(X, W)[0]), X @ W)


def begun() -> Chain:
    return chain(inner(dY, Y_DOT), "the differential of ℓ")


def finished() -> Chain:
    line = begun()
    line(inner(dY, X @ W_DOT), OUTPUT.moves)
    line(inner(X.mT @ dY, W_DOT), laws.LEFT)
    line.reads_off(W_DOT, linear_vjp(dY, SAVED).W)
    return line


def test_a_derivation_in_print() -> None:
    lines = finished().unicode().splitlines()
    assert [line[:44].rstrip() for line in lines[:5]] == [
        "ℓ̇ = ⟨dY, Ẏ⟩",
        "  = ⟨dY, X Ẇ⟩",
        "  = ⟨Xᵀ dY, Ẇ⟩",
        "",
        "dW = Xᵀ dY",
    ]
    assert lines[1].endswith("Y = X W, and only W moves")
    assert lines[-1].startswith("3 equalities checked; probability of a mistake below 2⁻")
    assert finished().ascii().splitlines()[:3] == [
        "loss_dot = <dY, Y_dot>                      the differential of loss",
        "         = <dY, X W_dot>                    Y = X W, and only W moves",
        "         = <X^T dY, W_dot>                  <A, B C> = <B^T A, C>",
    ]


def test_a_derivation_in_latex() -> None:
    assert finished().tex().splitlines()[:4] == [
        r"\begin{align*}",
        r"\dot{\ell} &= \langle dY, \dot{Y} \rangle && \text{the differential of $\ell$} \\",
        r" &= \langle dY, X \dot{W} \rangle && \text{$Y = X W$, and only $W$ moves} \\",
        r" &= \langle X^{\top} dY, \dot{W} \rangle && \text{$\langle A, B C\rangle  = \langle B^{\top} A, C\rangle$} \\",
    ]
    assert finished()._repr_latex_() == finished().tex()


def test_how_sure_one_can_be() -> None:
    line = finished()
    assert line.steps == 3
    assert line.failure == math.log2(sum(2**f for f in line.failures)) < -80
    assert (line.variable, line.rule) == ("W", "linear_vjp")


def test_a_wrong_line_says_which_and_why() -> None:
    line = begun()
    with pytest.raises(ChainError) as error:
        line(inner(dY, -2 * X @ W_DOT), OUTPUT.moves)
    text = str(error.value)
    assert text.startswith("line 2, «Y = X W, and only W moves», must equal the line before it\n")
    assert "⟨dY, Ẏ⟩" in text
    assert "⟨dY, −2 X Ẇ⟩" in text
    assert "cause: the new side is -2 × the one before" in text
    assert line.steps == 0  # the line was not added
    line(inner(dY, X @ W_DOT), OUTPUT.moves, note="and one can go on")


def test_a_wrong_entry_is_named() -> None:
    one = torch.zeros(3, 4)
    one[1, 2] = 1
    with pytest.raises(ChainError, match=r"entry \[1, 2\], 1 of 12 entries"):
        chain(X, "X")(X + AT.given("E", one), computed("one entry moved"))


def test_a_line_that_became_zero() -> None:
    with pytest.raises(ChainError, match="the new side is zero"):
        begun()(inner(dY, Y_DOT - Y_DOT), computed("gone"))


def test_shapes_come_first() -> None:
    with pytest.raises(ChainError, match=r"shapes \(3, 4\) and \(4, 3\)"):
        chain(X, "X")(X.mT, computed("no"))
    with pytest.raises(InputError, match="⟨A, B⟩ needs two matrices of one shape"):
        inner(X, X.mT)


def test_a_chain_of_zeros_proves_nothing() -> None:
    with pytest.raises(ChainError, match="a start that is not zero"):
        chain(inner(dY, Y_DOT - Y_DOT), "nothing moves")
    still, _ = differential(linear, moves(X, AT.tangent(X)), W, name="Y")
    saved = differential(linear, moves(X, AT.tangent(X)), W)[1]
    with pytest.raises(ChainError, match="a start that is not zero"):
        chain(saved.W, "W stays")
    assert chain(still, "but Y moves")


def test_the_gradient_must_stand_alone() -> None:
    line = begun()
    with pytest.raises(ChainError, match="the last line is ⟨G, Ẇ⟩"):
        line.reads_off(W_DOT, linear_vjp(dY, SAVED).W)
    line = chain(inner(W_DOT, W_DOT), "quadratic")
    with pytest.raises(ChainError, match="does not depend on the direction Ẇ"):
        line.reads_off(W_DOT, linear_vjp(dY, SAVED).W)


def test_the_start_must_be_the_truth() -> None:
    line = chain(inner(dY, X @ W_DOT), "the product rule, done by hand")
    line(inner(X.mT @ dY, W_DOT), laws.LEFT)
    with pytest.raises(ChainError, match="a derivation starts at ⟨dY, Ẏ⟩"):
        line.reads_off(W_DOT, linear_vjp(dY, SAVED).W)
    other = AT.tangent(W)  # another direction for the same variable
    line = chain(inner(dY, Y_DOT) + inner(dY, X @ other) - inner(dY, Y_DOT), "two directions")
    line(inner(X.mT @ dY, other), computed("one of them"))
    with pytest.raises(ChainError, match="a derivation starts at"):
        line.reads_off(other, linear_vjp(dY, SAVED).W)


def test_a_tangent_in_disguise_is_found() -> None:
    named = AT.let("G", W_DOT)
    with pytest.raises(ChainError, match="does not depend on the direction Ẇ"):
        chain(inner(named, W_DOT), "Ẇ under another name").reads_off(W_DOT, linear_vjp(dY, SAVED).W)


def test_a_wrong_function_is_not_read_off() -> None:
    line = begun()
    line(inner(X.mT @ dY, W_DOT), OUTPUT.moves, laws.LEFT, note="both at once")
    with pytest.raises(ChainError, match="linear_vjp must return the gradient that was read off"):
        line.reads_off(W_DOT, linear_vjp(2 * dY, SAVED).W)
    with pytest.raises(ChainError, match="shapes"):
        line.reads_off(W_DOT, linear_vjp(dY, SAVED).X)
    with pytest.raises(ChainError, match=r"a function of gradderiv\.rules"):
        line.reads_off(W_DOT, X.mT @ dY)
    with pytest.raises(ChainError, match="must return 0"):
        line.vanishes("W", linear_vjp(dY, SAVED).W)


def test_names_on_the_way() -> None:
    line = begun()
    dW = line.let("dW", X.mT @ dY)
    line(inner(dW, W_DOT), OUTPUT.moves, laws.LEFT, note="by its name")
    assert "with dW = Xᵀ dY" in line.unicode()
    assert line.unicode().splitlines()[1].endswith("d × e")
    assert r"\text{with } dW = X^{\top} dY" in line.tex()


def test_an_exponential_is_free() -> None:
    S = Point(n_q=3, n_k=4).free("S", "n_q, n_k")
    line = chain(softmax(S)[0], "the rule")
    line(torch.exp(S) / torch.exp(S).sum(-1, keepdim=True), computed("the definition"))
    with pytest.raises(ChainError):
        line(torch.exp(S) / torch.exp(S).sum(-2, keepdim=True), computed("the other axis"))


def test_the_shift_of_a_row_is_held_to_nothing() -> None:
    S = Point(n_q=3, n_k=4).free("S", "n_q, n_k")
    E = torch.exp(S - S.amax(-1, keepdim=True))
    line = chain(softmax(S)[0], "no shift")
    line(E / E.sum(-1, keepdim=True), computed("m cancels"))
    with pytest.raises(ChainError):
        line(E / torch.exp(S).sum(-1, keepdim=True), computed("here it does not"))
    shifted = [v for v in E.points if bool(E.points[0].system.differs(E.points[0], v).any())]
    assert shifted  # the two fields disagree about m, and about nothing else


def test_the_true_tangent_comes_from_the_program() -> None:
    at = Point(n_q=3, n_k=4, d_k=2, d_v=5)
    Q, K, V = at.free("Q", "n_q, d_k"), at.free("K", "n_k, d_k"), at.free("V", "n_k, d_v")
    tau, V_dot = at.free("scale"), at.tangent(V)
    O_dot, dot = differential(attention, Q, K, moves(V, V_dot), scale=tau, name="O")
    assert (O_dot.node.name, dot.P.node.name) == ("O_dot", "P_dot")
    chain(O_dot, "Ȯ")(softmax(tau * Q @ K.mT)[0] @ V_dot, computed("P V̇"))
    with pytest.raises(ChainError, match="not zero"):
        chain(dot.P, "P does not move")


def test_a_root_is_asked_for_and_granted(tmp_path: Path) -> None:
    path = tmp_path / "chapter.py"
    path.write_text(
        "from gradderiv.book.chain import Point, chain, computed\n"
        "X = Point(n=2).free('X', 'n, n')\n"
        "print(chain(2**0.5 * (2**0.5 * X), 'a root')(2 * X, computed('squared')))\n",
        encoding="utf-8",
    )
    chapter = run(path)
    assert chapter.chains[0].steps == 1
    assert "squared" in chapter.printed


UNLUCKY = """
from gradderiv.book.chain import Point, chain, computed
from gradderiv.book.named import DRAW
from gradderiv.numbers.lanes import DrawAgain
X = Point(n=2).free("X", "n, n")
if DRAW.get().draw < {draws}:
    raise DrawAgain("a denominator is zero")
chain(X + X, "two")(2 * X, computed("times"))
"""


def test_another_point_after_a_zero_denominator(tmp_path: Path) -> None:
    path = tmp_path / "chapter.py"
    path.write_text(UNLUCKY.format(draws=2), encoding="utf-8")
    assert len(run(path).chains) == 1
    path.write_text(UNLUCKY.format(draws=9), encoding="utf-8")
    with pytest.raises(DrawAgain):
        run(path)
    assert DRAW.get() == Draw()


def test_too_few_lanes_are_refused() -> None:
    token = DRAW.set(Draw(lanes=1))
    try:
        A = Point(n=2).free("A", "n, n")
        with pytest.raises(ChainError, match="probability below 2\\^-40"):
            chain(A + A, "twice")(2 * A, laws.LINEARITY)
    finally:
        DRAW.reset(token)


def test_a_named_matrix_shows_itself() -> None:
    assert repr(X @ W) == "X W  n × e"
    assert repr(X.sum()) == "sum(X)  number"


# ---------------------------------------------------------------- one point, one name for one matrix


def test_equal_numbers_of_two_points_are_no_equality() -> None:
    """Each Point draws the same numbers: what is free in one equals what is free in another, by accident."""
    other = Point(n=3, d=4, e=2).free("Z", "n, d")
    for stated in (lambda: fact(X, other), lambda: chain(X, "X")(other, computed("the same numbers"))):
        with pytest.raises(ChainError, match="matrices of two points"):
            stated()


def test_a_tangent_was_given_to_nothing() -> None:
    with pytest.raises(InputError, match="it was not made by let"):
        definition(Y_DOT)


def test_a_name_stands_for_one_matrix() -> None:
    disguised = AT.let("Y_dot", X @ W_DOT)  # the true value, so that the line would hold
    with pytest.raises(InputError, match="given to X Ẇ"):
        begun()(inner(dY, X @ W_DOT), definition(disguised))
    for hidden in (X @ W_DOT, Y_DOT):
        with pytest.raises(InputError, match="Ẏ, for two"):
            begun().let("Y_dot", hidden)
    line = begun()
    line.let("Z", X)
    with pytest.raises(InputError, match="Z, for two"):
        line(inner(dY, AT.let("Z", 2 * X) @ W_DOT), OUTPUT.moves)
    with pytest.raises(InputError, match="with different values"):
        chain(AT.free("A", "n, d"), "A")(AT.free("A", "n, d"), computed("drawn twice"))
    with pytest.raises(InputError, match="with different values"):
        chain(X * AT.let("1", X), "no ones")(X * X, computed("under the name of ones"))


def test_a_name_may_be_given_again_and_an_abbreviation_may_be_used() -> None:
    line = begun()
    dW = line.let("dW", X.mT @ dY)
    assert line.let("dW", X.mT @ dY).node == dW.node
    line(inner(dW, W_DOT), OUTPUT.moves, laws.LEFT)
    row = AT.free("b", "d")
    chain(inner(row, row), "a row")(inner(row.unsqueeze(0), row.unsqueeze(0)), computed("as a matrix"))


def test_a_tangent_depends_on_all_that_the_rule_was_given() -> None:
    """Ẇ as an argument that does not move is in the tangent all the same."""
    X_dot = AT.tangent(X)
    hidden, _ = differential(linear, moves(X, X_dot), W_DOT, name="H")
    assert hidden.node.uses(W_DOT.node)
    with pytest.raises(ChainError, match="does not depend on the direction Ẇ"):
        chain(inner(AT.let("G", X.mT @ hidden), W_DOT), "in disguise").reads_off(
            W_DOT, linear_vjp(dY, SAVED).W
        )


@pytest.mark.parametrize("thing", [3, "X", None, (X,), torch.ones(3, 4), X.points[0], X > 0])
def test_what_is_no_named_matrix_is_refused_in_words(thing: object) -> None:
    line = begun()
    for refused in (
        lambda: chain(thing, "start"),  # type: ignore[arg-type]
        lambda: line(thing, laws.LEFT),  # type: ignore[arg-type]
        lambda: line.let("Z", thing),  # type: ignore[arg-type]
        lambda: line.reads_off(thing, X),  # type: ignore[arg-type]
        lambda: fact(X, thing),  # type: ignore[arg-type]
        lambda: definition(thing),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match="needs a named matrix"):
            refused()
