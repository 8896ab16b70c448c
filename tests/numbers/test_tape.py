"""The tape: reverse mode through the operations of a forward, below any hand-written backward, detach or no_grad."""

from __future__ import annotations

import math

import pytest
import torch
from exact_reference import same
from operations import ANALYTIC, EXACT_IN_FLOAT64, WRITES

from gradderiv.numbers.field import Field
from gradderiv.numbers.rounding import Rounding, RoundingTensor
from gradderiv.numbers.tape import Tape, TapeTensor

CASES = {**EXACT_IN_FLOAT64, **ANALYTIC}
NO_GRADIENT = {
    "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "copy", "lift_fresh", "_reshape_alias", "fill_",
    "zero_", "fill_ tensor", "slice_backward", "select_backward", "diagonal_backward", "power 0", "detach", "softmax backward", "log_softmax backward",
    "embedding bag without gradient", "embedding bag backward", "embedding bag backward, of its weights",
}  # fmt: skip
CUT = {"detached alias"}


def outputs(out):
    return list(out) if isinstance(out, (list, tuple)) else [out]


def eighths(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 33, s, generator=generator).double() / 8 for s in shapes]


def taped(function, tensors, *, cotangents=None, quiet=True):
    """Outputs, and gradients by the tape alone: the program itself runs without autograd where ``quiet``."""
    tape, leaves = Tape(), [t.clone().requires_grad_() for t in tensors]
    inputs = [tape.make(x) for x in leaves]
    with torch.set_grad_enabled(not quiet):
        out = outputs(function(*inputs))
    recorded = [y.recorded for y in out]
    cotangents = cotangents or [torch.ones_like(y) for y in recorded]
    return recorded, torch.autograd.grad(recorded, leaves, cotangents, allow_unused=True)


def reference(function, tensors, cotangents):
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = outputs(function(*leaves))
    return out, torch.autograd.grad(out, leaves, cotangents, allow_unused=True)


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("name", sorted({*CASES} - NO_GRADIENT))
def test_gradients_are_those_of_autograd(name, quiet):
    function, shapes = CASES[name]
    tensors = eighths(shapes, 0)
    cotangents = eighths([y.shape for y in outputs(function(*tensors))], 1)
    out, grads = taped(function, tensors, cotangents=cotangents, quiet=quiet)
    expected, expected_grads = reference(function, tensors, cotangents)
    for x, y in zip([*out, *grads], [*expected, *expected_grads], strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x.double(), y.double(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", sorted({*WRITES} - CUT))
def test_programs_that_write_inside_a_function(name):
    """In the forward of a hand-written Function nothing is recorded by autograd, so views of several outputs may be written too."""
    tensors = eighths([(3, 4), (3, 4)], 0)

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            return WRITES[name](x, y)

        @staticmethod
        def backward(ctx, *grads):
            raise AssertionError("the backward was called")

    with torch.no_grad():
        plain = outputs(WRITES[name](*[t.clone() for t in tensors]))
    cotangents = eighths([y.shape for y in plain], 1)
    out, grads = taped(Forward.apply, tensors, cotangents=cotangents)
    for x, y in zip(out, plain, strict=True):
        assert torch.equal(x.detach(), y)
    h = 0.125  # the programs are polynomials of low degree: compare with differences of their Taylor order
    for k, (x, g) in enumerate(zip(tensors, grads, strict=True)):
        direction = eighths([x.shape], 7)[0]
        values = []
        for step in (-2 * h, -h, h, 2 * h):
            moved = [t.clone() for t in tensors]
            moved[k] = x + step * direction
            with torch.no_grad():
                values.append(
                    sum((c * y).sum() for c, y in zip(cotangents, outputs(WRITES[name](*moved)), strict=True))
                )
        slope = (8 * (values[2] - values[1]) - (values[3] - values[0])) / (12 * h)  # exact up to degree four
        found = torch.zeros_like(x) if g is None else g
        assert (found * direction).sum().item() == pytest.approx(slope.item(), rel=1e-10, abs=1e-10)


def test_detach_and_no_grad_do_not_cut_the_tape():
    def program(x):
        with torch.no_grad():
            y = x.detach() * x
        z = y.data
        z.mul_(2)
        return z.clone().detach() * x

    x = torch.tensor([3.0, -2.0])
    (out,), (g,) = taped(program, [x])
    assert torch.equal(out.detach(), 2 * x**3)
    assert torch.equal(g, 6 * x**2)
    (out,), (g,) = reference(program, [x], [torch.ones(2)])  # a twin: autograd itself is cut
    assert torch.equal(g, 2 * x**2)


class Wrong(torch.autograd.Function):
    """softmax(Q Kᵀ) V and its lse, in blocks, with a backward that returns ones."""

    @staticmethod
    def forward(ctx, Q, K, V):
        ctx.save_for_backward(Q, K, V)
        O, lse = torch.zeros_like(Q @ V[:1].mT @ V[:1]), torch.full_like(Q[:, :1], -math.inf)
        for k, v in zip(K.split(2), V.split(2), strict=True):
            S = Q @ k.mT
            new = torch.logaddexp(lse, torch.logsumexp(S, -1, keepdim=True))
            O *= torch.exp(lse - new)
            O.add_(torch.exp(S - new) @ v)
            lse = new
        return O, lse.squeeze(-1)

    @staticmethod
    def backward(ctx, dO, dlse):
        return tuple(torch.ones_like(x) for x in ctx.saved_tensors)


def plain(Q, K, V):
    S = Q @ K.mT
    return torch.softmax(S, -1) @ V, torch.logsumexp(S, -1)


def test_a_wrong_backward_is_bypassed():
    tensors = [
        torch.randn(3, 4, dtype=torch.float64),
        torch.randn(5, 4, dtype=torch.float64),
        torch.randn(5, 4, dtype=torch.float64),
    ]
    cotangents = [torch.randn(3, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)]
    out, grads = taped(Wrong.apply, tensors, cotangents=cotangents, quiet=False)
    expected, expected_grads = reference(plain, tensors, cotangents)
    for x, y in zip([*out, *grads], [*expected, *expected_grads], strict=True):
        torch.testing.assert_close(x, y)
    _, wrong = reference(Wrong.apply, tensors, cotangents)
    assert all(bool((g == 1).all()) for g in wrong)


def test_each_output_has_its_own_history():
    x = torch.tensor([2.0, 3.0], requires_grad=True)

    def program(x):
        a, b = (x * x).unbind(0)
        return a, b, torch.stack([a, b]).flip(0), x.sum()

    a, b, flipped, total = (y.recorded for y in program(Tape().make(x)))
    grad = lambda y: torch.autograd.grad(y.sum(), x, retain_graph=True)[0].tolist()  # noqa: E731
    assert [grad(y) for y in (a, b, flipped, total)] == [[4, 0], [0, 6], [4, 6], [1, 1]]


def test_operations_with_several_results_are_recorded():
    x = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
    values, positions = Tape().make(x).sort(-1)
    assert isinstance(values, TapeTensor)
    assert positions.recorded.tolist() == [[1, 2, 0]]
    (g,) = torch.autograd.grad((values.recorded * torch.tensor([1.0, 10.0, 100.0])).sum(), x)
    assert g.tolist() == [[100, 1, 10]]


def test_constants_on_the_tape_and_beside_it():
    tape = Tape()
    x = torch.tensor([2.0], requires_grad=True)
    for constant in (tape.make(torch.tensor([5.0])), torch.tensor([5.0]), 5.0):
        y = tape.make(x) * constant
        assert torch.autograd.grad(y.recorded, x)[0].item() == 5
    assert not (tape.make(torch.tensor([5.0])) * 2).recorded.requires_grad


def test_an_input_is_not_overwritten_by_a_program_that_writes_into_a_copy():
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    y = Tape().make(x)
    z = y.clone()
    z.mul_(2)
    z[0] = 0
    assert x.tolist() == [2, 3]
    assert y.recorded.tolist() == [2, 3]
    assert torch.autograd.grad(z.recorded.sum(), x)[0].tolist() == [0, 2]


def test_second_order_through_the_tape():
    x = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    y = Cubed.apply(Tape().make(x)).recorded
    (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x)
    assert g.tolist() == [12, 27]
    assert h.tolist() == [12, 18]


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x * x

    @staticmethod
    def backward(ctx, g):
        return g


# ---------------------------------------------------------------- over other numbers


def test_over_the_field():
    field = Field(seed=9, lanes=2)
    thetas = [
        field.random(3, 4).requires_grad_(),
        field.random(6, 4).requires_grad_(),
        field.random(6, 4).requires_grad_(),
    ]
    tape = Tape()
    O, lse = Wrong.apply(*map(tape.make, thetas))
    dO = field.random(3, 4)
    found = torch.autograd.grad(O.recorded, thetas, dO, retain_graph=True)
    E = torch.exp(thetas[0] @ thetas[1].mT)
    expected = torch.autograd.grad((E / E.sum(-1, keepdim=True)) @ thetas[2], thetas, dO)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    wrong = torch.autograd.grad(Wrong.apply(*thetas)[0], thetas, dO)
    assert not any(same(a, b) for a, b in zip(wrong, expected, strict=True))
    assert same(lse.recorded.exp(), E.sum(-1).detach())


def test_a_maximum_over_the_field_is_a_shift_and_not_a_constant():
    """``detach`` does not cut a tape: what depends on the maximum has a gradient that moves with the seed of the shifts."""
    moving = []
    for shift in (0, 1):
        field = Field(seed=9, lanes=2, shift=shift)
        x, g = field.random(3, 4).requires_grad_(), field.random(3, 4)
        S = Tape().make(x)
        E = torch.exp(S - S.amax(-1, keepdim=True).detach())
        (found,) = torch.autograd.grad((E / E.sum(-1, keepdim=True)).recorded, x, g, retain_graph=True)
        P = torch.softmax(x.detach(), -1)
        assert same(found, P * (g - (P * g).sum(-1, keepdim=True)))
        moving.append(torch.autograd.grad(E.recorded.sum(), x)[0].part("v0"))
    assert not bool((moving[0] == moving[1]).any())


def test_over_rounding_errors():
    rounding = Rounding(torch.float32)
    x, y = torch.rand(3, 4, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64)
    leaves = [rounding.make(t).requires_grad_() for t in (x, y)]
    out = torch.softmax(Tape().make(leaves[0]) @ Tape().make(leaves[1]), -1).recorded
    assert isinstance(out, RoundingTensor)
    g = torch.rand(3, 2, dtype=torch.float64)
    grads = torch.autograd.grad(out, leaves, rounding.make(g))
    _, expected = reference(lambda a, b: torch.softmax(a @ b, -1), [x, y], [g])
    for found, value in zip(grads, expected, strict=True):
        torch.testing.assert_close(found.value, value)
        assert bool((found.error > 0).all())
        assert bool((found.error < 1e-5).all())


def test_the_dtype_of_the_program_is_kept():
    x = torch.rand(3, dtype=torch.bfloat16, requires_grad=True)
    y = Tape().make(x)
    assert y.dtype == torch.bfloat16
    assert (y * y).recorded.dtype == torch.bfloat16
    assert y.float().dtype == torch.float32
    (g,) = torch.autograd.grad(y.float().sum().recorded, x)
    assert g.dtype == torch.bfloat16
