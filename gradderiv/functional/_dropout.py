"""Which weights dropout keeps: a function of a seed for each head, the query and the key, so that any tile of it can be made again, and made alone.

keep_ij = mix(mix(seed + i) + mix(j)) ≥ p · 2⁶⁴ − 2⁶³             mix: Steele, Lea and Flood 2014, the finalizer of SplitMix
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN, FIRST, SECOND = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def kept(seeds: Tensor, rows: slice, cols: slice, p: float) -> Tensor:
    """keep (..., m, e), True with probability 1 − p, for the queries and keys of a tile.

    Args:
        seeds: int64 (..., 1, 1).
        rows, cols: the queries, the keys.
        p: the probability of False, from 0 to 1.
    """
    i = torch.arange(rows.start, rows.stop, device=seeds.device).unsqueeze(-1)
    j = torch.arange(cols.start, cols.stop, device=seeds.device)
    z = _mixed(seeds + i * GOLDEN) + _mixed(j * GOLDEN)
    # one round more, on its own memory
    z ^= z >> 32
    z *= FIRST
    z ^= z >> 29
    z *= SECOND
    return z >= max(min(round(p * 2**64) - 2**63, 2**63 - 1), -(2**63))


def seeds_like(Q: Tensor) -> Tensor:
    """A seed for each head of Q (..., n, d), (..., 1, 1), from PyTorch's generator."""
    return torch.randint(-(2**62), 2**62, (*Q.shape[:-2], 1, 1), dtype=torch.int64, device=Q.device)


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * FIRST
    z = (z ^ _shifted(z, 27)) * SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Unsigned: ``>>`` carries the sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
