"""What needs no reason, and what a law allows, keep the value; what they do not say, they do not allow."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from gradderiv.book.laws import LAWS
from gradderiv.book.reasoning.algebra import build, expanded, normal, parts, split, width
from gradderiv.book.reasoning.derivative import derivative
from gradderiv.book.reasoning.reasons import Law
from gradderiv.book.reasoning.rewrite import Equation, everywhere, follows, instance
from gradderiv.numbers import nodes
from gradderiv.numbers.nodes import (
    Call,
    Constant,
    Hadamard,
    Node,
    Product,
    Quotient,
    Symbol,
    Total,
    Transpose,
)

SEEDS = range(60)
MATRICES, NUMBERS = "ABC", "stu"


def expression(draw: random.Random, depth: int = 3) -> Node:
    """A random expression in square matrices; small integers make its value exact in floats."""
    if depth == 0:
        return Symbol(draw.choice(MATRICES))
    a, b = (expression(draw, depth - draw.choice([1, 1, 2]) if depth > 1 else 0) for _ in range(2))
    match draw.randrange(8):
        case 0:
            return nodes.add(a, b)
        case 1:
            return nodes.sub(a, b)
        case 2:
            return nodes.hadamard(a, b)
        case 3:
            return nodes.transpose(a)
        case 4:
            return nodes.scaled(Symbol(draw.choice(NUMBERS)), a, scalar=False)
        case 5:
            return nodes.scaled(Call("inner", (a, b)), Symbol("A"), scalar=False)
        case 6:
            return nodes.neg(a)
    return nodes.product(a, b)


def value(node: Node, at: dict[str, Tensor]) -> Tensor:
    match node:
        case Symbol(name):
            return at[name]
        case Constant(text):
            return torch.tensor(float(Fraction(text)), dtype=torch.float64)
        case Total(signs, terms):
            return sum(s * value(t, at) for s, t in zip(signs, terms, strict=True))  # type: ignore[return-value]
        case Product(scalars, factors):
            out = torch.tensor(1.0, dtype=torch.float64)
            for s in scalars:
                out = out * value(s, at)
            matrix = None
            for f in factors:
                matrix = value(f, at) if matrix is None else matrix @ value(f, at)
            return out if matrix is None else out * matrix
        case Hadamard(factors):
            out = value(factors[0], at)
            for f in factors[1:]:
                out = out * value(f, at)
            return out
        case Transpose(of):
            return value(of, at).mT
        case Call("inner", (a, b)):
            return (value(a, at) * value(b, at)).sum()
        case Call("sum", (a,)):
            return value(a, at).sum()
        case Call("tr", (a,)):
            return value(a, at).diagonal().sum()
        case Call("rowsum", (a,)):
            return value(a, at).sum(-1, keepdim=True)
        case Call("inverse", (a,)):
            return 1 / value(a, at)
        case Call("exp", (a,)):
            return value(a, at).exp()
        case Call("log", (a,)):
            return value(a, at).log()
        case Quotient(top, bottom):
            return value(top, at) / value(bottom, at)
    raise TypeError(node)


def point(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    out = {name: torch.randint(-2, 3, (2, 2), generator=g).double() for name in MATRICES}
    return out | {name: torch.randint(1, 4, (), generator=g).double() for name in NUMBERS}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_writing_keeps_the_value(seed: int) -> None:
    node, at = expression(random.Random(seed), 4), point(seed)
    form = normal(node)
    assert torch.equal(value(form, at), value(node, at))
    assert normal(form) == form
    multiplied_out = value(expanded(form), at).expand(value(node, at).shape)
    assert torch.equal(multiplied_out, value(node, at))
    assert expanded(expanded(form)) == expanded(form)
    assert build(*split(form)) == form
    for part, put in parts(form):
        assert put(part) == form


@pytest.mark.parametrize("seed", range(20))
def test_a_product_of_numbers_has_one_form(seed: int) -> None:
    """τ ⟨A, B⟩ ⟨C, D⟩ as factors in any order, or with a number inside of one of them."""
    draw = random.Random(seed)
    inners = [
        Call("inner", tuple(Symbol(draw.choice(MATRICES)) for _ in "ab")) for _ in range(draw.choice([1, 2]))
    ]
    factors: list[Node] = [*inners, *map(Symbol, draw.sample(NUMBERS, 2))]
    forms = set()
    for _ in range(6):
        draw.shuffle(factors)
        node = factors[0]
        for f in factors[1:]:
            node = nodes.scaled(f, node, scalar=True)
        forms.add(normal(node))
    s, t = (f for f in factors if isinstance(f, Symbol))
    a, b = inners[0].args
    inside: Node = Call("inner", (nodes.scaled(s, a, scalar=False), nodes.scaled(t, b, scalar=False)))
    for other in inners[1:]:
        inside = nodes.scaled(other, inside, scalar=True)
    assert forms == {normal(inside)}
    (form,) = forms
    assert build(*split(form)) == form
    assert torch.equal(value(form, point(seed)), value(inside, point(seed)))


def test_what_is_one_and_what_is_not() -> None:
    A, B, C, t = map(Symbol, "ABCt")
    one = [
        (nodes.product(nodes.product(A, B), C), nodes.product(A, nodes.product(B, C))),
        (nodes.add(A, B), nodes.add(B, A)),
        (nodes.hadamard(A, B), nodes.hadamard(B, A)),
        (nodes.transpose(nodes.product(A, B)), nodes.product(nodes.transpose(B), nodes.transpose(A))),
        (
            nodes.product(nodes.scaled(t, A, scalar=False), B),
            nodes.scaled(t, nodes.product(A, B), scalar=False),
        ),
        (Quotient(A, B), nodes.hadamard(A, Quotient(nodes.ONE, B))),
        (nodes.sub(A, B), nodes.neg(nodes.sub(B, A))),
    ]
    for a, b in one:
        assert normal(a) == normal(b)
    two = [
        (nodes.product(A, B), nodes.product(B, A)),
        (nodes.hadamard(A, B), nodes.product(A, B)),
        (A, nodes.transpose(A)),
        (nodes.sub(A, B), nodes.add(A, B)),
        (nodes.product(A, nodes.add(B, C)), nodes.add(nodes.product(A, B), nodes.product(A, C))),
        (nodes.add(A, A), nodes.scaled(Constant("2"), A, scalar=False)),
        (Call("inner", (A, B)), Call("inner", (B, A))),
    ]
    for a, b in two:
        assert normal(a) != normal(b)
    for a, b in two[4:6]:
        assert expanded(normal(a)) == expanded(normal(b))


def is_polynomial_in_squares(law: object) -> bool:
    """Whether a law can be tried on square matrices of integers: no row, no column, no number, no function."""
    shapes = law.shapes.split(",") if isinstance(law, Law) else [""]
    return all(len(s.split()) == 2 and "1" not in s for s in shapes) and "exp" not in law.statement  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [n for n, law in LAWS.items() if is_polynomial_in_squares(law)])
def test_a_law_keeps_the_value_wherever_it_is_used(name: str) -> None:
    law, uses = LAWS[name], 0
    for seed in range(12):
        draw, at = random.Random(seed), point(seed)
        for equation in law.equations(None):  # type: ignore[arg-type]
            stands_for = {p: normal(expression(draw, 2)) for p in sorted(equation.free)}
            for side in (equation.left, equation.right):
                node = instance(side, stands_for, equation.free)
                for new in everywhere(node, equation):
                    uses += 1
                    assert torch.equal(value(new, at), value(node, at)), (node, new)
    assert uses > 20


@pytest.mark.parametrize("seed", SEEDS)
def test_the_product_rule_is_the_derivative(seed: int) -> None:
    draw, at = random.Random(seed), point(seed)
    node = normal(expression(draw, 3))
    moving = frozenset(draw.sample(MATRICES + NUMBERS, 3))
    dots = {f"{n}_dot": torch.ones_like(at[n]) * (i + 1) for i, n in enumerate(sorted(moving))}
    found = derivative(node, moving)

    def along(h: Tensor) -> Tensor:
        return value(node, {n: x + h * dots[f"{n}_dot"] if n in moving else x for n, x in at.items()})

    zero = torch.zeros((), dtype=torch.float64)
    _, expected = torch.autograd.functional.jvp(along, zero, torch.ones_like(zero))
    if found is None:
        assert not expected.any()
    else:
        assert torch.equal(value(found, at | dots).expand(expected.shape), expected)


def test_the_chain_rules() -> None:
    A, B, dot = Symbol("A"), Symbol("B"), Symbol("A_dot")
    at = {"A": torch.tensor([[1.0, 2]]).double(), "B": torch.tensor([[3.0, 5]]).double()}
    at["A_dot"] = torch.tensor([[0.5, -1]]).double()
    for node in (Call("exp", (A,)), Call("log", (A,)), Quotient(B, A), Quotient(A, Call("exp", (A,)))):
        found = derivative(normal(node), frozenset("A"))
        assert found is not None
        _, expected = torch.autograd.functional.jvp(
            lambda x, n=node: value(n, at | {"A": x}), at["A"], at["A_dot"]
        )
        assert torch.allclose(value(found, at), expected, rtol=1e-14)
    assert derivative(normal(Quotient(B, B)), frozenset("A")) is None
    with pytest.raises(KeyError, match="softmax"):
        derivative(Call("softmax", (A,)), frozenset("A"))
    assert dot in set(derivative(normal(Call("exp", (A,))), frozenset("A")).symbols())  # type: ignore[union-attr]


def test_every_law_named_is_used_and_the_search_ends() -> None:
    A, B, C, D = map(Symbol, "ABCD")
    ab, bc, cd = (Equation(x, y) for x, y in ((A, B), (B, C), (C, D)))
    assert follows(
        A,
        C,
        (
            (ab,),
            (bc,),
        ),
    )
    assert not follows(A, C, ((ab,),))
    assert not follows(
        A,
        C,
        (
            (ab,),
            (bc,),
            (cd,),
        ),
    ) or follows(C, C, ((cd,),))
    growing = Equation(A, nodes.add(A, B))
    assert not follows(A, D, ((growing,),))


def test_an_equation_is_used_transposed_and_without_its_numbers() -> None:
    A, B, C, D, t = map(Symbol, "ABCDt")
    law = Equation(normal(nodes.product(A, B)), C)
    assert normal(nodes.transpose(C)) in set(
        everywhere(normal(nodes.product(nodes.transpose(B), nodes.transpose(A))), law)
    )
    scaled = Equation(D, normal(nodes.scaled(t, nodes.product(A, B), scalar=False)))
    before = normal(nodes.scaled(t, Call("inner", (nodes.product(A, B), C)), scalar=True))
    assert Call("inner", (D, C)) in set(everywhere(before, scaled))
    without = normal(Call("inner", (nodes.product(A, B), C)))
    assert Call("inner", (D, C)) not in set(everywhere(without, scaled))


def test_the_terms_are_counted_before_they_are_written() -> None:
    A, B, C = map(Symbol, "ABC")
    two, three = nodes.add(A, B), nodes.add(nodes.add(A, B), C)
    whole = normal(Call("inner", (nodes.product(two, three), nodes.transpose(two))))
    assert width(whole) == 12
    assert width(A) == 1
