"""A tile of queries is :func:`gradderiv.rules.attend.attend` of these queries, over floats and over the field: value, tangent, gradients and second order."""

from __future__ import annotations

import pytest
import torch
from tile_mutants import MUTANTS
from torch.testing import assert_close

from gradderiv.checks.exact import exactly
from gradderiv.rules import tile
from gradderiv.rules.attend import attend, attend_jvp, attend_vjp, attend_vjp_jvp
from gradderiv.rules.tile import Dots, Outputs, Tile

H, M, E, D_K, D_V, P_DROPPED = 2, 3, 4, 4, 2, 0.5
MASK = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
FULL = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
KEEP = torch.tensor(
    [[[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 1, 1]], [[1, 1, 1, 0], [1, 1, 0, 1], [0, 0, 1, 1]]]
).bool()
OPTIONS = {
    "plain": {},
    "mask": {"mask": FULL},
    "empty row": {"mask": MASK},
    "bias": {"bias": (H, M, E)},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": (H,)},
    "dropout": {"keep": KEEP, "dropout_p": P_DROPPED},
    "all": {"mask": MASK, "bias": (H, M, E), "softcap": 1.5, "sinks": (H,), "keep": KEEP, "dropout_p": P_DROPPED},
}  # fmt: skip


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


def drawn(make, name):
    """The arguments of attend, and tangents of those that have any."""
    options = {n: make(*o) if n in ("bias", "sinks") else o for n, o in OPTIONS[name].items()}
    given = {"Q": make(H, M, D_K), "K": make(H, E, D_K), "V": make(H, E, D_V), "scale": 0.5, **options}
    return given, {n: make(*t.shape) for n, t in given.items() if n in ("Q", "K", "V", "bias", "sinks")}


def as_tile(given, rows=slice(0, M)):
    """The same, as a tile has it."""
    bias, sinks, mask, keep = (given.get(n) for n in ("bias", "sinks", "mask", "keep"))
    return Tile(
        given["Q"][:, rows], given["K"], given["V"],
        None if bias is None else bias[:, rows],
        None if sinks is None else sinks[:, None, None],
        None if mask is None else mask[rows],
        None if keep is None else keep[:, rows].double() / (1 - P_DROPPED),
        given["scale"], given.get("softcap"),
    )  # fmt: skip


def as_dots(dots, rows=slice(0, M)):
    bias, sinks = dots.get("bias"), dots.get("sinks")
    bias = None if bias is None else bias[:, rows]
    return Dots(
        dots["Q"][:, rows], dots["K"], dots["V"], bias, None if sinks is None else sinks[:, None, None]
    )


def of_tile(found, what, only=""):
    """The gradients, or outputs, by name, with the axes that attend's have."""
    named = {n: t for n, t in found._asdict().items() if t is not None and n in (only or n)}
    if "lse" in named:
        named["lse"] = named["lse"].squeeze(-1)
    if "sinks" in named:
        named["sinks"] = named["sinks"].sum((-2, -1))
    return {f"{what} {n}": t for n, t in named.items()}


def of_attend(found, what):
    named = found._asdict()
    return {f"{what} {'W' if n == 'weights' else n}": t for n, t in named.items()}


def pairs(make, name, *, told=True):
    """What a tile with all rows says, beside what attend says."""
    given, dots = drawn(make, name)
    x, u, (out, saved) = as_tile(given), as_dots(dots), attend(**given)
    move = {f"{n}_dot": t for n, t in dots.items()}
    shapes = {"O": (H, M, D_V), "lse": (H, M), "W": (H, M, E)}
    d, d_dot = ({n: make(*s) for n, s in shapes.items()} for _ in range(2))
    wide, wide_dot = (Outputs(a["O"], a["lse"].unsqueeze(-1), a["W"]) for a in (d, d_dot))
    arriving = {"dO": d["O"], "dlse": d["lse"], "dweights": d["W"]}
    arriving_dot = {"dO_dot": d_dot["O"], "dlse_dot": d_dot["lse"], "dweights_dot": d_dot["W"]}
    lse = out.lse.unsqueeze(-1) if told else None
    both = tile.tile_double(wide, x, lse, u)
    found = of_tile(tile.tile(x), "value") | of_tile(tile.tile_jvp(x, lse, u), "jvp")
    found |= of_tile(tile.tile_vjp(wide, x, lse), "vjp")
    found |= of_tile(tile.tile_vjp_jvp(wide, x, lse, wide_dot, u), "vjp_jvp")
    found |= of_tile(both[0], "double") | of_tile(both[1], "double")
    still = dict.fromkeys(arriving_dot)
    right = of_attend(out, "value") | of_attend(attend_jvp(saved, **move), "jvp")
    right |= of_attend(attend_vjp(saved=saved, **arriving), "vjp")
    right |= of_attend(attend_vjp_jvp(saved=saved, **arriving, **arriving_dot, **move), "vjp_jvp")
    right |= of_attend(attend_jvp(saved, **move), "double")
    right |= of_attend(attend_vjp_jvp(saved=saved, **arriving, **still, **move), "double")
    assert found.keys() == right.keys()
    return {n: (found[n], right[n]) for n in right}


def wrong(name, **options):
    """Which pairs differ over the field."""
    outcomes = exactly(lambda field: pairs(field.random, name, **options))
    return {n for n, outcome in outcomes.items() if not outcome.equal}


@pytest.mark.parametrize("told", [True, False], ids=["told", "not told"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_tile_of_all_rows_is_attend(name, told):
    """In floats and exactly, whether O and lse are given or not."""
    for a, b in pairs(double, name, told=told).values():
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    assert not wrong(name, told=told)


@pytest.mark.parametrize("name", ["mask", "all"])
def test_tiles_put_together_are_attend(name):
    """What belongs to a query is its own, what belongs to a key is a sum over the tiles."""

    def run(field):
        given, dots = drawn(field.random, name)
        dO, (out, saved) = field.random(H, M, D_V), attend(**given)
        move = {f"{n}_dot": t for n, t in dots.items()}
        right = attend_vjp_jvp(dO, saved, dO, **move)
        parts = []
        for rows in (slice(0, 2), slice(2, 3)):
            d = Outputs(dO[:, rows])
            parts.append(tile.tile_vjp_jvp(d, as_tile(given, rows), None, d, as_dots(dots, rows)))
        found = {"Q": torch.cat([p.Q for p in parts], -2), "one tile's K": parts[0].K}
        found |= {n: parts[0]._asdict()[n] + parts[1]._asdict()[n] for n in ("K", "V")}
        O = torch.cat([tile.tile(as_tile(given, rows)).O for rows in (slice(0, 2), slice(2, 3))], -2)
        return {"O": (O, out.O)} | {n: (t, getattr(right, n[-1])) for n, t in found.items()}

    outcomes = exactly(run)
    assert {n for n, outcome in outcomes.items() if not outcome.equal} == {"one tile's K"}


def test_what_stands_still_may_be_none():
    given, dots = drawn(double, "all")
    x, lse, d = as_tile(given), None, Outputs(double(H, M, D_V))
    for i, name in enumerate(Dots._fields):
        u = as_dots(dots)
        alone = Dots(**{name: u[i]})
        zeros = Dots(*(t if j == i else torch.zeros_like(t) for j, t in enumerate(u)))
        pieces = [tile.tile_double(d, x, lse, v) for v in (alone, zeros, u)]
        one, same, other = (torch.cat([t.flatten() for half in p for t in half]) for p in pieces)
        torch.testing.assert_close(one, same, rtol=0, atol=1e-14)
        assert not torch.allclose(one, other)
    nothing = tile.tile_jvp(x, lse, Dots())
    assert not any(t.any() for t in nothing)


def test_a_gradient_that_does_not_arrive_may_be_none():
    given, _ = drawn(double, "all")
    x, shapes = as_tile(given), Outputs((H, M, D_V), (H, M, 1), (H, M, E))
    every = Outputs(*(double(*s) for s in shapes))
    zero = Outputs(*(torch.zeros(s, dtype=torch.float64) for s in shapes))
    parts = [tile.tile_vjp(Outputs(**{n: t}), x, None) for n, t in every._asdict().items()]
    for i, n in enumerate(Outputs._fields):
        full = tile.tile_vjp(zero._replace(**{n: every[i]}), x, None)
        for a, b in zip(parts[i], full, strict=True):
            torch.testing.assert_close(torch.zeros_like(b) if a is None else a, b, rtol=0, atol=1e-14)
    assert parts[1].V is None
    for whole, *one in zip(tile.tile_vjp(every, x, None), *parts, strict=True):
        torch.testing.assert_close(whole, sum(t for t in one if t is not None), rtol=0, atol=1e-13)


REFUTED = {
    "row sum": {"vjp K", "vjp Q", "vjp bias", "vjp sinks"},
    "row sum of the weights": {"vjp K", "vjp Q", "vjp bias", "vjp sinks"},
    "sink": {"double sinks", "vjp_jvp sinks"},
    "cap": {"double Q", "vjp_jvp Q", "double K", "vjp_jvp K"},
    "lse": {"jvp O", "jvp W", "double O", "vjp_jvp V"},
    "values": {"jvp O", "double O"},
    "values in second order": {"double Q", "vjp_jvp bias"},
    "keys in second order": {"double Q", "vjp_jvp Q"},
    "dQ and dK": {"vjp Q"},
    "slope of the cap": {"vjp Q", "vjp K", "jvp O", "vjp_jvp Q"},
    "dropout": {"vjp Q", "vjp K", "vjp bias"},
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_slip_is_refuted(name, monkeypatch):
    """Where it should be, and not in the value, nor in the gradient where it is of second order."""
    monkeypatch.setattr(tile, *MUTANTS[name])
    found = wrong("all", told=False)
    assert REFUTED[name] <= found
    assert not any(n.startswith("value") for n in found)
    assert any(n.startswith("vjp ") for n in REFUTED[name]) == any(n.startswith("vjp ") for n in found)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", OPTIONS)
def test_a_tangent_of_a_tangent(name):
    """Forward mode of tile_jvp along a second direction, in which the tangents move, too."""
    given, dots = drawn(double, name)
    others = [{n: double(*t.shape) for n, t in dots.items()} for _ in range(2)]
    x, u, by, u_by = as_tile(given), as_dots(dots), *map(as_dots, others)
    names = [n for n in Dots._fields if getattr(u, n) is not None]

    def moved(*t):
        half = len(names)
        place = dict(zip(names, t[:half], strict=True))
        dot = Dots(**dict(zip(names, t[half:], strict=True)))
        found = tile.tile_jvp(x._replace(**place), None, dot)
        return found.O, torch.nan_to_num(found.lse), found.W

    def all_of(*groups):
        return tuple(getattr(g, n) for g in groups for n in names)

    _, expected = torch.func.jvp(moved, all_of(x, u), all_of(by, u_by))
    found = tile.tile_jvp_jvp(x, tile.tile(x).lse, u, by, u_by)
    assert_close([found.O, torch.nan_to_num(found.lse), found.W], list(expected), rtol=1e-12, atol=1e-12)
    # the twin: a tangent that stands still
    still = tile.tile_jvp_jvp(x, None, u, by, u_by._replace(V=None))
    assert not torch.allclose(still.O, expected[0])
