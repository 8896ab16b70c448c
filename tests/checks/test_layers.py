"""A real layer on real input: the closed forms are right, and a wrong reading of torch's layout or masks is seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradderiv.checks import layers
from gradderiv.checks.layers import CASES, Case, draw, unfused, verify_case, verify_layers
from gradderiv.checks.report import Record

SELF, CROSS_PADDED = CASES[1], CASES[4]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return verify_layers(seed=0)


def test_every_gradient_of_every_case_passes_in_both_types(records: list[Record]) -> None:
    assert {r.verdict for r in records} == {"pass"}, [r for r in records if r.verdict != "pass"]
    for case in CASES:
        for dtype in ("float64", "float32"):
            shown = {r.argument for r in records if r.problem == case.name and r.dtype == dtype}
            expected = {"Y", "X", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"}
            assert shown == expected | ({"X_kv"} if case.cross else set())


def test_the_cases_are_what_was_asked_for() -> None:
    assert {c.cross for c in CASES} == {c.causal for c in CASES} == {c.padded for c in CASES} == {True, False}
    assert len({c.name for c in CASES}) == len(CASES)
    assert layers.D_MODEL == 768
    assert layers.N_HEADS == 12


def test_errors_are_far_below_and_gradients_far_above_their_tolerance(records: list[Record]) -> None:
    for r in records:
        assert r.max_abs_error < 0.2 * r.tolerance, r
        if r.argument == "b_K":
            assert r.detail == "exactly zero, and is"
        else:
            shown, of = (int(w) for w in r.detail.split() if w.isdigit())
            assert shown > 0.7 * of, r  # what nobody attends to has a gradient of zero


def failing(monkeypatch: pytest.MonkeyPatch, name: str, wrong: object, case: Case = SELF) -> set[str]:
    """The arguments that fail where a part of the module is replaced."""
    monkeypatch.setattr(layers, name, wrong)
    return {r.argument for r in verify_case(case) if r.verdict == "fail"}


def test_rows_of_the_fused_weight_in_another_order_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def exchanged(fused: dict[str, Tensor]) -> dict[str, Tensor]:
        right = unfused(fused)
        return right | {"W_Q": right["W_K"], "W_K": right["W_Q"]}

    forms = layers.closed_forms

    def closed(drawn: layers.Drawn) -> dict[str, Tensor]:
        monkeypatch.setattr(layers, "unfused", exchanged)
        try:
            return forms(drawn)
        finally:
            monkeypatch.setattr(layers, "unfused", unfused)

    assert {"W_Q", "W_K", "Y"} <= failing(monkeypatch, "closed_forms", closed)


def test_a_weight_that_is_not_transposed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = layers.closed_forms

    def closed(drawn: layers.Drawn) -> dict[str, Tensor]:
        found = forms(drawn)
        return found | {"W_O": found["W_O"].mT}

    assert failing(monkeypatch, "closed_forms", closed) == {"W_O"}


@pytest.mark.parametrize("case", [SELF, CROSS_PADDED], ids=["causal", "padded"])
def test_the_polarity_of_torchs_masks_matters(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    may_attend = layers.may_attend

    def reversed_polarity(drawn: layers.Drawn) -> Tensor | None:
        mask = may_attend(drawn)
        return None if mask is None else ~mask

    forms = layers.closed_forms

    def closed(drawn: layers.Drawn) -> dict[str, Tensor]:
        monkeypatch.setattr(layers, "may_attend", reversed_polarity)
        try:
            return forms(drawn)
        finally:
            monkeypatch.setattr(layers, "may_attend", may_attend)

    assert {"Y", "W_V", "W_Q"} <= failing(monkeypatch, "closed_forms", closed, case)


def test_no_row_of_torchs_masks_is_empty() -> None:
    """torch returns NaN there, and the comparison would be of NaN with 0."""
    for case in CASES:
        mask = layers.may_attend(draw(case, 0))
        assert mask is None or bool(mask.any(-1).all())


def test_the_input_is_embedded_prose_and_follows_the_seed() -> None:
    first, again, other = (layers.passages(64, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert bytes(first.tolist()).decode("ascii").isprintable() or b"\n" in bytes(first.tolist())
    assert len(first.unique()) > 8


def test_progress_is_told_and_threads_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "verify_case", lambda case, seed: [])
    seen: list[tuple[int, int, str]] = []
    threads = torch.get_num_threads()
    verify_layers(progress=lambda done, total, what: seen.append((done, total, what)))
    assert [done for done, _, _ in seen] == list(range(len(CASES) + 1))
    assert seen[0][2] == CASES[0].name
    assert torch.get_num_threads() == threads
