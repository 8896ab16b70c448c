"""The operations of the table, one case each or more: {name: (function, shapes of its arguments)}."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch

aten = torch.ops.aten
MASK = torch.tensor([[True, False, True], [False, True, True]])
LATER, EARLIER = torch.tensor([3, 1]), torch.tensor([1, 0])
ROWS, COLUMN = torch.tensor([1, 0, 1, 1]), torch.tensor([[2, 0], [1, 1]])
BAGS = torch.tensor([0, 3, 3])  # the second holds nothing
EIGHTHS = (
    torch.tensor([[1.0, -3.0, 2.0, 7.0], [5.0, 0.0, -1.0, 4.0], [2.0, 6.0, -7.0, 3.0]], dtype=torch.float64)
    / 8
)


def _with_one_seed(f):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return f()


# Polynomial and structural operations. Their arguments are eighths, so that float64 is exact and torch itself
# is the reference: {name: (function, shapes of the arguments)}.
EXACT_IN_FLOAT64 = {
    "add": (aten.add.Tensor, [(2, 3), (2, 3)]),
    "add broadcast": (aten.add.Tensor, [(2, 1, 3), (4, 1)]),
    "add alpha": (lambda x, y: aten.add.Tensor(x, y, alpha=-3), [(2, 3), (3,)]),
    "add scalar": (lambda x: aten.add.Scalar(x, 0.5, 2), [(2, 3)]),
    "sub": (aten.sub.Tensor, [(2, 3), (3,)]),
    "sub alpha": (lambda x, y: aten.sub.Tensor(x, y, alpha=0.25), [(2, 3), (3,)]),
    "sub scalar": (lambda x: aten.sub.Scalar(x, 0.5, 2), [(2, 3)]),
    "rsub scalar": (lambda x: aten.rsub.Scalar(x, 0.5, 2), [(2, 3)]),
    "rsub tensor": (lambda x, y: aten.rsub.Tensor(x, y, alpha=3), [(2, 3), (2, 3)]),
    "one minus": (lambda x: 1 - x, [(2, 3)]),
    "neg": (aten.neg.default, [(2, 3)]),
    "mul": (aten.mul.Tensor, [(2, 3), (2, 1)]),
    "mul scalar": (lambda x: aten.mul.Scalar(x, -0.75), [(2, 3)]),
    "mul by a mask": (lambda x: x * MASK, [(2, 3)]),
    "mask times": (lambda x: MASK * x, [(3,)]),
    "halves": (lambda x: x / 2, [(2, 3)]),
    "square": (aten.square.default, [(2, 3)]),
    "cube": (lambda x: aten.pow.Tensor_Scalar(x, 3), [(2, 3)]),
    "power 1": (lambda x: x**1.0, [(2, 3)]),
    "power 0": (lambda x: x**0, [(2, 3)]),
    "mm": (aten.mm.default, [(2, 4), (4, 3)]),
    "bmm": (aten.bmm.default, [(2, 2, 4), (2, 4, 3)]),
    "matmul broadcast": (torch.matmul, [(2, 1, 2, 4), (3, 4, 3)]),
    "mv": (aten.mv.default, [(2, 4), (4,)]),
    "dot": (aten.dot.default, [(4,), (4,)]),
    "addmm": (lambda c, x, y: aten.addmm.default(c, x, y, beta=2, alpha=-0.5), [(3,), (2, 4), (4, 3)]),
    "addmm beta 0": (lambda c, x, y: aten.addmm.default(c, x, y, beta=0), [(2, 3), (2, 4), (4, 3)]),
    "baddbmm": (aten.baddbmm.default, [(2, 2, 3), (2, 2, 4), (2, 4, 3)]),
    "einsum": (lambda x, y: torch.einsum("bij,bkj->bik", x, y), [(2, 2, 3), (2, 4, 3)]),
    "linear": (torch.nn.functional.linear, [(2, 5, 3), (4, 3), (4,)]),
    "kron": (torch.kron, [(2, 2), (1, 3)]),
    "sum": (aten.sum.default, [(2, 3)]),
    "sum dim": (lambda x: aten.sum.dim_IntList(x, [-1, 0], True), [(2, 3, 2)]),
    "sum of no dims": (lambda x: x.sum([]), [(2, 3)]),
    "mean of 4": (aten.mean.default, [(2, 2)]),
    "mean dim": (lambda x: aten.mean.dim(x, [1], True), [(3, 2)]),
    "where": (lambda x, y: aten.where.self(MASK, x, y), [(2, 3), (3,)]),
    "where scalar": (lambda x: torch.where(MASK, 0.5, x), [(2, 3)]),
    "masked_fill": (lambda x: aten.masked_fill.Scalar(x, MASK, 0.5), [(2, 3)]),
    "masked_fill tensor": (lambda x: aten.masked_fill.Tensor(x, MASK, torch.tensor(-2.0)), [(2, 3)]),
    "tril": (lambda x: aten.tril.default(x, 1), [(2, 3, 4)]),
    "triu": (lambda x: aten.triu.default(x, -1), [(3, 3)]),
    "cat": (lambda x, y: aten.cat.default([x, y], 1), [(2, 3), (2, 1)]),
    "cat with constants": (lambda x: torch.cat([torch.ones(1, 3), x]), [(2, 3)]),
    "stack": (lambda x, y: aten.stack.default([x, y], -1), [(2, 3), (2, 3)]),
    "clone": (aten.clone.default, [(2, 3)]),
    "contiguous": (aten.contiguous.default, [(2, 3)]),
    "flip": (lambda x: aten.flip.default(x, [1]), [(2, 3)]),
    "roll": (lambda x: aten.roll.default(x, [1], [1]), [(2, 3)]),
    "repeat": (lambda x: aten.repeat.default(x, [2, 1, 2]), [(2, 3)]),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 0), [(2, 3)]),
    "gather": (lambda x: aten.gather.default(x, 1, COLUMN), [(2, 3)]),
    "index": (lambda x: aten.index.Tensor(x, [None, ROWS]), [(2, 3)]),
    "index by mask": (lambda x: x[MASK], [(2, 3)]),
    "index_select": (lambda x: aten.index_select.default(x, 0, ROWS), [(2, 3)]),
    "diag_embed": (lambda x: aten.diag_embed.default(x, 1, -2, -1), [(2, 3)]),
    "to float32": (lambda x: aten._to_copy.default(x, dtype=torch.float32), [(2, 3)]),
    "copy": (aten.copy.default, [(2, 3), (3,)]),
    "alias": (aten.alias.default, [(2, 3)]),
    "detach": (aten.detach.default, [(2, 3)]),
    "diagonal": (lambda x: aten.diagonal.default(x, 1, 0, 1), [(3, 3)]),
    "expand": (lambda x: aten.expand.default(x, [4, 2, 3]), [(2, 1)]),
    "permute": (lambda x: aten.permute.default(x, [2, 0, 1]), [(2, 3, 4)]),
    "select": (lambda x: aten.select.int(x, 1, -1), [(2, 3)]),
    "slice": (lambda x: aten.slice.Tensor(x, 1, 1, 4, 2), [(2, 5)]),
    "split": (lambda x: aten.split.Tensor(x, 2, 1), [(2, 5)]),
    "split_with_sizes": (lambda x: aten.split_with_sizes.default(x, [1, 4], 1), [(2, 5)]),
    "squeeze": (aten.squeeze.default, [(2, 1, 3)]),
    "squeeze dim": (lambda x: aten.squeeze.dim(x, 1), [(2, 1, 3)]),
    "squeeze dims": (lambda x: aten.squeeze.dims(x, [1, 3]), [(2, 1, 3, 1)]),
    "t": (aten.t.default, [(2, 3)]),
    "transpose": (lambda x: aten.transpose.int(x, -1, 0), [(2, 3, 4)]),
    "unbind": (lambda x: aten.unbind.int(x, 1), [(2, 3)]),
    "unfold": (lambda x: aten.unfold.default(x, 1, 2, 1), [(2, 4)]),
    "unsqueeze": (lambda x: aten.unsqueeze.default(x, 1), [(2, 3)]),
    "view": (lambda x: aten.view.default(x, [3, 2]), [(2, 3)]),
    "_reshape_alias": (lambda x: aten._reshape_alias.default(x, [3, 2], [2, 1]), [(2, 3)]),
    "_unsafe_view": (lambda x: aten._unsafe_view.default(x, [6]), [(2, 3)]),
    "lift_fresh": (aten.lift_fresh.default, [(2, 3)]),
    "reshape of a transpose": (lambda x: x.mT.reshape(-1), [(2, 3)]),
    "iteration": (list, [(2, 3)]),
    "zeros_like": (aten.zeros_like.default, [(2, 3)]),
    "ones_like": (aten.ones_like.default, [(2, 3)]),
    "full_like": (lambda x: aten.full_like.default(x, -0.5), [(2, 3)]),
    "new_zeros": (lambda x: aten.new_zeros.default(x, [4]), [(2, 3)]),
    "new_ones": (lambda x: aten.new_ones.default(x, [4]), [(2, 3)]),
    "new_full": (lambda x: aten.new_full.default(x, [4], 0.5), [(2, 3)]),
    "written over": (lambda x, y: aten.copy_.default(aten.clone.default(x), y), [(2, 3), (3,)]),
    "zero_": (lambda x: aten.zero_.default(x.clone()), [(2, 3)]),
    "fill_": (lambda x: aten.fill_.Scalar(x.clone(), 2.5), [(2, 3)]),
    "fill_ tensor": (lambda x: aten.fill_.Tensor(x.clone(), torch.tensor(2.5)), [(2, 3)]),
    "add_": (lambda x, y: aten.add_.Tensor(x.clone(), y, alpha=2), [(2, 3), (3,)]),
    "mul_": (lambda x, y: aten.mul_.Tensor(x.clone(), y), [(2, 3), (3,)]),
    "sub_ of itself": (lambda x: x.clone().sub_(x), [(2, 3)]),
    "neg_": (lambda x: aten.neg_.default(x.clone()), [(2, 3)]),
    "masked_fill_": (lambda x: x.clone().masked_fill_(MASK, 1.5), [(2, 3)]),
    "addmm_": (lambda c, x, y: c.clone().addmm_(x, y), [(2, 3), (2, 4), (4, 3)]),
    "slice_backward": (lambda g: aten.slice_backward.default(g, [2, 6], 1, 1, 6, 2), [(2, 3)]),
    "select_backward": (lambda g: aten.select_backward.default(g, [2, 4, 3], 1, -1), [(2, 3)]),
    "diagonal_backward": (lambda g: aten.diagonal_backward.default(g, [3, 4], 1, 0, 1), [(3,)]),
    "addcmul": (lambda c, x, y: aten.addcmul.default(c, x, y, value=-0.5), [(2, 3), (2, 1), (3,)]),
    "lerp": (lambda x, y: aten.lerp.Scalar(x, y, 0.25), [(2, 3), (2, 3)]),
    "lerp tensor": (aten.lerp.Tensor, [(2, 3), (3,), (2, 1)]),
    "trace": (aten.trace.default, [(3, 3)]),
    "cumsum": (lambda x: aten.cumsum.default(x, 1), [(2, 4, 2)]),
    "cumsum from the right axis": (lambda x: x.cumsum(-1), [(2, 3)]),
    "cumsum of a scalar": (lambda x: x.cumsum(0), [()]),
    "pad": (lambda x: aten.constant_pad_nd.default(x, [1, 2, 0, 1], 0.5), [(2, 3)]),
    "pad and crop": (lambda x: aten.constant_pad_nd.default(x, [-1, 2, 1, -1]), [(3, 4)]),
    "block_diag": (torch.block_diag, [(2, 3), (1, 2)]),
    "block_diag of a row and a number": (torch.block_diag, [(3,), (), (2, 1)]),
    "block_diag with constants": (lambda x: torch.block_diag(torch.ones(1, 2), x), [(2, 3)]),
    "slice_scatter": (lambda x, y: aten.slice_scatter.default(x, y, 1, 1, 4, 2), [(2, 5), (2, 2)]),
    "select_scatter": (lambda x, y: aten.select_scatter.default(x, y, 1, -1), [(2, 3), (2,)]),
    "index_put": (lambda x, y: aten.index_put.default(x, [None, LATER], y), [(2, 4), (2, 2)]),
    "index_put by mask": (lambda x, y: x.index_put((MASK,), y), [(2, 3), (4,)]),
    "index_put at pairs": (lambda x, y: x.index_put((LATER, EARLIER), y[0]), [(4, 2, 2), (1, 2)]),
    "index_put adds": (lambda x, y: x.index_put((ROWS,), y, accumulate=True), [(2, 3), (4, 3)]),
    "_unsafe_index_put": (lambda x, y: aten._unsafe_index_put.default(x, [LATER], y, True), [(4, 3), (2, 1)]),
    "index_put_": (lambda x, y: aten.index_put_.default(x.clone(), [EARLIER], y), [(2, 3), (3,)]),
    "_index_put_impl_": (lambda x, y: aten._index_put_impl_.default(x.clone(), [ROWS], y, True), [(2, 3), (4, 1)]),
    "index_add": (lambda x, y: aten.index_add.default(x, 1, ROWS, y, alpha=-3), [(3, 2), (3, 4)]),
    "index_add_": (lambda x, y: x.clone().index_add_(0, ROWS, y), [(2, 3), (4, 3)]),
    "index_copy": (lambda x, y: aten.index_copy.default(x, 0, LATER, y), [(4, 3), (2, 3)]),
    "index_fill": (lambda x: aten.index_fill.int_Scalar(x, 1, LATER, 2.5), [(2, 4)]),
    "index_fill tensor": (lambda x, y: aten.index_fill.int_Tensor(x, 0, EARLIER, y), [(3, 2), ()]),
    "scatter": (lambda x, y: aten.scatter.src(x, 1, COLUMN, y), [(2, 4), (2, 2)]),
    "scatter value": (lambda x: aten.scatter.value(x, 0, COLUMN[:1], 1.5), [(3, 2)]),
    "scatter_add": (lambda x, y: aten.scatter_add.default(x, 1, COLUMN, y), [(2, 3), (2, 2)]),
    "scatter_add_": (lambda x, y: x.clone().scatter_add_(0, COLUMN, y), [(3, 3), (2, 2)]),
    "embedding": (lambda w: aten.embedding.default(w, COLUMN), [(3, 4)]),
    "embedding bag": (lambda w: aten._embedding_bag.default(w, ROWS, BAGS, per_sample_weights=EIGHTHS[0])[0], [(3, 4)]),
    "embedding bag, last offset": (
        lambda w: aten._embedding_bag.default(w, ROWS, torch.tensor([0, 1, 4]), include_last_offset=True)[0], [(3, 4)],
    ),
    "embedding bag without gradient": (lambda w: aten._embedding_bag_forward_only.default(w, ROWS, BAGS)[0], [(3, 4)]),
    "embedding bag of its weights": (
        lambda s: torch.nn.functional.embedding_bag(ROWS, EIGHTHS, BAGS, mode="sum", per_sample_weights=s), [(4,)],
    ),
    "embedding bag backward": (
        lambda g: aten._embedding_bag_backward.default(
            g, ROWS, BAGS, torch.tensor([0, 0, 0, 2]), torch.tensor([3, 0, 1]), BAGS[:0], 3, False, 0, False, EIGHTHS[1]
        ),
        [(3, 4)],
    ),
    "embedding bag backward, of its weights": (
        lambda g: aten._embedding_bag_per_sample_weights_backward.default(
            g, EIGHTHS, ROWS, BAGS, torch.tensor([0, 0, 0, 2]), 0
        ),
        [(3, 4)],
    ),
    "embedding backward": (
        lambda g: aten.embedding_dense_backward.default(g, COLUMN, 4, 2, False),
        [(2, 2, 3)],
    ),
    "unfold_backward": (lambda g: aten.unfold_backward.default(g, [2, 5], 1, 3, 1), [(2, 3, 3)]),
    "nan_to_num": (aten.nan_to_num.default, [(2, 3)]),
    "bernoulli_": (lambda x: _with_one_seed(lambda: aten.bernoulli_.float(x.clone(), 0.5)), [(2, 3)]),
    "dropout": (lambda x: _with_one_seed(lambda: torch.nn.functional.dropout(x, 0.5)), [(2, 3)]),
    "var of 2": (lambda x: aten.var.correction(x, [1], correction=1, keepdim=True), [(2, 2)]),
    "sigmoid backward": (aten.sigmoid_backward.default, [(2, 3), (2, 3)]),
    "tanh backward": (aten.tanh_backward.default, [(2, 3), (2, 3)]),
    "softmax backward": (
        lambda g, P: aten._softmax_backward_data.default(g, P, -1, torch.float64),
        [(2, 3), (2, 3)],
    ),
}  # fmt: skip


def _variance(x, correction):
    centred = x - x.sum(1)[:, None] / 3
    return (centred * centred).sum(1) / (3 - correction)


# Operations that divide: {name: (function, the same on arrays of fractions, shapes)}.
FRACTIONS = {
    "div": (aten.div.Tensor, lambda x, y: x / y, [(2, 3), (2, 3)]),
    "div broadcast": (aten.div.Tensor, lambda x, y: x / y, [(2, 3), (2, 1)]),
    "div by a scalar": (lambda x: aten.div.Scalar(x, 7.0), lambda x: x / 7, [(2, 3)]),
    "a scalar divided": (lambda x: 3 / x, lambda x: 3 / x, [(2, 3)]),
    "reciprocal": (aten.reciprocal.default, lambda x: 1 / x, [(2, 3)]),
    "power -2": (lambda x: aten.pow.Tensor_Scalar(x, -2), lambda x: 1 / x**2, [(2, 3)]),
    "mean": (aten.mean.default, lambda x: np.array(x.sum() / 6), [(2, 3)]),
    "mean dim": (lambda x: x.mean((0, 2)), lambda x: x.sum((0, 2)) / 21, [(3, 2, 7)]),
    "one tenth": (lambda x: x * 0.1, lambda x: x / 10, [(2, 3)]),
    "a third more": (
        lambda x: x + torch.tensor(1 / 3, dtype=torch.float64),
        lambda x: x + Fraction(1, 3),
        [(2, 3)],
    ),
    "three sevenths, row by row": (
        lambda x: torch.tensor([3 / 7, 1e-5, 2.5], dtype=torch.float64) * x,
        lambda x: x * np.array([Fraction(3, 7), Fraction(1, 100_000), Fraction(5, 2)]),
        [(2, 3)],
    ),
    "addcdiv": (
        lambda c, x, y: aten.addcdiv.default(c, x, y, value=3),
        lambda c, x, y: c + 3 * x / y,
        [(2, 3), (2, 3), (3,)],
    ),
    "var": (lambda x: aten.var.correction(x, [1], correction=0), lambda x: _variance(x, 0), [(2, 3)]),
    "var of a sample": (lambda x: aten.var.correction(x, [1]), lambda x: _variance(x, 1), [(2, 3)]),
    "var of var_mean": (lambda x: aten.var_mean.correction(x, [1])[0], lambda x: _variance(x, 1), [(2, 3)]),
    "mean of var_mean": (lambda x: aten.var_mean.correction(x, [1])[1], lambda x: x.sum(1) / 3, [(2, 3)]),
    "div_": (lambda x, y: x.clone().div_(y), lambda x, y: x / y, [(2, 3), (3,)]),
}


# What has no exact reference: {name: (function, shapes)}, for positive arguments.
ANALYTIC = {
    "exp": (aten.exp.default, [(2, 3)]),
    "log": (aten.log.default, [(2, 3)]),
    "softmax": (lambda x: aten._softmax.default(x, -1, False), [(2, 3)]),
    "softmax dim": (lambda x: torch.softmax(x, 0), [(2, 3)]),
    "log_softmax": (lambda x: aten._log_softmax.default(x, 1, False), [(2, 3)]),
    "log_softmax backward": (
        lambda g, x: aten._log_softmax_backward_data.default(g, x.log(), -1, torch.float64),
        [(2, 3), (2, 3)],
    ),
    "logsumexp": (lambda x: aten.logsumexp.default(x, [1], True), [(2, 3)]),
    "logsumexp of all": (lambda x: torch.logsumexp(x, (0, 1)), [(2, 3)]),
    "logaddexp": (aten.logaddexp.default, [(2, 3), (3,)]),
    "masked softmax": (lambda x: torch.softmax(x.masked_fill(~MASK, -torch.inf), -1), [(2, 3)]),
}
# Functions that are opaque over the field, for positive arguments of which no two are equal: {name: (function, shapes)}.
OPAQUE = {
    "sqrt": (aten.sqrt.default, [(2, 3)]),
    "rsqrt": (aten.rsqrt.default, [(2, 3)]),
    "power 3/2": (lambda x: x**1.5, [(2, 3)]),
    "power −5/2": (lambda x: x**-2.5, [(2, 3)]),
    "sin": (aten.sin.default, [(2, 3)]),
    "cos": (aten.cos.default, [(2, 3)]),
    "erf": (aten.erf.default, [(2, 3)]),
    "expm1": (aten.expm1.default, [(2, 3)]),
    "exp2": (aten.exp2.default, [(2, 3)]),
    "exp2 of log2": (lambda x: aten.log2.default(x).exp2(), [(2, 3)]),
    "exp of log1p": (lambda x: aten.log1p.default(x).exp(), [(2, 3)]),
    "sigmoid": (aten.sigmoid.default, [(2, 3)]),
    "tanh": (aten.tanh.default, [(2, 3)]),
    "silu": (aten.silu.default, [(2, 3)]),
    "gelu": (aten.gelu.default, [(2, 3)]),
    "gelu by tanh": (lambda x: aten.gelu.default(x, approximate="tanh"), [(2, 3)]),
    "exp of softplus": (lambda x: aten.softplus.default(x).exp(), [(2, 3)]),
    "exp of log sigmoid": (lambda x: aten.log_sigmoid_forward.default(x)[0].exp(), [(2, 3)]),
    "silu backward": (aten.silu_backward.default, [(2, 3), (2, 3)]),
    "gelu backward": (aten.gelu_backward.default, [(2, 3), (2, 3)]),
    "gelu by tanh backward": (lambda g, x: aten.gelu_backward.default(g, x, approximate="tanh"), [(2, 3), (2, 3)]),
    "softplus backward": (lambda g, x: aten.softplus_backward.default(g, x, 2, 20), [(2, 3), (2, 3)]),
    "log sigmoid backward": (lambda g, x: aten.log_sigmoid_backward.default(g, x, aten.log_sigmoid_forward.default(x)[1]), [(2, 3), (2, 3)]),
    "std": (lambda x: aten.std.correction(x, [1], correction=0, keepdim=True), [(2, 3)]),
    "std of a sample": (lambda x: x.std(), [(2, 3)]),
    "norm": (lambda x: aten.linalg_vector_norm.default(x, 2, [1], True), [(2, 3)]),
    "norm of all": (lambda x: x.norm(), [(2, 3)]),
    "layer norm": (lambda x, w, b: aten.native_layer_norm.default(x, [2, 3], w, b, 1e-5), [(4, 2, 3), (2, 3), (2, 3)]),
    "layer norm without weight": (lambda x: aten.native_layer_norm.default(x, [3], None, None, 1e-5), [(2, 3)]),
    "layer norm backward": (lambda g, x, w, b: _layer_norm_backward(g, x, w, b), [(4, 2, 3), (4, 2, 3), (2, 3), (2, 3)]),
    "rms norm": (lambda x, w: aten._fused_rms_norm.default(x, [3], w, 1e-5), [(2, 3), (3,)]),
    "rms norm without eps": (lambda x: aten._fused_rms_norm.default(x, [3], None, None), [(2, 3)]),
    "rms norm backward": (lambda g, x, w: _rms_norm_backward(g, x, w), [(4, 2, 3), (4, 2, 3), (2, 3)]),
    "safe softmax": (lambda x: aten._safe_softmax.default(x.masked_fill(EMPTY, -torch.inf), -1), [(2, 3)]),
}  # fmt: skip
EMPTY = torch.tensor([[True, True, True], [False, True, False]])

# Comparisons, and what is made of them.
GATED = {
    "x > 0": (lambda x: torch.where(aten.gt.Scalar(x, 1), x, 0), [(2, 3)]),
    "x > y": (lambda x, y: torch.where(aten.gt.Tensor(x, y), x, y), [(2, 3), (3,)]),
    "x ≥ 1": (lambda x: torch.where(aten.ge.Scalar(x, 1), x, 0), [(2, 3)]),
    "x ≥ y": (lambda x, y: torch.where(aten.ge.Tensor(x, y), x, y * y), [(2, 3), (3,)]),
    "x < 1": (lambda x: torch.where(aten.lt.Scalar(x, 1), x, 0), [(2, 3)]),
    "x < y": (lambda x, y: torch.where(aten.lt.Tensor(x, y), x, y * y), [(2, 3), (3,)]),
    "x ≤ 1": (lambda x: torch.where(aten.le.Scalar(x, 1), x, 0), [(2, 3)]),
    "x ≤ y": (lambda x, y: torch.where(aten.le.Tensor(x, y), x, y * y), [(2, 3), (3,)]),
    "not": (lambda x: torch.where(aten.bitwise_not.default(x > 1), x, 0), [(2, 3)]),
    "logical not": (lambda x: torch.where(aten.logical_not.default(x > 1), x, 0), [(2, 3)]),
    "and": (lambda x, y: torch.where(aten.bitwise_and.Tensor(x > 1, x < y), x, y), [(2, 3), (3,)]),
    "logical and": (lambda x, y: torch.where(aten.logical_and.default(x > 1, x < y), x, y), [(2, 3), (3,)]),
    "and a mask": (lambda x: torch.where((x > 1) & MASK, x, 0), [(2, 3)]),
    "or": (lambda x, y: torch.where(aten.bitwise_or.Tensor(x > 1, x < y), x, y), [(2, 3), (3,)]),
    "logical or": (lambda x, y: torch.where(aten.logical_or.default(x > 1, x < y), x, y), [(2, 3), (3,)]),
    "masked_fill": (lambda x, y: (x * y).masked_fill(x > y, 0.5), [(2, 3), (3,)]),
    "as a factor": (lambda x, y: (x > y) * y, [(2, 3), (3,)]),
    "as floats": (lambda x, y: (x > y).double() + y, [(2, 3), (3,)]),
    "sign": (lambda x: aten.sign.default(x - 1) * x, [(2, 3)]),
    "sgn": (lambda x: aten.sgn.default(1 - x) * x, [(2, 3)]),
    "abs": (lambda x: aten.abs.default(x - 1), [(2, 3)]),
    "relu": (lambda x: aten.relu.default(x - 1), [(2, 3)]),
    "relu_": (lambda x: aten.relu_.default(x - 1), [(2, 3)]),
    "threshold backward": (lambda g, x: aten.threshold_backward.default(g, x - 1, 0), [(2, 3), (2, 3)]),
    "clamp": (lambda x: aten.clamp.default(x, 0.5, 1.5), [(2, 3)]),
    "clamp the other way": (lambda x: aten.clamp.default(x, 1.5, 0.5), [(2, 3)]),
    "clamp tensor": (lambda x, y, z: aten.clamp.Tensor(x, y, z), [(2, 3), (3,), (2, 1)]),
    "clamp_min": (lambda x: aten.clamp_min.default(x, 1), [(2, 3)]),
    "clamp_min tensor": (aten.clamp_min.Tensor, [(2, 3), (3,)]),
    "clamp_max": (lambda x: aten.clamp_max.default(x, 1), [(2, 3)]),
    "clamp_max tensor": (aten.clamp_max.Tensor, [(2, 3), (3,)]),
}

# What is an ordinary tensor: the same on numbers as on floats.
ORDINARY = {
    "x = 0": (lambda x: aten.eq.Scalar(x, 0), [(2, 3)]),
    "x = −∞": (lambda x: aten.eq.Scalar(x, -torch.inf), [(2, 3)]),
    "x ≠ 0": (lambda x: aten.ne.Scalar(x, 0), [(2, 3)]),
    "x ≠ −∞": (lambda x: aten.ne.Scalar(x, -torch.inf), [(2, 3)]),
    "x = y": (aten.eq.Tensor, [(2, 3), (3,)]),
    "x ≠ y": (aten.ne.Tensor, [(2, 3), (3,)]),
    "isfinite": (aten.isfinite.default, [(2, 3)]),
    "isinf": (aten.isinf.default, [(2, 3)]),
    "isneginf": (aten.isneginf.default, [(2, 3)]),
    "isposinf": (aten.isposinf.default, [(2, 3)]),
    "isnan": (aten.isnan.default, [(2, 3)]),
}
LARGEST = {
    "max dim": (lambda x: aten.max.dim(x, 1, True), [(2, 3)]),
    "max of all": (aten.max.default, [(2, 3)]),
    "argmax": (lambda x: aten.argmax.default(x, 0), [(2, 3)]),
    "argmax of all": (lambda x: aten.argmax.default(x), [(2, 3)]),
}
SHIFTS = {
    "amax": (lambda x: aten.amax.default(x, [1], True), [(2, 3)]),
    "amax of all": (lambda x: x.amax(), [(2, 3)]),
    "maximum": (aten.maximum.default, [(2, 3), (3,)]),
}


def _layer_norm_backward(g, x, w, b):
    _, mean, rstd = aten.native_layer_norm.default(x, [2, 3], w, b, 1e-5)
    return aten.native_layer_norm_backward.default(g, x, [2, 3], mean, rstd, w, b, [True, True, True])


def _rms_norm_backward(g, x, w):
    if type(x) is torch.Tensor:  # torch has this one on accelerators only
        x, w = x.requires_grad_(), w.requires_grad_()
        return torch.autograd.grad(torch.nn.functional.rms_norm(x, (2, 3), w, 1e-5), (x, w), g)
    _, rstd = aten._fused_rms_norm.default(x, [2, 3], w, 1e-5)
    return aten._fused_rms_norm_backward.default(g, x, [2, 3], rstd, w, [True, True])


# ---------------------------------------------------------------- programs that write into tensors and views of them


def _add_to_a_slice(x, y):
    z = x.clone()
    z[1:, ::2] += y[1:, ::2]
    return z


def _row_by_row(x, y):
    z = torch.zeros_like(x)
    for i in range(x.shape[0]):
        z[i] = x[i] * y[i]
    return z


def _view_of_a_view(x, y):
    z = x.clone()
    z.mT[2].mul_(3)
    z.view(-1)[::5].neg_()
    z[1:].t()[0:1].copy_(y[:1, :2])
    return z


def _unbound_rows(x, y):
    z = x.clone()
    a, b, _ = z.unbind(0)
    a.add_(b)
    return z * y


def _halves(x, y):
    z = x.clone()
    left, right = z.split(2, 1)
    right.copy_(left * y[:, :2])
    first, *_ = z.chunk(3, 0)
    first.sub_(1.5)
    return z


def _diagonal(x, y):
    z = x.clone()
    z.diagonal().zero_()
    z[:, 1:].diagonal().fill_(2.5)
    z.diagonal(-1).copy_(y.diagonal(-1))
    return z


def _broadcast_into_a_row(x, y):
    z = x.clone()
    z[0] = y[1].sum()
    z[1] = 0.5
    z[2].fill_(-1)
    return z


def _the_view_sees_the_base(x, y):
    z = x.clone()
    view, deeper = z[1], z[1:][0, 1:]
    z.mul_(2)
    z[1, 3] = 0.25
    return view * y[1], deeper + 1


def _the_base_sees_the_view(x, y):
    z = x.clone()
    z[1].mul_(y[0])
    return z + 0, z.sum(0)


def _swapped_rows(x, y):
    z = x.clone()
    z[0], z[1] = z[1].clone(), z[0].clone()
    return z @ y.mT


def _accumulated(x, y):
    total = x.new_zeros(x.shape[1])
    for i in range(x.shape[0]):
        total += x[i] * y[i]
    return total, total / 2


def _detached_alias(x, y):
    z = x.clone()
    z.detach()[0].zero_()
    return z * y


def _reshaped(x, y):
    z = x.clone()
    z.reshape(4, 3)[1] = 0  # a view
    z.mT.reshape(-1)[0] = 5  # a copy
    z.contiguous()[2, 0] = 6  # a view
    z.mT.contiguous()[0, 1] = 7  # a copy
    return z - y


def _permuted(x, y):
    z = torch.stack([x, y])
    z.permute(2, 0, 1)[1, 0] = z[1, :, 0]
    z.movedim(0, 1)[2].neg_()
    z.unsqueeze(0)[0, 1].sub_(x)
    z.squeeze()[0, 0, 0] = 1
    return z


def _masked_in_place(x, y):
    z = x.clone()
    z[:2].masked_fill_(_TRIANGLE, 0.5)
    return z * y


_TRIANGLE = torch.ones(2, 4, dtype=torch.bool).tril()


def _results_are_fresh(x, y):
    """What was computed from x is written over; x must stay."""
    z = x.clone()
    for f in (
        lambda a: a + 1, lambda a: a - 1, lambda a: 1 - a, lambda a: -a, lambda a: a * 1, lambda a: a / 1, lambda a: a**1,
        lambda a: a + y, lambda a: torch.where(_ALL, a, y), lambda a: a.masked_fill(~_ALL, 0), lambda a: torch.cat([a]),
        lambda a: a * _ALL, lambda a: a.repeat(1, 1), lambda a: a.to(torch.float32), lambda a: a.roll(0, 0), lambda a: a.tril(9),
        lambda a: a.flip(0), lambda a: a.mT.contiguous(), lambda a: a.index_select(0, _ROWS),
    ):  # fmt: skip
        f(z).mul_(3)
    return z


def _a_constant_is_written_into(x, y):
    z, ones = x * 0 + 1, x**0
    z[0], ones[1] = y[0], y[1]
    return z, ones * x


_ALL, _ROWS = torch.ones(3, 4, dtype=torch.bool), torch.arange(3)


def _a_broadcast_sum_is_written_into(x, y):
    z = x[0] + torch.zeros_like(y)
    z[1] = 0
    z[2, 1:].mul_(y[2, 1:])
    return z


WRITES = {
    f.__name__.strip("_").replace("_", " "): f
    for f in (
        _add_to_a_slice, _row_by_row, _view_of_a_view, _unbound_rows, _halves, _diagonal, _broadcast_into_a_row,
        _the_view_sees_the_base, _the_base_sees_the_view, _swapped_rows, _accumulated, _detached_alias, _reshaped,
        _permuted, _masked_in_place, _results_are_fresh, _a_broadcast_sum_is_written_into, _a_constant_is_written_into,
    )
}  # fmt: skip
