"""What must hold for a gradient whatever the reference, exactly. One table.

θ runs over all arguments; the inner products come from the chain rule along curves on which the layer's value does not change,
or from its homogeneity in each projection.

    vjp is linear, vjp(0) = 0                       rowsum(dS) = 0                  db_K = 0
    ⟨dW_Q, W_Q⟩ + ⟨db_Q, b_Q⟩ = ⟨dW_K, W_K⟩ + ⟨db_K, b_K⟩        for each key/value head
    ⟨dW_V, W_V⟩ + ⟨db_V, b_V⟩ = ⟨dW_O, W_O⟩                      likewise
    ⟨dX, X⟩ = ⟨dW_Q, W_Q⟩ + ⟨dW_K, W_K⟩ + ⟨dW_V, W_V⟩             self-attention; else ⟨dX, X⟩ = ⟨dW_Q, W_Q⟩ and
    ⟨dX_kv, X_kv⟩ = ⟨dW_K, W_K⟩ + ⟨dW_V, W_V⟩
    permuting tokens or heads permutes the gradients
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.catalog import Rule
from gradderiv.checks.problems import Problem
from gradderiv.numbers.field import Field

Args = Mapping[str, Tensor]
Identity = Callable[["Case"], dict[str, tuple[Tensor, Tensor]]]


class Case:
    """A rule on a problem over the field, and its gradients there."""

    def __init__(self, rule: Rule, problem: Problem, field: Field) -> None:
        self.rule, self.problem, self.field = rule, problem, field
        self.options = problem.on(field.device)
        self.args, self.dY = problem.draw(lambda _name, shape: field.random(*shape))
        self.g = rule.gradients(self.args, self.options, self.dY)
        self.is_layer = problem.rule in ("multihead", "blockdiag")
        self.h = self.options.get("n_heads", 1)
        self.h_kv = self.options.get("n_kv_heads") or self.h

    def inner(self, name: str, heads: int = 1, axis: int = -1) -> Tensor:
        """⟨dθ, θ⟩ for the argument of that name, for each of ``heads`` blocks along ``axis``; 0 where there is none."""
        if name not in self.args:
            return self.field.constant(torch.zeros(heads), torch.float64)
        product = self.g[name] * self.args[name]
        return product.movedim(axis, 0).reshape(heads, -1).sum(1)


def linear_in_cotangent(c: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """vjp(2 dY + 3 dY′) = 2 vjp(dY) + 3 vjp(dY′), vjp(0) = 0"""
    other = c.field.random(*c.dY.shape)
    both = c.rule.gradients(c.args, c.options, 2 * c.dY + 3 * other)
    second = c.rule.gradients(c.args, c.options, other)
    none = c.rule.gradients(c.args, c.options, torch.zeros_like(c.dY))
    pairs = {f"vjp linear, {name}": (both[name], 2 * c.g[name] + 3 * second[name]) for name in c.args}
    return pairs | {f"vjp(0) = 0, {name}": (none[name], torch.zeros_like(none[name])) for name in c.args}


def zero_sums(c: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """rowsum(dS) = 0, db_K = 0"""
    pairs = {}
    source = next((c.args[name] for name in ("K", "X_kv", "X") if name in c.args), None)
    full = "bias" in c.g and source is not None and c.g["bias"].shape[-1] == source.shape[-2]
    for name in ("S", "bias") if full else ("S",):
        if name in c.g:
            rows = c.g[name].sum(-1)
            pairs[f"rowsum(d{name}) = 0"] = (rows, torch.zeros_like(rows))
    if "b_K" in c.g:
        pairs["db_K = 0"] = (c.g["b_K"], torch.zeros_like(c.g["b_K"]))
    return pairs


def inner_products(c: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """The homogeneity of the layer in its projections, for each key/value head."""
    if not c.is_layer:
        return {}
    k, v = c.inner("W_K", c.h_kv), c.inner("W_V", c.h_kv)
    q, o = c.inner("W_Q", c.h_kv), c.inner("W_O", c.h_kv, 0)
    pairs = {
        "⟨dW_V, W_V⟩ = ⟨dW_O, W_O⟩": (v + c.inner("b_V", c.h_kv), o),
        "⟨dW_Q, W_Q⟩ = ⟨dW_K, W_K⟩": (q + c.inner("b_Q", c.h_kv), k + c.inner("b_K", c.h_kv)),
    }
    source = (k + v).sum()
    if "X_kv" in c.args:
        pairs["⟨dX, X⟩"] = (c.inner("X").sum(), q.sum())
        pairs["⟨dX_kv, X_kv⟩"] = (c.inner("X_kv").sum(), source)
    else:
        pairs["⟨dX, X⟩"] = (c.inner("X").sum(), q.sum() + source)
    return pairs


def permuted_heads(c: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """Turning the groups of heads round by one turns the columns of dW_Q, dW_K, dW_V, the rows of dW_O, and a bias for each head."""
    if not c.is_layer or c.h_kv < 2:
        return {}

    def turn(name: str, t: Tensor) -> Tensor:
        axis = {"W_O": -2, "bias": -3, "mask": -3}.get(name, -1)
        for_each_head = t.dim() >= 3 and t.shape[-3] == c.h
        if name not in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V") and not (
            axis == -3 and for_each_head
        ):
            return t
        size = t.shape[axis] // c.h_kv  # of what belongs to one key/value head
        return torch.cat([t.narrow(axis, size, t.shape[axis] - size), t.narrow(axis, 0, size)], axis)

    options: dict[str, Any] = dict(c.options)
    if options.get("mask") is not None:
        options["mask"] = turn("mask", options["mask"])
    turned = c.rule.gradients({n: turn(n, t) for n, t in c.args.items()}, options, c.dY)
    return {f"heads turned, {name}": (turned[name], turn(name, c.g[name])) for name in c.args}


def permuted_tokens(c: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """Reversing the tokens of X, and of dY, the mask and the bias with them, reverses their gradients and leaves those of the weights."""
    if not c.is_layer:
        return {}
    both = (-1, -2) if "X_kv" not in c.args else (-2,)  # in self-attention the keys are reversed too

    def reverse(name: str, t: Tensor) -> Tensor:
        return t.flip(-2) if name == "X" else t.flip(both) if name in ("bias", "mask") else t

    options: dict[str, Any] = dict(c.options)
    if options.get("mask") is not None:
        options["mask"] = reverse("mask", options["mask"])
    args = {name: reverse(name, t) for name, t in c.args.items()}
    turned = c.rule.gradients(args, options, c.dY.flip(-2))
    return {f"tokens reversed, {name}": (turned[name], reverse(name, c.g[name])) for name in c.args}


IDENTITIES: dict[str, Identity] = {
    "vjp linear": linear_in_cotangent,
    "zero sums": zero_sums,
    "inner products": inner_products,
    "heads": permuted_heads,
    "tokens": permuted_tokens,
}


def identities(rule: Rule, problem: Problem, field: Field) -> Mapping[str, tuple[Tensor | None, Tensor]]:
    """All identities that apply, as pairs over the field; of gradients that are missing or misshapen, these beside their arguments."""
    case = Case(rule, problem, field)
    fits = {name: name in case.g and case.g[name].shape == x.shape for name, x in case.args.items()}
    if not all(fits.values()):
        return {name: (case.g.get(name), case.args[name]) for name, fit in fits.items() if not fit}
    pairs: dict[str, Any] = {}
    for identity in IDENTITIES.values():
        pairs |= identity(case)
    return pairs


def aliasing(rule: Rule, problem: Problem, seed: int) -> str:
    """What a call changed or shared that it must not, in words; nothing when all is well."""
    args, dY = problem.floats(seed, torch.float64)
    before = {name: t.clone() for name, t in {**args, "dY": dY}.items()}
    gradients = rule.gradients(args, problem.options, dY)
    for name, t in {**args, "dY": dY}.items():
        if not torch.equal(t, before[name]):
            return f"{name} was overwritten"
    owned = {t.untyped_storage().data_ptr(): name for name, t in {**args, "dY": dY}.items()}
    for name, g in gradients.items():
        if g.untyped_storage().data_ptr() in owned:
            return f"the gradient of {name} shares memory with {owned[g.untyped_storage().data_ptr()]}"
    return ""
