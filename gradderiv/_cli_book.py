"""``gradderiv book``: the chapters as a site, or as notebooks."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from gradderiv.errors import InputError, message

book = typer.Typer(help="The book: derivations in which every line is checked.", no_args_is_help=True)

NEEDED = ("nbformat", "latex2mathml", "matplotlib", "sphinx", "myst_nb", "furo")
CHAPTER = typer.Option(help="Only this chapter, as 03_linear, linear or 3; may be repeated.")


@book.command("list")
def list_chapters() -> None:
    """The chapters and their titles."""
    from gradderiv.book.library import cells, chapters

    for path in chapters():
        title = cells(path)[0].source.splitlines()[0].lstrip("# 0123456789")
        typer.echo(f"{path.stem:<27}{textwrap.shorten(title, 53, placeholder=' …')}")


@book.command()
def build(
    out: Annotated[
        Path, typer.Option(help="The folder of the pages; a book that stands there is replaced.")
    ] = Path("book"),
    chapter: Annotated[list[str] | None, CHAPTER] = None,
) -> None:
    """Run the chapters and write them as pages that need no network: OUT/index.html."""
    _require_extra()
    from gradderiv.cli import _progress

    with _progress("importing torch") as step:
        from gradderiv.book.site.build import site

        built = site(out, chapter, progress=step)
    typer.echo(str(built._replace(out=out / "index.html")))


@book.command()
def notebooks(
    out: Annotated[Path, typer.Option(help="The folder of the notebooks.")],
    chapter: Annotated[list[str] | None, CHAPTER] = None,
) -> None:
    """Run the chapters and write them as notebooks, for Jupyter and Colab."""
    _require_extra()
    from gradderiv.cli import _progress

    with _progress("importing torch") as step:
        from gradderiv.book.site.build import notebooks as write

        built = write(out, chapter, progress=step)
    typer.echo(str(built))


def _require_extra() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            message(
                "building the book needs Sphinx and what reads notebooks",
                f"no {', '.join(missing)} in this Python",
                "these come with an extra",
                "pip install 'gradderiv[book]'",
            )
        )
