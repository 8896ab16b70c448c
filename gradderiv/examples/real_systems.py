"""Prove the backward pass of attention layers as they ship: other people's modules, random weights, nothing changed.

The modules are those of ``transformers`` (which this example needs and the package does not) and of ``torch.nn``, at
sizes so small that they run in moments and so unequal that no two axes can be mistaken for each other. A module of
``transformers`` sits in its model, and gets what the model hands it: its own mask, whose "minus infinity" is mostly the
lowest float, its own rotary position embeddings, its own patches. Only the hidden states and the weights are
random; gains and biases too, so that none is one or zero.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import gradderiv
from gradderiv.checks import models
from gradderiv.checks.models import handed, randomise
from gradderiv.threads import one_thread

Inputs = dict[str, Any]
Built = tuple[nn.Module, Inputs]

BATCH, LENGTH, VOCABULARY, FEED = 3, 5, 11, 20
WIDTH, HEADS, GROUPS, HEAD = 16, 4, 2, 6
"""Where the heads need not make up the width: 4 heads of 6 share 2 heads of K and V."""
WHOLE, PAIR = 14, 2
"""Where they must: 2 heads of 7."""


@dataclass(frozen=True)
class System:
    """A module that exists, and what to call it with."""

    name: str
    build: Callable[[], Built]
    note: str = ""


def unknown(*shape: int) -> Tensor:
    """An input that wants its gradient."""
    return torch.randn(shape).requires_grad_()


# The models of transformers

_GROUPED = {
    "hidden_size": WIDTH,
    "intermediate_size": FEED,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": HEAD,
}
_PLAIN = {"hidden_size": WHOLE, "intermediate_size": FEED, "num_attention_heads": PAIR}
_T5 = {
    "d_model": WIDTH,
    "d_ff": FEED,
    "d_kv": HEAD,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
}
_PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.3}
CONFIGS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "Llama": ("llama", _GROUPED),
    "Mistral": ("mistral", _GROUPED | {"sliding_window": 3}),
    "Qwen2": ("qwen2", _GROUPED),
    "Gemma2": ("gemma2", _GROUPED | {"sliding_window": 3, "query_pre_attn_scalar": 7}),
    "GPT2": ("gpt2", {"n_embd": WHOLE, "n_head": PAIR, "n_inner": FEED}),
    "GPTNeoX": ("gpt_neox", _PLAIN | {"rope_parameters": _PARTIAL}),
    "Falcon": (
        "falcon",
        {
            "hidden_size": HEADS * HEAD,
            "num_attention_heads": HEADS,
            "num_kv_heads": GROUPS,
            "ffn_hidden_size": FEED,
            "new_decoder_architecture": True,
            "bias": True,
        },
    ),
    "Falcon, 1 KV head": (
        "falcon",
        {"hidden_size": WIDTH, "num_attention_heads": PAIR, "ffn_hidden_size": FEED},
    ),
    "Bert": ("bert", _PLAIN),
    "T5": ("t5", _T5),
    "T5, gated": ("t5", _T5 | {"feed_forward_proj": "gated-gelu"}),
    "ViT": ("vit", _PLAIN | {"image_size": 4, "patch_size": 2}),
}
"""The model type and the sizes that make a configuration. Always one layer."""


def model_of(config: str) -> nn.Module:
    """The whole model around a layer."""
    kind, sizes = CONFIGS[config]
    return models.model_of(kind, VOCABULARY, sizes)


def part_of(config: str, path: str, infinite: bool = False, padding: bool = False) -> Built:
    """The submodule ``path`` of a model, with what the model hands it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_of(config)
        part = model.get_submodule(path)
        randomise(part)
        inputs = handed(model, part, _inputs_of(model, padding))
        inputs["hidden_states"] = unknown(*inputs["hidden_states"].shape)
    mask = inputs.get("attention_mask")
    if infinite and mask is not None:
        inputs["attention_mask"] = mask.masked_fill(mask == torch.finfo(mask.dtype).min, -torch.inf)
    return part, inputs


def _inputs_of(model: nn.Module, padding: bool) -> Inputs:
    """An image, or embedded words: the last two of the first text are padding."""
    config: Any = model.config
    if config.model_type == "vit":
        return {"pixel_values": torch.randn(BATCH, config.num_channels, config.image_size, config.image_size)}
    inputs: Inputs = {"inputs_embeds": torch.randn(BATCH, LENGTH, config.hidden_size)}
    if config.model_type == "t5":
        inputs["decoder_inputs_embeds"] = inputs["inputs_embeds"]
    if padding:
        inputs["attention_mask"] = torch.ones(BATCH, LENGTH, dtype=torch.long)
        inputs["attention_mask"][0, -2:] = 0
    return inputs


# The layers of torch.nn


def of_torch(make: Callable[..., nn.Module], shapes: Mapping[str, tuple[int, ...]], **rest: Any) -> Built:
    """A layer of PyTorch and random inputs of these shapes; one input may have several names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = make(WHOLE, PAIR, batch_first=True).eval()
        randomise(layer)
        inputs = {names: unknown(*shape) for names, shape in shapes.items()}
    return layer, {name: tensor for names, tensor in inputs.items() for name in names.split()} | rest


LATER = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
"""True where a position must not look."""
PADDED = torch.arange(LENGTH).expand(BATCH, LENGTH) >= torch.tensor([[LENGTH - 2], [LENGTH], [LENGTH]])
"""True at the padding: the last two words of the first text."""

_TEXT, _OTHER = (BATCH, LENGTH, WHOLE), (BATCH, 6)
_SELF, _THREE = {"query key value": _TEXT}, {"query": _TEXT, "key": (*_OTHER, 8), "value": (*_OTHER, 9)}
_SRC, _TGT = {"src": _TEXT}, {"tgt": _TEXT, "memory": (*_OTHER, WHOLE)}
_CAUSAL = {"attn_mask": LATER, "is_causal": True}

_attention = nn.MultiheadAttention
_cross = partial(_attention, kdim=8, vdim=9)
_bias_kv = partial(_attention, add_bias_kv=True, add_zero_attn=True)
_encoder = partial(nn.TransformerEncoderLayer, dim_feedforward=FEED)
_gelu = partial(_encoder, activation="gelu")
_first = partial(_gelu, norm_first=True)
_decoder = partial(nn.TransformerDecoderLayer, dim_feedforward=FEED, activation="gelu")


def _of(name: str, note: str, make: Callable[..., Built], *args: Any, **options: Any) -> System:
    return System(name, partial(make, *args, **options), note)


_ALL = (
    _of("LlamaAttention", "grouped, rotary", part_of, "Llama", "layers.0.self_attn"),
    _of("LlamaAttention, -inf", "mask of -inf", part_of, "Llama", "layers.0.self_attn", infinite=True),
    _of("LlamaDecoderLayer", "RMSNorm, SwiGLU", part_of, "Llama", "layers.0"),
    _of("LlamaDecoderLayer, -inf", "mask of -inf", part_of, "Llama", "layers.0", infinite=True),
    _of("MistralAttention", "sliding window", part_of, "Mistral", "layers.0.self_attn"),
    _of("MistralAttention, -inf", "mask of -inf", part_of, "Mistral", "layers.0.self_attn", infinite=True),
    _of("MistralDecoderLayer", "sliding window", part_of, "Mistral", "layers.0"),
    _of("Qwen2Attention", "biases of QKV", part_of, "Qwen2", "layers.0.self_attn"),
    _of("Qwen2DecoderLayer", "biases of QKV", part_of, "Qwen2", "layers.0"),
    _of("Gemma2Attention", "soft cap: tanh", part_of, "Gemma2", "layers.0.self_attn"),
    _of("Gemma2DecoderLayer", "gains 1 + w", part_of, "Gemma2", "layers.0"),
    _of("GPT2Attention", "Conv1D for QKV", part_of, "GPT2", "h.0.attn"),
    _of("GPT2Attention, -inf", "mask of -inf", part_of, "GPT2", "h.0.attn", infinite=True),
    _of("GPT2Block", "GELU by tanh", part_of, "GPT2", "h.0"),
    _of("GPTNeoXAttention", "2 of 7 rotate", part_of, "GPTNeoX", "layers.0.attention"),
    _of("GPTNeoXLayer", "GELU by erf", part_of, "GPTNeoX", "layers.0"),
    _of("FalconAttention", "grouped, fused", part_of, "Falcon", "h.0.self_attention"),
    _of("FalconDecoderLayer", "in parallel", part_of, "Falcon", "h.0"),
    _of("FalconDecoderLayer, 1 KV head", "multi-query", part_of, "Falcon, 1 KV head", "h.0"),
    _of("BertSelfAttention", "padded", part_of, "Bert", "encoder.layer.0.attention.self", padding=True),
    _of("BertLayer", "GELU by erf", part_of, "Bert", "encoder.layer.0", padding=True),
    _of("T5LayerSelfAttention", "position bias", part_of, "T5", "encoder.block.0.layer.0", padding=True),
    _of("T5Block", "ReLU", part_of, "T5", "encoder.block.0", padding=True),
    _of("T5Block, gated", "GELU by tanh", part_of, "T5, gated", "encoder.block.0", padding=True),
    _of("ViTAttention", "no mask", part_of, "ViT", "layers.0.attention"),
    _of("ViTLayer", "GELU by erf", part_of, "ViT", "layers.0"),
    _of("nn.MultiheadAttention", "weights as well", of_torch, _attention, _SELF),
    _of(
        "nn.MultiheadAttention, causal", "by SDPA", of_torch, _attention, _SELF, **_CAUSAL, need_weights=False
    ),
    _of(
        "nn.MultiheadAttention, padded", "boolean mask", of_torch, _attention, _SELF, key_padding_mask=PADDED
    ),
    _of("nn.MultiheadAttention, cross", "kdim, vdim", of_torch, _cross, _THREE),
    _of("nn.MultiheadAttention, bias_kv", "two more keys", of_torch, _bias_kv, _SELF, need_weights=False),
    _of("nn.TransformerEncoderLayer", "ReLU", of_torch, _encoder, _SRC, src_mask=LATER, is_causal=True),
    _of("nn.TransformerEncoderLayer, GELU", "padded", of_torch, _gelu, _SRC, src_key_padding_mask=PADDED),
    _of("nn.TransformerEncoderLayer, pre", "norms first", of_torch, _first, _SRC),
    _of(
        "nn.TransformerDecoderLayer",
        "GELU by erf",
        of_torch,
        _decoder,
        _TGT,
        tgt_mask=LATER,
        tgt_is_causal=True,
    ),
)
SYSTEMS: dict[str, System] = {system.name: system for system in _ALL}


# The table


def unknowns(module: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Everything that has a gradient, once each: the inputs, then the parameters."""
    named = {n: x for n, x in inputs.items() if isinstance(x, Tensor) and x.requires_grad}
    once = {id(x): (n, x) for n, x in reversed((named | dict(module.named_parameters())).items())}
    return dict(reversed(once.values()))


def chosen(words: Sequence[str]) -> list[System]:
    """The systems whose names contain one of these words; all of them if there are none."""
    return [s for s in SYSTEMS.values() if not words or any(w.lower() in s.name.lower() for w in words)]


def show(system: System) -> str:
    """Prove one system and print its row; its verdict."""
    module, inputs = system.build()
    entries = sum(x.numel() for x in unknowns(module, inputs).values())
    print(f"{system.name:32} {entries:5}", end=" ", flush=True)
    proof = gradderiv.prove(module, inputs)
    chance = proof.failure_probability
    power = f"2^{math.ceil(math.log2(chance))}" if chance else ""
    print(f"{proof.verdict:12} {power:>6} {proof.seconds:5.1f}  {system.note}".rstrip(), flush=True)
    if proof.verdict != "proved":
        print(textwrap.fill(str(proof.reason), 78, initial_indent="  ", subsequent_indent="  "))
    return str(proof.verdict)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gradderiv.examples.real_systems",
        description="Prove the gradients of attention layers of transformers and torch.nn.",
    )
    parser.add_argument("words", nargs="*", metavar="word", help="only the systems with it in their name")
    systems = chosen(parser.parse_args(argv).words)
    if not systems:
        parser.error("no such system; without a word, all of them run")
    if find_spec("transformers") is None and any(not s.name.startswith("nn.") for s in systems):
        parser.error("pip install transformers, or name 'nn.' for the layers of PyTorch alone")
    print(f"{'system':32} {'grads':>5} {'verdict':12} {'chance':>6} {'s':>5}")
    with one_thread():
        verdicts = Counter(show(system) for system in systems)
    print(", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
    return int("refuted" in verdicts)


if __name__ == "__main__":
    sys.exit(main())
