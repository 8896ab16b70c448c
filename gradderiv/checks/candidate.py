"""The function under test: its gradients as autograd and its hand-written backward return them, and what it does to its surroundings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradderiv.checks.compare import MULTIPLE, Comparison, compare
from gradderiv.checks.forward import Call, pull_back


@dataclass
class Gradients:
    """What one backward pass returned.

    Attributes:
        values: the gradient of every argument; None where the function returns none.
        error: what was raised, in words; empty if nothing was.
        changed: inputs, outputs or cotangents that the pass wrote into.
        shared: arguments whose gradient is the memory of a cotangent; torch allows it, writing into it would not be.
    """

    values: dict[str, Tensor | None]
    error: str = ""
    changed: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)


def backward(call: Call, cotangents: Sequence[Tensor | None]) -> Gradients:
    """One forward and backward pass of the function, on copies of its inputs."""
    values = call.copies()
    for name in call.moving:
        values[name].requires_grad_()
    given = [None if g is None else g.clone() for g in cotangents]
    try:
        outputs = call(values)
        kept = [y.detach().clone() for y in outputs]
        gradients = pull_back(outputs, {name: values[name] for name in call.moving}, given)
    except Exception as error:  # whatever a person's code raises is what is to be reported
        return Gradients(dict.fromkeys(call.moving), in_words(error))
    changed = [f"the input {n}" for n, x in values.items() if not _same(x, call.values[n])]
    changed += [f"output {k}" for k, (y, z) in enumerate(zip(outputs, kept, strict=True)) if not _same(y, z)]
    changed += [
        f"the cotangent of output {k}"
        for k, (g, h) in enumerate(zip(given, cotangents, strict=True))
        if g is not None and h is not None and not _same(g, h)
    ]
    memory = {_memory(g) for g in given if g is not None}
    shared = [name for name, g in gradients.items() if g is not None and _memory(g) in memory]
    return Gradients(gradients, "", changed, shared)


def in_words(error: BaseException) -> str:
    """An exception in one line; of ours, what came and why."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    came = [line.removeprefix("came:").strip() for line in lines if line.startswith("came:")]
    text = came[0] if came else lines[0] if lines else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _same(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    x, y = x.detach(), y.detach()
    return bool(((x == y) | ((x != x) & (y != y))).all())


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


# ---------------------------------------------------------------- what holds whatever the reference


def writes(passes: Iterable[Gradients]) -> Comparison:
    """Nothing that was passed in, and no output, is written into: the next operator needs it."""
    passes = list(passes)
    changed = sorted({c for gradients in passes for c in gradients.changed})
    shared = sorted({s for gradients in passes for s in gradients.shared})
    if changed:
        return verdict(False, f"written into: {', '.join(changed)}")
    if shared:
        return verdict(
            True, f"the gradient of {', '.join(shared)} is the cotangent's own memory: torch allows it"
        )
    return verdict(True, "inputs, outputs and cotangents are as they were")


def zero_at_zero(call: Call, cotangents: Sequence[Tensor | None]) -> Comparison:
    """vjp(0) = 0, exactly."""
    found = backward(call, [None if g is None else torch.zeros_like(g) for g in cotangents])
    if found.error:
        return verdict(False, f"with a cotangent of zeros the backward pass raised {found.error}")
    bad = [
        f"{name} up to {float(g.abs().max()):.4g}"
        for name, g in found.values.items()
        if g is not None and bool((g != 0).any())
    ]
    return verdict(not bad, f"a cotangent of zeros gives {', '.join(bad)}" if bad else "exactly")


def linear(
    whole: Gradients,
    scaled: Gradients,
    scale: float,
    sigmas: Mapping[str, Tensor] | None,
    n_heads: int | None,
) -> Comparison:
    """vjp(α dY) = α vjp(dY), up to rounding."""
    for name, g in whole.values.items():
        s = scaled.values[name]
        if g is None or s is None:
            if (g is None) != (s is None):
                return verdict(
                    False, f"{name} has a gradient for a cotangent or for {scale:.0f} × it, not for both"
                )
            continue
        expected = g.detach().double() * scale
        if sigmas is None:
            tolerance = 64 * torch.finfo(g.dtype).eps * expected.abs().max()
        else:
            tolerance = MULTIPLE * 2**0.5 * abs(scale) * sigmas[name]
        found = compare(s, expected, tolerance, zero=True, n_heads=n_heads)
        if found.verdict == "fail":
            return dataclasses.replace(
                found, detail=f"{name}, for {scale:.0f} × the cotangent: {found.detail}"
            )
    return verdict(True, f"under the factor {scale:.0f}")


def verdict(right: bool, detail: str) -> Comparison:
    """The outcome of a check that has no numbers."""
    return Comparison(
        "pass" if right else "fail",
        0.0 if right else torch.inf,
        0.0 if right else torch.inf,
        0.0,
        None,
        detail,
    )
