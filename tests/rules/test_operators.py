"""What attention is made of, one operator after the other: its four functions against a naive formula under autograd and dual numbers."""

from __future__ import annotations

import pytest
import torch

from gradderiv.numbers.dual import Dual
from gradderiv.numbers.field import Field
from gradderiv.rules import options, transformer
from gradderiv.rules.activation import ACTIVATION, FUNCTIONS
from gradderiv.rules.cache import APPEND
from gradderiv.rules.dropout import DROPOUT
from gradderiv.rules.entrywise import ADD, MULTIPLY
from gradderiv.rules.fills import MASKED_FILL, Fill
from gradderiv.rules.fused import SPLIT
from gradderiv.rules.heads import JOIN_HEADS, REPEAT_HEADS, SPLIT_HEADS
from gradderiv.rules.layer_norm import LAYER_NORM
from gradderiv.rules.linear import LINEAR
from gradderiv.rules.matmul import MATMUL
from gradderiv.rules.rms_norm import RMS_NORM
from gradderiv.rules.rope import ROPE
from gradderiv.rules.score_bias import ALIBI, BIAS, RELATIVE, t5_buckets
from gradderiv.rules.scores import SCORES
from gradderiv.rules.softcap import SOFTCAP
from gradderiv.rules.softmax_lse import SOFTMAX_LSE
from gradderiv.rules.temperature import TEMPERATURE

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

MASK = torch.tensor([[True, False, True, True], [False] * 4, [True, True, False, True]])
KEEP = torch.tensor([[True, True, False, True], [False] * 4, [True, False, True, True]])
BUCKETS = t5_buckets(3, 4, n_buckets=4, max_distance=3)
CONSTANT = torch.tensor([[0.0, -3.0, 0.0, 0.0], [-3.0] * 4, [0.0, -6.0, 0.0, -3.0]], dtype=torch.float64)


def half(X, c, s):
    """r = 4: columns 0 and 1 with 2 and 3; the last does not turn."""
    a, b, x, y, tail = X.unbind(-1)
    return torch.stack(
        [a * c[..., 0] - x * s[..., 0], b * c[..., 1] - y * s[..., 1], x * c[..., 2] + a * s[..., 2],
         y * c[..., 3] + b * s[..., 3], tail], -1,
    )  # fmt: skip


def interleaved(X, c, s):
    """r = 4: columns 0 and 2 with 1 and 3."""
    a, x, b, y, tail = X.unbind(-1)
    return torch.stack(
        [a * c[..., 0] - x * s[..., 0], x * c[..., 1] + a * s[..., 1], b * c[..., 2] - y * s[..., 2],
         y * c[..., 3] + b * s[..., 3], tail], -1,
    )  # fmt: skip


def sunk(S, sinks=None, mask=None):
    E = torch.exp(S) * (1.0 if mask is None else mask.to(torch.float64))
    Z = E.sum(-1) + (0.0 if sinks is None else torch.exp(sinks)[:, None])
    return E / Z[..., None], torch.log(Z)


def alibi(S, m):
    distances = torch.tensor([[abs(i + 1 - j) for j in range(4)] for i in range(3)], dtype=torch.float64)
    return S + m.reshape(-1, 1, 1) * -distances


def relative(S, table):
    rows = torch.stack([torch.stack([table[b] for b in row]) for row in BUCKETS.tolist()])
    return S + rows.permute(2, 0, 1)


def centred(X, gain, shift):
    C = X - X.sum(-1, keepdim=True) / 5
    return C * gain / torch.sqrt((C * C).sum(-1, keepdim=True) / 5 + 0.125) + shift


HEADS = (2, 3, 4)
#: operator, naive formula, the shapes of its arguments, what it is told
CASES = {
    "linear": (LINEAR, lambda X, W, b: torch.einsum("nd,de->ne", X, W) + b, [(2, 3), (3, 4), (4,)], {}),
    "matmul": (MATMUL, lambda A, B: torch.einsum("hij,hjk->hik", A, B), [(2, 3, 4), (2, 4, 5)], {}),
    "split heads": (
        SPLIT_HEADS, lambda X: torch.stack([X[..., :2], X[..., 2:4], X[..., 4:]], -3), [(2, 4, 6)], {"n_heads": 3},
    ),
    "join heads": (JOIN_HEADS, lambda X: torch.cat([X[:, 0], X[:, 1], X[:, 2]], -1), [(2, 3, 4, 2)], {}),
    "repeat heads": (
        REPEAT_HEADS, lambda X: torch.stack([X[:, i // 3] for i in range(6)], 1), [(2, 2, 3, 4)], {"n_heads": 6},
    ),
    "split": (
        SPLIT, lambda X: (X[:, [0, 1, 4, 5]], X[:, [2, 6]], X[:, [3, 7]]), [(3, 8)],
        {"layout": "grouped", "n_heads": 4, "n_kv_heads": 2},
    ),
    "append": (APPEND, lambda a, b: torch.cat([a, b], -2), [(2, 3, 4), (2, 5, 4)], {}),
    "rms norm": (
        RMS_NORM, lambda X, g: X * g / torch.sqrt((X * X).sum(-1) / 5 + 0.125)[..., None], [(2, 3, 5), (5,)], {"eps": 0.125},
    ),
    "rms norm, a gain for each head": (
        RMS_NORM, lambda X, g: X * g / torch.sqrt((X * X).sum(-1) / 5)[..., None], [(2, 3, 5), (2, 1, 5)], {"eps": 0.0},
    ),
    "rms norm, 1 + gain": (
        RMS_NORM, lambda X, g: X * (1 + g) / torch.sqrt((X * X).sum(-1) / 5 + 0.5)[..., None], [(2, 3, 5), (5,)],
        {"eps": 0.5, "offset": 1.0},
    ),
    "layer norm": (LAYER_NORM, centred, [(2, 3, 5), (5,), (5,)], {"eps": 0.125}),
    "layer norm without a shift": (LAYER_NORM, lambda X, g: centred(X, g, 0 * g), [(2, 3, 5), (5,)], {"eps": 0.125}),
    "add": (ADD, lambda A, B: A + B, [(3, 4), (3, 4)], {}),
    "multiply": (MULTIPLY, lambda A, B: A * B, [(3, 4), (3, 4)], {}),
    "silu": (ACTIVATION, lambda X: X / (1 + torch.exp(-X)), [(3, 4)], {"function": "silu"}),
    "rope, half": (ROPE, half, [(2, 3, 5), (3, 4), (3, 4)], {}),
    "rope, interleaved": (ROPE, interleaved, [(2, 3, 5), (2, 1, 4), (2, 1, 4)], {"pairing": "interleaved"}),
    "scores": (SCORES, lambda Q, K: torch.einsum("hqd,hkd->hqk", Q, K) * 0.3, [(2, 3, 5), (2, 4, 5)], {"scale": 0.3}),
    "scores, 1/√d": (SCORES, lambda Q, K: torch.einsum("hqd,hkd->hqk", Q, K) / 2, [(2, 3, 4), (2, 5, 4)], {}),
    "temperature": (TEMPERATURE, lambda S, T: S * (1 / T), [HEADS, (2, 1, 1)], {}),
    "one temperature": (TEMPERATURE, lambda S, T: S * (1 / T), [HEADS, ()], {}),
    "softcap": (SOFTCAP, lambda S: torch.tanh(S * (2 / 3)) * 1.5, [HEADS], {"softcap": 1.5}),
    "alibi": (ALIBI, alibi, [HEADS, (2,)], {}),
    "t5": (RELATIVE, relative, [(5, *HEADS), (6, 2)], {"buckets": BUCKETS}),
    "bias": (BIAS, lambda S, B: S + B, [(5, *HEADS), (2, 1, 4)], {}),
    "bias, not broadcast": (BIAS, lambda S, B: S + B, [HEADS, HEADS], {}),
    "fill that replaces": (
        MASKED_FILL, lambda S: S * MASK.double() + CONSTANT, [HEADS], {"fill": Fill(MASK, CONSTANT)},
    ),
    "fill that is added": (MASKED_FILL, lambda S: S + CONSTANT, [HEADS], {"fill": Fill(None, CONSTANT)}),
    "softmax": (SOFTMAX_LSE, sunk, [HEADS], {}),
    "softmax, masked": (SOFTMAX_LSE, lambda S: sunk(S, mask=MASK[::2]), [(2, 2, 4)], {"mask": MASK[::2]}),
    "softmax, sinks": (SOFTMAX_LSE, lambda S, s: sunk(S, s, MASK), [(5, *HEADS), (2,)], {"mask": MASK}),
    "softmax, one sink for all heads": (SOFTMAX_LSE, lambda S, s: sunk(S, s.expand(2)), [HEADS, ()], {}),
    "dropout": (DROPOUT, lambda P: P * KEEP.double() * (4 / 3), [HEADS], {"keep": KEEP, "dropout_p": 0.25}),
}  # fmt: skip


def floats():
    generator = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64) + 0.25


KINDS = {"float64": floats, "field": lambda: Field(seed=2, lanes=2).random}


def equal(x, y):
    if x.shape != y.shape:
        return False
    if type(x) is torch.Tensor and type(y) is torch.Tensor:
        return torch.allclose(x, y, rtol=1e-9, atol=1e-10)
    return not bool((x if type(y) is torch.Tensor else y).system.differs(x, y).any())


def outputs(Y):
    return list(Y) if isinstance(Y, tuple) else [Y]


def compare(operator, naive, shapes, static, make):
    """Whether value, tangent, cotangent and second order are those of the naive formula."""
    x, u = ([make(*s) for s in shapes] for _ in range(2))
    Y, saved = operator.f(*x, **static)
    dY, dY_dot = ([make(*y.shape) for y in outputs(Y)] for _ in range(2))
    dual = Dual()
    theta = [dual.make(a, b).requires_grad_() for a, b in zip(x, u, strict=True)]
    expected = outputs(naive(*theta))
    cotangents = [dual.make(a, b) for a, b in zip(dY, dY_dot, strict=True)]
    gradients = torch.autograd.grad(expected, theta, cotangents)
    expected = [y.detach() for y in expected]
    together = tuple if isinstance(Y, tuple) else (lambda d: d[0])
    dY, dY_dot = together(dY), together(dY_dot)
    pairs = {
        "value": (outputs(Y), [y.primal for y in expected]),
        "tangent": (outputs(operator.jvp(saved, *u)), [y.tangent for y in expected]),
        "cotangent": (operator.vjp(dY, saved)[: len(x)], [g.primal for g in gradients]),
        "second": (operator.vjp_jvp(dY, saved, dY_dot, *u)[: len(x)], [g.tangent for g in gradients]),
    }
    return {name: all(equal(*p) for p in zip(*pair, strict=True)) for name, pair in pairs.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_the_four_functions_are_those_of_the_naive_formula(name, kind):
    found = compare(*CASES[name], KINDS[kind]())
    assert all(found.values()), found


def test_every_operator_of_the_table_is_here():
    tried = [case[0] for case in CASES.values()]
    assert all(p.operator in tried for p in options.PARTS)


def doubled(f):
    """The same function, twice as large."""

    def wrong(*args):
        out = f(*args)
        return tuple(2 * y for y in out if y is not None) if isinstance(out, tuple) else 2 * out

    return wrong


@pytest.mark.parametrize("name", CASES)
def test_twin_a_factor_of_two_is_noticed_in_each(name):
    operator, *rest = CASES[name]
    for part, wrong in (("jvp", "tangent"), ("vjp", "cotangent"), ("vjp_jvp", "second")):
        found = compare(operator._replace(**{part: doubled(getattr(operator, part))}), *rest, floats())
        assert [n for n, same in found.items() if not same] == [wrong]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_activations_have_the_derivatives_of_torchs(function):
    """First and second, in float64, from −6 to 6; no point is a kink."""
    x = torch.linspace(-6, 6, 50, dtype=torch.float64).requires_grad_()
    f = FUNCTIONS[function]
    (first,) = torch.autograd.grad(f.f(x).sum(), x, create_graph=True)
    torch.testing.assert_close(f.first(x.detach()), first.detach())
    second = torch.zeros_like(x)
    if first.requires_grad and function != "relu":
        (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(f.second(x.detach()), second)
    assert function == "relu" or not torch.allclose(f.second(x.detach()), f.first(x.detach()))


@pytest.mark.parametrize("style", transformer.STYLES)
def test_the_gradients_of_a_whole_layer_are_autograds(style):
    """Through its own forward, in every style, and to second order against forward mode."""
    make, d, ff = floats(), 6, 5
    s = transformer.STYLES[style]
    shapes = {
        "X": (2, 3, d),
        **{f"W_{p}": (d, d) for p in "QKVO"},
        "W_U": (d, ff),
        "W_D": (ff, d),
        "gain_1": (d,),
        "gain_2": (d,),
    }
    shapes |= {"b_Q": (d,), "b_D": (d,), "sinks": (2,)}
    shapes |= {"W_G": (d, ff)} if s.gated else {}
    shapes |= {"shift_1": (d,), "shift_2": (d,)} if s.norm == "layer" else {}
    x, u = ({n: make(*shape) for n, shape in shapes.items()} for _ in range(2))
    dY, dY_dot = make(2, 3, d), make(2, 3, d)

    def forward(*values):
        return transformer.transformer_layer(**dict(zip(x, values, strict=True)), style=style, n_heads=2)[0]

    def pulled(*values):
        return torch.func.vjp(forward, *values[:-1])[1](values[-1])

    _, saved = transformer.transformer_layer(**x, style=style, n_heads=2)
    expected, moved = torch.func.jvp(pulled, (*x.values(), dY), (*u.values(), dY_dot))
    dots = {f"{n}_dot": t for n, t in u.items()}
    g = transformer.transformer_layer_vjp(dY, saved)
    g_dot = transformer.transformer_layer_vjp_jvp(dY, saved, dY_dot, **dots)
    tangent = torch.func.jvp(forward, tuple(x.values()), tuple(u.values()))[1]
    torch.testing.assert_close(transformer.transformer_layer_jvp(saved, **dots), tangent)
    for i, n in enumerate(x):
        torch.testing.assert_close(getattr(g, n), expected[i])
        torch.testing.assert_close(getattr(g_dot, n), moved[i])
        assert not torch.allclose(getattr(g, n), getattr(g_dot, n))
