"""Random programs, as a person might have written them, and the same with one gradient spoilt.

A program is a list of lines, each one statement, over one to three tensors; the package ``steps`` says what may be in it. It is made and run line by line on floats, so that
a step that does not fit (a shape, a value that is not finite or too large) is dropped as soon as it is tried. What a value may be used for is its kind:

    PLAIN     finite entries                      POSITIVE  the same, bounded away from zero
    LOG       the logarithm of a positive value    MIXED     a plain value plus a logarithm
    MASKED    scores with −∞ among them

A product of a LOG has no exact meaning, and so no step makes one.
"""

from __future__ import annotations

import itertools
import linecache
import random
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PLAIN, POSITIVE, LOG, MIXED, MASKED = "plain", "positive", "log", "mixed", "masked"
FINITE = (PLAIN, POSITIVE)
LARGEST, SMALLEST, ENTRIES = 12.0, 0.02, 120


class Unfit(Exception):
    """This step cannot be taken here."""


@dataclass
class Line:
    """One statement; ``spoils``, where a wrong backward may follow it, is the name it gives a value to."""

    text: str
    name: str
    spoils: bool
    step: str = ""


@dataclass
class Program:
    """A straight-line program.

    Attributes:
        shapes: of the arguments, by name.
        lines: the statements.
        outputs: the names that it returns.
        steps: the names of the steps taken, of ``steps.STEPS``.
        leans: why the field may have no proof of it, though it is right; empty where it must.
    """

    seed: int
    dtype: torch.dtype
    shapes: dict[str, tuple[int, ...]]
    lines: list[Line] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    leans: str = ""

    def inputs(self, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [torch.randn(s, generator=generator, dtype=torch.float64) * 0.8 for s in self.shapes.values()]
        return tuple(x.to(dtype or self.dtype) for x in drawn)

    def source(self, spoilt: int | None = None) -> str:
        """As Python, with a wrong backward after line ``spoilt``."""
        lines = [f"def program({', '.join(self.shapes)}):"]
        for k, line in enumerate(self.lines):
            lines.append(f"    {line.text}")
            if k == spoilt:
                lines.append(f"    {line.name} = spoil({line.name})")
        lines.append(f"    return {', '.join(self.outputs)}")
        return "\n".join(lines) + "\n"

    def needed(self, outputs: Sequence[str]) -> set[str]:
        """The names that these hang on. No step writes into a view of what it did not name, too."""
        needed = set(outputs)
        while True:
            more = {
                n
                for line in self.lines
                if line.name in needed
                for n in re.findall(r"\b[a-z]\d*\b", line.text)
            }
            for line in self.lines:  # of several values that one line gives, it is known by the first
                first, *rest = line.text.split(" = ")[0].split(", ")
                more |= {first} if needed.intersection(rest) else set()
            if more <= needed:
                return needed
            needed |= more

    def prune(self) -> None:
        """Keep the lines that some output hangs on."""
        needed = self.needed(self.outputs)
        self.lines = [line for line in self.lines if line.name in needed]
        self.steps = list(dict.fromkeys(line.step for line in self.lines if line.step))

    def function(self, spoilt: int | None = None, spoil: Callable[[Tensor], Tensor] | None = None) -> Any:
        source = self.source(spoilt)
        name = f"<program {self.seed}{'' if spoilt is None else f', spoilt after line {spoilt}'}>"
        linecache.cache[name] = len(source), None, source.splitlines(True), name
        space = {**NAMES, "spoil": spoil}
        exec(compile(source, name, "exec"), space)
        return space["program"]


# ---------------------------------------------------------------- right backwards, written by hand


class Squares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * g


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return g * y, g * x


class Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        e = torch.exp(x - x.amax(-1, keepdim=True))
        p = e / e.sum(-1, keepdim=True)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        return p * (g - (p * g).sum(-1, keepdim=True))


NAMES: dict[str, Any] = {
    "torch": torch, "F": F, "checkpoint": checkpoint, "Squares": Squares, "Product": Product, "Softmax": Softmax,
}  # fmt: skip


class Maker:
    """A program that grows, its values in floats, and what the steps ask for."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        dtype = self.random.choice((torch.float64, torch.float64, torch.float32))
        count = self.random.choice((1, 2, 2, 3))
        shapes = {name: self.shape(self.random.choice((1, 2, 2, 3, 3))) for name in "xyz"[:count]}
        self.program = Program(seed, dtype, shapes)
        self.kinds: dict[str, str] = dict.fromkeys(shapes, PLAIN)
        self.used: set[str] = set()
        self.taken = 0
        self.base = ""  # of the logarithms: e or 2, not both
        self.space: dict[str, Any] = {**NAMES}
        self.names = (f"{letter}{k or ''}" for k in itertools.count() for letter in "abcdefghjklmnopqrstuvw")
        torch.manual_seed(seed)
        for name, x in zip(shapes, self.program.inputs(), strict=True):
            self.space[name] = x.requires_grad_()

    # ---- what steps ask for

    def shape(self, dims: int) -> tuple[int, ...]:
        return tuple(self.random.randint(2, 4) for _ in range(dims))

    def value(self, name: str) -> Tensor:
        return self.space[name]

    def take(self, kinds: Sequence[str] = FINITE, low: int = 0, high: int = 4, fits: Any = None) -> str:
        """The name of a value; rather one that has not been used."""
        names = [
            n for n, kind in self.kinds.items()
            if kind in kinds and low <= self.value(n).dim() <= high and (fits is None or fits(self.value(n)))
        ]  # fmt: skip
        if not names:
            raise Unfit
        weights = [1 if n in self.used else 6 for n in names]
        name = self.random.choices(names, weights)[0]
        self.used.add(name)
        return name

    def fitted(self, shape: Sequence[int], kinds: Sequence[str] = FINITE) -> str:
        """A value of just this shape, made of another by its entries if need be."""
        shape = tuple(shape)
        if self.random.random() < 0.7:
            try:
                return self.take(kinds, fits=lambda x: x.shape == shape)
            except Unfit:
                pass
        name = self.take(kinds)
        kind = self.kinds[name]
        count = 1
        for n in shape:
            count *= n
        size = self.value(name).numel()
        start = self.random.randrange(size)
        picked = [(start + k) % size for k in range(count)]
        return self.put(f"{name}.flatten()[{picked}].reshape({shape})", kind)

    def partner(self, name: str, kinds: Sequence[str] = FINITE) -> str:
        """A value that broadcasts with this one."""
        shape = self.value(name).shape
        form = [n if self.random.random() < 0.75 else 1 for n in shape[self.random.choice((0, 0, 0, 1)) :]]
        return self.fitted(form, kinds)

    def numbers(self, shape: Sequence[int], like: str, *, positive: bool = False) -> str:
        """A constant tensor, written out."""
        drawn = [
            self.random.choice((0.5, -1.5, 2.0, 0.25, -0.7, 1.1, 3.0))
            for _ in range(torch.Size(shape).numel())
        ]
        value = torch.tensor([abs(d) if positive else d for d in drawn], dtype=torch.float64).reshape(
            tuple(shape)
        )
        return f"torch.tensor({value.tolist()}, dtype={like}.dtype)"

    def mask(self, shape: Sequence[int], dim: int | None = -1) -> str:
        """A boolean constant; along ``dim`` one entry is always true."""
        drawn = torch.tensor([self.random.random() < 0.6 for _ in range(torch.Size(shape).numel())]).reshape(
            tuple(shape)
        )
        if dim is not None and drawn.dim():
            drawn.select(dim, self.random.randrange(shape[dim])).fill_(True)
        return f"torch.tensor({drawn.tolist()})"

    def indices(self, count: int, size: int, *, distinct: bool = False) -> list[int]:
        if distinct:
            return self.random.sample(range(size), min(count, size))
        return [self.random.randrange(size) for _ in range(count)]

    def axis(self, name: str) -> int:
        dims = self.value(name).dim()
        if not dims:
            raise Unfit
        return self.random.randrange(-dims, dims)

    # ---- what steps do

    def do(self, text: str, name: str, *, spoils: bool = True) -> None:
        """One more statement, which gives or changes ``name``."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                exec(text, self.space)
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError, Warning) as error:
            raise Unfit(f"{text}: {error}") from error
        self.program.lines.append(Line(text, name, spoils))

    def put(self, text: str, kind: str = PLAIN, *, hidden: bool = False) -> str:
        """A new value, or one that only this step uses."""
        name = next(self.names)
        self.do(f"{name} = {text}", name, spoils=kind in (*FINITE, LOG, MIXED))
        self.check(name, kind)
        if not hidden:
            self.kinds[name] = kind
        return name

    def check(self, name: str, kind: str) -> None:
        x = self.value(name)
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.numel() > ENTRIES or not x.numel():
            raise Unfit
        x = x.detach()
        if kind == MASKED:
            x = x[x != -torch.inf]
        if not bool(x.isfinite().all()) or bool((x.abs() > LARGEST).any()):
            raise Unfit
        if kind == POSITIVE and bool((x < SMALLEST).any()):
            raise Unfit

    def several(self, text: str, count: int, kind: str = PLAIN) -> list[str]:
        """Values that one statement gives."""
        names = [next(self.names) for _ in range(count)]
        self.do(f"{', '.join(names)}{',' if count == 1 else ''} = {text}", names[0])
        for name in names:
            self.check(name, kind)
            self.kinds[name] = kind
        return names

    def constant(self, text: str) -> str:
        """A name for something that does not depend on the inputs."""
        name = next(self.names)
        self.do(f"{name} = {text}", name, spoils=False)
        return name

    def shift(self, text: str) -> str:
        """A value that hangs on the maximum of a row, for this step alone."""
        name = next(self.names)
        self.do(f"{name} = {text}", name, spoils=False)
        return name

    def in_base(self, base: str) -> None:
        if self.base not in ("", base):
            raise Unfit
        self.base = base

    def lean(self, reason: str) -> None:
        """From here on the field may have no proof."""
        self.program.leans = self.program.leans or reason

    # ---- growing

    def attempt(self, step: Callable[[Maker], Any], name: str) -> bool:
        """One step; nothing is left of it where it does not fit."""
        program = self.program
        lines, kinds, used, base, leans = (
            len(program.lines),
            dict(self.kinds),
            set(self.used),
            self.base,
            program.leans,
        )
        try:
            step(self)
        except Unfit:
            del program.lines[lines:]
            self.kinds, self.used, self.base, program.leans = kinds, used, base, leans
            return False
        for line in program.lines[lines:]:
            line.step = name
        self.taken += 1
        return True

    def finish(self) -> Program | None:
        """With its outputs: what nothing used, and what brings in the arguments that nothing did; None if autograd will not have it."""
        program = self.program
        loose = [
            n
            for n in self.kinds
            if n not in self.used and n not in program.shapes and self.kinds[n] != MASKED
        ]
        loose = [n for n in loose if self.value(n).requires_grad]
        last = [
            n
            for n in self.kinds
            if n not in program.shapes and self.kinds[n] != MASKED and self.value(n).requires_grad
        ]
        count = self.random.choices((1, 2, 3), (6, 3, 1))[0]
        if self.random.random() < 0.7:
            loose.sort(key=lambda n: -len(program.needed([n])))
        program.outputs = loose[:count] or last[-1:]
        if not program.outputs:
            return None
        try:
            outputs = [self.value(n).sum() for n in program.outputs]
            found = torch.autograd.grad(outputs, [self.value(n) for n in program.shapes], allow_unused=True)
        except RuntimeError:  # it writes into what autograd has kept
            return None
        for name, gradient in zip(program.shapes, found, strict=True):
            if gradient is not None and not bool(gradient.isfinite().all()):
                return None
            if gradient is None:
                program.outputs.append(self.put(f"{name} * {name} / 4"))
        program.prune()
        return program


def make(seed: int, steps: Any = None, *, most: int = 14) -> Program:
    """The program of this seed, of at most so many steps, of which some may turn out to be of no use."""
    from steps import STEPS

    chosen = STEPS if steps is None else steps
    names, weights = list(chosen), [weight for weight, _ in chosen.values()]
    for attempt in itertools.count():
        maker = Maker(seed + attempt * 10**9)
        count = maker.random.randint(4, most)
        for _ in range(6 * count):
            if maker.taken >= count:
                break
            name = maker.random.choices(names, weights)[0]
            maker.attempt(chosen[name][1], name)
        program = maker.finish()
        if program is not None and program.steps:
            program.seed = maker.program.seed
            return program
    raise AssertionError
