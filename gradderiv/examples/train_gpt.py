"""Train a small GPT three times from the same weights on the same batches, with three attentions.

    ours      gradderiv.functional.attention where no kernel is allowed: the closed forms, tile after tile
    default   torch.nn.functional.scaled_dot_product_attention, a fused kernel
    MATH      the same under ``sdpa_kernel(SDPBackend.MATH)``: plain operations and their autograd

Three ways to round the same function. Does ours differ from the default more than PyTorch's two kernels differ
from each other? Both distances are rounding, as good as random, and a single run has either one ahead; so the
question is put to a sign test. Over the sampled steps of three initialisations, count how often ours is the
further one. If it is no further, that is half of the time or less, and a count so high that it has a chance of
one in 10,000 says that it is further: the exit status is then 1.

The test presumes samples that are independent; 16 initialisations gave shares of 0.50 ± 0.07, where coins give
0.50 ± 0.08. It can tell a difference: with every entry of O wrong by up to 1e-5 of itself, at random, ours is the
further one at 106 of 120; with 3e-6, which these losses do not show, at 70.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from gradderiv.examples.gpt import CONTEXT, GPT, Attend
from gradderiv.functional import attention
from gradderiv.text import prose
from gradderiv.threads import one_thread

BATCH, RUNS, EVERY = 4, 3, 5
"""Sequences in a batch, initialisations, and the steps from one sample to the next."""
CHANCE = 1e-4
"""How rarely the test may say "further" when it is not."""


def closed_forms(Q: Tensor, K: Tensor, V: Tensor, *, is_causal: bool) -> Tensor:
    """The same by the rules' formulas, which call no kernel."""
    with sdpa_kernel(SDPBackend.MATH):
        O: Tensor = attention(Q, K, V, is_causal=is_causal)
        return O


def math_kernel(Q: Tensor, K: Tensor, V: Tensor, *, is_causal: bool) -> Tensor:
    """softmax(Q Kᵀ/√d_k) V by PyTorch's plain operations."""
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(Q, K, V, is_causal=is_causal)


def train(attend: Attend, seed: int, steps: int) -> list[float]:
    """The loss at every step, from weights and batches that depend on the seed alone.

    The model is float32. Its scores are turned into a loss in float64: one step of float32 at a loss of 5 is
    5e-7, more than the attentions differ by.
    """
    torch.manual_seed(seed)
    model = GPT(attend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    text = torch.tensor(list(prose().encode("ascii")))
    batches, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        starts = torch.randint(len(text) - CONTEXT, (BATCH,), generator=batches)
        batch = torch.stack([text[start : start + CONTEXT + 1] for start in starts])
        scores = model(batch[:, :-1]).double()
        loss = cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class Run(NamedTuple):
    """The losses of one initialisation under the three attentions."""

    ours: list[float]
    default: list[float]
    math: list[float]

    def distances(self, step: int) -> tuple[float, float]:
        """|ours − default|, |default − MATH| at a step."""
        return abs(self.ours[step] - self.default[step]), abs(self.default[step] - self.math[step])


class Comparison(NamedTuple):
    """The two distances at every sampled step, and how often ours was the larger one."""

    ours: list[float]
    kernels: list[float]
    further: int
    unequal: int

    @property
    def limit(self) -> int:
        """The smallest count that has a chance below ``CHANCE`` among ``unequal`` fair coins."""
        ways = [math.comb(self.unequal, heads) for heads in range(self.unequal + 1)]
        return next(
            (k for k in range(self.unequal + 1) if sum(ways[k:]) < CHANCE * sum(ways)), self.unequal + 1
        )

    @property
    def holds(self) -> bool:
        """Ours differs from the default no more than the two kernels differ from each other."""
        return self.further < self.limit


def compare(runs: Sequence[Run]) -> Comparison:
    """The sampled steps of all runs together: every ``EVERY``-th, from the first that has seen a gradient."""
    pairs = [run.distances(step) for run in runs for step in range(EVERY - 1, len(run.ours), EVERY)]
    ours, kernels = ([pair[i] for pair in pairs] for i in (0, 1))
    further = sum(a > b for a, b in pairs)
    return Comparison(ours, kernels, further, sum(a != b for a, b in pairs))


def show(run: Run, rows: int = 10) -> None:
    """The losses of one run and their distances, at ``rows`` sampled steps."""
    print("  step      ours   default      MATH   |ours - default|  |default - MATH|")
    samples = range(EVERY - 1, len(run.ours), EVERY)
    stride = -(-len(samples) // rows)
    for step in samples[stride - 1 :: stride]:
        near, far = run.distances(step)
        print(
            f"  {step + 1:4}  {run.ours[step]:8.5f}  {run.default[step]:8.5f}  {run.math[step]:8.5f}"
            f"   {near:16.1e}  {far:16.1e}"
        )
    print()


def report(result: Comparison) -> None:
    """The verdict, and the figures it rests on."""
    print(f"All {len(result.ours)} sampled steps of {RUNS} initialisations:    median   largest")
    for name, distances in (
        ("|ours - default|", result.ours),
        ("|default - MATH|", result.kernels),
    ):
        print(f"  {name:40}  {median(distances):10.1e}  {max(distances):8.1e}")
    print(
        f"Ours is the further one at {result.further} of {result.unequal}; "
        f"{result.limit} or more would not be chance."
    )
    verdict = "no more than" if result.holds else "MORE THAN"
    print(f"Ours differs from PyTorch's default {verdict} its two kernels differ.")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gradderiv.examples.train_gpt",
        description="Train a small GPT with three attentions, and compare.",
    )
    parser.add_argument("--steps", type=int, default=200, help="steps of training, 25 at least")
    parser.add_argument("--seed", type=int, default=0, help="of the first initialisation")
    options = parser.parse_args(argv)
    if options.steps < 25:
        parser.error(f"--steps {options.steps}: fewer than 25 are too few to tell chance from a difference")
    runs = []
    with one_thread():
        for seed in range(options.seed, options.seed + RUNS):
            attends = (closed_forms, scaled_dot_product_attention, math_kernel)
            runs.append(Run(*(train(attend, seed, options.steps) for attend in attends)))
    show(runs[0])
    result = compare(runs)
    report(result)
    return 0 if result.holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
