"""The way back through LlamaAttention: what its case says is computed, and is so."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from tables import rows
from transformers import AutoConfig, AutoModel
from transformers.models.llama.modeling_llama import repeat_kv

from gradderiv.casebook import _llama_cache as cache
from gradderiv.casebook import _llama_parts as parts
from gradderiv.casebook import llama_attention as case
from gradderiv.casebook import tell
from gradderiv.checks import models
from gradderiv.checks.models import handed
from gradderiv.rules.heads import repeat_heads, sum_heads


@pytest.fixture(scope="module")
def text() -> str:
    return tell("llama-attention")


@pytest.fixture(scope="module")
def flat(text) -> str:
    return " ".join(text.split())


def test_it_is_told_in_79_columns(text):
    assert tell("llama-attention") == text
    assert max(map(len, text.splitlines())) <= 79


# ---------------------------------------------------------------- the module


def test_every_parameter_of_the_module_is_in_the_table(text, flat):
    table = {name: row for name, *row in rows(text, "of the module")}
    parameters = {n for n, _ in case.build(case.LLAMA).module.named_parameters()}
    assert set(table) == {"output", "hidden_states", "cos", "sin", *parameters}
    for _, ships, wide, exact in table.values():
        assert float(ships) < 1e-5
        assert float(wide) < 1e-14
        assert exact == "equal"
    assert f"transformers {transformers.__version__}" in flat


def test_what_is_off_without_the_option_is_the_softmax_of_the_module():
    built = case.build(case.LLAMA)
    plain = case.without(case.LLAMA, "softmax_dtype")
    assert max(case.errors(plain, built).values()) > 1e-9
    with case.Wide():
        assert max(case.errors(plain, built).values()) < 1e-14
    assert max(case.errors(case.without(case.LLAMA, "mask"), built).values()) > 0.01


# ---------------------------------------------------------------- heads and lengths


def test_heads_and_lengths_change_by_themselves(text):
    table = {name: row for name, *row in rows(text, "Q K projected")}
    for name, (Q, K, every, scores) in table.items():
        h, n_q = (int(x) for x in re.findall(r"\d+", Q)[1:3])
        h_kv, n_new = (int(x) for x in re.findall(r"\d+", K)[1:3])
        n_k = int(re.findall(r"\d+", every)[2])
        assert (h_kv < h) == name.startswith("GQA")
        assert n_new == n_q
        assert (n_k != n_q) == name.endswith("cache")
        assert scores == f"({parts.B}, {h}, {n_q}, {n_k})"
    assert len(table) == 4


def test_repeat_kv_is_repeat_heads_and_its_gradient_the_sum_over_the_group(flat):
    X, dY = parts.draw((2, 2, 5, 6), (2, 6, 5, 6))
    X.requires_grad_()
    Y = repeat_kv(X, 3)
    assert torch.equal(Y, repeat_heads(X, 6))
    assert torch.allclose(torch.autograd.grad(Y, X, dY)[0], sum_heads(dY, 2))
    equal, tiled = parts.group_sum()
    assert equal
    assert tiled > 0.1
    assert "exactly that sum" in flat


# ---------------------------------------------------------------- rotation, types, masks


def test_rotation(flat):
    r = parts.rotation()
    assert r.one_angle == r.permuted == 0
    assert r.norm < 1e-14
    assert r.passes
    assert min(r.any_tables, r.neighbours) > 0.1
    assert "rope(dY, cos, −sin), bit for bit" in flat


def test_the_upcast_changes_gradients_and_no_value(text):
    found, same = parts.in_bfloat16()
    assert same
    float32, torchs, written = found["float32"], found["torch"], found["written"]
    assert float32[0] == torchs[0]
    assert float32[3] == torchs[3]  # dV = Pᵀ dO: of the same P
    for i in (1, 2):
        assert 1 < torchs[i] / float32[i] < 1.2
        assert 1.2 < written[i] / float32[i] < 3
    assert [row[0] for row in rows(text, "in bfloat16")] == [
        "softmax in float32", "torch.softmax", "exp(S − max)/Σ",
    ]  # fmt: skip


def test_the_three_softmaxes_are_one_in_float64():
    S = parts.draw((3, 5))[0]
    assert torch.allclose(parts.by_torch(S), parts.written_out(S), rtol=1e-14)
    assert torch.allclose(parts.by_torch(S), parts.in_float32(S), rtol=1e-6)


def test_rows_that_may_attend_to_nothing():
    r = parts.leak()
    assert r.weights == pytest.approx((1 / parts.N, 1 / parts.N), rel=1e-15)
    assert min(r.dV, r.dV_tokens, r.dQ) > 0.1
    assert r.moved == r.asked_nothing == 0


def test_transformers_hands_rows_of_the_lowest_float_where_the_padding_is_left():
    config = AutoConfig.for_model(
        "llama",
        num_hidden_layers=1,
        vocab_size=11,
        use_cache=False,
        **case.LLAMA.config,
        attn_implementation="eager",
    )
    model = AutoModel.from_config(config).eval()
    seen = torch.ones(2, parts.N, dtype=torch.long)
    seen[0, : parts.N - parts.PAST] = 0
    inputs = {"inputs_embeds": torch.randn(2, parts.N, config.hidden_size), "attention_mask": seen}
    mask = handed(model, model.get_submodule(case.LLAMA.path), inputs)["attention_mask"]
    empty = (mask == torch.finfo(mask.dtype).min).all(-1)[:, 0]
    assert empty.tolist() == [[True, True, False, False, False], [False] * 5]


# ---------------------------------------------------------------- the cache


def test_with_a_cache_the_gradients_are_those_of_one_pass(flat):
    equal, cut = cache.cached()
    assert equal
    assert "are exactly those of one pass" in flat
    assert max(cut[n] for n in ("Y", "W_Q", "W_O")) < 1e-14
    assert min(cut[n] for n in ("X", "W_K", "W_V")) > 0.1


def test_the_cache_of_transformers_holds_rotated_keys(monkeypatch):
    assert max(cache.of_transformers().values()) < 1e-5
    project = cache.project

    def unrotated(X, W_K, W_V, cos, sin):
        return project(X, W_K, W_V, torch.ones_like(cos), torch.zeros_like(sin))

    monkeypatch.setattr(cache, "project", unrotated)
    assert min(cache.of_transformers().values()) > 0.01


@pytest.mark.parametrize("spoiled", ["cos", "order"])
def test_a_cache_that_is_carried_back_wrongly_is_seen(monkeypatch, spoiled):
    right = cache.carried_back

    def wrong(made, dK, dV):
        if spoiled == "cos":  # keys as if they had not been rotated
            return right(
                made._replace(
                    of_rope=made.of_rope._replace(
                        cos=torch.ones_like(made.of_rope.cos), sin=torch.zeros_like(made.of_rope.sin)
                    )
                ),
                dK,
                dV,
            )
        return right(made, dV, dK)

    monkeypatch.setattr(cache, "carried_back", wrong)
    assert not cache.cached()[0]


# ---------------------------------------------------------------- products and embeddings


def test_products_that_broadcast(flat):
    C, dB, equal, off = parts.product()
    assert (C, dB) == ((10, 5, 9, 9), (5, 4, 9))
    assert equal
    assert off < 1e-14
    assert parts.both_repeated()
    assert parts.article_shape() == (1000, 500, 99, 99)
    assert "1000×500×99×11 by 500×11×99 is 1000×500×99×99" in flat


def test_repeated_tokens_add_up(flat):
    counts, equal, off = parts.embedded()
    assert counts == [(t == parts.TOKENS).sum().item() for t in range(parts.N_VOCAB)]
    assert equal
    assert off < 1e-14
    assert "token 1 stands 5 times" in flat


# ---------------------------------------------------------------- otherwise


def test_without_transformers_it_says_what_to_install_and_tells_the_rest(monkeypatch, flat):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    told = " ".join(case.tell().split())
    assert "pip install 'gradderiv[peers]'" in told
    rest = flat[flat.index("«q_len is kv_len") :]
    rest = re.sub(r" With transformers' DynamicCache.*?keys after RoPE\.", "", rest)
    assert told.endswith(rest)


def test_another_seed_tells_the_same_of_other_numbers(monkeypatch, text):
    monkeypatch.setattr(case, "build", lambda system: models.build(system, 7))
    draw = parts.draw
    monkeypatch.setattr(parts, "draw", lambda *sizes, seed=0: draw(*sizes, seed=seed + 11))
    other = case.tell()
    assert other != text
    words = [re.findall(r"[A-Za-z]{3,}", t) for t in (other, text)]
    assert words[0] == words[1]
