"""The table of options: what it says of itself, what it refuses, and a row that is added to it."""

from __future__ import annotations

import difflib
import inspect
import re

import pytest
import torch
from rule_calls import SMALL, attend_options, not_zero

from gradderiv.errors import DtypeError, InputError
from gradderiv.numbers.dual import Dual
from gradderiv.numbers.field import Field
from gradderiv.rules import attend as module
from gradderiv.rules import options as table
from gradderiv.rules.attend import attend, attend_jvp, attend_vjp, attend_vjp_jvp
from gradderiv.rules.fills import Fill
from gradderiv.rules.fused import fused
from gradderiv.rules.multihead import multihead, multihead_vjp
from gradderiv.rules.options import Part, insert, require_options
from gradderiv.rules.steps import Operator

F64 = torch.float64


def normal(*shape):
    return torch.randn(shape, dtype=F64)


Q, K, V = normal(4, 3, 4), normal(2, 3, 4), normal(2, 3, 5)

# ---------------------------------------------------------------- the table


def test_the_order_is_that_of_the_forward_pass():
    names = list(dict.fromkeys(p.name for p in table.PARTS))
    assert names == [
        "QK-norm", "rotary", "cache", "grouped heads", "scores", "temperature", "softcap", "ALiBi", "T5 bias", "bias",
        "fill", "softmax", "dropout", "context",
    ]  # fmt: skip
    written = {"Q", "K", "V"}
    for p in table.PARTS:  # nothing is read before it is there
        reads, _, writes = p.wires.partition(" -> ")
        core = {n for n in reads.split() if n in table.CORE}
        assert core <= written, p
        written |= {*writes.split()}
    assert written == {*table.CORE}


def test_without_options_four_rows_are_on():
    assert [s.writes for s in table.steps({})] == [("S",), ("P", "lse"), ("O",)]
    assert len(table.steps({"n_heads": 4, "mask": torch.ones(1, 1, dtype=torch.bool)})) == 5


@pytest.mark.parametrize("name", list(dict.fromkeys(p.name for p in table.PARTS if p.needs)))
def test_each_option_switches_its_rows_on_and_no_others(name):
    rows = [p for p in table.PARTS if p.name == name]
    needs = {n: torch.ones(1) for p in rows for n in p.needs}
    on = table.steps(needs)
    plain = [s.operator for s in table.steps({})]
    assert len(on) == len(plain) + len(rows)
    assert [s.operator for s in on if s.operator not in plain] == [p.operator for p in rows]


def test_every_option_is_a_variable_or_a_constant_and_stands_in_the_legend():
    both = table.variables() + table.constants()
    assert len({*both}) == len(both)
    assert {"sinks", "gain_K", "temperature", "V_cache"} <= {*table.variables()}
    assert {"softcap", "fill", "mask", "pairing"} <= {*table.constants()}
    assert "n_heads" not in both  # which is found
    for name in both:
        assert re.search(rf"\b{name}\b", module.__doc__), name
    assert not re.search(r"\bsink\b", module.__doc__)  # a twin: a word is looked for, not a part of one


def test_every_option_at_once_has_a_gradient_of_its_shape():
    shapes, options = attend_options(SMALL)
    n = SMALL.n_k
    given = {
        name: not_zero(normal, *s) if name == "temperature" else normal(*s) for name, s in shapes.items()
    }
    heads = normal(2, n, 4), normal(1, n, 4), normal(1, n, 7)
    O, saved = attend(*heads, **given, **options)
    g = attend_vjp(torch.ones_like(O.O), saved)._asdict()
    assert g.keys() == {"Q", "K", "V", *given}
    assert {*given} == {*table.variables()}
    for name, x in given.items():
        assert g[name].shape == x.shape
        assert bool(g[name].any()), name


# ---------------------------------------------------------------- what it refuses

WORDS = {
    "an unknown option with a near name": (
        {"sink": normal(4)},
        "attend has no option sink\n  came:  sink=…\n  cause: another spelling\n  do:    one of sinks, sin, mask",
    ),
    "an unknown option": (
        {"xyz": 1},
        "attend has no option xyz\n  came:  xyz=…\n  cause: the name of another library\n"
        f"  do:    one of {', '.join((*table.variables(), *table.constants()))}",
    ),
    "the name of another library": (
        {"attn_mask": None},
        "attend has no option attn_mask\n  came:  attn_mask=…\n  cause: another spelling\n  do:    one of mask",
    ),
    "a partner forgotten": (
        {"K_cache": normal(2, 2, 4)},
        "attend needs K_cache and V_cache for the option cache\n  came:  K_cache without V_cache\n"
        "  cause: an argument forgotten, or one that only tunes an option that is off\n  do:    pass V_cache too, or none",
    ),
    "epsilon without a norm": (
        {"eps": 0.1},
        "attend needs gain_Q and gain_K for the option QK-norm\n  came:  eps without gain_Q, gain_K\n"
        "  cause: an argument forgotten, or one that only tunes an option that is off\n  do:    pass gain_Q, gain_K too, or none",
    ),
    "a mask and a fill": (
        {"mask": torch.ones(3, 3, dtype=torch.bool), "fill": Fill(None, torch.zeros(3, 3, dtype=F64))},
        "attend hides keys by a mask or by a finite fill, not by both\n  came:  mask and fill\n"
        "  cause: a fill meant for what the mask hides\n"
        "  do:    give the mask to a row of gradderiv.rules.fills.SEMANTICS, and pass what that returns",
    ),
    "a number for a fill": (
        {"fill": -1e4},
        "attend needs fill as a Fill\n  came:  float\n  cause: the number that stands for −∞ alone\n"
        "  do:    gradderiv.rules.fills.SEMANTICS",
    ),
    "caches of two lengths": (
        {"K_cache": normal(2, 2, 4), "V_cache": normal(2, 1, 5)},
        "attend needs as many cached values as keys\n  came:  K_cache (2, 2, 4), V_cache (2, 1, 5)\n"
        "  cause: caches of different steps, or one that was cut and one that was not\n"
        "  do:    K_cache (..., h_kv, n_past, d_k), V_cache (..., h_kv, n_past, d_v)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_the_words(name):
    options, words = WORDS[name]
    with pytest.raises(InputError) as caught:
        attend(Q, K, V, **options)
    assert str(caught.value) == words


BAD = {
    "one gain": ({"gain_Q": normal(4)}, InputError),
    "sines alone": ({"sin": normal(3, 4)}, InputError),
    "a pairing alone": ({"pairing": "half"}, InputError),
    "a probability alone": ({"dropout_p": 0.1}, InputError),
    "a table without buckets": ({"table": normal(4, 4)}, InputError),
    "heads, which are found": ({"n_heads": 4}, InputError),
    "a temperature that is a number": ({"temperature": 2.0}, DtypeError),
    "sinks in another precision": ({"sinks": torch.zeros(4)}, DtypeError),
    "a sink for each key/value head": ({"sinks": normal(2)}, InputError),
    "slopes times distances": ({"slopes": normal(4, 3, 3)}, InputError),
    "a transposed table": ({"table": normal(4, 9), "buckets": torch.zeros(3, 3, dtype=torch.int64)}, InputError),
    "a bucket that is none": ({"table": normal(2, 4), "buckets": torch.full((3, 3), 2)}, InputError),
    "a negative bucket": ({"table": normal(2, 4), "buckets": torch.full((3, 3), -1)}, InputError),
    "buckets of floats": ({"table": normal(2, 4), "buckets": torch.zeros(3, 3)}, DtypeError),
    "buckets as a list": ({"table": normal(2, 4), "buckets": [[0] * 3] * 3}, DtypeError),
    "a cap of zero": ({"softcap": 0.0}, InputError),
    "a cap that is a tensor": ({"softcap": torch.ones(4)}, InputError),
    "a cap that is a word": ({"softcap": "50"}, InputError),
    "a negative epsilon": ({"gain_Q": normal(4), "gain_K": normal(4), "eps": -1.0}, InputError),
    "a keep mask of floats": ({"keep": torch.ones(3, 3), "dropout_p": 0.1}, DtypeError),
    "a keep mask as a list": ({"keep": [True], "dropout_p": 0.1}, DtypeError),
    "everything dropped": ({"keep": torch.ones(3, 3, dtype=torch.bool), "dropout_p": 1.0}, InputError),
    "a keep mask that is too long": ({"keep": torch.ones(3, 4, dtype=torch.bool), "dropout_p": 0.1}, InputError),
    "an odd number of columns that turn": ({"cos": normal(3, 3), "sin": normal(3, 3)}, InputError),
    "angles of the pairs alone, of other positions": ({"cos": normal(4, 2), "sin": normal(4, 2)}, InputError),
    "the pairing of a model": ({"cos": normal(3, 4), "sin": normal(3, 4), "pairing": "llama"}, InputError),
    "a cache as a vector": ({"K_cache": normal(4), "V_cache": normal(5)}, InputError),
    "a cache of repeated heads": ({"K_cache": normal(4, 2, 4), "V_cache": normal(4, 2, 5)}, InputError),
    "a cache as a list": ({"K_cache": [1.0], "V_cache": normal(2, 2, 5)}, DtypeError),
    "a gain of the whole projection": ({"gain_Q": normal(16), "gain_K": normal(8)}, InputError),
    "a mask of floats": ({"mask": torch.zeros(3, 3)}, DtypeError),
    "a mask without the cache": (
        {"mask": torch.ones(3, 3, dtype=torch.bool), "K_cache": normal(2, 2, 4), "V_cache": normal(2, 2, 5)}, InputError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused_in_four_parts(name):
    options, kind = BAD[name]
    with pytest.raises(kind, match=r"(?s)came: .*cause: .*do: "):
        attend(Q, K, V, **options)


def test_shapes_of_queries_keys_and_values():
    for bad in ((normal(4), K, V), (normal(4, 3, 3), K, V), (Q, K, normal(2, 4, 5)), (Q, normal(3, 3, 4), normal(3, 3, 5)),
                (Q, K, normal(1, 3, 5)), (normal(2, 4, 3, 4), K, V)):  # fmt: skip
        with pytest.raises(InputError, match="attend needs Q "):
            attend(*bad)


def test_a_layer_refuses_under_its_own_name():
    X, W = normal(3, 8), [normal(8, 8) for _ in range(4)]
    with pytest.raises(InputError, match="multihead has no option sink"):
        multihead(X, *W, n_heads=2, sink=normal(2))
    with pytest.raises(InputError, match="fused needs keep and dropout_p"):
        fused(X, normal(8, 24), W[0], layout="contiguous", n_heads=2, dropout_p=0.5)
    with pytest.raises(InputError, match="a layout is one of"):
        fused(X, normal(8, 24), W[0], layout="gpt2", n_heads=2)


def test_twin_good_options_are_not_refused():
    require_options("attend", {})
    require_options("attend", {"eps": 0.1, "gain_Q": normal(4), "gain_K": normal(4), "sinks": None})
    attend(Q, K, V, dropout_p=0.5, keep=torch.ones(3, 3, dtype=torch.bool), softcap=2, scale=0.0)


def test_a_tangent_of_an_option_that_is_off_is_refused():
    _, saved = attend(Q, K, V, sinks=normal(4))
    attend_jvp(saved, Q, K, V, sinks_dot=normal(4))
    attend_jvp(saved, Q, K, V, bias_dot=None)
    for wrong in ("sink_dot", "bias_dot"):
        with pytest.raises(
            InputError, match=r"a tangent needs an argument that was given: one of Q, K, V, sinks"
        ):
            attend_jvp(saved, Q, K, V, **{wrong: normal(4)})


def test_near_names_are_near():
    """The words above are difflib's, on the names that there are."""
    known = (*table.variables(), *table.constants())
    assert difflib.get_close_matches("sink", known, 3, 0.5) == ["sinks", "sin", "mask"]
    assert not difflib.get_close_matches("xyz", known, 3, 0.5)


# ---------------------------------------------------------------- a row of one's own

#: Y = g ∘ S: the four functions of a gate on the scores
GATE = Operator(
    lambda S, gate: (S * gate, (S, gate)),
    lambda s, S, gate: S * s[1] + s[0] * gate,
    lambda d, s: (d * s[1], (d * s[0]).sum_to_size(s[1].shape)),
    lambda d, s, e, S, gate: (e * s[1] + d * gate, (e * s[0] + d * S).sum_to_size(s[1].shape)),
)
#: Y = S ∘ S, with a constant beside it
POWER = Operator(
    lambda S, *, times: (times * S * S, (S, times)),
    lambda s, S: 2 * s[1] * s[0] * S,
    lambda d, s: (2 * s[1] * s[0] * d,),
    lambda d, s, e, S: (2 * s[1] * (s[0] * e + S * d),),
)


@pytest.fixture
def own(monkeypatch):
    """The table, to be changed; as it was, afterwards."""
    monkeypatch.setattr(table, "PARTS", list(table.PARTS))
    return table.PARTS


def test_a_row_that_is_inserted_takes_part_in_everything(own):
    """Value, tangent, gradients and second order against autograd and dual numbers of the formula, exactly."""
    insert(Part("gate", GATE, "S gate -> S"), before="softcap")
    insert(Part("power", POWER, "S -> S", must=("times",)), before="gate")
    assert "gate" in table.variables()
    assert "times" in table.constants()
    field, dual = Field(seed=4, lanes=2), Dual()
    names = ("Q", "K", "V", "gate", "sinks")
    shapes = (2, 3, 4), (2, 3, 4), (2, 3, 5), (2, 1, 3), (2,)
    x, u = ({n: field.random(*s) for n, s in zip(names, shapes, strict=True)} for _ in range(2))
    dO, dO_dot = field.random(2, 3, 5), field.random(2, 3, 5)
    (O, _, _), saved = attend(**x, times=3.0, softcap=2.0)
    theta = {n: dual.make(x[n], u[n]).requires_grad_() for n in names}
    S = theta["Q"] @ theta["K"].mT / 2
    S = 2.0 * torch.tanh(3 * S * S * theta["gate"] / 2.0)  # first the power, then the gate, then the cap
    E, e = torch.exp(S), torch.exp(theta["sinks"])[:, None, None]
    expected = (E / (E.sum(-1, keepdim=True) + e)) @ theta["V"]
    gradients = torch.autograd.grad(expected, list(theta.values()), dual.make(dO, dO_dot))
    expected, dots = expected.detach(), {f"{n}_dot": t for n, t in u.items()}
    pairs = [(O, expected.primal), (attend_jvp(saved, **dots).O, expected.tangent)]
    g, g_dot = attend_vjp(dO, saved), attend_vjp_jvp(dO, saved, dO_dot, **dots)
    pairs += [(getattr(g, n), d.primal) for n, d in zip(names, gradients, strict=True)]
    pairs += [(getattr(g_dot, n), d.tangent) for n, d in zip(names, gradients, strict=True)]
    for found, right in pairs:
        assert found.shape == right.shape
        assert not bool(field.differs(found, right).any())


def test_a_row_that_is_inserted_is_an_option_of_the_layer_too(own):
    insert(Part("gate", GATE, "S gate -> S"), before="softmax")
    X, W, gate = normal(3, 8), [normal(8, 8) for _ in range(4)], normal(2, 1, 1)
    leaf = gate.clone().requires_grad_()
    Y, _ = multihead(X, *W, n_heads=2, gate=leaf)
    dY = normal(3, 8)
    (expected,) = torch.autograd.grad(Y, leaf, dY)
    torch.testing.assert_close(multihead_vjp(dY, multihead(X, *W, n_heads=2, gate=gate)[1]).gate, expected)
    with pytest.raises(InputError, match="has no option gates"):
        attend(Q, K, V, gates=gate)


def test_where_a_row_stands_matters(own):
    gate = torch.tensor(3.0, dtype=F64)
    before = attend(Q, K, V, softcap=1.0)[0].O
    insert(Part("gate", GATE, "S gate -> S"), before="softcap")
    early = attend(Q, K, V, softcap=1.0, gate=gate)[0].O
    own[:] = [p for p in own if p.name != "gate"]
    insert(Part("gate", GATE, "S gate -> S"), before="softmax")
    late = attend(Q, K, V, softcap=1.0, gate=gate)[0].O
    assert not torch.allclose(early, late)
    torch.testing.assert_close(
        attend(Q, K, V, softcap=1.0)[0].O, before
    )  # and without the option nothing does


def test_a_name_that_no_row_has_is_an_error():
    with pytest.raises(ValueError, match="soft"):
        insert(Part("gate", GATE, "S gate -> S"), before="softmaxx")
    assert "gate" not in table.variables()


def test_the_table_is_as_it_was():
    """What the tests above have inserted is gone."""
    with pytest.raises(InputError, match="has no option gate"):
        attend(Q, K, V, gate=normal(1))
    assert inspect.getmodule(table.PARTS[0].operator.f).__name__ == "gradderiv.rules.rms_norm"
