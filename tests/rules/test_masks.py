"""Every mask against a loop in plain Python and against the systems that have it; and a float mask taken apart."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from gradderiv.errors import DtypeError, InputError
from gradderiv.rules.masks import (
    boolean,
    causal,
    documents,
    hidden,
    packed,
    padding,
    read_additive,
    window,
)
from gradderiv.rules.softmax import softmax

SIZES = [(5, 5), (3, 7), (7, 3), (1, 4), (4, 1)]
ALIGNMENTS = ["upper-left", "lower-right"]


def looped(n_q, n_k, sees):
    return torch.tensor([[bool(sees(i, j)) for j in range(n_k)] for i in range(n_q)])


def full(mask, *size):
    return mask.on(size).expand(size)


# ---------------------------------------------------------------- against loops


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("size", SIZES)
def test_causal(size, alignment):
    n_q, n_k = size
    o = 0 if alignment == "upper-left" else n_k - n_q
    assert torch.equal(full(causal(alignment), *size), looped(*size, lambda i, j: j <= i + o))
    if n_q != n_k:
        other = next(a for a in ALIGNMENTS if a != alignment)
        assert not torch.equal(full(causal(alignment), *size), full(causal(other), *size))


@pytest.mark.filterwarnings("ignore:Lower right causal bias will produce NaNs:UserWarning")
@pytest.mark.parametrize("size", SIZES)
def test_causal_is_torchs(size):
    for ours, theirs in (("upper-left", causal_upper_left), ("lower-right", causal_lower_right)):
        assert torch.equal(full(causal(ours), *size), theirs(*size)._materialize("cpu"))
    Q, K, V = (torch.randn(n, 4, dtype=torch.float64) for n in (size[0], size[1], size[1]))
    expected = functional.scaled_dot_product_attention(Q, K, V, is_causal=True)
    P, _ = softmax(Q @ K.mT / 2, mask=causal("upper-left").on(size))
    torch.testing.assert_close(P @ V, expected)


@pytest.mark.parametrize(("left", "right"), [(0, 0), (2, 0), (1, 2), (-1, 0), (-1, 1), (0, -1), (-1, -1)])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("size", SIZES)
def test_window(size, alignment, left, right):
    o = 0 if alignment == "upper-left" else size[1] - size[0]

    def sees(i, j):
        return (left < 0 or j >= i + o - left) and (right < 0 or j <= i + o + right)

    found = full(window(left, right, alignment), *size)
    assert torch.equal(found, looped(*size, sees))
    if (left, right) == (-1, 0):
        assert torch.equal(found, full(causal(alignment), *size))
    if left >= 0 and size == (5, 5):
        assert not torch.equal(found, full(window(left + 1, right, alignment), *size))


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_belongs_to_the_first_axis(side):
    lengths, size = [0, 3, 7], (3, 2, 5, 7)
    M = padding(lengths, side=side).on(size)
    assert M.shape == (3, 1, 1, 7)
    for b, length in enumerate(lengths):
        expected = looped(5, 7, lambda i, j, n=length: j < n if side == "right" else j >= 7 - n)
        for head in M.expand(size)[b]:
            assert torch.equal(head, expected)
    other = padding(lengths, side="left" if side == "right" else "right").on(size)
    assert not torch.equal(M, other)


def test_one_length_and_lengths_of_two_axes():
    assert torch.equal(full(padding(2), 3, 4), looped(3, 4, lambda i, j: j < 2))
    M = padding(torch.tensor([[1, 2, 3]])).on((5, 3, 4, 6))
    assert M.shape == (1, 3, 1, 6)
    assert M.expand(5, 3, 4, 6)[4, 1, 0].tolist() == [True, True, False, False, False, False]


def test_padding_of_left_and_right_is_that_of_a_model():
    """attention_mask of a tokenizer, as transformers has it."""
    kept = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    M = padding(kept.sum(-1), side="left").on((2, 1, 4, 4))
    assert torch.equal(M[:, 0, 0], kept.bool())
    assert not torch.equal(padding(kept.sum(-1)).on((2, 1, 4, 4))[:, 0, 0], kept.bool())


def test_packed_is_block_diagonal_and_causal_in_every_document():
    lengths = [2, 1, 0, 4]
    blocks = torch.block_diag(*(torch.ones(n, n) for n in lengths)).bool()
    assert torch.equal(full(packed(lengths), 7, 7), blocks)
    both = full(packed(lengths) & causal(), 7, 7)
    assert torch.equal(both, torch.block_diag(*(torch.ones(n, n).tril() for n in lengths)).bool())
    assert not torch.equal(both, full(packed([2, 2, 3]) & causal(), 7, 7))


def test_documents_by_their_ids():
    q, k = [0, 0, 5, 2], [5, 0, 2, 2, 0]
    found = full(documents(q, k), 4, 5)
    assert torch.equal(found, looped(4, 5, lambda i, j: q[i] == k[j]))
    batch = torch.tensor([[0, 0, 1], [0, 1, 1]])
    M = documents(batch).on((2, 4, 3, 3))
    assert M.shape == (2, 1, 3, 3)
    for b in range(2):
        assert torch.equal(M[b, 0], full(documents(batch[b]), 3, 3))
    assert torch.equal(full(documents([0, 0, 1, 2, 2, 2]), 6, 6), full(packed([2, 1, 3]), 6, 6))


def test_both_polarities():
    T = torch.tensor([[True, False, True]])
    assert torch.equal(boolean(T).on((2, 3)), T)
    assert torch.equal(hidden(T).on((2, 3)), ~T)
    assert torch.equal((~boolean(T)).on((2, 3)), hidden(T).on((2, 3)))
    layer = torch.nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64)
    X, masked = torch.randn(1, 3, 4, dtype=torch.float64), torch.tensor([[False, True, False]])
    _, P = layer(X, X, X, key_padding_mask=masked, average_attn_weights=False)
    assert torch.equal(P > 0, hidden(masked[:, None, None]).on((1, 2, 3, 3)).expand(1, 2, 3, 3))
    assert not torch.equal(P > 0, boolean(masked[:, None, None]).on((1, 2, 3, 3)).expand(1, 2, 3, 3))


# ---------------------------------------------------------------- a float mask


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_float_mask_is_what_hides_and_what_moves(dtype):
    low = torch.finfo(dtype).min
    A = torch.tensor([[0.0, -torch.inf, 1.5, low], [-3.0, low / 2, low / 4, -10000.0]], dtype=dtype)
    mask, bias = read_additive(A.requires_grad_())
    assert mask.tolist() == [[True, False, True, False], [True, False, True, True]]
    assert torch.equal(bias, torch.where(mask, A, 0.0))
    (g,) = torch.autograd.grad(bias, A, torch.ones_like(bias))
    assert torch.equal(g, mask.to(dtype))


def test_what_a_float_mask_hides_is_what_it_hid():
    S = torch.randn(3, 4, dtype=torch.float64)
    for fill in (-torch.inf, torch.finfo(torch.float64).min):
        A = torch.zeros(3, 4, dtype=torch.float64).masked_fill(~causal("upper-left").on((3, 4)), fill)
        A[1, 0] = 0.7
        mask, bias = read_additive(A)
        torch.testing.assert_close(softmax(S + bias, mask=mask)[0], torch.softmax(S + A, -1))
    mask, bias = read_additive(A.clamp(min=-10000.0))  # a finite number is a bias, whatever was meant
    assert mask.all()
    assert bool((bias == -10000).any())


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_float_mask_that_is_none(wrong):
    with pytest.raises(InputError, match="additive mask holds finite numbers and -inf"):
        read_additive(torch.tensor([0.0, wrong]))
    with pytest.raises(DtypeError, match="floating-point"):
        read_additive(torch.ones(3, 4, dtype=torch.bool))
