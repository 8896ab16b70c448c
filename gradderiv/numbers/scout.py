"""What a run over the field will need, without its products.

A :class:`Scout` is a field of one lane in which a product of matrices is a tensor of arbitrary residues with the record that the product would have. Shapes, records,
roots asked for and values given to opaque functions come out as in the real run, so that this one starts with the roots and the lanes it needs.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from gradderiv.numbers.field import Field
from gradderiv.numbers.number import Number
from gradderiv.numbers.residues import nonzero


class Scout(Field):
    """A field whose residues mean nothing and whose ledger is right."""

    def __init__(self, seed: int = 0, **options: Any) -> None:
        super().__init__(seed, 1, **{**options, "target": math.inf})

    def product(self, x: Number, y: Number) -> list[torch.Tensor]:
        self.plain(x), self.plain(y)  # refuses what the real product would
        shape = (*x.shape[:-1], y.shape[-1])
        bits = torch.arange(
            x.numel() % 1009 + 1, 1 + x.numel() % 1009 + torch.Size(shape).numel(), device=x.main.device
        )
        return [nonzero(bits.mul_(0x9E3779B9), self.primes[0]).reshape(shape)]
