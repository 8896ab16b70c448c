"""A layer explained: every parameter named, its closed form, its gradient, and the check."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from transformers import BertConfig, GPT2Config, GPTNeoXConfig, LlamaConfig
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer, GPTNeoXRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

import gradderiv
from gradderiv.checks import _model_layers as rows
from gradderiv.errors import InputError

N, D = 5, 18


def causal() -> torch.Tensor:
    return torch.full((N, N), torch.finfo(torch.float32).min).triu(1)[None, None]


def llama(seed: int = 0):
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        attn_implementation="eager",
    )
    X = torch.randn(2, N, 16)
    tables = LlamaRotaryEmbedding(config)(X, torch.arange(N)[None])
    return LlamaDecoderLayer(config, 0), {
        "hidden_states": X,
        "attention_mask": causal(),
        "position_embeddings": tables,
    }


def gpt2(seed: int = 0):
    config = GPT2Config(n_embd=D, n_head=3, n_inner=20, attn_implementation="eager")
    return GPT2Block(config, 0), {"hidden_states": torch.randn(2, N, D), "attention_mask": causal()}


def neox(seed: int = 0):
    config = GPTNeoXConfig(
        hidden_size=24, num_attention_heads=3, intermediate_size=20, attn_implementation="eager"
    )
    X = torch.randn(2, N, 24)
    tables = GPTNeoXRotaryEmbedding(config)(X, torch.arange(N)[None])
    return GPTNeoXLayer(config, 0), {
        "hidden_states": X,
        "attention_mask": causal(),
        "position_embeddings": tables,
    }


def bert(seed: int = 0):
    config = BertConfig(
        hidden_size=D, num_attention_heads=3, intermediate_size=20, attn_implementation="eager"
    )
    return BertLayer(config), (torch.randn(2, N, D),)


def encoder(seed: int = 0):
    hidden = torch.zeros(2, N, dtype=torch.bool)
    hidden[0, 3:] = True
    layer = nn.TransformerEncoderLayer(
        D, 3, 20, batch_first=True, norm_first=True
    )  # in training mode, with dropout
    return layer, {"src": torch.randn(2, N, D), "src_key_padding_mask": hidden}


SYSTEMS = {
    "LlamaDecoderLayer": llama,
    "GPT2Block": gpt2,
    "GPTNeoXLayer": neox,
    "BertLayer": bert,
    "TransformerEncoderLayer": encoder,
}


@pytest.fixture(scope="module", params=SYSTEMS)
def explained(request):
    torch.manual_seed(0)
    module, inputs = SYSTEMS[request.param]()
    return module, inputs, gradderiv.explain(module, inputs)


def test_every_parameter_is_there_and_holds(explained):
    module, _, e = explained
    assert {r.parameter for r in e.rows} >= {n for n, _ in module.named_parameters()}
    assert {r.verdict for r in e.rows} == {"pass"}
    assert e.passed


def test_the_value_is_the_gradient_of_the_module(explained):
    """By autograd through the module itself, once more, with the cotangent that the explanation used."""
    module, inputs, e = explained
    again = module.double().eval()
    wide = (
        {
            n: tuple(y.double() for y in x)
            if isinstance(x, tuple)
            else x.double()
            if x.dtype.is_floating_point
            else x
            for n, x in inputs.items()
        }
        if isinstance(inputs, dict)
        else tuple(x.double() for x in inputs)
    )
    if isinstance(wide, dict) and "attention_mask" in wide:
        wide["attention_mask"] = wide["attention_mask"].masked_fill(wide["attention_mask"] < -1, -torch.inf)
    Y = again(**wide) if isinstance(wide, dict) else again(*wide)
    Y = Y[0] if isinstance(Y, tuple) else Y
    W = dict(again.named_parameters())[e["W_D"].parameter]
    (g,) = torch.autograd.grad(Y, [W], e.dY)
    g = g if g.shape == e["W_D"].gradient.shape else g.mT
    assert float((g - e["W_D"].gradient).abs().max() / g.abs().max()) < 1e-6


def test_it_reads_as_a_derivation(explained):
    _, _, e = explained
    assert e["W_D"].text.startswith("Fᵀ d")
    assert e["W_Q"].text.endswith("d(XW^Q)")
    assert e.tex().startswith("\\begin{align*}")
    assert "dW^{Q} &= " in e.tex()
    assert max(map(len, str(e).splitlines())) <= 80


def test_a_wrong_reading_fails(monkeypatch):
    """Gate and up exchanged: their gradients, and all that lies behind them."""
    torch.manual_seed(0)
    row = rows.LAYERS["LlamaDecoderLayer"]
    swapped = row.arguments | {"W_G": row.arguments["W_U"], "W_U": row.arguments["W_G"]}
    monkeypatch.setitem(rows.LAYERS, row.name, dataclasses.replace(row, arguments=swapped))
    e = gradderiv.explain(*llama())
    assert e.verdict == "fail"
    assert e["W_G"].verdict == "fail"


def test_the_module_is_left_as_it_was():
    torch.manual_seed(0)
    module, inputs = encoder()
    before = {n: p.clone() for n, p in module.named_parameters()}
    gradderiv.explain(module, inputs)
    assert module.training
    assert all(
        torch.equal(p, before[n]) and p.grad is None and p.dtype == torch.float32
        for n, p in module.named_parameters()
    )


def test_what_it_does_not_know_is_said():
    with pytest.raises(InputError, match="LlamaDecoderLayer"):
        gradderiv.explain(nn.Linear(3, 3), (torch.randn(2, 3),))
    module, inputs = llama()
    del inputs["position_embeddings"]
    with pytest.raises(InputError, match="position_embeddings"):
        gradderiv.explain(module, inputs)
