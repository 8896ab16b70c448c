"""What PyTorch says of itself while these tests run."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items):
    """PyTorch's own forward mode announces, at its first use, that its own ``torch.jit`` is deprecated."""
    silence = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
    for item in items:
        item.add_marker(silence)
