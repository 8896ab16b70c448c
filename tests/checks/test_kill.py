"""The kill table: as declared, and not as declared when something is not."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from gradderiv.checks.kill import KillTable, kill_table
from gradderiv.checks.mutants import MUTANTS, RIGHT, Mutant
from gradderiv.checks.mutants.stages import Pass
from gradderiv.checks.oracles import ORACLES
from gradderiv.checks.problems import PROBLEMS
from gradderiv.rules.softcap import cap_vjp

BEYOND = "softmax-narrow"
CHEAP = ("forward", "field", "identities")
QUICK = (
    "field",
    "dual",
)  # the exact oracles; all are asked with -m slow, and by ``gradderiv verify --kill-table``


def sort_of(mutant: Mutant) -> tuple[str, str]:
    return mutant.kind, PROBLEMS[mutant.asked_on("dual")[0]].rule


# forward mode is asked about one mutant of every sort, and about those that it alone can kill
MOVED = [
    *{sort_of(m): m for m in reversed(MUTANTS.values())}.values(),
    *(m for m in MUTANTS.values() if m.must("dual") and not m.must("field")),
]


@pytest.fixture(scope="module")
def whole() -> KillTable:
    return kill_table(oracles=["field"])


@pytest.fixture(scope="module")
def dual() -> KillTable:
    return kill_table({m.id: m for m in MOVED}.values(), ["dual"])


def test_the_tables_are_as_declared(whole: KillTable, dual: KillTable) -> None:
    for table in (whole, dual):
        assert table.as_declared, str(table.text())
    assert len(whole.cells) == len(MUTANTS) + 1
    assert len(dual.cells) > 25


def test_a_wrong_second_order_is_killed_by_the_oracle_for_it() -> None:
    wrong = [m for m in MUTANTS.values() if m.kind == "second"]
    table = kill_table(wrong, ["second order"])
    assert wrong
    assert table.as_declared, str(table.text())
    assert {c.mutant for c in table.select(outcome="killed")} == {m.id for m in wrong}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_oracle_is_as_declared_and_kills() -> None:
    table = kill_table(workers=2)
    assert table.as_declared, str(table.text())
    assert len(table.cells) == (len(MUTANTS) + 1) * len(ORACLES)
    killed = table.select(outcome="killed")
    assert {c.mutant for c in killed} == set(MUTANTS) - {BEYOND}
    assert {c.oracle for c in killed} == set(ORACLES)
    for mutant in MUTANTS.values():
        if mutant.kind == "formula":
            assert "float64" in table.cell(mutant.id, "autograd").numbers, mutant.id


def test_nobody_kills_the_right_rules_and_everybody_was_asked(whole: KillTable, dual: KillTable) -> None:
    row = whole.select(mutant=RIGHT.id)
    assert {c.outcome for c in (*row, *dual.select(mutant=RIGHT.id))} == {"alive"}
    rules = {PROBLEMS[problem].rule for c in row if c.oracle == "field" for problem in c.problems}
    assert rules >= {problem.rule for m in MUTANTS.values() for p in m.problems for problem in [PROBLEMS[p]]}
    assert {"multihead", "attend", "transformer", "graph"} <= rules


def test_every_mutant_is_killed_exactly(whole: KillTable, dual: KillTable) -> None:
    killed = whole.select(outcome="killed") + dual.select(outcome="killed")
    second = {m.id for m in MUTANTS.values() if m.kind == "second"}
    quiet = {m.id for m in MUTANTS.values() if not any(m.must(o) for o in QUICK)}
    assert {c.mutant for c in killed} == set(MUTANTS) - quiet
    assert quiet >= second | {BEYOND}
    assert {c.oracle for c in killed} == set(QUICK)


def test_what_is_beyond_all_oracles_was_asked_and_is_named(whole: KillTable) -> None:
    assert {c.outcome for c in whole.select(mutant=BEYOND)} == {"alive"}
    told = " ".join(whole.text().split()).partition(" beyond all of them, with a reason")
    assert told[1]
    assert BEYOND in told[0].rpartition(";")[2]


def test_a_kill_says_where_it_was_seen(whole: KillTable) -> None:
    assert all(c.detail and c.problems and c.numbers for c in whole.select(outcome="killed"))


def test_the_table_as_text_fits_a_terminal(whole: KillTable) -> None:
    text = str(whole)
    assert max(map(len, text.splitlines())) <= 80
    assert "(right)" in text.splitlines()[1]
    killed = {c.mutant for c in whole.select(outcome="killed")}
    assert f"{len(killed)} of {len(MUTANTS)} mutants killed" in " ".join(text.split())
    assert text.index("plain layer: masks") < text.index("mask-polarity") < text.index("plain layer: sums")
    for mutant in MUTANTS.values():
        assert mutant.what.split()[0] in text
    for reason in {c.reason for c in whole.cells if c.mutant != RIGHT.id}:
        assert " ".join(reason.split()) in " ".join(text.split())
    whole.text(unicode=False).encode("ascii")


def test_the_table_as_json(whole: KillTable) -> None:
    document = json.loads(whole.to_json())
    assert document["as_declared"] is True
    assert len(document["cells"]) == len(whole.cells)
    assert [m["id"] for m in document["mutants"]] == [RIGHT.id, *MUTANTS]
    assert {"schema_version", "gradderiv", "torch", "python", "seed"} <= set(document)


# ---------------------------------------------------------------- the table can be not as declared


def dS(c: Pass) -> torch.Tensor:
    return c.P * (c.dP - (c.P * c.dP).sum(-1, keepdim=True))


def complaint(mutant: Mutant, *oracles: str) -> str:
    table = kill_table([mutant], oracles or CHEAP)
    assert not table.as_declared
    assert {c.mutant for c in table.mistakes} == {mutant.id}
    text = " ".join(table.text().split())
    assert "NOT as declared" in text
    return text


def test_a_twin_that_is_secretly_right_is_noticed() -> None:
    twin = dataclasses.replace(MUTANTS["softmax-no-rowsum"], id="twin", replaced={"dS": dS})
    assert "twin under field: must be killed, and is alive" in complaint(twin)


def test_a_wrong_operator_that_is_secretly_right_is_noticed() -> None:
    twin = dataclasses.replace(MUTANTS["softcap-passed"], id="twin", replaced={"softcap.vjp": cap_vjp})
    assert "twin under field: must be killed, and is alive" in complaint(twin)


def test_a_mutant_beyond_all_oracles_that_is_killed_is_noticed() -> None:
    loud = dataclasses.replace(
        MUTANTS[BEYOND], id="loud", replaced=MUTANTS["lse-dropped"].replaced, problems=("attend-lse",)
    )
    assert "loud under field: is killed" in complaint(loud, "field")


def test_few_mutants_need_no_headings() -> None:
    lines = kill_table(["rope-order", "scale-twice"], ["field"]).text().splitlines()
    assert [line.split()[0] for line in lines[1:4]] == [RIGHT.id, "rope-order", "scale-twice"]


def test_a_kill_that_was_declared_impossible_is_noticed() -> None:
    mutant = MUTANTS["transpose-dK"]
    modest = dataclasses.replace(mutant, kills=mutant.kills - {"field"}, reasons={"field": "no reason"})
    assert "transpose-dK under field: is killed" in complaint(modest)


def test_a_cell_that_nobody_declared_is_noticed() -> None:
    silent = dataclasses.replace(RIGHT, id="silent", kind="formula", problems=("tiny-h1",))
    assert "neither a kill nor a reason is declared" in complaint(silent, "field")


def test_a_mutant_that_raises_is_an_error_and_no_kill() -> None:
    def broken(c: Pass) -> torch.Tensor:
        raise RuntimeError("broken on purpose")

    mutant = dataclasses.replace(MUTANTS["softmax-no-rowsum"], id="broken", replaced={"dS": broken})
    assert "broken under field: it raised RuntimeError: broken on purpose" in complaint(mutant)
    assert kill_table([mutant], ["field"]).cell("broken", "field").outcome == "error"


def test_what_has_no_exact_meaning_is_inconclusive_and_no_kill() -> None:
    def rounded(c: Pass) -> torch.Tensor:
        return torch.round(c.P)

    mutant = dataclasses.replace(MUTANTS["softmax-no-rowsum"], id="rounded", replaced={"dS": rounded})
    table = kill_table([mutant], ["field", "autograd"])
    assert table.cell("rounded", "field").outcome == "inconclusive"
    assert table.cell("rounded", "autograd").outcome == "killed"
