"""The verbs: a file to answer in, its verdict, the exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gradderiv.book.exercises import exercises
from gradderiv.cli import main

CHAPTER = Path(__file__).with_name("05_practice.py")
ASKED = {e.id: e for e in exercises(CHAPTER)}
OWN = ["--chapter", str(CHAPTER)]


def started(id: str, folder: Path) -> Path:
    file = folder / f"{id}.py"
    assert main(["exercise", "start", id, "--out", str(file), *OWN]) == 0
    return file


@pytest.mark.parametrize("id", ASKED)
def test_a_started_file_is_empty_and_solved_it_passes(
    id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, e = started(id, tmp_path), ASKED[id]
    text = file.read_text(encoding="utf-8")
    assert all(f"# {line}".rstrip() in text for line in e.text.source.splitlines())
    assert not any(line.strip() in text for line in filter(str.strip, e.solution.splitlines()))
    assert main(["exercise", "check", str(file), *OWN]) == 1
    assert f"0 of {e.points} points" in capsys.readouterr().out
    assert e.blank in text
    file.write_text(text.replace(e.blank, e.answer.source), encoding="utf-8")
    assert main(["exercise", "check", str(file), *OWN]) == 0
    assert f"total: {e.points} of {e.points} points" in capsys.readouterr().out


def test_a_file_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = started("5.1", tmp_path)
    file.write_text("mine", encoding="utf-8")
    assert main(["exercise", "start", "5.1", "--out", str(file), *OWN]) == 2
    assert "exists" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == "mine"


def test_the_file_is_named_after_the_exercise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["exercise", "start", "5.2", *OWN]) == 0
    assert (tmp_path / "exercise_5_2.py").is_file()


def test_several_files_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [started(id, tmp_path) for id in ("5.1", "5.2")]
    text = files[1].read_text(encoding="utf-8")
    files[1].write_text(text.replace(ASKED["5.2"].blank, ASKED["5.2"].answer.source), encoding="utf-8")
    out = tmp_path / "out.json"
    assert main(["exercise", "check", *map(str, files), "--json", str(out), *OWN]) == 1
    assert "total: 2 of 6 points" in capsys.readouterr().out
    record = json.loads(out.read_text(encoding="utf-8"))
    assert (record["schema_version"], record["points"], record["of"]) == (1, 2, 6)
    assert [v["right"] for v in record["verdicts"]] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["start", "9.9", *OWN], "'9.9'; there are 5.1"),
        (["check", "nowhere.py", *OWN], "nowhere.py"),
        (["check", str(CHAPTER), *OWN], "says which exercise it answers"),
        (["list", "--chapter", "nowhere.py"], "no such file"),
        (["start", "5.1", "--out", "nowhere/x.py", *OWN], "nowhere/x.py"),
    ],
)
def test_a_wrong_call(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exercise", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("encode", [
    lambda text: b"\xef\xbb\xbf" + text.encode(), lambda text: text.replace("\n", "\r\n").encode(),
], ids=["a byte order mark", "CRLF"])  # fmt: skip
def test_a_file_of_another_editor(encode: Callable[[str], bytes], tmp_path: Path) -> None:
    file = tmp_path / "my answer, é.txt"
    file.write_bytes(encode(f"# gradderiv exercise 5.1\n{ASKED['5.1'].answer.source}\n"))
    assert main(["exercise", "check", str(file), *OWN]) == 0


@pytest.mark.parametrize(("content", "words"), [
    ("# gradderiv exercise 5.1\n# é".encode("latin-1"), "save it as UTF-8"),
    ("# gradderiv exercise 5.1\n".encode("utf-16"), "save it as UTF-8"),
    (b"# gradderiv exercise 5.1\n# gradderiv exercise 5.2\n", "keep them apart"),
])  # fmt: skip
def test_a_file_that_is_no_answer(
    content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(content)
    assert main(["exercise", "check", str(file), *OWN]) == 2
    assert words in capsys.readouterr().err


def test_an_undecided_answer_is_neither_right_nor_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.py"
    answer = (
        "return P * (dP - (P * dP).sum(-1, keepdim=True)) * torch.exp(P + dP) / torch.exp(P) / torch.exp(dP)"
    )
    file.write_text(
        f"# gradderiv exercise 5.2\ndef softmax_backward(dP, P):\n    {answer}\n", encoding="utf-8"
    )
    assert main(["exercise", "check", str(file), *OWN]) == 3
    assert "undecided" in capsys.readouterr().out


def test_the_lines_of_errors_are_those_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = started("5.1", tmp_path)
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([*lines, "line(inner(dO"]), encoding="utf-8")
    assert main(["exercise", "check", str(file), *OWN]) == 1
    assert f"line {len(lines) + 1}: SyntaxError" in capsys.readouterr().out


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exercise", "list", *OWN]) == 0
    out = capsys.readouterr().out
    assert "5 exercises, 16 points" in out
    assert all(e.title in out and e.kind in out for e in ASKED.values())


def test_an_author_tries_a_chapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = CHAPTER.read_text(encoding="utf-8")
    text = text[: text.index("# %% [markdown]\n# ## Softmax")]
    chapter = tmp_path / "05_short.py"
    chapter.write_text(text, encoding="utf-8")
    assert main(["exercise", "try", str(chapter)]) == 0
    assert "1 exercise, 4 answers tried, 0 not as they should be" in capsys.readouterr().out
    other = text.replace('"""the new side is -1 × the one before"""', '"""a transpose"""')
    assert other != text
    chapter.write_text(other, encoding="utf-8")
    assert main(["exercise", "try", str(chapter)]) == 1
    assert "exercise 5.1: sign: the verdict does not say «a transpose»" in capsys.readouterr().out


def test_help_says_that_files_are_executed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exercise", "check", "--help"]) == 0
    assert "EXECUTED" in capsys.readouterr().out
