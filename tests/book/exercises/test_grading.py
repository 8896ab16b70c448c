"""What answers are worth: right ones written in another way, empty ones, and those that only look right."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradderiv.book.exercises import Exercise, Verdict, exercises, grade
from gradderiv.book.exercises.guard import TimeIsUp, Watch, within
from gradderiv.book.exercises.trial import said
from gradderiv.book.layout import columns
from gradderiv.rules.softmax import softmax

CHAPTER = Path(__file__).with_name("05_practice.py")
ASKED = {e.id: e for e in exercises(CHAPTER)}

FIRST = "line(inner(dO, P @ V_dot), OUTPUT.moves)\n"
HEAD = "def softmax_backward(dP, P):\n    "
RIGHT = "P * (dP - (P * dP).sum(-1, keepdim=True))"


def judge(id: str, answer: str, limit: float = 60.0) -> Verdict:
    return grade(ASKED[id], answer, file="mine.py", limit=limit)


# exercise, answer, points, what the verdict must say
CHAINS = {
    "nothing": ("", 0, "no line was added"),
    "a comment": ("# line(inner(P.mT @ dO, V_dot), laws.LEFT)", 0, "no line was added"),
    "half of the way": (FIRST, 2, "1 of the 2 lines of the way were reached"),
    "two reasons at once": ("line(inner(P.mT @ dO, V_dot), OUTPUT.moves, laws.LEFT)", 4, "1 line, to the end"),
    "the same line again": ("line(inner(dO, O_dot), OUTPUT.moves)", 0, "no reason is used"),
    "there and back": (f"{FIRST}line(inner(dO, O_dot), OUTPUT.moves)", 2, "1 of the 2 lines"),
    "the gradient that ships": ("line(inner(attention_vjp(dO, saved).V, V_dot), laws.LEFT)", 0, "line 2 must follow"),
    "under another name": (
        "G = at.let('G', attention_vjp(dO, saved).V)\nline(inner(G, V_dot), definition(G))", 0, "line 2 must follow",
    ),
    "a fact of one's own": (
        "line(inner(P.mT @ dO, V_dot), fact(inner(dO, O_dot), inner(P.mT @ dO, V_dot)))", 0, "or was stated before the exercise",
    ),
    "a definition of one's own": (
        "line(inner(P.mT @ dO, V_dot), definition(O_dot, P @ V_dot), laws.LEFT)", 0, "or was stated before the exercise",
    ),
    "words that are not checked": (
        "from gradderiv.book.chain import computed\nline(inner(P.mT @ dO, V_dot), computed('clear'))", 0, "or was stated before the exercise",
    ),
    "words": ("line(inner(P.mT @ dO, V_dot), 'clear')", 0, "words are not a reason"),
    "another differential": (
        "Z, _ = differential(attention, Q, K, moves(V, V_dot), scale=tau, name='Z')\nline(inner(dO, Z), OUTPUT.moves)", 0, "must follow",
    ),
    "another chain": (f"line = chain(inner(dO, O_dot), '')\n{FIRST}", 0, "another chain than the one that was given"),
    "a law of one's own": (
        "from gradderiv.book.laws import Law\nE = inner(P.mT @ dO, V_dot)\nline(E, Law('mine', 'n d', lambda A: (inner(dO, O_dot), E)))", 0, "or was stated before the exercise",
    ),
    "a kind of reason of one's own": (
        "from gradderiv.book.reasoning.reasons import Reason\nclass Mine(Reason): pass\nline(inner(P.mT @ dO, V_dot), Mine())", 0, "or was stated before the exercise",
    ),
    "a name that says more than it was given to": (
        "line(inner(dO, P @ V_dot), definition(at.let('O_dot', P @ V_dot)))", 0, "or was stated before the exercise",
    ),
    "a formula of one's own to differentiate": (
        "line(inner(dO, P @ V_dot), definition(at.let('O', P @ V)).moves)", 0, "or was stated before the exercise",
    ),
    "a name that is taken": ("line.let('O_dot', P @ V_dot)\nline(inner(P.mT @ dO, V_dot), laws.LEFT)", 0, "a name stands for one matrix"),
    "a name of one's own": (
        f"{FIRST}line(inner(P.mT @ dO, V_dot), laws.LEFT)\nZ = at.let('Z', P.mT @ dO)\nline(inner(Z, V_dot), definition(Z))", 4, "3 lines, to the end",
    ),
    "no matrix": ("line(3, laws.LEFT)", 0, "line 2 needs a named matrix"),
    "an exception that cannot be read": ("class E(Exception):\n    def __str__(self): raise E\nraise E", 0, "line 3: raise E E"),
    "an exception that is none": ("raise GeneratorExit", 0, "line 1: raise GeneratorExit"),
    "another point, please": ("from gradderiv.numbers.lanes import DrawAgain\nraise DrawAgain('zero')", 0, "it divides by zero"),
    "nested too deeply": ("-" * 100000 + "1", 0, "MemoryError"),
    "a null": ("line\0", 0, "SyntaxError: source code string cannot contain null bytes"),
    "a byte order mark": ("\ufeffline", 0, "line 1: SyntaxError"),
    "lines smuggled in": (
        "line.lines.append(line.lines[0]._replace(named=inner(P.mT @ dO, V_dot)))", 0, "has no law for a reason",
    ),
    "an error after a right line": (f"{FIRST}undefined", 2, "line 2: undefined NameError"),
    "a syntax error": (f"{FIRST}line(inner(dO", 0, "line 2: SyntaxError"),
    "exit": (f"{FIRST}raise SystemExit", 0, "called exit"),
}  # fmt: skip

FUNCTIONS = {
    "nothing": ("", 0, "there is no softmax_backward"),
    "no function": ("softmax_backward = 3", 0, "must be a function"),
    "a lambda": (f"softmax_backward = lambda dP, P: {RIGHT}", 2, "equal in every entry, at 2 sizes"),
    "the Jacobian, spelled out": (
        f"{HEAD}J = torch.diag_embed(P) - P.unsqueeze(-1) * P.unsqueeze(-2)\n    return (J @ dP.unsqueeze(-1)).squeeze(-1)", 2, "equal",
    ),
    "not written": (f"{HEAD}raise NotImplementedError", 0, "not written yet"),
    "no return": (f"{HEAD}{RIGHT}", 0, "it returns None"),
    "zeros": (f"{HEAD}return torch.zeros_like(P)", 0, "Every entry is 0"),
    "a constant": (f"{HEAD}return torch.ones_like(P)", 0, "12 of 12 entries"),
    "a number": (f"{HEAD}return 0", 0, "must be a tensor of shape (3, 4)"),
    "another quantity": (f"{HEAD}return dP", 0, "It is dP, not dS"),
    "a sign": (f"{HEAD}return -{RIGHT}", 0, "a sign?"),
    "a factor": (f"{HEAD}return {RIGHT} / 3", 0, "1/3 × the right one"),
    "one row": (f"{HEAD}out = {RIGHT}\n    out[1] = 0\n    return out", 0, "row 1 only"),
    "a row to be broadcast": (f"{HEAD}return ({RIGHT})[:1]", 0, "its shape must be (3, 4)"),
    "transposed": (f"{HEAD}return ({RIGHT}).mT", 0, "it is transposed"),
    "right at one size only": (f"{HEAD}return {RIGHT} * (1 if P.shape[0] == 3 else 2)", 0, "n_q = 5"),
    "written into what is given": (f"{HEAD}dP -= (P * dP).sum(-1, keepdim=True)\n    return P * dP", 0, "it writes into dP"),
    "the rule that ships": (
        f"from gradderiv.rules.softmax import softmax_vjp\n{HEAD}return softmax_vjp(dP, P)[0]", 0, "it calls gradderiv.rules.softmax.softmax_vjp",
    ),
    "autograd": (
        f"{HEAD}S = P.log().requires_grad_()\n    return torch.autograd.grad(torch.softmax(S, -1), S, dP)[0]", 0, "it calls torch.autograd.grad",
    ),
    "backward": (
        f"{HEAD}S = P.log().requires_grad_()\n    (torch.softmax(S, -1) * dP).sum().backward()\n    return S.grad", 0, "it calls torch._tensor.backward",
    ),
    "autograd's functions of functions": (
        f"{HEAD}return torch.autograd.functional.vjp(lambda S: torch.softmax(S, -1), P.log(), dP)[1]", 0, "it calls torch.autograd.functional.vjp",
    ),
    "what is asked for, as a parameter": ("def softmax_backward(dP, P, dS):\n    return dS * 1", 0, "must keep their names"),
    "autograd's engine": (
        f"{HEAD}S = P.log().requires_grad_()\n    E = torch.autograd.Variable._execution_engine\n"
        "    return E.run_backward((torch.softmax(S, -1),), (dP,), False, False, (S,), allow_unreachable=True, accumulate_grad=False)[0]",
        0, "the engine of autograd",
    ),
    "autograd, in a thread": (
        f"import threading\n{HEAD}out = []\n    def f():\n        S = P.log().requires_grad_()\n"
        "        out.append(torch.autograd.grad(torch.softmax(S, -1), S, dP)[0])\n"
        "    t = threading.Thread(target=f); t.start(); t.join()\n    return out[0]",
        0, "it calls torch.autograd.grad",
    ),
    "truth values": (f"{HEAD}return P > 0", 0, "must be real numbers"),
    "integers": (f"{HEAD}return torch.ones(P.shape, dtype=torch.int64)", 0, "must be real numbers"),
    "complex numbers": (f"{HEAD}return torch.ones(P.shape, dtype=torch.complex64)", 0, "must be real numbers"),
    "no numbers": (f"{HEAD}return torch.full(P.shape, float('nan'))", 0, "NaN or an infinity"),
    "no memory": (f"{HEAD}return torch.zeros(P.shape, device='meta')", 0, "must be real numbers"),
    "a sparse matrix": (f"{HEAD}return torch.eye(*P.shape).to_sparse()", 0, "must be real numbers"),
    "other parameters": ("def softmax_backward(dP, P, S_max):\n    return dP", 0, "must keep their names"),
    "too many results": (f"{HEAD}return {RIGHT}, P", 0, "it must return dS"),
    "an exception": (f"{HEAD}x = 1\n    return x / 0", 0, "line 3: return x / 0 ZeroDivisionError"),
    "two listed mistakes at once": (f"{HEAD}return P * (1 - P) * dP * 2", 0, "12 of 12 entries"),
}  # fmt: skip

MISTAKES = {
    "a number": ("answer = 4", 0, "not correct(LINE, EXPRESSION, REASON)"),
    "a line that is not there": ("answer = correct(40, inner(dO, O_dot), laws.LEFT)", 0, "there is no line 40"),
    "the start": ("answer = correct(1, inner(dO, O_dot), laws.LEFT)", 0, "where the derivation starts"),
    "the line before": ("answer = correct(4, inner(dS, tau * Q @ K_dot.mT), SCORES.moves)", 2, "it says again what a line before it says"),
    "what stands there": ("answer = correct(4, inner(-tau * Q.mT @ dS, K_dot.mT), laws.LEFT)", 2, "-1 × the one before"),
    "the gradient that ships": ("answer = correct(4, inner(attention_vjp(dO, saved).K, K_dot), laws.LEFT)", 2, "quotes attention_vjp"),
    "the wrong law": ("answer = correct(4, inner(tau * Q.mT @ dS, K_dot.mT), laws.RIGHT)", 2, "it follows by LEFT"),
    "a fact of one's own": (
        "E = inner(tau * Q.mT @ dS, K_dot.mT)\nanswer = correct(4, E, fact(inner(dS, dot.S), E))", 2, "or was stated before the exercise",
    ),
    "no law": ("answer = correct(4, inner(tau * Q.mT @ dS, K_dot.mT))", 2, "needs a reason"),
    "a line that is no number": ("answer = correct(4.0, inner(tau * Q.mT @ dS, K_dot.mT), laws.LEFT)", 0, "there is no line 4.0"),
    "a word that is not known": ("answer = correct(4, inner(tau * Q.mT @ dS, K_dot.mT), laws.LEFT, why='so')", 2, "unexpected keyword"),
    "no matrix": ("answer = correct(4, 3, laws.LEFT)", 2, "a line is a named matrix"),
    "shapes that do not fit": ("answer = correct(4, inner(tau * dS @ Q, K_dot), laws.LEFT)", 0, "line 1: answer = correct"),
}  # fmt: skip

CASES = [
    pytest.param(id, *case, id=f"{id} {name}")
    for id, table in {"5.1": CHAINS, "5.2": FUNCTIONS, "5.4": MISTAKES}.items()
    for name, case in table.items()
]


@pytest.mark.parametrize(("id", "answer", "points", "words"), CASES)
def test_what_an_answer_is_worth(id: str, answer: str, points: float, words: str) -> None:
    verdict = judge(id, answer)
    assert (verdict.points, verdict.right) == (points, points == ASKED[id].points)
    assert words in said(verdict)
    for line in verdict.text().splitlines():
        assert columns(line) <= 80
    assert verdict.text(unicode=False).isascii()


def test_a_right_stage_after_a_wrong_one_gets_its_points() -> None:
    answer = ASKED["5.3"].answer.source.replace("return P * (dP -", "return P * (2 * dP -")
    verdict = judge("5.3", answer)
    assert {p.name: p.verdict for p in verdict.parts} == {"dV": "right", "dS": "wrong", "dQ": "right", "dK": "right"}  # fmt: skip
    assert verdict.points == pytest.approx(4 * 3 / 5)  # dS counts twice


def test_results_in_the_wrong_order() -> None:
    answer = ASKED["5.3"].answer.source.replace(
        "return scale * dS @ K, scale * dS.mT @ Q", "return scale * dS.mT @ Q, scale * dS @ K"
    )
    verdict = judge("5.3", answer)
    assert [p.verdict for p in verdict.parts] == ["right", "right", "wrong", "wrong"]
    assert "its shape must be (3, 2)" in said(verdict)


def test_what_leans_on_exp_is_not_called_wrong() -> None:
    answer = f"{HEAD}return {RIGHT} * torch.exp(P + dP) / torch.exp(P) / torch.exp(dP)"
    verdict = judge("5.2", answer)
    assert (verdict.points, verdict.undecided) == (0, True)
    assert "In float64 it is right" in said(verdict)


def test_an_answer_of_another_exercise_does_not_count() -> None:
    """5.4 and 5.5 both call theirs ``answer``."""
    assert "there is no answer" in said(judge("5.5", "# nothing"))


def test_what_the_answer_prints_is_shown_apart() -> None:
    verdict = judge("5.1", f"print('hello')\n{FIRST}")
    assert verdict.printed == "hello\n"
    assert "    | hello" in verdict.text()


@pytest.mark.parametrize("answer", ["while True: pass", f"{HEAD}while True: pass", f"{HEAD}\n    try:\n        while True: pass\n    except Exception: return P"])  # fmt: skip
def test_an_answer_without_end_is_stopped(answer: str) -> None:
    began = time.perf_counter()
    verdict = judge("5.2", answer, limit=0.3)
    assert "more than 0.3 seconds" in said(verdict)
    assert verdict.points == 0
    assert time.perf_counter() - began < 10


def test_the_limit_does_not_reach_what_follows() -> None:
    before = threading.active_count()
    for _ in range(20):
        try:
            with within(0.001):
                time.sleep(0.001)
        except TimeIsUp:
            pass
    with within(60):
        pass
    time.sleep(0.01)
    assert threading.active_count() <= before + 1


@pytest.mark.parametrize(
    "home", ["torch._functorch.eager_transforms", "torch.autograd.forward_ad", "gradderiv.numbers.dual"]
)
def test_who_differentiates_is_seen(home: str) -> None:
    space: dict[str, Callable[[], None]] = {}
    exec("def vjp(): pass", {"__name__": home}, space)
    watch = Watch()
    with watch.watching():
        space["vjp"]()
    assert watch.call == f"{home}.vjp"


def test_who_does_not_differentiate_is_not() -> None:
    watch = Watch()
    with watch.watching():
        torch.softmax(torch.ones(2, 2), -1)
        softmax(torch.ones(2, 2))
    assert not watch.call


def test_one_answer_leaves_no_trace_in_the_next() -> None:
    assert judge("5.1", f"{FIRST}saved = P = None").points == 2
    assert judge("5.1", ASKED["5.1"].answer.source).right


def test_a_claim_that_an_answer_changes_is_its_own() -> None:
    right = ASKED["5.4"].answer.source
    judge(
        "5.4",
        f"wrong.lines[3] = wrong.lines[3]._replace(expression=inner(tau * Q.mT @ dS, K_dot.mT))\n{right}",
    )
    assert judge("5.4", right).right
    assert "-1 × the one before" in said(judge("5.4", MISTAKES["what stands there"][0]))


def test_the_checker_reads_the_names_that_were_given_not_those_of_the_answer() -> None:
    answer = f"{FIRST}attention_vjp = lambda *a: None\ncheck_chain = print\nV_dot = None"
    assert judge("5.1", answer).points == 2


def test_json() -> None:
    import json

    record = json.loads(judge("5.2", "").to_json())
    assert (record["exercise"], record["points"], record["of"], record["right"]) == ("5.2", 0, 2, False)
    assert record["parts"][0]["why"].startswith("there is no")


def test_every_exercise_is_used_here() -> None:
    kinds: dict[str, list[Exercise]] = {}
    for exercise in ASKED.values():
        kinds.setdefault(exercise.kind, []).append(exercise)
    assert set(kinds) == {"chain", "function", "mistake"}
