"""Models of transformers with ``attn_implementation="gradderiv"``: outputs, gradients and tokens are those of ``eager``, and second order works."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch.autograd import grad
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from gradderiv.errors import InputError
from gradderiv.nn.transformers import attention_forward, attention_mask, register

transformers = pytest.importorskip("transformers")

VOCABULARY, N, L = 37, 2, 7
IDS = torch.randint(3, VOCABULARY, (N, L), generator=torch.Generator().manual_seed(0))
LEFT = (
    torch.arange(L) >= torch.tensor([[3], [0]])
).long()  # the first text starts after three tokens of padding
RIGHT = LEFT.flip(-1)
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20,
    "max_position_embeddings": 64, "initializer_range": 0.4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 6}
SHORT = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
YARN = {"rope_type": "default", "rope_theta": 10000.0}

DECODERS = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 3},
    "qwen2": GROUPED | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "qwen3": GROUPED,
    "gemma2": GROUPED | {"sliding_window": 3, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 6},
    "gpt_oss": GROUPED | {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 3, "rope_parameters": YARN},
    "gpt2": SHORT | {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.4, "scale_attn_by_inverse_layer_idx": True},
    "gpt_neox": SIZES,
    "opt": SHORT | {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 20, "word_embed_proj_dim": 24, "init_std": 0.4},
    "deepseek_v3": SIZES | {"num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6,
                            "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "first_k_dense_replace": 1},
    "gemma4_text": GROUPED | {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2, "sliding_window": 30,
                              "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": VOCABULARY, "global_head_dim": 6},
}  # fmt: skip
SEQ2SEQ = {
    "t5": SHORT | {"d_model": 24, "d_kv": 6, "d_ff": 20, "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8, "decoder_start_token_id": 0},
    "bart": SHORT | {"d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                     "encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "init_std": 0.4, "decoder_start_token_id": 2, "forced_eos_token_id": None},
}  # fmt: skip
ENCODERS = {
    "bert": SIZES,
    "distilbert": SHORT | {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 20},
    "modernbert": SIZES | {"local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2},
}  # fmt: skip
VIT = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20, "image_size": 8, "patch_size": 4,
    "initializer_range": 0.4,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def known():
    """Registered while these tests run, and quiet; the lists of transformers are then as before."""
    lists = (
        transformers.AttentionInterface._global_mapping,
        transformers.AttentionMaskInterface._global_mapping,
    )
    before, level = [dict(m) for m in lists], transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    register()
    yield
    transformers.logging.set_verbosity(level)
    for now, then in zip(lists, before, strict=True):
        now.clear()
        now.update(then)


class Double(TorchFunctionMode):
    """What a model computes in float32 whatever its type is (softmax, norms, rotary tables) is computed in float64: then nothing hides in its rounding."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.float:
            return args[0].double()
        if function in (torch.Tensor.to, torch.nn.functional.softmax):
            wider = {torch.float32: torch.float64}
            args = tuple(wider.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
            kwargs = {k: wider.get(a, a) if isinstance(a, torch.dtype) else a for k, a in kwargs.items()}
        return function(*args, **kwargs)


def build(kind, config, implementation, auto="AutoModel", dtype=torch.float64):
    """A small model with random weights, the same for each implementation."""
    made = transformers.AutoConfig.for_model(kind, **copy.deepcopy(config))
    made.use_cache = False
    experts = {"experts_implementation": "eager"} if any("experts" in word for word in config) else {}
    torch.manual_seed(1)
    model = getattr(transformers, auto).from_config(made, attn_implementation=implementation, **experts)
    for name, p in model.named_parameters():
        if p.dim() == 1 and "norm" not in name and "ln" not in name.lower():
            torch.nn.init.normal_(p, std=0.2)  # biases and sinks, which start as zeros
    assert model.config._attn_implementation == implementation
    return model.to(dtype).eval()


def last_states(model, mask, **call):
    """What the model makes of the tokens that are no padding, at the last layer."""
    with Double():
        if model.config.is_encoder_decoder:
            call |= {"decoder_input_ids": IDS.flip(0), "decoder_attention_mask": RIGHT}
            mask, kept = mask, RIGHT
        else:
            kept = torch.ones_like(IDS) if mask is None else mask
        out = model(input_ids=IDS, attention_mask=mask, **call)
    return out.last_hidden_state[kept.bool()], out


MODELS = {**DECODERS, **SEQ2SEQ, **ENCODERS}


@pytest.mark.parametrize("kind", MODELS)
def test_states_and_gradients_are_those_of_eager(kind):
    models = [build(kind, MODELS[kind], name) for name in ("eager", "gradderiv")]
    for mask in (None, LEFT, RIGHT):
        found = [last_states(model, mask)[0] for model in models]
        assert_close(*found, rtol=0, atol=1e-11)
    d = torch.randn_like(found[0])
    both = [
        grad(x, list(model.parameters()), d, allow_unused=True)
        for x, model in zip(found, models, strict=True)
    ]
    assert sum(g is not None and g.abs().max() > 1e-6 for g in both[0]) > len(both[0]) / 2
    assert_close(both[1], both[0], rtol=0, atol=1e-10)


def test_a_vision_model():
    found = []
    for name in ("eager", "gradderiv"):
        model = build("vit", VIT, name)
        with Double():
            image = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            x = model(pixel_values=image).last_hidden_state
        found.append((x, *grad(x.sin().sum(), list(model.parameters()), allow_unused=True)))
    assert_close(*found, rtol=0, atol=1e-12)


COMPOSITE = {
    "clip": (
        {"text_config": SIZES, "vision_config": VIT, "projection_dim": 8},
        lambda images, sounds: {"input_ids": IDS, "attention_mask": RIGHT, "pixel_values": images},
        "logits_per_image",
    ),
    "whisper": (
        SEQ2SEQ["bart"] | {"num_mel_bins": 3, "max_source_positions": 8, "decoder_start_token_id": 1},
        lambda images, sounds: {"input_features": sounds, "decoder_input_ids": IDS},
        "last_hidden_state",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", COMPOSITE)
def test_a_model_of_several(kind):
    config, call, output = COMPOSITE[kind]
    images, sounds = torch.randn(N, 3, 8, 8, dtype=torch.float64), torch.randn(N, 3, 16, dtype=torch.float64)
    found = []
    for name in ("eager", "gradderiv"):
        model = build(kind, config, name)
        with Double():
            found.append(model(**call(images, sounds))[output])
    assert_close(*found, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["llama", "gpt_oss", "gemma2"])
def test_half_precision_is_at_most_twice_as_far_off_as_eager(kind):
    def states(name, dtype):
        model = build(kind, DECODERS[kind], name, dtype=dtype)
        return model(input_ids=IDS, attention_mask=RIGHT).last_hidden_state[RIGHT.bool()].float()

    exact = states("eager", torch.float32)
    theirs, ours = ((states(name, torch.bfloat16) - exact).abs().max() for name in ("eager", "gradderiv"))
    assert 0 < ours <= 2 * theirs


def test_a_model_that_was_saved(tmp_path):
    model = build("llama", GROUPED, "gradderiv", dtype=torch.float32)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="gradderiv").eval()
    assert again.config._attn_implementation == "gradderiv"
    found = [m(input_ids=IDS, attention_mask=LEFT).last_hidden_state for m in (again, model)]
    assert_close(*found, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model():
    model = build("llama", GROUPED, "gradderiv", dtype=torch.float32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = [f(input_ids=IDS, attention_mask=LEFT).last_hidden_state for f in (compiled, model)]
    assert_close(*found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_oss", "gpt2", "bert", "t5"])
def test_attentions_are_those_of_eager_where_they_are_asked_for(kind):
    outs = [
        last_states(build(kind, MODELS[kind], name), RIGHT, output_attentions=True)[1]
        for name in ("eager", "gradderiv")
    ]
    names = [
        n
        for n in ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
        if outs[0].get(n)
    ]
    assert names
    for name in names:
        theirs, ours = (out[name] for out in outs)
        assert len(theirs) == len(ours) == 2
        seen = RIGHT.bool()[:, None, :, None] if kind != "t5" else torch.ones(())
        for P, Q in zip(theirs, ours, strict=True):
            assert_close(Q * seen, P * seen, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt_oss"])
def test_what_the_others_ignore_matters(kind):
    """The twin of the options: without its window, soft cap or sinks a model says something else."""
    without = {"mistral": {"sliding_window": None}, "gemma2": {"attn_logit_softcapping": None}}
    whole = build(kind, DECODERS[kind], "gradderiv")
    part = build(kind, DECODERS[kind] | without.get(kind, {}), "gradderiv")
    if kind == "gpt_oss":
        for name, p in part.named_parameters():
            if name.endswith("sinks"):
                torch.nn.init.constant_(p, -1e4)
    assert (last_states(whole, None)[0] - last_states(part, None)[0]).abs().max() > 1e-3


# ---------------------------------------------------------------- masks are half of it


def test_without_the_masks_a_left_padded_batch_comes_out_wrong():
    """The twin of ``register``: what attends alone, and transformers hands it no mask, without a word."""
    transformers.AttentionInterface.register("half", attention_forward)
    eager, half, ours = (
        last_states(build("llama", GROUPED, name), LEFT)[0] for name in ("eager", "half", "gradderiv")
    )
    assert (half - eager).abs().max() > 1e-3
    assert_close(ours, eager, rtol=0, atol=1e-12)


def test_a_float_mask_of_ones_own_hides_and_adds():
    eager, ours = (build("llama", GROUPED, name) for name in ("eager", "gradderiv"))
    seen = torch.ones(L, L, dtype=torch.bool).tril().expand(N, 1, L, L) & (torch.rand(N, 1, L, L) > 0.3)
    seen = seen | torch.eye(L, dtype=torch.bool)
    added = torch.randn(N, 4, L, L, dtype=torch.float64)
    for fill in (torch.finfo(torch.float64).min, -torch.inf):
        mask = torch.where(seen, added, fill).requires_grad_()
        found = [last_states_of(model, mask) for model in (eager, ours)]
        assert_close(*found, rtol=0, atol=1e-12)
        theirs, mine = (grad(x.sin().sum(), mask)[0] for x in found)
        assert_close(mine, theirs.where(seen, 0.0), rtol=0, atol=1e-12)


def last_states_of(model, mask):
    with Double():
        return model(input_ids=IDS, attention_mask=mask).last_hidden_state


# ---------------------------------------------------------------- token by token


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", [*DECODERS, "t5", "bart"])
def test_generated_tokens_are_those_of_eager(kind, cache):
    auto = "AutoModelForSeq2SeqLM" if kind in SEQ2SEQ else "AutoModelForCausalLM"
    models = [build(kind, MODELS[kind], name, auto, torch.float32) for name in ("eager", "gradderiv")]
    for mask in (LEFT, torch.ones_like(LEFT)):
        theirs, ours = (
            model.generate(
                IDS, attention_mask=mask, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=True,
                cache_implementation=cache if cache == "static" else None,
                return_dict_in_generate=True, output_scores=True,
            )
            for model in models
        )  # fmt: skip
        assert_close(ours.sequences, theirs.sequences, rtol=0, atol=0)
        assert_close(torch.stack(ours.scores), torch.stack(theirs.scores), rtol=0, atol=2e-4)


def test_the_last_tokens_alone_see_all_that_is_before_them():
    """Gemma 4 hands its last layers the last queries only. The twin: a mask that is left to ``is_causal`` takes them for the first."""

    def logits(implementation):
        model = build("gemma4_text", DECODERS["gemma4_text"], implementation, "AutoModelForCausalLM")
        with Double():
            return model(IDS, logits_to_keep=3).logits

    eager = logits("eager")
    assert_close(logits("gradderiv"), eager, rtol=0, atol=1e-12)
    transformers.AttentionInterface.register("left", attention_forward)
    transformers.AttentionMaskInterface.register("left", transformers.masking_utils.sdpa_mask)
    assert (logits("left") - eager).abs().max() > 1e-3


# ---------------------------------------------------------------- second order


def logits_of_embeddings(implementation):
    model = build("llama", GROUPED, implementation, "AutoModelForCausalLM")
    x = model.get_input_embeddings()(IDS).detach().requires_grad_()

    def logits(x):
        with Double():
            return model(inputs_embeds=x, attention_mask=LEFT).logits[LEFT.bool()]

    return logits, x, model


def hessian_product(implementation):
    logits, x, model = logits_of_embeddings(implementation)
    W = model.model.layers[0].self_attn.k_proj.weight
    first = grad(logits(x).sin().sum(), (x, W), create_graph=True)
    return grad([(g * g).sum() for g in first], (x, W))


def test_a_gradient_of_gradients_works_where_sdpa_raises():
    assert_close(hessian_product("gradderiv"), hessian_product("eager"), rtol=1e-9, atol=1e-9)
    with pytest.raises(RuntimeError, match=r"derivative for .*scaled_dot_product.* is not implemented"):
        hessian_product("sdpa")


def test_forward_mode_works_where_sdpa_raises():
    def rate(implementation):
        logits, x, _ = logits_of_embeddings(implementation)
        return torch.func.jvp(logits, (x.detach(),), (torch.ones_like(x),))[1]

    assert_close(rate("gradderiv"), rate("eager"), rtol=1e-9, atol=1e-9)
    with pytest.raises(NotImplementedError, match="forward AD with _scaled_dot_product"):
        rate("sdpa")


# ---------------------------------------------------------------- training, and misuse


def test_dropout_in_training_only():
    model = build(
        "bert", SIZES | {"attention_probs_dropout_prob": 0.5, "hidden_dropout_prob": 0.0}, "gradderiv"
    )
    still = [last_states(model, RIGHT)[0] for _ in range(2)]
    assert_close(*still, rtol=0, atol=0)
    model.train()
    assert (last_states(model, RIGHT)[0] - still[0]).abs().max() > 1e-3


def test_an_implementation_may_be_set_later():
    model = build("llama", GROUPED, "eager")
    before = last_states(model, LEFT)[0]
    model.set_attn_implementation("gradderiv")
    assert model.config._attn_implementation == "gradderiv"
    assert_close(last_states(model, LEFT)[0], before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["sdpa", "my-sdpa", "flash_mine", "org/kernel", "paged|mine", "eager", ""])
def test_a_name_that_means_something_else_is_refused(name):
    with pytest.raises(InputError, match="no meaning for"):
        register(name)


def test_another_name():
    assert register("twice-differentiable") == "twice-differentiable"
    build("llama", GROUPED, "twice-differentiable")


def test_a_model_with_an_attention_of_its_own_is_refused():
    model = build("bloom", SHORT | {"hidden_size": 24, "n_layer": 1, "n_head": 4}, "gradderiv")
    with pytest.raises(InputError, match="BloomConfig"):
        model(IDS)
    assert attention_mask(batch_size=1, q_length=3, kv_length=3, config=None, allow_is_causal_skip=False).dtype == torch.bool  # fmt: skip


@pytest.mark.parametrize("argument", ["cache", "indices", "block_indices"])
def test_a_part_of_the_keys_is_refused(argument):
    x = torch.randn(1, 2, 3, 4)
    with pytest.raises(InputError, match=f"{argument}="):
        attention_forward(torch.nn.Identity(), x, x, x, None, **{argument: torch.ones(1)})


def test_nothing_of_transformers_is_imported_before_it_is_asked_for():
    code = "import sys, gradderiv.nn, gradderiv.nn.transformers as t; before = 'transformers' in sys.modules; t.register(); print(before, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "True"]
