"""An attention that shares no line with the rules: exponentials and sums, differentiated by autograd."""

from __future__ import annotations

import pytest
import torch


def naive(Q, K, V, *, mask=None, bias=None, scale=None):
    """O_i = Σ_j M_ij exp(τ q_i·k_j + bias_ij) v_j / Σ_j …, and 0 where no M_ij is True."""
    scale = Q.shape[-1] ** -0.5 if scale is None else scale
    S = scale * torch.einsum("...ia,...ja->...ij", Q, K)
    E = torch.exp(S if bias is None else S + bias)
    E = E if mask is None else E * mask
    empty = 0.0 if mask is None else ~mask.any(-1, keepdim=True)
    return torch.einsum("...ij,...jb->...ib", E / (E.sum(-1, keepdim=True) + empty), V)


@pytest.fixture
def reference():
    return naive


@pytest.fixture
def tensors():
    """Q (2, 3, 4), K (2, 5, 4), V (2, 5, 6), bias (3, 5) with gradients, and a mask whose middle row is empty."""
    torch.manual_seed(0)
    shapes = {"Q": (2, 3, 4), "K": (2, 5, 4), "V": (2, 5, 6), "bias": (3, 5)}
    named = {name: torch.randn(s, dtype=torch.float64, requires_grad=True) for name, s in shapes.items()}
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    return (*named.values(), mask)


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors are tiny: a second thread would only be waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items):
    """PyTorch's own forward mode announces, at its first use, that its own ``torch.jit`` is deprecated."""
    silence = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
    for item in items:
        item.add_marker(silence)
