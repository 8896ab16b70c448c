"""The laws of matrix calculus that the book uses, each stated once; each is checked, exactly, before it is first used.

line(inner(dY @ W.mT, X_dot), laws.RIGHT)        ⟨A, B C⟩ = ⟨A Cᵀ, B⟩
"""

from __future__ import annotations

import torch

from gradderiv.book.named import inner
from gradderiv.book.reasoning.reasons import Law, Linearity

# ---- moving a factor to the other side of an inner product; names say which factor goes over
RIGHT = Law(
    "the right factor goes over", "n e, n d, d e", lambda A, B, C: (inner(A, B @ C), inner(A @ C.mT, B))
)
LEFT = Law(
    "the left factor goes over", "n e, n d, d e", lambda A, B, C: (inner(A, B @ C), inner(B.mT @ A, C))
)
ENTRYWISE = Law(
    "an entrywise factor goes over", "n d, n d, n d", lambda A, B, C: (inner(A, B * C), inner(A * B, C))
)
TRANSPOSE = Law("both sides transposed", "n d, n d", lambda A, B: (inner(A, B), inner(A.mT, B.mT)))
SYMMETRY = Law("the inner product is symmetric", "n d, n d", lambda A, B: (inner(A, B), inner(B, A)))
SUM = Law("an inner product is a sum", "n d, n d", lambda A, B: (inner(A, B), (A * B).sum()))
NUMBER = Law("a number goes over", "n d, n d, ", lambda A, B, c: (inner(A, c * B), inner(inner(A, B), c)))

# ---- traces
TRACE = Law("an inner product is a trace", "n d, n d", lambda A, B: (inner(A, B), _tr(A.mT @ B)))
CYCLIC = Law("the trace is cyclic", "n d, d n", lambda A, B: (_tr(A @ B), _tr(B @ A)))
TRACE_TRANSPOSE = Law("the trace of the transpose", "n n", lambda A: (_tr(A), _tr(A.mT)))
HADAMARD_TRACE = Law(
    "Hadamard and trace", "n d, n d, n d", lambda A, B, C: (_tr(A.mT @ (B * C)), _tr((A * B).mT @ C))
)

# ---- rows
ROW_SUM = Law(
    "a column goes over as a row sum",
    "n d, n d, n 1",
    lambda A, B, c: (inner(A, B * c), inner((A * B).sum(-1, keepdim=True), c)),
)
ROW_FACTOR = Law(
    "a column factors out of a row sum",
    "n d, n 1",
    lambda A, c: ((A * c).sum(-1, keepdim=True), A.sum(-1, keepdim=True) * c),
)
ROW_EXCHANGE = Law(
    "two sums exchanged",
    "n d, n e, d e",
    lambda A, B, C: ((A * (B @ C.mT)).sum(-1, keepdim=True), ((A @ C) * B).sum(-1, keepdim=True)),
)
ROW_SCALE = Law("a column scales rows", "n 1, n d, d e", lambda c, A, B: ((c * A) @ B, c * (A @ B)))
BIAS = Law(
    "a row repeated collects column sums",
    "n d, d",
    lambda A, b: (inner(A, torch.ones(A.shape[0], 1, dtype=A.dtype) @ b.unsqueeze(0)), inner(A.sum(0), b)),
)
HEAD_SUM = Law(
    "a number for each head goes over as a sum over the head's matrix",
    "k n d, k n d, k",
    lambda A, B, c: (inner(A, c[:, None, None] * B), inner((A * B).sum((-1, -2)), c)),
)
JACOBIAN = Law(
    "the Jacobian of softmax is symmetric",
    "n d, n d, n d",
    lambda U, P, X: (
        inner(U, P * (X - (P * X).sum(-1, keepdim=True))),
        inner(P * (U - (P * U).sum(-1, keepdim=True)), X),
    ),
)

# ---- quotients
CANCEL = Law("a common factor cancels", "n 1, n d, n 1", lambda c, A, b: ((c * A) / (c * b), A / b))
LOG_QUOTIENT = Law(
    "exp of a difference of logarithms",
    "n d, n d",
    lambda A, B: (torch.exp(torch.log(A) - torch.log(B)), A / B),
)

LINEARITY = Linearity()


def _tr(A: torch.Tensor) -> torch.Tensor:
    return A.diagonal().sum()


#: Every law by its name in the code.
LAWS = {name: value for name, value in list(globals().items()) if isinstance(value, (Law, Linearity))}
