"""A small GPT: bytes in, bytes out, two blocks of causal attention and a perceptron, normalised before each.

x ← x + W_O attend(Q, K, V),   x ← x + perceptron(x)             Radford et al. 2019, §2.3
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

VOCABULARY, CONTEXT, WIDTH, HEADS, BLOCKS = 256, 64, 64, 4, 2

Attend = Callable[..., Tensor]
"""``attend(Q, K, V, is_causal=True)`` → O, all of them (batch, heads, context, width of a head)."""


class Block(nn.Module):
    """One layer of the residual stream, (batch, context, width) → the same."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.before_attention, self.before_perceptron = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.W_QKV, self.W_O = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.perceptron = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        QKV = self.W_QKV(self.before_attention(x)).chunk(3, dim=-1)
        Q, K, V = (a.unflatten(-1, (HEADS, -1)).transpose(1, 2) for a in QKV)
        O = self.attend(Q, K, V, is_causal=True)
        x = x + self.W_O(O.transpose(1, 2).flatten(2))
        x = x + self.perceptron(self.before_perceptron(x))
        return x


class GPT(nn.Module):
    """Token numbers (batch, context) → the scores of the next byte (batch, context, vocabulary)."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block(attend) for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        scores: Tensor = self.head(self.norm(self.blocks(x)))
        return scores
