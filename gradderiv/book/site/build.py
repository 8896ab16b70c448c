"""From the chapters to a folder of pages, or of notebooks. Nothing half-written stays."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat

from gradderiv.book.library import chapters as all_chapters
from gradderiv.book.site import pages, sphinx
from gradderiv.book.site.notebooks import Written, download, written
from gradderiv.errors import GradderivError, InputError, message

MARK = ".gradderiv-book"  # stands in a folder that was built, and may be built again

Progress = Callable[[int, int, str], None]


class BuildError(GradderivError):
    """Pages that Sphinx makes only with warnings."""


class Built(NamedTuple):
    """What was built, and in how many seconds."""

    out: Path
    chapters: int
    chains: int
    equalities: int
    seconds: float

    def __str__(self) -> str:
        counted = ((self.chapters, "chapter"), (self.chains, "chain"))
        parts = ", ".join(f"{n} {what}{'s' * (n != 1)}" for n, what in counted)
        return f"{self.out}: {parts}, {self.equalities} equalities checked, {self.seconds:.0f} s"


def site(out: Path, names: list[str] | None = None, *, progress: Progress) -> Built:
    """Run the chapters and write them as pages.

    Args:
        out: the folder; a book that stands there is replaced.
        names: only these chapters, as ``03_linear``, ``linear`` or ``3``.
        progress: told steps done, steps in all and what is being done.

    Raises:
        ChapterError: a chapter stops before its end.
        FormulaError: a formula that is not MathML after conversion.
        BuildError: Sphinx warns.
        InputError: ``out`` is not a book, or a chapter is not one of them.
    """
    start, paths = time.perf_counter(), selected(names)
    with _in_place_of(out, "index.html") as made, tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        (source / "notebooks").mkdir(parents=True)
        ran = _run(paths, progress)
        for chapter in ran:
            _write(download(chapter), source / "notebooks" / f"{chapter.name}.ipynb")
            _write(_with_link(chapter), source / f"{chapter.name}.ipynb")
        pages.write(source, ran)
        count = 2 * sum(file.suffix in (".md", ".rst", ".ipynb") for file in source.rglob("*.*"))
        done = iter(range(10 * count))
        warnings = sphinx.build(
            source, made, page=lambda name: progress(min(next(done), count), count, f"page {name}")
        )
        if warnings:
            raise BuildError(
                message(
                    "the pages must build without a warning",
                    "\n         ".join(warnings),
                    "a link, a docstring or a chapter's markdown that Sphinx does not read",
                    "mend the line that is named",
                )
            )
        for left in (".buildinfo", "objects.inv"):
            (made / left).unlink(missing_ok=True)
        shutil.rmtree(made / "_sources", ignore_errors=True)  # which Sphinx leaves empty
    return Built(out, *pages.counts(ran), time.perf_counter() - start)


def notebooks(out: Path, names: list[str] | None = None, *, progress: Progress) -> Built:
    """Run the chapters and write them as notebooks, for Jupyter and Colab."""
    start, paths = time.perf_counter(), selected(names)
    with _in_place_of(out, "*.ipynb") as made:
        ran = _run(paths, progress)
        for chapter in ran:
            _write(download(chapter), made / f"{chapter.name}.ipynb")
    return Built(out, *pages.counts(ran), time.perf_counter() - start)


def selected(names: list[str] | None) -> list[Path]:
    """The chapters of these names, all when none is named."""
    paths = all_chapters()
    if not names:
        return paths
    known = {alias: path for path in paths for alias in (path.stem, path.stem[3:], path.stem[:2].lstrip("0"))}
    for name in names:
        if name not in known:
            listed = ", ".join(path.stem for path in paths)
            asked = "a chapter is named by its file, with or without its number"
            raise InputError(message(asked, name, "it is not one of the book's", f"one of {listed}"))
    return sorted({known[name] for name in names})


def _run(paths: list[Path], progress: Progress) -> list[Written]:
    ran = []
    for i, path in enumerate(paths):
        progress(i, len(paths), f"chapter {path.stem}")
        ran.append(written(path))
    return ran


def _with_link(chapter: Written) -> nbformat.NotebookNode:
    notebook = nbformat.from_dict(chapter.notebook)
    heading, _, rest = notebook.cells[0].source.partition("\n")
    link = f"{{download}}`This chapter as a notebook <notebooks/{chapter.name}.ipynb>`"
    notebook.cells[0].source = f"{heading}\n\n{link}\n{rest}"
    return notebook


def _write(notebook: nbformat.NotebookNode, path: Path) -> None:
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


@contextlib.contextmanager
def _in_place_of(out: Path, sign: str) -> Iterator[Path]:
    """A new folder beside ``out`` that takes its place at the end, if the end is reached."""
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            message(
                "a book is built into a new folder, or in place of one that was built before",
                f"{out} is neither",
                "other files stand there, and building would delete them",
                "name another folder with --out",
            )
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield made
        (made / MARK).write_text("built by gradderiv book; it may be deleted and built again\n")
        made.chmod(0o755)
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
            out.rename(old / "book")
            made.rename(out)
            shutil.rmtree(old)
        else:
            made.rename(out)
    finally:
        shutil.rmtree(made, ignore_errors=True)
