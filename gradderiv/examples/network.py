"""A small transformer on sequences of vectors: the blocks of the GPT between two linear maps.

Y = leave(norm(blocks(enter(X))))        X (batch, n, inputs)   Y (batch, n, outputs)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from gradderiv.examples.gpt import WIDTH, Attend, Block


class Network(nn.Module):
    """(batch, n, inputs) → (batch, n, outputs), with any attention and any norm.

    It knows places by the causal mask only.
    """

    def __init__(
        self, attend: Attend, inputs: int, outputs: int, norm: Callable[[int], nn.Module] = nn.LayerNorm
    ) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, outputs)
        self.block, self.norm = Block(attend), norm(WIDTH)
        self.block.before_attention, self.block.before_perceptron = norm(WIDTH), norm(WIDTH)  # type: ignore[assignment]

    def forward(self, X: Tensor) -> Tensor:
        Y: Tensor = self.leave(self.norm(self.block(self.enter(X))))
        return Y
