"""The engine that composes rules: any composition has the derivatives that autograd and dual numbers give it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradderiv.errors import InputError
from gradderiv.numbers.dual import Dual
from gradderiv.numbers.field import Field
from gradderiv.rules import steps as engine
from gradderiv.rules.steps import Operator, linear_map, run, run_jvp, run_vjp, run_vjp_jvp, step

modest = settings(deadline=None, max_examples=60, derandomize=True, database=None)

# ---------------------------------------------------------------- toy rules, each beside its plain formula

PRODUCT = Operator(
    lambda a, b: (a * b, (a, b)),
    lambda s, a, b: a * s[1] + s[0] * b,
    lambda d, s: (d * s[1], d * s[0]),
    lambda d, s, d_dot, a, b: (d_dot * s[1] + d * b, d_dot * s[0] + d * a),
)
SQUARE = Operator(
    lambda a: (a * a, a),
    lambda s, a: 2 * s * a,
    lambda d, s: (2 * d * s,),
    lambda d, s, d_dot, a: (2 * (d_dot * s + d * a),),
)
#: an argument that may be missing
SHIFT = Operator(
    lambda a, b=None: (a if b is None else a + 3 * b, b is not None),
    lambda given, a, b=None: a + 3 * b if given else a,
    lambda d, given: (d, 3 * d if given else None),
    lambda d, given, d_dot, a, b=None: (d_dot, 3 * d_dot if given else None),
)
#: two outputs
TWO = Operator(
    lambda a, b: ((a * b, a + b * b), (a, b)),
    lambda s, a, b: (a * s[1] + s[0] * b, a + 2 * s[1] * b),
    lambda d, s: (d[0] * s[1] + d[1], d[0] * s[0] + 2 * d[1] * s[1]),
    lambda d, s, e, a, b: (e[0] * s[1] + d[0] * b + e[1], e[0] * s[0] + d[0] * a + 2 * (e[1] * s[1] + d[1] * b)),
)  # fmt: skip
FLIP = linear_map(lambda x, factor: factor * x.flip(0), lambda d, shape, factor: factor * d.flip(0))

TOYS = {
    "product": (PRODUCT, 2, 1, {}, lambda a, b: (a * b,)),
    "square": (SQUARE, 1, 1, {}, lambda a: (a**2,)),
    "shift": (SHIFT, 2, 1, {}, lambda a, b: (a if b is None else a + 3 * b,)),
    "two": (TWO, 2, 2, {}, lambda a, b: (a * b, a + b**2)),
    "flip": (FLIP, 1, 1, {"factor": -2}, lambda x: (x.flip(0) * -2,)),
}
NAMES = "abcd"
ALL = ("a", "b", "c")  # the arguments; d has no value at first, and none at all where no step writes it


def plainly(wires, values):
    """The same composition, written as what it is."""
    values = dict(values)
    for toy, reads, writes in wires:
        out = TOYS[toy][4](*map(values.get, reads))
        values.update(zip(writes, out, strict=True))
    return values


@st.composite
def compositions(draw):
    """(toy, what it reads, what it writes): names read twice, by one step too, and written again, as it comes."""
    wires, known = [], set(ALL)
    for _ in range(draw(st.integers(1, 6))):
        toy = draw(st.sampled_from(sorted(TOYS)))
        _, n_in, n_out, _, _ = TOYS[toy]
        reads = [draw(st.sampled_from(sorted(known))) for _ in range(n_in)]
        if toy == "shift" and draw(st.booleans()):
            reads[1] = "nothing"
        writes = draw(st.permutations(NAMES))[:n_out]
        known |= {*writes}
        wires.append((toy, tuple(reads), tuple(writes)))
    seen = draw(st.sets(st.sampled_from(sorted(known)), min_size=1))
    return wires, sorted(seen)


def composed(wires):
    return [
        step(TOYS[toy][0], f"{' '.join(reads)} -> {' '.join(writes)}", **TOYS[toy][3])
        for toy, reads, writes in wires
    ]


def wrong(wires, seen, still=()):
    """What differs from autograd and dual numbers of the plain composition, exactly."""
    field, dual = Field(seed=1, lanes=2), Dual()
    x, u = ({n: field.random(3) for n in ALL} for _ in range(2))
    u = {n: torch.zeros_like(t) if n in still else t for n, t in u.items()}
    d, d_dot = ({n: field.random(3) for n in seen} for _ in range(2))
    trace = run(composed(wires), {**x, "nothing": None})
    theta = {n: dual.make(x[n], u[n]).requires_grad_() for n in ALL}
    values = plainly(wires, theta)
    expected = torch.autograd.grad(
        [values[n] for n in seen], list(theta.values()), [dual.make(d[n], d_dot[n]) for n in seen], materialize_grads=True
    )  # fmt: skip
    expected = dict(zip(ALL, expected, strict=True))
    dots = {n: None if n in still else t for n, t in u.items()}
    Y_dot, g, g_dot = run_jvp(trace, dots), run_vjp(d, trace), run_vjp_jvp(d, trace, d_dot, dots)
    assert g.keys() == g_dot.keys() == {*ALL}
    pairs = {f"value {n}": (trace.values[n], values[n].detach().primal) for n in seen}
    pairs |= {f"tangent {n}": (Y_dot[n], values[n].detach().tangent) for n in seen}
    pairs |= {f"d{n}": (g[n], part(expected[n], "primal")) for n in ALL}
    pairs |= {f"d{n}˙": (g_dot[n], part(expected[n], "tangent")) for n in ALL}
    return {name for name, (a, b) in pairs.items() if bool(field.differs(a, b).any())}


def part(t, name):
    """Zeros that autograd has made are no dual numbers."""
    return getattr(t, name) if hasattr(t, "primal") else t


@modest
@given(compositions(), st.sets(st.sampled_from(ALL)))
def test_any_composition_has_the_derivatives_of_autograd_and_dual_numbers(composition, still):
    assert not wrong(*composition, still)


#: what each case of the engine is for; and the same must be noticed where the engine is wrong
TOLD = {
    "read by two steps": [("square", "a", "b"), ("product", "ab", "c")],
    "read twice by one step": [("product", "aa", "b"), ("two", "bb", "cd")],
    "written again": [("square", "a", "a"), ("product", "ab", "b"), ("shift", "ba", "a")],
    "two outputs of which one is looked at": [("two", "ab", "cd"), ("square", "c", "c")],
    "an argument that is not given": [("shift", ("a", "nothing"), "b"), ("product", "bc", "d")],
    "an argument that nothing depends on": [("square", "a", "b")],
}


@pytest.mark.parametrize("name", TOLD)
def test_each_thing_that_a_composition_can_do(name):
    wires = [(toy, tuple(reads), tuple(writes)) for toy, reads, writes in TOLD[name]]
    last = wires[-1][2]
    assert not wrong(wires, last)
    assert not wrong(wires, last[:1])


def test_what_nothing_depends_on_has_zeros_and_what_is_not_given_has_nothing():
    x = {n: torch.randn(3) for n in ALL}
    trace = run(composed([("square", "a", "d")]), {**x, "nothing": None})
    d = {"d": torch.ones(3)}
    for g in (run_vjp(d, trace), run_vjp_jvp(d, trace, d, {})):
        assert list(g) == list(ALL)
        assert not g["b"].any()
        assert g["b"].shape == (3,)


def test_without_a_cotangent_there_is_no_gradient_and_without_a_tangent_nothing_moves():
    x = {n: torch.randn(3) for n in ALL}
    trace = run(composed([("two", "ab", "cd")]), x)
    assert not any(g.any() for g in run_vjp({"c": None, "d": None}, trace).values())
    assert not any(t.any() for t in run_jvp(trace, {}).values())
    ones = {"c": torch.ones(3)}
    first, second = run_vjp(ones, trace), run_vjp_jvp({}, trace, ones, {})
    assert all(torch.equal(first[n], second[n]) for n in ALL)  # linear in the cotangent


def test_a_gradient_that_stands_still_is_a_zero_and_does_not_end_the_walk():
    """A vjp_jvp may return None: what comes before it still moves."""
    lazy = SQUARE._replace(f=lambda a: (5 * a, None), jvp=lambda s, a: 5 * a, vjp=lambda d, s: (5 * d,),
                           vjp_jvp=lambda d, s, d_dot, a: (None,))  # fmt: skip
    x, u = {"a": torch.randn(3)}, {"a": torch.randn(3)}
    d = {"a": torch.randn(3)}
    trace = run([step(SQUARE, "a -> a"), step(lazy, "a -> a")], x)
    g_dot = run_vjp_jvp(d, trace, {}, u)
    torch.testing.assert_close(g_dot["a"], 10 * d["a"] * u["a"])


def test_arguments_and_cotangents_are_left_as_they_are():
    x = {n: torch.randn(3) for n in ALL}
    d = {"c": torch.randn(3), "a": torch.randn(3)}
    before = {n: t.clone() for n, t in (*x.items(), *((f"d{n}", t) for n, t in d.items()))}
    trace = run(composed([("square", "a", "a"), ("product", "ab", "c")]), x)
    run_vjp(d, trace)
    run_vjp_jvp(d, trace, {}, {"a": torch.ones(3)})
    assert d.keys() == {"c", "a"}
    assert all(torch.equal(t, before[n]) for n, t in x.items())
    assert all(torch.equal(t, before[f"d{n}"]) for n, t in d.items())


def test_a_tangent_of_nothing_is_refused():
    trace = run(composed([("square", "a", "b")]), {"a": torch.ones(3), "nothing": None})
    words = (
        "a tangent needs an argument that was given: one of a\n  came:  nothing_dot=…\n"
        "  cause: another spelling, or the tangent of an option that is off\n  do:    pass nothing to the forward, or no tangent for it"
    )
    with pytest.raises(InputError) as caught:
        run_jvp(trace, {"nothing": torch.ones(3)})
    assert str(caught.value) == words
    with pytest.raises(InputError):
        run_vjp_jvp({"b": torch.ones(3)}, trace, {}, {"b": torch.ones(3)})
    run_jvp(trace, {"nothing": None})


# ---------------------------------------------------------------- an engine that is wrong is noticed


def overwrites(d, names, gradients):
    d.update({n: g for n, g in zip(names, gradients, strict=True) if g is not None})


def forgets_to_take_away(s, d, out):
    found = [d.get(name) for name in s.writes]
    if all(x is None for x in found):
        return None
    if len(found) == 1:
        return found[0]
    return tuple(torch.zeros_like(o) if x is None else x for x, o in zip(found, out, strict=True))


WRONG = {
    "overwrites instead of adding": ("_add", overwrites, "read by two steps"),
    "overwrites within a step": ("_add", overwrites, "read twice by one step"),
    "goes forward in the backward": ("reversed", iter, "read by two steps"),
    "keeps the cotangent of a value that is gone": ("_collected", forgets_to_take_away, "written again"),
}


@pytest.mark.parametrize("name", WRONG)
def test_twin_a_wrong_engine_is_refused(name, monkeypatch):
    what, instead, told = WRONG[name]
    monkeypatch.setattr(engine, what, instead, raising=False)
    wires = [(toy, tuple(reads), tuple(writes)) for toy, reads, writes in TOLD[told]]
    found = wrong(wires, wires[-1][2])
    assert any(f.startswith("d") for f in found), found
    assert not any(f.startswith("value") for f in found)
