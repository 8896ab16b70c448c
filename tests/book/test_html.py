"""Formulas and chains on a page: what they are, and which are refused."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradderiv.book import laws
from gradderiv.book.chain import Chain, Point, chain, definition, differential, inner, moves
from gradderiv.book.exercises import claim
from gradderiv.book.html import chain_html, claim_html, inline, named_html, pieces, raised, spaced
from gradderiv.book.mathml import NAMESPACE, FormulaError, mathml
from gradderiv.rules.linear import linear, linear_vjp

AT = Point(n=3, d=4, e=2)
X, W, dY = AT.free("X", "n, d"), AT.free("W", "d, e"), AT.free("dY", "n, e")
W_DOT = AT.tangent(W)
Y, SAVED = linear(X, W)
MAP = definition(AT.let("Y", Y), X @ W)
Y_DOT, _ = differential(linear, X, moves(W, W_DOT), name="Y")


def finished() -> Chain:
    line = chain(inner(dY, Y_DOT), "the differential of ℓ")
    line(inner(dY, X @ W_DOT), MAP.moves)
    G = line.let("G", X.mT @ dY)
    line(inner(G, W_DOT), laws.LEFT)
    line.reads_off(W_DOT, linear_vjp(dY, SAVED).W)
    return line


def letters(xml: str) -> str:
    return "".join(ElementTree.fromstring(xml).itertext())


@pytest.mark.parametrize(
    ("latex", "read"),
    [
        (r"\langle A, B \rangle", "⟨A,B⟩"),
        (r"\dot{\ell}", "ℓ˙"),
        (r"\tau Q \mathcal{K}^{\top}", "τQ𝒦⊤"),
        (r"\operatorname{rowsum}\left(A\right)", "rowsum(A)"),
        (r"\begin{align*} a &= b \\ &= c \end{align*}", "a=b=c"),
        (r"\begin{bmatrix} A & 0 \\ 0 & B \end{bmatrix}", "[A00B]"),
        (r"\begin{cases} a & b \\ c & d \end{cases}", "{abcd"),
        (r"\mathbf{1}", "𝟏"),
        (r"2^{-40}", "2−40"),
        (r"\exp S + \exp(S)", "expS+exp(S)"),
    ],
)
def test_a_formula(latex: str, read: str) -> None:
    xml = mathml(latex)
    assert xml.startswith(f'<math xmlns="{NAMESPACE}"')
    assert letters(xml) == read


@pytest.mark.parametrize(
    ("latex", "came"),
    [
        (r"\foo{x}", r"'\\foo' as it was typed"),
        (r"\text{with $x$}", "as it was typed"),
        (r"\begin{aligned} a &= b \end{aligned}", "not XML"),
        ("{a", "braces that do not match"),
        ("a}{", "braces that do not match"),
        ("x^", "MissingSuperScriptOrSubscriptError"),
        ("$x$", "as it was typed"),
    ],
)
def test_a_formula_that_did_not_survive_is_refused(latex: str, came: str) -> None:
    with pytest.raises(FormulaError) as error:
        mathml(latex)
    text = str(error.value)
    assert text.startswith(f"a formula must be MathML after conversion: {latex}\n")
    assert came in text


@given(st.text(r"\{}^_&$ abfrcqt<>", max_size=12))
def test_whatever_is_typed_is_mathml_or_refused(latex: str) -> None:
    try:
        xml = mathml(latex)
    except FormulaError:
        return
    root = ElementTree.fromstring(xml)
    assert {e.tag.partition("}")[0] for e in root.iter()} == {f"{{{NAMESPACE}"}
    assert not re.search(r"[\\$&]", letters(xml))


def test_a_chain() -> None:
    line = finished()
    figure = ElementTree.fromstring(chain_html(line).replace(f' xmlns="{NAMESPACE}"', ""))
    steps = figure.findall("ol/li")
    assert [letters_of(s, "lead") for s in steps] == ["ℓ˙=", "=", "with G=", "=", "dW="]
    assert [letters_of(s, "formula") for s in steps] == [
        "⟨dY,Y˙⟩", "⟨dY,XW˙⟩", "X⊤dY", "⟨G,W˙⟩", "G"
    ]  # fmt: skip
    assert letters_of(steps[1], "reason") == "Y=XW, and only W moves"
    assert letters_of(steps[2], "reason") == "d×e"
    assert letters_of(steps[4], "reason") == "is what linear_vjp returns"
    marks = [s.find("details/summary") for s in steps]
    powers = [math.ceil(f) for f in line.failures]
    assert [None if m is None else m.get("aria-label") for m in marks] == [
        None,
        f"step 2: checked, probability of a mistake below 2^{powers[0]}",
        None,
        f"step 3: checked, probability of a mistake below 2^{powers[1]}",
        f"the gradient: checked, probability of a mistake below 2^{powers[2]}",
    ]
    evidence = "".join(steps[3].find("details/p").itertext())  # type: ignore[union-attr]
    assert evidence.startswith("It follows from the line before by ⟨A,BC⟩=⟨B⊤A,C⟩, and by no other law.")
    assert "Compared with the line before: 1 entry, equal modulo 3 random primes" in evidence
    assert len(marks) - marks.count(None) == line.steps


def test_a_chain_that_shows_that_a_gradient_vanishes() -> None:
    from gradderiv.rules.multihead import multihead, multihead_vjp

    at = Point(n=3, d_model=5, h=2, d_k=4, d_v=7, d_out=11)
    X, W_O = at.free("X", "n, d_model"), at.free("W_O", "h*d_v, d_out")
    W_Q, W_K, W_V = (
        at.free(f"W_{c}", f"d_model, h*{w}") for c, w in zip("QKV", ("d_k", "d_k", "d_v"), strict=True)
    )
    _, saved = multihead(X, W_Q, W_K, W_V, W_O, n_heads=2, b_K=at.free("b_K", "h*d_k"))
    line = chain(X, "a start that is not zero")
    line.vanishes("b_K", multihead_vjp(at.free("dY", "n, d_out"), saved).b_K)
    html = chain_html(line)
    assert 'aria-label="the gradient: checked"' in html


def letters_of(step: ElementTree.Element, part: str) -> str:
    (found,) = [s for s in step.findall("span") if s.get("class") == part]
    return "".join(found.itertext())


def test_a_claim_bears_no_mark() -> None:
    wrong = claim(inner(dY, Y_DOT), "the differential of ℓ")
    wrong(inner(dY, -X @ W_DOT), MAP.moves)
    html = claim_html(wrong)
    ElementTree.fromstring(html)
    assert "<details" not in html
    assert "nothing here was checked" in html


def test_a_named_matrix() -> None:
    text = letters(named_html(X @ W))
    assert text == "XW n×e"


@pytest.mark.parametrize(
    ("latex", "apart"),
    [
        (r"dY W^{O\,\top} X", r"dY \, W^{O\,\top} \, X"),
        (r"\tau \left(A \circ B\right) C", r"\tau \, \left(A \circ B\right) \, C"),
        (r"\langle A, B \rangle - C D", r"\langle A, B \rangle - C \, D"),
        (r"\operatorname{rowsum}\left(A B\right)", r"\operatorname{rowsum}\left(A \, B\right)"),
        ("X", "X"),
        ("", ""),
    ],
)
def test_factors_stand_apart(latex: str, apart: str) -> None:
    assert spaced(latex) == apart


def test_a_function_stands_apart_from_what_it_is_applied_to() -> None:
    assert mathml(r"\exp S").count("<mspace") == 1
    assert mathml(r"\exp(S)").count("<mspace") == 0
    assert mathml(r"\max_j S_j").count("<mspace") == 0


def test_no_line_ends_before_a_comma() -> None:
    assert inline("X, and").startswith('<span class="tied"><math')
    assert ",</span> and" in inline("X, and")
    assert "tied" not in inline("X and")


def test_prose_is_escaped() -> None:
    assert inline("if less < more & all") == "if less &lt; more &amp; all"


def test_a_line_ends_before_a_sign_and_in_no_bracket() -> None:
    parts = pieces(r"\langle A, B + C \rangle - \dot{X} (Y + Z) = W")
    assert [letters(part) for part in parts] == ["⟨A,B", "+C⟩", "−X˙(Y+Z)", "=W"]
    assert "<mrow /><mo>+</mo>" in parts[1]  # with space around it, though nothing stands before it


def test_the_sign_of_a_number_has_no_space() -> None:
    assert '<mo form="prefix">−</mo>' in mathml(r"\exp(-m)")
    assert "prefix" not in mathml(r"(a-m)")


def test_powers_are_raised() -> None:
    assert raised("below 2⁻⁶⁷, & so on") == "below 2<sup>−67</sup>, &amp; so on"
