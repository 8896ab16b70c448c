"""What the prose of two chapters says of the numbers that they print."""

from __future__ import annotations

import re

import pytest

from gradderiv.book import chapters, run


def printed(name: str) -> str:
    return run(next(p for p in chapters() if p.stem.endswith(name))).printed


@pytest.fixture(scope="module")
def proving() -> str:
    return printed("proving_a_gradient")


def test_every_verdict_is_the_one_that_the_prose_explains(proving: str) -> None:
    found = dict(re.findall(r"^(\S.*?) +(proved|refuted|inconclusive)\b", proving, re.M))
    proved = ["dy y", "P ∘ (dP − rowsum(P ∘ dP))", "x / root mean square", "log Σ exp(S − m) + m"]
    proved += ["scale 1/d_k, by itself", "softmax without the shift"]
    refuted = ["dy exp(a)", "P ∘ (1 − P) ∘ dP", "scale 1/d_k, with a reference"]
    inconclusive = ["dy exp(a) exp(b)", "√(3u), by way of √u", "the maximum itself"]
    verdicts = {"proved": proved, "refuted": refuted, "inconclusive": inconclusive}
    assert found == {what: verdict for verdict, all_of in verdicts.items() for what in all_of}
    assert "two scores of 800: [nan, nan]" in proving


def test_differences_fail_where_the_prose_says_so() -> None:
    checking = printed("checking_a_gradient")
    errors = [(float(a), float(b)) for a, b in re.findall(r"^h = \S+ +(\S+) +(\S+)$", checking, re.M)]
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
