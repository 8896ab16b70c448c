"""Real difficulties from public threads, reproduced with numbers and explained: ``gradderiv casebook``.

A case is one file with a function that returns its text, every number in it computed, and a row in :data:`CASES`.
"""

from __future__ import annotations

import importlib

CASES = {
    "fused-layout": "a fused QKV matrix read in two layouts (Stack Overflow, «PyTorch Linear operations vary widely after reshaping»)",
    "llama-attention": "the way back through LlamaAttention, line by line (a Chinese article on modeling_llama.py)",
    "onnxruntime-14363": "masks of −10000 that add up, and what onnxruntime does now (microsoft/onnxruntime #14363)",
    "published-derivation": "the closed forms of Say-Hello2y/Transformer-attention (2022), and a check that prints 0 for wrong ones",
    "pyraformer-15": "attention on neighbour lists: whom a key gets its gradient from (ant-research/Pyraformer #15, in Chinese)",
}


def tell(name: str) -> str:
    """The text of a case.

    Raises:
        InputError: there is no such case.
    """
    from gradderiv.errors import InputError, message

    if name not in CASES:
        raise InputError(
            message("the casebook has a case of that name", repr(name), "a slip of the pen", ", ".join(CASES))
        )
    return str(importlib.import_module(f"gradderiv.casebook.{name.replace('-', '_')}").tell())
