"""Exercises are written exactly so, or refused with file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradderiv.book.exercises import all_exercises, exercise_cells, exercises, find
from gradderiv.errors import InputError

CHAPTER = Path(__file__).with_name("05_practice.py")

TEXT = '# %% [markdown] exercise="1.1" kind="function" points=2 title="T"'
SOUND = f"""\
# %% [markdown]
# # 1 One

{TEXT}
# Write f.

# %% given="1.1"
one = 1

# %% answer="1.1"
def f(S):
    ### BEGIN SOLUTION
    return S
    ### END SOLUTION

# %% checker="1.1"
check_functions()
"""


def written(tmp_path: Path, text: str, name: str = "01_one.py") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_sound_exercise(tmp_path: Path) -> None:
    (e,) = exercises(written(tmp_path, SOUND))
    assert (e.id, e.kind, e.points, e.title) == ("1.1", "function", 2, "T")
    assert e.text.source == "Write f."
    assert [cell.source for cell in e.given] == ["one = 1"]
    assert e.solution == "    return S\n"
    assert e.blank == 'def f(S):\n    raise NotImplementedError("your lines")'


BEGIN, END = "    ### BEGIN SOLUTION\n", "    ### END SOLUTION\n"

# what is changed, into what, the line that is named, the words
WRONG = {
    "no begin": (BEGIN, "", 13, "unbalanced"),
    "no end": (END, "", 12, "END SOLUTION is missing"),
    "twice begun": (BEGIN, BEGIN * 2, 13, "nested"),
    "twice ended": (END, END * 2, 15, "unbalanced"),
    "misspelt": ("### BEGIN SOLUTION", "### BEGIN SOLUTON", 12, "misspelt"),
    "in small letters": ("### BEGIN SOLUTION", "### begin solution", 12, "misspelt"),
    "two hashes": ("### END SOLUTION", "## END SOLUTION", 14, "misspelt"),
    "words behind it": ("### END SOLUTION", "### END SOLUTION of f", 14, "misspelt"),
    "no solution": ("    return S\n", "", 10, "has no solution"),
    "a comment as solution": ("return S", "# return S", 10, "has no solution"),
    "marker in given": ("one = 1", "### BEGIN SOLUTION\none = 1", 8, "outside of an answer cell"),
    "no text": ("# Write f.\n", "", 4, "has no text"),
    "text that is code": ("[markdown] exercise", "exercise", 4, "has no text"),
    "no kind": (' kind="function"', "", 4, "kind=''"),
    "unknown kind": ('kind="function"', 'kind="funktion"', 4, "one of chain, function, mistake"),
    "no points": (" points=2", "", 4, "points=''"),
    "no whole points": ("points=2", 'points="2.5"', 4, "points='2.5'"),
    "points 0": ("points=2", "points=0", 4, "points='0'"),
    "unknown word": ('title="T"', 'titel="T"', 4, "unknown, misspelt"),
    "no quotation marks": ('exercise="1.1"', "exercise=1.1", 4, "not in quotation marks"),
    "no answer": ('# %% answer="1.1"', "# %%", 4, "has no cells answer"),
    "no checker": ('# %% checker="1.1"', "# %%", 4, "has no cells checker"),
    "two answers": ('# %% given="1.1"', '# %% answer="1.1"', 4, "has 2 cells answer"),
    "wrong order": ('# %% given="1.1"\none = 1\n\n', "", 0, ""),
    "checker that checks nothing": ("check_functions()", "print()", 16, "checks nothing"),
    "another kind's checker": ("check_functions()", "check_chain()", 16, "does not call check_functions"),
    "cell of another id": ('# %% given="1.1"', '# %% given="1.2"', 4, "has no cells answer"),
    "markdown answer": ('# %% answer="1.1"', '# %% [markdown] answer="1.1"', 10, "[markdown] where code belongs"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_exactly_so_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    old, new, line, words = WRONG[name]
    assert SOUND.count(old) >= 1
    path = written(tmp_path, SOUND.replace(old, new, 1))
    if not words:
        assert exercises(path)  # a given cell may be missing
        return
    with pytest.raises(InputError) as raised:
        exercises(path)
    assert words in str(raised.value)
    assert f"{path}:{line}:" in str(raised.value)


def test_cells_in_another_order_are_refused(tmp_path: Path) -> None:
    given = '# %% given="1.1"\none = 1\n\n'
    with pytest.raises(InputError, match="this order: exercise, given, answer, checker"):
        exercises(written(tmp_path, SOUND.replace(given, "") + "\n" + given))


def test_one_id_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape("a second exercise 1.1")):
        exercises(written(tmp_path, SOUND + "\n# %%\n\n" + SOUND))
    paths = [written(tmp_path, SOUND, "01_one.py"), written(tmp_path, SOUND, "02_two.py")]
    with pytest.raises(InputError, match=re.escape("01_one.py has it, too")):
        all_exercises(paths)


def test_an_id_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"'9\.9'; there are 5\.1, 5\.2"):
        find("9.9", [CHAPTER])


def test_the_parts_for_whoever_renders_the_chapter() -> None:
    cells = exercise_cells(CHAPTER)
    roles = [c.role for c in cells if c.exercise and c.exercise.id == "5.4"]
    assert roles == ["text", "given", "answer", "checker"]
    assert all((c.exercise is None) == (c.role == "") for c in cells)
    lines = CHAPTER.read_text(encoding="utf-8").splitlines()
    for c in cells:
        first = c.cell.source.splitlines()[0]
        assert lines[c.cell.line - 1].removeprefix("# ") == first or lines[c.cell.line - 1] == first


def test_no_blank_shows_a_line_of_its_solution() -> None:
    for e in all_exercises([CHAPTER]):
        for line in filter(str.strip, e.solution.splitlines()):
            assert line.strip() not in e.blank
