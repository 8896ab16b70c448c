"""The kill table as text, 80 columns wide."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from gradderiv.checks.mutants import SUBJECTS, Mutant

if TYPE_CHECKING:
    from gradderiv.checks.kill import Cell, KillTable

WIDTH = 80
MANY = 12  # mutants, from where on the table is read with the help of headings
SHORT = {
    "forward": "value", "autograd": "auto", "finite differences": "diff", "dual": "dual", "field": "field",
    "second order": "2nd", "sympy": "sympy", "blockdiag": "block", "identities": "ident",
}  # fmt: skip
SIGNS = {
    "killed": "✗",
    "alive": "·",
    "inconclusive": "?",
    "not applicable": " ",
    "not run": "–",
    "error": "!",
}
ASCII = {
    "killed": "x",
    "alive": ".",
    "inconclusive": "?",
    "not applicable": " ",
    "not run": "-",
    "error": "!",
}


def render(table: KillTable, *, verbose: bool, unicode: bool = True) -> str:
    """Mutants down, oracles across, totals, what is not as declared; and the reasons if ``verbose``."""
    signs = SIGNS if unicode else ASCII
    oracles = list(dict.fromkeys(c.oracle for c in table.cells))
    width = max((len(m) for m in table.mutants), default=6) + 1
    lines = [" " * width + "".join(f"{SHORT.get(o, o)[:6]:>6}" for o in oracles)]
    subjects = {mutants[0].id: subject for subject, mutants in _subjects(table).items()}
    for mutant in table.mutants:
        lines += ["", subjects[mutant]] if mutant in subjects else []
        cells = [table.cell(mutant, o) for o in oracles]
        lines.append(f"{mutant:<{width}}" + "".join(f"{_sign(c, signs):>6}" for c in cells).rstrip())
    lines.append("")
    lines.append(
        f"{'killed':<{width}}"
        + "".join(f"{len(table.select(oracle=o, outcome='killed')):>6}" for o in oracles)
    )
    legend = ", ".join(f"{SHORT[o]}: {o}" for o in oracles if o in SHORT and SHORT[o] != o)
    meaning = f"{signs['killed']} killed, {signs['alive']} alive, ? nothing could be said, {signs['not run']} not run, blank: not applicable, ! an error"
    lines += ["", *_wrap(legend, ""), *_wrap(meaning, ""), "", _verdict(table, oracles)]
    for c in table.mistakes:
        lines += _wrap(f"{c.mutant} under {c.oracle}: {_complaint(c)}", "  ")
    text = "\n".join([*lines, *(_explained(table) if verbose else [])])
    return text if unicode else text.encode("ascii", "replace").decode()


def _subjects(table: KillTable) -> dict[str, list[Mutant]]:
    """What the mutants of the table are about; nothing where there are too few of them to need it."""
    found = {s: [m for m in mutants if m.id in table.mutants] for s, mutants in SUBJECTS.items()}
    return {s: mutants for s, mutants in found.items() if mutants} if len(table.mutants) > MANY else {}


def _sign(c: Cell, signs: dict[str, str]) -> str:
    return signs[c.outcome] if c.as_declared else f"({signs[c.outcome].strip() or '-'})"


def _verdict(table: KillTable, oracles: list[str]) -> str:
    wrong = [m for m in table.mutants.values() if m.kind != "right"]
    dead = {c.mutant for c in table.cells if c.outcome == "killed"}
    killed = sum(m.id in dead for m in wrong)
    text = f"{killed} of {len(wrong)} mutants killed by at least one of {len(oracles)} oracles; "
    text += f"{sum(c.must for c in table.cells)} kills demanded; "
    alive = [m.id for m in wrong if not m.kills and m.id not in dead]
    text += f"{', '.join(alive)} beyond all of them, with a reason; " if alive else ""
    text += (
        "as declared."
        if table.as_declared
        else f"NOT as declared: {len(table.mistakes)} cells (in brackets)."
    )
    return "\n".join(_wrap(text, ""))


def _complaint(c: Cell) -> str:
    if c.outcome == "error":
        return f"it raised {c.detail}"
    if c.must:
        return f"must be killed, and is {c.outcome}. {c.detail}"
    if not c.reason:
        return f"is {c.outcome}, and neither a kill nor a reason is declared"
    return f"is killed ({c.detail}), though declared to live: {c.reason}"


def _explained(table: KillTable) -> list[str]:
    lines = ["", "The mutants"]
    for m in table.mutants.values():
        lines += _wrap(f"{m.id}: {m.what}" + (f" [{m.seen}]" if m.seen else ""), "  ")
    lines += ["", "Why a cell is not killed"]
    by_reason: dict[str, dict[str, list[str]]] = {}
    for c in table.cells:
        if not c.must and c.reason and table.mutants[c.mutant].kind != "right":
            by_reason.setdefault(c.reason, {}).setdefault(c.oracle, []).append(c.mutant)
    for reason, cells in by_reason.items():
        lines += _wrap(reason, "  ")
        for oracle, mutants in cells.items():
            lines += _wrap(f"{oracle}: {', '.join(mutants)}", "    ")
    return lines


def _wrap(text: str, indent: str) -> list[str]:
    later = indent + ("  " if indent else "")
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=indent, subsequent_indent=later, break_on_hyphens=False
    )
