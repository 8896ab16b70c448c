"""Prints PyTorch's own samples of scaled_dot_product_attention into a file. Run by itself: importing PyTorch's tests changes settings of the process."""

from __future__ import annotations

import sys
import types
import unittest


def main(path: str) -> None:
    import torch

    try:
        import expecttest  # noqa: F401
    except ImportError:  # PyTorch derives a class from its TestCase, which nothing here uses
        stand_in = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase
        sys.modules["expecttest"] = stand_in
    from torch.testing._internal.common_methods_invocations import op_db

    op = next(op for op in op_db if op.name == "nn.functional.scaled_dot_product_attention")
    samples = []
    for sample in op.sample_inputs("cpu", torch.float64, requires_grad=True):
        tensors = [t.detach() for t in (sample.input, *sample.args)]
        kwargs = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in sample.kwargs.items()}
        samples.append((tensors, kwargs))
    torch.save(samples, path)


if __name__ == "__main__":
    main(sys.argv[1])
