"""One attention layer in stages, each of which a mutant can replace.

    Q, K, V = heads of X W + b     S = τ Q Kᵀ + bias     P = softmax(S)     O = P V     Y = concat(O) W_O + b_O

A stage is a function of everything that came before it, and its name is the name of what it computes: ``dS`` is the function
that computes dS. The stages know nothing of :mod:`gradderiv.rules`; they are a second derivation of the same layer, and pass every oracle.
A wrong-on-purpose layer is the right one with one line of these tables exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.catalog import Options, Rule, Tensors
from gradderiv.checks.mutants.tools import (
    affine,
    collect,
    join_heads,
    rowsum,
    serve,
    softmax,
    split_heads,
    tall,
)
from gradderiv.numbers.dual import Dual, DualTensor

ARGUMENTS = ("X", "W_Q", "W_K", "W_V", "W_O", "X_kv", "b_Q", "b_K", "b_V", "b_O", "bias")


class Pass:
    """What one pass through the layer has computed so far, every value under its stage's name."""

    # what is given
    X: Tensor
    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    X_kv: Tensor | None
    b_Q: Tensor | None
    b_K: Tensor | None
    b_V: Tensor | None
    b_O: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    h: int
    h_kv: int
    given_scale: float | None
    dY: Tensor
    dots: Tensors
    # conventions
    scale: float
    axis: int
    head_of: Sequence[int]
    split: Callable[[Tensor, int], Tensor]
    join: Callable[[Tensor], Tensor]
    # forward
    source: Tensor
    XW_Q: Tensor
    XW_K: Tensor
    XW_V: Tensor
    Q: Tensor
    K: Tensor
    V: Tensor
    S: Tensor
    allowed: Tensor | None
    A: Tensor
    P: Tensor
    O: Tensor
    C: Tensor
    Y: Tensor
    # backward
    db_O: Tensor
    dW_O: Tensor
    dC: Tensor
    dO: Tensor
    P_again: Tensor
    dV: Tensor
    dP: Tensor
    delta: Tensor
    dS: Tensor
    dbias: Tensor | None
    dQ: Tensor
    dK: Tensor
    dK_kv: Tensor
    dV_kv: Tensor
    dXW_Q: Tensor
    dXW_K: Tensor
    dXW_V: Tensor
    dX_Q: Tensor
    dX_K: Tensor
    dX_V: Tensor
    # tangent
    source_dot: Tensor
    Q_dot: Tensor
    K_dot: Tensor
    V_dot: Tensor
    S_dot: Tensor
    P_dot: Tensor
    C_dot: Tensor

    def __init__(self, args: Tensors, options: Options) -> None:
        for name in ARGUMENTS:
            setattr(self, name, args.get(name))
        self.mask, self.given_scale = options.get("mask"), options.get("scale")
        self.h = options["n_heads"]
        self.h_kv = options.get("n_kv_heads") or self.h


Stage = Callable[[Pass], Any]
Stages = Mapping[str, Stage]

# ---------------------------------------------------------------- the right stages

FORWARD: Stages = {
    # conventions
    "scale": lambda c: (c.W_Q.shape[1] // c.h) ** -0.5 if c.given_scale is None else c.given_scale,
    "axis": lambda c: -1,
    "head_of": lambda c: [i // (c.h // c.h_kv) for i in range(c.h)],
    "split": lambda c: split_heads,
    "join": lambda c: join_heads,
    # projections
    "source": lambda c: c.X if c.X_kv is None else c.X_kv,
    "XW_Q": lambda c: affine(c.X, c.W_Q, c.b_Q),
    "XW_K": lambda c: affine(c.source, c.W_K, c.b_K),
    "XW_V": lambda c: affine(c.source, c.W_V, c.b_V),
    # heads
    "Q": lambda c: c.split(c.XW_Q, c.h),
    "K": lambda c: serve(c.split(c.XW_K, c.h_kv), c.head_of),
    "V": lambda c: serve(c.split(c.XW_V, c.h_kv), c.head_of),
    # attention
    "S": lambda c: c.scale * (c.Q @ c.K.mT) if c.bias is None else c.scale * (c.Q @ c.K.mT) + c.bias,
    "allowed": lambda c: None if c.mask is None else c.mask.expand(c.S.shape),
    "A": lambda c: c.S if c.allowed is None else c.S.masked_fill(~c.allowed, -torch.inf),
    "P": lambda c: softmax(c.A, c.allowed, c.axis),
    "O": lambda c: c.P @ c.V,
    # output
    "C": lambda c: c.join(c.O),
    "Y": lambda c: affine(c.C, c.W_O, c.b_O),
}  # fmt: skip

BACKWARD: Stages = {
    # Y was C W_O + b_O
    "db_O": lambda c: None if c.b_O is None else rowsum(c.dY),
    "dW_O": lambda c: tall(c.C).mT @ tall(c.dY),
    "dC": lambda c: c.dY @ c.W_O.mT,
    # C was concat(O_1 … O_h)
    "dO": lambda c: split_heads(c.dC, c.h),
    # O was P V; P_again is P as the backward pass has it: a kernel computes it anew
    "P_again": lambda c: c.P,
    "dV": lambda c: c.P_again.mT @ c.dO,
    "dP": lambda c: c.dO @ c.V.mT,
    # P was softmax(A)
    "delta": lambda c: (c.P * c.dP).sum(c.axis, keepdim=True),
    "dS": lambda c: c.P_again * (c.dP - c.delta),
    # S was τ Q Kᵀ + bias
    "dbias": lambda c: None if c.bias is None else c.dS.sum_to_size(c.bias.shape),
    "dQ": lambda c: c.scale * (c.dS @ c.K),
    "dK": lambda c: c.scale * (c.dS.mT @ c.Q),
    # Q, K, V were heads
    "dK_kv": lambda c: collect(c.dK, c.head_of, c.h_kv),
    "dV_kv": lambda c: collect(c.dV, c.head_of, c.h_kv),
    "dXW_Q": lambda c: c.join(c.dQ),
    "dXW_K": lambda c: c.join(c.dK_kv),
    "dXW_V": lambda c: c.join(c.dV_kv),
    # of X W_Q + b_Q, X_kv W_K + b_K, X_kv W_V + b_V
    "db_Q": lambda c: None if c.b_Q is None else rowsum(c.dXW_Q),
    "db_K": lambda c: None if c.b_K is None else rowsum(c.dXW_K),
    "db_V": lambda c: None if c.b_V is None else rowsum(c.dXW_V),
    "dW_Q": lambda c: tall(c.X).mT @ tall(c.dXW_Q),
    "dW_K": lambda c: tall(c.source).mT @ tall(c.dXW_K),
    "dW_V": lambda c: tall(c.source).mT @ tall(c.dXW_V),
    "dX_Q": lambda c: c.dXW_Q @ c.W_Q.mT,
    "dX_K": lambda c: c.dXW_K @ c.W_K.mT,
    "dX_V": lambda c: c.dXW_V @ c.W_V.mT,
    "dX": lambda c: c.dX_Q + c.dX_K + c.dX_V if c.X_kv is None else c.dX_Q,
    "dX_kv": lambda c: None if c.X_kv is None else c.dX_K + c.dX_V,
}

TANGENT: Stages = {
    "source_dot": lambda c: c.dots["X" if c.X_kv is None else "X_kv"],
    "Q_dot": lambda c: c.split(_affine_dot(c, c.X, c.dots["X"], "Q"), c.h),
    "K_dot": lambda c: serve(c.split(_affine_dot(c, c.source, c.source_dot, "K"), c.h_kv), c.head_of),
    "V_dot": lambda c: serve(c.split(_affine_dot(c, c.source, c.source_dot, "V"), c.h_kv), c.head_of),
    "S_dot": lambda c: c.scale * (c.Q_dot @ c.K.mT + c.Q @ c.K_dot.mT) + c.dots.get("bias", 0),
    "P_dot": lambda c: c.P * (c.S_dot - (c.P * c.S_dot).sum(c.axis, keepdim=True)),
    "C_dot": lambda c: c.join(c.P_dot @ c.V + c.P @ c.V_dot),
    "Y_dot": lambda c: _affine_dot(c, c.C, c.C_dot, "O"),
}


def _affine_dot(c: Pass, X: Tensor, X_dot: Tensor, which: str) -> Tensor:
    """Ẋ W + X Ẇ + ḃ"""
    out = X_dot @ getattr(c, f"W_{which}") + X @ c.dots[f"W_{which}"]
    return out + c.dots[f"b_{which}"] if f"b_{which}" in c.dots else out


# ---------------------------------------------------------------- a layer


def second(
    layer: Layer, args: Tensors, options: Options, dY: Tensor, dY_dot: Tensor, dots: Tensors
) -> dict[str, Tensor]:
    """The tangent of the layer's own gradients, whatever they are: dual numbers through the backward stages."""
    numbers = Dual()
    moving = {name: numbers.make(x, dots[name]) for name, x in args.items()}
    return tangents(layer.gradients(moving, options, numbers.make(dY, dY_dot)))


def tangents(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tangent part of every gradient."""
    out = {}
    for name, g in gradients.items():
        assert isinstance(g, DualTensor)
        out[name] = g.tangent
    return out


class Layer:
    """The layer with some of its stages replaced; with none, the right one.

    Args:
        replaced: functions by the names of the stages they replace; ``second`` replaces :func:`second`.
    """

    def __init__(self, replaced: Mapping[str, Callable[..., Any]] | None = None) -> None:
        self.replaced = dict(replaced or {})
        unknown = self.replaced.keys() - {*FORWARD, *BACKWARD, *TANGENT, "second"}
        if unknown:
            raise KeyError(f"no such stage: {', '.join(sorted(unknown))}")

    def run(self, c: Pass, *tables: Stages) -> Pass:
        """Every stage of the tables in turn."""
        for table in tables:
            for name, stage in table.items():
                setattr(c, name, self.replaced.get(name, stage)(c))
        return c

    def value(self, args: Tensors, options: Options) -> Tensor:
        return self.run(Pass(args, options), FORWARD).Y

    def gradients(self, args: Tensors, options: Options, dY: Tensor) -> dict[str, Tensor]:
        c = Pass(args, options)
        c.dY = dY
        self.run(c, FORWARD, BACKWARD)
        return {name: getattr(c, f"d{name}") for name in ARGUMENTS if name in args}

    def tangent(self, args: Tensors, options: Options, dots: Tensors) -> Tensor:
        c = Pass(args, options)
        c.dots = dots
        Y_dot: Tensor = self.run(c, FORWARD, TANGENT).Y_dot  # type: ignore[attr-defined]
        return Y_dot

    def second(
        self, args: Tensors, options: Options, dY: Tensor, dY_dot: Tensor, dots: Tensors
    ) -> dict[str, Tensor]:
        of_layer: Callable[..., dict[str, Tensor]] = self.replaced.get("second", second)
        return of_layer(self, args, options, dY, dY_dot, dots)

    def rule(self, name: str) -> Rule:
        """The layer under the interface that the oracles use."""
        return Rule(name, self.value, self.gradients, self.tangent, self.second)
