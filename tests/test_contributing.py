"""The guide «how to add a rule» is followed, word for word; and once with a mistake."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradderiv
from gradderiv.checks import catalog, problems, reference
from gradderiv.checks.oracles import ORACLES
from gradderiv.cli import main

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.M | re.S)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide writes into the tables; they are put back afterwards."""
    for module, names in (
        (catalog, ["RULES"]),
        (problems, ["PROBLEMS"]),
        (reference, ["TEXTBOOK", "LOOPS", "TORCH"]),
    ):
        for name in names:
            table = getattr(module, name)
            before = dict(table)
            monkeypatch.setattr(module, name, table)
            monkeypatch.setitem(table, "normalize", None)
            monkeypatch.setitem(table, "tiny-normalize", None)
            for key in set(table) - set(before):
                del table[key]


def follow(replace: str = "", by: str = "") -> gradderiv.Report:
    names: dict[str, object] = {"__name__": "guide"}
    assert replace in BLOCKS[0]
    for block in (BLOCKS[0].replace(replace, by, 1), *BLOCKS[1:]):
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    return gradderiv.verify("normalize")


@pytest.mark.usefixtures("tables")
def test_the_guide_is_followed() -> None:
    report = follow()
    assert report.passed, str(report)
    assert {r.oracle for r in report.records} == set(ORACLES) - {"blockdiag"}  # which is for layers
    assert {r.number for r in report.records} == {"float", "field", "symbol"}
    assert not report.select(verdict="vacuous")


@pytest.mark.usefixtures("tables")
def test_the_command_of_the_guide(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = re.findall(r"`gradderiv (verify normalize)`", GUIDE)
    follow()
    assert main(command.split()) == 0
    assert "comparisons hold" in capsys.readouterr().out
    follow("(dY - (dY * Y).sum(-1, keepdim=True)) / s", "dY / s")
    assert main(command.split()) == 1
    assert "FAIL  normalize · X · float64 · autograd" in capsys.readouterr().out


def test_the_tables_are_put_back() -> None:
    assert "normalize" not in {**catalog.RULES, **problems.PROBLEMS, **reference.TEXTBOOK}


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("right", "wrong", "notice"),
    [
        ("(dY - (dY * Y).sum(-1, keepdim=True)) / s", "dY / s", {"autograd", "field", "sympy", "dual"}),
        ("X_dot - Y * X_dot.sum", "X_dot + Y * X_dot.sum", {"dual"}),
        ("dY_dot - inner - dX", "dY_dot - inner + dX", {"second order"}),
        ("s = X.sum(-1, keepdim=True)", "s = X.sum(-2, keepdim=True)", {"forward", "autograd", "field"}),
    ],
)
def test_the_guide_with_a_mistake(right: str, wrong: str, notice: set[str]) -> None:
    report = follow(right, wrong)
    assert notice <= {r.oracle for r in report.failures}


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=" ".join)
def test_the_blocks_are_written_as_the_code_is(arguments: tuple[str, ...], tmp_path: Path) -> None:
    for i, block in enumerate(BLOCKS):
        (tmp_path / f"block_{i}.py").write_text(block, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "ruff",
        *arguments,
        "--config",
        str(ROOT / "pyproject.toml"),
        "--no-cache",
    ]
    ignored = (
        ["--ignore", "F821"] if arguments == ("check",) else []
    )  # a block goes on where the one before it ended
    done = subprocess.run([*command, *ignored, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_paths_that_are_named_exist() -> None:
    paths = set(re.findall(r"`(gradderiv/[\w/.]+)`", GUIDE)) - {"gradderiv/rules/normalize.py"}
    assert len(paths) >= 5
    assert [p for p in paths if not (ROOT / p).exists()] == []
    assert not (ROOT / "gradderiv/rules/normalize.py").exists()


def test_the_set_up_is_that_of_the_readme_and_of_ci() -> None:
    """Nothing is installed here: the commands are held against the places where they are run."""
    (block,) = re.findall(r"^```sh\n(.*?)^```$", GUIDE, re.M | re.S)
    commands = [c.strip() for line in block.splitlines() for c in line.partition("  #")[0].split("&&")]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in commands[:3]:
        assert command in readme.replace("install --quiet", "install")
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    for command in commands[3:]:
        assert command.removesuffix(" .") in ci
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    test = setup["options.extras_require"]["test"]
    for tool in ("pytest-xdist", "ruff", "mypy", "import-linter", "gradderiv[book]"):
        assert f"\n{tool}" in test
    assert "slow:" in setup["tool:pytest"]["markers"]
