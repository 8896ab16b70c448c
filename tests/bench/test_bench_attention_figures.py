"""``gradderiv bench attention``: ratios, exponents and verdicts, on figures that are made up."""

from __future__ import annotations

import sys

import pytest
import torch

from gradderiv.bench import attention_memory as memory
from gradderiv.bench.attention_cases import HEADLINE, LARGE, USUAL
from gradderiv.bench.attention_memory import CAP, available, exponent, most, room, start
from gradderiv.bench.attention_notes import bytes_of, missing
from gradderiv.bench.attention_result import BenchAttention
from gradderiv.bench.attention_rows import Row, worded
from gradderiv.bench.attention_targets import targets
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
    Case,
)  # fmt: skip

SHORT, LONG = Case(8, 128, 64, False), Case(8, 512, 64, False)
MB = 10**6


def made_up() -> BenchAttention:
    """Everything that is aimed at is reached, just."""
    rows = [
        Row(SHORT, FIRST, OURS, [140e-6, 150e-6, 900e-6], memory=MB),
        Row(SHORT, FIRST, DEFAULT, [100e-6, 101e-6, 860e-6], memory=MB),
        Row(SHORT, FIRST, AGAIN, [101e-6, 102e-6, 861e-6], memory=MB),
        Row(LONG, FIRST, OURS, [1.04, 1.05, 9.0], memory=50 * MB),
        Row(LONG, FIRST, DEFAULT, [1.0, 1.0, 9.0], memory=50 * MB),
        Row(LONG, FIRST, AGAIN, [1.01, 0.99, 9.09], memory=50 * MB),
        Row(HEADLINE, DOUBLE, OURS, [2.0, 2.0], [1.5, 1.0], 100 * MB),
        Row(HEADLINE, DOUBLE, MATH, [8.0], [6.0], 5000 * MB),
        Row(HEADLINE, JVP, OURS, [1.0], memory=100 * MB),
        Row(HEADLINE, JVP, MATH, [2.0], memory=2000 * MB),
        Row(HEADLINE, HVP, OURS, [2.0], memory=100 * MB),
        Row(HEADLINE, HVP, MATH, [6.0], memory=5000 * MB),
    ]
    growth = [
        Row(Case(4, n, 64, True), task, way, [1.0], memory=n**power * 1000)
        for task in TASKS
        for way, power in ((OURS, 1), (MATH, 2))
        for n in (512, 1024, 2048)
    ]
    return BenchAttention(rows, growth)


def row(result: BenchAttention, case: Case, task: str, way: str) -> Row:
    found = result.row(case, task, way)
    assert found is not None
    return found


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    result = made_up()
    assert result.ratio(LONG, FIRST, OURS, by=DEFAULT) == pytest.approx(1.04)
    assert result.ratio(LONG, FIRST, DEFAULT) == pytest.approx(1 / 1.04)
    assert result.ratio(LONG, FIRST, AGAIN, by=DEFAULT) == pytest.approx(1.01)
    assert result.ratio(HEADLINE, DOUBLE, MATH) == 4
    assert result.ratio(HEADLINE, DOUBLE, MATH, "second") == 4
    assert result.ratio(HEADLINE, DOUBLE, MATH, "memory") == 50
    assert result.difference(SHORT, FIRST, OURS, DEFAULT) == pytest.approx(40e-6)


def test_a_ratio_of_what_is_not_there_is_none() -> None:
    result = made_up()
    assert result.ratio(LONG, FIRST, PLAIN) is None
    assert result.ratio(LONG, FIRST, PLAIN, "memory") is None
    assert result.difference(LONG, FIRST, PLAIN, DEFAULT) is None
    row(result, LONG, FIRST, OURS).memory = None
    assert result.ratio(LONG, FIRST, DEFAULT, "memory") is None


@pytest.mark.parametrize("power", [1, 2])
def test_the_exponent_of_a_power_is_that_power(power: int) -> None:
    assert exponent([(n, 7.0 * n**power) for n in (2048, 4096, 8192, 16384)]) == pytest.approx(power)


def test_an_exponent_is_least_squares() -> None:
    noisy = [(1000, 1.1), (2000, 1.9), (4000, 4.2), (8000, 7.9)]
    x, y = torch.tensor(noisy, dtype=torch.float64).log().T
    slope, _ = torch.linalg.lstsq(torch.stack((x, torch.ones_like(x)), 1), y[:, None]).solution.flatten()
    assert exponent(noisy) == pytest.approx(float(slope))


def test_one_length_has_no_exponent() -> None:
    assert exponent([(512, 5.0), (512, 6.0)]) is None
    assert exponent([(512, 5.0), (1024, 0.0)]) is None
    assert exponent([]) is None


def test_the_growth_of_a_result() -> None:
    result = made_up()
    assert result.exponent(HVP) == pytest.approx(1)
    assert result.exponent(HVP, MATH) == pytest.approx(2)
    assert "n^1.00" in str(result)
    assert "n^2.00" in str(result)


def test_all_targets_can_be_met() -> None:
    found = targets(made_up())
    assert [t.verdict for t in found] == ["met"] * 10
    assert "at worst 1.04 × (8 heads, n = 512, d_k = 64; the kernel by itself 1.01 ×)" in found[0].measured
    assert "+40 µs" in found[1].measured
    assert found[3].measured == "4.0 ×"
    assert found[-1].measured == "first 1.00, double backward 1.00, jvp 1.00, hvp 1.00"


def test_every_target_can_be_missed() -> None:
    result = made_up()
    for case, factor in ((SHORT, 3.0), (LONG, 1.1)):
        row(result, case, FIRST, OURS).times[:] = [
            factor * t for t in row(result, case, FIRST, DEFAULT).times
        ]
    row(result, LONG, FIRST, OURS).memory = 52 * MB
    for task in (DOUBLE, JVP, HVP):
        ours = row(result, HEADLINE, task, OURS)
        ours.times, ours.memory = [1.1 * t for t in ours.times], 101 * MB
    for r in result.growth:
        r.memory = r.case.n**2
    assert [t.verdict for t in targets(result)] == ["not met"] * 10
    assert targets(result)[2].measured.startswith("at worst +2.0 MB")
    assert "at least 4 × faster than MATH: not met, 3.6 ×" in " ".join(str(result).split())


def test_what_was_not_measured_has_no_verdict() -> None:
    assert [t.met for t in targets(BenchAttention())] == [None] * 10
    assert "not measured" in str(BenchAttention())


def test_one_exponent_that_is_missing_leaves_it_open() -> None:
    result = made_up()
    result.growth = [r for r in result.growth if r.task != HVP]
    assert targets(result)[-1].verdict == "not measured"
    assert targets(result)[-1].measured.endswith("jvp 1.00")


def test_the_text_of_made_up_figures() -> None:
    text = str(made_up())
    assert max(map(len, text.splitlines())) <= 80
    (line,) = (x for x in text.splitlines() if x.startswith("double backward") and "2.00 s" in x)
    assert line.split() == ["double", "backward", "2.00", "s", "4", "–", "–", "100", "MB", "50", "–", "–"]
    assert "ours 1.04 × (+40,000 µs); itself 1.01 × (+10,000 µs)" in " ".join(text.split())


def test_a_reason_is_given_once_with_its_places() -> None:
    result = made_up()
    for task in (DOUBLE, HVP):
        row(result, HEADLINE, task, MATH).trouble = "would hold about 20 GB"
    row(result, LONG, FIRST, AGAIN).trouble = "the null pair has no line of its own"
    first, *left_out = missing(result)
    assert first == "– MATH, double backward, hvp at 12 × 4096 (heads × n): would hold about 20 GB"
    assert "– plain at 12 × 4096 (heads × n): left to --large" in left_out
    assert not any("ours" in line for line in left_out)


def test_an_error_is_its_first_line() -> None:
    assert worded(ValueError("one\ntwo")) == "ValueError: one"
    assert worded(ValueError()) == "ValueError: "


def test_bytes_are_short() -> None:
    shown = [bytes_of(x) for x in (None, 0, 4096, 999_600, 12_345_678, 999_900_000, 13_900_000_000)]
    assert shown == ["–", "0 kB", "4.1 kB", "1 MB", "12.3 MB", "1 GB", "13.9 GB"]


# ---------------------------------------------------------------- what there is room for


def test_what_is_available_is_read_in_bytes() -> None:
    assert available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n") == 2 * 2**20
    assert available("MemTotal: 9 kB\n") is None


@pytest.mark.parametrize(("there", "expected"), [(None, CAP), (10**9, 8 * 10**8), (10**12, CAP)])
def test_room_is_a_share_of_what_is_free_and_never_more_than_the_cap(
    monkeypatch: pytest.MonkeyPatch, there: int | None, expected: int
) -> None:
    monkeypatch.setattr(memory, "free", lambda device: there)
    assert room("cpu") == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_peak_on_a_gpu() -> None:
    before = start("cuda")
    torch.ones(10**6, device="cuda")
    after = most("cuda")
    assert before is not None
    assert after is not None
    assert after - before >= 4 * 10**6


def test_the_peak_is_of_what_was_alive_at_once() -> None:
    def held() -> int | None:
        before = start("cpu")
        for _ in range(5):
            torch.ones(4 * 10**6)
        after = most("cpu")
        return None if before is None or after is None else after - before

    found = held()
    assert (found is not None) == (sys.platform == "linux")
    assert found is None or 15 * MB < found < 24 * MB


def test_the_cases_of_growth_are_ours_and_maths() -> None:
    for mode in (USUAL, LARGE):
        assert [a.case.n for a in mode.growth if OURS in a.ways] == list(mode.lengths)
        assert [a.case.n for a in mode.growth if MATH in a.ways] == list(mode.dense)
        assert len(set(mode.lengths)) >= 3
