"""Attention to train with: PyTorch functions whose derivatives are the closed forms.

    attention              the arguments of ``torch.nn.functional.scaled_dot_product_attention``
    multi_head_attention   the whole layer, weights and biases included
    graph_attention        on neighbour lists: n·m numbers, no score matrix
    as_function            an operator of the rules by itself

They can be differentiated in reverse and in forward mode, twice and more often, under ``torch.func`` and
``vmap``; all but ``graph_attention`` can be compiled. They are plain: the score matrix, where there is one, is formed, and formed again in the backward pass.
"""

from gradderiv.functional._attention import attention
from gradderiv.functional._graph import graph_attention
from gradderiv.functional._multihead import multi_head_attention
from gradderiv.functional._operator import as_function

__all__ = ["as_function", "attention", "graph_attention", "multi_head_attention"]
