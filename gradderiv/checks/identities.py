"""What must hold for a gradient whatever the reference, exactly. One table.

θ runs over all arguments; the inner products come from the chain rule along curves on which the layer's value does not change,
or from its homogeneity in each projection.

    vjp is linear, vjp(0) = 0                       rowsum(dS) = 0                  db_K = 0
    ⟨dW_Q, W_Q⟩ + ⟨db_Q, b_Q⟩ = ⟨dW_K, W_K⟩ + ⟨db_K, b_K⟩        for each key/value head
    ⟨dW_V, W_V⟩ + ⟨db_V, b_V⟩ = ⟨dW_O, W_O⟩                      likewise
    ⟨dX, X⟩ = ⟨dW_Q, W_Q⟩ + ⟨dW_K, W_K⟩ + ⟨dW_V, W_V⟩             self-attention; else ⟨dX, X⟩ = ⟨dW_Q, W_Q⟩ and
    ⟨dX_kv, X_kv⟩ = ⟨dW_K, W_K⟩ + ⟨dW_V, W_V⟩
    rowsum(dX) = 0 of LayerNorm                     ⟨dW_U, W_U⟩ + ⟨db_U, b_U⟩ = ⟨dW_D, W_D⟩ where the feed-forward is homogeneous in U
    ⟨dγ, o + γ⟩ + ⟨dβ, β⟩ = Σ ⟨dW, W⟩ over what reads the norm
    permuting tokens or heads permutes the gradients
    ⟨dQ, Q⟩ = ⟨dK, K⟩ = −⟨dT, T⟩          of attention with a temperature T; with QK-norm ⟨dγ_Q, γ_Q⟩ = ⟨dγ_K, γ_K⟩ instead
    Σ dbias + ds = 0                       for each head, where lse is not looked at: a shift of the scores and of the sink is none
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.catalog import Rule
from gradderiv.checks.problems import Problem
from gradderiv.numbers.field import Field
from gradderiv.rules.transformer import named_style

Args = Mapping[str, Tensor]
Identity = Callable[["Case"], dict[str, tuple[Tensor, Tensor]]]


class Case:
    """A rule on a problem over the field, and its gradients there."""

    def __init__(self, rule: Rule, problem: Problem, field: Field) -> None:
        self.rule, self.problem, self.field = rule, problem, field
        self.options = problem.on(field.device)
        self.args, self.dY = problem.draw(lambda _name, shape: field.random(*shape))
        self.g = rule.gradients(self.args, self.options, self.dY)
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
    """rowsum(dS) = 0, db_K = 0: where a shift of a row of scores changes nothing that is looked at"""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    if "sinks" in c.args or "fill" in c.options or "lse" in c.options.get("outputs", ()):
        return pairs
    source = next((c.args[name] for name in ("K", "X_kv", "X") if name in c.args), None)
    full = "bias" in c.g and source is not None and c.g["bias"].shape[-1] == source.shape[-2]
    for name in ("S", "bias") if full else ("S",):
        if name in c.g:
            rows = c.g[name].sum(-1)
            pairs[f"rowsum(d{name}) = 0"] = (rows, torch.zeros_like(rows))
    if "b_K" in c.g and c.problem.plain:
        pairs["db_K = 0"] = (c.g["b_K"], torch.zeros_like(c.g["b_K"]))
    return pairs


def inner_products(c: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """The homogeneity of the layer in its projections, for each key/value head; a norm or a cache takes some of it away."""
    if not c.problem.layer:
        return {}
    k, v = c.inner("W_K", c.h_kv), c.inner("W_V", c.h_kv)
    q, o = c.inner("W_Q", c.h_kv), c.inner("W_O", c.h_kv, 0)
    pairs = {}
    if "V_cache" not in c.args:
        pairs["⟨dW_V, W_V⟩ = ⟨dW_O, W_O⟩"] = (v + c.inner("b_V", c.h_kv), o)
    if not {"K_cache", "gain_Q"} & c.args.keys():
        pairs["⟨dW_Q, W_Q⟩ = ⟨dW_K, W_K⟩"] = (q + c.inner("b_Q", c.h_kv), k + c.inner("b_K", c.h_kv))
    source = (k + v).sum()
    if "X_kv" in c.args:
        pairs["⟨dX, X⟩"] = (c.inner("X").sum(), q.sum())
        pairs["⟨dX_kv, X_kv⟩"] = (c.inner("X_kv").sum(), source)
    else:
        pairs["⟨dX, X⟩"] = (c.inner("X").sum(), q.sum() + source)
    return pairs


def scaled_scores(c: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """What is multiplied into the scores, and what they are divided by, against one another; a sink against the scores."""
    if c.problem.rule not in ("attention", "attend"):
        return {}
    of_Q, of_K = ("gain_Q", "gain_K") if "gain_Q" in c.args else ("Q", "K")
    pairs = {}
    if "K_cache" not in c.args:
        pairs[f"⟨d{of_Q}, {of_Q}⟩ = ⟨d{of_K}, {of_K}⟩"] = (c.inner(of_Q).sum(), c.inner(of_K).sum())
    if "temperature" in c.args:
        pairs["⟨dtemperature, temperature⟩"] = (
            -c.inner(of_Q).sum(),
            (c.g["temperature"] * c.args["temperature"]).sum(),
        )
    if (
        {"sinks", "bias"} <= c.args.keys()
        and not {"fill"} & c.options.keys()
        and "lse" not in c.options.get("outputs", ())
    ):
        pairs["Σ dbias + dsinks = 0"] = (c.g["bias"].sum(), -c.g["sinks"].sum())
    return pairs


def norms(c: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """A shift of a row changes nothing behind LayerNorm."""
    if c.problem.rule != "layer_norm":
        return {}
    rows = c.g["X"].sum(-1)
    return {"rowsum(dX) = 0": (rows, torch.zeros_like(rows))}


def whole_layers(c: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """The homogeneity of a whole layer in its projections and in what its norms hand on.

    What a norm returns is read by the projections alone where the norm comes first: ⟨dN, N⟩ is Σ ⟨dW, W⟩ over them, and dγ ∘ (o + γ) + dβ ∘ β adds up to it too.
    """
    if c.problem.rule != "transformer":
        return {}
    style = named_style(c.options["style"])
    pairs = {
        "⟨dW_V, W_V⟩ = ⟨dW_O, W_O⟩": (c.inner("W_V", c.h_kv) + c.inner("b_V", c.h_kv), c.inner("W_O", c.h_kv, 0)),
        "⟨dW_Q, W_Q⟩ = ⟨dW_K, W_K⟩": (
            c.inner("W_Q", c.h_kv) + c.inner("b_Q", c.h_kv), c.inner("W_K", c.h_kv) + c.inner("b_K", c.h_kv),
        ),
    }  # fmt: skip
    if style.gated or style.function == "relu":
        pairs["⟨dW_U, W_U⟩ = ⟨dW_D, W_D⟩"] = (c.inner("W_U") + c.inner("b_U"), c.inner("W_D"))
    if style.order != "after":
        offset = c.options.get("norm_offset", 0.0)
        for which, read in (("1", ("W_Q", "W_K", "W_V")), ("2", ("W_G", "W_U"))):
            gain, dgain = c.args[f"gain_{which}"], c.g[f"gain_{which}"]
            found = (dgain * (gain + offset)).sum() + c.inner(f"shift_{which}").sum()
            pairs[f"⟨dγ_{which}, γ_{which}⟩"] = (
                found,
                sum((c.inner(name).sum() for name in read), found * 0),
            )
    return pairs


def permuted_heads(c: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """Turning the groups of heads round by one turns the columns of dW_Q, dW_K, dW_V, the rows of dW_O, and a bias for each head."""
    if not c.problem.plain or c.h_kv < 2:
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
    if not c.problem.plain:
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
    "norms": norms,
    "whole layers": whole_layers,
    "scaled scores": scaled_scores,
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
