"""``gradderiv.prove`` on attention with each option, shipped as an autograd Function: proved, and refuted where one part's cotangent is spoilt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gradderiv
from gradderiv.rules import options as table
from gradderiv.rules.attend import attend, attend_vjp
from gradderiv.rules.fills import Fill
from gradderiv.rules.score_bias import t5_buckets


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


H, N, PAST = 2, 2, 1
QKV: dict[str, tuple[int, ...]] = {"Q": (H, N, 2), "K": (H, N, 2), "V": (H, N, 2)}
SHARED: dict[str, tuple[int, ...]] = {**QKV, "K": (1, N, 2), "V": (1, N, 2)}
MASK = torch.tensor([[True, False], [True, True]])
KEEP = torch.tensor([[True, True], [False, True]])
CONSTANT = torch.tensor([[0.0, -8.0], [0.0, 0.0]], dtype=torch.float64)

Shapes = dict[str, tuple[int, ...]]
#: the option: the shapes of everything with a gradient, what else it is told, and the rows of the table that are its own
OPTIONS: dict[str, tuple[Shapes, dict[str, Any], str]] = {
    "nothing": (QKV, {"mask": MASK}, "scores"),
    "QK-norm": ({**QKV, "gain_Q": (2,), "gain_K": (2,)}, {"eps": 0.25}, "QK-norm"),
    "rotary": ({**QKV, "cos": (N, 2), "sin": (N, 2)}, {"pairing": "interleaved"}, "rotary"),
    "cache": ({**QKV, "K_cache": (H, PAST, 2), "V_cache": (H, PAST, 2)}, {}, "cache"),
    "grouped heads": (SHARED, {}, "grouped heads"),
    "temperature": ({**QKV, "temperature": (H, 1, 1)}, {}, "temperature"),
    "softcap": (QKV, {"softcap": 1.5}, "softcap"),
    "ALiBi": ({**QKV, "slopes": (H,)}, {}, "ALiBi"),
    "T5 bias": ({**QKV, "table": (4, H)}, {"buckets": t5_buckets(N, N, n_buckets=4, max_distance=3)}, "T5 bias"),
    "bias": ({**QKV, "bias": (H, 1, N)}, {}, "bias"),
    "fill": (QKV, {"fill": Fill(MASK, CONSTANT)}, "fill"),
    "sinks": ({**QKV, "sinks": (H,)}, {"mask": MASK}, "softmax"),
    "dropout": (QKV, {"keep": KEEP, "dropout_p": 0.25}, "dropout"),
}  # fmt: skip


def shipped(names: tuple[str, ...], options: dict[str, Any]) -> Callable[..., Any]:
    """Attention as a Function of the arguments of these names, all three outputs of it."""

    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Any:
            out, saved = attend(**dict(zip(names, tensors, strict=True)), **options)
            ctx.saved = saved
            return out.O, out.weights, out.lse

        @staticmethod
        def backward(ctx: Any, dO: Tensor, dweights: Tensor, dlse: Tensor) -> Any:
            g = attend_vjp(dO, ctx.saved, dweights=dweights, dlse=dlse)
            return tuple(getattr(g, name) for name in names)

    return Attend.apply


def proof_of(option: str) -> Any:
    shapes, options, _ = OPTIONS[option]
    inputs = {name: x(*shape) for name, shape in shapes.items()}
    if "temperature" in inputs:
        inputs["temperature"] = inputs["temperature"].abs() + 1
    names = tuple(inputs)
    return gradderiv.prove(shipped(names, options), tuple(inputs.values()), names=names)


def test_every_option_of_the_table_is_tried() -> None:
    given = {name for shapes, options, _ in OPTIONS.values() for name in {**shapes, **options}}
    assert {*table.variables(), *table.constants()} - given == {
        "scale",
        "softmax_dtype",
    }  # casts count as the identity


@pytest.mark.parametrize("option", OPTIONS)
def test_attention_with_an_option_is_proved(option: str) -> None:
    proof = proof_of(option)
    assert proof.verdict == "proved", proof
    assert {r.argument for r in proof.records} == {*OPTIONS[option][0]}
    assert {r.problem for r in proof.records} == {"output 0", "output 1", "output 2", "all outputs"}
    assert proof.failure_probability <= 2.0**-40


@pytest.mark.parametrize("option", OPTIONS)
def test_a_part_whose_cotangent_is_spoilt_is_refuted(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of the gradients that the part's own row returns is doubled."""
    name = OPTIONS[option][2]
    at = next(i for i, p in enumerate(table.PARTS) if p.name == name)
    part = table.PARTS[at]

    def spoilt(d: Any, saved: Any) -> tuple[Tensor | None, ...]:
        *others, last = part.operator.vjp(d, saved)
        return (*others, 2 * last)

    wrong = part._replace(operator=part.operator._replace(vjp=spoilt))
    monkeypatch.setattr(table, "PARTS", [*table.PARTS[:at], wrong, *table.PARTS[at + 1 :]])
    proof = proof_of(option)
    assert proof.verdict == "refuted", proof
    refuted = {r.argument for r in proof.failures}
    reads = part.wires.partition(" -> ")[0].split()
    last = reads[-1].removesuffix("?")
    blamed = {"S": {"Q", "K"}, "P": {"Q", "K"}, "K": {"K"}}.get(last, {last})
    assert refuted == blamed, proof
