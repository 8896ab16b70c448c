"""Pictures: drawn when somebody looks, with words for those who do not see them."""

from __future__ import annotations

import re
import sys
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from gradderiv.book.layout import columns
from gradderiv.book.pictures import heat, pattern, picture
from gradderiv.errors import InputError

P = torch.tensor([[0.25, 0.5, 0.25], [1.0, 0.0, -3.0]])
ALT = (
    "two rows of probabilities, and a long sentence about what one sees in them when one looks at the picture"
)


def texts(svg: str) -> set[str]:
    """What is written in a drawing: matplotlib leaves it in comments beside the outlines."""
    return {t.strip() for t in re.findall(r"<!--(.*?)-->", svg, re.S)}


def test_a_heat_map_is_a_drawing_with_its_numbers() -> None:
    shown = heat({"P": P, "dS": P.mT}, alt=ALT, rows="query", columns="key", cuts=2)
    svg = shown.svg()
    ElementTree.fromstring(svg)
    assert {".25", ".50", "1", "0", "−3", "query", "key"} <= texts(svg)
    assert ALT in svg
    assert svg == shown.svg()
    assert set(shown._repr_mimebundle_()) == {"image/svg+xml", "text/plain"}


def test_a_terminal_reads_the_words() -> None:
    lines = str(heat({"P": P}, alt=ALT)).splitlines()
    assert " ".join(lines) == f"[picture: {ALT}]"
    assert all(columns(line) <= 80 for line in lines)


def test_many_entries_bear_no_numbers() -> None:
    assert not {".50"} & texts(heat({"P": torch.full((15, 15), 0.5)}, alt=ALT).svg())
    assert not {".50"} & texts(heat({"P": torch.full((2, 2), 0.5)}, alt=ALT, values=False).svg())


def test_zeros_and_infinities_have_a_colour_scale() -> None:
    for x in (torch.zeros(2, 2), torch.tensor([[1.0, -torch.inf]])):
        ElementTree.fromstring(heat({"S": x}, alt=ALT).svg())


def test_a_pattern_says_its_sizes() -> None:
    blocks = torch.block_diag(torch.ones(4, 3), torch.ones(4, 3))
    figure = pattern({r"\mathcal{V}": blocks}, alt=ALT, height=4, width=3).figure()
    (axis,) = figure.axes
    assert axis.get_xlabel() == r"$8 \times 6$"
    assert len(axis.lines) == 2  # one cut each way


def test_a_picture_needs_words_and_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="say in a sentence what one sees"):
        picture(lambda figure: None, alt=" ")
    with pytest.raises(InputError, match=r"pass one matrix of it, as P\[0\]"):
        heat({"P": P[None]}, alt=ALT)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pip install 'gradderiv"):
        heat({"P": P}, alt=ALT).svg()
    assert str(heat({"P": P}, alt=ALT))  # the words need nothing


def test_anything_can_be_drawn() -> None:
    def draw(figure: Any) -> None:
        figure.subplots().plot([1, 2], label="a line")

    ElementTree.fromstring(picture(draw, alt=ALT).svg())


def test_a_wide_picture_keeps_its_proportions() -> None:
    wide = torch.ones(29, 29)
    three, alone = (pattern({str(i): wide for i in range(n)}, alt=ALT).figure() for n in (3, 1))
    assert three.get_figwidth() == 9
    assert alone.get_figwidth() < 9
    ratio = three.get_figwidth() / three.get_figheight() / (alone.get_figwidth() / alone.get_figheight())
    assert 2.5 < ratio < 3.5
