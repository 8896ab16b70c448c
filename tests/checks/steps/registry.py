"""Where steps are entered: {name: (weight, step)}."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from programs import Maker

Step = Callable[[Maker], Any]
STEPS: dict[str, tuple[float, Step]] = {}


def step(name: str, weight: float = 1.0) -> Callable[[Step], Step]:
    def enter(function: Step) -> Step:
        if name in STEPS:
            raise ValueError(f"two steps are called {name}")
        STEPS[name] = weight, function
        return function

    return enter
