"""Drop-in modules: attention that can be differentiated again, where a model has its own.

MultiheadAttention       in the place of ``torch.nn.MultiheadAttention``: same constructor, state dict and call
transformers.register    in the models of ``transformers``: ``attn_implementation="gradderiv"``
"""

from gradderiv.nn._multihead import MultiheadAttention

__all__ = ["MultiheadAttention"]
