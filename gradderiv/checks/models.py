"""Attention and whole layers as models ship them against the closed forms, parameter by parameter: transformers' and torch's modules, nothing in them changed.

A row of :data:`SYSTEMS` says which module it is, which argument of :func:`~gradderiv.rules.multihead.multihead`, :func:`~gradderiv.rules.fused.fused` or
:func:`~gradderiv.rules.transformer.transformer_layer` each of its parameters is, and which options it has. The value and the gradient of every parameter, of the input and of the rotary tables must be the module's own: in
float64, within the rounding errors of the module, and over the field exactly.

A module of transformers sits in a small model and gets what that hands it: its own mask, with the lowest float read as −∞, and its own rotary tables. Weights
and hidden states are random. BLOOM's slope · key position is handed as −slope · distance: another number for each row, which softmax ignores.
"""

from __future__ import annotations

import inspect
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map_only

from gradderiv.checks import tolerance
from gradderiv.checks._model_layers import LAYERS
from gradderiv.checks._models import BATCH, FEED, LENGTH, SHORT, THREE, VOCABULARY, WHOLE, System, same
from gradderiv.checks._models import SYSTEMS as ATTENTION
from gradderiv.checks.catalog import RULES
from gradderiv.checks.compare import compare
from gradderiv.checks.forward import plain_kernels
from gradderiv.checks.problems import Problem
from gradderiv.checks.records import Found, exact_records, layout
from gradderiv.checks.report import Record
from gradderiv.errors import InputError, message
from gradderiv.numbers.field import Field
from gradderiv.rules.score_bias import distance
from gradderiv.threads import one_thread

__all__ = [
    "ATTENTION",
    "LAYERS",
    "ORACLE",
    "SYSTEMS",
    "Built",
    "Leaf",
    "System",
    "available",
    "build",
    "verify_model",
    "verify_models",
]

ORACLE = "transformers"
SYSTEMS: dict[str, System] = {**ATTENTION, **LAYERS}
Tensors = Mapping[str, Tensor]
Progress = Callable[[int, int, str], None]


def available() -> bool:
    """Whether transformers is installed."""
    return find_spec("transformers") is not None


def verify_models(
    seed: int = 0, progress: Progress | None = None, systems: Iterable[str] | None = None
) -> list[Record]:
    """One record for the value and for every gradient of every system, in float64 and over the field.

    Raises:
        InputError: transformers is not installed, and a system needs it.
    """
    chosen = [SYSTEMS[name] for name in (SYSTEMS if systems is None else systems)]
    records = []
    for done, system in enumerate(chosen):
        if progress is not None:
            progress(done, len(chosen), system.name)
        with one_thread():
            records += verify_model(system, seed)
    if progress is not None:
        progress(len(chosen), len(chosen), "")
    return records


def verify_model(system: System, seed: int = 0) -> list[Record]:
    """The records of one system."""
    built = build(system, seed)
    return in_floats(system, built) + exactly(system, built, seed)


# ---------------------------------------------------------------- the two sides


def arguments(system: System, leaves: Tensors) -> dict[str, Tensor]:
    """The rule's arguments, from the parameters and inputs of the module; the identity for a projection that it does not have."""
    found = {a: view.argument(leaves[name]) for a in system.arguments for name, view in [system.read(a)]}
    if "W_O" not in found:
        found["W_O"] = torch.eye(found["W_V"].shape[-1], dtype=found["W_V"].dtype)
    return found


def pairs(system: System, built: Built, leaves: Tensors, dY: Tensor) -> Found:
    """The rule's value and gradients beside those of the module and of autograd through it."""
    rule = RULES[system.rule]
    with torch.enable_grad():
        own = {name: x.detach().requires_grad_() for name, x in leaves.items()}
        Y = built(own)
        reference = dict(
            zip(own, torch.autograd.grad(Y, list(own.values()), dY, materialize_grads=True), strict=True)
        )
    with torch.no_grad():
        args = arguments(system, leaves)
        value, gradients = rule.value(args, system.options), rule.gradients(args, system.options, dY)
        found: dict[str, Any] = {"Y": (value, Y.detach())}
        for a in system.arguments:
            name, view = system.read(a)
            found[a] = (view.found(gradients[a]), view.expected(reference[name]))
    return found


def in_floats(system: System, built: Built) -> list[Record]:
    """In float64; the tolerance is that of float32 where the module casts to it for its softmax, as Llama does."""
    start = time.perf_counter()
    narrow = system.options.get("softmax_dtype") or torch.float64
    of_leaves = tolerance.of_gradients(built, built.leaves, built.dY, narrow)
    allowed = {"Y": tolerance.of_value(built, built.leaves, narrow)}
    for a in system.arguments:
        name, view = system.read(a)
        allowed[a] = view.expected(of_leaves[name])
    told = problem(system, built)
    records = []
    for a, (value, expected) in pairs(system, built, built.leaves, built.dY).items():
        assert value is not None
        found = compare(value, expected, allowed[a], zero=a in system.zeros, layout=layout(told, a))
        if narrow != torch.float64:
            found = replace(found, detail=f"{found.detail}; the module {narrows(system)}")
        records.append(Record(system.rule, system.name, a, ORACLE, "float", "float64", **found.fields()))
    seconds = (time.perf_counter() - start) / len(records)
    return [replace(r, seconds=seconds) for r in records]


def narrows(system: System) -> str:
    """What a module with a softmax_dtype does."""
    return (
        "has its softmax in float32"
        if system.rule != "transformer"
        else "has its softmax, or its norms too, in float32"
    )


def exactly(system: System, built: Built, seed: int = 0) -> list[Record]:
    """At a random point of the field: weights, inputs, rotary tables and cotangent."""

    def run(numbers: Field) -> Found:
        leaves = {name: numbers.random(*x.shape) for name, x in built.leaves.items()}
        return pairs(system, built, leaves, numbers.random(*built.dY.shape))

    return exact_records(RULES[system.rule], problem(system, built), ORACLE, run, seed, "cpu")


def problem(system: System, built: Built) -> Problem:
    """The system as a problem: the shapes of the rule's arguments say where heads are."""
    shapes = {name: tuple(x.shape) for name, x in arguments(system, built.leaves).items()}
    mask = (
        {"mask": None} if "mask" in system.options else {}
    )  # it may be a Mask, which has no rows before it is on scores
    lanes = 3 if system.rule == "transformer" else 2
    return Problem(
        system.name, system.rule, shapes, tuple(built.dY.shape), {**system.options, **mask}, lanes=lanes
    )


# ---------------------------------------------------------------- the modules


@dataclass(frozen=True)
class Leaf:
    """A place among the inputs of a module, for ``make`` of what is differentiated."""

    name: str
    make: Callable[[Tensor], Tensor] = same


@dataclass(frozen=True)
class Built:
    """A module in float64, its inputs with a :class:`Leaf` for what is differentiated, values for these and for the parameters, and a cotangent."""

    module: nn.Module
    inputs: dict[str, Any]
    leaves: dict[str, Tensor]
    dY: Tensor

    def __call__(self, leaves: Tensors) -> Tensor:
        """The module's value, on any kind of number."""
        inputs = tree_map_only(Leaf, lambda x: x.make(leaves[x.name]), self.inputs)
        parameters = {name: leaves[name] for name, _ in self.module.named_parameters()}
        with plain_kernels():
            Y: Tensor = tree_leaves(functional_call(self.module, parameters, (), inputs))[0]
        return Y


def build(system: System, seed: int = 0) -> Built:
    """The module of a row, with random weights, and what its model hands it.

    Raises:
        InputError: transformers is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(f"{system.name}/{seed}".encode()))
        module, given = of_transformers(system) if system.model else of_torch(system)
        randomise(module)
        module, given = module.double(), tree_map_only(Tensor, _in_float64, given)
        leaves = {name: p.detach() for name, p in module.named_parameters()}
        inputs = _with_leaves(given, leaves)
        with torch.no_grad():
            Y = Built(module, inputs, leaves, torch.zeros(()))(leaves)
        return Built(module, inputs, leaves, torch.randn_like(Y))


def _in_float64(x: Tensor) -> Tensor:
    """A mask's lowest float is −∞: as a number, it would still let a row of padding attend to itself."""
    if not x.dtype.is_floating_point:
        return x
    return x.double().masked_fill(x == torch.finfo(x.dtype).min, -torch.inf)


def _with_leaves(given: Mapping[str, Any], leaves: dict[str, Tensor]) -> dict[str, Any]:
    """The inputs with a place for each that is differentiated; values for these go into ``leaves``."""
    inputs = dict(given)
    for name in ("hidden_states", "key_value_states", "query", "src"):
        if name in inputs:
            leaves[name] = torch.randn_like(inputs[name])
            inputs[name] = Leaf(name)
    if "query" in inputs:
        inputs |= {"key": Leaf("query"), "value": Leaf("query")}
    if "position_embeddings" in inputs:
        leaves["cos"], leaves["sin"] = inputs["position_embeddings"]
        inputs["position_embeddings"] = (Leaf("cos"), Leaf("sin"))
    if inputs.get("alibi") is not None:
        leaves["slopes"] = inputs["alibi"][: len(inputs["alibi"]) // BATCH, 0, 1].clone()  # at key 1
        inputs["alibi"] = Leaf("slopes", _alibi)
        inputs["residual"] = torch.zeros_like(inputs["residual"])
    return inputs


def _alibi(slopes: Tensor) -> Tensor:
    """−slope · distance, (batch · heads, n, n), as BLOOM takes it."""
    far = distance(torch.zeros(LENGTH, LENGTH, dtype=slopes.dtype))
    return (-slopes[:, None, None] * far).repeat(BATCH, 1, 1)


def model_of(kind: str, vocabulary: int, sizes: Mapping[str, Any]) -> nn.Module:
    """transformers' model of that type with one layer, random weights and eager attention, for evaluation."""
    from transformers import AutoConfig, AutoModel

    settings = AutoConfig.for_model(
        kind,
        num_hidden_layers=1,
        vocab_size=vocabulary,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        use_cache=False,
        **sizes,
        attn_implementation="eager",
    )
    model: nn.Module = AutoModel.from_config(settings)
    return model.eval()


def of_transformers(system: System) -> tuple[nn.Module, dict[str, Any]]:
    """The module in its model, and the arguments that it gets, by name, when the model runs."""
    if not available():
        raise InputError(
            message(
                f"{system.name} is transformers' own",
                "no such package",
                "gradderiv does not need it and does not install it",
                "pip install 'gradderiv[peers]'",
            )
        )
    model = model_of(system.model, VOCABULARY, system.config)
    module = model.get_submodule(system.path)
    return module, handed(model, module, _inputs(model, system.padded))


def handed(model: nn.Module, module: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``module``, by name, while ``model`` runs; those that it needs, and tensors."""
    calls: list[tuple[Any, Any]] = []
    hook = module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    args, kwargs = calls[0]
    signature = inspect.signature(module.forward)
    given = signature.bind(*args, **kwargs).arguments
    given |= given.pop("kwargs", {})
    needed = {name for name, p in signature.parameters.items() if p.default is p.empty}
    return {n: value for n, value in given.items() if n in needed or isinstance(value, (Tensor, tuple))}


def _inputs(model: nn.Module, padded: bool) -> dict[str, Any]:
    """An image, or embedded words."""
    config: Any = model.config
    if config.model_type == "vit":
        return {"pixel_values": torch.randn(BATCH, config.num_channels, config.image_size, config.image_size)}
    inputs = {"inputs_embeds": torch.randn(BATCH, LENGTH, config.hidden_size)}
    if config.model_type == "t5":
        inputs["decoder_inputs_embeds"] = torch.randn(BATCH, LENGTH, config.hidden_size)
    if padded:
        inputs["attention_mask"] = (~_padding()).long()
    return inputs


def _padding() -> Tensor:
    """True at the padding."""
    hidden = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    hidden[0, SHORT:] = True
    return hidden


def of_torch(system: System) -> tuple[nn.Module, dict[str, Any]]:
    """nn.MultiheadAttention or nn.TransformerEncoderLayer, and its masks, True = hidden."""
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    X = torch.zeros(BATCH, LENGTH, WHOLE)
    if system.path == "TransformerEncoderLayer":
        layer = nn.TransformerEncoderLayer(WHOLE, THREE, FEED, batch_first=True, **system.config)
        masks = {"src_key_padding_mask": _padding()} if system.padded else {"src_mask": later}
        return layer.eval(), {"src": X, **masks}
    module = nn.MultiheadAttention(WHOLE, THREE, batch_first=True).eval()
    return module, {
        "query": X, "key": X, "value": X, "key_padding_mask": _padding(), "attn_mask": later, "need_weights": False,
    }  # fmt: skip


def randomise(module: nn.Module) -> None:
    """Weights of variance 1/fan-in; gains and biases anywhere around their first values."""
    with torch.no_grad():
        for weight in module.parameters():
            noise = torch.randn_like(weight)
            weight.copy_(noise * weight.shape[-1] ** -0.5 if weight.dim() > 1 else weight + 0.3 * noise)
