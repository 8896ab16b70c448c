"""The text that the examples learn."""

from __future__ import annotations

from gradderiv.text import prose


def test_the_prose_is_shipped_and_readable():
    text = prose()
    assert 6_000 <= len(text) <= 10_000
    assert text.isascii()
    assert text.endswith("train.\n")
    assert max(map(len, text.splitlines())) <= 88
    assert "\t" not in text
    assert "  " not in text


def test_the_prose_says_what_it_promises():
    text = " ".join(prose().split())
    for subject in (
        "product rule",
        "softmax",
        "block diagonal",
        "tolerance",
        "modulo a large prime",
        "dual numbers",
    ):
        assert subject in text
