"""The command line: exit statuses, and output that survives a pipe, a narrow or an ASCII terminal, and an interruption."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gradderiv
from gradderiv.checks import kill
from gradderiv.checks import verify as verify_module
from gradderiv.checks.catalog import RULES
from gradderiv.checks.report import Report
from gradderiv.cli import main

BRIEF = ["verify", "linear", "--problem", "linear", "--oracle", "autograd"]
ESCAPE = "\x1b"


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``python -m gradderiv`` in a pipe."""
    command = [sys.executable, "-m", "gradderiv", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**_clean(), **(env or {})}
    )


def _clean() -> dict[str, str]:
    return {
        k: v
        for k, v in os.environ.items()
        if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHONIOENCODING")
    }


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of b is half of what it should be."""
    right = RULES["linear"].gradients
    half = replace(RULES["linear"], gradients=lambda *a: {**(g := right(*a)), "b": g["b"] / 2})
    monkeypatch.setitem(RULES, "linear", half)


def raising(error: BaseException) -> Callable[..., Report]:
    def verify(*_: Any, **__: Any) -> Report:
        raise error

    return verify


# ---------------------------------------------------------------- exit statuses


def test_0_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(BRIEF) == 0
    out, err = capsys.readouterr()
    assert "PASS  9 comparisons hold. seed 0" in out
    assert err == ""


def test_1_something_does_not(wrong: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(BRIEF) == 1
    out, err = capsys.readouterr()
    assert "FAIL  linear · b · float64 · autograd" in out
    assert "Every entry is 0.5 × the right one (= 1/2): a mean for a sum" in " ".join(out.split())
    assert "replay: gradderiv verify --problem linear --oracle autograd --seed 0" in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["verify", "lineer"], "gradderiv knows no rule 'lineer'"),
        (["verify", "--oracle", "autgrad"], "gradderiv knows no oracle 'autgrad'"),
        (["verify", "--problem", "selfish"], "gradderiv knows no problem 'selfish'"),
        (["verify", "--dtype", "float12"], "'float12' is none of float64, float32, bfloat16"),
        (["verify", "--device", "cuda:99"], "gradderiv needs a device that torch can use"),
        (["verify", "--seed", "x"], "--seed"),
        (["verify", "--no-such-option"], "--no-such-option"),
        (["no-such-verb"], "no-such-verb"),
    ],
)
def test_2_the_call_was_wrong(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert out == ""


def test_3_not_decided(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--problem", "self", "--oracle", "sympy"]) == 3
    assert capsys.readouterr().out == "VOID  nothing was compared: no oracle applies. seed 0, 0.0 s\n"
    assert main(["verify", "--problem", "saturated", "--oracle", "autograd", "--dtype", "bfloat16"]) == 0
    assert "vacuous where expected" in capsys.readouterr().out


def test_70_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verify_module, "verify", raising(RuntimeError("the moon is full")))
    assert main(BRIEF) == 70
    err = capsys.readouterr().err
    assert "RuntimeError: the moon is full" in err
    assert "test_cli.py" in err  # the traceback
    assert err.endswith(
        "this is a fault of gradderiv's, not of your call: please report it with the lines above\n"
    )


def test_130_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verify_module, "verify", raising(KeyboardInterrupt()))
    assert main(BRIEF) == 130
    assert capsys.readouterr().err == "gradderiv: interrupted\n"


@pytest.mark.parametrize(
    ("records", "as_declared", "status"),
    [(0, True, 0), (0, False, 1), (3, True, 3), (3, False, 1), (1, True, 1)],
)
def test_the_kill_table_counts_too(
    records: int,
    as_declared: bool,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Table:
        def text(self, **_: Any) -> str:
            return "the kill table"

    Table.as_declared = as_declared
    found = verify_module.verify("linear", "forward", problems="linear")
    found = {0: found, 1: Report([replace(found.records[0], verdict="fail")]), 3: Report()}[records]
    monkeypatch.setattr(verify_module, "verify", lambda *_, **__: found)
    monkeypatch.setattr(kill, "kill_table", lambda **_: Table())
    assert main(["verify", "--kill-table"]) == status
    assert capsys.readouterr().out.endswith("\n\nthe kill table\n")


# ---------------------------------------------------------------- as a program


def test_as_a_program() -> None:
    done = run("verify", "lineer")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gradderiv: gradderiv knows no rule 'lineer'\n  came:  lineer\n")


def test_version_and_help() -> None:
    version = run("--version")
    assert (version.returncode, version.stdout) == (0, f"gradderiv {gradderiv.__version__}\n")
    command = Path(sys.executable).with_name("gradderiv")
    for option in ("--help", "verify --help"):
        done = run(*option.split())
        assert done.returncode == 0
        assert "Usage: gradderiv" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80
    if command.exists():  # the entry point, where the package is installed
        done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
        assert done.stdout == version.stdout
    nothing = run()
    assert "Usage: gradderiv" in nothing.stdout + nothing.stderr
    assert nothing.returncode == 2


# ---------------------------------------------------------------- JSON


def test_json_says_what_the_table_says(tmp_path: Path, wrong: None) -> None:
    file = tmp_path / "report.json"
    file.write_text("old")
    assert main([*BRIEF, "--json", str(file), "--seed", "4"]) == 1
    document = json.loads(file.read_text(encoding="utf-8"))
    assert (document["verdict"], document["seed"]) == ("fail", 4)
    assert {r["argument"] for r in document["records"] if r["verdict"] == "fail"} == {"b"}
    assert os.listdir(tmp_path) == ["report.json"]


def test_where_json_cannot_be_written_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify_module, "verify", raising(AssertionError("work was begun")))
    assert main([*BRIEF, "--json", str(tmp_path / "missing" / "report.json")]) == 2
    assert f"the folder '{tmp_path / 'missing'}' does not exist" in _flat(capsys.readouterr().err)
    assert main([*BRIEF, "--json", str(tmp_path)]) == 2
    assert "is a folder; name a file" in _flat(capsys.readouterr().err)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main([*BRIEF, "--json", str(tmp_path / "report.json")]) == 2
    assert "may not be written" in _flat(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def _flat(text: str) -> str:
    return " ".join(text.split())


def test_a_refused_call_leaves_the_old_json(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("old")
    assert main(["verify", "lineer", "--json", str(file)]) == 2
    assert file.read_text() == "old"


# ---------------------------------------------------------------- pictures


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BRIEF, "--plot", str(tmp_path / "errors")]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path / 'errors' / 'linear-linear-float64.png'}\n")
    assert main(["verify", "--problem", "linear", "--oracle", "field", "--plot", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("no picture\n")


def test_pictures_that_cannot_be_drawn_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify_module, "verify", raising(AssertionError("work was begun")))
    file = tmp_path / "errors.png"
    file.write_text("")
    assert main([*BRIEF, "--plot", str(file)]) == 2
    assert "pictures of errors need a folder" in capsys.readouterr().err


# ---------------------------------------------------------------- pipes and terminals


FEW = [
    word
    for name in ("linear", "softmax-masked", "attention-options", "cross-masked", "block-cross")
    for word in ("--problem", name)
]


def test_in_a_pipe_there_is_no_colour_no_progress_and_no_long_line() -> None:
    done = run("verify", *FEW, "--oracle", "forward", env={"COLUMNS": "300", "TERM": "xterm-256color"})
    assert (done.returncode, done.stderr) == (0, "")
    assert ESCAPE not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert re.search(r"PASS  \d+ comparisons hold", done.stdout)


@pytest.fixture(scope="module")
def by_field() -> Report:
    return verify_module.verify(oracles="field", quick=True)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_a_console_without_the_glyphs_gets_words(
    encoding: str, by_field: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = io.BytesIO()
    monkeypatch.setattr(verify_module, "verify", lambda *_, **__: by_field)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(sent, encoding=encoding))
    assert main(["verify", "--quick", "--oracle", "field"]) == 0
    text = sent.getvalue().decode(encoding)
    assert text.isascii() == (encoding != "utf-8")
    assert re.search(r"\nfield +(ok|✓) 4 ", text)
    assert re.search(r"a wrong one passes with probability (<= 2\^-|≤ 2⁻)", text)
    assert "?" not in text


def test_a_report_prints_on_an_ascii_console_too(monkeypatch: pytest.MonkeyPatch) -> None:
    report = gradderiv.verify("linear", "forward")
    for encoding, cell in (("ascii", b"forward    ok 6"), ("utf-8", "forward     ✓ 6".encode())):
        sent = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(sent, encoding=encoding))
        print(report, flush=True)
        assert cell in sent.getvalue()


def test_a_reader_who_goes_away_changes_nothing() -> None:
    """``gradderiv verify | true``: the status is the verdict's, and nothing is complained about."""
    command = [sys.executable, "-m", "gradderiv", *BRIEF]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_clean()) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def on_a_terminal(*arguments: str, columns: int, **env: str) -> str:
    """What a terminal is sent, its progress line included."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    command = [sys.executable, "-m", "gradderiv", *arguments]
    with subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env={**_clean(), "TERM": "xterm-256color", **env}
    ) as process:
        os.close(theirs)
        sent = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the terminal is closed when the program ends
                break
            if not piece:
                break
            sent += piece
        assert process.wait() == 0
    os.close(ours)
    return sent.decode()


def shown(sent: str) -> list[str]:
    """The lines that remain, without control sequences and what was overwritten."""
    lines = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", sent).replace("\r\n", "\n").split("\n")
    return [line.rpartition("\r")[2] for line in lines]


def test_a_terminal_gets_colour_and_a_progress_line_that_goes_away() -> None:
    sent = on_a_terminal(*BRIEF, columns=80)
    assert f"{ESCAPE}[1;32mPASS" in sent
    assert max(map(len, shown(sent))) <= 80
    assert "PASS  9 comparisons hold" in "\n".join(shown(sent))
    assert "0/1" in sent or "1/1" in sent or "importing torch" in sent


def test_a_narrow_terminal_gets_narrow_lines_and_no_colour_if_it_wants_none() -> None:
    sent = on_a_terminal("verify", *FEW, "--oracle", "forward", columns=50, NO_COLOR="1")
    assert f"{ESCAPE}[1;32m" not in sent
    table = shown(sent)
    assert re.search(r"PASS  \d+ comparisons hold", "\n".join(table))
    assert max(len(line) for line in table if "comparisons" in line or "multihead" in line) <= 50


# ---------------------------------------------------------------- Ctrl-C


def test_ctrl_c_leaves_the_files_alone(tmp_path: Path) -> None:
    """A real signal in the middle of the work: 130, no traceback, the JSON of the last run untouched."""
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it\n"
        "from gradderiv.checks.oracles import ORACLES\n"
        "from gradderiv.cli import main\n"
        "right = ORACLES['forward']\n"
        "def slow(*args, **more):\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(60)\n"
        "    return right(*args, **more)\n"
        "ORACLES['forward'] = slow\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    file = tmp_path / "report.json"
    file.write_text("the old report")
    command = [sys.executable, "-c", code, "verify", "linear", "--oracle", "forward", "--json", str(file)]
    start = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_clean()
    ) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == ("", "gradderiv: interrupted\n")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["the old report"]
    assert time.monotonic() - start < 55


# ---------------------------------------------------------------- prove

CODE = """
import torch

def attention(Q, K, V):
    return torch.softmax(Q @ K.mT / Q.shape[-1] ** 0.5, -1) @ V

def attention_inputs():
    return torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 6)

class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, S):
        P = torch.softmax(S, -1)
        ctx.save_for_backward(P)
        return P
    @staticmethod
    def backward(ctx, g):
        (P,) = ctx.saved_tensors
        return P * (1 - P) * g

def sorted_scores(S):
    return S.sort(-1).values

def interrupted(S):
    raise KeyboardInterrupt
"""
SHAPES = ["--shape", "Q=3,4", "--shape", "K=5,4", "--shape", "V=5,2"]


@pytest.fixture
def code(tmp_path: Path) -> str:
    file = tmp_path / "attention_code.py"
    file.write_text(CODE)
    return str(file)


@pytest.mark.parametrize(
    ("name", "options", "status", "words"),
    [
        ("attention", [], 0, "PROVED  for these shapes and all real inputs"),
        ("attention", SHAPES, 0, "all outputs  ✓ proved        Q K V"),
        ("Wrong", ["--shape", "S=3,4"], 1, "REFUTED  Wrong · S · all outputs"),
        ("sorted_scores", ["--shape", "S=3,4"], 3, "aten.sort.default has no exact meaning"),
        ("nothing", [], 2, ""),
        ("Wrong", [], 2, ""),
        ("attention", ["--shape", "Q=3,,4"], 2, ""),
        ("attention", ["--order", "3"], 2, ""),
        ("attention", ["--json", "/nowhere/proof.json"], 2, ""),
        ("interrupted", ["--shape", "S=2"], 130, ""),
    ],
)
def test_the_exit_status_of_a_proof(code, capsys, name, options, status, words) -> None:
    assert main(["prove", f"{code}:{name}", *options]) == status
    assert words in capsys.readouterr().out


def test_a_refutation_names_the_command_that_replays_it(code, capsys, monkeypatch) -> None:
    arguments = ["prove", f"{code}:Wrong", "--shape", "S=3,4", "--seed", "5"]
    monkeypatch.setattr(sys, "argv", ["gradderiv", *arguments])
    assert main(arguments) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "replay: gradderiv prove " in printed
    assert "--shape S=3,4 --seed 5" in printed


def test_a_proof_as_json_and_in_ascii(code, tmp_path) -> None:
    file = tmp_path / "proof.json"
    command = run(
        "prove", f"{code}:attention", "--order", "2", "--json", str(file), env={"PYTHONIOENCODING": "ascii"}
    )
    assert command.returncode == 0, command.stderr
    assert command.stdout.isascii()
    assert "ok proved" in command.stdout
    assert max(map(len, command.stdout.splitlines())) <= 80
    document = json.loads(file.read_text())
    assert document["verdict"] == "proved"
    assert document["log2_failure"] <= -40
    assert {r["problem"] for r in document["records"]} == {"all outputs", "second order: all outputs"}


def test_help_warns_that_the_file_is_executed() -> None:
    text = " ".join(run("prove", "--help").stdout.split())
    assert "FILE.py is executed: name only files that you trust" in text
