"""Records and the report: verdicts, JSON, and files that are whole or not there."""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gradderiv
from gradderiv.checks import report as report_module
from gradderiv.checks.report import SCHEMA_VERSION, Record, Report, merge, write_whole

PASS = Record("multihead", "self", "W_K", "autograd", "float", "float64", "pass")
FAIL = replace(PASS, verdict="fail", argument="W_Q")
VOID = replace(PASS, verdict="vacuous", argument="b_Q")
DECLARED = replace(VOID, expected=True)


@pytest.mark.parametrize(
    ("records", "verdict", "status"),
    [
        ([PASS], "pass", 0),
        ([PASS, DECLARED], "pass", 0),
        ([PASS, VOID], "vacuous", 3),
        ([PASS, FAIL], "fail", 1),
        ([VOID, FAIL], "fail", 1),
        ([FAIL], "fail", 1),
        ([], "vacuous", 3),  # nothing was compared: nothing was shown
        ([DECLARED], "vacuous", 3),
        ([DECLARED, VOID], "vacuous", 3),
    ],
)
def test_the_verdict_is_that_of_the_worst_record(records: list[Record], verdict: str, status: int) -> None:
    report = Report(records)
    assert (report.verdict, report.exit_status, report.passed) == (verdict, status, verdict == "pass")
    assert json.loads(report.to_json())["verdict"] == verdict


def test_an_expected_failure_is_still_a_failure() -> None:
    assert Report([PASS, replace(FAIL, expected=True)]).verdict == "fail"


def test_what_a_report_can_be_asked() -> None:
    exact = replace(PASS, number="field", failure_probability=2.0**-41)
    report = Report(
        merge([[PASS, FAIL], [], [VOID, DECLARED, exact, replace(exact, failure_probability=2.0**-44)]])
    )
    assert report.failures == [FAIL]
    assert report.vacuous == [VOID]
    assert report.select(verdict="vacuous") == [VOID, DECLARED]
    assert report.select(argument="W_K", number="float") == [PASS]
    assert report.failure_probability == 2.0**-41
    assert Report([PASS]).failure_probability is None
    assert PASS.name == "multihead · W_K · float · autograd"


# ---------------------------------------------------------------- JSON

# As written in the design, in that order; then what this version adds.
TOP = ["schema_version", "gradderiv", "torch", "python", "seed", "seconds", "verdict", "records"]
RECORD = [
    "rule", "problem", "argument", "oracle", "number", "dtype", "verdict", "max_abs_error", "max_rel_error", "tolerance",
    "worst_index", "failure_probability", "seconds",
]  # fmt: skip
ADDED = ["detail", "expected", "replay"]


def test_json_has_the_fields_that_others_rely_on() -> None:
    document = json.loads(Report([PASS], seed=7, seconds=1.5).to_json())
    assert list(document) == TOP
    assert list(document["records"][0]) == RECORD + ADDED
    assert document["schema_version"] == SCHEMA_VERSION == 1
    assert document["gradderiv"] == gradderiv.__version__
    assert document["torch"] == torch.__version__
    assert document["python"] == platform.python_version()
    assert (document["seed"], document["seconds"]) == (7, 1.5)


def test_what_is_not_finite_is_null() -> None:
    odd = replace(
        FAIL,
        max_abs_error=math.inf,
        max_rel_error=math.nan,
        tolerance=-math.inf,
        worst_index=(5, 9),
        detail="σ ≠ τ",
    )
    text = Report([odd, PASS]).to_json()
    first, second = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))["records"]
    assert [first[k] for k in ("max_abs_error", "max_rel_error", "tolerance")] == [None, None, None]
    assert first["worst_index"] == [5, 9]
    assert first["failure_probability"] is None
    assert second["worst_index"] is None
    assert second["tolerance"] == 0.0
    assert "σ ≠ τ" in text


def test_json_goes_to_a_file(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    text = Report([PASS]).to_json(file)
    assert file.read_text(encoding="utf-8") == text + "\n"
    assert os.listdir(tmp_path) == ["report.json"]


# ---------------------------------------------------------------- whole or not at all


class Interrupted:
    """A stream on which the second half of a write does not happen."""

    def __init__(self, stream: object, error: BaseException) -> None:
        self.stream, self.error = stream, error

    def __enter__(self) -> Interrupted:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def write(self, data: bytes) -> None:
        self.stream.write(data[: len(data) // 2])
        self.stream.flush()
        raise self.error


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [None, "the old report"])
def test_an_interrupted_write_leaves_the_old_file_or_none(
    error: BaseException, old: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "report.json"
    if old is not None:
        file.write_text(old)
    plain = open
    monkeypatch.setattr(report_module, "open", lambda *a: Interrupted(plain(*a), error), raising=False)
    with pytest.raises(type(error)):
        write_whole(file, "the new report, which is longer")
    assert [p.read_text() for p in tmp_path.iterdir()] == ([] if old is None else [old])


def test_the_interruption_is_one_that_a_plain_write_does_not_survive(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("the old report")
    with pytest.raises(KeyboardInterrupt), Interrupted(file.open("wb"), KeyboardInterrupt()) as stream:
        stream.write(b"the new report, which is longer")
    assert file.read_text() == "the new report,"


def test_an_interrupted_rename_leaves_no_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        write_whole(tmp_path / "report.json", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_file_written_whole_can_be_read_by_those_who_could_read_any_other(tmp_path: Path) -> None:
    plain, whole = tmp_path / "plain", tmp_path / "whole"
    plain.write_text("x")
    write_whole(whole, "x")
    assert whole.stat().st_mode == plain.stat().st_mode


def test_a_link_is_followed_and_bytes_stay_as_they_are(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, b"a\nb\r\n\xff")
    assert link.is_symlink()
    assert target.read_bytes() == b"a\nb\r\n\xff"


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, "text")
        assert os.read(reader, 10) == b"text"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


# ---------------------------------------------------------------- in a notebook


def test_html_escapes_what_a_record_says() -> None:
    page = Report([replace(FAIL, detail="<script>alert('x')</script> & a < b")])._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "&amp; a &lt; b" in page
    assert page.startswith("<pre")
    assert page.endswith("</pre>")
    assert "<script>" in str(Report([replace(FAIL, detail="<script>")]))  # it was there to be escaped
