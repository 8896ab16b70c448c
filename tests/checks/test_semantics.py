"""The table of semantics is computed: every entry again by another road, and it moves when what it is about moves."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from gradderiv.checks import semantics as checks
from gradderiv.checks.semantics import in_words, semantics, setting, table
from gradderiv.rules import fills
from gradderiv.rules.fills import SEMANTICS, Fill, Semantics, masked_fill

F32, F64 = torch.float32, torch.float64
SAYS = {
    "zero": "0",
    "nan": "NaN",
    "replace": "uniform over all 7 keys",
    "add": "softmax of its scores, all 7 keys",
    "add each": "softmax of its scores, keys 0 1 2 5",
    "lowest": "uniform over all 7 keys",
    "onnxruntime": "all of it on key 0",
    "onnxruntime 1.13": "neither even nor by score, keys 0 1 2 5",
}


@cache
def every(dtype):
    return {f.name: f for f in semantics(dtype=dtype)}


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_the_empty_row_gives_does_not_depend_on_the_draw(seed, dtype):
    assert {f.name: f.gives for f in semantics(seed, dtype)} == SAYS


def test_every_semantics_is_there():
    assert list(every(F32)) == list(SEMANTICS) == list(SAYS)


def by_hand(name, dtype):
    """P in plain torch, from S′."""
    s = setting(dtype=dtype)
    options = SEMANTICS[name].options(s.masks, dtype)
    S = s.S.requires_grad_()
    if name == "zero":
        filled = S.masked_fill(~s.seen, -torch.inf)
        P = torch.where(s.seen.any(-1, keepdim=True), torch.softmax(filled, -1), 0.0)
    else:
        P = torch.softmax(masked_fill(S, fill=options["fill"])[0], -1)
    return s, S, P


@pytest.mark.parametrize("name", [n for n in SEMANTICS if n not in ("zero", "nan")])
def test_leaks_are_those_of_autograd(name):
    """dV and dK of the empty row alone, by autograd: no other row is asked."""
    s, S, P = by_hand(name, F64)
    f = every(F64)[name]
    (dS,) = torch.autograd.grad((P @ s.V)[0], S, s.dO[0])
    assert f.slope == pytest.approx(float(dS.norm()))
    assert f.empty.dK == pytest.approx(float((s.scale * dS.mT @ s.Q).norm()))
    P = P.detach()
    assert f.empty.dV == pytest.approx(float((P[:1].mT @ s.dO[:1]).norm()))
    assert f.empty.dV != pytest.approx(float((P[:2].mT @ s.dO[:2]).norm()))
    assert f.row == pytest.approx(tuple(P[0].tolist()))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_no_float_shows_a_leak_where_something_is_seen(dtype):
    for f in every(dtype).values():
        assert f.seeing.dV == f.seeing.dK == 0
        assert f.seeing.share < math.log10(torch.finfo(dtype).tiny)
    assert every(dtype)["zero"].seeing.share == every(dtype)["nan"].seeing.share == -math.inf
    assert math.isfinite(every(dtype)["lowest"].seeing.share)


def test_twin_a_shallow_fill_leaks_where_something_is_seen(monkeypatch):
    shallow = Semantics("shallow", "−2", lambda masks, dtype: fills._replace(masks, dtype, -2.0))
    monkeypatch.setitem(SEMANTICS, "shallow", shallow)
    s = setting()
    f = checks.find("shallow", s)
    assert f.seeing.dV > 0
    assert f.seeing.dK == 0  # replaced: κ cuts the gradient of the score, and dV leaks all the same
    P = torch.softmax(torch.where(s.seen, s.S, -2.0), -1)
    hidden = P.masked_fill(s.seen, 0.0).sum(-1)[1:]
    assert 10**f.seeing.share == pytest.approx(float(hidden.max()), rel=1e-5)


@pytest.mark.parametrize("name", SEMANTICS)
def test_the_depth_is_where_half_is_lost(name):
    f, s = every(F64)[name], setting(dtype=F64)
    options = SEMANTICS[name].options(s.masks, F64)

    def hidden_share(c):
        P, _ = checks._weights(torch.where(s.seen, s.S - c, s.S), options)
        return float(P.masked_fill(s.seen, 0.0).sum(-1)[1:].max())

    if name in ("zero", "nan"):
        assert f.depth is None
        assert hidden_share(torch.finfo(F64).max) == 0
        return
    assert (
        hidden_share(f.depth)
        < 0.5
        <= hidden_share(f.depth * (1 + 1e-12) if name != "lowest" else f.depth * 1.0000000001)
    )


def test_only_the_lowest_float_has_a_gradient_of_scores_that_move_nothing():
    for dtype in (F32, F64):
        assert [n for n, f in every(dtype).items() if f.absorbed] == ["lowest"]
        for name in ("add", "add each", "onnxruntime 1.13"):
            f = every(dtype)[name]
            assert f.slope == pytest.approx(f.moved, rel=0.05)
    low = torch.finfo(F32).min
    assert torch.equal(setting().S + low, torch.full((7, 7), low))


@pytest.mark.parametrize(
    ("p", "filled", "said"),
    [
        ([0.0, 0.0], [0.0, 0.0], "0"),
        ([torch.nan] * 2, [-torch.inf] * 2, "NaN"),
        ([0.5, 0.5], [3.0, 3.0], "uniform over all 2 keys"),
        ([0.5, 0.5, 0.0], [3.0, 3.0, -999.0], "uniform over keys 0 1"),
        ([0.0, 1.0], [-999.0, 3.0], "all of it on key 1"),
        ([0.3, 0.7], [-99.0, -98.0], "softmax of its scores, all 2 keys"),
        ([0.3, 0.7], [-99.0, -98.5], "neither even nor by score, all 2 keys"),
    ],
)
def test_the_words_follow_from_the_row(p, filled, said):
    p, filled = torch.tensor(p), torch.tensor(filled)
    assert in_words(p, filled, torch.arange(1.0, 1.0 + len(p))) == said


def test_the_table_is_what_was_found_and_fits():
    text = table(list(every(F32).values()))
    assert max(map(len, text.splitlines())) <= 79
    for name, gives in SAYS.items():
        assert any(line.startswith(name) and gives in line for line in text.splitlines())
    assert text != table(semantics(1))
    assert text.count(checks.ABSORBED) == 1


def test_a_fill_of_another_system_has_a_row_too(monkeypatch):
    def options(masks, dtype):
        return {"fill": Fill(None, torch.where(masks[0] & masks[1], 0.0, 5.0).to(dtype))}

    monkeypatch.setitem(SEMANTICS, "plus five", Semantics("plus five", "the sign forgotten", options))
    f = checks.find("plus five", setting(dtype=F64))
    assert f.gives == SAYS["add"]
    assert f.seeing.dV > 0
    assert f.seeing.dK > 0
    assert f.depth == 0  # hidden keys have half from the start
