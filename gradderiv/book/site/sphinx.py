"""Sphinx: the renderer that writes formulas as MathML, and docstrings made ready for it, and the call."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradderiv._version import __version__
from gradderiv.book.html import PUNCTUATION
from gradderiv.book.mathml import FormulaError, mathml

SECTIONS = {"Args:", "Raises:", "Returns:", "Attributes:", "Yields:"}


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("autodoc-process-docstring", _literal, priority=400)  # before napoleon reads the sections
    app.connect("autodoc-skip-member", _skip)
    app.connect("doctree-resolved", _tie)
    return {"version": __version__, "parallel_read_safe": True, "parallel_write_safe": True}


def _inline(writer: Any, node: Any) -> None:
    writer.body.append(_formula(writer, node, block=False))
    _done()


def _block(writer: Any, node: Any) -> None:
    writer.body.append(f'<div class="formula display">{_formula(writer, node, block=True)}</div>')
    _done()


def _done() -> None:
    from docutils.nodes import SkipNode

    raise SkipNode


def _formula(writer: Any, node: Any, *, block: bool) -> str:
    try:
        return mathml(node.astext().strip(), block=block)
    except FormulaError as error:
        raise FormulaError(f"{writer.builder.current_docname}: {error}") from None


def _tie(app: Any, doctree: Any, name: str) -> None:
    """No line ends between a formula and the comma after it."""
    from docutils import nodes

    for formula in list(doctree.findall(nodes.math)):
        place = formula.parent.index(formula) + 1
        after = formula.parent[place] if place < len(formula.parent) else None
        if isinstance(after, nodes.Text) and (sign := re.match(PUNCTUATION, after.astext())):
            tied = nodes.inline("", "", formula.deepcopy(), nodes.Text(sign[0]), classes=["tied"])
            formula.parent[place] = nodes.Text(after.astext()[sign.end() :])
            formula.parent[place - 1] = tied


def _literal(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Indented formulas and aligned columns of a docstring stay as they were typed."""
    out: list[str] = []
    paragraphs = re.split(r"\n[ \t]*\n", "\n".join(lines).strip("\n"))
    for paragraph in paragraphs:
        rows = paragraph.split("\n")
        after_colons = bool(out) and out[-2].endswith("::")
        if rows[0].strip() in SECTIONS or after_colons or paragraph.lstrip().startswith((">>>", ".. ", "- ")):
            out += [*rows, ""]
        elif all(row.startswith("  ") for row in rows) or any(re.search(r"\S {2,}\S", row) for row in rows):
            out += ["::", "", *(f"    {row}" for row in rows), ""]
        else:
            out += [*(_escaped(row) for row in rows), ""]
    lines[:] = out


def _escaped(row: str) -> str:
    """Stars, bars and trailing underscores of formulas are not markup."""
    parts = re.split(r"(``.+?``|:\w+:`.+?`|`[^`]+`)", row)
    return "".join(
        p if i % 2 else re.sub(r"([*|]|(?<=\w)_(?=\W|$))", r"\\\1", p) for i, p in enumerate(parts)
    )


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """The fields of a NamedTuple are named by its docstring."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def build(source: Path, out: Path, *, page: Callable[[str], None]) -> list[str]:
    """Make pages of the sources; ``page`` is told the name of each. Returns Sphinx's warnings."""
    import io

    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    warnings = io.StringIO()
    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            source,
            Path(__file__).parent,
            out,
            source / ".doctrees",
            "html",
            status=None,
            warning=warnings,
            freshenv=True,
        )
        app.connect("source-read", lambda app, name, text: page(name))
        app.connect("html-page-context", lambda app, name, *rest: page(name))
        app.build()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", warnings.getvalue())
    return [line.replace(f"{source}/", "") for line in plain.splitlines() if line.strip()]
