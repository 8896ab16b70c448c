"""``functional.attention`` with each of its options, beside a formula that shares no line with it, and the rule that says the same.

A case is its tensors that have a gradient, by name, and three functions of them, each of which returns a tuple: ours, exponentials and sums, ``gradderiv.rules.attend``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.functional import attention
from gradderiv.functional._dropout import kept
from gradderiv.rules.attend import attend
from gradderiv.rules.masks import causal, padding

SEED = 2**40 + 12345
P_DROPPED = 0.25


def naive(Q, K, V, *, mask=None, bias=None, scale=None, softcap=None, sinks=None, keep=None, dropout_p=0.0):
    """O, lse and the weights: W_ij = D_ij M_ij exp(s_ij) / (Σ_k M_ik exp(s_ik) + exp sink), and 0 where no M_ij is True."""
    scale = Q.shape[-1] ** -0.5 if scale is None else scale
    S = scale * torch.einsum("...ia,...ja->...ij", Q, K)
    S = S if softcap is None else softcap * torch.tanh(S / softcap)
    E = torch.exp(S if bias is None else S + bias)
    E = E if mask is None else E * mask
    total = E.sum(-1, keepdim=True)
    empty = total.detach() == 0
    if sinks is not None:
        total, empty = total + sinks.exp()[..., None, None], torch.zeros_like(empty)
    P = E / (total + empty)
    P = P if keep is None else P * keep / (1 - dropout_p)
    lse = torch.where(empty, -torch.inf, (total + empty).log()).squeeze(-1)
    return torch.einsum("...ij,...jb->...ib", P, V), lse, P


class Case(NamedTuple):
    tensors: dict[str, Tensor]
    ours: Callable[..., tuple[Tensor, ...]]
    naive: Callable[..., tuple[Tensor, ...]]
    rule: Callable[..., tuple[Tensor, ...]]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(self.tensors.values())


def band(n_q: int, n_k: int, low: int | None, high: int | None) -> Tensor:
    """True where i + low ≤ j ≤ i + high."""
    distance = torch.arange(n_k) - torch.arange(n_q)[:, None]
    found = torch.ones(n_q, n_k, dtype=torch.bool)
    found = found if low is None else found & (distance >= low)
    return found if high is None else found & (distance <= high)


CASES = (
    "plain", "scale", "mask", "empty-row", "bias", "bias-inf", "mask-bias", "key-bias", "causal", "causal-mask", "window", "window-causal",
    "softcap", "softcap-bias", "sinks", "one-sink", "sinks-empty-row", "lse", "weights", "grouped", "mask-object", "dropout", "everything",
)  # fmt: skip


def case(name: str, *, B: int = 2, n_q: int = 5, n_k: int = 7, d_k: int = 4, d_v: int = 2) -> Case:
    """B batches of two heads."""
    draw = torch.Generator().manual_seed(len(name) + 7)
    shapes: dict[str, tuple[int, ...]] = {"Q": (B, 2, n_q, d_k), "K": (B, 2, n_k, d_k), "V": (B, 2, n_k, d_v)}
    mask = torch.rand(B, 1, n_q, n_k, generator=draw) > 0.4
    mask[..., 0] = True
    if "empty" in name:
        mask[0, :, -1] = False
    hidden = torch.rand(n_q, n_k, generator=draw) > 0.7
    hidden[-1] = True
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    outputs, group, minus_infinity = "O", 1, None
    match name:
        case "scale":
            ours = theirs = {"scale": -1.7}
        case "mask" | "empty-row":
            ours, theirs = {"attn_mask": mask}, {"mask": mask}
        case "bias":
            shapes |= {"bias": (2, n_q, n_k)}
        case "bias-inf":
            shapes |= {"bias": (B, 2, n_q, n_k)}
            minus_infinity = hidden
            theirs = {"mask": ~hidden}
        case "mask-bias":
            shapes |= {"bias": (B, 1, 1, n_k)}
            ours, theirs = {"attn_mask": mask}, {"mask": mask}
        case "key-bias":
            shapes |= {"bias": (n_k,)}
        case "causal":
            ours, theirs = {"is_causal": True}, {"mask": band(n_q, n_k, None, 0)}
        case "causal-mask":
            ours = {"is_causal": True, "attn_mask": mask}
            theirs = {"mask": mask & band(n_q, n_k, None, 0)}
        case "window":
            ours = {"window": (2, 1)}
            theirs = {"mask": band(n_q, n_k, n_k - n_q - 2, n_k - n_q + 1)}
        case "window-causal":
            ours = {"window": (3, -1), "is_causal": True}
            theirs = {"mask": band(n_q, n_k, n_k - n_q - 3, 0)}
        case "softcap" | "softcap-bias":
            ours = theirs = {"softcap": 1.5}
            shapes |= {"bias": (n_q, 1)} if "bias" in name else {}
        case "sinks":
            shapes |= {"sinks": (2,)}
        case "one-sink":
            shapes |= {"sinks": ()}
        case "sinks-empty-row":
            shapes |= {"sinks": (2,)}
            ours, theirs, outputs = {"attn_mask": mask}, {"mask": mask}, "O lse W"
        case "lse":
            outputs = "O lse"
        case "weights":
            outputs = "O W"
        case "grouped":
            group = 2
            shapes |= {"K": (B, 1, n_k, d_k), "V": (B, 1, n_k, d_v)}
            ours = {"enable_gqa": True}
        case "mask-object":
            lengths = [n_k // 2 + 1, n_k][:B]
            both = padding(lengths) & causal(alignment="upper-left")
            ours, theirs = {"attn_mask": both}, {"mask": both.on((B, 2, n_q, n_k), torch.device("cpu"))}
        case "dropout":
            ours = {"dropout_p": P_DROPPED}
            theirs = {"dropout_p": P_DROPPED, "keep": keep(n_q, n_k)}
        case "everything":
            shapes |= {"bias": (2, n_q, n_k), "sinks": (2,)}
            both, outputs = {"softcap": 1.5, "scale": 0.3, "dropout_p": P_DROPPED}, "O lse W"
            ours = {**both, "attn_mask": mask, "window": (4, 2)}
            seen = mask & band(n_q, n_k, n_k - n_q - 4, n_k - n_q + 2)
            theirs = {**both, "mask": seen, "keep": keep(n_q, n_k)}

    def call(Q, K, V, **more):
        if minus_infinity is not None:
            more["bias"] = more["bias"].masked_fill(minus_infinity, -torch.inf)
        found = attention(Q, K, V, **ours, **more, return_lse="lse" in outputs, return_weights="W" in outputs)
        return found if isinstance(found, tuple) else (found,)

    def formula(Q, K, V, **more):
        K, V = (t.repeat_interleave(group, -3) for t in (K, V))
        return _asked(outputs, *naive(Q, K, V, **theirs, **more))

    def rule(Q, K, V, **more):
        if "sinks" in more:
            more["sinks"] = more["sinks"].expand(2)
        (O, W, lse), _ = attend(Q, K, V, **theirs, **more)
        return _asked(outputs, O, lse, W)

    def named(function):
        return lambda *tensors: function(**dict(zip(shapes, tensors, strict=True)))

    tensors = {
        n: torch.randn(s, dtype=torch.float64, generator=draw).requires_grad_() for n, s in shapes.items()
    }
    return Case(tensors, named(call), named(formula), named(rule))


def keep(n_q: int, n_k: int) -> Tensor:
    """What dropout keeps where every head has the seed :data:`SEED`."""
    return kept(torch.full((1, 1), SEED), slice(0, n_q), slice(0, n_k), P_DROPPED)


def _asked(outputs: str, O: Tensor, lse: Tensor, W: Tensor) -> tuple[Tensor, ...]:
    return (O, *([lse] if "lse" in outputs else []), *([W] if "W" in outputs else []))


def loss(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    """A number of all outputs, of which no derivative vanishes."""
    return lambda *x: sum(
        (y * torch.arange(1, y.numel() + 1).view(y.shape) / 7).sin().sum() for y in function(*x)
    )
