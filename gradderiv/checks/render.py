"""A report as a table at 80 columns, for a terminal, a pipe, an ASCII console or a notebook."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradderiv.checks.report import Record, Report

SHORT = {
    "forward": "forw.", "autograd": "autog.", "finite differences": "finite", "dual": "dual", "field": "field",
    "second order": "2nd", "sympy": "sympy", "blockdiag": "block", "identities": "ident.",
    "torch layer": "layer", "full size": "size", "published": "publ.", "tape": "tape",
}  # fmt: skip
ARGUMENTS = (
    "X",
    "X_kv",
    "W_Q",
    "W_K",
    "W_V",
    "W_O",
    "b_Q",
    "b_K",
    "b_V",
    "b_O",
    "Q",
    "K",
    "V",
    "bias",
    "S",
    "W",
    "b",
)


def render(report: Report, *, color: bool = False, width: int = 80, ascii_only: bool = False) -> str:
    """The report as text."""
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=color, no_color=not color, highlight=False, safe_box=True
    )
    console.print(table(report, ascii_only=ascii_only))
    return stream.getvalue().rstrip("\n")


def render_html(report: Report) -> str:
    """The report for a notebook."""
    return f"<pre style='line-height:1.2'>{html.escape(render(report))}</pre>"


def table(report: Report, *, ascii_only: bool = False) -> RenderableType:
    """The report as something rich prints: a table of rules and oracles, what failed, and the verdict."""
    yes, no, dot = ("ok", "FAIL", "-") if ascii_only else ("✓", "✗", "·")
    oracles = list(dict.fromkeys(r.oracle for r in report.records))
    grid = Table(box=None, pad_edge=False, padding=(0, 1))
    grid.add_column("rule")
    for oracle in oracles:
        grid.add_column(SHORT.get(oracle, oracle), justify="right", no_wrap=True)
    for rule in dict.fromkeys(r.rule for r in report.records):
        cells = [_cell(report.select(rule=rule, oracle=o), yes, no, dot) for o in oracles]
        grid.add_row(rule, *cells)
    parts: list[RenderableType] = [grid, Text("")]
    parts += [Text(line) for line in _by_number(report)]
    for record in [*report.failures, *report.vacuous][:12]:
        parts += [Text(""), _located(record)]
    more = len(report.failures) + len(report.vacuous) - 12
    if more > 0:
        parts.append(Text(f"… and {more} more; --json FILE has them all"))
    parts += [Text(""), _verdict(report)]
    return _plain(Group(*parts), ascii_only)


def _plain(group: Group, ascii_only: bool) -> RenderableType:
    if not ascii_only:
        return group
    stream = io.StringIO()
    Console(file=stream, width=80, no_color=True, highlight=False).print(group)
    text = stream.getvalue().rstrip("\n")
    for glyph, plain in {
        "·": "-",
        "≤": "<=",
        "⁻": "-",
        "×": "x",
        "√": "sqrt ",
        "∂": "d",
        "θ": "theta",
        "…": "...",
    }.items():
        text = text.replace(glyph, plain)
    return Text(text.encode("ascii", "replace").decode())


def _cell(records: list[Record], yes: str, no: str, dot: str) -> Text:
    if not records:
        return Text(dot, style="dim")
    wrong = sum(r.verdict == "fail" for r in records)
    if wrong:
        return Text(f"{no} {wrong}", style="bold red")
    unsaid = sum(r.verdict == "vacuous" and not r.expected for r in records)
    if unsaid:
        return Text(f"? {unsaid}", style="yellow")
    return Text(f"{yes} {len(records)}", style="green")


def _by_number(report: Report) -> Iterable[str]:
    """One line for each kind of number: what it says, and how surely."""
    for number in dict.fromkeys(r.number for r in report.records):
        records = report.select(number=number)
        line = f"{number:7} {len(records):5} comparisons"
        if number == "field":
            probability = max(r.failure_probability or 0.0 for r in records)
            line += f", exact; a wrong one passes with probability ≤ {power_of_two(probability)}"
        elif number == "symbol":
            line += ", every entry's difference from sympy.diff brought to 0"
        elif number == "float":
            line += " in " + ", ".join(dict.fromkeys(r.dtype for r in records))
        yield line
    names = [a for a in ARGUMENTS if any(r.argument == a for r in report.records)]
    if names:
        yield "gradients of " + " ".join(names)


def power_of_two(probability: float) -> str:
    """2⁻⁴² for 2.3e-13: rounded up, never down."""
    if probability <= 0:
        return "0"
    digits = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return "2" + str(math.ceil(math.log2(probability) - 1e-9)).translate(digits)


def _located(record: Record) -> Text:
    word = "FAIL" if record.verdict == "fail" else "VOID"
    style = "bold red" if record.verdict == "fail" else "yellow"
    head = Text.assemble(
        (f"{word}  ", style), f"{record.rule} · {record.argument} · {record.dtype} · {record.oracle}"
    )
    body = f"problem {record.problem}. {record.detail}"
    if record.replay:
        body += f"\nreplay: {record.replay}"
    return Text.assemble(head, "\n", *(_indented(body)))


def _indented(text: str, width: int = 74) -> Iterable[str]:
    import textwrap

    for paragraph in text.split("\n"):
        for line in textwrap.wrap(paragraph, width, break_long_words=False, break_on_hyphens=False):
            yield f"      {line}\n"


def _verdict(report: Report) -> Text:
    passed = sum(r.verdict == "pass" for r in report.records)
    declared = sum(r.verdict == "vacuous" and r.expected for r in report.records)
    words = {
        "pass": ("PASS", "bold green", f"{passed} comparisons hold"),
        "fail": ("FAIL", "bold red", f"{len(report.failures)} of {len(report.records)} comparisons fail"),
        "vacuous": ("VOID", "bold yellow", f"{len(report.vacuous)} of {len(report.records)} show nothing"),
    }
    word, style, text = words[report.verdict]
    tail = f"; {declared} vacuous, as declared" if declared else ""
    return Text.assemble((word, style), f"  {text}{tail}. seed {report.seed}, {report.seconds:.1f} s")
