"""What surrounds and fills LlamaAttention, backwards: heads, rotation, the type of the softmax, masks, products, embeddings.

Every function returns numbers, of random tensors of a stated seed; :mod:`gradderiv.casebook.llama_attention` has the words.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradderiv.checks.exact import Pairs, exactly
from gradderiv.numbers.field import Field
from gradderiv.rules.attend import attend, attend_vjp
from gradderiv.rules.embedding import embedding, embedding_vjp
from gradderiv.rules.fills import SEMANTICS
from gradderiv.rules.masks import causal, padding, resolve
from gradderiv.rules.matmul import matmul, matmul_vjp
from gradderiv.rules.rope import rope, rope_vjp, rotary_tables

B, N, H, H_KV, D = 2, 5, 4, 2, 6
PAST = 3  # of the N tokens: in the cache, or not padding


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def relative(value: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the largest entry."""
    return float((value - expected).abs().max() / expected.abs().max())


def all_equal(run: Callable[[Field], Pairs]) -> bool:
    """Whether all pairs are equal in exact arithmetic."""
    return all(outcome.equal for outcome in exactly(run).values())


# ---------------------------------------------------------------- heads and lengths


class Shapes(NamedTuple):
    """Of queries, of keys as projected, of all keys, and of the scores."""

    Q: tuple[int, ...]
    K: tuple[int, ...]
    every: tuple[int, ...]
    S: tuple[int, ...]


def shapes(h_kv: int, past: int) -> Shapes:
    """Of a layer whose first ``past`` tokens are in the cache; h query heads, h_kv of K and V."""
    Q, K, cache = draw((B, H, N - past, D), (B, h_kv, N - past, D), (B, h_kv, max(past, 1), D))
    options: dict[str, Any] = {"K_cache": cache, "V_cache": cache} if past else {}
    values = attend(Q, K, K, mask=causal("lower-right"), **options)[1].values
    return Shapes(tuple(Q.shape), tuple(K.shape), tuple(values["K"].shape), tuple(values["S"].shape))


def group_sum() -> tuple[bool, float]:
    """Is dK of shared heads, exactly, the sum over the group of what autograd gives for repeated ones; how far off is the sum over every second head?"""

    def both(Q: Tensor, K: Tensor, V: Tensor, dO: Tensor) -> tuple[Tensor, Tensor]:
        repeated = [x.repeat_interleave(H // H_KV, 1) for x in (K, V)]
        grouped, copied = (attend(Q, *kv, mask=causal())[1] for kv in ((K, V), repeated))
        return attend_vjp(dO, grouped).K, attend_vjp(dO, copied).K

    sizes = ((B, H, N, D), (B, H_KV, N, D), (B, H_KV, N, D), (B, H, N, D))

    def run(numbers: Field) -> Pairs:
        shared, each = both(*(numbers.random(*s) for s in sizes))
        return {"K": (shared, each[:, 0::2] + each[:, 1::2])}

    shared, each = both(*draw(*sizes))
    return all_equal(run), relative(each[:, :2] + each[:, 2:], shared)


# ---------------------------------------------------------------- rotation


class Rotation(NamedTuple):
    """How far dX is from the rotation of dY by −θ, with one angle for each pair and with any tables; how far ‖dX‖ is from ‖dY‖; whether columns that do not turn pass;
    how far dX is off with neighbours paired; and with the columns permuted as well."""

    one_angle: float
    any_tables: float
    norm: float
    passes: bool
    neighbours: float
    permuted: float


def rotation() -> Rotation:
    X, dY, any_cos, any_sin = draw((B, H, N, D), (B, H, N, D), (N, D), (N, D))
    positions = torch.arange(N, dtype=torch.float64)
    cos, sin = rotary_tables(positions, D)
    back = rope_vjp(dY, rope(X, cos, sin)[1]).X
    any_back = rope_vjp(dY, rope(X, any_cos, any_sin)[1]).X
    part = rope_vjp(dY, rope(X, *rotary_tables(positions, 2))[1]).X
    beside = rotary_tables(positions, D, pairing="interleaved")
    order = torch.cat([torch.arange(0, D, 2), torch.arange(1, D, 2)])  # 0 2 4 1 3 5
    there = rope_vjp(dY, rope(X, *beside, pairing="interleaved")[1]).X
    permuted = rope_vjp(dY[..., order], rope(X[..., order], cos, sin)[1]).X
    return Rotation(
        relative(back, rope(dY, cos, -sin)[0]),
        relative(any_back, rope(dY, any_cos, -any_sin)[0]),
        abs(float(back.norm() / dY.norm()) - 1),
        torch.equal(part[..., 2:], dY[..., 2:]),
        relative(there, back),
        relative(permuted, there[..., order]),
    )


# ---------------------------------------------------------------- the type of the softmax


def in_float32(S: Tensor) -> Tensor:
    """As Llama has it."""
    return torch.softmax(S, -1, dtype=torch.float32).to(S.dtype)


def by_torch(S: Tensor) -> Tensor:
    return torch.softmax(S, -1)


def written_out(S: Tensor) -> Tensor:
    E = (S - S.amax(-1, keepdim=True)).exp()
    return E / E.sum(-1, keepdim=True)


def eager(softmax: Callable[[Tensor], Tensor], *given: Tensor) -> list[Tensor]:
    """O, dQ, dK, dV of transformers' eager attention, causal, with this softmax."""
    Q, K, V = (x.detach().clone().requires_grad_() for x in given[:3])
    S = torch.matmul(Q, K.mT) * Q.shape[-1] ** -0.5
    later = torch.ones(S.shape[-2:], dtype=torch.bool).triu(1)
    O = torch.matmul(softmax(S.masked_fill(later, -torch.inf)), V)
    return [O.detach(), *torch.autograd.grad(O, (Q, K, V), given[3])]


def in_bfloat16(n: int = 128, seeds: int = 5) -> tuple[dict[str, list[float]], bool]:
    """Errors of O, dQ, dK, dV against float64 for each softmax, relative in norm, median of the seeds; is the value of the first two bit for bit the same?"""
    kinds = {"float32": in_float32, "torch": by_torch, "written": written_out}
    found: dict[str, list[list[float]]] = {name: [] for name in kinds}
    same = True
    for seed in range(seeds):
        given = [x.bfloat16() for x in draw(*[(H, n, 32)] * 4, seed=seed)]
        exact = eager(by_torch, *(x.double() for x in given))
        values = {name: eager(softmax, *given) for name, softmax in kinds.items()}
        same &= torch.equal(values["float32"][0], values["torch"][0])
        for name, value in values.items():
            found[name].append(
                [float((x.double() - y).norm() / y.norm()) for x, y in zip(value, exact, strict=True)]
            )
    return {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in found.items()
    }, same


# ---------------------------------------------------------------- rows that may attend to nothing


class Leak(NamedTuple):
    """What the lowest float does beside −∞ where a text of 3 tokens is padded on the left, causal: the weights of an empty row; by how much dV of the padded text is
    off, and dV of the three tokens; dQ of an empty row, where no change of Q changes the value; how much of this is left where nothing is asked of the padding."""

    weights: tuple[float, float]
    dV: float
    dV_tokens: float
    dQ: float
    moved: float
    asked_nothing: float


def leak() -> Leak:
    size = (B, H, N, D)
    Q, K, V, dO = draw(*[size] * 4)
    M = resolve(causal() & padding([PAST, N], side="left"), (B, H, N, N), Q.device)
    assert M is not None
    lowest = SEMANTICS["lowest"].options([M], torch.float64)
    (out, low), (_, zero) = attend(Q, K, V, **lowest), attend(Q, K, V, mask=M)
    found, right = attend_vjp(dO, low), attend_vjp(dO, zero)
    elsewhere = Q.clone()
    elsewhere[0, :, : N - PAST] += 1
    moved = attend(elsewhere, K, V, **lowest)[0].O - out.O
    heard = dO * M.any(-1, keepdim=True)
    quiet = [a - b for a, b in zip(attend_vjp(heard, low)[:3], attend_vjp(heard, zero)[:3], strict=True)]
    row = out.weights[0, 0, 0]
    tokens = slice(N - PAST, None)
    return Leak(
        (float(row.min()), float(row.max())),
        float((found.V - right.V)[0].norm() / right.V[0].norm()),
        float((found.V - right.V)[0, :, tokens].norm() / right.V[0, :, tokens].norm()),
        float(found.Q[0, :, 0].norm() / right.Q[0, :, -1].norm()),
        float(moved.abs().max()),
        max(float(x.abs().max()) for x in quiet),
    )


# ---------------------------------------------------------------- products that broadcast, tables of embeddings

ARTICLE = (1000, 500, 99, 11), (500, 11, 99)
SMALL = (10, 5, 9, 4), (5, 4, 9)


def article_shape() -> tuple[int, ...]:
    """Of the article's product, without computing it."""
    A, B_ = (torch.empty(size, device="meta") for size in ARTICLE)
    return tuple(torch.matmul(A, B_).shape)


def product() -> tuple[tuple[int, ...], tuple[int, ...], bool, float]:
    """The shapes of C and of dB; is dB, exactly, the sum over the broadcast axis of Aᵀ dC; and its error against autograd."""
    C_size = (*SMALL[0][:-1], SMALL[1][-1])

    def run(numbers: Field) -> Pairs:
        A, B_, dC = (numbers.random(*s) for s in (*SMALL, C_size))
        g = matmul_vjp(dC, matmul(A, B_)[1])
        return {"A": (g.A, dC @ B_.mT), "B": (g.B, (A.mT @ dC).sum(0))}

    A, B_, dC = draw(*SMALL, C_size)
    C, saved = matmul(A, B_)
    found = matmul_vjp(dC, saved).B
    leaf = B_.clone().requires_grad_()
    expected = torch.autograd.grad(torch.matmul(A, leaf), leaf, dC)[0]
    return tuple(C.shape), tuple(found.shape), all_equal(run), relative(found, expected)


def both_repeated(j: int = 3, k: int = 4, n: int = 5) -> bool:
    """Of (j, 1, n, n) by (k, n, n): is dA, exactly, the sum over k, and dB that over j?"""

    def run(numbers: Field) -> Pairs:
        A, B_, dC = (numbers.random(*s) for s in ((j, 1, n, n), (k, n, n), (j, k, n, n)))
        g = matmul_vjp(dC, matmul(A, B_)[1])
        return {"A": (g.A, (dC @ B_.mT).sum(1, keepdim=True)), "B": (g.B, (A.mT @ dC).sum(0))}

    return all_equal(run)


TOKENS = torch.tensor([[3, 1, 4, 1, 5], [1, 2, 1, 1, 3]])
N_VOCAB = 7


def embedded() -> tuple[list[int], bool, float]:
    """How often each token stands there; is its row of dE, and each row of dR, the sum over its places, exactly; and the error of dE against nn.Embedding."""
    sizes = (N_VOCAB, D), (N, D), (*TOKENS.shape, D)

    def run(numbers: Field) -> Pairs:
        E, R, dX = (numbers.random(*s) for s in sizes)
        g = embedding_vjp(dX, embedding(E, R, tokens=TOKENS)[1])
        assert g.positions is not None
        places = [dX[t == TOKENS].sum(0) for t in range(N_VOCAB)]
        return {"E": (g.table, torch.stack(places)), "R": (g.positions, dX.sum(0))}

    E, R, dX = draw(*sizes)
    layer = nn.Embedding(N_VOCAB, D, _weight=E.clone())
    expected = torch.autograd.grad(layer(TOKENS), layer.weight, dX)[0]
    found = embedding_vjp(dX, embedding(E, R, tokens=TOKENS)[1]).table
    return (
        torch.bincount(TOKENS.flatten(), minlength=N_VOCAB).tolist(),
        all_equal(run),
        relative(found, expected),
    )
