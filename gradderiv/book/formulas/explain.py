"""``gradderiv.explain``: a layer of somebody's model in our names, each parameter's closed form, its value, and the check."""

from __future__ import annotations

import copy
import inspect
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from gradderiv.book.formulas.trace import STEPS, Trace
from gradderiv.book.formulas.trace import Step as Line
from gradderiv.book.layout import pad
from gradderiv.checks import models
from gradderiv.checks._model_layers import LAYERS
from gradderiv.checks._models import System
from gradderiv.checks.models import Built
from gradderiv.checks.report import Record, Report
from gradderiv.errors import InputError, message
from gradderiv.numbers.nodes import Symbol
from gradderiv.numbers.spelling import STYLES, TEX
from gradderiv.numbers.tex import Tex, TexTensor
from gradderiv.rules import masks
from gradderiv.rules.transformer import transformer_layer, transformer_layer_vjp

#: Their closed forms are written out; the others are called by their names.
WRITTEN_OUT = frozenset(
    {"linear_vjp", "add_vjp", "multiply_vjp", "scores_vjp", "rms_norm_vjp", "layer_norm_vjp"}
)
INPUTS = ("hidden_states", "src")


@dataclass(frozen=True)
class Row:
    """One parameter or input of the module.

    Attributes:
        parameter: its name in the module.
        name: ours.
        tex, text: the closed form of its gradient, which the lines of the explanation lead up to.
        gradient: its value, in the shape of our argument, for the cotangent of the explanation.
        records: what the comparison with autograd through the module said, in float64 and exactly.
    """

    parameter: str
    name: str
    tex: str
    text: str
    gradient: Tensor
    records: tuple[Record, ...]

    @property
    def verdict(self) -> str:
        return Report(list(self.records)).verdict


@dataclass(frozen=True)
class Explanation:
    """All parameters of a module. Prints as a table; :meth:`tex` is the whole backward pass as an ``align*``."""

    module: str
    rows: list[Row]
    lines: list[Line]
    dY: Tensor
    report: Report = field(repr=False)

    @property
    def passed(self) -> bool:
        return self.report.passed

    @property
    def verdict(self) -> str:
        return self.report.verdict

    def __getitem__(self, name: str) -> Row:
        """The row of that name, the module's or ours."""
        return next(r for r in self.rows if name in (r.parameter, r.name))

    def tex(self) -> str:
        rows = [f"{line.left(TEX)} &= {line.right(TEX)}" for line in self.lines]
        return "\\begin{align*}\n" + " \\\\\n".join(rows) + "\n\\end{align*}"

    def __str__(self) -> str:
        style = STYLES["unicode"]
        first, second = (
            max(len(t) for t in texts)
            for texts in zip(*((r.parameter, r.name) for r in self.rows), strict=True)
        )
        head = f"{self.module}: gradients for a random cotangent"
        out = [head, "", f"{'parameter':{first}}  {'ours':{second}}  |gradient|  float64  exactly"]
        for r in self.rows:
            words = [next((x.verdict for x in r.records if x.number == n), "") for n in ("float", "field")]
            out.append(
                f"{r.parameter:{first}}  {r.name:{second}}  {float(r.gradient.norm()):10.3g}  {words[0]:7}  {words[1]}".rstrip()
            )
        out += [
            "",
            "The way back. R are the rows of a norm before its gain, r what they were",
            "multiplied by, saved.P what the forward pass kept beside P.",
            "",
        ]
        width = max(len(line.left(style)) for line in self.lines)
        for line in self.lines:
            formula = textwrap.wrap(line.right(style), 75 - width) or [""]
            out.append(f"  {pad(line.left(style), width)} = {formula[0]}")
            out += [" " * (width + 5) + more for more in formula[1:]]
        return "\n".join([*out, "", str(self.report).split("\n")[-1]])

    def _repr_latex_(self) -> str:
        return self.tex()


def explain(module: nn.Module, inputs: Mapping[str, Any] | Sequence[Any], *, seed: int = 0) -> Explanation:
    """dθ for every parameter θ of a layer, as a formula, as a number, and checked

    The module's parameters are read as the arguments of :func:`gradderiv.rules.transformer.transformer_layer`; its gradients are those of this rule, and they are
    compared with autograd through the unmodified module, in float64 and, at random points of a prime field, exactly.

    Args:
        module: a ``LlamaDecoderLayer`` (Mistral's, Qwen 3's, Gemma's), ``GPT2Block``, ``GPTNeoXLayer``, ``BertLayer`` or ``ViTLayer`` of transformers, with eager
            attention and without a cache, or a ``torch.nn.TransformerEncoderLayer`` with ``batch_first``.
        inputs: what it is called with, by name or in order.
        seed: draws the cotangent and the points.

    Returns:
        An :class:`Explanation`; ``print`` it, or ask ``.passed``, ``.rows``, ``.tex()``.

    Raises:
        InputError: a module that has no row in the table, or inputs that it cannot be called with.
    """
    start = time.perf_counter()
    given = _by_name(module, inputs)
    system = _settled(_row(module), module, given)
    built = _built(module, given, seed)
    records = models.in_floats(system, built) + models.exactly(system, built, seed)
    report = Report(records, seed=seed, seconds=time.perf_counter() - start, title="gradderiv explain")
    args = models.arguments(system, built.leaves)
    lines = _lines(args, system.options)
    with torch.no_grad():
        arguments: dict[str, Any] = {**args, **system.options}
        _, saved = transformer_layer(**arguments)
        gradients = transformer_layer_vjp(built.dY, saved)
    formulas: dict[str, list[Line]] = {}
    for line in lines:
        for name in line.names:
            formulas.setdefault(name, []).append(line)
    rows = []
    for argument in system.arguments:
        name, _ = system.read(argument)
        last = formulas[f"d{argument}"][-1]
        found = tuple(r for r in records if r.argument == argument)
        rows.append(
            Row(
                name,
                argument,
                last.right(TEX),
                last.right(STYLES["unicode"]),
                getattr(gradients, argument),
                found,
            )
        )
    return Explanation(type(module).__name__, rows, lines, built.dY, report)


# ---------------------------------------------------------------- the module


def _by_name(module: nn.Module, inputs: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """The inputs under the names that forward has for them."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return dict(inspect.signature(module.forward).bind(*_in_order(inputs)).arguments)


def _in_order(inputs: Any) -> tuple[Any, ...]:
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def _row(module: nn.Module) -> System:
    """The row of the table for the module's class."""
    name = type(module).__name__
    if isinstance(module, nn.TransformerEncoderLayer):
        order = "pre-norm" if module.norm_first else "post-norm"
        activation = getattr(module.activation, "__name__", "")
        name = f"nn.TransformerEncoderLayer, {order}, {activation}"
    if name == "GPTNeoXLayer" and not module.use_parallel_residual:
        name = "GPTNeoXLayer, sequential"
    if name not in LAYERS:
        raise InputError(
            message(
                "explain knows the layers of some systems",
                type(module).__name__,
                "another system's layer, or a part of one, or a whole model",
                f"one of {', '.join(LAYERS)}; gradderiv.prove takes any module",
            )
        )
    return LAYERS[name]


def _settled(system: System, module: nn.Module, given: Mapping[str, Any]) -> System:
    """The row with the sizes, the ε and the mask of this module; parameters that it does not have left out."""
    options = dict(system.options)
    config: Any = next((m.config for m in module.modules() if hasattr(m, "config")), None)
    options["n_heads"] = config.num_attention_heads if config is not None else module.self_attn.num_heads  # type: ignore[union-attr]
    if "n_kv_heads" in options:
        options["n_kv_heads"] = config.num_key_value_heads
    norm = module.get_submodule(system.arguments["gain_1"].rpartition(".")[0])
    options["norm_eps"] = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", 0.0)
    options["mask"] = _mask(given)
    present = {name for name, _ in module.named_parameters()}
    arguments = {
        a: name
        for a, name in system.arguments.items()
        if a in ("X", "cos", "sin") or system.read(a)[0] in present
    }
    biases = {
        f"b_{x}": f"{arguments[f'W_{x}'].removesuffix('.weight.mT')}.bias"
        for x in "QKVOGUD"
        if f"W_{x}" in arguments
    }
    arguments |= {b: name for b, name in biases.items() if b not in arguments and name in present}
    return replace(system, arguments=arguments, options={n: v for n, v in options.items() if v is not None})


def _mask(given: Mapping[str, Any]) -> Tensor | None:
    """What the masks among the inputs allow, True = may attend; torch's own hide where they are True."""
    found = []
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor):
        found.append(mask if mask.dtype == torch.bool else masks.read_additive(mask).mask)
    for name, axes in (("src_mask", ()), ("src_key_padding_mask", (1, 1))):
        hidden = given.get(name)
        if isinstance(hidden, Tensor):
            allowed = ~hidden if hidden.dtype == torch.bool else masks.read_additive(hidden).mask
            found.append(allowed.unflatten(0, (-1, *axes)) if axes and allowed is not None else allowed)
    kept = [m for m in found if m is not None]
    if not kept:
        return None
    whole = kept[0]
    for other in kept[1:]:
        whole = whole & other
    return whole


def _built(module: nn.Module, given: Mapping[str, Any], seed: int) -> Built:
    """The module in float64 with places for what is differentiated: its parameters, its input, rotary tables."""
    wide = {n: p.detach().double() for n, p in module.named_parameters()}
    inputs: dict[str, Any] = {n: _widened(x) for n, x in given.items()}
    for name in INPUTS:
        if name in inputs:
            wide[name], inputs[name] = inputs[name], models.Leaf(name)
    if "position_embeddings" in inputs:
        wide["cos"], wide["sin"] = inputs["position_embeddings"]
        inputs["position_embeddings"] = (models.Leaf("cos"), models.Leaf("sin"))
    own = copy.deepcopy(module).double().eval()  # without dropout
    built = Built(own, inputs, wide, torch.zeros(()))
    try:
        with torch.no_grad():
            Y = built(wide)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            message(
                f"explain needs inputs that {type(module).__name__} can be called with",
                f"{type(error).__name__}: {str(error).splitlines()[0]}",
                "an input forgotten, as position_embeddings, or one of another shape",
                "call the module with them first",
            )
        ) from error
    dY = torch.randn(Y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return replace(built, dY=dY)


def _widened(x: Any) -> Any:
    """Numbers in float64; the lowest float of a mask is −∞."""
    if isinstance(x, tuple):
        return tuple(map(_widened, x))
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
        return x
    return x.detach().double().masked_fill(x == torch.finfo(x.dtype).min, -torch.inf)


# ---------------------------------------------------------------- the formulas


class _Wires(Trace):
    """Notes what a composed rule calls its values, and nothing inside its parts."""

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        found: Callable[..., Any] | None = super()._called(frame, event, arg)
        return found if frame.f_globals.get("__name__") == STEPS else None


def _lines(args: Mapping[str, Tensor], options: Mapping[str, Any]) -> list[Line]:
    """The backward pass of the layer on named matrices, line by line."""
    system = Tex({}, inline=WRITTEN_OUT)

    def named(name: str, x: Tensor) -> TexTensor:
        shape = x.shape[-2:]
        return system.named(Symbol(name), torch.ones(shape, dtype=torch.float64))

    trace = _Wires(system)
    without = {n: v for n, v in options.items() if n != "mask"}
    matrices: dict[str, Any] = {name: named(name, x) for name, x in args.items()}
    _, saved = trace.run(inspect.unwrap(transformer_layer), **matrices, **without)
    for s, (kept, _) in zip(saved.steps, saved.saved, strict=True):
        for part, meaning in (("N", "R"), ("r", "r")):
            x = getattr(kept, part, None)
            if isinstance(x, TexTensor) and not isinstance(x.node, Symbol):
                x.cell.note = Symbol(f"{meaning}_{s.reads[1].removeprefix('gain_')}")
    trace.steps.clear()
    trace.run(inspect.unwrap(transformer_layer_vjp), named("dY", matrices["X"]), saved)
    return trace.steps
