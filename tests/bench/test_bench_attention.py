"""``gradderiv bench attention``: that every way does what is asked of it, and what becomes of one that cannot. No time is asserted."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from gradderiv.bench import attention_measure as measure
from gradderiv.bench.apart import Apart
from gradderiv.bench.attention import bench_attention, run
from gradderiv.bench.attention_cases import HEADLINE, LARGE, QUICK, USUAL, Asked, Mode
from gradderiv.bench.attention_measure import Bench, apart, measured
from gradderiv.bench.attention_result import BenchAttention
from gradderiv.bench.attention_rows import Plan, Row, difference, rows_of
from gradderiv.bench.attention_ways import (
    AGAIN,
    DEFAULT,
    DOUBLE,
    FIRST,
    HVP,
    JVP,
    MATH,
    OURS,
    PLAIN,
    TASKS,
    WAYS,
    Case,
    inputs,
)  # fmt: skip
from gradderiv.bench.turns import in_turns
from gradderiv.cli import main
from gradderiv.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

SMALL = Case(2, 8, 4, True)
SECOND = (DOUBLE, JVP, HVP)
TINY = Mode((Asked(SMALL), Asked(Case(3, 5, 4, False), (FIRST,))), 0.01, 60, 2, (16, 32), (16,))
STEPS: list[tuple[int, int, str]] = []


@pytest.fixture(scope="module")
def small() -> BenchAttention:
    """A run in this process: every process of its own imports torch anew, and one of them is tried below."""
    STEPS.clear()

    def here(plans: Sequence[Plan], step: Callable[[str], None]) -> Iterator[Row]:
        for plan in plans:
            yield from measured(plan, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradderiv.bench.attention.apart", here)
        gc.freeze()  # as a process of its own does: nothing to look through before every peak
        try:
            return bench_attention(
                TINY, dtype="float64", threads=1, progress=lambda *step: STEPS.append(step)
            )
        finally:
            gc.unfreeze()


def nothing() -> None:
    pass


# ---------------------------------------------------------------- what is timed


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("way", [OURS, PLAIN])
def test_every_way_gives_what_math_gives(way: str, task: str, causal: bool) -> None:
    given = inputs(Case(2, 7, 4, causal), 0, torch.float64)
    found, expected = (TASKS[task](WAYS[name], given, nothing) for name in (way, MATH))
    assert [x.shape for x in found] == [x.shape for x in expected]
    torch.testing.assert_close(list(found), list(expected))


def test_the_default_kernel_gives_it_too_where_it_can() -> None:
    given = inputs(SMALL, 0)
    found, expected = (TASKS[FIRST](WAYS[name], given, nothing) for name in (DEFAULT, MATH))
    torch.testing.assert_close(list(found), list(expected))
    assert len(found) == 4


def test_hvp_is_the_second_derivative_along_a_direction() -> None:
    given = inputs(SMALL, 0, torch.float64)

    def gradient(step: float) -> list[torch.Tensor]:
        QKV = tuple(x + step * t for x, t in zip(given.QKV, given.along, strict=True))
        return list(TASKS[FIRST](WAYS[PLAIN], given._replace(QKV=QKV), nothing)[1:])

    differences = [(a - b) / 2e-5 for a, b in zip(gradient(1e-5), gradient(-1e-5), strict=True)]
    torch.testing.assert_close(
        list(TASKS[HVP](WAYS[OURS], given, nothing)), differences, rtol=1e-6, atol=1e-7
    )


def test_the_second_step_of_double_backward_is_hvp_and_jvp() -> None:
    """⟨dQKV(x, dO), u⟩ by x is the Hessian times u, and by dO the jvp along u."""
    given = inputs(SMALL, 0, torch.float64)
    *by_QKV, by_dO = TASKS[DOUBLE](WAYS[OURS], given, nothing)
    torch.testing.assert_close(by_QKV, list(TASKS[HVP](WAYS[MATH], given, nothing)))
    torch.testing.assert_close(by_dO, TASKS[JVP](WAYS[MATH], given, nothing)[1])


def test_only_double_backward_marks_a_second_step() -> None:
    for task, ask in TASKS.items():
        marks: list[int] = []
        ask(WAYS[OURS], inputs(SMALL, 0), lambda marks=marks: marks.append(1))  # type: ignore[misc]
        assert len(marks) == (task == DOUBLE)


# ---------------------------------------------------------------- how


def test_turns_are_rounds_in_an_order_that_is_drawn() -> None:
    turns = list(in_turns({"a": 40, "b": 40, "c": 1}, 0))
    assert [turns.count(name) for name in "abc"] == [40, 40, 1]
    assert sorted(turns[:3]) == ["a", "b", "c"]
    pairs = ["".join(turns[i : i + 2]) for i in range(3, 81, 2)]
    assert set(pairs) == {"ab", "ba"}
    assert turns == list(in_turns({"a": 40, "b": 40, "c": 1}, 0))
    assert list(in_turns({}, 0)) == []


def test_a_way_that_raises_is_a_row_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("not today\nand not in detail")

    monkeypatch.setitem(measure.ALL, PLAIN, broken)
    rows = list(measured(Plan(SMALL, (FIRST,), (OURS, PLAIN), budget=0.0)))
    assert [(r.way, r.trouble) for r in rows] == [(OURS, ""), (PLAIN, "RuntimeError: not today")]
    assert not rows[1].times
    assert rows[1].memory is rows[1].differs is None


def test_a_wrong_way_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measure.ALL, PLAIN, lambda Q, K, V, causal: 1.01 * WAYS[PLAIN](Q, K, V, causal))
    ours, plain, math = measured(Plan(SMALL, (FIRST,), (OURS, PLAIN, MATH), budget=0.0, dtype="float64"))
    assert ours.differs is not None
    assert plain.differs is not None
    assert ours.differs < 1e-12 < 5e-3 < plain.differs
    assert math.differs == 0


def test_what_would_be_too_much_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Plan(Case(2, 256, 4, False), limit=10.0))
    assert bench.growth == 16
    row = Row(bench.plan.case, FIRST, MATH)
    assert bench.too_much(row, 11.0, 0) == "would take about 11 s"
    assert bench.too_much(row, 9.0, 10**6) == ""
    monkeypatch.setattr(measure, "room", lambda device: 10**9)
    assert bench.too_much(row, 9.0, 10**8) == "would hold about 2 GB"
    monkeypatch.setattr(measure, "room", lambda device: 10**6)
    assert bench.too_much(row, 9.0, None) == "would hold about 0 GB"  # no memory can be read: 16 matrices
    assert bench.too_much(Row(bench.plan.case, FIRST, OURS), 9.0, None) == ""


def test_a_slow_call_counts_as_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SLOW", 0.0)
    rows = list(measured(Plan(SMALL, (DOUBLE,), (OURS,), budget=100.0)))
    assert [len(r.times) for r in rows] == [len(r.second) for r in rows] == [1]


def test_a_process_of_its_own_says_what_this_one_would() -> None:
    plans = [
        Plan(SMALL, (DOUBLE,), budget=0.01, threads=1, dtype="float64"),
        Plan(Case(2, 16, 4, True), (FIRST,), (OURS, MATH), budget=0.0, threads=1),
    ]
    steps: list[str] = []
    found, here = list(apart(plans, steps.append)), [row for plan in plans for row in measured(plan)]
    assert [(r.case, r.task, r.way, r.trouble) for r in found] == [
        (r.case, r.task, r.way, r.trouble) for r in here
    ]
    for row, other in zip(found, here, strict=True):
        assert bool(row.times) == bool(other.times)
        assert bool(row.second) == bool(other.second)
        assert (row.memory is None) == (other.memory is None)
        assert row.differs == other.differs
    assert "2 × 8: double backward, MATH" in steps


def test_a_process_that_dies_leaves_rows_that_say_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "__name__", "no_such_module")
    plans = [Plan(SMALL, (FIRST,), (OURS,))]
    rows = list(apart(plans, lambda label: None))
    assert "no_such_module" in capfd.readouterr().err
    assert [(r.way, r.trouble) for r in rows] == [
        (way, "the process ended with status 1") for way in (OURS, AGAIN)
    ]


def test_what_is_not_read_to_the_end_is_ended() -> None:
    process = Apart("any")
    process.command = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(1000)"]
    lines = process.__iter__()
    assert next(lines) == 1
    lines.close()  # returns: the process is no more


# ---------------------------------------------------------------- a run


def test_every_row_was_filled(small: BenchAttention) -> None:
    assert small.cases == [asked.case for asked in TINY.cases]
    asked = rows_of([Plan(*case, budget=1.0) for case in TINY.cases])
    assert [(r.case, r.task, r.way) for r in small.rows] == [(r.case, r.task, r.way) for r in asked]
    for row in small.rows:
        fails = row.way == DEFAULT and row.task in SECOND
        assert bool(row.trouble) == fails
        assert bool(row.times) != fails
        assert len(row.second) == (len(row.times) if row.task == DOUBLE else 0)
        assert (row.memory is not None) == (sys.platform == "linux" and not fails)
        assert fails or (row.differs is not None and row.differs < 1e-12)


def test_the_default_kernel_says_why_not(small: BenchAttention) -> None:
    words = {task: row.trouble for task in SECOND if (row := small.row(SMALL, task, DEFAULT)) is not None}
    assert "derivative" in words[DOUBLE]
    assert "forward AD" in words[JVP]
    assert "forward AD" in words[HVP]


def test_the_memory_that_grows_is_of_ours_and_of_math(small: BenchAttention) -> None:
    assert {(r.case.n, r.way) for r in small.growth} == {(16, OURS), (16, MATH), (32, OURS)}
    assert {r.task for r in small.growth} == set(TASKS)


def test_progress_counts_to_the_end(small: BenchAttention) -> None:
    assert [done for done, _, _ in STEPS] == sorted(done for done, _, _ in STEPS)
    done, total, _ = STEPS[-1]
    assert done == total == len(small.rows) + len(small.growth)
    assert any("2 × 8: double backward, MATH" in label for _, _, label in STEPS)


def test_the_text_fits_80_columns_and_says_what_is_what(small: BenchAttention) -> None:
    text = str(small)
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    assert "one thread, time of the processor" in flat
    assert "2 heads, n = 8, d_k = 4, causal" in text
    assert "first, by the default kernel: ours" in flat
    assert "By n, 2 heads, d_k = 64, causal" in text
    assert "– default, jvp, hvp: " in flat
    assert "forward over reverse, for all ways" in flat
    assert (
        "double backward at 12 heads, n = 4096, d_k = 64, causal: at least 4 × faster than MATH: not measured"
        in flat
    )


def test_json_has_every_time_peak_and_target(small: BenchAttention) -> None:
    document = json.loads(small.to_json())
    assert len(document["rows"]) == len(small.rows)
    assert len(document["growth"]) == len(small.growth)
    row = document["rows"][0]
    assert set(row) == {"case", "task", "way", "times", "second", "memory", "differs", "trouble"}
    assert row["case"] == {"heads": 2, "n": 8, "d": 4, "causal": True}
    assert {"aim", "measured", "met"} == set(document["targets"][0])
    assert document["dtype"] == "float64"
    assert {"schema_version", "torch", "machine", "threads", "device", "seed", "seconds"} < set(document)


@pytest.mark.parametrize(
    ("options", "mode"), [({}, USUAL), ({"quick": True}, QUICK), ({"large": True}, LARGE)]
)
def test_the_cases_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, bool], mode: Mode
) -> None:
    asked: list[Mode] = []
    monkeypatch.setattr("gradderiv.bench.attention.bench_attention", lambda mode, **rest: asked.append(mode))
    run(**options)  # type: ignore[arg-type]
    assert asked == [mode]


def test_the_large_cases_have_all_ways_at_the_headline() -> None:
    assert Asked(HEADLINE) in LARGE.cases
    assert HEADLINE in [asked.case for asked in USUAL.cases]
    assert max(LARGE.lengths) == 32768


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"quick": True, "large": True}, "leave one out"),
        ({"dtype": "int8"}, "float16"),
        ({"device": "abacus"}, "cpu, cuda"),
    ],
)
def test_a_call_that_is_wrong_says_so(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        run(**options)  # type: ignore[arg-type]


def test_the_command_says_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "attention", "--quick", "--large"]) == 2
    assert "leave one out" in capsys.readouterr().err


def test_the_command_prints_and_writes(
    small: BenchAttention, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gradderiv.bench.attention.run", lambda **options: small)
    file = tmp_path / "figures.json"
    assert main(["bench", "attention", "--quick", "--json", str(file)]) == 0  # whatever the figures are
    assert capsys.readouterr().out == f"{small}\n"
    assert json.loads(file.read_text(encoding="utf-8"))["dtype"] == "float64"


def test_a_gpu_that_is_not_there_is_missed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a GPU"):
        run(device="cuda")


def test_the_difference_is_relative_to_each_result() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([100.0])
    assert difference([a + 0.2, b], [a, b]) == pytest.approx(0.1)
    assert difference([a, b + 1], [a, b]) == pytest.approx(0.01)
