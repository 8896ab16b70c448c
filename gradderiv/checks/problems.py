"""Named cases: shapes, options, values and cotangents. One table.

A problem says what a rule is tried on; :meth:`Problem.draw` fills it with numbers of any kind. Each row exists because a real mistake got
past tests that lacked it, and says so.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Make = Callable[[str, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Problem:
    """A named case.

    Attributes:
        name, rule: what it is, and the rule it is for.
        shapes: of the differentiable arguments, in the rule's order.
        output: the shape of the value.
        options: everything else that the rule is called with.
        std: standard deviation of the values, or of each argument by name.
        cotangent: "normal", "one row" (a single nonzero row) or "scaled" (by 10⁶).
        zeros: arguments whose gradient is exactly zero.
        vacuous: dtypes in which nothing can be said, which is then the right verdict.
        why: the mistake that this case would have caught.
    """

    name: str
    rule: str
    shapes: dict[str, tuple[int, ...]]
    output: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    std: float | dict[str, float] = 1.0
    cotangent: str = "normal"
    zeros: frozenset[str] = frozenset()
    vacuous: tuple[torch.dtype, ...] = ()
    why: str = ""

    @property
    def tiny(self) -> bool:
        """Small enough for SymPy."""
        return self.name.startswith("tiny")

    def draw(self, make: Make) -> tuple[dict[str, Tensor], Tensor]:
        """The arguments and the cotangent, each made by ``make(name, shape)``."""
        return {name: make(name, shape) for name, shape in self.shapes.items()}, make("dY", self.output)

    def on(self, device: str) -> dict[str, Any]:
        """The options, with their masks on ``device``."""
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.options.items()}

    def floats(
        self, seed: int, dtype: torch.dtype, *, role: str = "", device: str = "cpu"
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Normal values with the problem's standard deviations, rounded to ``dtype``; ``role`` draws others."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.name}/{seed}/{role}".encode()))

        def make(name: str, shape: tuple[int, ...]) -> Tensor:
            std = self.std if isinstance(self.std, float) else self.std.get(name, 1.0)
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            value = self._cotangent(value) if name == "dY" else value * std
            return value.to(dtype).to(device)

        return self.draw(make)

    def _cotangent(self, value: Tensor) -> Tensor:
        if self.cotangent == "scaled":
            return value * 1e6
        if self.cotangent == "one row":
            keep = torch.zeros(value.shape[-2], 1, dtype=value.dtype)
            keep[value.shape[-2] // 2] = 1
            return value * keep
        return value


def _mask(n_q: int, n_k: int, *, empty: int | None = None) -> Tensor:
    """A mask without structure: entry (i, j) is hidden where (i + 1) j is 1, 2 or 3 mod 7; row ``empty`` allows nothing.

    Up to 5 × 7 all rows and all columns differ, every row sees two keys, and every key is seen.
    """
    i, j = torch.arange(n_q)[:, None], torch.arange(n_k)
    mask = ((i + 1) * j % 7 + 6) % 7 > 2
    if empty is not None:
        mask[empty] = False
    return mask


def causal(n: int) -> Tensor:
    """True on and below the diagonal."""
    return torch.ones(n, n, dtype=torch.bool).tril()


def layer_shapes(
    *, n: int, d_model: int, h: int, d_k: int, d_v: int, d_out: int, n_k: int | None = None, d_kv: int | None = None,
    h_kv: int | None = None, biases: bool = False, batch: tuple[int, ...] = (), bias: tuple[int, ...] | None = None,
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """The shapes of a multi-head layer's arguments; cross-attention where n_k is given."""
    source, groups = d_kv or d_model, h_kv or h
    shapes: dict[str, tuple[int, ...]] = {
        "X": (*batch, n, d_model),
        "W_Q": (d_model, h * d_k),
        "W_K": (source, groups * d_k),
        "W_V": (source, groups * d_v),
        "W_O": (h * d_v, d_out),
    }
    if n_k is not None:
        shapes["X_kv"] = (*batch, n_k, source)
    if biases:
        shapes |= {"b_Q": (h * d_k,), "b_K": (groups * d_k,), "b_V": (groups * d_v,), "b_O": (d_out,)}
    if bias is not None:
        shapes["bias"] = bias
    return shapes


_B_K = frozenset({"b_K"})


def _layer(name: str, why: str, *, options: dict[str, Any], **sizes: Any) -> Problem:
    rule = sizes.pop("rule", "multihead")
    extra: dict[str, Any] = {"std": _weights(0.35)} | {
        k: sizes.pop(k) for k in ("std", "cotangent", "vacuous") if k in sizes
    }
    shapes = layer_shapes(**sizes)
    output = (*sizes.get("batch", ()), sizes["n"], sizes["d_out"])
    zeros = _B_K if "b_K" in shapes else frozenset()
    return Problem(name, rule, shapes, output, options, zeros=zeros, why=why, **extra)


def _problems() -> list[Problem]:
    cross: dict[str, Any] = {
        "n": 5,
        "n_k": 7,
        "d_model": 11,
        "d_kv": 13,
        "h": 3,
        "d_k": 2,
        "d_v": 4,
        "d_out": 9,
    }
    self_: dict[str, Any] = {"n": 5, "d_model": 7, "h": 3, "d_k": 2, "d_v": 4, "d_out": 11}
    tiny: dict[str, Any] = {"n": 2, "d_model": 2, "d_out": 2}
    low = (torch.bfloat16,)
    three = torch.tensor([[True, False, True], [True, True, False]])
    return [
        # ---- linear
        Problem("linear", "linear", {"X": (5, 3), "W": (3, 7), "b": (7,)}, (5, 7), why="sizes pairwise distinct"),
        Problem(
            "linear-batch", "linear", {"X": (2, 3, 5, 7), "W": (7, 11)}, (2, 3, 5, 11),
            why="bias averaged over the batch, not summed",
        ),
        Problem("tiny-linear", "linear", {"X": (2, 3), "W": (3, 2), "b": (2,)}, (2, 2), why="symbols"),
        # ---- softmax
        Problem("softmax", "softmax", {"S": (5, 7)}, (5, 7), why="the wrong axis, one Jacobian over all rows"),
        Problem(
            "softmax-masked", "softmax", {"S": (3, 5, 7)}, (3, 5, 7), {"mask": _mask(5, 7, empty=3)},
            why="a fully masked row becomes uniform (apex #1444)",
        ),
        Problem(
            "softmax-peaked", "softmax", {"S": (5, 7)}, (5, 7), std=12.0, vacuous=low,
            why="Gaussian inputs are too tame (TransformerEngine #3216)",
        ),
        Problem("tiny-softmax", "softmax", {"S": (2, 3)}, (2, 3), {"mask": three}, why="symbols"),
        # ---- attention
        Problem(
            "attention", "attention", {"Q": (5, 3), "K": (7, 3), "V": (7, 2)}, (5, 2), why="sizes pairwise distinct"
        ),
        Problem(
            "attention-options", "attention",
            {"Q": (2, 3, 5, 3), "K": (2, 3, 7, 3), "V": (2, 3, 7, 2), "bias": (3, 1, 7)}, (2, 3, 5, 2),
            {"scale": 0.3, "mask": _mask(5, 7, empty=1)},
            why="the option was pinned to its neutral value (flash-attention #2396)",
        ),
        Problem(
            "attention-one-key", "attention", {"Q": (5, 3), "K": (1, 3), "V": (1, 2)}, (5, 2),
            zeros=frozenset({"Q", "K"}), why="one key: P is 1, and dQ and dK are exactly 0",
        ),
        Problem(
            "tiny-attention", "attention", {"Q": (2, 2), "K": (3, 2), "V": (3, 2)}, (2, 2), {"mask": three},
            why="symbols",
        ),
        # ---- multihead
        _layer("self", "heads == seq_len hides a transpose (diffusers #14338); sizes prime and distinct (attorch #18)",
               options={"n_heads": 3}, biases=True, **self_),
        _layer("cross-masked", "a fully masked row, the mask asked for in backward (triton #4541)",
               options={"n_heads": 3, "mask": _mask(5, 7, empty=2)}, biases=True, **cross),
        _layer("causal-batch", "gradients of weights are summed over the batch",
               options={"n_heads": 3, "mask": causal(5)}, biases=True, batch=(2, 2), **self_),
        _layer("scale-bias", "the option was pinned to its neutral value (flash-attention #2396)",
               options={"n_heads": 3, "scale": 0.3, "mask": _mask(5, 7)}, bias=(3, 1, 7), **cross),
        _layer("h-equals-n", "heads == seq_len (diffusers #14338)",
               options={"n_heads": 4}, n=4, d_model=7, h=4, d_k=3, d_v=2, d_out=5),
        _layer("grouped", "1 < h_kv < h and h/h_kv ≠ h_kv (onnx #7274)",
               options={"n_heads": 6, "n_kv_heads": 2, "mask": causal(5)}, biases=True,
               n=5, d_model=7, h=6, h_kv=2, d_k=3, d_v=2, d_out=11),
        _layer("one-token", "size 1 everywhere", options={"n_heads": 1}, vacuous=low, n=1, d_model=2, h=1, d_k=3, d_v=2, d_out=3,
               n_k=2),
        _layer("one-row", "one of several outputs got no cotangent (quack #53): here one row alone",
               options={"n_heads": 3, "mask": causal(5)}, cotangent="one row", biases=True, **self_),
        _layer("scaled-loss", "a constant cotangent hides a dropped one (apex #1750)",
               options={"n_heads": 3}, cotangent="scaled", biases=True, **self_),
        _layer("gpt2-init", "atol hides everything at small weights (gradcheck, fast mode)",
               options={"n_heads": 3, "mask": causal(5)}, biases=True, vacuous=low,
               std=_weights(0.02), **self_),
        _layer("peaked", "Gaussian inputs are too tame (TransformerEngine #3216)",
               options={"n_heads": 3}, biases=True, vacuous=low, std=_weights(1.5), **self_),
        _layer("saturated", "at weight scale 30 a softmax saturates: the verdict is vacuous, no alarm",
               options={"n_heads": 3}, biases=True, std=_weights(30.0),
               vacuous=(torch.float64, torch.float32, torch.bfloat16), **self_),
        _layer("tiny-h1", "symbols, one head", options={"n_heads": 1}, h=1, d_k=2, d_v=2, **tiny),
        _layer("tiny-h2-biases", "symbols, two heads and biases", options={"n_heads": 2}, h=2, d_k=1, d_v=1, biases=True,
               **tiny),
        _layer("tiny-cross-masked", "symbols, n_q ≠ n_k and a mask", options={"n_heads": 2, "mask": three},
               h=2, d_k=1, d_v=1, n_k=3, **tiny),
        # ---- blockdiag
        _layer("block-self", "the object of the derivation", rule="blockdiag", options={"n_heads": 3}, biases=True,
               **self_),
        _layer("block-cross", "with a mask, a fully masked row, its own source", rule="blockdiag",
               options={"n_heads": 3, "scale": 0.3, "mask": _mask(5, 7, empty=2)}, biases=True, **cross),
        _layer("tiny-block", "symbols, the row shift included", rule="blockdiag",
               options={"n_heads": 2, "mask": three}, h=2, d_k=1, d_v=1, n_k=3, **tiny),
    ]  # fmt: skip


def _weights(std: float) -> dict[str, float]:
    """The weights' standard deviation; inputs stay at 1, biases at a hundredth of the weights."""
    return {
        **dict.fromkeys(("W_Q", "W_K", "W_V", "W_O"), std),
        **dict.fromkeys(("b_Q", "b_K", "b_V", "b_O"), std / 100),
    }


PROBLEMS: dict[str, Problem] = {p.name: p for p in _problems()}


def elements(problem: Problem) -> int:
    """The number of entries of all arguments."""
    return sum(math.prod(s) for s in problem.shapes.values())
