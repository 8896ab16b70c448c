"""Attention with its options, what the options are made of, and layers with a fused projection, three times over."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from gradderiv.checks.reference import core

# ---------------------------------------------------------------- textbook, in torch


def rms_norm(X: Tensor, gain: Tensor, *, eps: float = 1e-6, offset: float = 0.0) -> Tensor:
    """Every row divided by its root mean square."""
    square = torch.einsum("...d,...d->...", X, X) / X.shape[-1]
    N = X / torch.sqrt(square + eps)[..., None]
    return N * gain + N * offset if offset else N * gain


def rope(X: Tensor, cos: Tensor, sin: Tensor, *, pairing: str = "half") -> Tensor:
    """Column after column: x_i c_i − x_j s_i for the first of a pair, x_j c_j + x_i s_j for the second."""
    columns = list(X.unbind(-1))
    out = list(columns)
    for i, j in pairs(cos.shape[-1], pairing):
        out[i] = columns[i] * cos[..., i] - columns[j] * sin[..., i]
        out[j] = columns[j] * cos[..., j] + columns[i] * sin[..., j]
    return torch.stack(out, -1)


def pairs(r: int, pairing: str) -> list[tuple[int, int]]:
    """Which columns turn together."""
    if pairing == "half":
        return [(i, i + r // 2) for i in range(r // 2)]
    return [(i, i + 1) for i in range(0, r, 2)]


def attend(
    Q: Tensor, K: Tensor, V: Tensor, *, outputs: tuple[str, ...] = ("O",), scale: float | None = None,
    mask: Tensor | None = None, bias: Tensor | None = None, fill: Any = None, sinks: Tensor | None = None,
    keep: Tensor | None = None, dropout_p: float = 0.0, softmax_dtype: torch.dtype | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    """P_ij = exp S_ij / (Σ_k exp S_ik + exp s), without a shift and without a mask: hidden exponentials are multiplied by 0."""
    Q, K, V, S = textbook_scores(Q, K, V, scale, options)
    S = S if bias is None else S + bias
    if fill is not None:
        S = (S if fill.keep is None else torch.where(fill.keep, S, torch.zeros_like(S))) + fill.constant
        mask = None
    allowed = torch.ones_like(S) if mask is None else mask.expand(S.shape).to(S.dtype)
    shift = torch.zeros_like(S[..., :1]).detach()
    if fill is not None:  # a finite fill for −∞: all that is left of a row may be below what exp can hold
        shift = S.detach().amax(-1, keepdim=True)
        shift = shift if sinks is None else torch.maximum(shift, sinks.detach()[..., None, None])
    E = torch.exp(S - shift) * allowed
    Z = E.sum(-1, keepdim=True)
    if sinks is not None:
        Z = Z + torch.exp(sinks[..., None, None] - shift)
    empty = (allowed.sum(-1, keepdim=True) == 0) if sinks is None and mask is not None else None
    Z = Z if empty is None else torch.where(empty, torch.ones_like(Z), Z)
    P = E / Z
    lse = torch.log(Z) + shift
    if keep is not None:
        P = P * keep.to(P.dtype) / (1 - dropout_p)
    return beside(torch.einsum("...qk,...kd->...qd", P, V), P, lse, outputs)


def textbook_scores(
    Q: Tensor, K: Tensor, V: Tensor, scale: float | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Up to the scores, in the order of the formula; keys and values with the cache, repeated."""
    if "gain_Q" in options:
        eps = options.get("eps", 1e-6)
        Q, K = rms_norm(Q, options["gain_Q"], eps=eps), rms_norm(K, options["gain_K"], eps=eps)
    if "cos" in options:
        tables = {"cos": options["cos"], "sin": options["sin"], "pairing": options.get("pairing", "half")}
        Q, K = rope(Q, **tables), rope(K, **tables)
    if "K_cache" in options:
        K, V = torch.cat([options["K_cache"], K], -2), torch.cat([options["V_cache"], V], -2)
    if Q.dim() > 2 and K.shape[-3] != Q.shape[-3]:
        served = [i * K.shape[-3] // Q.shape[-3] for i in range(Q.shape[-3])]
        K, V = (torch.stack([t.select(-3, j) for j in served], -3) for t in (K, V))
    S = torch.einsum("...qd,...kd->...qk", Q, K) * (1 / math.sqrt(Q.shape[-1]) if scale is None else scale)
    if "temperature" in options:
        S = S * (1 / options["temperature"])
    if "softcap" in options:
        S = torch.tanh(S * (1 / options["softcap"])) * options["softcap"]
    if "slopes" in options:
        S = S - torch.einsum("h,qk->hqk", options["slopes"], distances(S).to(S.dtype))
    if "table" in options:
        rows = torch.arange(options["table"].shape[0], device=S.device)
        one_hot = (options["buckets"][..., None] == rows).to(S.dtype)
        S = S + torch.einsum("qkb,bh->hqk", one_hot, options["table"])
    return Q, K, V, S


def distances(S: Tensor) -> Tensor:
    n_q, n_k = S.shape[-2:]
    return torch.tensor([[abs(n_k - n_q + i - j) for j in range(n_k)] for i in range(n_q)], device=S.device)


def beside(O: Tensor, P: Tensor, lse: Tensor, outputs: tuple[str, ...]) -> Tensor:
    columns = {"O": O, "weights": P, "lse": lse}
    return torch.cat([columns[name] for name in outputs], -1)


def layered(
    linear: Callable[..., Tensor], attend: Callable[..., Tensor], plain: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """A layer of these parts; ``plain`` where there is no option that it does not know."""

    def layer(
        X: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor, *, n_heads: int, n_kv_heads: int | None = None,
        X_kv: Tensor | None = None, b_Q: Tensor | None = None, b_K: Tensor | None = None, b_V: Tensor | None = None,
        b_O: Tensor | None = None, **options: Any,
    ) -> Tensor:  # fmt: skip
        heads: dict[str, Any] = {"n_heads": n_heads} | (
            {} if n_kv_heads is None else {"n_kv_heads": n_kv_heads}
        )
        biases = {"b_Q": b_Q, "b_K": b_K, "b_V": b_V, "b_O": b_O}
        if not options.keys() - {"scale", "mask", "bias"}:
            source: dict[str, Any] = {} if X_kv is None else {"X_kv": X_kv}
            return plain(X, W_Q, W_K, W_V, W_O, **heads, **source, **biases, **options)
        kv = X if X_kv is None else X_kv
        h_kv = n_heads if n_kv_heads is None else n_kv_heads
        projected = (linear(X, W_Q, b_Q), n_heads), (linear(kv, W_K, b_K), h_kv), (linear(kv, W_V, b_V), h_kv)
        O = attend(*(t.reshape(*t.shape[:-1], h, -1).transpose(-3, -2) for t, h in projected), **options)
        O = O.transpose(-3, -2)
        return linear(O.reshape(*O.shape[:-2], -1), W_O, b_O)

    return layer


def unfused(
    layer: Callable[..., Tensor], X: Tensor, W_QKV: Tensor, W_O: Tensor, *, layout: str, n_heads: int,
    n_kv_heads: int | None = None, d_k: int | None = None, b_QKV: Tensor | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    """The layer with projections of its own, each column picked by its number."""
    h_kv = n_heads if n_kv_heads is None else n_kv_heads
    wide = W_QKV.shape[-1] // (n_heads + 2 * h_kv) if d_k is None else d_k
    picked = column_numbers(layout, n_heads, h_kv, wide, W_QKV.shape[-1])
    options |= {} if n_kv_heads is None else {"n_kv_heads": n_kv_heads}
    biases = {} if b_QKV is None else {f"b_{p}": b_QKV[c] for p, c in zip("QKV", picked, strict=True)}
    return layer(X, *(W_QKV[:, c] for c in picked), W_O, n_heads=n_heads, **biases, **options)


def column_numbers(layout: str, h: int, h_kv: int, d_k: int, N: int) -> list[Tensor]:
    """For Q, K and V: which columns of the fused matrix are theirs, head by head."""
    d_v = (N - (h + h_kv) * d_k) // h_kv
    g = h // h_kv
    starts = 0, h * d_k, (h + h_kv) * d_k
    counts = (h, d_k), (h_kv, d_k), (h_kv, d_v)
    found = []
    for part, (heads, d) in enumerate(counts):
        numbers = []
        for i in range(heads):
            for c in range(d):
                if layout == "contiguous":
                    numbers.append(starts[part] + i * d + c)
                elif layout == "head-last":
                    numbers.append(starts[part] + c * heads + i)
                else:
                    block, inside = (i // g, i % g) if part == 0 else (i, 0)
                    ahead = (inside * d_k, g * d_k, (g + 1) * d_k)[part]
                    numbers.append(block * ((g + 1) * d_k + d_v) + ahead + c)
        found.append(torch.tensor(numbers))
    return found


multihead = layered(core.linear, attend, core.multihead)

TEXTBOOK: dict[str, Callable[..., Tensor]] = {
    "rms_norm": rms_norm, "rope": rope, "attend": attend, "multihead": multihead,
    "fused": lambda *args, **options: unfused(multihead, *args, **options),
}  # fmt: skip

# ---------------------------------------------------------------- the same as loops, entry by entry


def loop_rms_norm(X: Tensor, gain: Tensor, *, eps: float = 1e-6, offset: float = 0.0) -> Tensor:
    gains = gain.expand(X.shape).reshape(-1, X.shape[-1]).tolist()
    rows = []
    for row, g in zip(X.reshape(-1, X.shape[-1]).tolist(), gains, strict=True):
        root = math.sqrt(math.fsum(x * x for x in row) / len(row) + eps)
        rows.append([x / root * (c + offset) for x, c in zip(row, g, strict=True)])
    return torch.tensor(rows, dtype=X.dtype).reshape(X.shape)


def loop_rope(X: Tensor, cos: Tensor, sin: Tensor, *, pairing: str = "half") -> Tensor:
    r = cos.shape[-1]
    tables = [t.expand(*X.shape[:-1], r).reshape(-1, r).tolist() for t in (cos, sin)]
    rows = X.reshape(-1, X.shape[-1]).tolist()
    for row, c, s in zip(rows, *tables, strict=True):
        for i, j in pairs(r, pairing):
            row[i], row[j] = row[i] * c[i] - row[j] * s[i], row[j] * c[j] + row[i] * s[j]
    return torch.tensor(rows, dtype=X.dtype).reshape(X.shape)


def loop_attend(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    *,
    outputs: tuple[str, ...] = ("O",),
    scale: float | None = None,
    **o: Any,
) -> Tensor:
    """Batch by batch, head by head, query by query, key by key, in Python's numbers."""
    if "gain_Q" in o:
        Q, K = (loop_rms_norm(t, o[f"gain_{n}"], eps=o.get("eps", 1e-6)) for n, t in (("Q", Q), ("K", K)))
    if "cos" in o:
        Q, K = (loop_rope(t, o["cos"], o["sin"], pairing=o.get("pairing", "half")) for t in (Q, K))
    if "K_cache" in o:
        K, V = torch.cat([o["K_cache"], K], -2), torch.cat([o["V_cache"], V], -2)
    q, k, v = (t.reshape(-1, *((1,) * (3 - t.dim())), *t.shape[-3:]) for t in (Q, K, V))
    B, h, n_q, n_k = q.shape[0], q.shape[1], q.shape[2], k.shape[2]
    tau = 1 / math.sqrt(Q.shape[-1]) if scale is None else scale

    def full(name: str) -> Any:
        t = o.get(name)
        return None if t is None else t.expand(*Q.shape[:-1], n_k).reshape(B, h, n_q, n_k).tolist()

    given = {name: full(name) for name in ("temperature", "bias", "mask", "keep")}
    if o.get("fill") is not None:
        replaced = {"stays": o["fill"].keep, "constant": o["fill"].constant}
        given |= {
            n: None if t is None else t.expand(*Q.shape[:-1], n_k).reshape(B, h, n_q, n_k).tolist()
            for n, t in replaced.items()
        }
    rows: dict[str, list[Any]] = {"O": [], "weights": [], "lse": []}
    for b in range(B):
        for i in range(h):
            j_kv = i // (h // k.shape[1])
            for x in range(n_q):
                S: list[float] = []
                for y in range(n_k):
                    s = tau * math.fsum(
                        a * c for a, c in zip(q[b, i, x].tolist(), k[b, j_kv, y].tolist(), strict=True)
                    )
                    s = s if given["temperature"] is None else s / given["temperature"][b][i][x][y]
                    s = o["softcap"] * math.tanh(s / o["softcap"]) if "softcap" in o else s
                    s -= float(o["slopes"][i]) * abs(n_k - n_q + x - y) if "slopes" in o else 0.0
                    s += float(o["table"][o["buckets"][x, y], i]) if "table" in o else 0.0
                    s += 0.0 if given["bias"] is None else given["bias"][b][i][x][y]
                    if "constant" in given:
                        s = s if given["stays"] is None or given["stays"][b][i][x][y] else 0.0
                        s += given["constant"][b][i][x][y]
                    hidden = given["mask"] is not None and not given["mask"][b][i][x][y]
                    S.append(-math.inf if hidden else s)
                beside_them = S + (
                    [float(o["sinks"][i] if o["sinks"].dim() else o["sinks"])] if "sinks" in o else []
                )
                top = max(beside_them)
                total = math.fsum(math.exp(s - top) for s in beside_them) if top > -math.inf else 0.0
                P = [math.exp(s - top) / total if total else 0.0 for s in S]
                rows["lse"].append([top + math.log(total) if total else -math.inf])
                if given["keep"] is not None:
                    P = [
                        p / (1 - o["dropout_p"]) if kept else 0.0
                        for p, kept in zip(P, given["keep"][b][i][x], strict=True)
                    ]
                rows["weights"].append(P)
                rows["O"].append(
                    [
                        math.fsum(p * c for p, c in zip(P, column, strict=True))
                        for column in v[b, j_kv].mT.tolist()
                    ]
                )
    flat = [torch.tensor(rows[name], dtype=Q.dtype) for name in outputs]
    return torch.cat(flat, -1).reshape(*Q.shape[:-1], -1)


loop_multihead = layered(core.loop_linear, loop_attend, core.loop_multihead)

LOOPS: dict[str, Callable[..., Tensor]] = {
    "rms_norm": loop_rms_norm, "rope": loop_rope, "attend": loop_attend, "multihead": loop_multihead,
    "fused": lambda *args, **options: unfused(loop_multihead, *args, **options),
}  # fmt: skip

# ---------------------------------------------------------------- torch's own


def torch_rms_norm(X: Tensor, gain: Tensor, *, eps: float = 1e-6, offset: float = 0.0) -> Tensor:
    return functional.rms_norm(X, X.shape[-1:], eps=eps) * (gain + offset)


def torch_rope(X: Tensor, cos: Tensor, sin: Tensor, *, pairing: str = "half") -> Tensor:
    """Pairs as complex numbers: the entries of one angle by a product; where a pair has two, each part from its own."""
    r = cos.shape[-1]
    order = torch.tensor(pairs(r, pairing)).flatten()
    z, c, s = (t[..., order].unflatten(-1, (-1, 2)) for t in (X[..., :r], cos, sin))
    first, second = (
        torch.view_as_complex(z.contiguous()) * torch.complex(c[..., e], s[..., e]) for e in (0, 1)
    )
    turned = torch.stack([first.real, second.imag], -1).flatten(-2)
    return torch.cat([turned[..., order.argsort()], X[..., r:]], -1)


def torch_attend(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    *,
    outputs: tuple[str, ...] = ("O",),
    scale: float | None = None,
    **o: Any,
) -> Tensor:
    """flex_attention, with everything between the scores and the softmax as its score_mod; a sink by what it takes of every row."""
    if "gain_Q" in o:
        Q, K = (torch_rms_norm(t, o[f"gain_{n}"], eps=o.get("eps", 1e-6)) for n, t in (("Q", Q), ("K", K)))
    if "cos" in o:
        Q, K = (torch_rope(t, o["cos"], o["sin"], pairing=o.get("pairing", "half")) for t in (Q, K))
    if "K_cache" in o:
        K, V = torch.cat([o["K_cache"], K], -2), torch.cat([o["V_cache"], V], -2)
    leading, n_q, n_k = Q.shape[:-1], Q.shape[-2], K.shape[-2]
    q, k, v = (t.reshape(-1, *((1,) * (3 - t.dim())), *t.shape[-3:]) for t in (Q, K, V))
    size = q.shape[0], q.shape[1], n_q, n_k

    def full(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.expand(*leading, n_k).reshape(size)

    added = Q.new_zeros(size)
    bias = full(o.get("bias"))
    added = added if bias is None else added + bias
    if "slopes" in o:
        i = torch.arange(n_k - n_q, n_k)[:, None]
        added = added - o["slopes"].view(-1, 1, 1) * (i - torch.arange(n_k)).abs()
    if "table" in o:
        added = added + functional.embedding(o["buckets"], o["table"]).permute(2, 0, 1)
    divisor, mask, fill = full(o.get("temperature")), full(o.get("mask")), o.get("fill")

    def score_mod(s: Tensor, b: Tensor, i: Tensor, x: Tensor, y: Tensor) -> Tensor:
        s = s if divisor is None else s / divisor[b, i, x, y]
        s = o["softcap"] * torch.tanh(s / o["softcap"]) if "softcap" in o else s
        s = s + added[b, i, x, y]
        if fill is not None:
            stays, constant = full(fill.keep), full(fill.constant)
            s = (s if stays is None else torch.where(stays[b, i, x, y], s, 0.0)) + constant[b, i, x, y]  # type: ignore[index]
        return s if mask is None else torch.where(mask[b, i, x, y], s, -torch.inf)

    def run(v: Tensor) -> tuple[Tensor, Tensor]:
        # it would compile itself anew for every call, which takes longer than all the rest
        with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
            warnings.simplefilter("ignore")  # it advises to compile
            found: Any = flex_attention(
                q, k, v, score_mod=score_mod, scale=scale, enable_gqa=True, return_aux=AuxRequest(lse=True)
            )
        return found[0], found[1].lse.unsqueeze(-1)

    identity = torch.eye(n_k, dtype=q.dtype).expand(*k.shape[:2], n_k, n_k)  # with these values O is P
    beside_v, lse = run(torch.cat([identity, v], -1))
    P, O = beside_v.split([n_k, v.shape[-1]], -1)
    if "sinks" in o:
        sink = o["sinks"].view(-1, 1, 1)
        P, lse = P * torch.sigmoid(lse - sink), torch.logaddexp(lse, sink)
    if o.get("keep") is not None:
        P = P * full(o["keep"]) / (1 - o["dropout_p"])
    if {"sinks", "keep"} & o.keys():
        O = P @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return beside(O, P, lse, outputs).reshape(*leading, -1)


torch_multihead = layered(core.torch_linear, torch_attend, core.torch_multihead)

TORCH: dict[str, Callable[..., Tensor]] = {
    "rms_norm": torch_rms_norm, "rope": torch_rope, "attend": torch_attend, "multihead": torch_multihead,
    "fused": lambda *args, **options: unfused(torch_multihead, *args, **options),
}  # fmt: skip
