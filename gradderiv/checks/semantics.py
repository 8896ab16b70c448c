"""What each way to hide a key does: computed on one problem, for every row of :data:`gradderiv.rules.fills.SEMANTICS`.

Padding 0110010 and causal, as in onnxruntime #14363: the first query may attend to nothing, the others to something. Of each semantics is found what it makes of the first
row, what reaches hidden keys forwards and backwards, how far visible scores may lie below 0, and whether the gradient of the first row is that of its value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradderiv.rules.fills import SEMANTICS, masked_fill, masked_fill_vjp
from gradderiv.rules.masks import causal, hidden
from gradderiv.rules.softmax import softmax, softmax_vjp

N, D = 7, 5
PADDED = (True, False, False, True, True, False, True)
STEP = 2.0**-3  # of finite differences: many spacings of float32 at 10000


@dataclass(frozen=True)
class Setting:
    """Q, K, V (n, d), dO (n, d), and the masks: padding, later keys."""

    Q: Tensor
    K: Tensor
    V: Tensor
    dO: Tensor
    masks: tuple[Tensor, Tensor]

    @property
    def seen(self) -> Tensor:
        return self.masks[0] & self.masks[1]

    @property
    def scale(self) -> float:
        return self.Q.shape[-1] ** -0.5

    @property
    def S(self) -> Tensor:
        return self.scale * self.Q @ self.K.mT


@dataclass(frozen=True)
class Leak:
    """What hidden keys get of some rows: the log₁₀ of the largest share of a row, without rounding; |dV| and |dK| in the type."""

    share: float
    dV: float
    dK: float


@dataclass(frozen=True)
class Finding:
    """What one semantics does.

    Attributes:
        row: P of the query that may attend to nothing.
        gives: the same in words.
        empty, seeing: what hidden keys get of that row, and of the others.
        depth: c, where hidden keys first get half of a row if visible scores are S − c; None: nowhere in the type.
        slope, moved: |dS| of the empty row, by autograd and by finite differences.
    """

    name: str
    row: tuple[float, ...]
    gives: str
    empty: Leak
    seeing: Leak
    depth: float | None
    slope: float
    moved: float

    @property
    def absorbed(self) -> bool:
        """Autograd has a gradient for scores that move nothing."""
        return self.slope > 0 and self.moved == 0


def setting(seed: int = 0, dtype: torch.dtype = torch.float32) -> Setting:
    """Everything N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    Q, K, V, dO = (torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype) for _ in range(4))
    size = (N, N)
    padding = hidden(torch.tensor([PADDED])).on(size)
    return Setting(Q, K, V, dO, (padding.expand(size), causal().on(size)))


def semantics(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Finding]:
    """A finding for every semantics."""
    s = setting(seed, dtype)
    return [find(name, s) for name in SEMANTICS]


def find(name: str, s: Setting) -> Finding:
    """What the semantics of that name does in this setting."""
    options = SEMANTICS[name].options(s.masks, s.Q.dtype)
    P, S_filled = _weights(s.S, options)
    empty = ~s.seen.any(-1, keepdim=True)
    slope, moved = _slopes(s, options)
    return Finding(
        name,
        tuple(P[0].tolist()),
        in_words(P[0], S_filled[0], s.S[0]),
        _leak(s, options, P, ~s.seen & empty),
        _leak(s, options, P, ~s.seen & ~empty),
        _depth(s, options),
        slope,
        moved,
    )


def in_words(p: Tensor, filled: Tensor, scores: Tensor) -> str:
    """What a row of P is: its keys are those with a share in this type; what is said of scores holds to the last place of S′."""
    if p.isnan().all():
        return "NaN"
    keys = p.nonzero().flatten()
    if not len(keys):
        return "0"
    where = f"all {len(p)} keys" if len(keys) == len(p) else "keys " + " ".join(map(str, keys.tolist()))
    if len(keys) == 1:
        return f"all of it on key {int(keys)}"
    left, added = filled[keys], (filled - scores)[keys]
    place = torch.finfo(filled.dtype).eps * left.abs().max()
    if bool((left == left[0]).all()):
        return f"uniform over {where}"
    if bool(((added - added[0]).abs() <= place).all()):
        return f"softmax of its scores, {where}"
    return f"neither even nor by score, {where}"


def table(findings: Sequence[Finding]) -> str:
    """Three tables: what the row that may attend to nothing gives, whether its gradient is that of its value, and what hidden keys get of the other rows."""
    lines = [f"{'the empty row':<18}{'gives':<41}{'|dV|':>9}{'|dK|':>9}"]
    lines += [f"{f.name:<18}{f.gives:<41}{f.empty.dV:>9.2g}{f.empty.dK:>9.2g}" for f in findings]
    lines += ["", f"{'its |dS|':<18}{'by autograd':<14}{'by differences'}"]
    lines += [
        f"{f.name:<18}{f.slope:<14.2g}{f.moved:<14.2g}{ABSORBED if f.absorbed else ''}".rstrip()
        for f in findings
    ]
    lines += [
        "",
        f"{'the other rows':<18}{'share of hidden keys':<24}{'|dV|':<9}{'|dK|':<9}{'half of it at c':>17}",
    ]
    lines += [
        f"{f.name:<18}{_share(f.seeing.share):<24}{f.seeing.dV:<9.2g}{f.seeing.dK:<9.2g}{_depth_text(f.depth):>17}"
        for f in findings
    ]
    return "\n".join(lines)


ABSORBED = "of a value that does not move"


def _share(log10: float) -> str:
    """A power of ten, which may have no float."""
    return "0" if log10 == -math.inf else f"10^{log10:.6g}"


def _depth_text(depth: float | None) -> str:
    return "never" if depth is None else f"{depth:.6g}"


# ---------------------------------------------------------------- how it is found


def _weights(S: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """P and S′."""
    if "mask" in options:
        return softmax(S, mask=options["mask"])[0], S.masked_fill(~options["mask"], -torch.inf)
    filled, _ = masked_fill(S, fill=options["fill"])
    return softmax(filled)[0], filled


def _score_gradient(P: Tensor, dP: Tensor, S: Tensor, options: dict[str, Any]) -> Tensor:
    (d,) = softmax_vjp(dP, softmax(S)[1]._replace(P=P))
    if "mask" in options:
        return d
    return masked_fill_vjp(d, masked_fill(S, fill=options["fill"])[1]).S


def _leak(s: Setting, options: dict[str, Any], P: Tensor, places: Tensor) -> Leak:
    """At ``places`` (query, key), all of them hidden."""
    dS = _score_gradient(P, s.dO @ s.V.mT, s.S, options)
    dV = torch.where(places, P, 0.0).mT @ s.dO
    dK = s.scale * torch.where(places, dS, 0.0).mT @ s.Q
    return Leak(_log_share(s, options, places), float(dV.norm()), float(dK.norm()))


def _log_share(s: Setting, options: dict[str, Any], places: Tensor) -> float:
    """log₁₀ of the share, from S′ of the type, in float64 and without an exponential that can vanish."""
    _, filled = _weights(s.S, options)
    rows = places.any(-1)
    filled, places = filled[rows].double(), places[rows]
    if "mask" in options:
        return -math.inf
    taken = filled.masked_fill(~places, -torch.inf).logsumexp(-1) - filled.logsumexp(-1)
    return float(taken.max()) / math.log(10)


def _depth(s: Setting, options: dict[str, Any]) -> float | None:
    rows = s.seen.any(-1)

    def holds(c: float) -> bool:
        P, _ = _weights(torch.where(s.seen, s.S - c, s.S), options)
        return bool((P.masked_fill(s.seen, 0.0).sum(-1)[rows] < 0.5).all())

    finfo = torch.finfo(s.Q.dtype)
    low, high = 0.0, finfo.max
    if holds(high):
        return None
    while high - low > finfo.eps * high:
        middle = low + (high - low) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _slopes(s: Setting, options: dict[str, Any]) -> tuple[float, float]:
    """|dS| of the first row: by autograd through the forward, and by central differences of ⟨P, dP⟩."""
    dP = s.dO @ s.V.mT

    def value(S: Tensor) -> Tensor:
        return (_weights(S, options)[0] * dP)[0].sum()

    leaf = s.S.requires_grad_()
    (g,) = torch.autograd.grad(value(leaf), leaf)
    moves = STEP * torch.eye(N * N, dtype=g.dtype).reshape(-1, N, N)[:N]  # of each entry of the first row
    changes = [(value(s.S + m) - value(s.S - m)) / (2 * STEP) for m in moves]
    return float(g[0].norm()), float(torch.stack(changes).norm())
