"""What all tests share: a quiet, repeatable environment, and no skip that was not agreed on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

AGREED_SKIPS = ("no CUDA device", "no Chromium")


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    torch.manual_seed(0)
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_num_threads(1)  # small cases: a second thread costs more than it brings
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


_unagreed: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(agreed in reason for agreed in AGREED_SKIPS):
            _unagreed.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unagreed and session.exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _unagreed:
        terminalreporter.write_line(f"unexpected skip, counted as a failure: {line}", red=True)
