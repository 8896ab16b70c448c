"""The systems are what their libraries make of them, run on floats, and are proved as they are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import gradderiv
from gradderiv.examples import real_systems
from gradderiv.examples.real_systems import SYSTEMS, chosen, handed, main, model_of, unknowns


@pytest.fixture(autouse=True)
def on_one_thread():
    with real_systems.one_thread():
        yield


def gradients(module, inputs):
    """The gradient of a random sum of all outputs, by name."""
    outputs = module(**inputs)
    outputs = [x for x in (outputs if isinstance(outputs, tuple) else (outputs,)) if x is not None]
    wanted = unknowns(module, inputs)
    found = torch.autograd.grad(outputs, list(wanted.values()), [torch.randn_like(x) for x in outputs])
    return dict(zip(wanted, found, strict=True))


@pytest.mark.parametrize("name", SYSTEMS)
def test_runs_on_floats_and_every_unknown_has_a_gradient(name):
    module, inputs = SYSTEMS[name].build()
    assert not module.training
    assert {x.dtype for x in unknowns(module, inputs).values()} == {torch.float32}
    with sdpa_kernel(SDPBackend.MATH):
        found = gradients(module, inputs)
    assert all(g.isfinite().all() for g in found.values())
    zero = {n for n, g in found.items() if g.abs().max() < 1e-5}
    assert all(n.endswith(("key.bias", "k_proj.bias")) for n in zero), zero  # softmax ignores a shift


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_weight_is_one_or_zero_and_two_builds_are_equal(name):
    (module, inputs), (again, same) = SYSTEMS[name].build(), SYSTEMS[name].build()
    for x, y in zip(unknowns(module, inputs).values(), unknowns(again, same).values(), strict=True):
        assert x.equal(y)
        assert not ((x == 0) | (x == 1)).any()


@pytest.mark.parametrize("name", SYSTEMS)
def test_prove(name):
    module, inputs = SYSTEMS[name].build()
    proof = gradderiv.prove(module, inputs)
    assert proof.verdict == "proved", proof


def test_a_part_alone_computes_what_it_computes_in_its_model():
    model, outputs = model_of("Gemma2"), []
    part = model.get_submodule("layers.0.self_attn")
    part.register_forward_hook(lambda _, args, out: outputs.append(out[0]))
    words = {"inputs_embeds": torch.randn(3, 5, 16)}
    part(**handed(model, part, words))
    assert outputs[0].equal(outputs[1])


@pytest.mark.parametrize(("name", "lowest"), [("", torch.finfo(torch.float32).min), (", -inf", -torch.inf)])
def test_the_masks_are_the_models_own(name, lowest):
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    _, inputs = SYSTEMS[f"LlamaAttention{name}"].build()
    causal = torch.zeros(5, 5).masked_fill(later, lowest)
    assert inputs["attention_mask"].equal(causal.expand(3, 1, 5, 5))
    _, inputs = SYSTEMS[f"MistralAttention{name}"].build()
    window = causal.masked_fill(later.mT.tril(-3), lowest)
    assert inputs["attention_mask"].equal(window.expand(3, 1, 5, 5))


def test_one_tensor_under_three_names_is_one_unknown():
    module, inputs = SYSTEMS["nn.MultiheadAttention"].build()
    assert inputs["query"] is inputs["key"] is inputs["value"]
    assert [n for n in unknowns(module, inputs) if n in inputs] == ["query"]


def test_the_table_fits_80_columns(capsys, monkeypatch):
    proofs = iter(
        [
            SimpleNamespace(verdict="proved", failure_probability=2.0**-41.5, seconds=0.5, reason=""),
            SimpleNamespace(verdict="refuted", failure_probability=None, seconds=1.25, reason="wrong " * 30),
            SimpleNamespace(verdict="inconclusive", failure_probability=None, seconds=123.4, reason="sign"),
        ]
    )
    monkeypatch.setattr(gradderiv, "prove", lambda *_: next(proofs), raising=False)
    assert main(["nn.transformerencoderlayer"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.isascii() for line in lines)
    assert lines[1].split() == ["nn.TransformerEncoderLayer", "1700", "proved", "2^-41", "0.5", "ReLU"]
    assert lines[-1] == "1 proved, 1 refuted, 1 inconclusive"
    assert max(len(system.note) for system in SYSTEMS.values()) <= 15


def test_words_choose(capsys, monkeypatch):
    assert [s.name for s in chosen(["bertl", "VITL"])] == ["BertLayer", "ViTLayer"]
    assert chosen([]) == list(SYSTEMS.values())
    with pytest.raises(SystemExit):
        main(["nothing of this name"])
    assert "no such system" in capsys.readouterr().err
    monkeypatch.setattr(real_systems, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["Llama"])
    assert "pip install transformers" in capsys.readouterr().err


class Louder(torch.autograd.Function):
    """The identity, whose backward is wrong in one entry."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        g = g.clone()
        g.view(-1)[-1] *= 2
        return g


@pytest.mark.parametrize(
    ("name", "part"),
    [("LlamaDecoderLayer", "mlp"), ("GPT2Block", "attn.c_attn"), ("nn.TransformerEncoderLayer", "norm1")],
)
def test_one_entry_spoilt_on_the_way_is_refuted(name, part):
    module, inputs = SYSTEMS[name].build()
    inner = module.get_submodule(part)
    forward = inner.forward
    inner.forward = lambda *a, **k: Louder.apply(forward(*a, **k))
    proof = gradderiv.prove(module, inputs)
    assert proof.verdict == "refuted", proof
    assert any(r.argument.startswith(part) for r in proof.failures)


def test_what_only_a_finite_mask_lets_through_is_not_refuted():
    """The first row sees one key: no gradient reaches its query, but for a mask that is a number."""
    module, inputs = SYSTEMS["GPT2Block"].build()
    inner = module.get_submodule("attn.c_attn")
    forward, backward = inner.forward, Louder.backward

    class First(Louder):
        @staticmethod
        def backward(ctx, g):
            return backward(ctx, g.flip(0, 1, 2)).flip(0, 1, 2)

    inner.forward = lambda *a, **k: First.apply(forward(*a, **k))
    proof = gradderiv.prove(module, inputs)
    assert proof.verdict == "inconclusive"
    assert "fills_are_minus_infinity=True" in proof.reason
    assert gradderiv.prove(module, inputs, fills_are_minus_infinity=True).passed


def test_a_finite_mask_is_reported_and_may_be_read_as_minus_infinity():
    module, inputs = SYSTEMS["LlamaAttention"].build()
    told = "the fill -3.40282e+38 is read as"
    assert f"{told} the number that it is, not as −∞" in gradderiv.prove(module, inputs).remarks
    proof = gradderiv.prove(module, inputs, fills_are_minus_infinity=True)
    assert proof.passed, proof
    assert f"{told} −∞" in proof.remarks
