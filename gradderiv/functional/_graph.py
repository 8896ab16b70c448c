"""Attention on neighbour lists as a PyTorch function.

o_i = Σ_p P_ip v_N(i,p),   P_ip = exp S_ip / Σ_r exp S_ir,   S_ip = τ q_i · k_N(i,p)                 Liu et al. 2022, §3.1
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.functional import _graph_op
from gradderiv.functional._autocast import autocast_on_entry
from gradderiv.functional._function import Gradient, Rule, _keep, _kept, _needed
from gradderiv.functional._lists import Saved, gradients, require, value
from gradderiv.functional._nested import (
    is_mapped_unasked,
    ordinary,
    outer_tangents,
    primal,
    require_no_forward_mode,
)
from gradderiv.rules import graph as rules

_graph = Rule(
    value,
    lambda saved, **along: rules.graph_attention_jvp(saved.plain(None), **along),
    gradients,
    lambda dO, saved, dO_dot, **along: rules.graph_attention_vjp_jvp(
        dO, saved.plain(saved.inverse), dO_dot, **along
    ),
    variables=("Q", "K", "V"),
    constants=("neighbours", "queries", "positions", "scale"),
)


class Value(torch.autograd.Function):
    """O, with P beside it for a backward pass that nobody differentiates; else all is computed again, as everywhere in :mod:`._function`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rule: Rule, *arguments: Any) -> tuple[Tensor, Tensor]:
        O, saved = rule.evaluate(arguments)
        return O, saved.P

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, P = output
        ctx.mark_non_differentiable(P)
        _keep(ctx, (*inputs, P), forward_mode=True)

    @staticmethod
    def jvp(ctx: Any, rule_dot: None, *tangents: Any) -> tuple[Tensor, None]:
        with outer_tangents(True):
            rule, (*arguments, _) = _kept(ctx, primal)
            _, saved = rule.evaluate(arguments)
            return rule.jvp(saved, **rule.along(arguments, tangents)), None

    @staticmethod
    def backward(ctx: Any, dO: Tensor, dP: Tensor) -> tuple[Tensor | None, ...]:
        rule, (*arguments, P) = _kept(ctx)
        if is_mapped_unasked(dO):  # what a Function records of such a tensor is lost
            return _needed(ctx, rule.gradients(rule.vjp(dO, rule.evaluate(arguments)[1])))
        if not ordinary(dO, P):
            return _needed(ctx, Gradient.apply(rule, dO, *arguments))
        Q, K, V, *rest = arguments
        return _needed(ctx, rule.gradients(rule.vjp(dO, Saved(Q, K, V, P, *rest))))


@autocast_on_entry
def graph_attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    neighbours: Tensor,
    inverse: rules.Inverse | None = None,
    scale: float | None = None,
) -> Tensor:
    """o_i = Σ_p P_ip v_N(i,p),   P_ip = exp S_ip / Σ_r exp S_ir,   S_ip = τ q_i · k_N(i,p)

    Liu et al. 2022, §3.1; the gradients are those of :mod:`gradderiv.rules.graph`, for directed graphs too.

    Attention where a query attends to the few keys that it lists, in time and memory that grow with the lists. Reverse and forward mode, double backward and ``torch.func`` transforms in
    any nesting use the closed forms. The sums have one order: the same inputs give the same bits. On the CPU, lists of less than 2²³ numbers take one thread. Under ``torch.compile`` there is reverse mode of first order.

    Args:
        Q: (..., n_q, d_k).
        K: (..., n_k, d_k).
        V: (..., n_k, d_v). The leading axes of all three, batch and heads, are equal and share the graph.
        neighbours: integers (n_q, m): the keys that a query lists, −1 = nothing; :mod:`gradderiv.rules.graphs` makes them.
        inverse: of the neighbours, made once by :func:`gradderiv.rules.graph.inverse_index`; each backward pass sorts the lists unless it is given.
        scale: τ, 1/√d_k unless given.

    Returns:
        O (..., n_q, d_v). An empty list gives a row of 0, and gradients of 0; a key that is listed twice counts twice.

    Raises:
        InputError: shapes that do not fit, empty tensors, keys that are not there, the inverse index of another graph.
        DtypeError: integers, complex numbers, several dtypes or devices, a tensor for ``scale``.
    """
    queries, positions = (None, None) if inverse is None else inverse
    tau = Q.shape[-1] ** -0.5 if scale is None else scale
    arguments = (Q, K, V, neighbours, queries, positions, tau)
    _graph._require_real_numbers(arguments)
    if torch.compiler.is_compiling():
        require_no_forward_mode("graph_attention")
        return _graph_op.forward(*arguments)[0]
    require(*arguments[:-1])
    O, _ = Value.apply(_graph, *arguments)
    return O
