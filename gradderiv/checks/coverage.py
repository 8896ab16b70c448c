"""``gradderiv options``: the options of attention in the order in which they act, and which of them are tried together."""

from __future__ import annotations

from gradderiv.checks.problems import PROBLEMS
from gradderiv.checks.problems.pairs import VALUES, Pair, choices, met, wanted
from gradderiv.rules.options import FOUND, PARTS, Part


def vocabulary() -> str:
    """The table of :mod:`gradderiv.rules.options`, row by row."""
    rows = [("option", "reads -> writes", "told")]
    rows += [(p.name, p.wires, _told(p)) for p in PARTS]
    name, wires = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"{a:{name}}  {b:{wires}}  {c}".rstrip() for a, b, c in rows)


def _told(p: Part) -> str:
    """Keywords that are no variables, those in brackets where they are wanted."""
    if {*p.must} & {*FOUND}:
        return "found from the shapes"
    return ", ".join((*p.must, *(f"({n})" for n in p.may)))


def coverage() -> str:
    """How many pairs of values of every two options meet in some problem, of how many that can."""
    needed, tried = wanted(), choices()
    found = set().union(*(met(c) for c in tried)) & needed
    values = sum(map(len, VALUES.values()))
    missing = sorted(needed - found)
    verdict = "all of them meet" if not missing else f"{len(missing)} do not meet: {missing}"
    lines = [
        f"{len(VALUES)} options with {values} values. {len(needed)} pairs of values can meet,",
        f"and {verdict}, in {len(tried)} problems:",
        "",
        *_matrix(needed, found),
        "",
    ]
    width = max(map(len, VALUES))
    lines += [f"{option:{width}}  {', '.join(VALUES[option])}" for option in VALUES]
    names = [name for name in PROBLEMS if name.startswith("pairs-")]
    return "\n".join(
        [*lines, "", f"gradderiv verify --problem NAME, with NAME from {names[0]} to {names[-1]}, runs one."]
    )


def _matrix(needed: set[Pair], found: set[Pair]) -> list[str]:
    """Options across and down: how many pairs of their values have met, or how many have not."""
    options = list(VALUES)
    width = max(map(len, options))
    head = " " * width + "".join(f" {o[:4]:>4}" for o in options[1:])
    lines = [head]
    for i, a in enumerate(options[:-1]):
        line = f"{a:{width}}" + "     " * i
        for b in options[i + 1 :]:
            of = {pair for pair in needed if (pair[0][0], pair[1][0]) == (a, b)}
            short = len(of - found)
            line += f" {f'−{short}' if short else len(of):>4}"
        lines.append(line)
    return lines
