"""Stack Overflow, "PyTorch Linear operations vary widely after reshaping": two readings of one fused projection.

The question takes q out of a fused projection by ``view(…, h, 3·d)`` and by ``chunk(3)``, finds them 35.6218 apart, and suspects the arithmetic. Its weights are not given, so the number
cannot be reproduced; the mechanism can, on a stated seed.
"""

from __future__ import annotations

import textwrap

import torch
from torch import Tensor, nn

from gradderiv.checks.identify import identify_layout
from gradderiv.rules.layouts import split

SEED, BATCH, N, H, D = 0, 2, 5, 4, 32  # the question's 4 heads of 32; (…, 4, 96) after its view


def question(seed: int = SEED) -> tuple[nn.Linear, Tensor]:
    """The fused layer of the question and an input."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Linear(H * D, 3 * H * D), 10 * torch.randn(BATCH, N, H * D)


def by_view(fused: Tensor) -> tuple[Tensor, ...]:
    """As the question's model reads it."""
    parts = fused.view(*fused.shape[:-1], H, 3 * D).split(D, -1)
    return tuple(t.flatten(-2) for t in parts)


def by_answer(fused: Tensor) -> tuple[Tensor, ...]:
    """As the answer proposes to read it: heads last."""
    parts = fused.view(*fused.shape[:-1], 3 * D, H).split(D, -2)
    return tuple(t.flatten(-2) for t in parts)


@torch.no_grad()
def tell() -> str:
    layer, X = question()
    fused = layer(X)
    q = by_view(fused)[0]
    manual = nn.functional.linear(X, *(t.chunk(3)[0] for t in (layer.weight, layer.bias)))
    unsplit = fused.split(H * D, -1)[0]
    answer = by_answer(fused)[0]
    heads = answer.unflatten(-1, (D, H)).mT.flatten(-2)  # the answer's heads, side by side
    strided = split(fused, layout="head-last", n_heads=H).Q
    return "\n\n".join(
        textwrap.fill(paragraph, 79)
        for paragraph in (
            f"Stack Overflow, «PyTorch Linear operations vary widely after reshaping». A fused layer of {H} heads of {D}, {BATCH} × {N} tokens, seed {SEED}.",
            f"chunk(3) of the weight and split of the output are {float((unsplit - manual).abs().max()):.2g} apart; view(…, h, 3·d) and chunk(3) "
            f"are {float((q - manual).abs().max()):.4g} apart, of entries up to {float(manual.abs().max()):.4g} (the question found 35.62, with weights that it does not give). "
            "Nothing is wrong with the arithmetic: the one reads the columns as "
            "interleaved, the other as contiguous.",
            f"What the model computes is right for weights that are {identify_layout(layer, lambda x: by_view(layer(x)), n_heads=H)}.",
            f"chunk(3) is right for weights that are {identify_layout(layer, lambda x: layer(x).split(H * D, -1), n_heads=H)}.",
            f"The answer's view(…, 3·d, h) takes the same columns for Q as chunk(3) {'does' if torch.equal(answer, unsplit) else 'does not'}, but with heads last: its head i is every {H}th of "
            f"them. Cut into heads, that is {'the head-last layout' if torch.equal(heads, strided) else 'no layout'}, {float((heads - unsplit).abs().max()):.4g} apart from contiguous heads. For a model "
            "trained otherwise it mixes the heads, without an error.",
        )
    )
