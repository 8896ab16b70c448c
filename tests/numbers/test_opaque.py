"""Functions that are not rational: over the field by their relations, on dual floats by torch, and each derivative by another road.

A function over the field has random values. What makes it exp, a root, erf or a gate is the relations that it keeps, and every relation has a twin that it must not keep.
"""

from __future__ import annotations

import math

import pytest
import torch
from exact_reference import entered, objects, same
from operations import EMPTY, GATED, LARGEST, OPAQUE, ORDINARY
from torch.nn import functional

from gradderiv.errors import NoExactMeaning
from gradderiv.numbers.dual import Dual
from gradderiv.numbers.field import Field
from gradderiv.numbers.lanes import DrawAgain
from gradderiv.numbers.rounding import Rounding

ROOTS = frozenset({-1, 2})


def field(**options):
    return Field(seed=11, lanes=2, roots=ROOTS, **options)


def several(out):
    return [o for o in (out if isinstance(out, (list, tuple)) else [out]) if o is not None]


# ---------------------------------------------------------------- on dual floats: torch's own functions, and their derivatives


def floats(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [0.1 + 2 * torch.rand(s, generator=generator, dtype=torch.float64) for s in shapes]


@pytest.mark.parametrize("name", [*OPAQUE, *GATED])
def test_on_dual_floats_the_table_is_torch_and_its_tangent_the_derivative(name):
    function, shapes = {**OPAQUE, **GATED}[name]
    xs, vs = floats(shapes), floats(shapes, seed=1)
    expected = [y.detach() for y in several(function(*(x.clone() for x in xs)))]
    found = several(function(*map(Dual().make, xs, vs)))
    h = 1e-6
    above, below = (
        [y.detach() for y in several(function(*(x + s * h * v for x, v in zip(xs, vs, strict=True))))]
        for s in (1, -1)
    )
    assert len(found) == len(expected)
    for d, y, a, b in zip(found, expected, above, below, strict=True):
        torch.testing.assert_close(d.primal, y, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(d.tangent, (a - b) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ORDINARY)
def test_questions_with_an_answer_are_answered_as_for_floats(name):
    function, shapes = ORDINARY[name]
    x = torch.tensor([[0.0, 0.5, -2.0], [1.5, 0.0, 0.25]], dtype=torch.float64)
    floats = [x, x[0] * torch.tensor([1.0, 1.0, -1.0])][: len(shapes)]
    here = field()
    numbers = [entered(here, objects(t)) for t in floats]
    hidden = "∞" in name or "inf" in name
    if hidden:
        floats[0], numbers[0] = (t.masked_fill(EMPTY, -torch.inf) for t in (floats[0], numbers[0]))
    for system_numbers in (numbers, [Dual().make(t) for t in floats]):
        found = function(*system_numbers)
        assert type(found) is torch.Tensor
        assert torch.equal(found, function(*floats))
    if not hidden and name not in ("isnan", "isfinite"):
        assert here.ledger.zeros == [(6, numbers[0].note.value._replace(size=here.ledger.zeros[0][1].size))]


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_on_dual_floats(name):
    function, shapes = LARGEST[name]
    (x,) = floats(shapes)
    for d, y in zip(several(function(Dual().make(x))), several(function(x)), strict=True):
        assert torch.equal(d.primal if isinstance(d, torch.Tensor) and hasattr(d, "primal") else d, y)


# ---------------------------------------------------------------- over the field: each derivative by two roads


def field_program(name, here):
    function, shapes = {**OPAQUE, **GATED}[name]
    return function, [here.random(*s) for s in shapes]


# torch has no derivative of the first two, writes the next with cosh and with a comparison of its own, and asks of crossed or tensor bounds what no gate knows
INCONCLUSIVE = {
    "silu backward", "rms norm backward", "gelu by tanh backward", "softplus backward", "clamp the other way", "clamp tensor",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({*OPAQUE, *GATED} - INCONCLUSIVE))
def test_autograd_over_the_field_is_dual_numbers_over_the_field(name):
    """⟨g, ẏ⟩ = Σ ⟨dx, ẋ⟩, exactly; and not so with another tangent."""
    here = field(odd="sigmoid" in name or "softplus" in name or "silu" in name or "tanh" in name)
    function, xs = field_program(name, here)
    vs = [here.random(*x.shape) for x in xs]
    duals = several(function(*(Dual().make(x.clone(), v) for x, v in zip(xs, vs, strict=True))))
    leaves = [x.clone().requires_grad_() for x in xs]
    ys = several(function(*leaves))
    ys, duals = zip(*((y, d) for y, d in zip(ys, duals, strict=True) if y.requires_grad), strict=True)
    gs = [here.random(*y.shape) for y in ys]
    dxs = torch.autograd.grad(ys, leaves, gs, allow_unused=True)
    for y, d in zip(ys, duals, strict=True):
        assert same(y.detach(), d.primal)
    left = sum((g * d.tangent).sum() for g, d in zip(gs, duals, strict=True))
    right = sum((dx * v).sum() for dx, v in zip(dxs, vs, strict=True) if dx is not None)
    assert same(left, right)
    others = [here.random(*x.shape) for x in xs]
    assert not same(left, sum((dx * v).sum() for dx, v in zip(dxs, others, strict=True) if dx is not None))


# ---------------------------------------------------------------- exponentials


def test_the_relations_of_exp():
    here = field()
    a, r = here.random(5), here.random(5)
    assert same((a + r.log()).exp(), a.exp() * r)
    assert same((a - a).exp(), torch.ones_like(a))
    assert not same((2 * a).exp(), a.exp() ** 2)  # of which nothing is known
    assert not same((-a).exp(), 1 / a.exp())
    assert same(a.expm1() + 1, a.exp())
    assert same(a.log1p().exp(), 1 + a)


def test_with_odd_exp_of_minus_is_one_over_exp():
    here = field(odd=True)
    a, b = here.random(40), here.random(40)
    assert same((-a).exp() * a.exp(), torch.ones_like(a))
    assert same((a - b).exp(), 1 / (b - a).exp())
    assert same((a - a).exp(), torch.ones_like(a))
    assert not same((-a).exp(), a.exp())
    assert not same((2 * a).exp(), a.exp() ** 2)
    assert same((a.exp() + (-b + b.log()).exp()), a.exp() + b / b.exp())


@pytest.mark.parametrize("odd", [False, True])
def test_sigmoid_tanh_and_their_like(odd):
    here = field(odd=odd)
    a = here.random(20)
    s, t = torch.sigmoid(a), torch.tanh(a)
    assert same(s * (1 + (-a).exp()), torch.ones_like(a))
    assert same(functional.silu(a), a * s)
    assert same(torch.sigmoid(-a), 1 - s) == odd
    assert same(torch.tanh(-a), -t) == odd
    assert same(2 * torch.sigmoid(2 * a) - 1, t) == odd
    assert same(functional.logsigmoid(a).exp(), s)
    assert same(functional.softplus(a).exp(), 1 + a.exp())
    assert same((functional.softplus(a) - a).exp(), 1 + (-a).exp()) == odd
    E = (2 * a).exp()
    assert same(t, (E - 1) / (E + 1))
    (dt,) = torch.autograd.grad(torch.tanh(leaf := a.clone().requires_grad_()).sum(), leaf)
    assert same(dt, 1 - t * t)
    assert not same(dt, 1 - t)
    (ds,) = torch.autograd.grad(torch.sigmoid(leaf := a.clone().requires_grad_()).sum(), leaf)
    assert same(ds, s * (1 - s))


def test_powers_of_two():
    here = field()
    a, r = here.random(4), here.random(4)
    assert same(a.exp2(), (a * math.log(2)).exp())
    assert same((a + r.log2()).exp2(), a.exp2() * r)
    assert same((a * 1.4426950408889634).exp2(), a.exp())
    assert not same((a * 1.4426950408889).exp2(), a.exp())
    assert not same(a.exp2(), a.exp())
    (da,) = torch.autograd.grad((leaf := a.clone().requires_grad_()).exp2().sum(), leaf)
    assert same(da, a.exp2() * math.log(2))


# ---------------------------------------------------------------- roots


def test_a_root_squared_is_its_argument_which_is_overwritten():
    here = field()
    u = here.random(3, 4)
    before = u.clone()
    r = u.rsqrt()
    assert not same(u, before)
    assert same(u, r**-2)
    assert same(u.sqrt() ** 2, u)
    assert same(u.sqrt() * r, torch.ones_like(u))
    assert same(u.rsqrt(), r)
    x = here.random(3, 4)
    assert same(x * u.sqrt() / u, x * r)
    assert same(u**1.5, u * u.sqrt())
    assert same(u**-0.5, r)
    assert same(u**-2.5, r**5)
    assert not same(u**1.5, u.sqrt())
    assert not same(u.sqrt(), u)


def test_a_root_is_found_again_in_copies_views_and_recomputations():
    here = field()
    x, y = here.random(3, 4), here.random(3, 4)
    u, again = x * y, y * x
    r = u.rsqrt()
    assert same(again.rsqrt(), r)  # the same residues went in
    assert same(u.clone().rsqrt(), r)
    assert same(u.reshape(4, 3).sqrt() * r.reshape(4, 3), torch.ones_like(u).reshape(4, 3))
    assert not same((u + 1).rsqrt(), r)
    assert same(again, u)  # which is overwritten too
    part = here.random(2, 6)
    part[:, 1:3].sqrt()
    assert same(part[:, 1:3].sqrt() ** 2, part[:, 1:3])
    expanded = here.random(3, 1).expand(3, 4)
    assert same(expanded.sqrt(), expanded.sqrt())


def test_roots_nest_and_a_wrong_factor_shows():
    here = field()
    x, g = here.random(2, 4).requires_grad_(), here.random(2, 4)

    def rms(x, factor=1.0):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) * factor + 1e-5)

    (found,) = torch.autograd.grad(rms(rms(x) * 3), x, g)
    dual = rms(rms(Dual().make(x.detach().clone(), v := here.random(2, 4))) * 3)
    assert same((g * dual.tangent).sum(), (found * v).sum())
    assert not same(
        (g * dual.tangent).sum(), (torch.autograd.grad(rms(rms(x) * 3, 1.001), x, g)[0] * v).sum()
    )


def test_the_root_of_a_number_that_is_a_leaf():
    here = field()
    u = here.random(3).requires_grad_()
    (found,) = torch.autograd.grad(u.sqrt().sum(), u)
    assert same(found * 2 * u.detach().sqrt(), torch.ones_like(found))


# ---------------------------------------------------------------- erf, sine and cosine


def test_erf_is_odd_and_has_the_derivative_of_erf():
    here = field()
    a = here.random(40)
    assert same(torch.erf(-a), -torch.erf(a))
    assert same(torch.erf(a - a), torch.zeros_like(a))
    assert not same(torch.erf(-a), torch.erf(a))
    assert not same(torch.erf(2 * a), 2 * torch.erf(a))
    (da,) = torch.autograd.grad(torch.erf(leaf := a.clone().requires_grad_()).sum(), leaf)
    assert same(da, 2 / math.sqrt(math.pi) * torch.exp(-a * a))
    assert same(da * math.sqrt(math.pi) / 2, torch.exp(-a * a))
    assert not same(da, 1.1283791671 * torch.exp(-a * a))


def test_gelu_in_both_ways():
    here = field()
    a = here.random(6)
    assert same(functional.gelu(a), a * 0.5 * (1 + torch.erf(a / math.sqrt(2))))
    inner = math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)
    assert same(functional.gelu(a, approximate="tanh"), 0.5 * a * (1 + torch.tanh(inner)))
    assert not same(functional.gelu(a), functional.gelu(a, approximate="tanh"))
    (da,) = torch.autograd.grad(functional.gelu(leaf := a.clone().requires_grad_()).sum(), leaf)
    density = torch.exp(-a * a / 2) * 0.3989422804014327  # κ/√2
    assert same(da, 0.5 * (1 + torch.erf(a / math.sqrt(2))) + a * density)
    assert not same(da, 0.5 * (1 + torch.erf(a / math.sqrt(2))) + density)


@pytest.mark.parametrize("odd", [False, True])
def test_sine_and_cosine(odd):
    here = field(odd=odd)
    a = here.random(40)
    s, c = a.sin(), a.cos()
    assert same(s * s + c * c, torch.ones_like(a))
    assert same((-a).sin(), -s)
    assert same((-a).cos(), c)
    assert same((a - a).cos(), torch.ones_like(a))
    assert same((a - a).sin(), torch.zeros_like(a))
    assert not same(s, c)
    assert not same(s * s - c * c, torch.ones_like(a))
    ds, dc = (
        torch.autograd.grad(f(leaf := a.clone().requires_grad_()).sum(), leaf)[0]
        for f in (torch.sin, torch.cos)
    )
    assert same(ds, c)
    assert same(dc, -s)
    x, y = here.random(40), here.random(40)  # a rotation keeps the length
    assert same((x * c - y * s) ** 2 + (x * s + y * c) ** 2, x * x + y * y)
    assert not same((x * c - y * s) ** 2 + (x * s - y * c) ** 2, x * x + y * y)
    with pytest.raises(DrawAgain) as caught:
        Field(seed=11, lanes=2).random(2).sin()
    assert caught.value.root == -1


# ---------------------------------------------------------------- gates


def test_a_gate_and_its_complement():
    here = field()
    x, y = here.random(40), here.random(40)
    c = (x > y).double()
    assert (x > y).dtype == torch.bool
    assert same(c + (y > x).double(), torch.ones_like(x))
    assert same((x < y).double(), 1 - c)
    assert same((x >= y).double(), c)
    assert same((x <= y).double(), 1 - c)
    assert same((~(x > y)).double(), 1 - c)
    assert same((x - y > 0).double(), c)
    assert not same((x > 2 * y).double(), c)
    assert not same(c * c, c)  # not 0 or 1, but anything
    assert same(torch.where(x > y, x, y) + torch.where(x > y, y, x), x + y)
    assert not same(torch.where(x > y, x, y), torch.where(y > x, x, y))


def test_where_nothing_is_compared_strict_and_not_strict_differ():
    """0 > 0 is false and 0 ≥ 0 is true: the two gates are complements, and not one."""
    here = field()
    x = here.random(4)
    strict, weak = (x - x > 0).double(), (x - x >= 0).double()
    assert same(strict + weak, torch.ones_like(x))
    assert not same(strict, weak)


def test_of_a_maximum_an_entry_may_be_equal_to_it_and_is_never_greater():
    here = field()
    x = here.random(3, 4)
    m = x.amax(-1, keepdim=True)
    equal, greater, at_least = (t.double() for t in (x == m, x > m, x >= m))
    assert not same(equal, greater)
    assert not same(greater, at_least)
    assert same(equal + (x != m).double(), torch.ones_like(x))


def test_relu_abs_and_clamp():
    here = field()
    x = here.random(30)
    assert same(torch.relu(x) - torch.relu(-x), x)
    assert same(torch.relu(x) + torch.relu(-x), x.abs())
    assert same((-x).abs(), x.abs())
    assert same(x.abs(), x * x.sign())
    assert same(x.clamp(min=0), torch.relu(x))
    assert same(x.clamp(max=2), -(-x).clamp(min=-2))
    assert not same(x.abs(), x)
    assert not same(torch.relu(x), x.abs())
    assert not same(x.clamp(-1, 1), x.clamp(-1, 2))
    c = (x > 0).double()
    for relu in (
        torch.relu,
        lambda x: functional.relu(x * 1, inplace=True),
        lambda x: torch.relu(x).view(5, 6),
    ):
        leaf = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(relu(leaf).sum(), leaf)
        assert same(dx, c)
        assert not same(dx, 1 - c)
    (dx,) = torch.autograd.grad((leaf := x.clone().requires_grad_()).abs().sum(), leaf)
    assert same(dx, 2 * c - 1)
    (dx,) = torch.autograd.grad((leaf := x.clone().requires_grad_()).clamp(-1, 1).sum(), leaf)
    assert same(dx, (x > -1).double() * (x < 1).double())


@pytest.mark.parametrize(
    "program",
    [
        lambda x: bool(x[0] > 0),
        lambda x: 1 if (x > 0).sum() else 0,
        lambda x: (x > 0).any(),
        lambda x: (x > 0).all(),
        lambda x: (x[0] > 0).item(),
        lambda x: (x > 0).nonzero(),
        lambda x: x[x > 0],
        lambda x: x.index_put((x > 0,), x[:1]),
        lambda x: torch.arange(3.0)[x > 0],
        lambda x: x.clone().__setitem__(x > 0, 1.0),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: (x > 0).long(),
        lambda x: torch.where(x, x, x),
        lambda x: torch.where(x > 0, x, -torch.inf),
    ],
)
def test_the_truth_of_a_gate_cannot_be_asked_for(program):
    for x in (field().random(3), Dual().make(field().random(3))):
        with pytest.raises((NoExactMeaning, TypeError)):
            program(x)


def test_floats_know_their_gates_so_that_minus_infinity_may_stand_behind_one():
    x = torch.tensor([-1.0, 0.5, -torch.inf, 2.0], dtype=torch.float64)
    for numbers in (Dual().make(x, torch.ones_like(x)), Rounding(torch.float32).make(x)):
        for program in (
            lambda t: torch.where(t > 0, t, -torch.inf),
            lambda t: torch.where(t < 0, 0, t),
            lambda t: t.masked_fill(t > 1, -torch.inf),
            lambda t: t.clamp(min=-3),
        ):
            assert torch.equal(program(numbers).main, program(x))
            tangent = getattr(program(numbers), "tangent", x)
            assert not bool(tangent.isnan().any())


# ---------------------------------------------------------------- norms


def test_norms_are_their_decompositions():
    here = field()
    x, w, b = here.random(4, 6), here.random(6), here.random(6)
    centred = x - x.mean(-1, keepdim=True)
    rstd = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)
    assert same(functional.layer_norm(x, (6,), w, b, 1e-5), centred * rstd * w + b)
    assert same(
        functional.rms_norm(x, (6,), w, 1e-5), x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * w
    )
    assert same(x.var(-1) * 5, (centred * centred).sum(-1))
    assert same(x.std(-1), x.var(-1).sqrt())
    length = (x * x).sum(-1, keepdim=True).sqrt()
    assert same(x.norm(dim=-1, keepdim=True), length)
    assert not same(functional.layer_norm(x, (6,), w, b, 1e-5), functional.layer_norm(x, (6,), w, b, 1e-6))
