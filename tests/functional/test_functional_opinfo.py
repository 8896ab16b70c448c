"""PyTorch's own samples for scaled_dot_product_attention, those that its tests run: value, gradients and second order are its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_cases import naive
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from gradderiv.functional import attention


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """(Q, K, V), keyword arguments."""
    path = tmp_path_factory.mktemp("samples") / "samples.pt"
    script = Path(__file__).with_name("opinfo_samples.py")
    subprocess.run([sys.executable, str(script), str(path)], check=True, capture_output=True)
    return torch.load(path)


def given(sample):
    tensors, kwargs = sample
    mask = kwargs.get("attn_mask")
    x = [t.clone().requires_grad_() for t in (*tensors, *([] if mask is None else [mask]))]
    return x, {k: v for k, v in kwargs.items() if k != "attn_mask"}


def orders(function, x, kwargs):
    O = function(*x, **kwargs)
    first = torch.autograd.grad(O.sin().sum(), x, create_graph=True)
    second = torch.autograd.grad(sum(g.cos().sum() for g in first), x)
    return O, first, second


def test_there_are_as_many_samples_as_ever(samples):
    """3-D, 4-D, broadcast heads, causal or not, with dropout or not, each with a float mask or none: a change is worth a look."""
    assert len(samples) == 25
    assert {t[0].dim() for t, _ in samples} == {3, 4}
    assert {kwargs["is_causal"] for _, kwargs in samples} == {True, False}
    assert {kwargs["dropout_p"] for _, kwargs in samples} == {0.0, 0.5}
    assert sum("attn_mask" in kwargs for _, kwargs in samples) == 1


def test_value_gradients_and_second_order_are_pytorchs(samples):
    plain = [given(s) for s in samples if s[1]["dropout_p"] == 0]
    assert len(plain) == 13
    for x, kwargs in plain:
        with sdpa_kernel(SDPBackend.MATH):
            theirs = orders(scaled_dot_product_attention, x, kwargs)
        assert_close(orders(attention, x, kwargs), theirs, rtol=1e-11, atol=1e-11)
        assert_close(attention(*x, **kwargs), scaled_dot_product_attention(*x, **kwargs))
        other = orders(attention, x, {**kwargs, "is_causal": not kwargs["is_causal"]})
        with pytest.raises(AssertionError):  # the twin
            assert_close(other, theirs, rtol=1e-11, atol=1e-11)


def test_dropout_keeps_as_often_and_means_the_same(samples):
    """Another generator than PyTorch's: other weights fall. What is kept gives the value; how many, and the mean, are theirs."""
    dropping = [given(s) for s in samples if s[1]["dropout_p"] > 0]
    assert len(dropping) == 12
    for x, kwargs in dropping:
        p, causal = kwargs["dropout_p"], kwargs["is_causal"]
        O, W = attention(*x, **kwargs, return_weights=True)
        seen = torch.ones(W.shape, dtype=torch.bool)
        seen = seen.tril() if causal else seen
        assert_close(O, naive(*x, mask=seen, keep=W != 0, dropout_p=p)[0], rtol=0, atol=1e-12)
        share, count = float((W != 0)[seen].double().mean()), int(seen.sum())
        assert abs(share - (1 - p)) <= 5 * (p * (1 - p) / count) ** 0.5
        both = [torch.stack([f(*x, **kwargs).detach() for _ in range(100)]) for f in (attention, scaled_dot_product_attention)]  # fmt: skip
        error = (sum(t.var(0) for t in both) / 100).sqrt()
        assert ((both[0].mean(0) - both[1].mean(0)).abs() <= 5 * error + 1e-12).all()
