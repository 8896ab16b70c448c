"""An attention that shares no line with the rules, tiles that are small, and seeds that stay."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "rules")]

import attention_cases  # noqa: E402

from gradderiv.functional import _attention, _tiles  # noqa: E402


@pytest.fixture
def reference():
    """Exponentials and sums, differentiated by autograd."""
    return lambda *inputs, **options: attention_cases.naive(*inputs, **options)[0]


@pytest.fixture
def tensors():
    """Q (2, 3, 4), K (2, 5, 4), V (2, 5, 6), bias (3, 5) with gradients, and a mask whose middle row is empty."""
    torch.manual_seed(0)
    shapes = {"Q": (2, 3, 4), "K": (2, 5, 4), "V": (2, 5, 6), "bias": (3, 5)}
    named = {name: torch.randn(s, dtype=torch.float64, requires_grad=True) for name, s in shapes.items()}
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    return (*named.values(), mask)


@pytest.fixture
def several_tiles(monkeypatch):
    """At most two queries of one head in a tile: 5 queries are three tiles, the last of which is smaller."""
    monkeypatch.setattr(_tiles, "ROWS", 2)
    monkeypatch.setattr(_tiles, "ENTRIES", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr(_tiles, "FEWEST", 2)


@pytest.fixture
def one_seed(monkeypatch):
    """Dropout keeps what it kept: the same in each call and in each head."""

    def seeds_like(Q):
        return torch.full((*Q.shape[:-2], 1, 1), attention_cases.SEED)

    monkeypatch.setattr(_attention, "seeds_like", seeds_like)


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
