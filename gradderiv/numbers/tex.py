r"""Numbers that are named matrices: what a rule computes is its formula.

    Q, K, tau = Tex().symbol("Q", 3, 4), …            tau * Q @ K.mT   prints   τ Q Kᵀ   and   \tau Q K^{\top}

A tensor has an expression (:mod:`gradderiv.numbers.nodes`) and a blank: a tensor of zeros that carries its shape through every
operation. Arithmetic comes from the table of all numbers, so autograd's own formulas can be printed too; a rule, and
an operation that is not in the table, is a call by its name. Leading axes are not shown: a batch of matrices prints as one matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gradderiv.errors import NoExactMeaning
from gradderiv.numbers import nodes
from gradderiv.numbers.nodes import ONE, Call, Constant, Node, Symbol
from gradderiv.numbers.number import Number, System
from gradderiv.numbers.operands import aten
from gradderiv.numbers.spelling import STYLES, spell

ALIASES = {
    aten.alias.default, aten.detach.default, aten.lift_fresh.default, aten.expand.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
}  # fmt: skip
VIEWS = {
    aten.view.default,
    aten._unsafe_view.default,
    aten._reshape_alias.default,
}  # of rows, not within rows


class TexTensor(Number):
    """A named matrix."""

    @property
    def node(self) -> Node:
        """The expression it stands for."""
        return self.cell.note  # type: ignore[no-any-return, unused-ignore]

    @property
    def tex_system(self) -> Tex:
        return self.system  # type: ignore[return-value]

    def tex(self) -> str:
        return spell(self.node, STYLES["tex"])

    def unicode(self) -> str:
        return spell(self.node, STYLES["unicode"])

    def ascii(self) -> str:
        return spell(self.node, STYLES["ascii"])

    def _repr_latex_(self) -> str:
        return f"${self.tex()}$"

    @classmethod
    def __torch_function__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        from gradderiv.numbers.calls import by_name, system_of

        kwargs = kwargs or {}
        if getattr(func, "is_rule", False):
            if func.__name__ in system_of((*args, *kwargs.values())).inline:
                return func.__wrapped__(*args, **kwargs)
            return by_name(func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            try:
                return func(*args, **kwargs)
            except NoExactMeaning:
                pass
        return by_name(func, args, kwargs)


class Tex(System):
    """Named matrices.

    Args:
        sizes: what to call a size, as {3: "n_q"}; used where a function is called with a size.
        inline: names of rules whose bodies are run, where others are calls by their names.
    """

    tensor = TexTensor
    main = "blank"
    rank = 1

    def __init__(self, sizes: dict[int, str] | None = None, inline: frozenset[str] = frozenset()) -> None:
        self.fill = {}
        self.sizes, self.inline = sizes or {}, inline
        self.bundles: dict[int, tuple[Any, str]] = {}  # the NamedTuples that have a name

    def symbol(self, name: str, *shape: int, meaning: tuple[Node, ...] = ()) -> TexTensor:
        """The matrix of that name."""
        return self.named(Symbol(name, meaning), torch.zeros(shape, dtype=torch.float64))

    def named(self, node: Node, blank: Tensor) -> TexTensor:
        blank = blank.double() if blank.is_floating_point() else blank  # numbers have one dtype here
        out = self.wrap({"blank": blank}, node, blank.dtype)
        assert isinstance(out, TexTensor)
        return out

    def constant(self, value: Tensor, dtype: torch.dtype) -> Number:
        if isinstance(value, TexTensor):
            return value
        first = value.reshape(-1)[:1].tolist()
        same = bool(first) and bool((value == value.reshape(-1)[0]).all())
        node = number(float(first[0])) if same else Constant("…")
        return self.named(node, torch.zeros(value.shape, dtype=dtype))

    def join(self, notes: list[Any]) -> Node:
        return notes[0] if len(notes) == 1 else Call("blocks", tuple(notes))

    def show(self, x: Number) -> str:
        return f"{spell(x.note)}, shape={tuple(x.shape)}"

    # ---- arithmetic

    def add(self, x: Number, y: Number) -> Number:
        return self.named(nodes.add(x.note, y.note), x.main + y.main)

    def sub(self, x: Number, y: Number) -> Number:
        return self.named(nodes.sub(x.note, y.note), x.main + y.main)

    def neg(self, x: Number) -> Number:
        return self.named(nodes.neg(x.note), x.main)

    def mul(self, x: Number, y: Number) -> Number:
        blank = x.main * y.main
        if x.dim() == 0 or y.dim() == 0:
            s, a = (x, y) if x.dim() == 0 and not (y.dim() == 0 and isinstance(y.note, Constant)) else (y, x)
            return self.named(nodes.scaled(s.note, a.note, scalar=a.dim() == 0), blank)
        return self.named(nodes.hadamard(x.note, y.note), blank)

    def matmul(self, x: Number, y: Number) -> Number:
        return self.named(nodes.product(x.note, y.note), x.main @ y.main)

    def div(self, x: Number, y: Number) -> Number:
        blank = torch.zeros((x.main + y.main).shape, dtype=x.dtype)
        return self.named(nodes.Quotient(x.note, y.note), blank)

    def reciprocal(self, x: Number) -> Number:
        return self.named(nodes.Quotient(ONE, x.note), x.main)

    def sum(self, x: Number, dims: tuple[int, ...], keepdim: bool) -> Number:
        blank = x.main.sum(dims, keepdim=keepdim) if dims else x.main
        if dims == (x.dim() - 1,) and keepdim:
            return self.named(Call("rowsum", (x.note,)), blank)
        if dims == (0,) and x.dim() == 2 and not keepdim:
            return self.named(nodes.product(nodes.transpose(x.note), ONE), blank)
        if isinstance(x.note, Call) and x.note.name == "diagonal" and len(dims) == x.dim():
            return self.named(Call("tr", x.note.args[:1]), blank)
        return self.named(Call("sum", (x.note,)), blank)

    def exp(self, x: Number) -> Number:
        return self.named(Call("exp", (x.note,)), x.main)

    def log(self, x: Number) -> Number:
        return self.named(Call("log", (x.note,)), x.main)

    def amax(self, x: Number, dims: tuple[int, ...], keepdim: bool) -> Number:
        return self.named(Call("rowmax", (x.note,)), x.main.amax(dims, keepdim=keepdim))

    def maximum(self, x: Number, y: Number) -> Number:
        return self.named(Call("max", (x.note, y.note)), torch.maximum(x.main, y.main))

    def softmax(self, x: Number, dim: int) -> Number:
        return self.named(Call("softmax", (x.note,)), x.main)

    # ---- structure

    def viewed(self, func: Any, x: Number, args: Any, out: Any) -> Any:
        if isinstance(out, list):
            return [self._piece(x, func, o, i) for i, o in enumerate(out)]
        swap = func is aten.t.default or (
            func is aten.transpose.int and {d % x.dim() for d in args} == {x.dim() - 1, x.dim() - 2}
        )
        if swap:
            return self.named(nodes.transpose(x.note), out.main)
        same = func in ALIASES or (func in VIEWS and out.shape[-1:] == x.shape[-1:])
        same = same or (func is aten.slice.Tensor and out.shape == x.shape)
        return self.named(x.note, out.main) if same else self._piece(x, func, out, *args)

    def _piece(self, x: Number, func: Any, out: Number, *args: Any) -> TexTensor:
        name = func._schema.name.split("::")[1].replace("view", "reshape")
        shown = (Constant(str(a).replace("-", "−")) for a in args)
        return self.named(Call(name.removeprefix("_unsafe_"), (x.note, *shown)), out.main)

    def structured(self, func: Any, sources: list[Number], args: Any, out: Number) -> Number:
        if func in (aten.clone.default, aten.contiguous.default):
            return out
        name = func._schema.name.split("::")[1]
        return self.named(Call(name, tuple(s.note for s in sources)), out.main)


def number(value: float) -> Constant:
    """A constant in print: short, with a true minus sign."""
    return Constant(f"{value:g}".replace("-", "−").replace("inf", "∞"))
