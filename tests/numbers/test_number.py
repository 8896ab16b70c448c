"""What all numbers share: they are tensors to torch, and one table answers for them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gradderiv.errors import DtypeError, GradderivError, InputError, NoExactMeaning, message
from gradderiv.numbers.dual import Dual
from gradderiv.numbers.field import Field
from gradderiv.numbers.number import Number, System
from gradderiv.numbers.operands import ARITHMETIC
from gradderiv.numbers.rounding import Rounding
from gradderiv.numbers.structure import STRUCTURE, VIEWS
from gradderiv.numbers.symbols import Symbols
from gradderiv.numbers.tape import Tape

aten = torch.ops.aten


def makers():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    field, symbols = Field(0, 2), Symbols()
    return {
        "field": field.random(2, 3),
        "symbols": symbols.symbols("x", 2, 3),
        "dual": Dual().make(values, values * 2),
        "dual over the field": Dual().make(field.random(2, 3), field.random(2, 3)),
        "rounding": Rounding(torch.float32).make(values) * 1.5,
        "tape": Tape().make(values.clone().requires_grad_()),
    }


KINDS = list(makers())


@pytest.fixture(params=KINDS)
def x(request):
    return makers()[request.param]


def parts(x):
    """Every part down to ordinary tensors."""
    out = {}
    for name in x.names:
        part = x.part(name)
        out |= (
            {f"{name}/{n}": t for n, t in parts(part).items()} if isinstance(part, Number) else {name: part}
        )
    return out


def equal(x, y):
    a, b = parts(x), parts(y)
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_number_is_a_tensor(x):
    assert isinstance(x, torch.Tensor)
    assert x.shape == (2, 3)
    assert (x.dim(), x.numel(), len(x), x.size(-1)) == (2, 6, 2, 3)
    assert x.dtype == torch.float64
    assert x.device.type == "cpu"
    assert x.is_contiguous()
    assert not x.mT.is_contiguous()
    assert x.is_floating_point()
    assert isinstance(x.system, System)
    assert not is_traceable_wrapper_subclass(x)


def test_repr_names_the_kind_and_does_not_raise(x):
    text = repr(x)
    assert text.startswith(f"{type(x).__name__}(")
    assert text.endswith("dtype=torch.float64)")
    assert str(x[0]).startswith(f"{type(x).__name__}(")
    assert f"{x.mT}".startswith(f"{type(x).__name__}(")
    if not isinstance(x.system, Tape):
        assert repr(x.clone().requires_grad_()).endswith("requires_grad=True)")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, torch.clone, lambda x: x + 0])
def test_copies_are_of_the_same_kind_and_independent(x, duplicate):
    if isinstance(x.system, Tape) and duplicate is copy.deepcopy:
        with pytest.raises(RuntimeError):  # torch deep-copies leaves only
            copy.deepcopy(x.recorded)
        return
    y = duplicate(x)
    before = {n: t.clone() for n, t in parts(x).items()}
    assert type(y) is type(x)
    assert y.system is x.system
    assert y.shape == x.shape
    y.mul_(0)
    y[0] = 7
    assert all(torch.equal(t, before[n]) for n, t in parts(x).items())


def test_pickling_keeps_the_entries():
    for kind in ("dual", "rounding"):
        x = makers()[kind]
        assert equal(pickle.loads(pickle.dumps(x)), x)


def test_parameters_and_leaves():
    for kind in ("field", "symbols", "dual", "rounding"):
        x = makers()[kind]
        p = torch.nn.Parameter(x)
        assert type(p) is type(x)
        assert p.requires_grad
        assert p.is_leaf
        assert not x.detach().requires_grad


def test_views_share_entries_and_a_note(x):
    view, deeper = x.mT, x[1:][0, 1:]
    assert view.cell is x.cell
    assert deeper.cell is x.cell
    assert deeper.shape == (2,)
    assert view.stride() == (1, 3)
    assert deeper.storage_offset() == x.storage_offset() + 4
    clone = x.clone()
    assert clone.cell is not x.cell


def test_iteration_unpacking_and_indexing(x):
    a, b = x
    rows = list(x)
    assert equal(a, rows[0])
    assert equal(b, x[-1])
    assert equal(x[..., None, 1:].squeeze(-2), x[:, 1:])
    assert x[None].shape == (1, 2, 3)
    assert x[torch.tensor([True, False])].shape == (1, 3)
    assert x[:, [2, 0]].shape == (2, 2)
    with pytest.raises(IndexError):
        x[5]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "tape"])
def test_an_operation_outside_the_table_is_refused_by_every_kind(kind):
    x = makers()[kind]
    for program in (
        x.round,
        x.lgamma,
        x.sort,
        lambda: x.cumprod(0),
        lambda: torch.div(x, 2, rounding_mode="floor"),
        lambda: x.sum(dtype=torch.int64),
    ):
        with pytest.raises(NoExactMeaning) as caught:
            program()
        assert __file__ in str(caught.value)


@pytest.mark.parametrize("program", [torch.sin, torch.erf, torch.relu, torch.argmax])
def test_what_one_kind_does_not_have_is_refused_as_what_none_has(program):
    with pytest.raises(
        NoExactMeaning, match=r"aten\.\w+\.default of a SymbolTensor has no meaning, called at "
    ) as caught:
        program(makers()["symbols"])
    assert __file__ in str(caught.value)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("tape", "rounding")])
def test_reading_a_value_out_is_refused(kind):
    x = makers()[kind]
    for program in (lambda: x[0, 0].item(), lambda: bool(x[0, 0]), lambda: float(x[0, 0])):
        with pytest.raises(NoExactMeaning, match="_local_scalar_dense"):
            program()


def test_keyword_arguments_are_a_white_list():
    x = makers()["field"]
    for program in (
        lambda: aten.div.Tensor_mode(x, x, rounding_mode=None),
        lambda: aten.sum.dim_IntList(x, [0], dtype=torch.int32),
        lambda: aten.mean.dim(x, [0], dtype=torch.int32),
        lambda: aten.cumsum.default(x, 0, dtype=torch.int32),
        lambda: aten.embedding_dense_backward.default(x, torch.arange(2), 2, -1, True),
        lambda: aten.softplus.default(x, 1, 2),
        lambda: aten.scatter.reduce(x, 0, torch.zeros(1, 3, dtype=torch.int64), x, reduce="multiply"),
    ):
        with pytest.raises(NoExactMeaning):
            program()


def test_a_handler_that_does_not_know_an_argument_says_so(monkeypatch):
    monkeypatch.setitem(ARITHMETIC, aten.neg.default, lambda system: None)
    with pytest.raises(
        NoExactMeaning, match=r"aten\.neg\.default called with arguments that have no exact meaning"
    ):
        -makers()["field"]


def test_a_type_error_inside_a_handler_is_not_hidden(monkeypatch):
    def broken(system, x):
        return x + object()

    monkeypatch.setitem(ARITHMETIC, aten.neg.default, broken)
    with pytest.raises(TypeError, match="unsupported operand"):
        -makers()["field"]


def test_each_operation_is_answered_in_one_place():
    assert not VIEWS & STRUCTURE
    assert not VIEWS & ARITHMETIC.keys()
    assert not STRUCTURE & ARITHMETIC.keys()


def test_where_two_kinds_meet_the_higher_takes_the_lower_as_constants():
    field = Field(0, 2)
    x, y = field.random(3), field.random(3)
    dual = Dual().make(x, y)
    out = dual * x + x
    assert isinstance(out.system, Dual)
    assert equal(out.tangent, y * x)
    tape = Tape().make(x) * dual
    assert isinstance(tape.system, Tape)
    assert isinstance(tape.recorded.system, Dual)


def test_an_error_is_worded_in_four_parts():
    assert message("a", "b", "c", "d") == "a\n  came:  b\n  cause: c\n  do:    d"
    assert issubclass(InputError, ValueError)
    assert issubclass(DtypeError, TypeError)
    assert issubclass(NoExactMeaning, RuntimeError)
    assert all(issubclass(e, GradderivError) for e in (InputError, DtypeError, NoExactMeaning))
