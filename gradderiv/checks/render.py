"""A report as a table at 80 columns, for a terminal, a pipe, an ASCII console or a notebook."""

from __future__ import annotations

import html
import io
import math
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from gradderiv.checks.report import Record, Report

WIDTH = 80
SHOWN = 8  # failures spelled out; the rest is counted
ARGUMENTS = (
    "X", "X_kv", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "W_QKV", "b_QKV", "Q", "K", "V", "K_cache", "V_cache", "gain_Q", "gain_K",
    "cos", "sin", "temperature", "slopes", "table", "bias", "sinks", "gain_1", "shift_1", "gain_2", "shift_2", "W_G", "W_U", "W_D", "b_G", "b_U", "b_D",
    "S", "W", "b", "A", "B", "positions", "gain", "shift",
)  # fmt: skip
INDENT = " " * 6
SINGULAR = {"fail": "fails", "show nothing": "shows nothing", "hold": "holds"}
MARKS = {  # in a terminal, in ASCII
    "hold": ("✓", "ok"), "fail": ("✗", "FAIL"), "show nothing": ("?", "?"), "not applicable": ("·", "-"),
}  # fmt: skip

Spell = Callable[[str], str]


def render(report: Report, *, color: bool = False, width: int = WIDTH, ascii_only: bool = False) -> str:
    """The report as text."""
    return printed(table(report, ascii_only=ascii_only, width=width), color=color, width=width)


def render_html(report: Report) -> str:
    """The report for a notebook."""
    return in_notebook(render(report))


def printed(parts: RenderableType, *, color: bool = False, width: int = WIDTH) -> str:
    """What rich prints of it."""
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=color, color_system="standard" if color else None,
        no_color=not color, highlight=False,
    )  # fmt: skip
    console.print(parts)
    return stream.getvalue().rstrip("\n")


def in_notebook(text: str) -> str:
    return f"<pre style='line-height:1.2'>{html.escape(text)}</pre>"


def table(report: Report, *, ascii_only: bool = False, width: int = WIDTH) -> RenderableType:
    """The report as something rich prints: a table of oracles and rules, what failed, and the verdict."""
    spell: Spell = ascii_text if ascii_only else str
    width = max(40, min(width, WIDTH))
    parts: list[RenderableType] = [*_grid(report, spell, width, ascii_only)]
    for line in _by_number(report):
        parts += wrapped(spell(line), width, hanging=" " * 8)
    found = _grouped([*report.failures, *report.vacuous])
    for group in found[:SHOWN]:
        parts += [Text(""), *_located(group, spell, width)]
    if len(found) > SHOWN:
        more = sum(map(len, found[SHOWN:]))
        parts += [Text(""), Text(spell(f"… and {more} more in other places; --json FILE has them all"))]
    parts += [*([Text("")] if parts else []), *_verdict(report, spell, width)]
    return Group(*parts)


# ---------------------------------------------------------------- the table


def _grid(report: Report, spell: Spell, width: int, ascii_only: bool) -> Iterator[Text]:
    """Oracles down, rules across; in several blocks where the rules do not fit beside each other."""
    rules = list(dict.fromkeys(r.rule for r in report.records))
    oracles = list(dict.fromkeys(r.oracle for r in report.records))
    first = max((len(spell(o)) for o in oracles), default=0)
    found: dict[tuple[str, str], list[Record]] = {(o, r): [] for o in oracles for r in rules}
    for record in report.records:
        found[record.oracle, record.rule].append(record)
    cells = {place: _cell(records, ascii_only) for place, records in found.items()}
    names = {r: _short(spell(r), width - first - 2) for r in rules}
    columns = {r: max(len(names[r]), *(len(cells[o, r][0]) for o in oracles)) for r in rules}
    blocks = list(_blocks(columns, width - first))
    for block in blocks:
        yield Text(" " * first + "".join(f"  {names[r]:>{columns[r]}}" for r in block), style="bold")
        for oracle in oracles:
            if len(blocks) > 1 and not any(found[oracle, rule] for rule in block):
                continue
            line = Text(f"{spell(oracle):{first}}")
            for rule in block:
                shown, style = cells[oracle, rule]
                line.append("  ").append(f"{shown:>{columns[rule]}}", style=style)
            yield line
        yield Text("")
    met = {shown.split()[0] for shown, _ in cells.values()}
    legend = [f"{MARKS[m][ascii_only]} {m}" for m in MARKS if MARKS[m][ascii_only] in met]
    if legend and legend != [f"{MARKS['hold'][ascii_only]} hold"]:
        yield from (*wrapped("   ".join(legend), width), Text(""))


def _blocks(columns: dict[str, int], width: int) -> Iterator[list[str]]:
    block: list[str] = []
    left = width
    for name, size in columns.items():
        if block and size + 2 > left:
            yield block
            block, left = [], width
        block.append(name)
        left -= size + 2
    if block:
        yield block


def _cell(records: list[Record], ascii_only: bool) -> tuple[str, str]:
    """The worst that can be said of these records, and of how many."""
    mark = {word: glyphs[ascii_only] for word, glyphs in MARKS.items()}
    if not records:
        return mark["not applicable"], "dim"
    wrong = sum(r.verdict == "fail" for r in records)
    unsaid = sum(r.verdict == "vacuous" and not r.expected for r in records)
    if wrong:
        return f"{mark['fail']} {wrong}/{len(records)}", "bold red"
    if unsaid:
        return f"{mark['show nothing']} {unsaid}/{len(records)}", "yellow"
    return f"{mark['hold']} {sum(r.verdict == 'pass' for r in records)}", "green"


def _by_number(report: Report) -> Iterator[str]:
    """One line for each kind of number: what it says, and how surely."""
    for number in dict.fromkeys(r.number for r in report.records):
        records = report.select(number=number)
        line = f"{number:7} {len(records):5} comparison{'' if len(records) == 1 else 's'}"
        if number == "field":
            probability = max(r.failure_probability or 0.0 for r in records)
            line += f", exact; a wrong one passes with probability ≤ {power_of_two(probability)}"
        elif number == "symbol":
            line += ", each entry's difference from sympy.diff brought to 0"
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


# ---------------------------------------------------------------- what failed


def _grouped(records: list[Record]) -> list[list[Record]]:
    """Records of the same place (verdict, rule, argument) together, the one that says most first: a float's has the numbers."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for r in records:
        groups.setdefault((r.verdict, r.rule, r.argument), []).append(r)
    return [sorted(group, key=lambda r: r.number != "float") for group in groups.values()]


def _located(group: list[Record], spell: Spell, width: int) -> Iterator[Text]:
    record, others = group[0], group[1:]
    word, style = ("FAIL", "bold red") if record.verdict == "fail" else ("VOID", "yellow")
    head = f"{word}  {record.rule} · {record.argument} · {record.dtype} · {record.oracle}"
    first, *rest = wrapped(spell(head), width, hanging=INDENT)
    first.stylize(style, 0, len(word))
    yield from (first, *rest)
    yield from wrapped(spell(f"problem {record.problem}. {record.detail}"), width, INDENT, INDENT)
    if others:
        oracles = ", ".join(dict.fromkeys(r.oracle for r in others))
        verb = "fail" if record.verdict == "fail" else "show nothing"
        text = f"{len(others)} more of {record.argument} {_verb(len(others), verb)}, by {oracles}."
        yield from wrapped(spell(text), width, INDENT, INDENT)
    if record.replay:
        yield from _command(spell(f"replay: {record.replay}"), width)


def _command(text: str, width: int) -> Iterator[Text]:
    """A command that can be pasted: broken before an option, where a shell reads on."""
    first, *options = text.split(" --")
    lines = [INDENT + first]
    for i, option in enumerate(options):
        if len(f"{lines[-1]} --{option}") + (2 if i + 1 < len(options) else 0) <= width:
            lines[-1] += f" --{option}"
        else:
            lines[-1] += " \\"
            lines.append(f"{INDENT}  --{option}")
    yield from map(Text, lines)


def _verdict(report: Report, spell: Spell, width: int) -> Iterator[Text]:
    passed = sum(r.verdict == "pass" for r in report.records)
    declared = sum(r.verdict == "vacuous" and r.expected for r in report.records)
    total = _count(len(report.records), "comparison")
    if report.failures:
        word, style = "FAIL", "bold red"
        text = f"{len(report.failures)} of {total} {_verb(len(report.failures), 'fail')}"
    elif report.vacuous:
        word, style = "VOID", "bold yellow"
        text = f"{len(report.vacuous)} of {total} {_verb(len(report.vacuous), 'show nothing')}"
    elif not passed:
        word, style = "VOID", "bold yellow"
        text = "nothing was shown" if declared else "nothing was compared: no oracle applies"
    else:
        word, style = "PASS", "bold green"
        text = f"{_count(passed, 'comparison')} {_verb(passed, 'hold')}"
    if declared:
        text += f"; {declared} vacuous where expected"
    first, *rest = wrapped(
        spell(f"{word}  {text}. seed {report.seed}, {report.seconds:.1f} s"), width, hanging=INDENT
    )
    first.stylize(style, 0, len(word))
    yield from (first, *rest)


# ---------------------------------------------------------------- words


def speaks_unicode(stream: Any) -> bool:
    """Whether what is printed there may hold the glyphs of a report."""
    try:
        "✓ ⟨τ⟩ 2⁻⁴⁰".encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def _verb(n: int, verb: str) -> str:
    return SINGULAR[verb] if n == 1 else verb


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 3]}..."


def wrapped(text: str, width: int, first: str = "", hanging: str = "") -> list[Text]:
    found: list[Text] = []
    for i, paragraph in enumerate(text.split("\n")):
        lines = textwrap.wrap(
            paragraph, width - 1, initial_indent=hanging if i else first, subsequent_indent=hanging,
            break_on_hyphens=False, drop_whitespace=True,
        )  # fmt: skip
        found += map(Text, lines)
    return found


SPELLED = {
    "·": "-", "≤": "<=", "≥": ">=", "≠": "!=", "×": "x", "√": "sqrt ", "∂": "d", "…": "...", "⟨": "<", "⟩": ">", "−": "-", "–": "-",
    "→": "->", "∞": "inf", "θ": "theta", "τ": "tau", "δ": "delta", "ℓ": "loss", "Σ": "sum", "∘": "o", "±": "+-", "ᵀ": "^T", "′": "'",
    "«": '"', "»": '"', "’": "'", "“": '"', "”": '"', "✓": "ok", "✗": "FAIL",
}  # fmt: skip
SUPERSCRIPTS = str.maketrans("⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹", "-+0123456789")


def ascii_text(text: str) -> str:
    """The same in ASCII: 2⁻⁴⁰ as 2^-40, ⟨dX, X⟩ as <dX, X>."""
    text = re.sub("[⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "^" + m[0].translate(SUPERSCRIPTS), text)
    for glyph, plain in SPELLED.items():
        text = text.replace(glyph, plain)
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return text.encode("ascii", "replace").decode()
