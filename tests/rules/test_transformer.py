"""A whole layer: what its parts make of it, that a spoilt part is seen, that it is proved, and what it says to bad input."""

from __future__ import annotations

import pytest
import torch

import gradderiv
from gradderiv.checks.catalog import RULES
from gradderiv.checks.oracles import ORACLES
from gradderiv.checks.problems import PROBLEMS
from gradderiv.checks.reference import TEXTBOOK
from gradderiv.errors import InputError
from gradderiv.rules import transformer
from gradderiv.rules.activation import ACTIVATION, FUNCTIONS
from gradderiv.rules.entrywise import ADD, MULTIPLY
from gradderiv.rules.layer_norm import LAYER_NORM
from gradderiv.rules.masks import causal
from gradderiv.rules.multihead import multihead, multihead_vjp
from gradderiv.rules.rms_norm import RMS_NORM
from gradderiv.rules.steps import run_vjp
from gradderiv.rules.transformer import STYLES, Style, transformer_layer, transformer_layer_vjp


def given(problem):
    """The arguments of a problem in float64, the cotangent, and the options."""
    p = PROBLEMS[problem]
    return *p.floats(0, torch.float64), p.options


def wrong(problem, oracle="field"):
    """The arguments that an oracle finds wrong."""
    records = ORACLES[oracle](RULES["transformer"], PROBLEMS[problem], 0)
    return {r.argument for r in records if r.verdict == "fail"}


# ---------------------------------------------------------------- what the parts make of it


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_a_problem_and_its_list_reads_forwards_and_backwards(style):
    (name,) = (n for n, p in PROBLEMS.items() if p.rule == "transformer" and p.options["style"] == style)
    args, dY, options = given(name)
    Y, saved = transformer_layer(**args, **options)
    assert saved.steps[-1].writes == ("Y",)
    operators = [s.operator for s in saved.steps]
    assert operators.count(ADD) == 2
    assert operators.count(RMS_NORM) + operators.count(LAYER_NORM) == 2
    assert operators.count(MULTIPLY) == STYLES[style].gated
    assert Y.shape == args["X"].shape
    assert transformer_layer_vjp(dY, saved)._fields == tuple(args)


@pytest.mark.parametrize("name", ["llama-layer", "gpt-2-layer", "gemma-layer"])
def test_the_residual_hands_the_gradient_on(name):
    """Behind a feed-forward and an attention that give nothing, dX is dY; with them it is dY and what they return."""
    args, dY, options = given(name)
    still = {n: torch.zeros_like(t) if n in ("W_O", "W_D", "b_O", "b_D") else t for n, t in args.items()}
    Y, saved = transformer_layer(**still, **options)
    assert torch.equal(Y, args["X"])
    assert torch.equal(transformer_layer_vjp(dY, saved).X, dY)
    _, saved = transformer_layer(**args, **options)
    dX = transformer_layer_vjp(dY, saved).X
    through = {n: g for n, g in run_vjp({"N_1": dN_1(dY, saved)}, until(saved, "N_1")).items() if n == "X"}
    dH = run_vjp({"Y": dY}, after(saved, "H"))["H"]
    torch.testing.assert_close(dX, dH + through["X"])
    assert not torch.allclose(dX, dY)


def until(trace, name):
    """The steps up to that which writes the name."""
    last = next(i for i, s in enumerate(trace.steps) if s.writes == (name,)) + 1
    return trace._replace(steps=trace.steps[:last], saved=trace.saved[:last])


def after(trace, name):
    """The steps behind it; the name is an argument of theirs."""
    first = next(i for i, s in enumerate(trace.steps) if s.writes == (name,)) + 1
    values = {**trace.given, name: trace.values[name]}
    return trace._replace(steps=trace.steps[first:], saved=trace.saved[first:], given=values)


def dN_1(dY, trace):
    """What attention returns to the norm before it."""
    dH = run_vjp({"Y": dY}, after(trace, "H"))["H"]
    behind = after(trace, "N_1")
    (i,) = (i for i, s in enumerate(behind.steps) if s.writes == ("H",))
    attention = behind._replace(steps=behind.steps[:i], saved=behind.saved[:i])
    return run_vjp({"A": dH}, attention)["N_1"]


def test_without_feed_forward_and_norm_it_is_multihead():
    """W_D = 0, and a norm that does next to nothing: X̂ ≈ X where ε = 1 outweighs the rows."""
    args, dY, options = given("llama-layer")
    args = {n: 1e-6 * t if n == "X" else torch.ones_like(t) if n == "gain_1" else t for n, t in args.items()}
    args["W_D"] = torch.zeros_like(args["W_D"])
    args["b_D"] = torch.zeros_like(args["b_D"])
    heads = {n: args[n] for n in ("X", "W_Q", "W_K", "W_V", "W_O", "cos", "sin")}
    plain = {n: options[n] for n in ("n_heads", "n_kv_heads", "mask")}
    Y, saved = transformer_layer(**args, **{**options, "norm_eps": 1.0})
    Z, other = multihead(**heads, **plain)
    torch.testing.assert_close(Y, args["X"] + Z, rtol=1e-9, atol=1e-18)
    g, expected = transformer_layer_vjp(dY, saved), multihead_vjp(dY, other)
    torch.testing.assert_close(g.X, dY + expected.X, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(g.W_V, expected.W_V, rtol=1e-9, atol=1e-16)


def test_a_style_is_a_name_or_what_stands_behind_it():
    args, _, options = given("gpt-2-layer")
    named = transformer_layer(**args, **options)[0]
    spelt = transformer_layer(**args, **{**options, "style": Style("before", "layer", False, "gelu_tanh")})[0]
    assert torch.equal(named, spelt)
    other = transformer_layer(**args, **{**options, "style": Style("before", "layer", False, "gelu")})[0]
    assert not torch.equal(named, other)


def test_a_shift_and_biases_need_not_be_there():
    args, dY, options = given("bert-layer")
    plain = {n: t for n, t in args.items() if not n.startswith(("b_", "shift"))}
    Y, saved = transformer_layer(**plain, **options)
    zeros = {n: torch.zeros_like(t) for n, t in args.items() if n not in plain}
    Z, other = transformer_layer(**plain, **zeros, **options)
    assert torch.equal(Y, Z)
    g, h = transformer_layer_vjp(dY, saved), transformer_layer_vjp(dY, other)
    assert g._fields == tuple(plain)
    assert all(torch.equal(getattr(g, n), getattr(h, n)) for n in plain)


# ---------------------------------------------------------------- a spoilt part is seen, where it is wrong


def lose_the_residual(monkeypatch):
    lost = ADD._replace(vjp=lambda dY, saved: (torch.zeros_like(dY), dY))
    monkeypatch.setattr(transformer, "ADD", lost)


def swap_the_factors(monkeypatch):
    swapped = MULTIPLY._replace(vjp=lambda dY, saved: tuple(reversed(MULTIPLY.vjp(dY, saved))))
    monkeypatch.setattr(transformer, "MULTIPLY", swapped)


def forget_the_offset(monkeypatch):
    def vjp(dY, saved):  # as if the gain were γ, with an offset of 1
        return RMS_NORM.vjp(dY, saved)._replace(X=RMS_NORM.vjp(dY, saved._replace(gain=saved.gain - 1)).X)

    monkeypatch.setattr(transformer, "RMS_NORM", RMS_NORM._replace(vjp=vjp))


def forget_the_mean(monkeypatch):
    def vjp(dY, saved):
        N, r, gain, _ = saved
        dN = dY * gain
        return LAYER_NORM.vjp(dY, saved)._replace(X=r * (dN - N * (N * dN).mean(-1, keepdim=True)))

    monkeypatch.setattr(transformer, "LAYER_NORM", LAYER_NORM._replace(vjp=vjp))


def take_the_other_gelu(monkeypatch):
    def vjp(dY, saved):
        return ((FUNCTIONS["gelu"].first(saved.X) * dY),)

    monkeypatch.setattr(transformer, "ACTIVATION", ACTIVATION._replace(vjp=vjp))


def send_the_residual_through_the_norm(monkeypatch):
    """X̂ + attention(X̂) instead of X + attention(X̂): the sum begins after the norm."""
    from gradderiv.rules.steps import step

    def before(attention, feed_forward, norm):
        steps = transformer.before(attention, feed_forward, norm)
        return [step(ADD, "N_1 A -> H") if s.reads == ("X", "A") else s for s in steps]

    monkeypatch.setitem(transformer.ORDERS, "before", before)


ATTENTION = {"W_Q", "W_K", "W_V", "W_O", "cos", "sin"}
FIRST = ATTENTION | {"X", "gain_1"}
SPOILT = {
    "quack #53: the residual's gradient is lost": (lose_the_residual, "gemma-layer", FIRST),
    "gate and up exchanged": (swap_the_factors, "gemma-layer", FIRST | {"W_G", "W_U", "gain_2"}),
    "Liger #74: γ for 1 + γ": (forget_the_offset, "gemma-layer", FIRST),
    "LayerNorm without the mean": (
        forget_the_mean, "gpt-2-layer", {"X", "gain_1", "shift_1", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_V", "b_O"},
    ),
    "gelu's derivative for gelu_tanh's": (
        take_the_other_gelu, "gpt-2-layer",
        {"X", "gain_1", "shift_1", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_V", "b_O", "W_U", "b_U", "gain_2", "shift_2"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_twin_a_spoilt_part_is_wrong_in_what_lies_before_it(name, monkeypatch):
    """What lies behind it is right: exactly these arguments fail, over the field and in float64."""
    spoil, problem, expected = SPOILT[name]
    spoil(monkeypatch)
    assert wrong(problem) == expected
    records = ORACLES["autograd"](RULES["transformer"], PROBLEMS[problem], 0, dtypes=[torch.float64])
    assert {r.argument for r in records if r.verdict == "fail"} == expected


def test_twin_a_residual_that_begins_behind_the_norm_is_wrong_everywhere(monkeypatch):
    assert not wrong("llama-layer")
    send_the_residual_through_the_norm(monkeypatch)
    assert wrong("llama-layer") == {"Y", *PROBLEMS["llama-layer"].shapes} - {"b_D"}  # 1ᵀ dY
    assert wrong("llama-layer", "forward") == {"Y, loops", "Y, torch"}


# ---------------------------------------------------------------- as a Function: proved


N, D, FF, HEADS = 3, 4, 5, 2
SHAPES = {
    "X": (N, D), **{f"W_{p}": (D, D) for p in "QKVO"}, "W_U": (D, FF), "W_D": (FF, D), "gain_1": (D,), "gain_2": (D,),
}  # fmt: skip


def function(style, change=lambda g: g):
    """A layer of that style as a person would write it: an autograd Function with a backward by hand."""
    names = [*SHAPES, "W_G"] if STYLES[style].gated else [*SHAPES, "shift_1", "shift_2", "b_U"]
    options = {"style": style, "n_heads": HEADS, "mask": causal(), "norm_eps": 0.01}

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *values):
            ctx.save_for_backward(*values)
            return transformer_layer(**dict(zip(names, values, strict=True)), **options)[0]

        @staticmethod
        def backward(ctx, dY):
            args = dict(zip(names, ctx.saved_tensors, strict=True))
            _, saved = transformer_layer(**args, **options)
            g = change(transformer_layer_vjp(dY, saved)._asdict())
            return tuple(g[name] for name in names)

    sizes = {**SHAPES, "W_G": (D, FF), "shift_1": (D,), "shift_2": (D,), "b_U": (FF,)}
    return Layer.apply, tuple(torch.randn(sizes[name]).requires_grad_() for name in names), names, options


@pytest.mark.parametrize("style", ["llama", "gpt-2", "gpt-neox", "bert", "vaswani"])
def test_an_autograd_function_made_of_it_is_proved(style):
    apply, inputs, _, _ = function(style)
    proof = gradderiv.prove(apply, inputs)
    assert proof.verdict == "proved", proof


@pytest.mark.parametrize("style", ["llama", "bert"])
def test_it_is_proved_to_be_the_textbook(style):
    apply, inputs, names, options = function(style)
    mask = torch.ones(N, N, dtype=torch.bool).tril()

    def textbook(*values):
        return TEXTBOOK["transformer"](**dict(zip(names, values, strict=True)), **{**options, "mask": mask})

    assert gradderiv.prove(apply, inputs, reference=textbook).verdict == "proved"


@pytest.mark.parametrize(
    ("style", "spoilt", "change"),
    [
        ("llama", ["gain_1"], lambda g: {**g, "gain_1": 2 * g["gain_1"]}),
        ("llama", ["X"], lambda g: {**g, "X": g["X"] - g["X"].mean(-1, keepdim=True)}),
        ("llama", ["W_G", "W_U"], lambda g: {**g, "W_G": g["W_U"], "W_U": g["W_G"]}),
        ("gpt-2", ["shift_2"], lambda g: {**g, "shift_2": g["shift_2"] / 3}),
        ("bert", ["W_D"], lambda g: {**g, "W_D": 1.0001 * g["W_D"]}),
        ("vaswani", ["b_U"], lambda g: {**g, "b_U": torch.zeros_like(g["b_U"])}),
    ],
)
def test_twin_a_spoilt_gradient_is_refuted_by_its_number(style, spoilt, change):
    apply, inputs, names, _ = function(style, change)
    proof = gradderiv.prove(apply, inputs)
    assert proof.verdict == "refuted"
    refuted = {r.argument for r in proof.records if r.verdict == "refuted"}
    assert refuted == {f"x{names.index(name)}" for name in spoilt}


# ---------------------------------------------------------------- bad input


BAD = {
    "a gate that is missing": ({"W_G": None}, "a feed-forward with a gate needs W_G"),
    "a gate that is not wanted": ({"style": "gpt-2"}, "a feed-forward without a gate needs no W_G"),
    "a shift of RMSNorm": ({"shift_1": torch.randn(5, dtype=torch.float64)}, "RMSNorm has no shift"),
    "an unknown style": ({"style": "gpt-5"}, "a style is a Style, or one of llama, gemma, gpt-2"),
    "an unknown option": ({"soft_cap": 3.0}, "transformer_layer has no option soft_cap"),
    "heads that are shared unawares": ({"n_kv_heads": None}, "heads of W_Q and W_K of equal width d_k"),
    "a transposed W_O": ({"W_O": torch.randn(5, 18, dtype=torch.float64)}, r"W_O \(h·d_v, d_model\)"),
    "a gain of another width": (
        {"gain_1": torch.randn(4, dtype=torch.float64)},
        "a gain that broadcasts to X",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    change, words = BAD[name]
    args, _, options = given("llama-layer")
    with pytest.raises(InputError, match=words):
        transformer_layer(**{**args, **options, **change})
