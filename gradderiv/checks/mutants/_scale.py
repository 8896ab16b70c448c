"""Mistakes in τ, and in the two products that follow dS."""

from __future__ import annotations

from gradderiv.checks.mutants.mutant import BACKWARD, FORWARD, UNLIKE, Mutant

MODEL = "ViT-CIFAR #9, dfdx #171, set_transformer #18, train-llm-from-scratch #3"
SAME_FACTOR = {"identities": "dQ and dK are off by one and the same factor, and no identity knows τ"}

MUTANTS = (
    Mutant(
        "scale-missing", "dQ = dS K, dK = dSᵀ Q: no τ", "mlc-llm #3426; a vendor page prints dQ = dS K",
        {"dQ": lambda c: c.dS @ c.K, "dK": lambda c: c.dS.mT @ c.Q},
        kills=BACKWARD - {"identities"}, reasons=SAME_FACTOR,
    ),
    Mutant(
        "scale-missing-forward", "S = Q Kᵀ: no τ", "mlc-llm #3426", {"scale": lambda c: 1.0},
        kind="forward", kills=FORWARD, skips=UNLIKE,
    ),
    Mutant(
        "scale-model", "τ = 1/√d_model", MODEL, {"scale": lambda c: c.X.shape[-1] ** -0.5},
        kind="forward", problems=("tiny-cross-masked",), kills=FORWARD, skips=UNLIKE,
    ),
    Mutant(
        "scale-model-backward", "dQ, dK with 1/√d_model where S has 1/√d_k", MODEL,
        {
            "dQ": lambda c: c.X.shape[-1] ** -0.5 * (c.dS @ c.K),
            "dK": lambda c: c.X.shape[-1] ** -0.5 * (c.dS.mT @ c.Q),
        },
        problems=("tiny-cross-masked",), kills=BACKWARD - {"identities"}, reasons=SAME_FACTOR,
    ),
    Mutant(
        "scale-inverted", "S divided by 1/√d_k", "perceiver-io #9",
        {"scale": lambda c: (c.W_Q.shape[1] // c.h) ** 0.5}, kind="forward", kills=FORWARD, skips=UNLIKE,
    ),
    Mutant(
        "scale-heads", "τ = 1/√h", "tt-metal #56789", {"scale": lambda c: c.h**-0.5},
        kind="forward", problems=("tiny-cross-masked",), kills=FORWARD, skips=UNLIKE,
    ),
    Mutant(
        "scale-twice", "dK = τ² dSᵀ Q: Q was scaled before it was saved", "flash-attention #2657",
        {"dK": lambda c: c.scale * c.scale * (c.dS.mT @ c.Q)},
    ),
    Mutant("transpose-dK", "dK = τ dS Q", "classroom", {"dK": lambda c: c.scale * (c.dS @ c.Q)}),
    Mutant("transpose-dV", "dV = P dO", "classroom", {"dV": lambda c: c.P @ c.dO}),
    Mutant(
        "swap-dQ-dK", "dQ and dK exchanged", "classroom",
        {"dQ": lambda c: c.scale * (c.dS.mT @ c.Q), "dK": lambda c: c.scale * (c.dS @ c.K)},
    ),
)  # fmt: skip
