"""The operator of microsoft/onnxruntime #14363, ``com.microsoft.Attention``, run by onnxruntime, and the same layer with every semantics of a mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gradderiv.checks.compare import compare
from gradderiv.checks.tolerance import of_value
from gradderiv.rules.fills import FILL, SEMANTICS, Fill, masked_fill
from gradderiv.rules.masks import causal, hidden
from gradderiv.rules.softmax import softmax

HEADS, WIDTH, N, D_IN = 13, 37, 7, 147
MASK = (0, 1, 1, 0, 0, 1, 0)
LOWEST = torch.finfo(torch.float32).min

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """A way to call the operator."""

    unidirectional: bool = True
    mask: tuple[int, ...] = MASK
    fill: float | None = None

    def masks(self) -> list[Tensor]:
        padding = hidden(torch.tensor([self.mask]) == 0).on((N, N))
        return [padding.expand(N, N), causal().on((N, N))] if self.unidirectional else [padding.expand(N, N)]

    def options(self, name: str) -> dict[str, Any]:
        fill = FILL if self.fill is None else self.fill
        return SEMANTICS[name].options(self.masks(), torch.float32, fill)


RUNS = (
    Run(), Run(fill=-1e8), Run(fill=LOWEST), Run(fill=-torch.inf), Run(False), Run(False, (0,) * N),
)  # fmt: skip


# ---------------------------------------------------------------- the layer, and onnxruntime's


def inputs(seed: int = 0, spread: float = 1.0) -> Values:
    """The report's: input, weights and bias ~ N(0, 1); ``spread`` multiplies the weights."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"X": (N, D_IN), "W": (D_IN, 3 * HEADS * WIDTH), "b": (3 * HEADS * WIDTH,)}
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return values | {"W": spread * values["W"]}


def scores(X: Tensor, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """S (h, n, n) and V (h, n, d)."""
    Q, K, V = (
        (X @ w + c).unflatten(-1, (HEADS, WIDTH)).transpose(0, 1)
        for w, c in zip(W.chunk(3, -1), b.chunk(3), strict=True)
    )
    return WIDTH**-0.5 * (Q @ K.mT), V


def layer(options: dict[str, Any]) -> Callable[[Any], Tensor]:
    """O (n, h·d) of what :func:`inputs` gives, with one semantics.

    Two things that a float32 does without rounding are taken out, or no tolerance would be left: a score is lost in the lowest float, and that of a key which is alone may be anything.
    """

    def forward(values: Any) -> Tensor:
        S, V = scores(*(values[name] for name in ("X", "W", "b")))
        if "mask" in options:
            P, _ = softmax(S, mask=options["mask"])
        else:
            keep, C = options["fill"]
            sunk = C <= LOWEST / 2
            alone = ~sunk & ((~sunk).sum(-1, keepdim=True) == 1)
            filled, _ = masked_fill(S, fill=Fill(keep, C.masked_fill(sunk, 0.0).to(S.dtype)))
            P, _ = softmax(torch.where(sunk | alone, values["C"], filled))
        return (P @ V).transpose(0, 1).flatten(1)

    return forward


def widened(values: Values, options: dict[str, Any]) -> Values:
    """The arguments of :func:`layer` in float64: the inputs, and C."""
    C = options["fill"].constant.double() if "fill" in options else torch.zeros(N, N, dtype=torch.float64)
    return {name: t.double() for name, t in values.items()} | {"C": C}


def textbook(values: Values, options: dict[str, Any]) -> Tensor:
    """O in float64."""
    return layer(options)(widened(values, options))


@cache
def _session(unidirectional: bool, fill: float | None) -> Any:
    import onnxruntime
    from onnx import TensorProto, helper

    def tensor(name: str, kind: int, *size: int) -> Any:
        return helper.make_tensor_value_info(name, kind, size)

    out = 3 * HEADS * WIDTH
    names = {"num_heads": HEADS, "unidirectional": int(unidirectional)}
    chosen = {} if fill is None else {"mask_filter_value": fill}
    node = helper.make_node(
        "Attention", ["X", "W", "b", "mask"], ["O"], domain="com.microsoft", **names, **chosen
    )
    given = [
        tensor("X", TensorProto.FLOAT, 1, N, D_IN), tensor("W", TensorProto.FLOAT, D_IN, out), tensor("b", TensorProto.FLOAT, out),
        tensor("mask", TensorProto.INT32, 1, N),
    ]  # fmt: skip
    graph = helper.make_graph(
        [node], "attention", given, [tensor("O", TensorProto.FLOAT, 1, N, HEADS * WIDTH)]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level, quiet.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(model.SerializeToString(), quiet, providers=["CPUExecutionProvider"])


def onnxruntime_output(values: Values, run: Run) -> Tensor:
    """O (n, h·d) of com.microsoft.Attention on the CPU."""
    feeds = {name: t.numpy() for name, t in values.items()} | {
        "mask": torch.tensor([run.mask], dtype=torch.int32).numpy()
    }
    (O,) = _session(run.unidirectional, run.fill).run(None, feeds | {"X": feeds["X"][None]})
    return torch.from_numpy(O)[0]


@dataclass(frozen=True)
class Fit:
    """One semantics against one output: the relative distance of each row, and whether it is rounding: pass, fail, or vacuous where rounding could make it anything."""

    distances: tuple[float, ...]
    verdicts: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return all(v == "pass" for v in self.verdicts)


def fits(values: Values, run: Run, O: Tensor) -> dict[str, Fit]:
    """Every semantics against the output, row by row."""
    found = {}
    for name in SEMANTICS:
        options = run.options(name)
        reference = textbook(values, options)
        tolerance = of_value(layer(options), widened(values, options), torch.float32)
        apart = (O - reference).norm(dim=-1) / O.norm(dim=-1)
        rows = zip(O, reference, tolerance, strict=True)
        found[name] = Fit(tuple(apart.tolist()), tuple(_verdict(*row) for row in rows))
    return found


def _verdict(row: Tensor, reference: Tensor, tolerance: Tensor) -> str:
    if bool(reference.isnan().all() & row.isnan().all()):
        return "pass"
    return compare(row, reference, tolerance, zero=not reference.any()).verdict
