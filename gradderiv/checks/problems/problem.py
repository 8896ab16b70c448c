"""What a problem is, and what the tables of problems are made of."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Make = Callable[[str, tuple[int, ...]], Tensor]


#: The arguments of a layer without options.
LAYER = frozenset({"X", "X_kv", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "bias"})


@dataclass(frozen=True)
class Problem:
    """A named case.

    Attributes:
        name, rule: what it is, and the rule it is for.
        shapes: of the differentiable arguments, in the rule's order.
        output: the shape of the value.
        options: everything else that the rule is called with.
        std: standard deviation of the values, or of each argument by name.
        mean: of an argument by name, where it is not 0: a temperature, a gain; a number or a tensor.
        cotangent: "normal", "one row" (a single nonzero row) or "scaled" (by 10⁶).
        zeros: arguments whose gradient is exactly zero.
        vacuous: dtypes in which nothing can be said, which is then the right verdict.
        lanes: primes with which the exact tests begin; the bound may ask for more.
        why: the mistake that this case would have caught.
    """

    name: str
    rule: str
    shapes: dict[str, tuple[int, ...]]
    output: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    std: float | dict[str, float] = 1.0
    mean: dict[str, Any] = field(default_factory=dict)
    cotangent: str = "normal"
    zeros: frozenset[str] = frozenset()
    vacuous: tuple[torch.dtype, ...] = ()
    lanes: int = 2
    why: str = ""

    @property
    def tiny(self) -> bool:
        """Small enough for SymPy."""
        return self.name.startswith("tiny")

    @property
    def layer(self) -> bool:
        """A multi-head layer, whatever its options."""
        return self.rule in ("multihead", "blockdiag")

    @property
    def plain(self) -> bool:
        """A layer without options but scale, mask and bias."""
        given = self.options.keys() - {"n_heads", "n_kv_heads", "scale", "mask"}
        return self.layer and not given and not self.shapes.keys() - LAYER

    def draw(self, make: Make) -> tuple[dict[str, Tensor], Tensor]:
        """The arguments and the cotangent, each made by ``make(name, shape)``."""
        return {name: make(name, shape) for name, shape in self.shapes.items()}, make("dY", self.output)

    def on(self, device: str) -> dict[str, Any]:
        """The options, with their masks and fills on ``device``."""

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device)
            return value._make(map(moved, value)) if hasattr(value, "_make") else value

        return {name: moved(value) for name, value in self.options.items()}

    def floats(
        self, seed: int, dtype: torch.dtype, *, role: str = "", device: str = "cpu"
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Normal values with the problem's standard deviations, rounded to ``dtype``; ``role`` draws others."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.name}/{seed}/{role}".encode()))

        def make(name: str, shape: tuple[int, ...]) -> Tensor:
            std = self.std if isinstance(self.std, float) else self.std.get(name, 1.0)
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            value = self._cotangent(value) if name == "dY" else value * std + self.mean.get(name, 0.0)
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


def scattered(n_q: int, n_k: int, *, empty: int | None = None) -> Tensor:
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


ALWAYS_ZERO = frozenset({"b_K"})


def weights(std: float) -> dict[str, float]:
    """The weights' standard deviation; inputs stay at 1, biases at a hundredth of the weights."""
    return {
        **dict.fromkeys(("W_Q", "W_K", "W_V", "W_O"), std),
        **dict.fromkeys(("b_Q", "b_K", "b_V", "b_O"), std / 100),
    }


def layer(name: str, why: str, *, options: dict[str, Any], **sizes: Any) -> Problem:
    rule = sizes.pop("rule", "multihead")
    extra: dict[str, Any] = {"std": weights(0.35)} | {
        k: sizes.pop(k) for k in ("std", "cotangent", "vacuous") if k in sizes
    }
    shapes = layer_shapes(**sizes)
    output = (*sizes.get("batch", ()), sizes["n"], sizes["d_out"])
    zeros = ALWAYS_ZERO if "b_K" in shapes else frozenset()
    return Problem(name, rule, shapes, output, options, zeros=zeros, why=why, **extra)


def elements(problem: Problem) -> int:
    """The number of entries of all arguments."""
    return sum(math.prod(s) for s in problem.shapes.values())
