"""Attention to train with: PyTorch functions whose derivatives are the closed forms.

    attention              the arguments of ``torch.nn.functional.scaled_dot_product_attention``
    multi_head_attention   the whole layer, weights and biases included

Both can be differentiated in reverse and in forward mode, twice and more often, under ``torch.func`` and
``vmap``, and compiled. They are plain: the score matrix is formed, and formed again in the backward pass.
"""

from gradderiv.functional._attention import attention
from gradderiv.functional._multihead import multi_head_attention

__all__ = ["attention", "multi_head_attention"]
