"""Which argument of the closed forms each parameter of a model's attention is: rows of the table of :mod:`gradderiv.checks.models`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.rules.layouts import split
from gradderiv.rules.masks import causal, padding, window
from gradderiv.rules.score_bias import t5_buckets

BATCH, LENGTH, VOCABULARY, FEED = 2, 5, 11, 20
SHORT = LENGTH - 2  # the length of the first text, where there is padding
WIDTH, HEADS, GROUPS, HEAD = 16, 4, 2, 6  # 4 heads of 6 share 2 heads of K and V
WHOLE, THREE = 18, 3  # 3 heads of 6, where they must make up the width


class View(NamedTuple):
    """How a parameter becomes the rule's argument, and what is done to the rule's gradient and to the module's before they are compared."""

    argument: Callable[[Tensor], Tensor]
    found: Callable[[Tensor], Tensor]
    expected: Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x


def transposed(x: Tensor) -> Tensor:
    return x.mT


def for_heads(x: Tensor) -> Tensor:
    return x.unsqueeze(-3)


def doubled(x: Tensor) -> Tensor:
    return for_heads(torch.cat([x, x], -1))


def halves_added(g: Tensor) -> Tensor:
    first, second = g.chunk(2, -1)
    return first + second


PARTS = (".Q", ".K", ".V")


def part_of(which: int, layout: str, heads: Mapping[str, int], transposed: bool) -> View:
    """One of the three that a fused weight or bias is; its gradient is read as the weight is."""

    def read(x: Tensor) -> Tensor:
        return split(x.mT if transposed else x, layout=layout, **heads)[which]

    return View(read, same, read)


#: By the suffix of a parameter's name: nn.Linear has Wᵀ, rotary tables have no axis for the heads, and those of gpt-oss one entry for the two columns of a pair.
VIEWS = {
    ".mT": View(transposed, same, transposed),
    ".unsqueeze(-3)": View(for_heads, same, for_heads),
    ".doubled": View(doubled, halves_added, for_heads),
}


@dataclass(frozen=True)
class System:
    """A module, and what it is in closed form.

    Attributes:
        name, note: its class, and what is special about it.
        rule: "multihead", "fused" or "transformer".
        arguments: of the rule, and the parameter or input of the module that each is, with a suffix of :data:`VIEWS`.
        options: of the rule.
        model, path, config: transformers' model type, where in the model the module is, and the sizes.
        padded: the first text ends in padding.
        zeros: arguments whose gradient is zero, as softmax ignores a shift.
        layout: of a fused weight that is read in parts: the argument is named like it with .Q, .K or .V after it.
    """

    name: str
    note: str
    rule: str
    arguments: Mapping[str, str]
    options: Mapping[str, Any]
    model: str
    path: str
    config: Mapping[str, Any] = field(default_factory=dict)
    padded: bool = False
    zeros: frozenset[str] = frozenset()
    layout: str = ""

    def read(self, argument: str) -> tuple[str, View]:
        """The name of a parameter, and how it is read."""
        name = self.arguments[argument]
        if self.layout and name[-2:] in PARTS:
            heads = {n: self.options[n] for n in ("n_heads", "n_kv_heads") if n in self.options}
            part = part_of(PARTS.index(name[-2:]), self.layout, heads, transposed=name.endswith("mT", 0, -2))
            return name[:-2].removesuffix(".mT"), part
        for suffix, view in VIEWS.items():
            if name.endswith(suffix):
                return name.removesuffix(suffix), view
        return name, View(same, same, same)


# ---------------------------------------------------------------- parameters

_ROTARY = {"cos": "cos.unsqueeze(-3)", "sin": "sin.unsqueeze(-3)"}
_BIASES = {"b_Q": "q_proj.bias", "b_K": "k_proj.bias", "b_V": "v_proj.bias"}
_LINEAR = {
    "X": "hidden_states",
    "W_Q": "q_proj.weight.mT",
    "W_K": "k_proj.weight.mT",
    "W_V": "v_proj.weight.mT",
    "W_O": "o_proj.weight.mT",
}
_LLAMA = _LINEAR | _ROTARY
_GPT_OSS = {"b_O": "o_proj.bias", "sinks": "sinks", "cos": "cos.doubled", "sin": "sin.doubled"}
_BERT = {
    "X": "hidden_states",
    "W_Q": "query.weight.mT",
    "W_K": "key.weight.mT",
    "W_V": "value.weight.mT",
    "b_Q": "query.bias",
    "b_K": "key.bias",
    "b_V": "value.bias",
}
_T5 = {
    "X": "hidden_states",
    "W_Q": "q.weight.mT",
    "W_K": "k.weight.mT",
    "W_V": "v.weight.mT",
    "W_O": "o.weight.mT",
}
_TABLE = {"table": "relative_attention_bias.weight"}
_GPT2 = {
    "X": "hidden_states",
    "W_QKV": "c_attn.weight",  # a Conv1D has W, not Wᵀ
    "b_QKV": "c_attn.bias",
    "W_O": "c_proj.weight",
    "b_O": "c_proj.bias",
}
_FUSED = {
    "X": "hidden_states",
    "W_QKV": "query_key_value.weight.mT",
    "b_QKV": "query_key_value.bias",
    "W_O": "dense.weight.mT",
    "b_O": "dense.bias",
}
_TORCH = {
    "X": "query",
    "W_QKV": "in_proj_weight.mT",
    "b_QKV": "in_proj_bias",
    "W_O": "out_proj.weight.mT",
    "b_O": "out_proj.bias",
}

# ---------------------------------------------------------------- options

_WIDE: dict[str, Any] = {"softmax_dtype": torch.float32}  # whatever the module's own type is
_GROUPED: dict[str, Any] = {"n_heads": HEADS, "n_kv_heads": GROUPS}
_CAUSAL: dict[str, Any] = {"mask": causal()}
_SLIDING: dict[str, Any] = {"mask": window(2, 0)}  # "sliding_window": 3 counts the query's own key
_PADDED: dict[str, Any] = {"mask": padding([SHORT, *[LENGTH] * (BATCH - 1)])}


def _buckets(bidirectional: bool) -> dict[str, Any]:
    return {"buckets": t5_buckets(LENGTH, LENGTH, n_buckets=8, max_distance=10, bidirectional=bidirectional)}


# ---------------------------------------------------------------- sizes

_PLAIN = {"hidden_size": WHOLE, "num_attention_heads": THREE, "intermediate_size": FEED}
_SIZES = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": HEAD,
    "intermediate_size": FEED,
}
_SIZES_T5 = {
    "d_model": WIDTH,
    "num_heads": HEADS,
    "d_kv": HEAD,
    "d_ff": FEED,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
}
_SIZES_FALCON = {
    "hidden_size": HEADS * HEAD,
    "num_attention_heads": HEADS,
    "num_kv_heads": GROUPS,
    "ffn_hidden_size": FEED,
    "new_decoder_architecture": True,
    "bias": True,
}
_PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.7}  # 4 columns of 6

_SELF = "layers.0.self_attn"
_ALL = (
    System("LlamaAttention", "grouped heads, RoPE", "multihead", _LLAMA, _GROUPED | _CAUSAL | _WIDE, "llama", _SELF, _SIZES),
    System("MistralAttention", "sliding window", "multihead", _LLAMA, _GROUPED | _SLIDING | _WIDE, "mistral", _SELF, _SIZES | {"sliding_window": 3}),
    System("Qwen2Attention", "biases of Q, K, V", "multihead", _LLAMA | _BIASES, _GROUPED | _CAUSAL | _WIDE, "qwen2", _SELF, _SIZES),
    System("Qwen3Attention", "QK-norm", "multihead", _LLAMA | {"gain_Q": "q_norm.weight", "gain_K": "k_norm.weight"}, _GROUPED | _CAUSAL | _WIDE | {"eps": 1e-6}, "qwen3", _SELF, _SIZES),
    System("Gemma2Attention", "softcap, own scale", "multihead", _LLAMA, _GROUPED | _SLIDING | _WIDE | {"softcap": 2.0, "scale": 7**-0.5}, "gemma2", _SELF, _SIZES | {"sliding_window": 3, "query_pre_attn_scalar": 7, "attn_logit_softcapping": 2.0}),
    System("CohereAttention", "RoPE of neighbours", "multihead", _LLAMA, _GROUPED | _CAUSAL | _WIDE | {"pairing": "interleaved"}, "cohere", _SELF, _SIZES),
    System("GptOssAttention", "sinks", "multihead", _LINEAR | _BIASES | _GPT_OSS, _GROUPED | _SLIDING, "gpt_oss", _SELF, _SIZES | {"sliding_window": 3, "num_local_experts": 2, "num_experts_per_tok": 1}),
    System("GPT2Attention", "Conv1D, contiguous", "fused", _GPT2, {"layout": "contiguous", "n_heads": THREE} | _CAUSAL, "gpt2", "h.0.attn", {"n_embd": WHOLE, "n_head": THREE, "n_inner": FEED}),
    System("GPTNeoXAttention", "interleaved, part rotates", "fused", _FUSED | _ROTARY, {"layout": "interleaved", "n_heads": THREE} | _CAUSAL | _WIDE, "gpt_neox", "layers.0.attention", _PLAIN | {"rope_parameters": _PARTIAL}),
    System("FalconAttention", "grouped columns", "fused", _FUSED | _ROTARY, {"layout": "grouped"} | _GROUPED | _CAUSAL, "falcon", "h.0.self_attention", _SIZES_FALCON),
    System("BloomAttention", "interleaved, ALiBi", "fused", _FUSED | {"slopes": "slopes"}, {"layout": "interleaved", "n_heads": THREE} | _CAUSAL | _WIDE, "bloom", "h.0.self_attention", {"hidden_size": WHOLE, "n_head": THREE}),
    System("T5Attention", "table, scale 1, padded", "multihead", _T5 | _TABLE, {"n_heads": HEADS, "scale": 1.0} | _buckets(True) | _PADDED, "t5", "encoder.block.0.layer.0.SelfAttention", _SIZES_T5, padded=True),
    System("T5Attention, decoder", "one-sided table", "multihead", _T5 | _TABLE, {"n_heads": HEADS, "scale": 1.0} | _buckets(False) | _CAUSAL, "t5", "decoder.block.0.layer.0.SelfAttention", _SIZES_T5),
    System("T5Attention, cross", "K, V of the encoder", "multihead", _T5 | {"X_kv": "key_value_states"}, {"n_heads": HEADS, "scale": 1.0} | _PADDED, "t5", "decoder.block.0.layer.1.EncDecAttention", _SIZES_T5, padded=True),
    System("BertSelfAttention", "padded, no W_O", "multihead", _BERT, {"n_heads": THREE} | _PADDED, "bert", "encoder.layer.0.attention.self", _PLAIN, padded=True, zeros=frozenset({"b_K"})),
    System("ViTAttention", "no mask", "multihead", _LINEAR | _BIASES | {"b_O": "o_proj.bias"}, {"n_heads": THREE} | _WIDE, "vit", "layers.0.attention", _PLAIN | {"image_size": 4, "patch_size": 2}, zeros=frozenset({"b_K"})),
    System("nn.MultiheadAttention", "padded, causal", "fused", _TORCH, {"layout": "contiguous", "n_heads": THREE, "mask": causal() & padding([SHORT, *[LENGTH] * (BATCH - 1)])}, "", ""),
)  # fmt: skip
SYSTEMS: dict[str, System] = {system.name: system for system in _ALL}
