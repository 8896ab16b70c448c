"""Attention to train with: PyTorch functions whose derivatives are the closed forms.

    attention                    the arguments of ``torch.nn.functional.scaled_dot_product_attention``, and more
    multi_head_attention         the whole layer, weights and biases included
    fused_multi_head_attention   the same with one matrix for Q, K and V, in the layout of its model
    graph_attention              on neighbour lists: n·m numbers
    as_function                  an operator of the rules by itself

They can be differentiated in reverse and in forward mode, twice and more often, under ``torch.func`` and ``vmap``; compiled, once and backwards. No score matrix is held in first or second
order. The data goes from ``_attention`` (arguments) to ``_differentiable`` (what PyTorch asks for), from there to ``_fused`` (PyTorch's kernels) or ``_tiles`` (the loops around
:mod:`gradderiv.rules.tile`), and to ``_whole`` for what is of third order; ``_op`` is what PyTorch's compiler sees.
"""

from gradderiv.functional._attention import attention
from gradderiv.functional._graph import graph_attention
from gradderiv.functional._multihead import fused_multi_head_attention, multi_head_attention
from gradderiv.functional._operator import as_function

__all__ = [
    "as_function",
    "attention",
    "fused_multi_head_attention",
    "graph_attention",
    "multi_head_attention",
]
