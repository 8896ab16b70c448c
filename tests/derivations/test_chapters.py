"""Every chapter reads as a chapter does, and is a script; that it runs is in test_attack.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradderiv
from gradderiv.book import chapters, run
from gradderiv.book.library import cells

PATHS = chapters()

every_chapter = pytest.mark.parametrize("path", PATHS, ids=[p.stem for p in PATHS])
LINEAR = next(p for p in PATHS if p.stem.endswith("linear"))


@every_chapter
def test_a_chapter_is_prose_with_shapes(path: Path) -> None:
    text = [cell.source for cell in cells(path) if not cell.is_code]
    assert text[0].startswith(f"# {int(path.stem[:2])} ")
    assert "**Questions.**" in text[-1]
    assert any("×" in cell or "\\times" in cell for cell in text)


def test_chapters_are_numbered_without_a_gap() -> None:
    assert [int(p.stem[:2]) for p in PATHS] == list(range(1, len(PATHS) + 1))


def test_a_chapter_is_a_script() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    environment["PYTHONPATH"] = str(Path(gradderiv.__file__).parent.parent)
    out = subprocess.run(
        [sys.executable, str(LINEAR)], capture_output=True, encoding="cp1252", check=True, env=environment
    )
    assert "dW = X^T dY" in out.stdout


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    run(LINEAR)
    assert torch.get_num_threads() == before
