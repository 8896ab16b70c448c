"""Which layout a fused projection is in: found, not assumed."""

from __future__ import annotations

import pytest
import torch

from gradderiv.checks.identify import identify_layout
from gradderiv.errors import InputError
from gradderiv.examples.real_systems import model_of
from gradderiv.rules.layouts import LAYOUTS, Parts, fuse


def weights(h=4, h_kv=4, d=3):
    return Parts(torch.randn(5, h * d), torch.randn(5, h_kv * d), torch.randn(5, h_kv * d))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "grouped"])
def test_each_layout_is_found_by_its_weights(layout):
    parts = weights()
    found = identify_layout(fuse(*parts, layout=layout, n_heads=4), parts, n_heads=4)
    assert found.layouts == [layout]
    assert str(found).startswith(layout)
    assert "read otherwise it is off by up to" in str(found)


@pytest.mark.parametrize("layout", ["contiguous", "grouped", "head-last"])
def test_with_shared_heads(layout):
    parts = weights(4, 2)
    fused = fuse(*parts, layout=layout, n_heads=4, n_kv_heads=2)
    assert identify_layout(fused, parts, n_heads=4, n_kv_heads=2).layouts == [layout]


def test_none_of_them():
    parts = weights()
    fused = fuse(*parts, layout="contiguous", n_heads=4).flip(-1)
    found = identify_layout(fused, parts, n_heads=4)
    assert found.layouts == []
    assert str(found).startswith("none of the layouts")


def test_one_head_has_one_layout_under_three_names():
    parts = weights(1, 1)
    fused = fuse(*parts, layout="contiguous", n_heads=1)
    assert identify_layout(fused, parts, n_heads=1).layouts == ["contiguous", "interleaved", "head-last"]


def test_models_by_their_own_code():
    gpt2 = model_of("GPT2").get_submodule("h.0.attn")
    read = lambda X: gpt2.c_attn(X).split(gpt2.split_size, dim=-1)  # noqa: E731
    assert identify_layout(gpt2.c_attn, read, n_heads=2).layouts == ["contiguous"]

    neox = model_of("GPTNeoX").get_submodule("layers.0.attention")

    def cut(X):
        fused = neox.query_key_value(X)
        parts = fused.view(*fused.shape[:-1], -1, 3 * neox.head_size).chunk(3, dim=-1)
        return [t.flatten(-2) for t in parts]

    assert identify_layout(neox.query_key_value, cut, n_heads=2).layouts == ["interleaved"]

    torchs = torch.nn.MultiheadAttention(12, 3)
    chunks = lambda X: torch.nn.functional.linear(X, torchs.in_proj_weight, torchs.in_proj_bias).chunk(3, -1)  # noqa: E731
    assert identify_layout(torchs, chunks, n_heads=3).layouts == ["contiguous"]


def test_misuse_is_refused():
    parts = weights()
    fused = fuse(*parts, layout="contiguous", n_heads=4)
    with pytest.raises(InputError, match="heads side by side"):
        identify_layout(fused, [t.unflatten(-1, (4, 3)) for t in parts], n_heads=4)
    with pytest.raises(InputError, match="one fused weight"):
        identify_layout(torch.nn.TransformerEncoderLayer(8, 2), parts, n_heads=2)
