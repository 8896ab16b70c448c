"""Which formula each line of a rule computes: its body is run on named matrices and every new local variable is a step.

The names are those of the code. As soon as ``S = scale * Q @ K.mT`` has run, the step S = τ Q Kᵀ is noted and the matrix is called S from there on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from gradderiv.numbers.nodes import Item, Node, Symbol
from gradderiv.numbers.spelling import Style, spell
from gradderiv.numbers.tex import Tex, TexTensor

RULES = "gradderiv.rules"
# A composed rule keeps its values in dictionaries: how what is under a name there is called.
STEPS, WIRES = "gradderiv.rules.steps", {"values": "{}", "now": "{}_dot", "d": "d{}", "d_dot": "d{}_dot"}


class Step(NamedTuple):
    """``names = formula``, and the shape of each name."""

    names: tuple[str, ...]
    formula: Node
    shapes: tuple[tuple[int, ...], ...]

    def left(self, style: Style) -> str:
        return ", ".join(style.symbol(n) for n in self.names)

    def right(self, style: Style) -> str:
        return spell(self.formula, style)


def needed(steps: list[Step]) -> list[Step]:
    """The steps that the last one depends on, and the last one."""
    wanted, kept = {Symbol(n) for n in steps[-1].names}, []
    for step in reversed(steps):
        if any(Symbol(n) in wanted for n in step.names):
            kept.append(step)
            wanted |= set(step.formula.symbols())
    return kept[::-1]


class Trace:
    """Runs functions on the matrices of one :class:`Tex` and keeps their steps."""

    def __init__(self, system: Tex) -> None:
        self.system = system
        self.steps: list[Step] = []
        self.seen: dict[int, TexTensor] = {}
        self.outermost: FrameType | None = None

    def run(self, function: Callable[..., Any], /, *args: Any, result: str = "", **kwargs: Any) -> Any:
        """``function(…)``; a matrix that it returns without a name is called ``result``."""
        self.outermost, before = None, sys.gettrace()
        sys.settrace(self._called)
        try:
            out = function(*args, **kwargs)
        finally:
            sys.settrace(before)
        if isinstance(out, TexTensor) and not isinstance(out.node, Symbol):
            self._note({result: out})
        return out

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(RULES) or module.endswith("._inputs"):
            return None
        for name, value in frame.f_locals.items():
            self._bundle(name, value)
            if isinstance(value, TexTensor) and isinstance(value.node, Symbol):
                self.seen[id(value)] = value
        if self.outermost is None:
            self.outermost = frame
            self.given = {id(v) for v in frame.f_locals.values()}
        return self._line

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        values = self._locals(frame)
        for name, value in values.items():
            self._bundle(name, value)
        matrices = {n: v for n, v in values.items() if isinstance(v, TexTensor)}
        self._note({n: v for n, v in matrices.items() if id(v) not in self.seen})
        if frame is self.outermost:
            self._note_second_names(matrices)
        return self._line

    def _locals(self, frame: FrameType) -> dict[str, Any]:
        """The local variables of a rule; of a composed one its wires, and what each step has saved."""
        found = dict(frame.f_locals)
        if frame.f_globals.get("__name__") != STEPS:
            return found
        wires = {
            pattern.format(name): value
            for dictionary, pattern in WIRES.items()
            for name, value in found.get(dictionary, {}).items()
        }
        return wires | ({f"saved.{found['s'].writes[0]}": found["kept"]} if "kept" in found else {})

    def _bundle(self, name: str, value: Any) -> None:
        """Let calls print a NamedTuple by its name."""
        if isinstance(value, tuple) and hasattr(value, "_fields") and name != "_":
            if id(value) not in self.system.bundles:
                self.system.bundles[id(value)] = (value, name)
            for field, inner in zip(value._fields, value, strict=True):
                self._bundle(f"{name}.{field}", inner)

    def _note_second_names(self, matrices: dict[str, TexTensor]) -> None:
        """A known matrix under another name, as dX = dX_Q: a step, but it keeps the name it has."""
        for name, x in matrices.items():
            step = Step((name,), x.node, (tuple(x.shape),))
            if x.node != Symbol(name) and id(x) not in self.given and step not in self.steps:
                self.steps.append(step)

    def _note(self, new: dict[str, TexTensor]) -> None:
        together: dict[Node, list[str]] = {}
        for name, x in new.items():
            if x.node != Symbol(name):
                node = x.node.call if isinstance(x.node, Item) and not x.node.told else x.node
                together.setdefault(node, []).append(name)
        for node, names in together.items():
            shown = tuple(n for n in names if n != "_")
            step = Step(shown, node, tuple(tuple(new[n].shape) for n in shown))
            again = step in self.steps and not any(node.uses(Symbol(n)) for n in shown)
            if shown and not again:
                self.steps.append(step)
        for name, x in new.items():
            self.seen[id(x)] = x
            x.cell.note = Symbol(name)
