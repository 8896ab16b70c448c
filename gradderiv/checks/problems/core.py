"""Problems of the layer and of what it is made of: linear maps, softmax, attention, multi-head attention in both forms."""

from __future__ import annotations

from typing import Any

import torch

from gradderiv.checks.problems.problem import Problem, causal, layer, scattered, weights


def problems() -> list[Problem]:
    cross: dict[str, Any] = {
        "n": 5,
        "n_k": 7,
        "d_model": 11,
        "d_kv": 13,
        "h": 3,
        "d_k": 2,
        "d_v": 4,
        "d_out": 9,
    }
    self_: dict[str, Any] = {"n": 5, "d_model": 7, "h": 3, "d_k": 2, "d_v": 4, "d_out": 11}
    tiny: dict[str, Any] = {"n": 2, "d_model": 2, "d_out": 2}
    low = (torch.bfloat16,)
    three = torch.tensor([[True, False, True], [True, True, False]])
    return [
        # ---- linear
        Problem("linear", "linear", {"X": (5, 3), "W": (3, 7), "b": (7,)}, (5, 7), why="sizes pairwise distinct"),
        Problem(
            "linear-batch", "linear", {"X": (2, 3, 5, 7), "W": (7, 11)}, (2, 3, 5, 11),
            why="bias averaged over the batch, not summed",
        ),
        Problem("tiny-linear", "linear", {"X": (2, 3), "W": (3, 2), "b": (2,)}, (2, 2), why="symbols"),
        # ---- softmax
        Problem("softmax", "softmax", {"S": (5, 7)}, (5, 7), why="the wrong axis, one Jacobian over all rows"),
        Problem(
            "softmax-masked", "softmax", {"S": (3, 5, 7)}, (3, 5, 7), {"mask": scattered(5, 7, empty=3)},
            why="a fully masked row becomes uniform (apex #1444)",
        ),
        Problem(
            "softmax-peaked", "softmax", {"S": (5, 7)}, (5, 7), std=12.0, vacuous=low,
            why="Gaussian inputs are too tame (TransformerEngine #3216)",
        ),
        Problem("tiny-softmax", "softmax", {"S": (2, 3)}, (2, 3), {"mask": three}, why="symbols"),
        # ---- attention
        Problem(
            "attention", "attention", {"Q": (5, 3), "K": (7, 3), "V": (7, 2)}, (5, 2), why="sizes pairwise distinct"
        ),
        Problem(
            "attention-options", "attention",
            {"Q": (2, 3, 5, 3), "K": (2, 3, 7, 3), "V": (2, 3, 7, 2), "bias": (3, 1, 7)}, (2, 3, 5, 2),
            {"scale": 0.3, "mask": scattered(5, 7, empty=1)},
            why="the option was pinned to its neutral value (flash-attention #2396)",
        ),
        Problem(
            "attention-one-key", "attention", {"Q": (5, 3), "K": (1, 3), "V": (1, 2)}, (5, 2),
            zeros=frozenset({"Q", "K"}), why="one key: P is 1, and dQ and dK are exactly 0",
        ),
        Problem(
            "tiny-attention", "attention", {"Q": (2, 2), "K": (3, 2), "V": (3, 2)}, (2, 2), {"mask": three},
            why="symbols",
        ),
        # ---- multihead
        layer("self", "heads == seq_len hides a transpose (diffusers #14338); sizes prime and distinct (attorch #18)",
               options={"n_heads": 3}, biases=True, **self_),
        layer("cross-masked", "a fully masked row, the mask asked for in backward (triton #4541)",
               options={"n_heads": 3, "mask": scattered(5, 7, empty=2)}, biases=True, **cross),
        layer("causal-batch", "gradients of weights are summed over the batch",
               options={"n_heads": 3, "mask": causal(5)}, biases=True, batch=(2, 2), **self_),
        layer("scale-bias", "the option was pinned to its neutral value (flash-attention #2396)",
               options={"n_heads": 3, "scale": 0.3, "mask": scattered(5, 7)}, bias=(3, 1, 7), **cross),
        layer("h-equals-n", "heads == seq_len (diffusers #14338)",
               options={"n_heads": 4}, n=4, d_model=7, h=4, d_k=3, d_v=2, d_out=5),
        layer("grouped", "1 < h_kv < h and h/h_kv ≠ h_kv (onnx #7274)",
               options={"n_heads": 6, "n_kv_heads": 2, "mask": causal(5)}, biases=True,
               n=5, d_model=7, h=6, h_kv=2, d_k=3, d_v=2, d_out=11),
        layer("one-token", "size 1 everywhere", options={"n_heads": 1}, vacuous=low, n=1, d_model=2, h=1, d_k=3, d_v=2, d_out=3,
               n_k=2),
        layer("one-row", "one of several outputs got no cotangent (quack #53): here one row alone",
               options={"n_heads": 3, "mask": causal(5)}, cotangent="one row", biases=True, **self_),
        layer("scaled-loss", "a constant cotangent hides a dropped one (apex #1750)",
               options={"n_heads": 3}, cotangent="scaled", biases=True, **self_),
        layer("gpt2-init", "atol hides everything at small weights (gradcheck, fast mode)",
               options={"n_heads": 3, "mask": causal(5)}, biases=True, vacuous=low,
               std=weights(0.02), **self_),
        layer("peaked", "Gaussian inputs are too tame (TransformerEngine #3216)",
               options={"n_heads": 3}, biases=True, vacuous=low, std=weights(1.5), **self_),
        layer("saturated", "at weight scale 30 a softmax saturates: the verdict is vacuous, no alarm",
               options={"n_heads": 3}, biases=True, std=weights(30.0),
               vacuous=(torch.float64, torch.float32, torch.bfloat16), **self_),
        layer("tiny-h1", "symbols, one head", options={"n_heads": 1}, h=1, d_k=2, d_v=2, **tiny),
        layer("tiny-h2-biases", "symbols, two heads and biases", options={"n_heads": 2}, h=2, d_k=1, d_v=1, biases=True,
               **tiny),
        layer("tiny-cross-masked", "symbols, n_q ≠ n_k and a mask", options={"n_heads": 2, "mask": three},
               h=2, d_k=1, d_v=1, n_k=3, **tiny),
        # ---- blockdiag
        layer("block-self", "the object of the derivation", rule="blockdiag", options={"n_heads": 3}, biases=True,
               **self_),
        layer("block-cross", "with a mask, a fully masked row, its own source", rule="blockdiag",
               options={"n_heads": 3, "scale": 0.3, "mask": scattered(5, 7, empty=2)}, biases=True, **cross),
        layer("tiny-block", "symbols, the row shift included", rule="blockdiag",
               options={"n_heads": 2, "mask": three}, h=2, d_k=1, d_v=1, n_k=3, **tiny),
    ]  # fmt: skip
