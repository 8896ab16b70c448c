"""The casebook: what it says is computed, and is so."""

from __future__ import annotations

import re

import pytest
import torch

from gradderiv.casebook import CASES, tell
from gradderiv.casebook import fused_layout as case
from gradderiv.cli import main
from gradderiv.errors import InputError


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_told_in_80_columns_and_the_same_twice(name):
    text = tell(name)
    assert text == tell(name)
    assert max(map(len, text.splitlines())) <= 80


def test_there_is_no_such_case():
    with pytest.raises(InputError, match="fused-layout"):
        tell("nothing")
    assert main(["casebook", "nothing"]) == 2


def test_the_command_lists_and_tells(capsys):
    assert main(["casebook"]) == 0
    assert "fused-layout" in capsys.readouterr().out
    assert main(["casebook", "fused-layout"]) == 0
    assert "interleaved" in capsys.readouterr().out


def test_the_two_readings_are_far_apart_and_the_text_says_by_how_much():
    layer, X = case.question()
    with torch.no_grad():
        fused = layer(X)
        q, manual = case.by_view(fused)[0], fused[..., : case.H * case.D]
    apart = float((q - manual).abs().max())
    assert apart > 1
    text = " ".join(tell("fused-layout").split())
    assert f"are {apart:.4g} apart" in text
    assert re.search(r"What the model computes is right for weights that are interleaved", text)
    assert re.search(r"chunk\(3\) is right for weights that are contiguous", text)
    assert "that is the head-last layout" in text


def test_another_seed_tells_the_same_of_other_numbers(monkeypatch):
    before = tell("fused-layout")
    monkeypatch.setattr(case, "question", lambda seed=1: _question(seed))
    after = tell("fused-layout")
    assert before != after
    assert re.sub(r"[\d.e-]+", "#", before).split() == re.sub(r"[\d.e-]+", "#", after).split()


_question = case.question
