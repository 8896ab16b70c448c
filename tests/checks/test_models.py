"""Attention and whole layers as models ship them: every parameter is found right, and a wrong reading of a module is seen where it is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import transformers

from gradderiv.checks import models
from gradderiv.checks.models import (
    LAYERS,
    SYSTEMS,
    System,
    build,
    exactly,
    in_floats,
    of_transformers,
    verify_model,
    verify_models,
)
from gradderiv.errors import InputError
from gradderiv.rules import entrywise, heads, options, transformer
from gradderiv.rules.masks import causal, everything, hidden, resolve, window
from gradderiv.rules.rope import rotary_tables
from gradderiv.rules.score_bias import alibi_slopes, t5_buckets
from gradderiv.rules.transformer import Style

EVERY = {
    "LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention", "Gemma2Attention", "GptOssAttention",
    "GPT2Attention", "GPTNeoXAttention", "FalconAttention", "BloomAttention", "T5Attention", "BertSelfAttention", "ViTAttention",
    "CohereAttention", "nn.MultiheadAttention",
    "LlamaDecoderLayer", "MistralDecoderLayer", "Qwen3DecoderLayer", "GemmaDecoderLayer", "GPT2Block", "GPTNeoXLayer", "BertLayer", "ViTLayer",
    "nn.TransformerEncoderLayer",
}  # fmt: skip


# ---------------------------------------------------------------- the table


def test_the_systems_are_those_that_were_asked_for():
    assert {name.split(",")[0] for name in SYSTEMS} == EVERY
    assert transformers.__version__.startswith("5.23")


@pytest.mark.parametrize("name", SYSTEMS)
def test_value_and_every_gradient_hold_in_floats_and_exactly(name):
    records = verify_model(SYSTEMS[name])
    assert {r.verdict for r in records} == {"pass"}, [r for r in records if r.verdict != "pass"]
    for number in ("float", "field"):
        assert {r.argument for r in records if r.number == number} == {"Y", *SYSTEMS[name].arguments}
    for r in records:
        assert r.oracle == "transformers"
        assert r.problem == name
        if r.number == "float":
            assert r.max_abs_error < 0.2 * r.tolerance
        else:
            assert r.failure_probability is not None
            assert r.failure_probability <= 2**-40
        zero = r.argument in SYSTEMS[name].zeros
        assert ("zero" in r.detail) == zero


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_parameter_of_a_module_is_left_out(name):
    """But for the residual of BLOOM, what a module is given and differentiates by is in the table."""
    system = SYSTEMS[name]
    built = build(system)
    named = {system.read(a)[0] for a in system.arguments}
    assert {n for n, _ in built.module.named_parameters()} <= named
    assert named == set(built.leaves)
    assert all(x.dtype == torch.float64 for x in built.leaves.values())


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_weight_is_one_or_zero_and_the_seed_decides(name):
    first, again, other = (build(SYSTEMS[name], seed).leaves for seed in (0, 0, 1))
    for n in first:
        assert torch.equal(first[n], again[n])
        if n not in ("cos", "sin", "slopes"):
            assert not torch.equal(first[n], other[n])
            assert not ((first[n] == 0) | (first[n] == 1)).any()


def test_another_seed_and_a_choice_of_systems():
    seen: list[tuple[int, int, str]] = []
    chosen = ["LlamaAttention", "T5Attention"]
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    records = verify_models(3, lambda *told: seen.append(told), chosen)
    assert {r.verdict for r in records} == {"pass"}
    assert seen == [(0, 2, chosen[0]), (1, 2, chosen[1]), (2, 2, "")]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


# ---------------------------------------------------------------- what the models hand their modules


def mask_of(name: str) -> torch.Tensor:
    """True where the model's own mask, in float32, does not hide."""
    torch.manual_seed(0)
    _, given = of_transformers(SYSTEMS[name])
    mask = given.get("attention_mask", given.get("mask"))
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) <= {0.0, torch.finfo(torch.float32).min}
    return mask == 0


@pytest.mark.parametrize("name", [n for n in SYSTEMS if SYSTEMS[n].model not in ("", "vit")])
def test_the_mask_of_the_table_is_that_of_the_model(name):
    found = mask_of(name)
    size = (models.BATCH, 1, models.LENGTH, models.LENGTH)
    mask = resolve(SYSTEMS[name].options["mask"], size, found.device)
    assert torch.equal(found.expand(size), mask.expand(size))
    assert mask.any(-1).all()  # no row is empty
    assert not mask.all()


def test_tables_of_rotation_slopes_and_buckets_are_those_of_the_models():
    built = build(SYSTEMS["LlamaAttention"])
    cos, sin = rotary_tables(torch.arange(models.LENGTH, dtype=torch.float32), 6)
    assert torch.allclose(built.leaves["cos"].float(), cos.expand_as(built.leaves["cos"]))
    assert torch.allclose(built.leaves["sin"].float(), sin.expand_as(built.leaves["sin"]))
    slopes = build(SYSTEMS["BloomAttention"]).leaves["slopes"]
    assert torch.allclose(slopes, alibi_slopes(3))
    relative = torch.arange(models.LENGTH) - torch.arange(models.LENGTH)[:, None]
    for name, both in (("T5Attention", True), ("T5Attention, decoder", False)):
        module: Any = build(SYSTEMS[name]).module
        theirs = module._relative_position_bucket(
            relative, bidirectional=both, num_buckets=8, max_distance=10
        )
        assert torch.equal(SYSTEMS[name].options["buckets"], theirs)


def test_alibi_by_distance_is_that_by_position_for_the_module():
    built = build(SYSTEMS["BloomAttention"])
    Y = built(built.leaves)
    by_position = built.leaves["slopes"][:, None, None] * torch.arange(models.LENGTH, dtype=torch.float64)
    inputs = built.inputs | {"alibi": models.Leaf("slopes", lambda m: by_position.repeat(models.BATCH, 1, 1))}
    again = dataclasses.replace(built, inputs=inputs)(built.leaves)
    assert torch.allclose(Y, again, rtol=1e-5, atol=1e-6)  # the softmax is in float32


# ---------------------------------------------------------------- wrong on purpose


def fails(system: System, *, floats: bool = True) -> set[str]:
    """The arguments that fail, in floats and exactly alike."""
    built = build(SYSTEMS[system.name])
    exact = {r.argument for r in exactly(system, built) if r.verdict == "fail"}
    if floats:
        assert {r.argument for r in in_floats(system, built) if r.verdict == "fail"} == exact
    return exact


def other(name: str, arguments: dict[str, str] | None = None, **options: Any) -> System:
    system = SYSTEMS[name]
    return dataclasses.replace(
        system, arguments={**system.arguments, **(arguments or {})}, options={**system.options, **options}
    )


def everything_of(name: str) -> set[str]:
    return {"Y", *SYSTEMS[name].arguments}


ALL_BUT_OUTPUT_BIAS = {
    "pairs of neighbours for gpt-oss": other("GptOssAttention", pairing="interleaved"),
    "a window of one more for gpt-oss": other("GptOssAttention", mask=window(3, 0)),
    "GPT-2 read as interleaved": other("GPT2Attention", layout="interleaved"),
    "GPT-NeoX read as contiguous": other("GPTNeoXAttention", layout="contiguous"),
    "BLOOM read with heads last": other("BloomAttention", layout="head-last"),
    "Falcon read as contiguous": other("FalconAttention", layout="contiguous"),
    "W_O not transposed": other("nn.MultiheadAttention", {"W_O": "out_proj.weight"}),
    "no padding": other("nn.MultiheadAttention", mask=causal()),
}
ALL = {
    "pairs of neighbours for Llama": other("LlamaAttention", pairing="interleaved"),
    "halves for Cohere": other("CohereAttention", pairing="half"),
    "cos and sin exchanged": other("LlamaAttention", {"cos": "sin.unsqueeze(-3)", "sin": "cos.unsqueeze(-3)"}),
    "K and V exchanged": other("LlamaAttention", {"W_K": "v_proj.weight.mT", "W_V": "k_proj.weight.mT"}),
    "no window": other("MistralAttention", mask=causal()),
    "a window of one more": other("MistralAttention", mask=window(3, 0)),
    "b_Q and b_K of one group": other("Qwen2Attention", {"b_K": "v_proj.bias", "b_V": "k_proj.bias"}),
    "gains exchanged": other("Qwen3Attention", {"gain_Q": "k_norm.weight", "gain_K": "q_norm.weight"}),
    "no softcap": other("Gemma2Attention", softcap=None),
    "the usual scale": other("Gemma2Attention", scale=None),
    "T5 scaled": other("T5Attention", scale=None),
    "one-sided buckets": other("T5Attention", buckets=t5_buckets(5, 5, n_buckets=8, max_distance=10, bidirectional=False)),
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_a_wrong_reading_is_wrong_everywhere(name):
    system = ALL[name]
    assert fails(system) >= everything_of(system.name) - system.zeros


@pytest.mark.parametrize("name", ALL_BUT_OUTPUT_BIAS)
def test_a_wrong_reading_leaves_the_bias_of_the_output(name):
    """dℓ/db_O = 1ᵀ dY, whatever happens before."""
    system = ALL_BUT_OUTPUT_BIAS[name]
    assert fails(system) == everything_of(system.name) - {"b_O"} - system.zeros


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("BertSelfAttention", everything()),
        ("BertSelfAttention", hidden(torch.arange(5) < 3)),
        ("ViTAttention", causal()),
    ],
    ids=["none", "polarity", "causal"],
)
def test_another_mask_leaves_the_bias_of_the_values(name, mask):
    """db_V = 1ᵀ dC: a row of P sums to 1, whatever it hides."""
    wrong = other(name, mask=mask)
    assert fails(wrong) == everything_of(name) - {"b_O", "b_V", "b_K"}


def test_key_value_heads_that_are_tiled_backwards_are_seen_in_what_they_reach(monkeypatch):
    def tiled(X: torch.Tensor, n_kv_heads: int) -> torch.Tensor:
        return X.reshape(*X.shape[:-3], -1, n_kv_heads, *X.shape[-2:]).sum(-4)

    monkeypatch.setattr(heads, "sum_heads", tiled)
    assert fails(SYSTEMS["LlamaAttention"]) == {"X", "W_K", "W_V", "cos", "sin"}
    assert fails(SYSTEMS["FalconAttention"]) == {"X", "W_QKV", "b_QKV", "cos", "sin"}
    assert fails(SYSTEMS["GPT2Attention"]) == set()  # it has no groups


def test_key_value_heads_that_are_tiled_forwards_are_seen_everywhere(monkeypatch):
    def tiled(X: torch.Tensor, n_heads: int) -> torch.Tensor:
        return torch.cat([X] * (n_heads // X.shape[-3]), -3)

    step = heads.REPEAT_HEADS
    operator = heads.linear_map(tiled, lambda dX, shape, n_heads: dX.unflatten(-3, (-1, shape[-3])).sum(-4))
    parts = [p._replace(operator=operator) if p.operator is step else p for p in options.PARTS]
    monkeypatch.setattr(options, "PARTS", parts)
    assert fails(SYSTEMS["LlamaAttention"]) == everything_of("LlamaAttention")


# ---------------------------------------------------------------- whole layers, wrong on purpose

EXCHANGED = {
    "gate and up": ("LlamaDecoderLayer", {"W_G": "mlp.up_proj.weight.mT", "W_U": "mlp.gate_proj.weight.mT"}, {}, set()),
    "γ for 1 + γ (Liger #74)": ("GemmaDecoderLayer", {}, {"norm_offset": 0.0}, set()),
    "1 + γ for γ": ("LlamaDecoderLayer", {}, {"norm_offset": 1.0}, set()),
    "silu for the gelu of a gate": ("GemmaDecoderLayer", {}, {"style": "llama"}, set()),
    "the two gains": ("Qwen3DecoderLayer", {"gain_1": "post_attention_layernorm.weight", "gain_2": "input_layernorm.weight"}, {}, set()),
    "gelu for GPT-2's gelu by tanh": ("GPT2Block", {}, {"style": Style("before", "layer", False, "gelu")}, {"b_D", "b_K"}),
    "gelu by tanh for ViT's gelu": ("ViTLayer", {}, {"style": "gpt-2"}, {"b_D", "b_K"}),
    "gelu by tanh for BERT's gelu": ("BertLayer", {}, {"style": Style("after", "layer", False, "gelu_tanh")}, {"shift_2", "b_K"}),
    "relu for gelu": ("nn.TransformerEncoderLayer, post-norm, gelu", {}, {"style": "vaswani"}, {"shift_2", "b_K"}),
    "post-norm for pre-norm": ("nn.TransformerEncoderLayer, pre-norm, relu", {}, {"style": "vaswani"}, {"b_K"}),
    "one after the other for parallel": ("GPTNeoXLayer", {}, {"style": Style("before", "layer", False, "gelu")}, {"b_D"}),
    "parallel for one after the other": ("GPTNeoXLayer, sequential", {}, {"style": "gpt-neox"}, {"b_D"}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXCHANGED)
def test_a_layer_that_is_taken_for_another_is_wrong_in_every_parameter(name):
    """But for the bias of the last sum, whose gradient is 1ᵀ dY, and for what is zero."""
    system, arguments, options, right = EXCHANGED[name]
    assert fails(other(system, arguments, **options)) == everything_of(system) - right


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("GPT2Block", "interleaved"),
        ("GPTNeoXLayer, sequential", "contiguous"),
        ("nn.TransformerEncoderLayer, pre-norm, gelu", "head-last"),
    ],
)
def test_a_fused_weight_that_is_read_in_another_layout_is_wrong_everywhere(name, layout):
    system = dataclasses.replace(SYSTEMS[name], layout=layout)
    assert fails(system) >= everything_of(name) - {"b_D", "b_K"}


@pytest.mark.parametrize("name", ["LlamaDecoderLayer", "BertLayer"])
def test_a_residual_whose_gradient_is_lost_is_seen_in_what_lies_before_it(name, monkeypatch):
    """quack #53: forwards the sum is right, backwards one of its paths gets nothing. What lies behind the sum is right."""
    lost = entrywise.ADD._replace(vjp=lambda dY, saved: (torch.zeros_like(dY), dY))
    monkeypatch.setattr(transformer, "ADD", lost)
    before = {
        n
        for n in LAYERS[name].arguments
        if n[-2:] in ("_Q", "_K", "_V", "_O", "_1") or n in ("X", "cos", "sin")
    }
    assert fails(LAYERS[name]) == before - LAYERS[name].zeros


def test_every_parameter_of_a_llama_is_there_and_all_three_parts_of_a_fused_weight():
    named = LAYERS["LlamaDecoderLayer"].arguments.values()
    assert {n.removesuffix(".mT").removesuffix(".weight").split(".")[-1] for n in named if "weight" in n} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "input_layernorm", "post_attention_layernorm",
    }  # fmt: skip
    system = LAYERS["GPTNeoXLayer"]
    weight = build(system).leaves["attention.query_key_value.weight"]
    parts = [system.read(f"W_{x}")[1].argument(weight) for x in "QKV"]
    whole = weight.mT.unflatten(-1, (3, 3, 6))  # heads, of each Q, K and V
    assert all(torch.equal(p.unflatten(-1, (3, 6)), whole[..., i, :]) for i, p in enumerate(parts))


def test_what_floats_do_not_show_the_field_does():
    """An ε of 1.1e-6 for 1e-6 is lost in a module whose norm and softmax are in float32."""
    system = other("Qwen3Attention", eps=1.1e-6)
    assert {r.verdict for r in in_floats(system, build(SYSTEMS[system.name]))} == {"pass"}
    assert fails(system, floats=False) == everything_of(system.name)


# ---------------------------------------------------------------- without transformers


def test_without_transformers_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    assert not models.available()
    with pytest.raises(InputError, match=r"pip install 'gradderiv\[peers\]'"):
        verify_models()
    records = verify_models(systems=["nn.MultiheadAttention"])
    assert {r.verdict for r in records} == {"pass"}
