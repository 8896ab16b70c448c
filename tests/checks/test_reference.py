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


DRAWN = [
    (name, seed) for name, p in PROBLEMS.items() for seed in ((0,) if name.startswith("pairs") else (0, 1))
]


@pytest.mark.parametrize(("name", "seed"), DRAWN)
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
    modules = set()
    for path in Path(reference.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        modules |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    ours = {m for m in modules if m.startswith("gradderiv")}
    assert all(m.startswith("gradderiv.checks.reference") for m in ours)
    others = {m.partition(".")[0] for m in modules - ours}
    assert others == {"__future__", "collections", "math", "torch", "typing", "warnings"}


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


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_products_by_hand(table: Table) -> None:
    M, v = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64), torch.tensor([1.0, 10.0], dtype=F64)
    assert table["matmul"](v, v).tolist() == 101.0
    assert table["matmul"](M, v).tolist() == [21.0, 43.0]
    assert table["matmul"](v, M).tolist() == [31.0, 42.0]
    assert table["matmul"](M, M).tolist() == [[7.0, 10.0], [15.0, 22.0]]
    both = table["matmul"](torch.stack([M, 2 * M])[:, None], torch.stack([v, 3 * v])[None, :, :, None])
    assert both[..., 0].tolist() == [[[21.0, 43.0], [63.0, 129.0]], [[42.0, 86.0], [126.0, 258.0]]]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_embeddings_by_hand(table: Table) -> None:
    E = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=F64)
    R = torch.tensor([[10.0, 0.0], [0.0, 20.0], [30.0, 30.0]], dtype=F64)
    tokens = torch.tensor([2, 0])
    assert table["embedding"](E, tokens=tokens).tolist() == [[5.0, 6.0], [1.0, 2.0]]
    assert table["embedding"](E, R, tokens=tokens).tolist() == [[15.0, 6.0], [1.0, 22.0]]
    later = table["embedding"](E, R, tokens=tokens[None], position_ids=torch.tensor([2, 2]))
    assert later.tolist() == [[[35.0, 36.0], [31.0, 32.0]]]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_norm_and_a_rotation_by_hand(table: Table) -> None:
    """Mean square 25/2 − 1/2 + ε; a quarter turn of (1, 2): half pairs them with 3 and 4, interleaved with each other."""
    X = torch.tensor([[3.0, 4.0]], dtype=F64)
    gain = torch.tensor([1.0, 10.0], dtype=F64)
    found = table["rms_norm"](X, gain, eps=12.5)
    assert agree(found, torch.tensor([[0.6, 8.0]], dtype=F64))
    X, zero, one = (
        torch.tensor([[1.0, 2.0, 3.0, 4.0, 9.0]], dtype=F64),
        torch.zeros(1, 4, dtype=F64),
        torch.ones(1, 4, dtype=F64),
    )
    assert table["rope"](X, zero, one, pairing="half").tolist() == [[-3.0, -4.0, 1.0, 2.0, 9.0]]
    assert table["rope"](X, zero, one, pairing="interleaved").tolist() == [[-2.0, 1.0, -4.0, 3.0, 9.0]]
    sine = torch.tensor([[1.0, 1.0, 2.0, 2.0]], dtype=F64)  # each column by its own entry
    assert table["rope"](X, zero, sine, pairing="half").tolist() == [[-3.0, -4.0, 2.0, 4.0, 9.0]]


QUICK = {
    "loops": LOOPS,
    "textbook": TEXTBOOK,
}  # torch's flex_attention takes its time, and agrees with them above

#: scores 0 and log 3 of one query, in two heads; what each option makes of the weights 1/4 and 3/4, of values 4 and 8
SCORED = {
    "nothing": ({}, [0.25, 0.75]),
    "temperature": ({"temperature": torch.tensor([[[0.5]], [[1.0]]], dtype=F64)}, [0.1, 0.9]),
    "alibi": ({"slopes": torch.tensor([math.log(3), 0.0], dtype=F64)}, [0.1, 0.9]),
    "t5": (
        {
            "table": torch.tensor([[0.0, 0.0], [math.log(9), 0.0]], dtype=F64),
            "buckets": torch.tensor([[1, 0]]),
        },
        [0.75, 0.25],
    ),
    "bias": ({"bias": torch.tensor([[[math.log(3), 0.0]], [[0.0, 0.0]]], dtype=F64)}, [0.5, 0.5]),
    "sinks": ({"sinks": torch.tensor([math.log(4), -1000.0], dtype=F64)}, [0.125, 0.375]),
    "mask": ({"mask": torch.tensor([[[True, False]], [[True, True]]])}, [1.0, 0.0]),
    "dropout": ({"keep": torch.tensor([[[False, True]], [[True, True]]]), "dropout_p": 0.5}, [0.0, 1.5]),
}


@pytest.mark.parametrize("option", SCORED)
@pytest.mark.parametrize("table", QUICK.values(), ids=QUICK)
def test_attention_with_an_option_by_hand(table: Table, option: str) -> None:
    given, weights = SCORED[option]
    Q = torch.ones(2, 1, 1, dtype=F64)
    K = torch.tensor([[0.0], [math.log(3)]], dtype=F64).expand(2, 2, 1)
    V = torch.tensor([[4.0], [8.0]], dtype=F64).expand(2, 2, 1)
    P = table["attend"](Q, K, V, **given, outputs=("weights",))
    O = table["attend"](Q, K, V, **given)
    assert agree(P[0], torch.tensor([weights], dtype=F64))
    assert abs(float(O[0]) - 4 * weights[0] - 8 * weights[1]) < 1e-12
    second = [0.5, 1.5] if option == "dropout" else [0.25, 0.75]  # the other head is left as it was
    assert agree(P[1], torch.tensor([second], dtype=F64))


@pytest.mark.parametrize("table", QUICK.values(), ids=QUICK)
def test_shared_heads_a_cache_and_lse_by_hand(table: Table) -> None:
    """Four query heads, two key/value heads, one key that is new and one that was cached: [0 0 1 1], the cache first."""
    Q = torch.ones(4, 1, 1, dtype=F64)
    K, K_cache = torch.full((2, 1, 1), math.log(3), dtype=F64), torch.zeros(2, 1, 1, dtype=F64)
    V, V_cache = torch.tensor([[[0.0]], [[8.0]]], dtype=F64), torch.tensor([[[4.0]], [[0.0]]], dtype=F64)
    found = table["attend"](Q, K, V, K_cache=K_cache, V_cache=V_cache, outputs=("O", "weights", "lse"))
    rows = [[1.0, 0.25, 0.75, math.log(4)]] * 2 + [[6.0, 0.25, 0.75, math.log(4)]] * 2
    assert agree(found[:, 0], torch.tensor(rows, dtype=F64))


# ---------------------------------------------------------------- they can disagree


@pytest.mark.parametrize(
    ("problem", "changed"),
    [
        ("attention-options", {"scale": 0.31}),
        ("cross-masked", {"mask": None}),
        ("h-equals-n", {"n_heads": 2}),
        ("self", {"b_V": torch.zeros(12, dtype=F64)}),
        ("embedding-positions", {"tokens": torch.tensor([1, 4, 4, 0, 1, 4, 3])}),
        ("embedding-padded", {"position_ids": None}),
        ("rope-half", {"pairing": "interleaved"}),
        ("rms-norm-heads", {"eps": 1e-6}),
        ("attend-softcap", {"softcap": 3.0}),
        ("attend-sinks", {"sinks": torch.zeros(6, dtype=F64)}),
        ("attend-qk-norm", {"eps": 0.5}),
        ("gemma-2", {"scale": 0.5}),
        ("gpt-oss", {"mask": None}),
        ("fused-gpt-neox", {"layout": "contiguous"}),
    ],
)
def test_another_option_gives_another_value(problem: str, changed: dict[str, Any]) -> None:
    p = PROBLEMS[problem]
    args, _ = p.floats(0, F64)
    given = {**args, **p.options}
    for table in TABLES.values():
        assert not agree(table[p.rule](**{**given, **changed}), LOOPS[p.rule](**given))
