"""The comparison: its verdict does not depend on the scale, and never says pass where nothing was shown."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradderiv.checks.compare import compare

SHAPES = st.sampled_from([(), (1,), (7,), (3, 5), (2, 3, 5)])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, derandomize=True, database=None)
@given(
    shape=SHAPES,
    seed=st.integers(0, 999),
    error=st.sampled_from([0.0, 0.5, 0.99, 1.01, 3.0]),
    size=st.sampled_from([0.01, 0.9, 1.5, 1e6]),
    exponent=st.integers(-400, 400),
    sign=st.sampled_from([-1.0, 1.0]),
    zero=st.booleans(),
)
def test_a_verdict_is_scale_free(
    shape: tuple[int, ...], seed: int, error: float, size: float, exponent: int, sign: float, zero: bool
) -> None:
    """Value, reference and tolerance scaled together: the same verdict, entry and relative error."""
    tolerance = normal(seed, *shape).abs() + 0.1
    reference = size * tolerance * normal(seed + 1, *shape).sign()
    value = reference + error * tolerance * (normal(seed + 2, *shape) > 0)
    scale = sign * 2.0**exponent
    before = compare(value, reference, tolerance, zero=zero)
    after = compare(scale * value, scale * reference, abs(scale) * tolerance, zero=zero)
    assert (after.verdict, after.worst_index) == (before.verdict, before.worst_index)
    assert after.max_rel_error == before.max_rel_error
    assert after.max_abs_error == abs(scale) * before.max_abs_error
    assert after.tolerance == abs(scale) * before.tolerance
    moved = bool((value != reference).any())
    expected = "fail" if error > 1 and moved else "pass" if zero or size > 1 else "vacuous"
    assert before.verdict == expected


def test_a_typed_tolerance_is_not_scale_free() -> None:
    """The wrong twin: with rtol and atol the verdict on one and the same mistake depends on the unit."""
    reference = normal(0, 3, 5)
    value = 1.5 * reference
    verdicts = {torch.allclose(s * value, s * reference) for s in (1.0, 1e-12)}
    assert verdicts == {True, False}
    assert {compare(s * value, s * reference, torch.tensor(s * 1e-9)).verdict for s in (1.0, 1e-12)} == {
        "fail"
    }


def test_the_limit_itself_is_allowed() -> None:
    reference, tolerance = torch.tensor([1.0, 2.0]), torch.tensor([0.25, 0.25])
    assert compare(reference + 0.25, reference, tolerance).verdict == "pass"
    assert compare(reference + 0.26, reference, tolerance).verdict == "fail"


def test_each_entry_has_its_own_tolerance() -> None:
    reference, tolerance = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 1e-6])
    assert compare(torch.tensor([1.4, 1.0]), reference, tolerance).verdict == "pass"
    found = compare(torch.tensor([1.0, 1.4]), reference, tolerance)
    assert (found.verdict, found.worst_index) == ("fail", (1,))


def test_the_worst_entry_is_the_one_that_exceeds_its_tolerance_most() -> None:
    reference, tolerance = torch.ones(2, 2), torch.tensor([[1e-3, 1e-6], [1e-9, 1e-3]])
    value = reference + torch.tensor([[0.5, 1e-3], [1e-5, 0.0]])
    found = compare(value, reference, tolerance)
    assert found.worst_index == (1, 0)
    assert found.max_abs_error == pytest.approx(0.5)
    exact = compare(
        value, reference, torch.zeros(2, 2)
    )  # every wrong entry is infinitely wrong: the largest error
    assert exact.worst_index == (0, 0)


# ---------------------------------------------------------------- vacuous


def test_a_reference_below_its_tolerance_shows_nothing() -> None:
    tolerance = torch.full((3, 5), 1e-9)
    small = 0.9e-9 * normal(0, 3, 5).sign()
    for value in (small, torch.zeros(3, 5), -0.05 * small):
        found = compare(value, small, tolerance)
        assert found.verdict == "vacuous"
        assert "every entry is below its own rounding error (largest 9.0e-10)" in found.detail
    one = small.clone()
    one[1, 2] = 1e-3
    shown = compare(one, one, tolerance)
    assert (shown.verdict, shown.detail) == ("pass", "1 of 15 entries above their rounding error")


def test_a_wrong_value_fails_even_where_the_reference_shows_nothing() -> None:
    assert compare(torch.ones(3), torch.zeros(3), torch.full((3,), 0.5)).verdict == "fail"


def test_a_known_zero_is_tested_as_zero() -> None:
    zeros, tolerance = torch.zeros(4), torch.full((4,), 1e-12)
    assert compare(zeros, zeros, tolerance, zero=True).verdict == "pass"
    assert compare(zeros + 1e-13, zeros, tolerance, zero=True).verdict == "pass"
    assert compare(zeros + 1e-11, zeros, tolerance, zero=True).verdict == "fail"
    assert compare(zeros, zeros, tolerance).verdict == "vacuous"


# ---------------------------------------------------------------- what is not a number


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tolerance", [1e-9, math.inf, math.nan])
def test_a_value_that_is_not_finite_is_wrong_whatever_the_tolerance(bad: float, tolerance: float) -> None:
    reference = normal(0, 3, 5)
    value = reference.clone()
    value[2, 1] = bad
    found = compare(value, reference, torch.full((3, 5), tolerance))
    assert (found.verdict, found.worst_index, found.max_abs_error) == ("fail", (2, 1), math.inf)
    assert "NaN or infinite" in found.detail
    assert compare(value, reference, torch.full((3, 5), tolerance), zero=True).verdict == "fail"


def test_a_reference_that_is_not_finite_is_never_matched() -> None:
    reference = torch.tensor([1.0, math.nan])
    assert compare(torch.ones(2), reference, torch.ones(2)).verdict == "fail"
    assert compare(reference, reference, torch.ones(2)).verdict == "fail"


def test_a_tolerance_that_is_not_a_number_allows_nothing_to_be_said() -> None:
    found = compare(torch.ones(3), torch.ones(3), torch.full((3,), math.nan))
    assert (found.verdict, found.tolerance) == ("vacuous", math.inf)


# ---------------------------------------------------------------- shapes and types


@pytest.mark.parametrize(
    ("came", "right"), [((5, 3), (3, 5)), ((5,), (3, 5)), ((1, 5), (3, 5)), ((), (1,)), ((3, 1), (3, 5))]
)
def test_the_shape_comes_first(came: tuple[int, ...], right: tuple[int, ...]) -> None:
    """Also where one would broadcast to the other: all entries are equal."""
    found = compare(torch.ones(came), torch.ones(right), torch.full(right, 0.5))
    assert found.verdict == "fail"
    assert found.detail == f"the shape is {came}, should be {right}"
    assert found.worst_index is None
    assert found.max_abs_error == math.inf


def test_a_narrow_value_is_compared_in_the_wider_type() -> None:
    reference = torch.full((3,), 1 / 3, dtype=torch.float64)
    rounded = reference.to(torch.bfloat16)
    assert compare(rounded, reference, torch.full((3,), 1e-3)).verdict == "pass"
    assert compare(rounded, reference, torch.full((3,), 1e-6)).verdict == "fail"
    assert compare(rounded, rounded.double(), torch.full((3,), 1e-12)).verdict == "pass"


def test_nothing_is_changed_and_history_is_no_hindrance() -> None:
    value, reference, tolerance = normal(0, 3, 5).requires_grad_(), normal(0, 3, 5), torch.tensor(1e-9)
    assert compare(value, reference, tolerance).verdict == "pass"
    assert torch.equal(reference, normal(0, 3, 5))
    assert float(tolerance) == float(torch.tensor(1e-9))
