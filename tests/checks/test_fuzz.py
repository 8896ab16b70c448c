"""Random programs: what torch differentiates is proved, and the same with one entry of one gradient spoilt is refuted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import NAMES, Maker, Program, make
from spoiling import spoilt
from steps import STEPS

import gradderiv

NOTHING_SEEN = "the inputs' own values show nothing"
RELATION = "a relation that the opaque functions do not have"
LEANING = {  # programs that are right and have no proof, and why
    "the backward of logaddexp has exp(b − a) where the forward has exp(a) and exp(b)",
    "u * u was computed before u became the square of its root",
    "x < a < b implies x < b, and gates do not know it",
    "torch clamps the norms under no_grad",
}
TIES = "which for some inputs is equal"  # a norm or a maximum of what relu or clamp made: at 0, or at a tie, it has no derivative
KINKS = ("relu", "clamp", "normalize", "where", ">", "<", "abs", "sign")
BATCH = 10


def shown(proof, source):
    return f"{proof.verdict}: {proof.reason}\n{source}\n{proof}"


def assert_proved(program: Program) -> str:
    """``proved``; or for a program that says why it may have no proof, ``inconclusive``."""
    proof = gradderiv.prove(program.function(), program.inputs(), seed=program.seed)
    if program.leans:
        assert program.leans in LEANING
        known = any(reason in proof.reason for reason in (RELATION, NOTHING_SEEN, TIES))
        assert proof.verdict == "proved" or (proof.verdict == "inconclusive" and known), shown(
            proof, program.source()
        )
    elif TIES in proof.reason:
        assert proof.verdict == "inconclusive", shown(proof, program.source())
        assert any(word in program.source() for word in KINKS), shown(proof, program.source())
    else:
        assert proof.verdict == "proved", shown(proof, program.source())
    return proof.verdict


def assert_refuted(program: Program) -> bool:
    """``refuted``; False where nothing of the program could be spoilt, or floats at these inputs cannot tell. Never ``proved``."""
    found = spoilt(program)
    if found is None:
        return False
    wrong, source = found
    proof = gradderiv.prove(wrong, program.inputs(), seed=program.seed)
    left_open = proof.verdict == "inconclusive" and any(
        reason in proof.reason for reason in (RELATION, NOTHING_SEEN, TIES)
    )
    assert proof.verdict == "refuted" or left_open, shown(proof, source)
    return proof.verdict == "refuted"


@pytest.mark.parametrize(
    "batch", [*range(4), *(pytest.param(b, marks=pytest.mark.slow) for b in range(4, 15))]
)
def test_random_programs_are_proved(batch):
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        assert_proved(make(seed, most=10))


@pytest.mark.parametrize("batch", [0, 1, *(pytest.param(b, marks=pytest.mark.slow) for b in (2, 3, 4, 5))])
def test_the_same_with_one_gradient_spoilt_are_refuted(batch):
    first = 5000 + batch * BATCH
    assert sum(assert_refuted(make(seed, most=6)) for seed in range(first, first + BATCH)) >= BATCH - 3


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(100))
def test_thousands_of_random_programs_are_proved(batch):
    for seed in range(10_000 + 50 * batch, 10_000 + 50 * (batch + 1)):
        assert_proved(make(seed))


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(20))
def test_hundreds_of_spoilt_programs_are_refuted(batch):
    first = 20_000 + 50 * batch
    assert sum(assert_refuted(make(seed)) for seed in range(first, first + 50)) >= 40


# ---------------------------------------------------------------- found by these, and by reading what they cover


def transposed_copy(x):
    """A copy that lies in memory as its transpose does: flatten is a view of it."""
    y = x.mT.clone().mT
    y.view(-1)[1:3].mul_(2)
    return y * x


FOUND = {
    "square_": lambda x: (x * 1).square_() * x,
    "**= 3": lambda x: (x * 1).pow_(3) * x,
    "softmax of one number": lambda x: F.softmax(x.sum(), 0) * x,
    "log_softmax of one number": lambda x: F.log_softmax(x.sum(), 0).exp() * x,
    "mean of one number": lambda x: x.sum().mean(0) * x,
    "view of a cumsum": lambda x: x.cumsum(0).view(-1)[1:] * x.sum(),
    "view of a sigmoid": lambda x: torch.sigmoid(x.mT).mT.view(-1) * x.sum(),
    "view of a softplus": lambda x: F.softplus(x.mT).mT.view(-1).exp() * x.sum(),
    "write into a transposed copy": transposed_copy,
    "embedding": lambda x: F.embedding(torch.tensor([1, 2]), x, padding_idx=0) * 2,
}


@pytest.mark.parametrize("name", FOUND)
def test_programs_that_were_refused_are_proved(name):
    proof = gradderiv.prove(FOUND[name], (torch.randn(3, 4, dtype=torch.float64),))
    assert proof.verdict == "proved", proof.reason


def test_a_padding_row_that_is_read_has_no_gradient_and_the_reason_says_so():
    proof = gradderiv.prove(
        lambda x: F.embedding(torch.tensor([1, 0]), x, padding_idx=0) * 2, (torch.randn(3, 4),)
    )
    assert proof.verdict == "inconclusive"
    assert "padding_idx gives no gradient" in proof.reason


# ---------------------------------------------------------------- the generator


def test_a_seed_gives_one_program_whose_source_is_what_runs():
    program, again = make(7), make(7)
    assert program.source() == again.source()
    space = dict(NAMES)
    exec(program.source(), space)
    torch.manual_seed(0)
    ran = program.function()(*program.inputs())
    torch.manual_seed(0)
    printed = space["program"](*program.inputs())
    for x, y in zip(*((y if isinstance(y, tuple) else (y,)) for y in (ran, printed)), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_nearly_every_step_is_met():
    met = {name for seed in range(300) for name in make(seed).steps}
    assert len({name for name in STEPS if name not in met}) <= 20


def test_a_step_that_does_not_fit_leaves_nothing_behind():
    maker = Maker(0)
    before = maker.program.source(), dict(maker.kinds)

    def step(m):
        m.put("x * 2")
        m.put("x / 0")

    assert not maker.attempt(step, "no step")
    assert (maker.program.source(), maker.kinds) == before


def test_what_is_spoilt_differs_in_floats_or_is_given_up():
    def squares(m):
        m.put(f"{m.take()} ** 2")

    def detached(m):
        m.put(f"{m.take()}.detach() * 0 + 1")

    wrong, source = spoilt(make(3, {"squares": (1.0, squares)}))
    assert "spoil(" in source
    assert callable(wrong)
    maker = Maker(3)
    maker.attempt(detached, "detached")
    maker.program.outputs = ["a"]
    assert spoilt(maker.program) is None
