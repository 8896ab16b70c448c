"""Finite differences of a scalar function of several tensors, entry by entry, each with a bound on its error.

    D(h) = [8 (f(x+h) − f(x−h)) − (f(x+2h) − f(x−2h))] / 12h      f′ − D(h) = h⁴ f⁽⁵⁾/30 + …

An estimate without an error bar accepts or accuses at random. Two steps, h and h/2, show the truncation error: it falls by 16 between them, so
that |D(h) − D(h/2)| is 15 times what is left in D(h/2); the bound keeps all of it. The rounding error of f, divided by h, is added. The
step of an argument is found by probing a few of its entries over the whole range of steps; a step that does not suit
another entry makes a wide bound there, not a wrong one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.errors import DtypeError, message

Loss = Callable[[dict[str, Tensor]], Tensor]

OFFSETS = (-4, -2, -1, 1, 2, 4)  # in units of h/2
PROBES = 4  # entries of an argument that its step is chosen by
FINEST, COARSEST = -34, 2  # log₂ of the steps tried, relative to the next power of two above the largest entry
TRUNCATION = 2.0  # times |D(h) − D(h/2)|, which is 15 times what theory leaves in D(h/2)
CHUNK = 2**21  # numbers that one vectorised call may hold


class Difference(NamedTuple):
    """An estimate of the derivative with respect to every entry of an argument, and a bound on its error."""

    estimate: Tensor
    bound: Tensor


def finite_differences(
    loss: Loss, args: dict[str, Tensor], rounding: float | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """The derivative of ``loss`` with respect to every entry of every tensor of ``args``: (estimate, bound on its error).

    Args:
        loss: a scalar function of named float64 tensors. What it does not depend on belongs into its closure.
        args: where to differentiate; every entry costs six calls, vectorised where ``torch.func.vmap`` can.
        rounding: how far one value of ``loss`` may be off by rounding; measured when None.

    Raises:
        DtypeError: an argument that is not float64, or a loss that does not return one float64 number.
    """
    _require_float64(args)
    evaluate = _Evaluator(loss, args)
    noise = measured_rounding(evaluate, args) if rounding is None else rounding
    noise = max(noise, torch.finfo(torch.float64).eps / 2 * abs(evaluate.center), torch.finfo(torch.float64).tiny)
    out: dict[str, tuple[Tensor, Tensor]] = {}
    for name, x in args.items():
        entries = torch.arange(x.numel())
        step = _step(evaluate, name, noise)
        estimate, bound = _differences(evaluate, name, entries, step, noise)
        out[name] = Difference(estimate.reshape(x.shape), bound.reshape(x.shape))
    return out


def directional_difference(
    loss: Loss, args: dict[str, Tensor], directions: dict[str, Tensor], rounding: float | None = None
) -> tuple[float, float]:
    """The derivative of ``loss`` along one direction in all arguments: (estimate, bound on its error)."""

    def along(line: dict[str, Tensor]) -> Tensor:
        t = line["t"]
        return loss({name: x + t * directions[name] if name in directions else x for name, x in args.items()})

    estimate, bound = finite_differences(along, {"t": torch.zeros((), dtype=torch.float64)}, rounding)["t"]
    return float(estimate), float(bound)


def measured_rounding(evaluate: Callable[[str, Tensor, Tensor], Tensor], args: dict[str, Tensor]) -> float:
    """How far one value of the function may be off by rounding, from the scatter of values at close points.

    The fourth differences of a smooth function at points 10⁻⁹ apart are far below rounding, so what they show is rounding: ECnoise,
    Moré & Wild 2011. The largest over all arguments, times 10, since a bound is asked for and not a standard deviation.
    """
    largest = 0.0
    for name, x in args.items():
        size = float(x.abs().max()) if x.numel() else 0.0
        entry = torch.full((16,), int(x.abs().argmax()) if x.numel() else 0)
        offsets = 1e-9 * (size or 1.0) * torch.arange(16, dtype=torch.float64)
        table = torch.diff(evaluate(name, entry, offsets), n=4)
        gamma = math.factorial(4) ** 2 / math.factorial(8)
        largest = max(largest, float((gamma * table.square().mean()).sqrt()))
    return 10 * largest


# ---------------------------------------------------------------- the formula


def _differences(
    evaluate: _Evaluator, name: str, entries: Tensor, step: float, noise: float
) -> tuple[Tensor, Tensor]:
    """D(h/2) for these entries and its bound."""
    offsets = step / 2 * torch.tensor(OFFSETS, dtype=torch.float64)
    values = evaluate(name, entries.repeat_interleave(len(OFFSETS)), offsets.repeat(len(entries)))
    low4, low2, low1, up1, up2, up4 = values.reshape(-1, len(OFFSETS)).unbind(1)
    coarse = (8 * (up2 - low2) - (up4 - low4)) / (12 * step)
    fine = (8 * (up1 - low1) - (up2 - low2)) / (6 * step)
    x = evaluate.args[name].flatten()[entries].abs() + 2 * step
    moved = fine.abs() * x * torch.finfo(torch.float64).eps  # x + h is itself rounded
    bound = TRUNCATION * (coarse - fine).abs() + 3 * (noise + moved) / step
    return fine, bound.nan_to_num(nan=torch.inf)


def _step(evaluate: _Evaluator, name: str, noise: float) -> float:
    """The power of two that gives the smallest bounds on a few entries of the argument."""
    x = evaluate.args[name].detach().flatten()
    if x.numel() == 0:
        return 1.0
    largest = float(x.abs().max())
    unit = max(0, math.ceil(math.log2(largest))) if largest > 0 and math.isfinite(largest) else 0
    spread = torch.linspace(0, x.numel() - 1, min(PROBES, x.numel())).round().long()
    steps = [2.0**k for k in range(FINEST + unit, COARSEST + unit + 1, 2)]
    bounds = torch.stack([_differences(evaluate, name, spread, h, noise)[1] for h in steps])
    relative = bounds / bounds.min(0).values.clamp(min=torch.finfo(torch.float64).tiny)
    return steps[int(relative.nan_to_num(nan=torch.inf).median(1).values.argmin())]


# ---------------------------------------------------------------- evaluating at many points


class _Evaluator:
    """Values of the loss with single entries of one argument moved: vectorised, or one after the other."""

    def __init__(self, loss: Loss, args: dict[str, Tensor]) -> None:
        self.loss, self.args = loss, {name: x.detach() for name, x in args.items()}
        with torch.no_grad():
            value = loss(dict(self.args))
        if not isinstance(value, Tensor) or value.numel() != 1 or value.dtype != torch.float64:
            came = (
                f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            )
            raise DtypeError(
                message(
                    "finite differences need a loss that is one float64 number",
                    came,
                    "the output itself, or a loss that is computed in a narrower type",
                    "pair the output with a cotangent: (dY * Y).sum()",
                )
            )
        self.center = float(value)
        self.vectorised = all(self._vmap_agrees(name) for name in args)

    def __call__(self, name: str, entries: Tensor, offsets: Tensor) -> Tensor:
        """The loss with entry ``entries[i]`` of argument ``name`` moved by ``offsets[i]``, for every i."""
        with torch.no_grad():
            return torch.cat(
                [self._values(name, *chunk) for chunk in _chunks(self.args[name].numel(), entries, offsets)]
            )

    def _values(self, name: str, entries: Tensor, offsets: Tensor) -> Tensor:
        if self.vectorised:
            return self._vmapped(name, self._moved(name, entries, offsets))
        pairs = zip(entries.split(1), offsets.split(1), strict=True)
        return torch.stack(
            [
                self.loss({**self.args, name: self._moved(name, e, o).squeeze(0)}).reshape(()).detach()
                for e, o in pairs
            ]
        )

    def _moved(self, name: str, entries: Tensor, offsets: Tensor) -> Tensor:
        x = self.args[name]
        points = x.reshape(1, -1).repeat(len(entries), 1)
        points[torch.arange(len(entries)), entries] += offsets
        return points.reshape(-1, *x.shape)

    def _vmapped(self, name: str, points: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an operation without a batching rule is slow, not wrong
            return torch.func.vmap(lambda x: self.loss({**self.args, name: x}).reshape(()))(points)

    def _vmap_agrees(self, name: str) -> bool:
        """vmap runs on this argument and does not change the value: a hand-written rule for it may be wrong."""
        x = self.args[name]
        if x.numel() == 0:
            return True
        try:
            with torch.no_grad():
                found = self._vmapped(name, torch.stack([x, x]))
        except Exception:
            return False
        return bool((found - self.center).abs().max() <= 1e-9 * abs(self.center))


def _chunks(width: int, entries: Tensor, offsets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, CHUNK // max(width, 1))
    return zip(entries.split(rows), offsets.split(rows), strict=True)


def _require_float64(args: dict[str, Tensor]) -> None:
    for name, x in args.items():
        if x.dtype != torch.float64:
            raise DtypeError(
                message(
                    "finite differences need float64 arguments",
                    f"{name} has dtype {x.dtype}",
                    "a model in its training precision, in which a difference is mostly rounding",
                    f"pass {name}.double()",
                )
            )
