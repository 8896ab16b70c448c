"""README's sessions run, and print what README says they print; its commands are what the tools expect."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradderiv.cli import main
from gradderiv.rules import options

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TIME = re.compile(r"\d+(\.\d+)? s\b")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


@pytest.fixture(autouse=True)
def options_as_they_were() -> Iterator[None]:
    """A session adds an option to the table."""
    before = list(options.PARTS)
    yield
    options.PARTS[:] = before


@pytest.mark.parametrize("session", fenced("pycon"), ids=lambda s: s.splitlines()[-1][:40])
def test_python_sessions(session: str) -> None:
    replay(session)


def replay(session: str) -> None:
    """Run a session statement by statement; each prints what stands below it, but for seconds and ``[…]``."""
    names: dict[str, object] = {"__name__": "__main__"}
    for statement, expected in re.findall(
        r"^>>> (.*\n(?:^\.\.\. .*\n)*)((?:^(?!>>> ).*\n?)*)", session, re.M
    ):
        code = re.sub(r"^\.\.\. ", "", statement, flags=re.M)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            try:
                exec(compile(code + "\n", "README.md", "single"), names)
            except Exception as error:
                print(f"Traceback (most recent call last):\n{type(error).__name__}: {error}")
        assert_reads(out.getvalue(), expected)


def assert_reads(printed: str, expected: str) -> None:
    pattern = re.escape(squeezed(expected)).replace(re.escape("[…]"), ".*?")
    assert re.fullmatch(pattern, squeezed(printed), re.S), printed


def test_a_session_that_says_something_else_is_found() -> None:
    replay(">>> for i in range(2):\n...     print(i)\n0\n1\n>>> 1 + 1\n2\n")
    for wrong in (">>> 1 + 1\n3\n", ">>> x = 1\n1\n", ">>> 1 / 0\n"):
        with pytest.raises(AssertionError):
            replay(wrong)


@pytest.mark.parametrize("session", fenced("console"), ids=lambda s: s.splitlines()[0][2:60])
def test_command_sessions(session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command, expected in re.findall(r"^\$ gradderiv (.*)\n((?:(?!\$ ).*\n?)*)", session, re.M):
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        with contextlib.redirect_stdout(out):
            status = main(shlex.split(command))
        out.seek(0)
        printed = out.read()
        assert status == 0, printed
        assert_reads(printed, expected)


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
