"""No rule knows which number it has: the same functions, unchanged, on floats, residues, expressions, duals, rounding errors and a tape."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

import pytest
import sympy as sp
import torch
from rule_calls import (
    MODULES,
    SMALL,
    TINY,
    Sizes,
    call,
    calls,
    layer_shapes,
    naive_attention,
    naive_layer,
    naive_softmax,
    results,
    rules,
    tensors,
)

from gradderiv.numbers.dual import Dual, DualTensor
from gradderiv.numbers.field import Field
from gradderiv.numbers.lanes import FieldTensor
from gradderiv.numbers.rounding import Rounding, RoundingTensor
from gradderiv.numbers.symbols import Exp, Symbols, SymbolTensor
from gradderiv.numbers.tape import Tape, TapeTensor
from gradderiv.rules import attention, blockdiag, embedding, linear, matmul, multihead, softmax

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

RULES = sorted(rules())
COMPUTE_NO_NUMBER = {"repeat_mask", "empty_rows"}  # they make masks


def eighths(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randint(-12, 13, shape, generator=generator).double() / 8


def map_tensors(tree, f):
    if isinstance(tree, torch.Tensor):
        return f(tree) if tree.dtype.is_floating_point else tree
    if isinstance(tree, dict):
        return {k: map_tensors(v, f) for k, v in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(v, f) for v in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(v, f) for v in tree)
    return tree


def on_floats(name, sizes=SMALL):
    function, args, kwargs = call(name, eighths(), sizes)
    return results(function(*args, **kwargs))


def test_every_rule_has_a_call():
    assert set(calls(eighths())) == set(RULES)
    assert len(RULES) >= 90


# ---------------------------------------------------------------- the same values on other numbers


@pytest.mark.parametrize("name", RULES)
def test_on_duals(name):
    """Primal: the value on floats. Tangent: torch's own forward mode through the rule."""
    function, args, kwargs = call(name, eighths(), SMALL)
    dual, tangents = Dual(), eighths(1)
    flat = [t for t in tensors((args, kwargs)).values() if t.dtype.is_floating_point]
    moving = {id(t): tangents(*t.shape) for t in flat}

    def run(*values):
        swap = dict(zip(map(id, flat), values, strict=True))
        return results(
            function(*map_tensors(args, lambda t: swap[id(t)]), **map_tensors(kwargs, lambda t: swap[id(t)]))
        )

    found = run(*(dual.make(t.clone(), moving[id(t)]) for t in flat))
    if name in COMPUTE_NO_NUMBER:
        expected = run(*flat)
        assert all(torch.equal(found[k], expected[k]) for k in expected)
        return
    primal, tangent = torch.func.jvp(run, tuple(t.clone() for t in flat), tuple(moving[id(t)] for t in flat))
    assert found.keys() == primal.keys()
    for k in primal:
        assert isinstance(found[k], DualTensor)
        torch.testing.assert_close(found[k].primal, primal[k], rtol=1e-11, atol=1e-12)
        if (
            name != "row_shift"
        ):  # a shift, whose tangent is 0 by convention and whose torch derivative is cut by detach
            torch.testing.assert_close(found[k].tangent, tangent[k], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", RULES)
def test_on_rounding_errors(name):
    rounding, source = Rounding(torch.float32), eighths()
    function, args, kwargs = call(name, lambda *s: rounding.make(source(*s)), SMALL)
    found, expected = results(function(*args, **kwargs)), on_floats(name)
    for k, y in expected.items():
        if name in COMPUTE_NO_NUMBER:
            assert torch.equal(found[k], y)
            continue
        assert isinstance(found[k], RoundingTensor)
        torch.testing.assert_close(found[k].value, y, rtol=1e-11, atol=1e-12)
        assert bool(torch.isfinite(found[k].error).all())
        assert bool((found[k].error <= 1e-2 * y.abs().max().clamp(min=1)).all())


@pytest.mark.parametrize("name", RULES)
def test_on_a_tape(name):
    tape, source = Tape(), eighths()
    function, args, kwargs = call(name, lambda *s: tape.make(source(*s).requires_grad_()), SMALL)
    found, expected = results(function(*args, **kwargs)), on_floats(name)
    for k, y in expected.items():
        if name in COMPUTE_NO_NUMBER:
            assert torch.equal(found[k], y)
            continue
        assert isinstance(found[k], TapeTensor)
        torch.testing.assert_close(found[k].recorded.detach(), y, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "name", [n for n in RULES if not n.startswith("transformer")]
)  # expressions of many pages
def test_on_expressions(name):
    """At a tiny size: the expressions, with numbers put in their place, are the values on floats."""
    system, source, values = Symbols(), eighths(), {}

    def make(*shape):
        x, t = system.symbols(f"x{len(values)}_", *shape), source(*shape)
        values.update(
            zip(system.entries(x).reshape(-1), map(sp.Rational, t.reshape(-1).tolist()), strict=True)
        )
        return x

    function, args, kwargs = call(name, make, TINY)
    found, expected = results(function(*args, **kwargs)), on_floats(name, TINY)
    for k, y in expected.items():
        if name in COMPUTE_NO_NUMBER:
            assert torch.equal(found[k], y)
            continue
        assert isinstance(found[k], SymbolTensor)
        if name == "row_shift":
            assert torch.equal(found[k] == -torch.inf, torch.zeros_like(y, dtype=torch.bool))
            continue
        entries = system.entries(found[k]).reshape(-1)
        shifts = {
            s: sp.Rational(3, 2) for e in entries for s in sp.sympify(e).free_symbols if s not in values
        }
        numbers = [float(sp.sympify(e).xreplace(values | shifts).replace(Exp, sp.exp)) for e in entries]
        torch.testing.assert_close(
            torch.tensor(numbers, dtype=torch.float64).reshape(y.shape), y, rtol=1e-10, atol=1e-10
        )


# ---------------------------------------------------------------- against naive layers, on floats and exactly


def assert_equal(x, y):
    assert x.shape == y.shape
    if isinstance(x, FieldTensor) or isinstance(y, FieldTensor):
        assert not bool(x.system.differs(x, y).any())
    else:
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-11)


KINDS = {"float64": eighths, "field": lambda: Field(seed=3, lanes=2).random}
SAVED_LAYER = ("X", "W_Q", "W_K", "W_V", "W_O", "X_kv", "b_Q", "b_K", "b_V", "b_O", "bias")


def layers(sizes=SMALL):
    """{rule: (forward, naive forward, arguments, options)}"""
    mask = torch.tensor([[False] * sizes.n_k, [j != 1 for j in range(sizes.n_k)]])
    heads = (sizes.h,)
    out = {
        "linear": (linear, lambda X, W, b: X @ W + b, {"X": (2, 3), "W": (3, 5), "b": (5,)}, {}),
        "softmax": (softmax, lambda S: naive_softmax(S, mask), {"S": (sizes.n_q, sizes.n_k)}, {"mask": mask}),
        "attention": (
            attention,
            lambda Q, K, V, bias: naive_attention(Q, K, V, bias, mask=mask),
            {
                "Q": (*heads, sizes.n_q, sizes.d_k),
                "K": (*heads, sizes.n_k, sizes.d_k),
                "V": (*heads, sizes.n_k, sizes.d_v),
                "bias": (sizes.h, 1, sizes.n_k),
            },
            {"mask": mask},
        ),
    }
    out["matmul"] = (
        matmul,
        lambda A, B: (A[..., :, :, None] * B[..., None, :, :]).sum(-2),
        {"A": (2, 1, 3, 4), "B": (5, 4, 2)},
        {},
    )
    tokens = torch.tensor([[2, 0, 2], [4, 2, 0]])
    out["embedding"] = (
        embedding,
        lambda E, R: torch.stack(
            [torch.stack([E[t] + R[i] for i, t in enumerate(row)]) for row in tokens.tolist()]
        ),
        {"table": (5, 3), "positions": (4, 3)},
        {"tokens": tokens},
    )
    shapes = layer_shapes(sizes, sizes.h_kv) | {"bias": (sizes.h, sizes.n_q, 1)}
    out["multihead"] = (
        multihead,
        lambda *args: naive_layer(*args, h=sizes.h, h_kv=sizes.h_kv, mask=mask),
        {n: shapes[n] for n in SAVED_LAYER},
        {"mask": mask, "n_heads": sizes.h, "n_kv_heads": sizes.h_kv},
    )
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(layers()))
def test_forward_tangent_and_gradients_against_a_naive_layer(name, kind):
    """Autograd and dual numbers through a loop over heads; both together give the second order."""
    module, naive, shapes, options = layers()[name]
    make = KINDS[kind]()
    x, u = ({n: make(*s) for n, s in shapes.items()} for _ in range(2))
    positional = {"linear": 3, "softmax": 1, "attention": 3, "matmul": 2, "embedding": 2, "multihead": 5}[
        name
    ]

    def named(function, values, *first, suffix=""):
        names = list(values)
        rest = {f"{n}{suffix}": values[n] for n in names[positional:]}
        return function(*first, *(values[n] for n in names[:positional]), **rest)

    forward, jvp, vjp, vjp_jvp = (getattr(module, f"{name}{s}") for s in ("", "_jvp", "_vjp", "_vjp_jvp"))
    Y, saved = named(lambda *a, **k: forward(*a, **k, **options), x)
    dY, dY_dot = make(*Y.shape), make(*Y.shape)

    dual = Dual()
    theta = {n: dual.make(x[n], u[n]).requires_grad_() for n in x}
    naive_Y = naive(*theta.values())
    grads = dict(
        zip(x, torch.autograd.grad(naive_Y, list(theta.values()), dual.make(dY, dY_dot)), strict=True)
    )
    naive_Y = naive_Y.detach()
    assert_equal(Y, naive_Y.primal)
    assert_equal(named(jvp, u, saved, suffix="_dot"), naive_Y.tangent)
    g = vjp(dY, saved)
    second = {n: v for n, v in u.items() if not (name == "linear" and n == "b")}
    second = {} if name == "embedding" else second  # linear in all that it has
    g_dot = named(vjp_jvp, second, dY, saved, dY_dot, suffix="_dot")
    for n in x:
        assert_equal(getattr(g, n), grads[n].primal)
        assert_equal(getattr(g_dot, n), grads[n].tangent)
    wrong = named(jvp, u | {next(iter(u)): 2 * next(iter(u.values()))}, saved, suffix="_dot")  # a twin
    with pytest.raises(AssertionError):
        assert_equal(wrong, naive_Y.tangent)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["self", "cross"])
def test_the_block_diagonal_form_is_the_layer(source, kind):
    """Every gradient of it against the vjp of the per-head form, with biases, a mask and an empty row."""
    cross = source == "cross"
    sizes = SMALL if cross else Sizes(**(vars(SMALL) | {"n_k": SMALL.n_q, "d_kv": SMALL.d_model}))
    make = KINDS[kind]()
    function, args, options = call("layer", make, Sizes(**(vars(sizes) | {"h_kv": sizes.h})))
    if not cross:
        options = options | {"X_kv": None}
    dY = make(sizes.n_q, sizes.d_out)
    Y, saved = multihead.multihead(*args, **options)
    assert_equal(function(*args, **options), Y)
    g = multihead.multihead_vjp(dY, saved)
    for name in ("X", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", *(["X_kv"] if cross else [])):
        found = getattr(blockdiag, f"grad_{name}")(*args, dY, **options)
        assert_equal(found, getattr(g, name))
        if name != "b_K":  # which is 0
            with pytest.raises(AssertionError):
                assert_equal(found, 2 * getattr(g, name))
    assert_equal(g.b_K, torch.zeros_like(g.b_K))


@pytest.mark.parametrize("name", RULES)
def test_on_residues(name):
    function, args, kwargs = call(name, Field(seed=1, lanes=2).random, SMALL)
    found, expected = results(function(*args, **kwargs)), on_floats(name)
    assert found.keys() == expected.keys()
    for k, y in expected.items():
        assert found[k].shape == y.shape
        assert isinstance(found[k], FieldTensor) or name in COMPUTE_NO_NUMBER


# ---------------------------------------------------------------- nothing in the sources asks


SOURCES = sorted(Path(MODULES[0].__file__).parent.glob("*.py"))
ASKED_ABOUT = {
    "Tensor",
    "Mask",
    "Fill",
    "int",
    "float",
    "str",
}  # what isinstance may ask: whether it is a tensor at all, and what an option is
FORBIDDEN = {
    "Number", "Field", "FieldTensor", "Symbols", "SymbolTensor", "Dual", "DualTensor", "Rounding", "RoundingTensor", "Tape", "TapeTensor",
    "Tex", "TexTensor", "sympy", "numbers", "checks", "book", "type", "__class__", "item", "tolist", "numpy", "float", "bool",
    "is_floating_point_tensor", "requires_grad", "grad_fn", "hasattr", "issubclass", "data_ptr", "is_compiling", "dispatch",
}  # fmt: skip


def questions(source):
    """What a source asks of its numbers: imports of ours, isinstance, and names that only a number would have."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gradderiv"):
            if not node.module.startswith(("gradderiv.rules", "gradderiv.errors")):
                found.append(node.module)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            roots = {(node.module or "") if isinstance(node, ast.ImportFrom) else a.name for a in node.names}
            found += [r for r in roots if r.split(".")[0] not in {*sys.stdlib_module_names, "torch"}]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            kinds = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            found += sorted(kinds - ASKED_ABOUT)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            found += [name] * (name in FORBIDDEN)
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN - {"type", "float", "bool"}:
            found.append(node.id)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_no_rule_asks_which_number_it_has(path):
    asked = questions(path.read_text(encoding="utf-8"))
    if (
        path.stem == "_inputs"
    ):  # the wording of errors names the type of what is no tensor; a Mask is known by its method
        asked = [q for q in asked if q not in ("type", "hasattr")]
    assert not asked, asked


@pytest.mark.parametrize(
    "source",
    [
        "from gradderiv.numbers.field import Field",
        "import sympy",
        "def f(x):\n    return x if isinstance(x, FieldTensor) else -x",
        "def f(x):\n    return x.exp() if type(x).__name__ == 'Tensor' else x",
        "def f(x):\n    return x * x.max().item()",
        "def f(x):\n    return float(x) + 1",
    ],
)
def test_twin_a_rule_that_asks_is_noticed(source):
    assert questions(source)


def test_the_rules_that_ran_are_the_rules_that_ship():
    for name, function in rules().items():
        assert inspect.getsourcefile(function) in map(str, SOURCES), name
