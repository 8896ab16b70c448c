"""The file in which somebody answers an exercise: the text as comments, the code with the solution cut out."""

from __future__ import annotations

import re
from pathlib import Path

from gradderiv.book.exercises.parse import Exercise
from gradderiv.errors import InputError, message

HEAD = "# gradderiv exercise "
KIND = {
    "chain": "complete the chain",
    "function": "write the function",
    "mistake": "find the mistake",
}


def file_name(exercise: Exercise) -> str:
    """``exercise_6_2.py``"""
    return f"exercise_{re.sub(r'[^0-9A-Za-z]+', '_', exercise.id)}.py"


def page(exercise: Exercise, name: str) -> str:
    """The file's text; ``name`` is what it will be called."""
    points = "1 point" if exercise.points == 1 else f"{exercise.points} points"
    about = [
        f"{HEAD}{exercise.id}", "#", f"# {exercise.title}: {KIND[exercise.kind]} ({points})", "#",
        *_comment(exercise.text.source),
    ]  # fmt: skip
    if exercise.given:
        about += ["#", "# Given, and run before your lines:", "#"]
        about += [line for cell in exercise.given for line in _comment(cell.source, "    ")]
    about += [
        "#", f"# The names of chapter {exercise.path.stem} before this exercise are there, too: nothing need be imported.",
        f"# Check it with:  gradderiv exercise check {name}        (this executes the file)",
    ]  # fmt: skip
    return "\n".join(about) + f"\n\n{exercise.blank}\n"


def _comment(text: str, indent: str = "") -> list[str]:
    return [f"# {indent}{line}".rstrip() for line in text.strip("\n").splitlines()]


def start(exercise: Exercise, out: Path | None = None) -> Path:
    """Write the file, and never over one that is there.

    Raises:
        InputError: it is there already, or its folder is not.
    """
    path = out or Path(file_name(exercise))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(page(exercise, path.name))
    except FileExistsError:
        cause, do = "it was started before", "answer in it, or name another with --out"
        raise InputError(message("a new file for an answer", f"{path} exists", cause, do)) from None
    except OSError as error:
        raise InputError(
            message("a file that can be written", f"{path}: {error.strerror}", "no such folder, or no permission", "name another with --out")
        ) from error  # fmt: skip
    return path


def read(path: Path) -> tuple[str, str]:
    """The id of the exercise that a file answers, and its source.

    Raises:
        InputError: it cannot be read, or does not say what it answers, or answers two exercises.
    """
    try:
        source = path.read_text(encoding="utf-8-sig")  # some editors put a mark in front
    except UnicodeDecodeError as error:
        cause, do = "it was saved in another encoding", "save it as UTF-8"
        raise InputError(
            message("a file in UTF-8", f"{path}: byte {error.start} is none", cause, do)
        ) from error
    except OSError as error:
        raise InputError(message("a file that can be read", f"{path}: {error.strerror}", "another folder", "name the file from here")) from error  # fmt: skip
    found = list(dict.fromkeys(re.findall(rf"^{HEAD}(\S+)\s*$", source, re.M)))
    if len(found) > 1:
        came = f"{path} answers {', '.join(found)}"
        raise InputError(
            message("a file for each exercise", came, "two files were put together", "keep them apart")
        )
    if not found:
        asked = f"a file that says which exercise it answers, in the line «{HEAD.strip()} 5.1»"
        raise InputError(
            message(asked, str(path), "the line was deleted", "begin with: gradderiv exercise start 5.1")
        )
    return found[0], source
