"""Named matrices that print themselves and have exact values: what the lines of a derivation are made of.

    at = Point(n=3, d=4, e=2)
    X, W = at.free("X", "n, d"), at.free("W", "d, e")
    W_dot = at.tangent(W)
    Y_dot, _ = differential(linear, X, moves(W, W_dot))      # dual numbers through the forward code

A :class:`Named` has several faces: the formula (:class:`~gradderiv.numbers.tex.TexTensor`), and its value at a random point of a
field (:class:`~gradderiv.numbers.field.FieldTensor`) under two seeds of the shift that stands for a row's maximum. Every torch
function and every rule is applied to all of them, so what is printed and what is checked are one object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.book.remarks import plain
from gradderiv.errors import InputError, message
from gradderiv.numbers.dual import Dual, DualTensor
from gradderiv.numbers.field import Field
from gradderiv.numbers.nodes import Item, Node, Symbol
from gradderiv.numbers.residues import Root
from gradderiv.numbers.spelling import spell
from gradderiv.numbers.tex import Tex, TexTensor
from gradderiv.rules._inputs import rule

TARGET = -40.0  # log₂ of the failure probability that a line may have


class Draw(NamedTuple):
    """Which random point: see :class:`~gradderiv.numbers.field.Field`."""

    seed: int = 0
    lanes: int = 3
    roots: frozenset[Root] = frozenset()
    draw: int = 0


DRAW: ContextVar[Draw] = ContextVar("DRAW", default=Draw())  # noqa: B039  (immutable)


class Named(torch.Tensor):
    """A named matrix with exact values. Made by a :class:`Point`, and from others by any torch function or rule."""

    faces: tuple[Tensor, ...]
    made_by: Any
    operands: tuple[Any, ...]
    options: dict[str, Any]

    @staticmethod
    def __new__(
        cls,
        faces: tuple[Tensor, ...],
        made_by: Any = None,
        operands: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> Named:
        self: Named = torch.Tensor._make_wrapper_subclass(cls, faces[0].shape, dtype=faces[0].dtype)
        self.faces, self.made_by, self.operands, self.options = faces, made_by, operands, options or {}
        return self

    @property
    def is_formula(self) -> bool:
        """Whether it was made of others, and has no name of its own."""
        return self.made_by is not None and not isinstance(self.node, (Symbol, Item))

    def remade(self, *operands: Any) -> Any:
        """The same operation on other operands."""
        return self.made_by(*operands, **self.options)

    @property
    def formula(self) -> TexTensor:
        return self.faces[0]  # type: ignore[return-value]

    @property
    def points(self) -> tuple[Any, ...]:
        return self.faces[1:]

    @property
    def node(self) -> Node:
        return self.formula.node

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{self.formula.unicode()}  {self.dimensions}"

    def ascii(self) -> str:
        return f"{self.formula.ascii()}  {plain(self.dimensions)}"

    def _repr_latex_(self) -> str:
        return self.formula._repr_latex_()

    @property
    def dimensions(self) -> str:
        """The shape in words: ``n_q × h·d_k``."""
        sizes = self.formula.tex_system.sizes
        return " × ".join(sizes.get(n, str(n)) for n in self.formula.shape) or "number"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        count = len(next(x for x in _leaves((args, tuple(kwargs.values()))) if isinstance(x, Named)).faces)
        _require_fitting(func, args)
        outs = [
            func(*(_swap(a, i) for a in args), **{k: _swap(v, i) for k, v in kwargs.items()})
            for i in range(count)
        ]
        return _zip(outs, lambda faces, name: Named(tuple(faces), func, args, kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NotImplementedError(f"{func} below __torch_function__")  # pragma: no cover


def _require_fitting(func: Any, args: tuple[Any, ...]) -> None:
    """Refuse a product of matrices whose dimensions do not fit, in the words of the book."""
    if func is not torch.Tensor.matmul or not all(isinstance(a, Named) and a.dim() == 2 for a in args):
        return
    A, B = args
    if A.shape[1] != B.shape[0]:
        a, b = spell(A.node), spell(B.node)
        fits = {
            f"({a})ᵀ times {b}": A.shape[0] == B.shape[0],
            f"{a} times ({b})ᵀ": A.shape[1] == B.shape[1],
            f"{b} times {a}": B.shape[1] == A.shape[0],
        }
        ways = " or ".join(way for way, does in fits.items() if does)
        raise InputError(
            message(
                "a product A B needs as many columns of A as rows of B",
                f"{a}, {A.dimensions}, times {b}, {B.dimensions}",
                "a transpose is missing or one too many, or the order is wrong",
                f"these fit: {ways}"
                if ways
                else "no order and no transpose fits; another factor belongs here",
            )
        )


def _leaves(tree: Any) -> Iterable[Any]:
    if isinstance(tree, (list, tuple)):
        for branch in tree:
            yield from _leaves(branch)
    else:
        yield tree


def _is_tree(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not isinstance(value, torch.Size)


def _like(tree: Any, branches: list[Any]) -> Any:
    return type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)


def _swap(value: Any, face: int) -> Any:
    """One face of every Named in ``value``."""
    if isinstance(value, Named):
        return value.faces[face]
    return _like(value, [_swap(v, face) for v in value]) if _is_tree(value) else value


def _zip(outs: list[Any], make: Callable[[list[Tensor], str], Any], name: str = "") -> Any:
    """The results of all faces as one; ``make`` also gets the name of the field they stand in."""
    first = outs[0]
    if isinstance(first, Tensor):
        return make(outs, name)
    if _is_tree(first):
        names = getattr(first, "_fields", [name] * len(first))
        return _like(first, [_zip(list(o), make, n) for n, *o in zip(names, *outs, strict=True)])
    return first


@rule
def inner(A: Tensor, B: Tensor) -> Tensor:
    """⟨A, B⟩ = Σ_ij A_ij B_ij = tr(Aᵀ B)"""
    if A.shape != B.shape:
        raise InputError(
            message(
                "⟨A, B⟩ needs two matrices of one shape",
                f"{tuple(A.shape)} and {tuple(B.shape)}",
                "a factor moved to the other side without its transpose, or to the wrong end",
                "⟨A, B C⟩ = ⟨A Cᵀ, B⟩ = ⟨Bᵀ A, C⟩",
            )
        )
    return (A * B).sum()


def require_named(asked: str, *values: Any) -> None:
    """
    Raises:
        InputError: one of the values is no named matrix.
    """
    for x in values:
        if not isinstance(x, Named) or x.dtype == torch.bool:
            came = f"{x!r}" if isinstance(x, Named) else f"{type(x).__name__}"
            cause, do = (
                "it was not made from the matrices of a Point, or has no numbers",
                "write it with them",
            )
            raise InputError(message(f"{asked} needs a named matrix", came, cause, do))


def named(name: str, x: Named) -> Named:
    """x, under a name; what it was made of is remembered as the meaning of the name."""
    return Named((x.formula.tex_system.symbol(name, *x.shape, meaning=(x.node,)), *x.points))


class Point:
    """A random point at which the named matrices of a derivation have their values.

    Args:
        sizes: the dimensions by name, as ``n_q=3``. Pairwise different, products included, so that no transpose hides.
    """

    def __init__(self, **sizes: int) -> None:
        d = DRAW.get()
        self.sizes = sizes
        self.fields = tuple(
            Field(d.seed, d.lanes, roots=d.roots, draw=d.draw, shift=shift, target=TARGET) for shift in (0, 1)
        )
        heads = {sizes.get("h", 0) * size: f"h·{name}" for name, size in sizes.items()}
        self.tex = Tex({**heads, **{size: name for name, size in sizes.items()}})

    def shape(self, dims: str) -> tuple[int, ...]:
        """``"d_model, h*d_k"`` → (5, 14)"""
        return tuple(
            math.prod(int(s) if s.isdigit() else self.sizes[s] for s in map(str.strip, dim.split("*")))
            for dim in dims.split(",")
            if dim
        )

    def free(self, name: str, dims: str = "") -> Named:
        """A matrix of free variables."""
        shape = self.shape(dims)
        return Named((self.tex.symbol(name, *shape), *(f.random(*shape) for f in self.fields)))

    def given(self, name: str, value: Tensor) -> Named:
        """A constant under a name: a mask, a block pattern."""
        blank = torch.ones_like(value) if value.dtype == torch.bool else torch.zeros_like(value)
        values = [value if value.dtype == torch.bool else f.constant(value, value.dtype) for f in self.fields]
        return Named((self.tex.named(Symbol(name), blank), *values))

    def let(self, name: str, x: Named) -> Named:
        """x, under a name."""
        return named(name, x)

    def tangent(self, x: Named) -> Named:
        """ẋ: a free direction for x."""
        assert isinstance(x.node, Symbol)
        return Named(
            (self.tex.symbol(f"{x.node.name}_dot", *x.shape), *(f.random(*x.shape) for f in self.fields))
        )


class Moves(NamedTuple):
    """A variable and the direction in which it moves."""

    x: Named
    x_dot: Named


def moves(x: Named, x_dot: Named) -> Moves:
    """Mark x, among the arguments of :func:`differential`, as moving along ẋ."""
    return Moves(x, x_dot)


def _moving(tree: Any) -> Iterable[Moves]:
    if isinstance(tree, Moves):
        yield tree
    elif _is_tree(tree):
        for branch in tree:
            yield from _moving(branch)


def differential(f: Callable[..., Any], *args: Any, name: str = "", **kwargs: Any) -> Any:
    """The true tangent of ``f(…)``: dual numbers x + ε ẋ through the forward code of f

    The result has the structure of f's own; each tangent is called by its field's name, or ``name``, and _dot; the
    fields of a ``…_vjp`` are gradients, and theirs are dQ_dot, ….
    """
    directions = tuple(v.x_dot for v in _moving((args, tuple(kwargs.values()))))
    given = (
        x for x in _leaves((args, tuple(kwargs.values()))) if isinstance(x, Named) and x.dtype != torch.bool
    )
    meaning = tuple(dict.fromkeys(x.node for x in (*directions, *given)))  # all that it depends on
    system = directions[0].formula.tex_system
    dual = Dual()
    faces = range(1, len(directions[0].faces))

    def at(value: Any, face: int) -> Any:
        if isinstance(value, Moves):
            return dual.make(value.x.faces[face], value.x_dot.faces[face])
        return _like(value, [at(v, face) for v in value]) if _is_tree(value) else _swap(value, face)

    def tangent(duals: list[Tensor], field: str) -> Named:
        values = [x.tangent if isinstance(x, DualTensor) else torch.zeros_like(x) for x in duals]
        called = f"d{field}" if field and getattr(f, "__name__", "").endswith("_vjp") else field or name
        symbol = system.symbol(f"{called}_dot", *values[0].shape, meaning=meaning)
        return Named((symbol, *values), differential, (f, *directions))

    outs = [f(*(at(a, i) for a in args), **{k: at(v, i) for k, v in kwargs.items()}) for i in faces]
    return _zip(outs, tangent, name)
