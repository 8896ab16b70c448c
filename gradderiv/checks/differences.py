"""Finite differences of a scalar function of several tensors, entry by entry, each with a bound on its error.

    D(h) = [8 (f(x+h) − f(x−h)) − (f(x+2h) − f(x−2h))] / 12h      f′ − D(h) = h⁴ f⁽⁵⁾/30 + …

An estimate without an error bar accepts or accuses at random. Two steps, h and h/2, show the truncation error: it falls by 16 between them, so
that |D(h) − D(h/2)| is 15 times what is left in D(h/2); the bound keeps all of it. The rounding error of f, divided by h, is added.

A step that is longer than the function is smooth sees plateaus on both sides of a jump and agrees with itself. Hence a plain quotient over a very short
step, for every entry: it is coarse, but where it contradicts, the bound is widened until it does not. The entries with the largest such quotients, and a few
others, are those that the step of an argument is chosen by. What varies within a millionth of its argument is beyond this method.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.errors import DtypeError, message
from gradderiv.threads import one_thread

Loss = Callable[[dict[str, Tensor]], Tensor]

OFFSETS = (-4, -2, -1, 1, 2, 4)  # in units of h/2
STEPS = range(
    -31, 3, 6
)  # log₂ of the steps tried, in units of the next power of two above the largest entry; then halfway
SHORT = 2.0**-20  # the very short step, in the same units
PROBES = 2  # entries with large quotients, and as many others, that the step is chosen by
TRUNCATION = 3.0  # times |D(h) − D(h/2)|, 15 times what is left in D(h/2) if f is smooth; of a jump nearby, D(h/2) sees twice that difference
NOISE = 20.0  # standard deviations of the rounding of f that its bound takes
CHUNK = 2**21  # numbers that one vectorised call may hold
EPS = torch.finfo(torch.float64).eps
TINY = torch.finfo(torch.float64).tiny


class Difference(NamedTuple):
    """An estimate of the derivative with respect to every entry of an argument, and a bound on its error."""

    estimate: Tensor
    bound: Tensor


def finite_differences(
    loss: Loss, args: dict[str, Tensor], rounding: float | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """The derivative of ``loss`` with respect to every entry of every tensor of ``args``: (estimate, bound on its error).

    Args:
        loss: a scalar function of named float64 tensors. What it is not differentiated by belongs into its closure.
        args: where to differentiate; every entry costs eight calls, vectorised where ``torch.func.vmap`` can.
        rounding: how far one value of ``loss`` may be off by rounding; measured when None.

    Raises:
        DtypeError: an argument that is not float64, or a loss that does not return one float64 number.
    """
    _require_float64(args)
    evaluate = _Evaluator(loss, args)
    with one_thread(max((x.numel() for x in args.values()), default=0)):
        noise = (
            max((measured_rounding(evaluate, name) for name in args), default=0.0)
            if rounding is None
            else rounding
        )
        noise = max(noise, EPS / 2 * abs(evaluate.center), TINY)
        return {name: _argument(evaluate, name, noise) for name in args}


def directional_difference(
    loss: Loss, args: dict[str, Tensor], directions: dict[str, Tensor]
) -> tuple[float, float]:
    """The derivative of ``loss`` along one direction in all arguments: (estimate, bound on its error)."""
    _require_float64(args)

    def along(line: dict[str, Tensor]) -> Tensor:
        t = line["t"]
        return loss({name: x + t * directions[name] if name in directions else x for name, x in args.items()})

    estimate, bound = finite_differences(along, {"t": torch.zeros((), dtype=torch.float64)})["t"]
    return float(estimate), float(bound)


def measured_rounding(evaluate: _Evaluator, name: str, step: float = 0.0) -> float:
    """How far a value of the function may be off by rounding when an entry of the argument has been moved by ``step``.

    The fourth differences of a smooth function at points 10⁻⁹ apart are far below rounding, so what they show is rounding: ECnoise,
    Moré & Wild 2011. The largest over a few entries, times NOISE, since a bound is asked for and not a standard deviation.
    """
    x = evaluate.args[name].flatten().cpu()
    if x.numel() == 0:
        return 0.0
    entries = torch.unique(torch.cat([_spread(x), x.abs().argmax()[None]]))
    spacing = 1e-9 * (float(x.abs().max()) or 1.0)
    offsets = step + spacing * torch.arange(16, dtype=torch.float64)
    values = evaluate(name, entries.repeat_interleave(16), offsets.repeat(len(entries)))
    table = torch.diff(values.reshape(-1, 16), n=4)
    gamma = math.factorial(4) ** 2 / math.factorial(8)
    return NOISE * float((gamma * table.square().mean(1)).sqrt().max())


def _spread(x: Tensor) -> Tensor:
    """A few entries from the first to the last."""
    return torch.linspace(0, len(x) - 1, min(PROBES, len(x))).round().long()


# ---------------------------------------------------------------- the formula


def _argument(evaluate: _Evaluator, name: str, noise: float) -> Difference:
    """The derivative with respect to all entries of one argument."""
    x = evaluate.args[name]
    if x.numel() == 0:
        return Difference(torch.zeros_like(x), torch.zeros_like(x))
    largest = float(x.abs().max())
    unit = 2.0 ** max(0, math.ceil(math.log2(largest))) if 0 < largest < math.inf else 1.0
    entries = torch.arange(x.numel())
    short = SHORT * unit
    ends = torch.tensor([-short, short], dtype=torch.float64)
    low, up = evaluate(name, entries.repeat_interleave(2), ends.repeat(x.numel())).reshape(-1, 2).unbind(1)
    quotient = (up - low) / (2 * short)
    step = _step(evaluate, name, quotient, unit, noise)
    noise = max(noise, measured_rounding(evaluate, name, 2 * float(step)))  # larger where the values are
    estimate, bound = _differences(evaluate, name, entries, step, noise)
    bound = _believed(estimate, bound, quotient[:, None], noise / short)
    return Difference(estimate.reshape(x.shape).to(x.device), bound.reshape(x.shape).to(x.device))


def _differences(
    evaluate: _Evaluator, name: str, entries: Tensor, steps: Tensor, noise: float
) -> tuple[Tensor, Tensor]:
    """D(h/2) and its bound, for these entries × these steps."""
    offsets = (steps[:, None] / 2 * torch.tensor(OFFSETS, dtype=torch.float64)).flatten()
    values = evaluate(name, entries.repeat_interleave(len(offsets)), offsets.repeat(len(entries)))
    low4, low2, low1, up1, up2, up4 = values.reshape(len(entries), -1, len(OFFSETS)).unbind(2)
    coarse = (8 * (up2 - low2) - (up4 - low4)) / (12 * steps)
    fine = (8 * (up1 - low1) - (up2 - low2)) / (6 * steps)
    reach = evaluate.args[name].flatten().cpu()[entries].abs()[:, None] + 2 * steps
    moved = EPS * fine.abs() * reach  # x + h is itself rounded
    bound = TRUNCATION * (coarse - fine).abs() + 3 * (noise + moved) / steps + 4 * EPS * fine.abs()
    return fine, bound.nan_to_num(nan=torch.inf)


def _believed(estimate: Tensor, bound: Tensor, quotient: Tensor, uncertain: float) -> Tensor:
    """The bound, widened where the quotient over the very short step contradicts it."""
    apart = (estimate - quotient).abs()
    return torch.where(apart <= bound + uncertain, bound, apart + uncertain).nan_to_num(nan=torch.inf)


def _step(evaluate: _Evaluator, name: str, quotient: Tensor, unit: float, noise: float) -> Tensor:
    """The power of two whose largest bound on a few entries of the argument is smallest."""
    large = quotient.abs().nan_to_num(nan=torch.inf).topk(min(PROBES, len(quotient))).indices
    probes = torch.unique(torch.cat([large, _spread(quotient)]))
    best = torch.zeros(0)
    for exponents in (torch.tensor(STEPS), torch.tensor([-3, 0, 3])):
        steps = (best if len(best) else unit) * 2.0 ** exponents.double()
        estimate, bound = _differences(evaluate, name, probes, steps, noise)
        bound = _believed(estimate, bound, quotient[probes, None], noise / (SHORT * unit))
        smallest = bound.max(0).values.argmin()
        best = steps[smallest : smallest + 1]
    return best


# ---------------------------------------------------------------- evaluating at many points


class _Evaluator:
    """Values of the loss with single entries of one argument moved: vectorised, or one after the other."""

    def __init__(self, loss: Loss, args: dict[str, Tensor]) -> None:
        self.loss, self.args = loss, {name: x.detach() for name, x in args.items()}
        with torch.no_grad():
            value = loss(dict(self.args))
        if not isinstance(value, Tensor) or value.numel() != 1 or value.dtype != torch.float64:
            shown = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value)
            raise DtypeError(
                message(
                    "finite differences need a loss that is one float64 number",
                    str(shown),
                    "the output itself, or a loss that is computed in a narrower type",
                    "pair the output with a cotangent: (dY * Y).sum()",
                )
            )
        self.center = float(value)
        self.vectorised = {name: self._vmap_agrees(name) for name in args}

    def __call__(self, name: str, entries: Tensor, offsets: Tensor) -> Tensor:
        """The loss with entry ``entries[i]`` of argument ``name`` moved by ``offsets[i]``, for every i."""
        with torch.no_grad():
            rows = max(1, CHUNK // max(self.args[name].numel(), 1))
            return torch.cat([self._values(name, *chunk).cpu() for chunk in _chunks(rows, entries, offsets)])

    def _values(self, name: str, entries: Tensor, offsets: Tensor) -> Tensor:
        points = self._moved(name, entries, offsets)
        if self.vectorised[name]:
            return self._vmapped(name, points)
        return torch.stack([self.loss({**self.args, name: x}).reshape(()) for x in points])

    def _moved(self, name: str, entries: Tensor, offsets: Tensor) -> Tensor:
        x = self.args[name]
        points = x.reshape(1, -1).repeat(len(entries), 1)
        points[torch.arange(len(entries)), entries] += offsets.to(x.device)
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
        if not math.isfinite(self.center):
            return False
        try:
            with torch.no_grad():
                found = self._vmapped(name, torch.stack([x, 2 * x, x]))
                double = self.loss({**self.args, name: 2 * x})
        except Exception:
            return False
        expected = found.new_tensor([self.center, float(double), self.center])
        return torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * abs(self.center))


def _chunks(rows: int, entries: Tensor, offsets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(entries, rows), torch.split(offsets, rows), strict=True)


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
