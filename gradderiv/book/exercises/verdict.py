"""What an answer is worth, part by part, and why."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from gradderiv.book.exercises.parse import Exercise
from gradderiv.book.layout import columns, pad, wrap
from gradderiv.book.remarks import plain
from gradderiv.errors import GradderivError

SHOWN = 20  # lines of what an answer prints
SIGNS = {"right": "✓", "wrong": "✗", "partly": "~", "undecided": "?"}


class ExerciseError(GradderivError, AssertionError):
    """The solution of an exercise does not get all points, or the exercise is not what it says."""


@dataclass(frozen=True)
class Part:
    """One thing that is judged.

    Attributes:
        name: a result as ``dS``, or ``chain``, ``line``, ``correction``.
        verdict: right, wrong, partly (the first lines of a chain), or undecided.
        share: of the points of the exercise, how many parts this one counts.
        credit: how much of its share it gets, from 0 to 1.
        why: the reason, in words.
    """

    name: str
    verdict: str
    share: float
    credit: float
    why: str


@dataclass(frozen=True)
class Verdict:
    """An answer to an exercise, judged.

    Attributes:
        parts: in the order of the exercise.
        printed: what the answer itself wrote to standard output.
    """

    exercise: str
    title: str
    kind: str
    of: int
    parts: tuple[Part, ...]
    printed: str = ""

    @property
    def points(self) -> float:
        total = sum(p.share for p in self.parts)
        return round(self.of * sum(p.share * p.credit for p in self.parts) / total, 2) if total else 0.0

    @property
    def right(self) -> bool:
        return bool(self.parts) and all(p.verdict == "right" for p in self.parts)

    @property
    def undecided(self) -> bool:
        """Nothing is wrong, and something is not decided."""
        verdicts = {p.verdict for p in self.parts}
        return "undecided" in verdicts and verdicts <= {"right", "undecided"}

    def text(self, *, unicode: bool = True, width: int = 80) -> str:
        """The verdict in so many columns."""
        head = f"Exercise {self.exercise} · {self.title}"
        points = f"{self.points:g} of {self.of} points"
        out = [pad(head, max(width - columns(points), columns(head) + 2)) + points]
        for part in self.parts:
            lines = [text for line in part.why.splitlines() for text in _folded(line, width - 4)]
            out.append(f"  {SIGNS[part.verdict]} {part.name}: {part.verdict}")
            out += [f"    {line}".rstrip() for line in lines]
        if self.printed.strip():
            printed = self.printed.rstrip().splitlines()
            out += ["  what the answer printed:", *(f"    | {line}"[:width] for line in printed[:SHOWN])]
            out += ["    | …"] if len(printed) > SHOWN else []
        text = "\n".join(out)
        return text if unicode else ascii_text(text)

    def record(self) -> dict[str, object]:
        """The verdict as JSON has it."""
        head = {"exercise": self.exercise, "title": self.title, "kind": self.kind}
        parts = [asdict(part) for part in self.parts]
        return {**head, "points": self.points, "of": self.of, "right": self.right, "parts": parts, "printed": self.printed}  # fmt: skip

    def to_json(self) -> str:
        return json.dumps(self.record(), ensure_ascii=False, indent=2)


def nothing(exercise: Exercise, why: str, printed: str = "") -> Verdict:
    """No points, for a reason that comes before any judgement of parts."""
    return Verdict(
        exercise.id, exercise.title, exercise.kind, exercise.points, (Part("answer", "wrong", 1, 0, why),), printed
    )  # fmt: skip


def ascii_text(text: str) -> str:
    """The text without characters that a console may lack."""
    marks = str.maketrans({"✓": "+", "✗": "x"})
    return plain(text.translate(marks)).encode("ascii", "replace").decode()


def _folded(line: str, width: int) -> list[str]:
    """A long line in several; the indent of errors, as of ``came:``, is kept."""
    indent = len(line) - len(line.lstrip())
    return [" " * indent + text for text in wrap(line, width - indent)]
