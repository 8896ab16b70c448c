"""A real layer on real input: ``nn.MultiheadAttention`` at GPT-2 small's shape, its own initialisation, fed with embedded prose.

Its gradients, as PyTorch's autograd gives them, against the closed forms of :mod:`gradderiv.rules.multihead`. The layer has the fused layout

    in_proj_weight = [W_Qᵀ; W_Kᵀ; W_Vᵀ]  (3·d_model, d_model)      out_proj.weight = W_Oᵀ      in_proj_bias = [b_Q; b_K; b_V]

(``nn.Linear`` computes X Wᵀ, the rules X W), and its boolean masks say True = hidden where the rules say True = may attend.

The tolerance is computed as everywhere (:mod:`gradderiv.checks.tolerance`): running errors of the textbook forward and of autograd
through it, in float32; in float64 the same times 2⁻²⁹.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradderiv.checks import tolerance
from gradderiv.checks.compare import compare
from gradderiv.checks.reference import multihead as textbook
from gradderiv.checks.report import Record
from gradderiv.rules.multihead import multihead, multihead_vjp
from gradderiv.threads import one_thread

D_MODEL, N_HEADS = 768, 12
N_Q, N_K, BATCH = 64, 45, 2
PADDING = 17  # keys of the second sequence that nobody may attend to
Progress = Callable[[int, int, str], None]


class Case(NamedTuple):
    """Self- or cross-attention, with or without each of torch's two masks."""

    cross: bool
    causal: bool
    padded: bool

    @property
    def name(self) -> str:
        words = ["cross" if self.cross else "self", "causal" * self.causal, "padded" * self.padded]
        return " ".join([f"nn.MultiheadAttention {D_MODEL}/{N_HEADS}", *filter(None, words)])


CASES = (
    Case(cross=False, causal=False, padded=False),
    Case(cross=False, causal=True, padded=False),
    Case(cross=False, causal=True, padded=True),
    Case(cross=True, causal=False, padded=False),
    Case(cross=True, causal=False, padded=True),
)


class Drawn(NamedTuple):
    """The layer, what it is fed with, torch's masks (True = hidden) and the cotangent."""

    layer: nn.MultiheadAttention
    X: Tensor
    X_kv: Tensor | None
    causal: Tensor | None
    padding: Tensor | None
    dY: Tensor

    def to(self, dtype: torch.dtype) -> Drawn:
        """In another precision; the layer itself is converted in place, as torch does."""
        X_kv = None if self.X_kv is None else self.X_kv.to(dtype)
        return self._replace(layer=self.layer.to(dtype), X=self.X.to(dtype), X_kv=X_kv, dY=self.dY.to(dtype))


def verify_layers(seed: int = 0, progress: Progress | None = None) -> list[Record]:
    """One record for every gradient of every case, in float64 and in float32."""
    records = []
    for i, case in enumerate(CASES):
        if progress is not None:
            progress(i, len(CASES), case.name)
        with one_thread():
            records += verify_case(case, seed)
    if progress is not None:
        progress(len(CASES), len(CASES), "")
    return records


def verify_case(case: Case, seed: int = 0) -> list[Record]:
    """The records of one case."""
    start = time.perf_counter()
    drawn, layers, values = draw(case, seed), {}, {}
    for dtype in (torch.float32, torch.float64):
        one = drawn.to(dtype)  # float64 has the float32 numbers: the cast is exact
        layers[dtype], values[dtype] = torch_gradients(one), closed_forms(one)
    reference = layers[torch.float64]
    allowed = tolerances(drawn)
    records = []
    for dtype, value in values.items():
        u = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        for name, expected in reference.items():
            found = compare(value[name], expected, u * allowed[name], zero=name == "b_K", n_heads=N_HEADS)
            word = str(dtype).removeprefix("torch.")
            records.append(
                Record("multihead", case.name, name, "torch layer", "float", word, **found.fields())
            )
    seconds = (time.perf_counter() - start) / len(records)
    return [dataclasses.replace(r, seconds=seconds) for r in records]


def draw(case: Case, seed: int) -> Drawn:
    """The layer as torch initialises it, and a passage of the prose through an embedding of bytes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.MultiheadAttention(D_MODEL, N_HEADS, batch_first=True)
        embedding = nn.Embedding(256, D_MODEL)
        dY = torch.randn(BATCH, N_Q, D_MODEL)
    n_k = N_K if case.cross else N_Q
    tokens = passages(BATCH * (N_Q + n_k), seed)
    X, source = (
        embedding(t.reshape(BATCH, -1)).detach() for t in torch.split(tokens, [BATCH * N_Q, BATCH * n_k])
    )
    causal = torch.ones(N_Q, n_k, dtype=torch.bool).triu(1) if case.causal else None
    padding = None
    if case.padded:
        padding = torch.zeros(BATCH, n_k, dtype=torch.bool)
        padding[1, -PADDING:] = True  # a causal row still sees its first keys: no row is empty
    return Drawn(layer, X, source if case.cross else None, causal, padding, dY)


def passages(count: int, seed: int) -> Tensor:
    """So many bytes of the project's prose, from a place that the seed chooses."""
    from gradderiv.text import prose

    text = prose().encode()
    first = torch.randint(len(text) - count, (), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(list(text[int(first) : int(first) + count]))


# ---------------------------------------------------------------- the two sides


def torch_gradients(drawn: Drawn) -> dict[str, Tensor]:
    """The layer's output, and its gradients from autograd under the names and in the layout of the rules."""
    layer, is_self = drawn.layer, drawn.X_kv is None
    X = drawn.X.clone().requires_grad_()
    source = X if drawn.X_kv is None else drawn.X_kv.clone().requires_grad_()
    Y, _ = layer(
        X, source, source, key_padding_mask=drawn.padding, attn_mask=drawn.causal, need_weights=False
    )
    sources = [X] if is_self else [X, source]
    found = torch.autograd.grad(Y, [*sources, *layer.parameters()], drawn.dY)
    names = [name for name, _ in layer.named_parameters()]
    g = dict(zip(["X"] if is_self else ["X", "X_kv"], found, strict=False))
    fused = dict(zip(names, found[len(sources) :], strict=True))
    return {"Y": Y.detach()} | g | unfused(fused)


def unfused(fused: Mapping[str, Tensor]) -> dict[str, Any]:
    """torch's parameters, or their gradients, under the rules' names: rows Q, K, V of ``in_proj``, each transposed."""
    W_Q, W_K, W_V = (W.mT for W in fused["in_proj_weight"].chunk(3))
    b_Q, b_K, b_V = fused["in_proj_bias"].chunk(3)
    W_O, b_O = fused["out_proj.weight"].mT, fused["out_proj.bias"]
    return {
        "W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": W_O, "b_Q": b_Q, "b_K": b_K, "b_V": b_V, "b_O": b_O,
    }  # fmt: skip


def may_attend(drawn: Drawn) -> Tensor | None:
    """The rules' mask (b, 1, n_q, n_k), True = may attend, from torch's two, True = hidden."""
    hidden = [m for m in (drawn.causal, drawn.padding) if m is not None]
    if not hidden:
        return None
    causal = drawn.causal if drawn.causal is not None else torch.zeros((), dtype=torch.bool)
    padding = (
        drawn.padding[:, None, None, :] if drawn.padding is not None else torch.zeros((), dtype=torch.bool)
    )
    return ~(causal | padding)


@torch.no_grad()
def closed_forms(drawn: Drawn) -> dict[str, Tensor]:
    """The same from the closed forms."""
    weights = unfused(dict(drawn.layer.named_parameters()))
    Y, saved = multihead(drawn.X, X_kv=drawn.X_kv, n_heads=N_HEADS, mask=may_attend(drawn), **weights)
    gradients = multihead_vjp(drawn.dY, saved)._asdict()
    return {"Y": Y} | {name: g for name, g in gradients.items() if g is not None}


def tolerances(drawn: Drawn) -> dict[str, Tensor]:
    """How far off the output and each gradient may be in float32."""
    weights = unfused(dict(drawn.layer.named_parameters()))
    args = {
        name: x.detach()
        for name, x in (weights | {"X": drawn.X, "X_kv": drawn.X_kv}).items()
        if x is not None
    }

    def forward(a: Mapping[str, Any]) -> Tensor:
        return textbook(**a, n_heads=N_HEADS, mask=may_attend(drawn))

    gradients = tolerance.of_gradients(forward, args, drawn.dY, torch.float32)
    return {"Y": tolerance.of_value(forward, args, torch.float32)} | gradients
