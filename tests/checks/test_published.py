"""The published case: the formula is right, its own check sees nothing, and what its ε does."""

from __future__ import annotations

import pytest
import torch

from gradderiv.checks import published
from gradderiv.checks.published import (
    WEIGHTS,
    draw,
    printed_check,
    printed_W_Q,
    published_case,
)
from gradderiv.rules import blockdiag


@pytest.mark.parametrize("seed", range(5))
def test_closed_forms_and_the_printed_formula_agree_with_autograd(seed: int) -> None:
    records = published_case(seed)
    assert {r.verdict for r in records} == {"pass"}
    assert {(r.argument, r.dtype) for r in records} == {
        (name, dtype) for name in (*WEIGHTS, "W_Q as printed") for dtype in ("float64", "float32")
    }


def test_a_formula_without_the_row_sum_fails_here_and_passes_the_printed_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without(*args: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        return printed_W_Q(*args, **named, row_sum=False)

    monkeypatch.setattr(published, "printed_W_Q", without)
    failed = {r.argument for r in published_case() if r.verdict == "fail"}
    assert failed == {"W_Q as printed"}
    case = draw()
    assert printed_check(without(**case.args, dY=case.dY), case.autograd["W_Q"])


def test_a_wrong_closed_form_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = blockdiag.grad_W_V
    monkeypatch.setattr(blockdiag, "grad_W_V", lambda *args, **named: 1.001 * right(*args, **named))
    assert {r.argument for r in published_case() if r.verdict == "fail"} == {"W_V"}


def test_autograd_leaves_the_case_as_it_is() -> None:
    case = draw()
    assert not any(x.requires_grad for x in case.args.values())


def test_the_printed_check_sees_only_errors_of_one_and_more() -> None:
    right = draw().autograd["W_Q"]
    assert not printed_check(right + 1.5, right)
    assert printed_check(right + 0.5, right)
