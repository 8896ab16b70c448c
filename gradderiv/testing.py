"""For your own tests: a gradient that is not right fails with the whole report.

from gradderiv.testing import assert_gradients_close, assert_proved

def test_attention():
    assert_proved(attention, (Q, K, V))                  # in exact arithmetic, at any size
    assert_gradients_close(attention, (Q, K, V))         # in floats, entry by entry, no tolerance to choose
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradderiv.checks.proof import Proof
    from gradderiv.checks.report import Report


def assert_proved(function: Callable[..., Any], inputs: Any, **options: Any) -> Proof:
    """Assert that :func:`gradderiv.prove` proves ``function``.

    Args:
        function, inputs, options: as :func:`gradderiv.prove` takes them; only the shapes of what is differentiated matter.

    Returns:
        The proof.

    Raises:
        AssertionError: it is refuted or inconclusive; the message is the proof as it prints.
        InputError, DtypeError: as :func:`gradderiv.prove`.
    """
    __tracebackhide__ = True
    from gradderiv.checks.prove import prove

    proof = prove(function, inputs, **options)
    if not proof.passed:
        raise AssertionError(_told("the gradient is not proved", proof))
    return proof


def assert_gradients_close(function: Callable[..., Any], inputs: Any, **options: Any) -> Report:
    """Assert that every gradient of ``function`` at ``inputs`` is within rounding of what :func:`gradderiv.check`'s oracles say.

    Args:
        function, inputs, options: as :func:`gradderiv.check` takes them.

    Returns:
        The report.

    Raises:
        AssertionError: a gradient is wrong, or nothing was shown; the message is the report as it prints.
        InputError, DtypeError: as :func:`gradderiv.check`.
    """
    __tracebackhide__ = True
    from gradderiv.checks.check import check

    report = check(function, inputs, **options)
    if not report.passed:
        raise AssertionError(_told("a gradient is not what it should be", report))
    return report


def _told(asked: str, report: Report) -> str:
    return f"{asked}: {report.verdict}\n\n{report}"
