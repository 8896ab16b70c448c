"""``gradderiv exercise``: the exercises of the book, answered in files of one's own, and judged."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

exercise = typer.Typer(
    help="Exercises that stand in the chapters. Answers are executed in this process: check only files that you trust.",
    no_args_is_help=True,
)

CHAPTER = typer.Option(help="A chapter of your own instead of the book's; may be repeated.")


class Format(enum.StrEnum):
    """What a course uses."""

    nbgrader = "nbgrader"
    otter = "otter"


@exercise.command("list")
def list_exercises(chapter: Annotated[list[Path] | None, CHAPTER] = None) -> None:
    """All exercises: kind, points, chapter, title."""
    found = _all(chapter)
    rows = [f"{e.id:6}{e.kind:10}{e.points:>3}  {e.path.stem[:24]:24}  {e.title}" for e in found]
    total = sum(e.points for e in found)
    _write("\n".join([f"{'':6}{'kind':10}{'pts':>3}  {'chapter':24}  title", *rows, "", f"{_count('exercise', len(found))}, {_count('point', total)}"]))  # fmt: skip


@exercise.command()
def start(
    id: Annotated[str, typer.Argument(help="The exercise, as 6.2.")],
    out: Annotated[Path | None, typer.Option(help="The file; exercise_6_2.py unless given.")] = None,
    chapter: Annotated[list[Path] | None, CHAPTER] = None,
) -> None:
    """Write a file to answer in. It never replaces one."""
    from gradderiv.book.exercises.parse import find
    from gradderiv.book.exercises.student import start as write

    path = write(find(id, _paths(chapter)), out)
    _write(f"wrote {path}\nanswer in it, then: gradderiv exercise check {path}")


@exercise.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="Answers, as exercise_6_2.py.")],
    json: Annotated[Path | None, typer.Option(help="Write the verdicts to this file.")] = None,
    limit: Annotated[float, typer.Option(min=0.1, help="Seconds that an answer may take.")] = 60.0,
    chapter: Annotated[list[Path] | None, CHAPTER] = None,
) -> None:
    """Judge answers. Each file is EXECUTED in this process, without a sandbox: check only files that you trust."""
    from gradderiv.cli import _progress, _require_writable, _speaks_unicode

    _require_writable(json)
    verdicts = []
    with _progress("importing torch") as step:
        from gradderiv.book.exercises.grading import grade
        from gradderiv.book.exercises.parse import find
        from gradderiv.book.exercises.student import read

        answers = [(path, *read(path)) for path in files]
        found = [find(id, _paths(chapter)) for _, id, _ in answers]
        for k, (asked, (path, _, source)) in enumerate(zip(found, answers, strict=True)):
            step(k, len(answers), f"exercise {asked.id}")
            verdicts.append(grade(asked, source, file=str(path), limit=limit))
    points, of = sum(v.points for v in verdicts), sum(v.of for v in verdicts)
    texts = [v.text(unicode=_speaks_unicode()) for v in verdicts]
    _write("\n\n".join([*texts, f"total: {points:g} of {of} points"]))
    if json is not None:
        _to_json(json, verdicts, points, of)
    raise typer.Exit(0 if all(v.right for v in verdicts) else 3 if all(v.right or v.undecided for v in verdicts) else 1)  # fmt: skip


@exercise.command("try")
def try_chapters(
    chapter: Annotated[list[Path] | None, typer.Argument(help="Chapters; the whole book if none is named.")] = None,
) -> None:  # fmt: skip
    """For authors: submit every exercise empty, with each listed mistake, and solved, and say what is not as it should be."""
    from gradderiv.cli import _progress

    faults, count = [], 0
    with _progress("importing torch") as step:
        from gradderiv.book.exercises.trial import cases, fault

        found = _all(chapter)
        for k, asked in enumerate(found):
            step(k, len(found), f"exercise {asked.id}")
            tried = cases(asked)
            count += len(tried)
            faults += [f"exercise {asked.id}: {why}" for case in tried if (why := fault(asked, case))]
    _write("\n\n".join([*faults, f"{_count('exercise', len(found))}, {_count('answer', count)} tried, {len(faults)} not as they should be"]))  # fmt: skip
    raise typer.Exit(1 if faults else 0)


@exercise.command()
def export(
    out: Annotated[Path, typer.Option(help="A folder; one notebook for each chapter.")],
    format: Annotated[Format, typer.Option(help="What grades them.")] = Format.nbgrader,
    chapter: Annotated[list[Path] | None, CHAPTER] = None,
) -> None:
    """Write the chapters with their exercises as source notebooks for nbgrader or Otter-Grader. They contain the solutions."""
    from gradderiv.book.exercises.export import export as write

    _write("\n".join(f"wrote {path}" for path in write(out, format.value, _paths(chapter))))


def _paths(chapter: list[Path] | None) -> list[Path]:
    from gradderiv.errors import InputError, message

    for path in chapter or ():
        if not path.is_file():
            raise InputError(message("a chapter's file", str(path), "no such file", "derivations/05_one_head.py, as a path from here"))  # fmt: skip
    return list(chapter or ())


def _all(chapter: list[Path] | None) -> list[Any]:
    from gradderiv.book.exercises.parse import all_exercises

    return all_exercises(_paths(chapter))


def _to_json(file: Path, verdicts: list[Any], points: float, of: int) -> None:
    import json as encoder

    from gradderiv._version import __version__
    from gradderiv.checks.report import write_whole

    head = {"schema_version": 1, "gradderiv": __version__, "points": points, "of": of}
    record = {**head, "verdicts": [v.record() for v in verdicts]}
    write_whole(file, encoder.dumps(record, ensure_ascii=False, indent=2) + "\n")


def _write(text: str) -> None:
    from gradderiv.cli import _speaks_unicode
    from gradderiv.cli import _write as write

    if not _speaks_unicode():
        from gradderiv.book.exercises.verdict import ascii_text

        text = ascii_text(text)
    write(text + "\n")


def _count(name: str, number: int) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
