"""``gradderiv bench graph``: that the four ways agree, what is counted and printed. No time is asserted."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from gradderiv.bench import graph as bench
from gradderiv.bench.graph import OURS, WAYS, BenchGraph, Row, bench_graph, compared, inputs, once, pyramid
from gradderiv.bench.graph_memory import forget
from gradderiv.bench.sizes import peak

STEPS: list[tuple[int, int, str]] = []


@pytest.fixture(scope="module")
def small() -> BenchGraph:
    STEPS.clear()
    return bench_graph((64, 256), 2, progress=lambda *step: STEPS.append(step))


def test_all_ways_give_the_same(small: BenchGraph) -> None:
    assert {(r.way, r.n) for r in small.rows} == {(way, n) for way in WAYS for n in (64, 256)}
    assert all(r.error is not None and r.error < 1e-5 for r in small.rows)


def test_twin_a_wrong_way_is_seen() -> None:
    graph = pyramid(32)
    ways = {"dense": bench.dense(graph), "wrong": lambda Q, K, V: 1.01 * bench.dense(graph)(Q, K, V)}
    _, wrong = compared(ways, inputs(len(graph.neighbours), 0), 32)
    assert wrong.error is not None
    assert wrong.error > 5e-3


def test_every_way_was_timed_in_both_and_its_memory_read(small: BenchGraph) -> None:
    for row in small.rows:
        assert len(row.forward) == len(row.both) == 2
        assert (row.memory is not None) == (sys.platform == "linux")
    dense = small.ratio("dense", 256, "memory")
    assert dense is None or dense > 1
    assert small.ratio(OURS, 64, "forward") == 1


def test_a_forward_alone_records_nothing() -> None:
    graph = pyramid(16)
    given = inputs(len(graph.neighbours), 0)
    (O,) = once(WAYS[OURS](graph), given, backward=False)
    assert not O.requires_grad
    assert len(once(WAYS[OURS](graph), given, backward=True)) == 4


def test_the_table_fits_79_columns_and_says_who_is_better(small: BenchGraph) -> None:
    text = str(small)
    assert max(map(len, text.splitlines())) <= 79
    assert "n = 256: 340 nodes" in text
    assert "as many times as ours" in " ".join(text.split())


def test_a_way_that_is_better_is_named() -> None:
    rows = [Row(way, 8, [1.0], [1.0], 100, 0.0) for way in WAYS]
    result = BenchGraph(rows, {8: {"nodes": 10, "longest": 4, "edges": 30}})
    assert "least time and memory in every row" in " ".join(str(result).split())
    result.row("SDPA", 8).both = [0.5]
    assert "Better than ours: SDPA at n = 8, forward and backward (0.50 ×)." in " ".join(str(result).split())


def test_memory_that_is_not_known_is_a_dash() -> None:
    result = BenchGraph(
        [Row(way, 8, [1.0], [1.0]) for way in WAYS], {8: {"nodes": 10, "longest": 4, "edges": 30}}
    )
    assert result.ratio("dense", 8, "memory") is None
    assert str(result).count("–") >= 2 * len(WAYS)


def test_json_has_every_time_and_every_peak(small: BenchGraph) -> None:
    document = json.loads(small.to_json())
    assert len(document["rows"]) == 8
    assert document["graphs"]["64"]["nodes"] == 64 + 16 + 4 + 1
    assert {"forward", "both", "memory", "error"} < set(document["rows"][0])


def test_progress_counts_to_the_end(small: BenchGraph) -> None:
    assert [done for done, _, _ in STEPS] == sorted(done for done, _, _ in STEPS)
    done, total, _ = STEPS[-1]
    assert done == total


def test_the_peak_is_forgotten() -> None:
    before = forget()
    held = torch.ones(10**7)
    most = peak()
    del held
    after = forget()
    assert (before is None) == (after is None) == (sys.platform != "linux")
    if before is not None and after is not None and most is not None:
        assert most > before + 3 * 10**7
        assert after < before + 2 * 10**7


def test_more_than_one_thread_is_measured_by_the_clock() -> None:
    before = torch.get_num_threads()
    result = bench_graph((64,), 1, threads=2)
    assert torch.get_num_threads() == before
    assert "2 threads, time of the clock" in " ".join(str(result).split())
