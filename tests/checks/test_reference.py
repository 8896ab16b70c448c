"""The forward passes that the rules are held against: three that agree, know nothing of ours, and give what one computes by hand."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradderiv.checks import reference
from gradderiv.checks.catalog import RULES
from gradderiv.checks.problems import PROBLEMS
from gradderiv.checks.reference import LOOPS, TEXTBOOK, TORCH

TABLES = {"loops": LOOPS, "textbook": TEXTBOOK, "torch": TORCH}
Table = Mapping[str, Callable[..., Tensor]]
F64 = torch.float64


def agree(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= 1e-12 * b.abs().max()).all())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", PROBLEMS)
def test_loops_textbook_and_torch_agree(name: str, seed: int) -> None:
    """On every problem, those with rows that may attend to nothing included."""
    p = PROBLEMS[name]
    args, _ = p.floats(seed, F64)
    Y = {title: table[p.rule](**args, **p.options) for title, table in TABLES.items()}
    assert bool(torch.isfinite(Y["loops"]).all())
    assert agree(Y["textbook"], Y["loops"])
    assert agree(Y["torch"], Y["loops"])


@pytest.mark.parametrize("title", TABLES)
def test_each_table_has_every_rule(title: str) -> None:
    assert set(TABLES[title]) == set(RULES)


def test_they_know_nothing_of_ours() -> None:
    tree = ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {m.partition(".")[0] for m in modules if m} == {
        "__future__",
        "collections",
        "math",
        "torch",
        "typing",
    }


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_softmax_by_hand(table: Table) -> None:
    S = torch.tensor([[0.0, math.log(3)], [5.0, 5.0]], dtype=F64)
    assert agree(table["softmax"](S), torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=F64))
    mask = torch.tensor([[True, False], [False, False]])
    assert table["softmax"](S, mask=mask).tolist() == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_softmax_of_what_exp_overflows(table: Table) -> None:
    S = torch.tensor([[1000.0, 1000.0 + math.log(3)], [-1000.0, -1000.0]], dtype=F64)
    assert torch.allclose(
        table["softmax"](S), torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=F64), atol=1e-12
    )


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_attention_by_hand(table: Table) -> None:
    """d_k = 4, so τ = 1/2; the scores are 0 and log 3."""
    Q = torch.tensor([[2.0, 0.0, 0.0, 0.0]], dtype=F64)
    K = torch.tensor([[0.0, 1.0, 1.0, 1.0], [math.log(3), 0.0, 0.0, 0.0]], dtype=F64)
    V = torch.tensor([[4.0, 0.0], [0.0, 8.0]], dtype=F64)
    assert agree(table["attention"](Q, K, V), torch.tensor([[1.0, 6.0]], dtype=F64))
    assert agree(table["attention"](Q, K, V, scale=0.0), torch.tensor([[2.0, 4.0]], dtype=F64))
    # the bias is added after scaling: log 3 on the first key makes both equal
    bias = torch.tensor([[math.log(3), 0.0]], dtype=F64)
    assert agree(table["attention"](Q, K, V, bias=bias), torch.tensor([[2.0, 4.0]], dtype=F64))
    only_second = torch.tensor([[False, True]])
    assert agree(table["attention"](Q, K, V, mask=only_second), torch.tensor([[0.0, 8.0]], dtype=F64))
    assert table["attention"](Q, K, V, mask=torch.tensor([[False, False]])).tolist() == [[0.0, 0.0]]
    assert agree(
        table["attention"](Q, K, V, mask=only_second, bias=bias), torch.tensor([[0.0, 8.0]], dtype=F64)
    )


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_linear_by_hand(table: Table) -> None:
    X, W = torch.tensor([[1.0, 2.0]], dtype=F64), torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 5.0]], dtype=F64)
    b = torch.tensor([10.0, 20.0, 30.0], dtype=F64)
    assert table["linear"](X, W).tolist() == [[1.0, 2.0, 13.0]]
    assert table["linear"](X, W, b).tolist() == [[11.0, 22.0, 43.0]]
    assert table["linear"](X.expand(2, 3, 1, 2), W, b).tolist() == [[[[11.0, 22.0, 43.0]]] * 3] * 2


def one_token(h: int, h_kv: int) -> dict[str, Any]:
    """One token 1, heads of width 1: head i of the values holds i + 1, and W_O shows the heads side by side."""
    return {
        "X": torch.ones(1, 1, dtype=F64), "W_Q": torch.ones(1, h, dtype=F64), "W_K": torch.ones(1, h_kv, dtype=F64),
        "W_V": torch.arange(1, h_kv + 1, dtype=F64).reshape(1, -1), "W_O": torch.eye(h, dtype=F64),
        "n_heads": h, "n_kv_heads": h_kv,
    }  # fmt: skip


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_heads_by_hand(table: Table) -> None:
    """Head i owns the i-th columns; a key/value head serves the query heads of its group in a row: [1 1 1 2 2 2], not [1 2 1 2 1 2]."""
    assert table["multihead"](**one_token(3, 3)).tolist() == [[1.0, 2.0, 3.0]]
    assert table["multihead"](**one_token(6, 2)).tolist() == [[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]]
    assert table["multihead"](**one_token(3, 3), b_O=torch.ones(3, dtype=F64)).tolist() == [[2.0, 3.0, 4.0]]
    nothing = table["multihead"](
        **one_token(3, 3), mask=torch.tensor([[False]]), b_O=torch.ones(3, dtype=F64)
    )
    assert nothing.tolist() == [[1.0, 1.0, 1.0]]  # the bias of the output is all that is left


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_mask_and_a_bias_may_differ_from_head_to_head(table: Table) -> None:
    """Two tokens, two heads of width 1, equal scores: head 0 sees the first token alone, head 1 weighs them 1 : 3."""
    X = torch.tensor([[1.0], [5.0]], dtype=F64)
    zero, one = torch.zeros(1, 2, dtype=F64), torch.ones(1, 2, dtype=F64)
    mask = torch.tensor([[[True, False]], [[True, True]]])
    bias = torch.tensor([[[9.0, 0.0]], [[0.0, math.log(3)]]], dtype=F64)
    Y = table["multihead"](X, zero, zero, one, torch.eye(2, dtype=F64), n_heads=2, mask=mask, bias=bias)
    assert agree(Y, torch.tensor([[1.0, 4.0], [1.0, 4.0]], dtype=F64))


# ---------------------------------------------------------------- they can disagree


@pytest.mark.parametrize(
    ("problem", "changed"),
    [
        ("attention-options", {"scale": 0.31}),
        ("cross-masked", {"mask": None}),
        ("h-equals-n", {"n_heads": 2}),
        ("self", {"b_V": torch.zeros(12, dtype=F64)}),
    ],
)
def test_another_option_gives_another_value(problem: str, changed: dict[str, Any]) -> None:
    p = PROBLEMS[problem]
    args, _ = p.floats(0, F64)
    given = {**args, **p.options}
    for table in TABLES.values():
        assert not agree(table[p.rule](**{**given, **changed}), LOOPS[p.rule](**given))
