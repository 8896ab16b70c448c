"""Not one line of the book can be replaced by a wrong one, and not one reason by another."""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradderiv.book import chapters
from gradderiv.book.chain import Chain, ChainError
from gradderiv.book.laws import LAWS
from gradderiv.book.layout import columns
from gradderiv.book.library import at, cells
from gradderiv.book.named import DRAW, Draw
from gradderiv.errors import InputError

STOPS = (ChainError, InputError, RuntimeError)  # a line that does not hold, or shapes that do not fit


@pytest.mark.parametrize("path", chapters(), ids=lambda p: p.stem)
def test_every_line_holds_and_no_wrong_one_passes(path: Path) -> None:
    tried = dict.fromkeys(ATTACKED, 0)
    with at(Draw(seed=1)) as (chains, printed):  # the exercises' tests run the chapter at another point
        namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
        steps = lines = 0
        for cell in cells(path):
            if not cell.is_code:
                continue
            statements, before = ast.parse(cell.source).body, sum(c.steps for c in chains)
            if cell.meta:  # an exercise: its own tests attack it
                for statement in statements:
                    _execute(statement, namespace)
                continue
            for here, statement in enumerate(statements):
                kind = _kind(statement)
                if kind == "start" and not any(_kind(s) == "line" for s in statements[here + 1 :]):
                    kind = ""  # a chain that is begun to show how it stops
                lines += kind in ("line", "reads_off")
                if kind in ("line", "reads_off"):
                    assert not _stops([statement], namespace)  # what stops below is the change
                for name, wrong in (*_wrong(statement, kind), *_wrong_reasons(statement, kind)):
                    tried[kind] += 1
                    rest = statements[here + 1 :] if kind in ("start", "let") else []
                    assert _stops([wrong, *rest], namespace), f"{kind}, {name}: {ast.unparse(wrong)}"
                _execute(statement, namespace)
            steps += sum(c.steps for c in chains) - before
            if any(isinstance(s, ast.For) for s in statements):
                lines += steps
    assert_reads_well(chains, printed.getvalue())
    assert lines >= steps  # nothing was checked that was not also attacked
    assert tried["line"] >= 2 * (steps - sum(bool(c.rule) for c in chains))


def assert_reads_well(chains: list[Chain], printed: str) -> None:
    """In 80 columns, in Unicode and in ASCII, and sure."""
    assert chains
    assert max(c.failure for c in chains) < -40
    for chain in chains:
        assert chain.steps
        assert chain.ascii().isascii()
        assert all(columns(line) <= 80 for line in chain.ascii().splitlines())
    assert "checked; probability of a mistake below 2⁻" in printed
    assert all(columns(line) <= 80 for line in printed.splitlines())


def test_an_attack_that_changes_nothing_is_noticed() -> None:
    """The twin of the test above: what it calls wrong must be wrong."""
    with at(Draw()):
        namespace: dict[str, Any] = {}
        setup, line = (
            ast.parse(
                "from gradderiv.book import laws\n"
                "from gradderiv.book.chain import *\n"
                "A = Point(n=3, d=4).free('A', 'n, d')\n"
                "line = chain(inner(A, A), 'a start')\n"
                "line(inner(A.mT, A.mT), laws.TRANSPOSE)"
            ).body[:-1],
            ast.parse("line(inner(A.mT, A.mT), laws.TRANSPOSE)").body[0],
        )
        for statement in setup:
            _execute(statement, namespace)
        assert not _stops([line], namespace)
        assert all(_stops([wrong], namespace) for _, wrong in _wrong(line, "line"))
        harmless = ast.parse("line(inner(A.mT * 1, A.mT), laws.TRANSPOSE)").body
        assert not _stops(harmless, namespace)


# ---------------------------------------------------------------- the attack

#: Where the formula stands among the arguments, by what a statement does.
ATTACKED = {"line": 0, "start": 0, "let": 1, "reads_off": 1, "fact": 1, "definition": 1}


def _kind(statement: ast.stmt) -> str:
    """What a statement does in a derivation: start, let, line, reads_off, fact, definition, or ""."""
    value = getattr(statement, "value", None)
    if isinstance(statement, ast.For):
        return "line" if any(_kind(s) for s in statement.body) else ""
    if not isinstance(value, ast.Call):
        return ""
    match value.func:
        case ast.Name("chain"):
            return "start"
        case ast.Name("line"):
            return "line"
        case ast.Name("fact" | "definition" as name):
            return name if len(value.args) > 1 else ""
        case ast.Attribute(ast.Name("line"), "let" | "reads_off" as name):
            return name
    return ""


def _wrong(statement: ast.stmt, kind: str) -> Iterator[tuple[str, ast.stmt]]:
    """Copies of the statement with one thing wrong in the formula."""
    if isinstance(statement, ast.For):
        for i, inner in enumerate(statement.body):
            if _kind(inner) == "line":
                for name, wrong in _wrong(inner, "line"):
                    loop = copy.deepcopy(statement)
                    loop.body[i] = wrong
                    yield name, loop
        return
    if not kind:
        return
    where = ATTACKED[kind]
    formula = statement.value.args[where]  # type: ignore[attr-defined]
    for name, changed in _changes(formula):
        wrong = copy.deepcopy(statement)
        wrong.value.args[where] = changed  # type: ignore[attr-defined]
        yield name, ast.fix_missing_locations(wrong)


def _wrong_reasons(statement: ast.stmt, kind: str) -> Iterator[tuple[str, ast.stmt]]:
    """Copies of the line with another reason in the place of one, with one left out, and with one too many."""
    if kind != "line" or isinstance(statement, ast.For) or "computed" in ast.unparse(statement):
        return
    reasons = statement.value.args[1:]  # type: ignore[attr-defined]
    named = {ast.unparse(r).removeprefix("laws.") for r in reasons}
    others = sorted(set(LAWS) - named - FIRST)
    other = (
        ast.parse(
            f"__import__('gradderiv.book.laws').book.laws.{random.Random(ast.unparse(statement)).choice(others)}"
        )
        .body[0]
        .value
    )  # type: ignore[attr-defined]
    for i in range(len(reasons)):
        for name, changed in (
            ("another reason", [*reasons[:i], other, *reasons[i + 1 :]]),
            ("a reason dropped", [*reasons[:i], *reasons[i + 1 :]]),
        ):
            wrong = copy.deepcopy(statement)
            wrong.value.args[1:] = changed  # type: ignore[attr-defined]
            yield name, ast.fix_missing_locations(wrong)
    wrong = copy.deepcopy(statement)
    wrong.value.args.append(other)  # type: ignore[attr-defined]
    yield "one too many", ast.fix_missing_locations(wrong)


#: What an inner product is: the laws that move its factors all follow from it, and so do lines that use them.
FIRST = {"SUM", "TRACE"}


def _changes(formula: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    yield "sign", ast.UnaryOp(ast.USub(), copy.deepcopy(formula))
    yield "twice", ast.BinOp(ast.Constant(2), ast.Mult(), copy.deepcopy(formula))
    for i, node in enumerate(ast.walk(formula)):
        if isinstance(node, ast.Attribute) and node.attr == "mT":
            yield "transpose dropped", _replaced(formula, i, node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
            op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
            yield "sign of a term", _replaced(formula, i, ast.BinOp(node.left, op, node.right))
            yield "term dropped", _replaced(formula, i, node.left)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and isinstance(node.left, ast.Name):
            yield "factor dropped", _replaced(formula, i, node.right)


def _replaced(formula: ast.expr, index: int, by: ast.expr) -> ast.expr:
    out = copy.deepcopy(formula)
    target = list(ast.walk(out))[index]

    class Swap(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return copy.deepcopy(by) if node is target else super().generic_visit(node)

    return Swap().visit(out)  # type: ignore[no-any-return]


def _stops(statements: list[ast.stmt], namespace: dict[str, Any]) -> bool:
    """Whether one of the statements raises; those after a start or a let run on to the end of that chain."""
    trial = dict(namespace)
    line = trial.get("line")
    if isinstance(line, Chain):
        trial["line"] = copy.copy(line)
        trial["line"].lines, trial["line"].failures = list(line.lines), list(line.failures)
    with at(DRAW.get()):  # what is printed and begun here is not the chapter's
        try:
            for i, statement in enumerate(statements):
                if i and _kind(statement) == "start":
                    return False
                _execute(statement, trial)
        except STOPS:
            return True
    return False


def _execute(statement: ast.stmt, namespace: dict[str, Any]) -> None:
    exec(compile(ast.Module([statement], []), "chapter", "exec"), namespace)
