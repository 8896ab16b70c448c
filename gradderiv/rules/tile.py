"""A tile: some queries of one or more heads, and all keys that they may attend to. What a loop that never holds the whole score matrix is made of.

    Z = τ Q Kᵀ     S = c tanh(Z/c) + bias     P = exp(S − lse)     W = P ∘ D     O = W V           Dao et al. 2022, alg. 1–4 and app. B

Q (..., m, d_k)   K (..., e, d_k)   V (..., e, d_v)   S, P, W (..., m, e)   O (..., m, d_v)   lse (..., m, 1), −∞ where nothing may be attended to
c is the softcap, none if None.   D = keep/(1 − p), what dropout multiplies P by.   s, a sink, is a score for nothing, in lse; p = exp(s − lse) is what it takes.

Since a tile has all keys of its rows, a sum over a row is known at once: a tile of queries is attention itself, with these queries only. dQ, dO and what else belongs to a
query stands by itself; dK, dV, dbias and ds of a tile are added to those of the others. lse, which the forward pass knows already, is given to the derivatives, and need not be:
they find it again.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.rules._inputs import rule


class Tile(NamedTuple):
    """The arguments, cut to the tile. bias, mask and D broadcast to the scores; mask: True = may attend; sinks (..., 1, 1)."""

    Q: Tensor
    K: Tensor
    V: Tensor
    bias: Tensor | None
    sinks: Tensor | None
    mask: Tensor | None
    D: Tensor | None
    scale: float
    softcap: float | None


class Dots(NamedTuple):
    """Tangents of the arguments; None is one that stands still. The gradients of a tile have these names, too."""

    Q: Tensor | None = None
    K: Tensor | None = None
    V: Tensor | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None


class Outputs(NamedTuple):
    """O, lse and the weights W; also their cotangents and tangents, None where there are none."""

    O: Tensor | None = None
    lse: Tensor | None = None
    W: Tensor | None = None


@rule
def tile(x: Tile) -> Outputs:
    """O = W V,   W = D ∘ exp(S − lse),   lse = log( Σ exp S + exp s )

    Dao et al. 2022, §3.1.
    """
    now = _now(x, None)
    return Outputs(now.W @ x.V, now.lse, now.W)


@rule
def tile_jvp(x: Tile, lse: Tensor | None, dot: Dots) -> Outputs:
    """Ṡ = (1 − T²) ∘ τ (Q̇ Kᵀ + Q K̇ᵀ) + (bias)˙,   (lse)˙ = rowsum(P ∘ Ṡ) + p ṡ,   Ṗ = P ∘ (Ṡ − (lse)˙),   Ȯ = Ẇ V + W V̇

    The product rule on :func:`tile`; T = tanh(Z/c).
    """
    now = _now(x, lse)
    return _moved(x, now, _along(x, now, dot), dot)


@rule
def tile_jvp_jvp(x: Tile, lse: Tensor | None, dot: Dots, by: Dots, dot_by: Dots) -> Outputs:
    """P̈ = (Ṡ − (lse)˙) ∘ P′ + P ∘ (Ṡ′ − (lse)˙′),   (lse)˙′ = rowsum((Ṡ − (lse)˙) ∘ P′ + P ∘ Ṡ′) + p′ (ṡ − (lse)˙) + p ṡ′,   Ö = Ẅ V + Ẇ V′ + W′ V̇ + W V̇′

    The tangent of :func:`tile_jvp` along a second direction, ′ = ``by``, in which the tangents move by ``dot_by``. Ṡ′ has τ (Q̇ K′ᵀ + Q′ K̇ᵀ + Q̇′ Kᵀ + Q K̇′ᵀ).
    """
    now = _now(x, lse)
    first, other = _along(x, now, dot), _along(x, now, by)
    moving = ((dot.Q, by.K), (by.Q, dot.K), (dot_by.Q, x.K), (x.Q, dot_by.K))
    S_both = _products(*moving, scale=x.scale)  # ... m e
    if now.T is not None and x.softcap is not None:
        S_both = None if S_both is None else _capped(S_both, now.T)  # ... m e
        if first.Z is not None and other.Z is not None:
            S_both = _sum(S_both, (-2 / x.softcap) * now.T * first.Z * _capped(other.Z, now.T))  # ... m e
    S_both = _sum(S_both, dot_by.bias)  # ... m e
    P_both = (-first.lse if first.S is None else first.S - first.lse) * other.P  # ... m e
    P_both = P_both if S_both is None else torch.addcmul(P_both, now.P, S_both)  # ... m e
    lse_both = P_both.sum(-1, keepdim=True)  # ... m 1
    if now.p is not None and other.p is not None:
        lse_both = lse_both + other.p * ((0.0 if dot.sinks is None else dot.sinks) - first.lse)  # ... m 1
        lse_both = lse_both if dot_by.sinks is None else lse_both + now.p * dot_by.sinks  # ... m 1
    P_both = torch.addcmul(P_both, now.P, lse_both, value=-1)  # ... m e
    W_both = P_both if x.D is None else P_both * x.D  # ... m e
    values = ((W_both, x.V), (first.W, by.V), (other.W, dot.V), (now.W, dot_by.V))
    return Outputs(_sum(*(None if V is None else W @ V for W, V in values)), lse_both, W_both)


@rule
def tile_vjp(d: Outputs, x: Tile, lse: Tensor | None) -> Dots:
    """dV = Wᵀ dO,   dS = P ∘ (dP + β),   β = dlse − δ,   dZ = (1 − T²) ∘ dS,   dQ = τ dZ K,   dK = τ dZᵀ Q,   ds = Σ p β

    Dao et al. 2022, app. B.2; β is −δ = −rowsum(P ∘ dP) there, and lse, whose derivative by S is P, adds its own.
    """
    now = _now(x, lse)
    P, W, T = now.P, now.W, now.T
    dP, back = _arriving(d, x, now)  # ... m e, ... m 1
    # P was exp(S − lse)
    dS = P * (dP + back)  # ... m e
    dsinks = None if now.p is None else now.p * back  # ... m 1
    # S was c T + bias, T was tanh(Z/c)
    dZ = dS if T is None else _capped(dS, T)  # ... m e
    # Z was τ Q Kᵀ, O was W V
    dQ, dK = x.scale * (dZ @ x.K), x.scale * (dZ.mT @ x.Q)  # ... m d_k, ... e d_k
    dV = None if d.O is None else W.mT @ d.O  # ... e d_v
    return Dots(dQ, dK, dV, None if x.bias is None else dS, dsinks)


@rule
def tile_vjp_jvp(d: Outputs, x: Tile, lse: Tensor | None, d_dot: Outputs, dot: Dots) -> Dots:
    """dṠ = Ṗ ∘ (dP + β) + P ∘ (dṖ + β̇),   dŻ = (1 − T²) ∘ dṠ − (2/c) T ∘ Ż ∘ dZ,   dQ̇ = τ (dŻ K + dZ K̇),   dK̇ = τ (dŻᵀ Q + dZᵀ Q̇)

    The product rule on :func:`tile_vjp`, line by line; dV̇ = Ẇᵀ dO + Wᵀ dȮ, dṡ = Σ (ṗ β + p β̇), ṗ = p (ṡ − (lse)˙).
    """
    now = _now(x, lse)
    return _turned(d, x, now, d_dot, _along(x, now, dot), dot)


@rule
def tile_double(d: Outputs, x: Tile, lse: Tensor | None, u: Dots) -> tuple[Outputs, Dots]:
    """∂⟨u, g⟩/∂d = tile_jvp(u),   ∂⟨u, g⟩/∂x = tile_vjp_jvp(d, ḋ = 0, u),   g = tile_vjp(d)

    Pearlmutter 1994: the double backward, both halves of it from the same scores.
    """
    now = _now(x, lse)
    along = _along(x, now, u)
    return _moved(x, now, along, u), _turned(d, x, now, Outputs(), along, u)


# ---------------------------------------------------------------- a tile as it stands


class _Now(NamedTuple):
    """P, W = D ∘ P and T (..., m, e), lse and p (..., m, 1)."""

    P: Tensor
    W: Tensor
    T: Tensor | None
    lse: Tensor
    p: Tensor | None


def _now(x: Tile, lse: Tensor | None) -> _Now:
    S, T = _scores(x)  # ... m e
    lse = _lse(x, S) if lse is None else lse  # ... m 1
    finite = lse.masked_fill(torch.isneginf(lse), 0.0)  # ... m 1
    E = (S - finite).exp_()  # ... m e
    # a row of E sums to 1, but for the rounding of lse, which is a factor of all of it
    total, p = E.sum(-1, keepdim=True), None  # ... m 1
    if x.sinks is not None:
        p = (x.sinks - finite).exp_()  # ... m 1
        total = total + p  # ... m 1
        p = p / total.masked_fill(total == 0, 1.0)  # ... m 1
    P = E / total.masked_fill(total == 0, 1.0)  # ... m e, 0 where nothing may be attended to
    return _Now(P, P if x.D is None else P * x.D, T, lse, p)


def _scores(x: Tile) -> tuple[Tensor, Tensor | None]:
    """S, −∞ where the mask hides, and T where there is a softcap."""
    S, T = (x.scale * x.Q) @ x.K.mT, None  # ... m e
    if x.softcap is not None:
        T = torch.tanh(S / x.softcap)  # ... m e
        S = x.softcap * T  # ... m e
    if x.bias is not None:
        S = S + x.bias  # ... m e
    if x.mask is not None:
        S = S.masked_fill(~x.mask, -torch.inf)  # ... m e
    return S, T


def _lse(x: Tile, S: Tensor) -> Tensor:
    if x.sinks is not None:
        S = torch.cat([S, x.sinks.expand(*S.shape[:-1], 1)], -1)  # ... m e+1
    if x.mask is None and x.bias is None and x.sinks is None:
        return torch.logsumexp(S, -1, keepdim=True)  # ... m 1
    empty = torch.isneginf(S).all(-1, keepdim=True)  # ... m 1
    return torch.logsumexp(S.masked_fill(empty, 0.0), -1, keepdim=True).masked_fill(empty, -torch.inf)


def _arriving(d: Outputs, x: Tile, now: _Now) -> tuple[Tensor, Tensor]:
    """dP = D ∘ (dO Vᵀ + dW),   β = dlse − δ,   δ = rowsum(P ∘ dP)"""
    dP = _dropped(_sum(_products((d.O, x.V)), d.W), x)  # ... m e
    dP = torch.zeros_like(now.P) if dP is None else dP  # ... m e
    back = -(now.P * dP).sum(-1, keepdim=True)  # ... m 1
    return dP, back if d.lse is None else back + d.lse


# ---------------------------------------------------------------- a tile that moves


class _Along(NamedTuple):
    """Ż, Ṡ, Ṗ, Ẇ (..., m, e), (lse)˙, ṗ (..., m, 1)."""

    Z: Tensor | None
    S: Tensor | None
    P: Tensor
    W: Tensor
    lse: Tensor
    p: Tensor | None


def _along(x: Tile, now: _Now, dot: Dots) -> _Along:
    Z_dot = _products((dot.Q, x.K), (x.Q, dot.K), scale=x.scale)  # ... m e
    S_dot = Z_dot if Z_dot is None or now.T is None else _capped(Z_dot, now.T)  # ... m e
    S_dot = _sum(S_dot, dot.bias)  # ... m e
    P_dot = torch.zeros_like(now.P) if S_dot is None else now.P * S_dot  # ... m e
    lse_dot = P_dot.sum(-1, keepdim=True)  # ... m 1
    if now.p is not None and dot.sinks is not None:
        lse_dot = lse_dot + now.p * dot.sinks  # ... m 1
    P_dot = torch.addcmul(P_dot, now.P, lse_dot, value=-1)  # ... m e
    p_dot = (
        None if now.p is None else now.p * ((0.0 if dot.sinks is None else dot.sinks) - lse_dot)
    )  # ... m 1
    return _Along(Z_dot, S_dot, P_dot, P_dot if x.D is None else P_dot * x.D, lse_dot, p_dot)


def _moved(x: Tile, now: _Now, along: _Along, dot: Dots) -> Outputs:
    """Ȯ = Ẇ V + W V̇, (lse)˙, Ẇ"""
    O_dot = along.W @ x.V  # ... m d_v
    O_dot = O_dot if dot.V is None else O_dot + now.W @ dot.V  # ... m d_v
    return Outputs(O_dot, along.lse, along.W)


def _turned(d: Outputs, x: Tile, now: _Now, d_dot: Outputs, along: _Along, dot: Dots) -> Dots:
    """The lines of :func:`tile_vjp_jvp`."""
    dP, back = _arriving(d, x, now)  # ... m e, ... m 1
    dP_dot = _dropped(_sum(_products((d_dot.O, x.V), (d.O, dot.V)), d_dot.W), x)  # ... m e
    # dS was P ∘ (dP + β), β was dlse − rowsum(P ∘ dP)
    dP = dP + back  # ... m e
    dS, dS_dot = now.P * dP, along.P * dP  # ... m e
    if dP_dot is not None:
        dS_dot = torch.addcmul(dS_dot, now.P, dP_dot)  # ... m e
    back_dot = -dS_dot.sum(-1, keepdim=True)  # ... m 1
    if along.p is not None:  # a row of Ṗ sums to 0, and to −ṗ beside a sink
        back_dot = back_dot - along.p * back  # ... m 1
    if d_dot.lse is not None:
        back_dot = back_dot + d_dot.lse  # ... m 1
    dS_dot = torch.addcmul(dS_dot, now.P, back_dot)  # ... m e
    dsinks_dot = None
    if along.p is not None and now.p is not None:
        dsinks_dot = along.p * back + now.p * back_dot  # ... m 1
    # dZ was (1 − T²) ∘ dS
    dZ, dZ_dot = dS, dS_dot  # ... m e
    if now.T is not None and x.softcap is not None:
        dZ, dZ_dot = _capped(dS, now.T), _capped(dS_dot, now.T)  # ... m e
        if along.Z is not None:
            dZ_dot = torch.addcmul(dZ_dot, now.T * along.Z, dZ, value=-2 / x.softcap)  # ... m e
    # dQ was τ dZ K, dK was τ dZᵀ Q, dV was Wᵀ dO
    dQ_dot = _sum(dZ_dot @ x.K, None if dot.K is None else dZ @ dot.K)  # ... m d_k
    dK_dot = _sum(dZ_dot.mT @ x.Q, None if dot.Q is None else dZ.mT @ dot.Q)  # ... e d_k
    dV_dot = _sum(None if d.O is None else along.W.mT @ d.O, None if d_dot.O is None else now.W.mT @ d_dot.O)
    assert dQ_dot is not None
    assert dK_dot is not None
    dbias_dot = None if x.bias is None else dS_dot  # ... m e
    return Dots(x.scale * dQ_dot, x.scale * dK_dot, dV_dot, dbias_dot, dsinks_dot)


# ---------------------------------------------------------------- of what there is


def _dropped(dW: Tensor | None, x: Tile) -> Tensor | None:
    return dW if dW is None or x.D is None else dW * x.D


def _capped(dS: Tensor, T: Tensor) -> Tensor:
    """(1 − T²) ∘ dS"""
    return torch.addcmul(dS, T * T, dS, value=-1)


def _sum(*terms: Tensor | None) -> Tensor | None:
    found = [t for t in terms if t is not None]
    return functools.reduce(torch.add, found) if found else None


def _products(*pairs: tuple[Tensor | None, Tensor | None], scale: float = 1.0) -> Tensor | None:
    """τ (A Bᵀ + C Dᵀ + …) as one product; a pair of which one is not there is 0."""
    there = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not there:
        return None
    left, right = (torch.cat(side, -1) if len(side) > 1 else side[0] for side in zip(*there, strict=True))
    return (left if scale == 1.0 else scale * left) @ right.mT
