"""Finite differences: their bound holds over many scales, says something where it should, and nothing where it cannot."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradderiv.checks import differences as module
from gradderiv.checks.differences import directional_difference, finite_differences
from gradderiv.checks.reference import multihead as textbook
from gradderiv.errors import DtypeError
from gradderiv.rules.multihead import multihead

STDS = (1e-4, 1e-3, 0.02, 0.2, 1.0, 3.0, 10.0, 30.0)
FUNCTIONS = {
    "sin": (torch.sin, torch.cos),
    "exp": (torch.exp, torch.exp),
    "tanh": (torch.tanh, lambda x: 1 / torch.cosh(x.clamp(-300, 300)) ** 2),
    "cube": (lambda x: x**3, lambda x: 3 * x**2),
    "linear": (lambda x: 3 * x + 1, lambda x: torch.full_like(x, 3.0)),
    "bell": (lambda x: torch.exp(-(x**2)), lambda x: -2 * x * torch.exp(-(x**2))),
    "log1p": (lambda x: torch.log1p(x**2), lambda x: 2 * x / (1 + x**2)),
}


def points(std: float, *shape: int, seed: int = 0) -> Tensor:
    return std * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(std: float, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """A small layer whose weights have this standard deviation."""
    X, dY = points(1.0, 5, 6, seed=seed), points(1.0, 5, 6, seed=seed + 1)
    weights = {f"W_{c}": points(std, 6, 6, seed=seed + k) for k, c in enumerate("QKVO", start=2)}
    return {"X": X, **weights}, dY


def gradients(args: dict[str, Tensor], dY: Tensor) -> dict[str, Tensor]:
    """By autograd, with the roundoff of autograd."""
    leaves = {name: x.clone().requires_grad_() for name, x in args.items()}
    found = torch.autograd.grad(textbook(**leaves, n_heads=2), list(leaves.values()), dY)  # type: ignore[arg-type]
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_bound_holds_for_known_derivatives(name: str, std: float) -> None:
    f, derivative = FUNCTIONS[name]
    x = points(std, 8)
    weights = points(1.0, 8, seed=1)
    estimate, bound = finite_differences(lambda a: (weights * f(a["x"])).sum(), {"x": x})["x"]
    expected = weights * derivative(x)
    assert bool(((estimate - expected).abs() <= bound + 4e-16 * expected.abs()).all())


@pytest.mark.parametrize("std", STDS)
def test_the_bound_holds_for_a_layer_and_says_something(std: float) -> None:
    args, dY = layer(std, seed=int(1e6 * std))
    found = finite_differences(lambda a: (dY * multihead(**a, n_heads=2)[0]).sum(), args)
    for name, g in gradients(args, dY).items():
        estimate, bound = found[name]
        assert bool(((estimate - g).abs() <= bound + 1e-13 * g.abs().max()).all()), name
        if std <= 3:  # a softmax that is not saturated
            assert float(bound.max()) < 1e-5 * float(g.abs().max()), name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_bound_holds_for_a_thousand_layers() -> None:
    for seed in range(1000):
        args, dY = layer(STDS[seed % len(STDS)], 10 * seed)
        found = finite_differences(lambda a, dY=dY: (dY * multihead(**a, n_heads=2)[0]).sum(), args)
        for name, g in gradients(args, dY).items():
            estimate, bound = found[name]
            assert bool(((estimate - g).abs() <= bound + 1e-13 * g.abs().max()).all()), (seed, name)


def test_a_wrong_gradient_is_outside_the_bound() -> None:
    args, dY = layer(0.02, seed=3)
    found = finite_differences(lambda a: (dY * multihead(**a, n_heads=2)[0]).sum(), args)
    for name, g in gradients(args, dY).items():
        estimate, bound = found[name]
        wrong = g.clone()
        wrong[2, 3] *= 1 + 1e-6
        beyond = (estimate - wrong).abs() > bound
        assert bool(beyond[2, 3]), name
        assert int(beyond.sum()) == 1, name


def test_plateaus_beside_a_jump_widen_the_bound() -> None:
    """f is flat at every distance that a long step looks at, and steep in between: two long steps agree on 0."""
    x = torch.tensor([0.0, 0.0], dtype=torch.float64)

    def loss(a: dict[str, Tensor]) -> Tensor:
        steep = torch.tanh(1e4 * a["x"][0])
        return steep + a["x"][1]

    estimate, bound = finite_differences(loss, {"x": x})["x"]
    assert bool(((estimate - torch.tensor([1e4, 1.0])).abs() <= bound).all())


def test_without_the_short_step_the_plateau_deceives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the test before: what the quotient over the short step is for."""
    monkeypatch.setattr(module, "_believed", lambda estimate, bound, quotient, uncertain: bound)
    monkeypatch.setattr(module, "_step", lambda *_: torch.ones(1, dtype=torch.float64))
    x = torch.zeros(1, dtype=torch.float64)
    estimate, bound = finite_differences(lambda a: torch.tanh(1e4 * a["x"]).sum(), {"x": x})["x"]
    assert float((estimate - 1e4).abs()) > float(bound)


def test_noise_in_the_function_is_measured() -> None:
    """A function with 1e-6 of deterministic noise has a bound that knows it."""
    x = points(1.0, 4)

    def noisy(a: dict[str, Tensor]) -> Tensor:
        exact = torch.sin(a["x"]).sum()
        return exact + 1e-6 * torch.sin(1e13 * exact)

    estimate, bound = finite_differences(noisy, {"x": x})["x"]
    assert bool(((estimate - torch.cos(x)).abs() <= bound).all())
    assert float(bound.min()) > 1e-7


def test_the_rounding_that_is_given_is_believed() -> None:
    x = points(1.0, 4)
    loss = lambda a: torch.sin(a["x"]).sum()  # noqa: E731
    _, narrow = finite_differences(loss, {"x": x})["x"]
    _, wide = finite_differences(loss, {"x": x}, rounding=1e-6)["x"]
    assert float(wide.min()) > 1e3 * float(narrow.max())


def test_functions_without_vmap_are_looped_over() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * x

    x = points(1.0, 3, 2)
    with pytest.raises(RuntimeError):
        torch.func.vmap(Square.apply)(x)
    estimate, bound = finite_differences(lambda a: Square.apply(a["x"]).sum(), {"x": x})["x"]
    assert estimate.shape == x.shape
    assert bool(((estimate - 2 * x).abs() <= bound).all())


def test_a_wrong_vmap_rule_is_not_believed() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x * x

        @staticmethod
        def setup_context(ctx: object, inputs: object, output: object) -> None: ...

        @staticmethod
        def vmap(info: object, in_dims: object, x: Tensor) -> tuple[Tensor, int]:
            return 2 * x * x, 0

    x = points(1.0, 3)
    estimate, bound = finite_differences(lambda a: Doubled.apply(a["x"]).sum(), {"x": x})["x"]
    assert bool(((estimate - 2 * x).abs() <= bound).all())


@pytest.mark.parametrize("std", STDS)
def test_directions_are_bounded_too(std: float) -> None:
    args, dY = layer(std, seed=5)
    directions = {name: points(1.0, *x.shape, seed=9) for name, x in args.items()}
    g = gradients(args, dY)
    for name in args:
        estimate, bound = directional_difference(
            lambda a: (dY * multihead(**a, n_heads=2)[0]).sum(), args, {name: directions[name]}
        )
        expected = float((g[name] * directions[name]).sum())
        assert abs(estimate - expected) <= bound + 1e-13 * float(g[name].norm() * directions[name].norm())


def test_scalars_and_empty_arguments() -> None:
    args = {"t": torch.tensor(0.5, dtype=torch.float64), "none": torch.zeros(0, 3, dtype=torch.float64)}
    found = finite_differences(lambda a: a["t"].exp() + a["none"].sum(), args)
    assert found["t"][0].shape == ()
    assert float(found["t"][0]) == pytest.approx(math.exp(0.5), rel=1e-10)
    assert found["none"][0].shape == (0, 3)


def test_arguments_stay_as_they_are_and_values_are_not_recorded() -> None:
    x = points(1.0, 3)
    kept, wanted = x.clone(), x.requires_grad_()
    estimate, _ = finite_differences(lambda a: a["x"].square().sum(), {"x": wanted})["x"]
    assert torch.equal(x, kept)
    assert not estimate.requires_grad


@pytest.mark.parametrize(
    ("args", "loss", "words"),
    [
        ({"x": torch.zeros(2)}, lambda a: a["x"].sum(), "x has dtype torch.float32"),
        ({"x": torch.zeros(2).double()}, lambda a: a["x"], "one float64 number"),
        ({"x": torch.zeros(2).double()}, lambda a: a["x"].sum().float(), "one float64 number"),
    ],
)
def test_misuse_is_refused(args: dict[str, Tensor], loss: object, words: str) -> None:
    with pytest.raises(DtypeError, match=words):
        finite_differences(loss, args)  # type: ignore[arg-type]
