"""A proof as text at 80 columns, for a terminal, a pipe, an ASCII console or a notebook."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from gradderiv.checks.proof import CLAIM, Proof
from gradderiv.checks.render import (
    INDENT,
    SHOWN,
    WIDTH,
    Spell,
    ascii_text,
    in_notebook,
    power_of_two,
    printed,
    wrapped,
)
from gradderiv.checks.report import Record

MARKS = {
    "proved": ("✓", "ok", "green"),
    "refuted": ("✗", "NO", "bold red"),
    "inconclusive": ("?", "?", "yellow"),
}


def render(proof: Proof, *, color: bool = False, width: int = WIDTH, ascii_only: bool = False) -> str:
    """The proof as text."""
    return printed(table(proof, ascii_only=ascii_only, width=width), color=color, width=width)


def render_html(proof: Proof) -> str:
    """The proof for a notebook."""
    return in_notebook(render(proof))


def table(proof: Proof, *, ascii_only: bool = False, width: int = WIDTH) -> RenderableType:
    """The proof as something rich prints: what was tried and found, what is wrong, what was read on the way, and the verdict."""
    spell: Spell = ascii_text if ascii_only else str
    width = max(40, min(width, WIDTH))
    parts: list[RenderableType] = list(_found(proof, spell, width, ascii_only))
    told = _grouped([*proof.failures, *proof.undecided])
    for group in told[:SHOWN]:
        parts += [Text(""), *_told(group, spell, width)]
    if len(told) > SHOWN:
        parts += [Text(""), Text(spell(f"… and {len(told) - SHOWN} more; --json FILE has them all"))]
    if proof.remarks:
        parts.append(Text(""))
        for remark in proof.remarks:
            parts += wrapped(spell(f"· {remark}"), width, hanging="  ")
    parts += [Text(""), *_verdict(proof, spell, width)]
    return Group(*parts)


def _found(proof: Proof, spell: Spell, width: int, ascii_only: bool) -> Iterator[Text]:
    """A line for every test and verdict, with the arguments."""
    groups: dict[str, dict[str, list[str]]] = {}
    for r in proof.records:
        test = f"reference: {r.problem}" if r.oracle == "reference" else r.problem
        groups.setdefault(test, {}).setdefault(r.verdict, []).append(r.argument)
    tests = [spell(t) for t in groups]
    first = min(max((len(t) for t in tests), default=0), width // 2)
    for test, verdicts in groups.items():
        label = spell(test)
        for verdict, arguments in verdicts.items():
            mark, plain, style = MARKS[verdict]
            word = f"{plain if ascii_only else mark} {verdict}"
            start = f"{label:{first}}  {word:14}  "
            lines = wrapped(start + spell(" ".join(arguments)), width, hanging=" " * len(start))
            for i, line in enumerate(lines):
                if i == 0:
                    line.stylize(style, len(start) - 16, len(start) - 2)
                yield line
            label = ""


def _grouped(records: list[Record]) -> list[list[Record]]:
    """Records that say the same of the same argument together, as those of one output alone and of all."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for r in records:
        groups.setdefault((r.verdict, r.argument if r.verdict == "refuted" else r.detail), []).append(r)
    return list(groups.values())


def _told(group: list[Record], spell: Spell, width: int) -> Iterator[Text]:
    record = group[0]
    _, _, style = MARKS[record.verdict]
    word = record.verdict.upper()
    arguments = " ".join(dict.fromkeys(r.argument for r in group))
    places = ", ".join(dict.fromkeys(r.problem for r in group))
    head = f"{word}  {record.rule}{'' if arguments == 'all' else f' · {arguments}'} · {places}"
    first, *rest = wrapped(spell(head), width, hanging=INDENT)
    first.stylize(style, 0, len(word))
    yield from (first, *rest)
    yield from wrapped(spell(record.detail), width, INDENT, INDENT)
    if record.replay:
        yield from wrapped(spell(f"replay: {record.replay}"), width, INDENT, INDENT + "  ")


def _verdict(proof: Proof, spell: Spell, width: int) -> Iterator[Text]:
    word = proof.verdict.upper()
    _, _, style = MARKS[proof.verdict]
    spent = f"seed {proof.seed}, {proof.lanes} primes, {proof.seconds:.1f} s"
    if proof.draws:
        spent += f", {proof.draws} point{'s' if proof.draws > 1 else ''} drawn again for a zero denominator"
    if proof.verdict == "proved":
        text = f"{CLAIM}, unless an accident of probability ≤ {power_of_two(proof.failure_probability or 0.0)} happened. {spent}"
    elif proof.verdict == "refuted":
        wrong = dict.fromkeys(r.argument for r in proof.failures)
        text = f"the field and float64 agree that this is wrong: {' '.join(wrong)}. {spent}"
    else:
        text = f"nothing is wrong as far as can be said, and not everything is proved. {spent}"
    first, *rest = wrapped(spell(f"{word}  {text}"), width, hanging=INDENT)
    first.stylize(style, 0, len(word))
    yield from (first, *rest)
