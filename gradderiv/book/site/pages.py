"""What stands beside the chapters: the contents, the reference, the guide, the laws."""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
from pathlib import Path

import torch

import gradderiv
from gradderiv._version import __version__
from gradderiv.book.html import inline, tex
from gradderiv.book.laws import LAWS
from gradderiv.book.reasoning.reasons import Law, Linearity
from gradderiv.book.site.notebooks import Written

REPOSITORY_FILE = re.compile(r"\[(`[^`]+`)\]\((?!https?:|#)[^)]+\)")

FRONT = """# The gradient of attention

Derivations of matrix calculus, through attention, in which **no line is unchecked**. A chapter derives the gradient of one
rule, line by line, each with its reason.

Every line of a derivation is a program. The same object prints itself and is evaluated, and two questions are asked of it.
Is it *true*? Both sides are evaluated exactly, modulo random primes, at a random point. Does it *follow*? The line before
it is rewritten by the law that the line names, and by no other. A line that fails stops the build. The last line of a
derivation is compared with the function that ships in `gradderiv.rules`. A mark
<span class="example-mark">✓</span> opens to the evidence of its line.

{counts}

## Contents

{rows}

Each chapter is also a notebook, for Jupyter and Colab, with exercises that check themselves; the link stands under its title.
[The laws](laws.md) that the lines name, and [the reference](reference/index), stand beside the chapters.

{trees}
"""

LAWS_HEAD = """# The laws

A step of a derivation names its reason. Most reasons are one of these laws; in code `laws.RIGHT` names the first. Each is stated
once, with free matrices, and checked once, before it is first used: its two sides are evaluated at a random point, and compared in
so many entries, modulo so many random primes. The last column says below which probability the law is wrong all the same.

| law | equation | entries | primes | below |
|---|---|---|---|---|
"""


def write(source: Path, chapters: list[Written]) -> None:
    """The sources of all pages but the chapters."""
    guide, laws = _guide(source), _laws(source)
    beside = [*laws, "reference/index", *guide]
    (source / "index.md").write_text(_front(chapters, beside), encoding="utf-8")
    _reference(source / "reference")


def counts(chapters: list[Written]) -> tuple[int, int, int]:
    """Chapters, chains, equalities."""
    chains = [chain for chapter in chapters for chain in chapter.chains]
    return len(chapters), len(chains), sum(chain.steps for chain in chains)


def _front(chapters: list[Written], beside: list[str]) -> str:
    n, chains, equalities = counts(chapters)
    said = (
        f"In this build {equalities} equalities in {chains} chains of {n} chapters were checked, and hold. "
        f"It was made by gradderiv {__version__} with PyTorch {torch.__version__.partition('+')[0]}."
    )
    rows = "\n".join(f"- [{title(c)}]({c.name}.ipynb): {first(c)}" for c in chapters)
    trees = _tree("Chapters", [c.name for c in chapters]) + "\n\n" + _tree("Beside the chapters", beside)
    return FRONT.format(counts=said, rows=rows, trees=trees)


def _tree(caption: str, names: list[str]) -> str:
    return "```{toctree}\n:hidden:\n:maxdepth: 1\n:caption: " + caption + "\n\n" + "\n".join(names) + "\n```"


def title(chapter: Written) -> str:
    """The first heading."""
    return chapter.notebook.cells[0].source.splitlines()[0].lstrip("# ")


def first(chapter: Written) -> str:
    """The first sentence of a chapter or, where it begins with one, its first formula."""
    blocks = chapter.notebook.cells[0].source.split("\n\n")[1:]
    block = next(b for b in blocks if b.strip() and not b.startswith(("#", "|", "```", "<")))
    if block.startswith("$$"):
        return f"${re.split(r'[ ,:]*.q?quad', block.strip().strip('$'))[0].strip()}$"
    if block.startswith("    "):
        return f"`{re.split(r'   +', block.strip().splitlines()[0])[0]}`"
    sentence = re.match(r".+?[.:](?=\s|$)", " ".join(block.split()))
    return (sentence[0] if sentence else " ".join(block.split())).rstrip(":")


def _guide(source: Path) -> list[str]:
    """CONTRIBUTING.md, where the package is used from a checkout; its links into the repository become names."""
    file = Path(gradderiv.__file__).resolve().parent.parent / "CONTRIBUTING.md"
    if not file.is_file():
        return []
    text = REPOSITORY_FILE.sub(r"\1", file.read_text(encoding="utf-8"))
    (source / "contributing.md").write_text(text, encoding="utf-8")
    return ["contributing"]


def _laws(source: Path) -> list[str]:
    """A row for each law: its name, its equation, and what was compared before it was first used."""
    rows = [
        f"| {law.name}<br>`{code}` | {_statement(law)} | {_compared(law)} |" for code, law in LAWS.items()
    ]
    (source / "laws.md").write_text(LAWS_HEAD + "\n".join(rows) + "\n", encoding="utf-8")
    return ["laws"]


def _statement(law: Law | Linearity) -> str:
    if isinstance(law, Law):
        return f"${tex(law.checked.left)} = {tex(law.checked.right)}$"
    return inline(law.statement)


def _compared(law: Law | Linearity) -> str:
    if not isinstance(law, Law):
        return "by multiplying out | |"
    compared = law.checked.compared
    return f"{compared.entries} | {compared.lanes} | $2^{{{math.ceil(compared.log2_failure)}}}$"


def _reference(folder: Path) -> None:
    folder.mkdir()
    rules = [f"gradderiv.rules.{m}" for m in _modules("gradderiv.rules")]
    pages = {
        "checks": _rst("Verify, check, prove", _checks()),
        "functional": _rst("gradderiv.functional", _module("gradderiv.functional", imported=True)),
        "nn": _rst(
            "gradderiv.nn", _module("gradderiv.nn", imported=True) + _module("gradderiv.nn.transformers")
        ),
        "book": _rst(
            "gradderiv.book", "".join(map(_module, ("gradderiv.book.chain", "gradderiv.book.named")))
        ),
        "rules": _rst(
            "gradderiv.rules", _module("gradderiv.rules") + _toc([r.rpartition(".")[2] for r in rules])
        ),
        **{r.rpartition(".")[2]: _rst(r, _module(r)) for r in rules},
    }
    order = ["checks", "rules", "functional", "nn", "book"]
    pages["index"] = _rst("Reference", "The public names, from their docstrings.\n\n" + _toc(order))
    for name, text in pages.items():
        (folder / f"{name}.rst").write_text(text, encoding="utf-8")


def _modules(package: str) -> list[str]:
    path = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))


def _rst(heading: str, body: str) -> str:
    return f"{heading}\n{'=' * len(heading)}\n\n{body}"


def _toc(names: list[str]) -> str:
    return ".. toctree::\n   :maxdepth: 1\n\n" + "".join(f"   {name}\n" for name in names)


def _module(name: str, *, imported: bool = False) -> str:
    return f".. automodule:: {name}\n   :members:\n" + "   :imported-members:\n" * imported + "\n"


def _checks() -> str:
    functions = "".join(f".. autofunction:: {f}\n\n" for f in ("verify", "check", "prove", "explain"))
    classes = "".join(f".. autoclass:: {c}\n   :members:\n\n" for c in ("Proof", "Report", "Record"))
    return f".. currentmodule:: gradderiv\n\n{functions}{classes}"
