"""``gradderiv.prove``: your function in exact arithmetic, its backward against forward mode through its forward code alone.

**Theorem.** Let f be a straight-line program of sums, products, quotients and the functions of :mod:`gradderiv.numbers.opaque`, and g what autograd and the hand-written
backwards inside return for the cotangents dY. If ⟨dY, ḟ(θ; θ̇)⟩ = ⟨g(θ, dY), θ̇⟩ for free θ, θ̇, dY and free values of the opaque functions, then g is the gradient of ⟨dY, f⟩
at all real θ at which the program is defined and smooth, for these shapes. The run evaluates the difference of the two sides at a random point modulo k random primes; if it is not zero, it is found to be with
probability at most the printed bound (Schwartz–Zippel in every lane; :mod:`gradderiv.numbers.ledger`).

*Assumed*: the keyed mixing functions behave as random ones; torch's table of operations is implemented as stated (it is compared with exact rationals in the tests);
the program runs the same operations for all values, since those that ask for values are refused. *Limits*: rounding, overflow and aliasing are not seen; a wrong forward is consistent with
its own derivative (that is what ``reference`` is for); at a kink (relu, clamp) either side's derivative is meant; what is not proved may still be true, where the program leans on a relation
that the opaque functions do not have, and then float64 is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradderiv.checks.beyond import against, double_backward, jvp
from gradderiv.checks.exact import TARGET
from gradderiv.checks.forward import Call
from gradderiv.checks.inputs import make_call, module_call, seeded_call
from gradderiv.checks.proof import Proof
from gradderiv.checks.prover import Progress, Prover
from gradderiv.errors import InputError, message
from gradderiv.threads import one_thread

THREADED = 2**21  # from which products are worth a second thread


def prove(
    function: Callable[..., Any],
    inputs: Any,
    *,
    reference: Callable[..., Any] | None = None,
    names: Sequence[str] | None = None,
    order: int = 1,
    forward_mode: bool = False,
    no_gradient: Collection[str] = (),
    fills_are_minus_infinity: bool = False,
    seed: int = 0,
    target: float = TARGET,
    device: str | None = None,
    n_heads: int | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Prove that the backward of ``function`` is the derivative of its forward, for the shapes of ``inputs`` and all real values.

    Args:
        function: any callable on tensors, or an ``nn.Module``, whose parameters are then differentiated too, by name.
        inputs: the arguments, as a tuple, or as a dict of keyword arguments. Tensors with ``requires_grad`` are differentiated, or all
            floating ones if none has it, but for masks (−∞, or a fill of −10⁴ or less); these keep their shapes and lose their values. Everything else stays what it is.
        reference: another callable on the same inputs: outputs and gradients must be equal to its, too.
        names: of the inputs; the function's own parameter names unless given.
        order: 2 proves the derivative of the backward as well.
        forward_mode: proves the ``jvp`` of hand-written Functions as well.
        no_gradient: inputs, or outputs as ``"output 1"``, that are meant to have no gradient.
        fills_are_minus_infinity: read constants of −10⁴ and less, masks of the lowest float among them, as −∞.
        seed: draws primes, points, keys and dropout masks.
        target: log₂ of the failure probability asked for.
        device: where the residues live; where the inputs are unless given.
        n_heads: lets a refutation be located in a head.
        progress: called with (steps done, steps in all, what is being done).

    Returns:
        A :class:`~gradderiv.checks.proof.Proof`, with the verdict ``proved``, ``refuted`` (float64 agrees that it is wrong) or ``inconclusive``.

    Raises:
        InputError: nothing to differentiate by, NaN or infinite inputs, a function that raises or returns no floating tensor, unknown names.
        DtypeError: something that is not callable, complex inputs.
    """
    start = time.perf_counter()
    if order not in (1, 2):
        raise InputError(
            message(
                "prove works in first and second order",
                f"order={order}",
                "a higher order",
                "order=1 or order=2",
            )
        )
    call = _as_call(function, inputs, names, device)
    call, outputs = seeded_call(call, seed)
    _require_known(no_gradient, call)
    settings = {"seed": seed, "target": target, "device": str(call.values[call.moving[0]].device)}
    settings["fills_are_minus_infinity"] = fills_are_minus_infinity
    prover = Prover(call, outputs, settings, set(no_gradient), n_heads, progress or _silent)
    hooked = [n for n, x in _tensors(function, inputs) if x._backward_hooks]
    if hooked:
        prover.remarks[
            f"hooks on {', '.join(hooked)} are not run: the proof is of the function without them"
        ] = None
    with one_thread(prover.size, THREADED):
        prover.first_order()
        if forward_mode:
            jvp(prover)
        if reference is not None:
            own = list(call.values) if not isinstance(function, nn.Module) else None
            against(prover, _as_call(reference, inputs, names or own, device))
        if order == 2 and not prover.stopped:
            double_backward(prover)
    return prover.proof(time.perf_counter() - start)


def _tensors(function: Callable[..., Any], inputs: Any) -> Iterator[tuple[str, Tensor]]:
    """The parameters and the inputs that are tensors."""
    if isinstance(function, nn.Module):
        yield from function.named_parameters()
    items = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    yield from ((f"input {n}", x) for n, x in items if isinstance(x, Tensor))


def _as_call(
    function: Callable[..., Any], inputs: Any, names: Sequence[str] | None, device: str | None
) -> Call:
    if device is not None:
        inputs = torch.utils._pytree.tree_map_only(
            Tensor, lambda x: x.detach().to(device).requires_grad_(x.requires_grad), inputs
        )
        function = function.to(device) if isinstance(function, nn.Module) else function
    if isinstance(function, nn.Module):
        return module_call(function, inputs)
    return make_call(function, inputs, names)


def _require_known(names: Collection[str], call: Call) -> None:
    outputs = [f"output {k}" for k in call.floating or ()]
    for name in names:
        if name not in (*call.moving, *outputs):
            raise InputError(
                message(
                    "no_gradient names inputs that are differentiated, and outputs",
                    f"{name!r}; there are {', '.join((*call.moving, *outputs))}",
                    "a slip of the pen, or the name of a constant",
                    "one of these names",
                )
            )
    if set(outputs) <= set(names) or set(call.moving) <= set(names):
        raise InputError(
            message(
                "gradderiv needs an output and an input with a gradient",
                f"no_gradient names {', '.join(names)}: all outputs, or all inputs",
                "no_gradient is for what is meant to have none",
                "leave out what is to be proved",
            )
        )


def _silent(done: int, total: int, label: str) -> None:
    return None
