"""Bad input: what every rule says to it, and the main messages word for word."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from rule_calls import SMALL, call

from gradderiv.errors import DtypeError, GradderivError, InputError
from gradderiv.rules import blockdiag
from gradderiv.rules.attention import attention
from gradderiv.rules.linear import linear
from gradderiv.rules.multihead import multihead
from gradderiv.rules.softmax import softmax

FOUR_PARTS = re.compile(r"[^\n]+\n  came:  [^\n]+\n  cause: [^\n]+\n  do:    [^\n]+")


def r(*shape):
    return torch.randn(shape, dtype=torch.float64)


X, W = r(2, 3, 8), {n: r(8, 8) for n in ("Q", "K", "V", "O")}
Q, K, V = r(2, 3, 4), r(2, 5, 4), r(2, 5, 6)
FLAT = r(3, 8)


def layer(**changes):
    given = {"X": X, "W_Q": W["Q"], "W_K": W["K"], "W_V": W["V"], "W_O": W["O"], "n_heads": 2} | changes
    return multihead(**given)


WORDS = {
    "softmax of a list": (
        lambda: softmax([[1.0]]),
        DtypeError,
        "softmax needs S as a tensor\n  came:  list\n  cause: a list or a NumPy array was passed\n  do:    torch.as_tensor(S)",
    ),
    "softmax of integers": (
        lambda: softmax(torch.ones(2, 2, dtype=torch.int64)),
        DtypeError,
        "softmax needs floating-point tensors\n  came:  S has dtype torch.int64\n"
        "  cause: integers have no derivative; token numbers must pass through an embedding first\n"
        "  do:    S.double(), or look up its embedding",
    ),
    "softmax of nothing": (
        lambda: softmax(r(2, 0)),
        InputError,
        "softmax needs tensors with elements\n  came:  S has shape (2, 0)\n  cause: an empty batch or sequence\n"
        "  do:    skip the call when there is nothing to attend to",
    ),
    "an additive mask": (
        lambda: attention(Q, K, V, mask=torch.zeros(3, 5)),
        DtypeError,
        "attention needs a boolean mask, True = may attend\n  came:  dtype torch.float32\n"
        "  cause: an additive mask of 0 and -inf, or an attention_mask of 0 and 1\n"
        "  do:    read an additive mask by gradderiv.rules.masks.read_additive, and pass 0/1 as mask.bool()",
    ),
    "a transposed mask": (
        lambda: attention(Q, K, V, mask=torch.ones(5, 3, dtype=torch.bool)),
        InputError,
        "attention needs a mask that broadcasts to the scores (2, 3, 5)\n  came:  mask (5, 3)\n"
        "  cause: queries and keys exchanged, or no axis for the heads\n"
        "  do:    the last two axes are n_q, n_k; a mask per sequence needs a head axis: mask.unsqueeze(-3)",
    ),
    "widths of queries and keys": (
        lambda: attention(Q, r(2, 5, 3), V),
        InputError,
        "attention needs Q (..., n_q, d_k), K (..., n_k, d_k) and V (..., n_k, d_v)\n"
        "  came:  Q (2, 3, 4), K (2, 5, 3), V (2, 5, 6)\n  cause: queries and keys of different widths\n"
        "  do:    Q and K share their last axis, d_k",
    ),
    "numbers of keys and values": (
        lambda: attention(Q, K, r(2, 4, 6)),
        InputError,
        "attention needs Q (..., n_q, d_k), K (..., n_k, d_k) and V (..., n_k, d_v)\n"
        "  came:  Q (2, 3, 4), K (2, 5, 4), V (2, 4, 6)\n  cause: another number of keys than of values\n"
        "  do:    K and V share their next to last axis, n_k",
    ),
    "grouped heads without repetition": (
        lambda: attention(r(4, 3, 4), r(2, 5, 4), r(2, 5, 6)),
        InputError,
        "attention needs Q (..., n_q, d_k), K (..., n_k, d_k) and V (..., n_k, d_v)\n"
        "  came:  Q (4, 3, 4), K (2, 5, 4), V (2, 5, 6)\n"
        "  cause: different leading axes (batch, heads); grouped key/value heads are not repeated by this rule\n"
        "  do:    K.repeat_interleave(h // h_kv, -3), or K.expand(…)",
    ),
    "two precisions": (
        lambda: attention(Q.float(), K, V),
        DtypeError,
        "attention needs one dtype\n  came:  Q torch.float32, K torch.float64, V torch.float64\n"
        "  cause: a module and its input in different precisions, or autocast around a rule\n"
        "  do:    cast the inputs to the dtype of the weights",
    ),
    "nn.Linear's weight": (
        lambda: linear(r(3, 8), r(4, 8)),
        InputError,
        "linear needs X (..., n, d) and W (d, e)\n  came:  X (3, 8), W (4, 8)\n"
        "  cause: W is the transpose of nn.Linear.weight, which is (e, d)\n  do:    pass layer.weight.mT",
    ),
    "the bias of another projection": (
        lambda: linear(r(3, 8), r(8, 4), r(8)),
        InputError,
        "linear needs b (4,)\n  came:  b (8)\n  cause: the bias of another projection\n"
        "  do:    one entry for each column of W",
    ),
    "heads that do not divide": (
        lambda: layer(n_heads=3),
        InputError,
        "multihead needs n_heads to divide the columns of W_Q, and n_kv_heads those of W_K and W_V and n_heads\n"
        "  came:  n_heads=3, n_kv_heads=3, W_Q (8, 8), W_K (8, 8), W_V (8, 8)\n"
        "  cause: the width of one head passed for the number of heads, or a fused W_QKV\n"
        "  do:    n_heads is h; split a fused matrix first",
    ),
    "a transposed weight": (
        lambda: layer(W_Q=r(6, 8)),
        InputError,
        "multihead needs W_Q with 8 rows (d_model of X)\n  came:  X (2, 3, 8), W_Q (6, 8)\n"
        "  cause: W_Q is the transpose of nn.Linear.weight\n  do:    pass layer.weight.mT",
    ),
    "grouped weights without n_kv_heads": (
        lambda: layer(W_K=r(8, 4)),
        InputError,
        "multihead needs heads of W_Q and W_K of equal width d_k\n"
        "  came:  n_heads=2, n_kv_heads=2, W_Q (8, 8), W_K (8, 4)\n  cause: grouped key/value heads without n_kv_heads\n"
        "  do:    pass n_kv_heads, the number of heads in W_K",
    ),
    "a batch in the block-diagonal form": (
        lambda: blockdiag.layer(X, *W.values(), n_heads=2),
        InputError,
        "blockdiag needs matrices: X (n_q, d_model)\n  came:  X (2, 3, 8)\n"
        "  cause: a batch axis; the formulation is stated for one sequence\n"
        "  do:    loop over the batch, or call gradderiv.rules.multihead",
    ),
    "the gradient by a source that is X": (
        lambda: blockdiag.grad_X_kv(FLAT, *W.values(), r(3, 8), n_heads=2),
        InputError,
        "grad_X_kv needs X_kv, the source of keys and values\n  came:  X_kv=None\n"
        "  cause: self-attention, where X is the source and grad_X holds all three paths\n  do:    call grad_X",
    ),
    "a cotangent of another shape": (
        lambda: blockdiag.grad_W_Q(FLAT, *W.values(), torch.tensor(1.0), n_heads=2),
        InputError,
        "grad_W_Q needs dY (3, 8), the shape of Y\n  came:  dY ()\n"
        "  cause: the cotangent of another output, or a scalar loss\n"
        "  do:    pass ∂ℓ/∂Y, one entry for each entry of Y",
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_the_words(name):
    program, kind, words = WORDS[name]
    with pytest.raises(kind) as caught:
        program()
    assert str(caught.value) == words


BAD = {
    "vector": (lambda: attention(r(4), r(5, 4), r(5, 6)), InputError),
    "leading axes": (lambda: attention(r(3, 3, 4), K, V), InputError),
    "mask as a list": (lambda: attention(Q, K, V, mask=[[True]]), DtypeError),
    "mask of integers": (lambda: softmax(r(3, 5), mask=torch.ones(3, 5, dtype=torch.int64)), DtypeError),
    "mask too long": (lambda: softmax(r(3, 5), mask=torch.ones(3, 6, dtype=torch.bool)), InputError),
    "mask with more axes": (lambda: softmax(r(3, 5), mask=torch.ones(2, 3, 5, dtype=torch.bool)), InputError),
    "bias transposed": (lambda: attention(Q, K, V, bias=r(5, 3)), InputError),
    "bias with more axes": (lambda: attention(Q, K, V, bias=r(4, 2, 3, 5)), InputError),
    "bias of integers": (lambda: attention(Q, K, V, bias=torch.ones(3, 5, dtype=torch.int32)), DtypeError),
    "bias in another precision": (lambda: attention(Q, K, V, bias=r(3, 5).float()), DtypeError),
    "an array": (lambda: linear(np.ones((3, 8)), r(8, 4)), DtypeError),
    "None": (lambda: linear(None, r(8, 4)), (DtypeError, AttributeError)),
    "a vector for X": (lambda: linear(r(8), r(8, 4)), InputError),
    "three axes in W": (lambda: linear(r(3, 8), r(2, 8, 4)), InputError),
    "booleans": (lambda: linear(r(3, 8) > 0, r(8, 4)), DtypeError),
    "no heads": (lambda: layer(n_heads=0), InputError),
    "negative heads": (lambda: layer(n_heads=-2), InputError),
    "heads as a float": (lambda: layer(n_heads=2.0), InputError),
    "kv heads that do not divide": (lambda: layer(n_heads=4, n_kv_heads=3), InputError),
    "more kv heads than heads": (lambda: layer(n_heads=2, n_kv_heads=4), InputError),
    "W_K of another source": (lambda: layer(X_kv=r(2, 5, 6)), InputError),
    "X_kv of another batch": (lambda: layer(X_kv=r(3, 5, 8)), InputError),
    "X_kv without a batch": (lambda: layer(X_kv=r(5, 8)), InputError),
    "X as a vector": (lambda: layer(X=r(8)), InputError),
    "W_O too short": (lambda: layer(W_O=r(6, 8)), InputError),
    "W_V as a vector": (lambda: layer(W_V=r(8)), InputError),
    "W_Q as a number": (lambda: layer(W_Q=torch.tensor(1.0, dtype=torch.float64)), InputError),
    "W_K as a number": (lambda: layer(W_K=torch.tensor(1.0, dtype=torch.float64)), InputError),
    "b_Q transposed": (lambda: layer(b_Q=r(1, 8)), InputError),
    "b_O of another width": (lambda: layer(b_O=r(7)), InputError),
    "an empty sequence": (lambda: layer(X=r(2, 0, 8)), InputError),
    "a list of lists": (lambda: layer(X=X.tolist()), DtypeError),
    "half of the layer in float32": (lambda: layer(W_O=W["O"].float()), DtypeError),
    "a mask without heads": (lambda: layer(mask=torch.ones(4, 3, 3, dtype=torch.bool)), InputError),
    "blockdiag: mask of floats": (
        lambda: blockdiag.layer(FLAT, *W.values(), n_heads=2, mask=r(3, 3)),
        DtypeError,
    ),
    "blockdiag: mask per head": (
        lambda: blockdiag.layer(FLAT, *W.values(), n_heads=2, mask=torch.ones(2, 3, 3, dtype=torch.bool)),
        InputError,
    ),
    "blockdiag: X_kv with a batch": (
        lambda: blockdiag.layer(FLAT, *W.values(), n_heads=2, X_kv=X),
        InputError,
    ),
    "blockdiag: grouped heads": (
        lambda: blockdiag.grad_W_K(FLAT, W["Q"], r(8, 4), r(8, 4), W["O"], r(3, 8), n_heads=2),
        InputError,
    ),
    "blockdiag: dY of another length": (
        lambda: blockdiag.grad_b_O(FLAT, *W.values(), r(4, 8), n_heads=2),
        InputError,
    ),
    "blockdiag: dY missing a batch": (
        lambda: blockdiag.grad_X(FLAT, *W.values(), r(8), n_heads=2),
        InputError,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_four_parts(name):
    program, kind = BAD[name]
    with pytest.raises(kind) as caught:
        program()
    assert isinstance(caught.value, GradderivError)
    assert FOUR_PARTS.fullmatch(str(caught.value)), str(caught.value)


def test_the_block_diagonal_form_does_not_advise_what_it_does_not_take():
    """It has no n_kv_heads: a layer with grouped heads must be told something else."""
    with pytest.raises(InputError, match="equal width h·d_k") as caught:
        blockdiag.grad_W_K(FLAT, W["Q"], r(8, 4), W["V"], W["O"], r(3, 8), n_heads=2)
    assert "pass n_kv_heads" not in str(caught.value)


ALONE = ("softmax", "cap")  # have one tensor, whose precision has none to differ from


LOOKED_AT = [
    "linear", "softmax", "attention", "multihead", "matmul", "layer", "blocks", "grad_W_Q", "grad_X_kv", "attend", "fused",
    "rope", "rms_norm", "scores", "cap", "cool", "softmax_lse", "append", "add_bias", "add_alibi", "add_relative",
    "graph_attention",
]  # fmt: skip


@pytest.mark.parametrize("name", LOOKED_AT)
@pytest.mark.parametrize("spoil", ["integer", "empty", "list", "precision"])
def test_every_tensor_argument_is_looked_at(name, spoil):
    """One argument after another is spoilt; each time the error names it."""
    function, args, kwargs = call(name, lambda *s: torch.randn(s), SMALL)
    bad = {
        "integer": lambda t: t.long(),
        "empty": lambda t: t[..., :0],
        "list": lambda t: t.tolist(),
        "precision": lambda t: t.double(),
    }[spoil]
    spoilt = 0
    for where in [*range(len(args)), *kwargs]:
        value = args[where] if isinstance(where, int) else kwargs[where]
        if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
            continue
        if name.startswith("grad_") and where == len(args) - 1:
            continue  # the cotangent's shape is looked at, see above
        if spoil == "precision" and name in ALONE:
            continue
        new_args = tuple(bad(a) if i == where else a for i, a in enumerate(args))
        new_kwargs = {k: bad(v) if k == where else v for k, v in kwargs.items()}
        with pytest.raises((InputError, DtypeError)) as caught:
            function(*new_args, **new_kwargs)
        assert FOUR_PARTS.fullmatch(str(caught.value))
        spoilt += 1
    assert spoilt or (spoil == "precision" and name in ALONE)


def test_twin_good_input_is_not_refused():
    for name in (
        "linear",
        "softmax",
        "attention",
        "multihead",
        "layer",
        "grad_X_kv",
        "attend",
        "fused",
        "add_relative",
    ):
        function, args, kwargs = call(name, lambda *s: torch.randn(s), SMALL)
        function(*args, **kwargs)
    layer(n_heads=8)
    layer(n_heads=4, n_kv_heads=2, W_K=r(8, 4), W_V=r(8, 4))
    softmax(torch.tensor([1.0]))
    attention(Q, K, V, mask=torch.tensor(True), scale=0.0)
