"""README's sessions run, and print what README says they print; its commands are what the tools expect."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
from pathlib import Path

import pytest

from gradderiv.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
TIME = re.compile(r"\d+(\.\d+)? s\b")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


@pytest.mark.parametrize("session", fenced("pycon"))
def test_python_sessions(session: str) -> None:
    assert failures(session) == ""


def failures(session: str) -> str:
    out = io.StringIO()
    test = doctest.DocTestParser().get_doctest(session, {}, "README", "README.md", 0)
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=out.write, clear_globs=False)
    return out.getvalue()


def test_a_session_that_says_something_else_is_found() -> None:
    assert "Expected" in failures(">>> 1 + 1\n3\n")


@pytest.mark.parametrize("session", fenced("console"), ids=lambda s: s.splitlines()[0][2:60])
def test_command_sessions(session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command, expected in re.findall(r"^\$ gradderiv (.*)\n((?:(?!\$ ).*\n?)*)", session, re.M):
        out = io.StringIO()
        out.isatty = lambda: False  # type: ignore[method-assign]
        with contextlib.redirect_stdout(out):
            status = main(shlex.split(command))
        assert status == 0, out.getvalue()
        pattern = re.escape(squeezed(expected)).replace(re.escape("[…]"), ".*?")
        assert re.fullmatch(pattern, squeezed(out.getvalue()), re.S), out.getvalue()


def squeezed(text: str) -> str:
    return " ".join(TIME.sub("N s", text).split())


def test_the_first_two_commands_are_the_main_job_and_the_tests() -> None:
    run, test = fenced("sh")[:2]
    assert "gradderiv verify" in run
    assert "pytest" in test
    assert all("torch==2.13.0" in block and "python3 -m venv" in block for block in (run, test))


def test_every_link_into_the_repository_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    missing = [link for link in links if not (Path(__file__).parents[1] / link).exists()]
    assert not missing
