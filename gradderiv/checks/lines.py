"""Which line of a person's code an operation comes from."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

OURS = "program lines kept values scatter forward witnesses check prove prover locate beyond runs exact second confirm inputs candidate"
_OURS = (
    str(Path(torch.__file__).parent),
    *(str(Path(__file__).with_name(f"{name}.py")) for name in OURS.split()),
)
_ENTRANCES = tuple(str(Path(__file__).parents[1] / name) for name in ("cli.py", "testing.py"))


def calling_line() -> str:
    """The innermost line of code that is neither torch's nor ours; where torch's own function is under test, there is none."""
    for frame in _frames():
        file = frame.f_code.co_filename
        if file.startswith(_ENTRANCES):
            break
        if not file.startswith(_OURS):
            return f"{file}:{frame.f_lineno}"
    return "the function itself:0"


def with_text(line: str) -> str:
    """The line with what stands there."""
    file, _, number = line.rpartition(":")
    text = linecache.getline(file, int(number)).strip()
    return f"{line}: {text}" if text else line.removesuffix(":0")


def in_function() -> bool:
    """Whether the forward or the backward of an ``autograd.Function`` is running, where grad mode is off by right."""
    return any(frame.f_code.co_filename == _FUNCTION for frame in _frames())


def _frames() -> Iterator[Any]:
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]


_FUNCTION = torch.autograd.function.__file__
