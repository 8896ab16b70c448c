"""Which argument of the closed form each parameter of a model's whole layer is: rows of the table of :mod:`gradderiv.checks.models`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradderiv.checks._models import (
    _BERT,
    _BIASES,
    _CAUSAL,
    _GROUPED,
    _LINEAR,
    _LLAMA,
    _PADDED,
    _PARTIAL,
    _PLAIN,
    _ROTARY,
    _SIZES,
    _SLIDING,
    _WIDE,
    FEED,
    THREE,
    WHOLE,
    System,
)
from gradderiv.rules.transformer import Style

Names = dict[str, str]


def inside(module: str, names: Mapping[str, str]) -> Names:
    """The names of an attention module's parameters in the layer that has it; what the layer is handed keeps its name."""
    handed = ("hidden_states", "cos", "sin")
    return {a: name if name.startswith(handed) else f"{module}.{name}" for a, name in names.items()}


def weight_and_bias(**modules: str) -> Names:
    """``U="mlp.fc1"``: W_U and b_U of an nn.Linear."""
    weights = {f"W_{x}": f"{module}.weight.mT" for x, module in modules.items()}
    return weights | {f"b_{x}": f"{module}.bias" for x, module in modules.items()}


def layer_norms(first: str, second: str) -> Names:
    return {
        "gain_1": f"{first}.weight", "shift_1": f"{first}.bias", "gain_2": f"{second}.weight", "shift_2": f"{second}.bias",
    }  # fmt: skip


def fused(weight: str, bias: str) -> Names:
    """Three parts of one matrix, and of one bias."""
    return {f"W_{x}": f"{weight}.{x}" for x in "QKV"} | {f"b_{x}": f"{bias}.{x}" for x in "QKV"}


# ---------------------------------------------------------------- parameters

_GATED = {"W_G": "mlp.gate_proj.weight.mT", "W_U": "mlp.up_proj.weight.mT", "W_D": "mlp.down_proj.weight.mT"}
_GATED_BIASES = {"b_G": "mlp.gate_proj.bias", "b_U": "mlp.up_proj.bias", "b_D": "mlp.down_proj.bias"}
_RMS = {"gain_1": "input_layernorm.weight", "gain_2": "post_attention_layernorm.weight"}
_LLAMA_LAYER = inside("self_attn", _LLAMA) | _GATED | _RMS
_QK_NORM = {"gain_Q": "self_attn.q_norm.weight", "gain_K": "self_attn.k_norm.weight"}
_GPT2_LAYER = {
    "X": "hidden_states",
    **fused("attn.c_attn.weight", "attn.c_attn.bias"),
    "W_O": "attn.c_proj.weight",
    "b_O": "attn.c_proj.bias",
    "W_U": "mlp.c_fc.weight",
    "b_U": "mlp.c_fc.bias",
    "W_D": "mlp.c_proj.weight",
    "b_D": "mlp.c_proj.bias",
    **layer_norms("ln_1", "ln_2"),
}
_NEOX_LAYER = {
    "X": "hidden_states",
    **fused("attention.query_key_value.weight.mT", "attention.query_key_value.bias"),
    **weight_and_bias(O="attention.dense", U="mlp.dense_h_to_4h", D="mlp.dense_4h_to_h"),
    **layer_norms("input_layernorm", "post_attention_layernorm"),
    **_ROTARY,
}
_BERT_LAYER = {
    **inside("attention.self", _BERT),
    **weight_and_bias(O="attention.output.dense", U="intermediate.dense", D="output.dense"),
    **layer_norms("attention.output.LayerNorm", "output.LayerNorm"),
}
_VIT_LAYER = {
    **inside("attention", _LINEAR | _BIASES | {"b_O": "o_proj.bias"}),
    **weight_and_bias(U="mlp.fc1", D="mlp.fc2"),
    **layer_norms("layernorm_before", "layernorm_after"),
}
_TORCH_LAYER = {
    "X": "src",
    **fused("self_attn.in_proj_weight.mT", "self_attn.in_proj_bias"),
    **weight_and_bias(O="self_attn.out_proj", U="linear1", D="linear2"),
    **layer_norms("norm1", "norm2"),
}

# ---------------------------------------------------------------- options

_NO_KEY_BIAS = frozenset({"b_K"})
_OF_LLAMA: dict[str, Any] = _GROUPED | _WIDE | {"style": "llama", "norm_eps": 1e-6}
_OF_GEMMA: dict[str, Any] = _GROUPED | _WIDE | {"style": "gemma", "norm_eps": 1e-6, "norm_offset": 1.0}
_THREE: dict[str, Any] = {"n_heads": THREE}
_BEFORE = Style("before", "layer", gated=False, function="gelu")
_BEFORE_RELU = Style("before", "layer", gated=False, function="relu")


def _neox(parallel: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    options = _THREE | _CAUSAL | _WIDE | {"style": "gpt-neox" if parallel else _BEFORE}
    return options, _PLAIN | {"rope_parameters": _PARTIAL, "use_parallel_residual": parallel}


def _torch(note: str, style: Style | str, masked: dict[str, Any], **config: Any) -> System:
    padded = masked is _PADDED
    return System(
        f"nn.TransformerEncoderLayer, {note}", "padded" if padded else "causal", "transformer", _TORCH_LAYER,
        _THREE | masked | {"style": style}, "", "TransformerEncoderLayer", config, padded, _NO_KEY_BIAS, layout="contiguous",
    )  # fmt: skip


_ALL = (
    System("LlamaDecoderLayer", "RMSNorm, SwiGLU", "transformer", _LLAMA_LAYER, _OF_LLAMA | _CAUSAL, "llama", "layers.0", _SIZES),
    System("LlamaDecoderLayer, biases", "seven biases", "transformer", _LLAMA_LAYER | inside("self_attn", _BIASES | {"b_O": "o_proj.bias"}) | _GATED_BIASES, _OF_LLAMA | _CAUSAL, "llama", "layers.0", _SIZES | {"attention_bias": True, "mlp_bias": True}),
    System("MistralDecoderLayer", "sliding window", "transformer", _LLAMA_LAYER, _OF_LLAMA | _SLIDING, "mistral", "layers.0", _SIZES | {"sliding_window": 3}),
    System("Qwen3DecoderLayer", "QK-norm", "transformer", _LLAMA_LAYER | _QK_NORM, _OF_LLAMA | _CAUSAL | {"eps": 1e-6}, "qwen3", "layers.0", _SIZES),
    System("GemmaDecoderLayer", "1 + γ, GeGLU", "transformer", _LLAMA_LAYER, _OF_GEMMA | _CAUSAL, "gemma", "layers.0", _SIZES),
    System("GPT2Block", "LayerNorm, GELU by tanh", "transformer", _GPT2_LAYER, _THREE | _CAUSAL | {"style": "gpt-2"}, "gpt2", "h.0", {"n_embd": WHOLE, "n_head": THREE, "n_inner": FEED}, zeros=_NO_KEY_BIAS, layout="contiguous"),
    System("GPTNeoXLayer", "parallel", "transformer", _NEOX_LAYER, _neox(True)[0], "gpt_neox", "layers.0", _neox(True)[1], layout="interleaved"),
    System("GPTNeoXLayer, sequential", "one after the other", "transformer", _NEOX_LAYER, _neox(False)[0], "gpt_neox", "layers.0", _neox(False)[1], layout="interleaved"),
    System("BertLayer", "post-norm, padded", "transformer", _BERT_LAYER, _THREE | _PADDED | {"style": "bert", "norm_eps": 1e-12}, "bert", "encoder.layer.0", _PLAIN, padded=True, zeros=_NO_KEY_BIAS),
    System("ViTLayer", "pre-norm, no mask", "transformer", _VIT_LAYER, _THREE | _WIDE | {"style": _BEFORE, "norm_eps": 1e-12}, "vit", "layers.0", _PLAIN | {"image_size": 4, "patch_size": 2}, zeros=_NO_KEY_BIAS),
    _torch("post-norm, relu", "vaswani", _PADDED, norm_first=False, activation="relu"),
    _torch("post-norm, gelu", "bert", _CAUSAL, norm_first=False, activation="gelu"),
    _torch("pre-norm, relu", _BEFORE_RELU, _CAUSAL, norm_first=True, activation="relu"),
    _torch("pre-norm, gelu", _BEFORE, _PADDED, norm_first=True, activation="gelu"),
)  # fmt: skip
LAYERS: dict[str, System] = {system.name: system for system in _ALL}
