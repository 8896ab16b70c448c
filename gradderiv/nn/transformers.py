"""The models of ``transformers`` with :func:`gradderiv.functional.attention` inside: ``attn_implementation="gradderiv"``.

    O = softmax(c tanh(τ Q Kᵀ / c) + position_bias + mask, sinks) V                                    Vaswani et al. 2017, eq. 1

query (batch, h, n_q, d_k)   key (batch, h_kv, n_k, d_k)   value (batch, h_kv, n_k, d_v)   output (batch, n_q, h, d_v)

Two functions are registered, since transformers looks for two: what attends, and what makes the masks. Where the second is missing it hands over no mask at
all, and says nothing: padding is then attended to. Needs ``transformers`` (extra ``[peers]``), which is imported when :func:`register` is called.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from gradderiv.errors import InputError, message
from gradderiv.functional import attention
from gradderiv.rules._inputs import require

RESERVED = ("eager", "sdpa", "flash", "flex_attention", "paged|", "/", ":")
"""Names, or parts of names, by which transformers takes a path of its own."""

OTHERS = {
    "cache": "continuous batching keeps keys and values in pages",
    "indices": "the model lists the keys of each query",
    "block_indices": "the model lists the blocks of keys of each query",
}
"""Arguments that change what is computed, and that this function does not know."""


def register(name: str = "gradderiv") -> str:
    """Make ``attn_implementation=name`` known to ``from_config``, ``from_pretrained`` and ``set_attn_implementation``.

    Every model whose attention goes through ``AttentionInterface`` can then be differentiated twice, in forward mode and under ``torch.func``, in memory that
    grows with n: Llama, Mistral, Qwen, Gemma with its soft cap, gpt-oss with its sinks, GPT-2, GPT-NeoX, BERT, ViT, T5 with its bias, and most others. ::

        import gradderiv.nn.transformers
        gradderiv.nn.transformers.register()
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="gradderiv")

    What differs from ``eager``: float64 stays float64, where some models compute a softmax in float32; a query that may attend to nothing, as the padding
    on the left, gives 0 where ``eager`` gives the mean of all values, or NaN in float64. ``output_attentions=True`` is for the call: transformers
    refuses it in the configuration of any attention but ``eager``. A model that attends without ``AttentionInterface`` (Falcon, BLOOM, GPT-J …) is refused.

    Args:
        name: to be known by.

    Returns:
        The name.

    Raises:
        InputError: a name that transformers reads as another attention; transformers is not there.
    """
    require(
        bool(name) and not any(part in name for part in RESERVED),
        "register needs a name that transformers has no meaning for",
        repr(name),
        f"names with {', '.join(RESERVED)} go elsewhere",
        "the name that is there already, 'gradderiv'",
    )
    attentions, masks = _interfaces()
    attentions.register(name, attention_forward)
    masks.register(name, attention_mask)
    return name


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """O = softmax(c tanh(τ Q Kᵀ / c) + position_bias + mask, sinks) V

    What transformers calls for every layer. Without a mask a decoder's queries are causal, aligned at the first key: the empty end of a static cache stays unseen.

    Args:
        module: that calls; its ``is_causal`` where that is not given, and whether it is training.
        query, key, value: (batch, h, n_q, d_k), (batch, h_kv, n_k, d_k), (batch, h_kv, n_k, d_v).
        attention_mask: boolean, True = may attend; or float, where −∞ and the lowest floats hide and other numbers are added.
        dropout: the probability, in training.
        scaling: τ, 1/√d_k unless given.
        is_causal: whether no mask means that no query sees a later key.
        position_bias: broadcasts to the scores, with a gradient.
        softcap: c.
        s_aux: sinks (h).
        kwargs: what else models hand over; ``sliding_window`` is in the mask already.

    Returns:
        O (batch, n_q, h, d_v), and P (batch, h, n_q, n_k) where the model's attentions are asked for.

    Raises:
        InputError: pages of a cache, or lists of keys; and what :func:`gradderiv.functional.attention` raises.
    """
    _require_known(kwargs)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    hidden, bias = _hiding(attention_mask, position_bias, query.dtype)
    options: dict[str, Any] = {
        "attn_mask": hidden, "bias": bias, "scale": scaling, "softcap": softcap,
        "dropout_p": dropout if module.training else 0.0, "is_causal": bool(causal) and attention_mask is None and query.shape[-2] > 1,
        "enable_gqa": key.shape[-3] != query.shape[-3], "sinks": None if s_aux is None else s_aux.to(query.dtype),
    }  # fmt: skip
    wanted = bool(kwargs.get("output_attentions")) or _collected()
    found: Any = attention(query, key, value, return_weights=wanted, **options)
    O, weights = found if wanted else (found, None)
    return O.transpose(-3, -2).contiguous(), weights


def attention_mask(*args: Any, config: Any = None, **kwargs: Any) -> Tensor | None:
    """Boolean, True = may attend: the mask that transformers makes for scaled_dot_product_attention; None where ``is_causal`` says it.

    Raises:
        InputError: a model that asks for a mask and then attends without the interface.
    """
    from transformers.masking_utils import sdpa_mask

    if not torch.compiler.is_compiling():
        _require_interface(config.__class__)
    if getattr(
        config, "num_kv_shared_layers", 0
    ):  # Gemma 4: these layers keep only the last queries, which is_causal would take for the first
        kwargs["allow_is_causal_skip"] = False
    made: Tensor | None = sdpa_mask(*args, config=config, **kwargs)
    return made


def _hiding(
    mask: Tensor | None, position_bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """What hides, and what is added to the scores. A float mask is both: two of the lowest floats would add up to −∞, so they hide."""
    bias = None if position_bias is None else position_bias.to(dtype)
    if mask is None or mask.dtype == torch.bool:
        return mask, bias
    added = mask.masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf).to(dtype)
    return None, added if bias is None else bias + added


def _require_known(kwargs: dict[str, Any]) -> None:
    for name, what in OTHERS.items():
        require(
            kwargs.get(name) is None,
            "gradderiv's attention takes keys and values as tensors, and every key that the mask allows",
            f"{name}=, from a model or a server: {what}",
            "an attention that is computed on a part of the keys",
            "attn_implementation='eager' or 'sdpa' here",
        )


def _collected() -> bool:
    """Whether the model's attentions are being collected: some models keep ``output_attentions`` from their layers."""
    from transformers.utils.output_capturing import _active_collector

    if torch.compiler.is_compiling():
        return False
    return any(name.endswith("attentions") for name in _active_collector.get() or ())


@cache
def _require_interface(config: Hashable) -> None:
    """Some models make masks by the interface and attend without it: these would read our boolean masks as numbers."""
    from transformers import MODEL_MAPPING

    model = MODEL_MAPPING.get(config, None)
    models = model if isinstance(model, tuple) else (model,)
    require(
        all(m is None or m._can_set_attn_implementation() for m in models),
        "gradderiv's attention needs a model that attends through transformers' AttentionInterface",
        getattr(config, "__name__", repr(config)),
        "a model with an attention of its own",
        "attn_implementation='eager', which can be differentiated twice as well, with the score matrix stored",
    )


def _interfaces() -> tuple[Any, Any]:
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise InputError(
            message(
                "register needs transformers",
                str(error),
                "it is not installed, or older than these interfaces",
                'pip install "gradderiv[peers]"',
            )
        ) from error
    return AttentionInterface, AttentionMaskInterface
