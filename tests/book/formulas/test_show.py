"""The formulas of every rule in print."""

from __future__ import annotations

import inspect

import pytest
import sympy as sp

from gradderiv.book import chapters
from gradderiv.book.formulas import catalog
from gradderiv.book.formulas.explicit import entries, explicit
from gradderiv.book.formulas.show import show, shown, shown_names
from gradderiv.book.layout import columns
from gradderiv.errors import InputError
from gradderiv.rules import multihead

ATTENTION_VJP = """\
attention_vjp
    dV = Pᵀ dO,   dS = P ∘ (dO Vᵀ − δ),   dQ = τ dS K,   dK = τ dSᵀ Q
    Dao et al. 2022, app. B.2.

  dV    = Pᵀ dO                                                        n_k × d_v
  dP    = dO Vᵀ                                                        n_q × n_k
  dS    = softmax_vjp(dP, P)                                           n_q × n_k
  dbias = dS                                                           n_q × n_k
  dQ    = τ dS K                                                       n_q × d_k
  dK    = τ dSᵀ Q                                                      n_k × d_k"""

W_Q = """\
  𝓚    = 𝓓_K ∘ (𝓒ᵀ K)                                              h·n_k × h·d_k
  𝓥    = 𝓓_V ∘ (𝓒ᵀ V)                                              h·n_k × h·d_v
  S    = τ Q 𝓚ᵀ                                                      n_q × h·n_k
  M̃    = repeat_mask(S, M, h)                                        n_q × h·n_k
  m    = row_shift(S, M̃, h)                                          n_q × h·n_k
  E    = exp((S − m) ∘ M̃) ∘ M̃                                        n_q × h·n_k
  P    = E ⊘ (E 𝓘 + empty_rows(M̃, h))                                n_q × h·n_k
  dP   = dY W^Oᵀ 𝓥ᵀ                                                  n_q × h·n_k
  dS   = P ∘ (dP − (P ∘ dP) 𝓘)                                       n_q × h·n_k
  dW^Q = τ Xᵀ dS 𝓚                                               d_model × h·d_k"""


def test_a_rule_in_print() -> None:
    assert show("attention_vjp") == ATTENTION_VJP
    assert show("W_Q").endswith(W_Q)
    assert '"Transformer Attention Layer gradient"' in show("W_Q")


def test_a_narrow_terminal() -> None:
    assert all(columns(line) <= 50 for line in show("W_K", width=50).splitlines())
    assert all(columns(line) <= 50 for line in show("W_K", width=50, derivation=True).splitlines())


def test_a_rule_in_ascii() -> None:
    assert "  dW_Q = tau X^T dS calK" in show("W_Q", charset="ascii")
    assert "    Y_dot = X_dot W + X W_dot + b_dot" in show("linear", charset="ascii")


def test_a_rule_in_latex() -> None:
    tex = show("attention_vjp", tex=True)
    assert tex.startswith(
        "% attention_vjp\n\\begin{align*}\ndV &= P^{\\top} dO && n_{k} \\times d_{v} \\\\\n"
    )
    assert r"h\,d_{k}" in show("W_Q", tex=True)


@pytest.mark.parametrize("name", shown_names())
def test_every_rule_fits(name: str) -> None:
    unicode, ascii = show(name), show(name, charset="ascii")
    assert ascii.isascii()
    assert all(columns(line) <= 80 for line in (unicode + "\n" + ascii).splitlines())
    tex = show(name, tex=True)
    assert tex.count("{") == tex.count("}")
    assert tex.count(r"\left") == tex.count(r"\right")


def test_the_name_of_a_rule_stands_for_three() -> None:
    parts = [part.splitlines()[0] for part in show("multihead").split("\n\n") if part.startswith("multihead")]
    assert parts == ["multihead", "multihead_jvp", "multihead_vjp"]


@pytest.mark.parametrize("name", [n for n in shown_names() if n not in catalog.VARIABLES])
def test_every_named_matrix_of_the_body_is_a_step(name: str) -> None:
    body = inspect.getsource(inspect.unwrap(catalog.function(name)))
    steps = {n for step in shown(name).steps for n in step.names}
    for line in body.splitlines():
        target, equals, _ = line.strip().partition(" = ")
        if equals and "# " in line and target.isidentifier() and target not in ("calI", "h"):
            assert target in steps, line


def test_only_what_a_gradient_needs_is_shown() -> None:
    assert [step.names for step in shown("b_O").steps] == [("db_O",)]
    needed = {n for step in shown("W_O").steps for n in step.names}
    assert {"P", "calV", "dW_O"} <= needed
    assert not {"dP", "dS"} & needed


def test_a_formula_is_taken_from_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def join_heads(X):  # type: ignore[no-untyped-def]
        return -X.transpose(-3, -2).flatten(-2), (X.shape, {})

    monkeypatch.setattr(multihead, "JOIN_HEADS", multihead.JOIN_HEADS._replace(f=join_heads))
    assert "  C      = −reshape(transpose(O, −3, −2), [3, 102])" in show("multihead")


def test_the_explicit_entry() -> None:
    assert explicit("attention_vjp").splitlines() == [
        "dQ = dO*e_1*e_2*tau*(K_1 - K_2)*(V_1 - V_2)/(e_1 + e_2)^2",
        "dK_1 = Q*dO*e_1*e_2*tau*(V_1 - V_2)/(e_1 + e_2)^2",
        "dV_1 = dO*e_1/(e_1 + e_2)",
        "e_1 = exp(K_1*Q*tau)",
        "e_2 = exp(K_2*Q*tau)",
    ]
    assert explicit("b_K") == "db_K = 0"
    assert "dW_Q = W_K*W_O*W_V*X*dY*e_1*e_2*tau*(X_kv_1 - X_kv_2)^2/(e_1 + e_2)^2" in show(
        "W_Q", symbolic=True
    )
    assert r"\left(e_{1} + e_{2}\right)^{2}" in show("W_Q", symbolic=True, tex=True)


@pytest.mark.parametrize("name", ["attention", "softmax", "layer"])
def test_the_explicit_gradient_is_the_derivative_of_the_explicit_forward(name: str) -> None:
    ((_, forward),) = entries(name)
    variables = {"attention": ["Q", "V"], "softmax": ["S"], "layer": ["W_Q", "W_K", "W_V", "W_O"]}[name]
    gradients = (
        dict(entries(f"{name}_vjp")) if name != "layer" else {k: v for x in variables for k, v in entries(x)}
    )
    for variable in variables:
        label = next(k for k in gradients if k in (f"d{variable}", f"d{variable}_1"))
        output = {"attention": "dO", "softmax": "dP_1", "layer": "dY"}[name]
        x = sp.Symbol(label[1:], real=True)
        gradient = gradients[label].subs(sp.Symbol("dP_2", real=True), 0)
        assert sp.factor(forward.diff(x) * sp.Symbol(output, real=True) - gradient) == 0


@pytest.mark.parametrize(
    "name", ["W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "X", "X_kv", "linear", "softmax_vjp"]
)
def test_every_gradient_has_its_derivation(name: str) -> None:
    text = show(name, derivation=True)
    rule = f"grad_{name}" if name in catalog.VARIABLES else f"{name.removesuffix('_vjp')}_vjp"
    assert f"is what {rule} returns" in text
    assert show(name, derivation=True, charset="ascii").isascii()
    assert show(name, derivation=True, tex=True).startswith("\\begin{align*}")


def test_the_layer_as_a_whole() -> None:
    text = show("multihead", derivation=True)
    assert all(f"is what grad_{w} returns" in text for w in ("W_Q", "W_K", "W_V", "W_O"))


def test_what_the_book_does_not_derive() -> None:
    with pytest.raises(InputError, match="none ends in linear_jvp"):
        show("linear_jvp", derivation=True)


def test_an_unknown_name() -> None:
    with pytest.raises(InputError) as error:
        show("atention")
    assert "came:  'atention'" in str(error.value)
    assert "cause: did you mean attention" in str(error.value)
    with pytest.raises(InputError, match="nothing has a name like it"):
        show("zzzz")
    with pytest.raises(InputError, match="one of two character sets"):
        show("W_Q", charset="latin-1")


def test_the_chapters_come_from_the_wheel_if_there_is_one(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    assert [p.name[:2] for p in chapters()] == [f"{i:02}" for i in range(1, 1 + len(chapters()))]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("gradderiv.__file__", str(tmp_path / "gradderiv" / "__init__.py"))
    with pytest.raises(InputError, match="the book's chapters stand in derivations/"):
        chapters()
