"""The site: chapters as notebooks, folders that are replaced or left alone, and one small book, built."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from markdown_it import MarkdownIt
from mdit_py_plugins.amsmath import amsmath_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin

from gradderiv.book.library import cells, chapters
from gradderiv.book.mathml import FormulaError, mathml
from gradderiv.book.site import build, pages
from gradderiv.book.site.notebooks import ChapterError, Written, download, written
from gradderiv.cli import main
from gradderiv.errors import InputError

SMALL = Path(__file__).with_name("site") / "01_small.py"


def quiet(done: int, total: int, label: str) -> None:
    assert 0 <= done <= total


@pytest.fixture(scope="module")
def small() -> Written:
    return written(SMALL)


@pytest.fixture
def only_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "all_chapters", lambda: [SMALL])


def chapter(folder: Path, *code: str) -> Path:
    path = folder / "01_short.py"
    path.write_text(
        "# %% [markdown]\n# # 1 Short\n\n" + "\n".join(f"# %%\n{c}\n" for c in code), encoding="utf-8"
    )
    return path


# ---------------------------------------------------------------- notebooks


def test_outputs_stand_in_their_order(small: Written) -> None:
    first, derivation, drawing, given, _blank, _solution = [
        c for c in small.notebook.cells if c.cell_type == "code"
    ]
    assert [o.get("text") or o.data["text/plain"] for o in first.outputs] == [
        "before\n",
        "X W  n × e",
        "after\n",
    ]
    (shown,) = derivation.outputs
    assert set(shown.data) == {"text/html", "text/latex", "text/plain"}
    assert shown.data["text/latex"].startswith(r"\begin{align*}")
    (picture,) = drawing.outputs
    assert picture.data["image/svg+xml"].startswith("<?xml")
    assert drawing.metadata["mystnb"]["image"]["alt"] == "each query sees its own key"
    assert given.outputs == []
    assert len(small.chains) == 2


def test_an_exercise_is_asked_blank_and_its_solution_is_folded(small: Written) -> None:
    *_, asked, _given, blank, solution = small.notebook.cells
    assert asked.source == "### Exercise 1.1: The input (1 point)\n\nOnly $X$ moves."
    assert blank.source == "# your lines: line(EXPRESSION, REASON)"
    assert solution.source.startswith("line(inner(dY, X_dot @ W), MAP.moves)")
    assert "hide-cell" in solution.metadata.tags
    assert "linear_vjp" in solution.outputs[0].data["text/html"]  # the finished chain
    assert not any("SOLUTION" in c.source or "check_chain(" in c.source for c in small.notebook.cells)


def test_a_chapter_gives_the_same_notebook_each_time(small: Written) -> None:
    assert written(SMALL).notebook == small.notebook


def test_a_download_speaks_latex_and_installs(small: Written) -> None:
    notebook = download(small)
    nbformat.validate(notebook)
    assert "%pip install" in notebook.cells[1].source
    assert "\n> **A mistake.**\n>\n> The sign of $dW$.\n" in notebook.cells[0].source
    kinds = [set(o.data) for c in notebook.cells for o in c.get("outputs", ()) if "data" in o]
    assert kinds.count({"text/latex", "text/plain"}) == 3
    assert not any("text/html" in k for k in kinds)
    assert any("text/html" in o.get("data", ()) for c in small.notebook.cells for o in c.get("outputs", ()))


def test_a_chapter_that_stops_says_where(tmp_path: Path) -> None:
    path = chapter(tmp_path, "a = 1", "def f(x):\n    return 1 / x\n\n\nf(a - 1)")
    with pytest.raises(ChapterError) as error:
        written(path)
    text = str(error.value)
    assert text.startswith("chapter 01_short.py must run to its end; cell 3 stops in line 9\n")
    assert "ZeroDivisionError: division by zero" in text


def test_a_chapter_that_is_not_python_says_where(tmp_path: Path) -> None:
    with pytest.raises(ChapterError, match="cell 2 stops in line 6"):
        written(chapter(tmp_path, "\nfor"))


@pytest.mark.slow
@pytest.mark.parametrize("path", chapters(), ids=lambda p: p.stem)
def test_every_chapter_is_a_valid_notebook(path: Path) -> None:
    ran = written(path)
    nbformat.validate(ran.notebook)
    nbformat.validate(download(ran))
    for cell in ran.notebook.cells:
        for output in cell.get("outputs", ()):
            if "text/html" in output.get("data", ()):
                ElementTree.fromstring(output.data["text/html"])


def formulas(markdown: str) -> Iterator[str]:
    parser = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin).use(amsmath_plugin)
    for token in parser.parse(markdown):
        yield from (t.content for t in (token, *(token.children or ())) if "math" in t.type)


@pytest.mark.parametrize("path", chapters(), ids=lambda p: p.stem)
def test_every_formula_of_a_chapter_is_mathml(path: Path) -> None:
    for cell in cells(path):
        if not cell.is_code:
            for formula in formulas(cell.source):
                mathml(formula)


def test_formulas_are_found() -> None:
    text = "a $x$ and\n\n$$y$$\n\n\\begin{align*}\nz\n\\end{align*}\n\n| $a$ |\n|---|\n| $b$ |\n"
    assert [f.strip() for f in formulas(text)][:2] == ["x", "y"]
    assert {"a", "b"} < set(formulas(text))
    with pytest.raises(FormulaError):
        [mathml(f) for f in formulas(r"$\wrong{on purpose}$")]


# ---------------------------------------------------------------- folders


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match="other files stand there"):
        build.site(tmp_path, progress=quiet)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("make", [build.site, build.notebooks])
def test_what_stops_leaves_nothing(
    make: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "all_chapters", lambda: [chapter(tmp_path, "1 / 0")])
    (tmp_path / "out").mkdir()
    with pytest.raises(ChapterError):
        make(tmp_path / "out" / "book", progress=quiet)
    assert list((tmp_path / "out").iterdir()) == []


def test_notebooks_replace_those_of_before(tmp_path: Path, only_small: None) -> None:
    out = tmp_path / "notebooks"
    built = build.notebooks(out, progress=quiet)
    (out / "old.ipynb").touch()
    build.notebooks(out, ["small"], progress=quiet)
    assert sorted(p.name for p in out.iterdir()) == [build.MARK, "01_small.ipynb"]
    assert str(built).startswith(f"{out}: 1 chapter, 2 chains, 6 equalities checked, ")
    assert [p.name for p in tmp_path.iterdir()] == ["notebooks"]


def test_a_chapter_that_is_none() -> None:
    with pytest.raises(InputError, match="one of 01_notation, "):
        build.selected(["linaer"])
    assert [p.stem for p in build.selected(["softmax", "03_linear", "3"])] == [
        "03_linear",
        "04_softmax",
    ]


def test_without_the_extra_the_verb_says_how(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "furo" else find(name, *a)
    )
    assert main(["book", "build", "--out", str(tmp_path / "book")]) == 2
    assert "pip install 'gradderiv[book]'" in capsys.readouterr().err


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["book", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [p.stem for p in chapters()]
    assert "03_linear                  The linear map" in lines
    assert max(map(len, lines)) <= 80


# ---------------------------------------------------------------- one small book


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::DeprecationWarning")  # Sphinx's own
def test_a_small_book(tmp_path: Path, only_small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_modules", lambda package: ["linear"])
    out = tmp_path / "book"
    build.site(out, progress=quiet)
    page = (out / "01_small.html").read_text(encoding="utf-8")
    assert page.count("<details") == 7  # six marks, one folded solution
    assert 'alt="each query sees its own key"' in page
    assert 'href="#the-exercise"' in page
    assert "$" not in re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)
    for formula in re.findall(r"<math\b.*?</math>", page, re.S):
        ElementTree.fromstring(formula)
    assert (out / "index.html").is_file()
    assert "the left factor goes over" in (out / "laws.html").read_text(encoding="utf-8")
    assert "dW = Xᵀ dY" in (out / "reference" / "linear.html").read_text(encoding="utf-8")
    notebook = next((out / "_downloads").rglob("01_small.ipynb"))
    nbformat.validate(nbformat.read(notebook, as_version=4))
    loaded = [
        url
        for file in out.rglob("*.html")
        for url in re.findall(r'(?:src|<link[^>]* href)="([^"]+)"', file.read_text(encoding="utf-8"))
    ]
    assert loaded
    assert not [url for url in loaded if "//" in url]
