"""Slips in the formulas of :mod:`gradderiv.rules.tile`, each in one line of it, wrong on purpose."""

from __future__ import annotations

from gradderiv.rules import tile

arriving, along, moved, turned, capped, dropped = (
    getattr(tile, f"_{name}") for name in ("arriving", "along", "moved", "turned", "capped", "dropped")
)
tile_vjp = tile.tile_vjp


def without_row_sum(d, x, now):
    """β = dlse: δ forgotten."""
    dP, back = arriving(d, x, now)
    return dP, back * 0 if d.lse is None else d.lse


def without_weights_in_row_sum(d, x, now):
    """δ = rowsum(dO ∘ O): what arrives at the weights forgotten."""
    return arriving(d, x, now)[0], arriving(d._replace(W=None), x, now)[1]


def with_still_sink(x, now, dot):
    """ṗ = 0."""
    found = along(x, now, dot)
    return found if found.p is None else found._replace(p=found.p * 0)


def with_still_cap(x, now, dot):
    """(2/c) T ∘ Ż ∘ dZ forgotten."""
    return along(x, now, dot)._replace(Z=None)


def with_still_lse(x, now, dot):
    """Ṗ = P ∘ Ṡ."""
    found = along(x, now, dot)
    P = found.P + now.P * found.lse
    return found._replace(P=P, W=P if x.D is None else P * x.D)


def with_still_values(x, now, a, dot):
    """Ȯ = Ẇ V."""
    return moved(x, now, a, dot._replace(V=None))


def with_still_values_in_the_gradient(d, x, now, d_dot, a, dot):
    """dṖ without dO V̇ᵀ."""
    return turned(d, x, now, d_dot, a, dot._replace(V=None))


def with_still_keys_in_the_gradient(d, x, now, d_dot, a, dot):
    """dQ̇ = τ dŻ K: dZ K̇ forgotten."""
    return turned(d, x, now, d_dot, a, dot._replace(K=None))


def exchanged(d, x, lse):
    """dQ as the sum of dK's rows: the gradients of queries and keys exchanged, as far as their shapes let them."""
    found = tile_vjp(d, x, lse)
    return found._replace(Q=found.K.sum(-2, keepdim=True).expand_as(found.Q))


def without_cap(dS, T):
    """1 − T instead of 1 − T²."""
    return dS - T * dS


def dropped_once(dW, x):
    """D in the forward pass, and not in dP."""
    return dW


MUTANTS = {
    "row sum": ("_arriving", without_row_sum),
    "row sum of the weights": ("_arriving", without_weights_in_row_sum),
    "sink": ("_along", with_still_sink),
    "cap": ("_along", with_still_cap),
    "lse": ("_along", with_still_lse),
    "values": ("_moved", with_still_values),
    "values in second order": ("_turned", with_still_values_in_the_gradient),
    "keys in second order": ("_turned", with_still_keys_in_the_gradient),
    "dQ and dK": ("tile_vjp", exchanged),
    "slope of the cap": ("_capped", without_cap),
    "dropout": ("_dropped", dropped_once),
}
FIRST = {"row sum", "row sum of the weights", "dQ and dK", "slope of the cap", "dropout"}
"""Those that are wrong in the gradient already; the others in forward mode or in second order."""
