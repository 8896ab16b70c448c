"""Every chapter runs, and not one of its lines can be replaced by a wrong one."""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gradderiv
from gradderiv.book import chapters, run
from gradderiv.book.chain import Chain, ChainError
from gradderiv.book.layout import columns
from gradderiv.book.library import at, cells, execute
from gradderiv.book.named import Draw
from gradderiv.errors import InputError

PATHS = chapters()
STOPS = (ChainError, InputError, RuntimeError)  # a line that does not hold, or shapes that do not fit

every_chapter = pytest.mark.parametrize("path", PATHS, ids=[p.stem for p in PATHS])
LINEAR = next(p for p in PATHS if p.stem.endswith("linear"))


@every_chapter
@pytest.mark.parametrize("seed", [0, 1])
def test_a_chapter_runs(path: Path, seed: int) -> None:
    chapter = run(path, seed=seed)
    assert chapter.chains
    assert max(c.failure for c in chapter.chains) < -40
    assert all(columns(line) <= 80 for line in chapter.printed.splitlines())
    for chain in chapter.chains:
        assert chain.steps
        assert chain.ascii().isascii()
        assert all(columns(line) <= 80 for line in chain.ascii().splitlines())


@every_chapter
def test_a_chapter_is_prose_with_shapes(path: Path) -> None:
    text = [cell.source for cell in cells(path) if not cell.is_code]
    assert text[0].startswith(f"# {int(path.stem[:2])} ")
    assert "**Questions.**" in text[-1]
    assert any("×" in cell for cell in text)


@every_chapter
def test_no_wrong_line_passes(path: Path) -> None:
    tried = {"line": 0, "start": 0, "let": 0, "reads_off": 0}
    with at(Draw()) as (chains, _):
        namespace: dict[str, Any] = {"__name__": "__main__"}
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        for here, statement in enumerate(statements):
            kind = _kind(statement)
            if kind in ("line", "reads_off"):
                assert not _stops([statement], namespace)  # what stops below is the change
            for name, wrong in _wrong(statement, kind):
                tried[kind] += 1
                rest = statements[here + 1 :] if kind in ("start", "let") else []
                assert _stops([wrong, *rest], namespace), f"{kind}, {name}: {ast.unparse(wrong)}"
            _execute(statement, namespace)
    steps = sum(c.steps for c in chains)
    if not any(isinstance(s, ast.For) for s in statements):
        lines = sum(_kind(s) in ("line", "reads_off") for s in statements)
        assert lines >= steps  # nothing was checked that was not also attacked
    assert tried["line"] >= 2 * (steps - sum(bool(c.rule) for c in chains))


# ---------------------------------------------------------------- the attack


def _kind(statement: ast.stmt) -> str:
    """What a statement does in a derivation: start, let, line, reads_off, or ""."""
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
    where = {"line": 0, "start": 0, "let": 1, "reads_off": 1}[kind]
    formula = statement.value.args[where]  # type: ignore[attr-defined]
    for name, changed in _changes(formula):
        wrong = copy.deepcopy(statement)
        wrong.value.args[where] = changed  # type: ignore[attr-defined]
        yield name, ast.fix_missing_locations(wrong)


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


# ---------------------------------------------------------------- as a script


def test_a_chapter_is_a_script() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    environment["PYTHONPATH"] = str(Path(gradderiv.__file__).parent.parent)
    out = subprocess.run(
        [sys.executable, str(LINEAR)], capture_output=True, encoding="cp1252", check=True, env=environment
    )
    assert "dW = X^T dY" in out.stdout


@every_chapter
def test_a_chapter_runs_on_any_console(path: Path) -> None:
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with at(Draw()), contextlib.redirect_stdout(console):
        execute(path.read_text(encoding="utf-8"), path, {})
    console.flush()
    assert b"checked; probability of a mistake below 2^-" in console.buffer.getvalue()  # type: ignore[attr-defined]


# ---------------------------------------------------------------- what the prose of chapter 8 says of its numbers


@pytest.fixture(scope="module")
def proving() -> str:
    return run(next(p for p in PATHS if p.stem.endswith("proving_a_gradient"))).printed


def test_every_verdict_is_the_one_that_the_prose_explains(proving: str) -> None:
    found = dict(re.findall(r"^(\S.*?) +(proved|refuted|inconclusive)\b", proving, re.M))
    proved = ["dy y", "P ∘ (dP − rowsum(P ∘ dP))", "x / root mean square", "log Σ exp(S − m) + m"]
    proved += ["scale 1/d_k, by itself", "softmax without the shift"]
    refuted = ["dy exp(a)", "P ∘ (1 − P) ∘ dP", "scale 1/d_k, with a reference"]
    inconclusive = ["dy exp(a) exp(b)", "√(3u), by way of √u", "the maximum itself"]
    verdicts = {"proved": proved, "refuted": refuted, "inconclusive": inconclusive}
    assert found == {what: verdict for verdict, all_of in verdicts.items() for what in all_of}
    assert "two scores of 800: [nan, nan]" in proving


def test_differences_fail_where_the_prose_says_so(proving: str) -> None:
    errors = [(float(a), float(b)) for a, b in re.findall(r"^h = \S+ +(\S+) +(\S+)$", proving, re.M)]
    large, small = zip(*errors, strict=True)
    best = large.index(min(large))
    assert 0 < best < len(large) - 1
    assert 1e-11 < min(large) < 1e-9  # two thirds of 16 digits
    assert small[0] < 0.5
    assert set(small[1:]) == {1.0}


def test_counts_and_degrees_are_those_of_the_prose(proving: str) -> None:
    shares = re.findall(r"p = +(\d+): agrees at (\S+)", proving)
    assert all(share == f"{(2 * int(p) - 1) / int(p) ** 2:.3f}" for p, share in shares)
    assert re.findall(r"p = (\d): x\^5 = x at (\S+), .* at (\S+)$", proving, re.M)[0] == (
        "5",
        "1.000",
        "1.000",
    )
    first, second, both, expected = map(int, re.findall(r"(\d+)(?: equal pairs|$)", pairs_of(proving), re.M))
    assert max(abs(first - expected), abs(second - expected)) < 4 * expected**0.5
    assert both == 0
    assert "k = 1: 2^13" in proving
    assert "softmax: e = 0  m = 1\n" in proving
    degrees = re.findall(r"the ledger says (\d+), 7 \+ 2nh = (\d+)", proving)
    assert len(degrees) == 4
    assert all(ledger == formula for ledger, formula in degrees)


def pairs_of(printed: str) -> str:
    """The four lines that count coincidences."""
    return printed[printed.index("first prime") : printed.index("k = 1:")].rstrip()


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    run(LINEAR)
    assert torch.get_num_threads() == before
