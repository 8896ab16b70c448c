"""Attention with its options: each is the plain rule with something done to its arguments, exactly where it can be."""

from __future__ import annotations

import pytest
import torch

from gradderiv.errors import InputError
from gradderiv.numbers.field import Field
from gradderiv.rules.attend import attend, attend_jvp, attend_vjp, attend_vjp_jvp
from gradderiv.rules.attention import attention, attention_jvp, attention_vjp, attention_vjp_jvp
from gradderiv.rules.fused import fused, fused_jvp, fused_vjp, fused_vjp_jvp
from gradderiv.rules.heads import repeat_heads, sum_heads
from gradderiv.rules.layouts import LAYOUTS, fuse, split
from gradderiv.rules.multihead import multihead, multihead_jvp, multihead_vjp, multihead_vjp_jvp
from gradderiv.rules.rms_norm import rms_norm, rms_norm_vjp
from gradderiv.rules.rope import PAIRINGS, rope, rope_vjp, rotary_tables
from gradderiv.rules.score_bias import alibi_slopes, t5_buckets

F64 = torch.float64
H, H_KV, N, D_K, D_V = 4, 2, 5, 4, 3
CAUSAL = torch.ones(N, N, dtype=torch.bool).tril()


@pytest.fixture
def field():
    return Field(seed=5, lanes=2)


def same(x, y):
    """Equal, exactly: shapes too."""
    return x.shape == y.shape and not bool(x.system.differs(x, y).any())


def heads(make, *, h_kv=H, n_k=N, n_q=N):
    return make(H, n_q, D_K), make(h_kv, n_k, D_K), make(h_kv, n_k, D_V)


def normal(*shape):
    return torch.randn(shape, dtype=F64)


# ---------------------------------------------------------------- without options


@pytest.mark.parametrize("hidden", ["nothing", "a row and more"])
def test_without_options_it_is_the_plain_rule(field, hidden):
    """Value, tangent, gradients and second order, over the field."""
    r = field.random
    (Q, K, V), bias = heads(r), r(H, 1, N)
    mask = None if hidden == "nothing" else CAUSAL & (torch.arange(N) != 2)[:, None]
    options = {"scale": 0.3, "mask": mask, "bias": bias}
    dots, dO, dO_dot = [r(*t.shape) for t in (Q, K, V, bias)], r(H, N, D_V), r(H, N, D_V)
    (O, P, _), saved = attend(Q, K, V, **options)
    expected, plain = attention(Q, K, V, **options)
    assert same(O, expected)
    assert same(P, plain.P)
    move = dict(zip(("Q_dot", "K_dot", "V_dot", "bias_dot"), dots, strict=True))
    assert same(attend_jvp(saved, **move).O, attention_jvp(plain, *dots))
    pairs = (
        (attend_vjp(dO, saved), attention_vjp(dO, plain)),
        (attend_vjp_jvp(dO, saved, dO_dot, **move), attention_vjp_jvp(dO, plain, dO_dot, *dots)),
    )
    for found, right in pairs:
        assert found._fields == ("Q", "K", "V", "bias")
        assert all(same(getattr(found, n), getattr(right, n)) for n in found._fields)
    assert not same(attend(Q, K, V, **{**options, "scale": 0.5})[0].O, expected)  # a twin
    assert not same(pairs[0][0].Q, pairs[1][0].Q)


def test_the_default_scale_is_one_over_the_root_of_the_width():
    Q, K, V = heads(normal)
    torch.testing.assert_close(attend(Q, K, V)[0].O, attend(Q, K, V, scale=0.5)[0].O, rtol=0, atol=0)


def test_an_option_that_is_none_is_an_option_that_is_off():
    Q, K, V = heads(normal)
    off = dict.fromkeys(("sinks", "cos", "sin", "softcap", "K_cache", "V_cache", "keep", "dropout_p", "eps"))
    O, saved = attend(Q, K, V, **off)
    assert torch.equal(O.O, attend(Q, K, V)[0].O)
    assert attend_vjp(torch.ones_like(O.O), saved)._fields == ("Q", "K", "V")


def test_one_matrix_is_one_head():
    Q, K, V = normal(3, D_K), normal(N, D_K), normal(N, D_V)
    (O, P, lse), saved = attend(Q, K, V, softcap=2.0)
    assert (O.shape, P.shape, lse.shape) == ((3, D_V), (3, N), (3,))
    assert [tuple(g.shape) for g in attend_vjp(O, saved)] == [(3, D_K), (N, D_K), (N, D_V)]


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sunk", [True, False])
def test_a_row_that_sees_nothing_is_zero_and_has_no_gradient(dtype, sunk):
    """Its lse is the sink, or −∞; nothing is NaN, to second order."""
    (Q, K, V), dots = ([t.to(dtype) for t in heads(torch.randn)] for _ in range(2))
    mask = CAUSAL & (torch.arange(N) != 2)[:, None]
    sinks = {"sinks": torch.randn(H).to(dtype)} if sunk else {}
    out, saved = attend(Q, K, V, mask=mask, **sinks)
    assert torch.equal(out.lse[:, 2], sinks["sinks"] if sunk else torch.full((H,), -torch.inf, dtype=dtype))
    d = {
        "dO": torch.ones_like(out.O),
        "dweights": torch.ones_like(out.weights),
        "dlse": torch.ones_like(out.lse),
    }
    d_dot = {f"{n}_dot": t for n, t in d.items()}
    g, g_dot = (
        attend_vjp(saved=saved, **d),
        attend_vjp_jvp(d["dO"], saved, d_dot["dO_dot"], *dots, dlse=d["dlse"]),
    )
    moved = attend_jvp(saved, *dots)
    for t in (out.O, out.weights, *g, *g_dot, *moved):
        assert t.dtype == dtype
        assert bool(torch.isfinite(t).all())
    for t in (out.O, out.weights, g.Q, g_dot.Q, moved.O, moved.lse):
        assert not t[:, 2].any()
        assert t[:, 3].any()


@pytest.mark.parametrize("sunk", [True, False])
def test_autograd_through_the_forward_is_the_vjp_and_has_no_nan(sunk):
    """The forward is differentiable as it stands, to second order, with a row that sees nothing."""
    given = dict(zip("QKV", heads(normal, h_kv=H_KV), strict=True)) | ({"sinks": normal(H)} if sunk else {})
    leaves = {n: t.clone().requires_grad_() for n, t in given.items()}
    mask = CAUSAL & (torch.arange(N) != 2)[:, None]
    O = attend(**leaves, mask=mask, softcap=1.5)[0].O
    dO = normal(H, N, D_V)
    found = torch.autograd.grad(O, list(leaves.values()), dO, create_graph=True)
    g = attend_vjp(dO, attend(**given, mask=mask, softcap=1.5)[1])
    for a, b in zip(found, g, strict=True):
        torch.testing.assert_close(a, b)
    second = torch.autograd.grad(sum((x * x).sum() for x in found), list(leaves.values()))
    assert all(bool(torch.isfinite(x).all()) and bool(x.any()) for x in second)


# ---------------------------------------------------------------- the cache


def tables(field, n, r=4, pairing="half"):
    """Free residues with c² + s² = 1 and the addition theorem, an angle for each pair: the rational points of the circle."""
    t = field.random(r // 2)
    one = field.constant(torch.ones(r // 2), F64)
    c1, s1 = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    c, s = [one], [one - one]
    for _ in range(n - 1):
        c, s = [*c, c1 * c[-1] - s1 * s[-1]], [*s, s1 * c[-1] + c1 * s[-1]]
    both = []
    for half in (torch.stack(c), torch.stack(s)):
        both.append(torch.cat([half, half], -1) if pairing == "half" else half.repeat_interleave(2, -1))
    return both


@pytest.mark.parametrize("past", [1, 3, 4])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_prefill_and_decode_are_one_pass(field, past, pairing):
    """Keys are cached as they are used, rotated; gradients that come into the cache go back through the rotation, and add to those of the prefill."""
    Q, K, V = heads(field.random, h_kv=H_KV)
    cos, sin = field.random(N, 4), field.random(N, 4)  # any tables
    dO = field.random(H, N, D_V)
    one, whole = attend(Q, K, V, cos=cos, sin=sin, pairing=pairing, mask=CAUSAL)
    g = attend_vjp(dO, whole)

    def part(where, **cache):
        mask = CAUSAL[where, : where.stop]
        return attend(
            Q[:, where], K[:, where], V[:, where], cos=cos[where], sin=sin[where], pairing=pairing, mask=mask, **cache
        )  # fmt: skip

    first, second = slice(0, past), slice(past, N)
    before, prefill = part(first)
    cached, rotation = rope(K[:, first], cos[first], sin[first], pairing=pairing)
    after, decode = part(second, K_cache=cached, V_cache=V[:, first])
    assert same(torch.cat([before.O, after.O], 1), one.O)
    assert same(after.lse, one.lse[:, second])

    later, early = attend_vjp(dO[:, second], decode), attend_vjp(dO[:, first], prefill)
    back = rope_vjp(later.K_cache, rotation)
    assert same(torch.cat([early.Q, later.Q], 1), g.Q)
    assert same(torch.cat([early.K + back.X, later.K], 1), g.K)
    assert same(torch.cat([early.V + later.V_cache, later.V], 1), g.V)
    assert same(torch.cat([early.cos + back.cos, later.cos], 0), g.cos)
    assert same(torch.cat([early.sin + back.sin, later.sin], 0), g.sin)
    assert not same(torch.cat([early.K, later.K], 1), g.K)  # without what comes through the cache


def test_twin_a_cache_at_other_positions_is_another_pass(field):
    """New tokens counted from 0 again, and keys cached before they were rotated."""
    Q, K, V = heads(field.random)
    cos, sin = tables(field, N)
    one = attend(Q, K, V, cos=cos, sin=sin, mask=CAUSAL)[0].O[:, 3:]
    rotated = rope(K[:, :3], cos[:3], sin[:3])[0]
    new = (Q[:, 3:], K[:, 3:], V[:, 3:])

    def decode(cache, where):
        return attend(*new, cos=cos[where], sin=sin[where], mask=CAUSAL[3:], K_cache=cache, V_cache=V[:, :3])[
            0
        ].O

    assert same(decode(rotated, slice(3, 5)), one)
    assert not same(decode(rotated, slice(0, 2)), one)
    assert not same(decode(K[:, :3], slice(3, 5)), one)


def test_decoding_token_by_token_is_one_pass(field):
    Q, K, V = heads(field.random, h_kv=H_KV)
    cos, sin = tables(field, N)
    one = attend(Q, K, V, cos=cos, sin=sin, mask=CAUSAL)[0].O
    cache: dict[str, torch.Tensor] = {}
    found = []
    for i in range(N):
        now = slice(i, i + 1)
        found.append(attend(Q[:, now], K[:, now], V[:, now], cos=cos[now], sin=sin[now], **cache)[0].O)
        seen = slice(0, i + 1)
        cache = {"K_cache": rope(K[:, seen], cos[seen], sin[seen])[0], "V_cache": V[:, seen]}
    assert same(torch.cat(found, 1), one)


# ---------------------------------------------------------------- rotation


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_rotation_is_an_isometry_and_scores_depend_on_the_distance_alone(field, pairing):
    """Exactly, for any tables that obey the addition theorem; the last column does not turn."""
    cos, sin = tables(field, 7, pairing=pairing)
    q, k = field.random(5), field.random(5)

    def at(x, i):
        return rope(x[None], cos[i : i + 1], sin[i : i + 1], pairing=pairing)[0][0]

    assert same((at(q, 3) * at(q, 3)).sum(), (q * q).sum())
    for i, j in ((0, 2), (3, 1), (2, 2)):
        assert same((at(q, i) * at(k, j)).sum(), (at(q, i + 3) * at(k, j + 3)).sum())
    assert not same((at(q, 0) * at(k, 2)).sum(), (at(q, 0) * at(k, 3)).sum())
    other = next(
        p for p in PAIRINGS if p != pairing
    )  # tables of one pairing, rotation of the other: nanotron #427
    wrong = rope(q[None], cos[3:4], sin[3:4], pairing=other)[0][0]
    assert not same((wrong * wrong).sum(), (q * q).sum())


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_tables_are_those_of_the_angles(pairing):
    """Isometry and distance in float64, positions up to 10⁴; the angle of the first pair is the position."""
    positions = torch.tensor([0.0, 3.0, 17.0, 9_000.0, 10_000.0], dtype=F64)
    cos, sin = rotary_tables(positions, 8, pairing=pairing)
    torch.testing.assert_close(cos[:, 0], positions.cos())
    assert torch.equal(cos[0], torch.ones(8, dtype=F64))
    X = normal(5, 8)
    torch.testing.assert_close(rope(X, cos, sin, pairing=pairing)[0].norm(dim=-1), X.norm(dim=-1))
    q, k = normal(1, 8), normal(1, 8)

    def score(i, j):
        turned = [rope(x, *rotary_tables(torch.tensor([float(p)], dtype=F64), 8, pairing=pairing), pairing=pairing)[0]
                  for x, p in ((q, i), (k, j))]  # fmt: skip
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(5, 2), score(1005, 1002), rtol=1e-9, atol=1e-9)
    assert abs(score(5, 2) - score(5, 3)) > 1e-3


def test_tables_and_buckets_that_cannot_be():
    positions = torch.arange(3.0)
    for wrong in (lambda: rotary_tables(positions, 8, pairing="llama"), lambda: rotary_tables(positions, 7),
                  lambda: rotary_tables(positions, 0), lambda: t5_buckets(3, 3, n_buckets=2), lambda: t5_buckets(3, 3, n_buckets=128, max_distance=32),
                  lambda: t5_buckets(3, 3, n_buckets=1, bidirectional=False)):  # fmt: skip
        with pytest.raises(InputError, match=r"(?s)came: .*cause: .*do: "):
            wrong()
    rotary_tables(positions, 2)
    t5_buckets(3, 3, n_buckets=4, max_distance=2)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_tables_are_those_of_transformers(pairing):
    """Llama's for half, GPT-J's for interleaved."""
    positions = torch.arange(9)
    cos, sin = rotary_tables(positions.float(), 8, pairing=pairing)
    X = torch.randn(1, 2, 9, 8)
    if pairing == "half":
        from transformers.models.llama.configuration_llama import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

        theirs = LlamaRotaryEmbedding(LlamaConfig(hidden_size=16, num_attention_heads=2, head_dim=8))(
            X, positions[None]
        )
        torch.testing.assert_close(theirs[0][0], cos)
        expected = apply_rotary_pos_emb(X, X, *theirs)[0]
    else:
        from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb, create_sinusoidal_positions

        table = create_sinusoidal_positions(9, 8)[None]
        expected = apply_rotary_pos_emb(X.transpose(1, 2), *table.chunk(2, -1)).transpose(1, 2)
    torch.testing.assert_close(rope(X, cos, sin, pairing=pairing)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_gradient_is_the_rotation_back_where_both_columns_of_a_pair_have_one_angle(field, pairing):
    """And not where they have two: the sine stands inside R (Paddle #74716)."""
    cos, sin = tables(field, N, pairing=pairing)
    X, dY = field.random(H, N, 6), field.random(H, N, 6)
    dX = rope_vjp(dY, rope(X, cos, sin, pairing=pairing)[1]).X
    assert same(dX, rope(dY, cos, -sin, pairing=pairing)[0])
    assert same(rope(dX, cos, sin, pairing=pairing)[0], dY)  # an orthogonal map: the transpose is the inverse
    cos, sin = field.random(N, 4), field.random(N, 4)
    dX = rope_vjp(dY, rope(X, cos, sin, pairing=pairing)[1]).X
    assert not same(dX, rope(dY, cos, -sin, pairing=pairing)[0])
    theirs = dY[..., :4] * cos - rope(dY[..., :4], cos - cos, sin, pairing=pairing)[0]  # dY ∘ c − R(dY) ∘ s
    assert not same(dX[..., :4], theirs)
    assert same((dX * X).sum(), (dY * rope(X, cos, sin, pairing=pairing)[0]).sum())  # Y is linear in X


# ---------------------------------------------------------------- heads that share


@pytest.mark.parametrize("h_kv", [1, 2])
def test_shared_heads_are_attention_on_repeated_heads(field, h_kv):
    Q, K, V = heads(field.random, h_kv=h_kv)
    dO = field.random(H, N, D_V)
    O, saved = attend(Q, K, V, mask=CAUSAL)
    repeated = [torch.stack([t[i * h_kv // H] for i in range(H)]) for t in (K, V)]
    expected, plain = attention(Q, *repeated, mask=CAUSAL)
    assert same(O.O, expected)
    g, full = attend_vjp(dO, saved), attention_vjp(dO, plain)
    assert same(g.Q, full.Q)
    assert same(g.K, full.K.unflatten(0, (h_kv, -1)).sum(1))
    assert same(g.V, full.V.unflatten(0, (h_kv, -1)).sum(1))
    if h_kv == 2:  # tiled instead of repeated: onnx #7274
        tiled = [t.repeat(2, 1, 1) for t in (K, V)]
        assert not same(attention(Q, *tiled, mask=CAUSAL)[0], expected)


@pytest.mark.parametrize(("h", "h_kv"), [(6, 1), (6, 2), (6, 3), (6, 6), (1, 1)])
def test_heads_repeated_and_summed_are_transposes(h, h_kv):
    X, Y = normal(2, h_kv, 3, 5), normal(2, h, 3, 5)
    torch.testing.assert_close((repeat_heads(X, h) * Y).sum(), (X * sum_heads(Y, h_kv)).sum())
    assert torch.equal(repeat_heads(X, h), X.repeat_interleave(h // h_kv, 1))


# ---------------------------------------------------------------- positions in the scores


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("n_buckets", "max_distance"), [(32, 128), (8, 20), (16, 16), (32, 17), (64, 1000), (4, 9)]
)
def test_buckets_are_those_of_t5(n_buckets, max_distance, bidirectional):
    """Distances to 300 on both sides, and fewer queries than keys: the last query stands at the last key."""
    from transformers.models.t5.modeling_t5 import T5Attention

    for n_q, n_k in ((300, 300), (1, 1), (1, 17), (3, 40), (7, 7)):
        i = torch.arange(n_k - n_q, n_k)[:, None]
        expected = T5Attention._relative_position_bucket(
            torch.arange(n_k)[None] - i, bidirectional, n_buckets, max_distance
        )
        found = t5_buckets(
            n_q, n_k, n_buckets=n_buckets, max_distance=max_distance, bidirectional=bidirectional
        )
        assert torch.equal(found, expected), (n_q, n_k)
        assert int(found.max()) < n_buckets
        if n_q > 1 or (n_k > n_q and bidirectional):
            assert not torch.equal(found, expected.flip(1))


@pytest.mark.parametrize("h", [1, 2, 3, 4, 6, 8, 12, 16, 20, 112])
def test_slopes_are_those_of_bloom(h):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    ones = build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), h, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(h).float(), ones, rtol=1e-6, atol=0)
    assert bool((alibi_slopes(h)[: 2 ** (h.bit_length() - 1)].diff() < 0).all())


def test_alibi_under_a_causal_mask_is_that_of_bloom():
    """Theirs adds m·j, ours −m·(i − j): a row's scores differ by a constant."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    Q, K, V = heads(normal)
    slopes = alibi_slopes(H)
    theirs = build_alibi_tensor(torch.ones(1, N, dtype=torch.int64), H, F64)
    O = attend(Q, K, V, slopes=slopes, mask=CAUSAL)[0].O
    torch.testing.assert_close(O, attend(Q, K, V, bias=theirs, mask=CAUSAL)[0].O)
    assert not torch.allclose(attend(Q, K, V, slopes=slopes)[0].O, attend(Q, K, V, bias=theirs)[0].O)


@pytest.mark.parametrize("option", ["slopes", "table"])
def test_a_bias_that_is_computed_is_a_bias(field, option):
    """Value and gradients: that of the parameter is the bias's, collected."""
    Q, K, V = heads(field.random, n_q=3)
    dO = field.random(H, 3, D_V)
    distances = torch.tensor([[abs(2 + i - j) for j in range(N)] for i in range(3)])
    if option == "slopes":
        given = {"slopes": field.random(H)}
        bias = given["slopes"][:, None, None] * -distances.double()
    else:
        buckets = t5_buckets(3, N, n_buckets=8, max_distance=6)
        given = {"table": field.random(8, H), "buckets": buckets}
        bias = torch.stack(
            [torch.stack([given["table"][b] for b in row]) for row in buckets.tolist()]
        ).permute(2, 0, 1)
    (O, _, _), saved = attend(Q, K, V, **given)
    expected, plain = attend(Q, K, V, bias=bias)
    assert same(O, expected.O)
    g, right = attend_vjp(dO, saved), attend_vjp(dO, plain)
    assert same(g.K, right.K)
    if option == "slopes":
        assert same(g.slopes, (right.bias * -distances.double()).sum((1, 2)))
    else:
        for b in range(8):
            assert same(g.table[b], (right.bias * (buckets == b).double()).sum((1, 2)))
        assert not bool(field.differs(g.table[7], torch.zeros_like(g.table[7])).any())  # which no place has


# ---------------------------------------------------------------- what is done to Q, K and the scores


def test_qk_norm_is_attention_on_normed_queries_and_keys(field):
    Q, K, V = heads(field.random)
    gains, dO = (field.random(D_K), field.random(D_K)), field.random(H, N, D_V)
    O, saved = attend(Q, K, V, gain_Q=gains[0], gain_K=gains[1], eps=0.25)
    normed = [rms_norm(x, gain, eps=0.25) for x, gain in zip((Q, K), gains, strict=True)]
    expected, plain = attention(normed[0][0], normed[1][0], V)
    assert same(O.O, expected)
    g, inner = attend_vjp(dO, saved), attention_vjp(dO, plain)
    for name, (_, kept), d in zip("QK", normed, inner, strict=False):
        right = rms_norm_vjp(d, kept)
        assert same(getattr(g, name), right.X)
        assert same(getattr(g, f"gain_{name}"), right.gain)


def test_qk_norm_without_epsilon_does_not_see_the_length_of_a_query():
    Q, K, V = heads(normal)
    gains = {"gain_Q": normal(D_K), "gain_K": normal(D_K)}
    dO = normal(H, N, D_V)
    O, saved = attend(Q, K, V, **gains, eps=0.0)
    torch.testing.assert_close(attend(7 * Q, K / 3, V, **gains, eps=0.0)[0].O, O.O)
    g = attend_vjp(dO, saved)
    torch.testing.assert_close((g.Q * Q).sum(-1), torch.zeros(H, N, dtype=F64), atol=1e-12, rtol=0)
    seen = attend_vjp(dO, attend(Q, K, V, **gains, eps=1.0)[1])
    assert (seen.Q * Q).sum(-1).abs().max() > 1e-4


@pytest.mark.parametrize("shape", [(), (H, 1, 1)])
def test_a_temperature_divides_the_queries(field, shape):
    Q, K, V = heads(field.random)
    T, dO = field.random(*shape), field.random(H, N, D_V)
    O, saved = attend(Q, K, V, temperature=T, mask=CAUSAL)
    expected, plain = attend(Q / T, K, V, mask=CAUSAL)
    assert same(O.O, expected.O)
    g, right = attend_vjp(dO, saved), attend_vjp(dO, plain)
    assert same(g.Q, right.Q / T)
    assert same(g.K, right.K)
    heads_or_all = (lambda t: t.sum((-1, -2), keepdim=True)) if shape else torch.sum
    assert same(g.temperature * T, -heads_or_all(g.Q * Q))  # the value depends on Q/T alone


def test_a_cap_that_is_far_away_is_no_cap():
    """Its error falls with the square of the cap; so does that of the gradient."""
    Q, K, V = heads(normal)
    dO = normal(H, N, D_V)
    O, saved = attend(Q, K, V)
    g = attend_vjp(dO, saved)
    errors = []
    for c in (100.0, 1000.0):
        capped, kept = attend(Q, K, V, softcap=c)
        errors.append(
            [float((capped.O - O.O).abs().max()), float((attend_vjp(dO, kept).Q - g.Q).abs().max())]
        )
    assert errors[1][0] < 1e-5
    for far, near in zip(errors[1], errors[0], strict=True):
        assert 80 < near / far < 120
    near = attend(50 * Q, K, V, softcap=1.5)[1].values["S"]
    assert float(near.abs().max()) <= 1.5
    assert float(near.abs().max()) > 1.4


@pytest.mark.parametrize("hidden", ["nothing", "a row and more"])
def test_a_sink_is_a_key_whose_value_is_zero(field, hidden):
    """With score s in every row of the head; it is never hidden, so that no row is empty."""
    r = field.random
    Q, K, V = heads(r)
    sinks, d = r(H), {"dO": r(H, N, D_V), "dweights": r(H, N, N), "dlse": r(H, N)}
    mask = (
        torch.ones(N, N, dtype=torch.bool)
        if hidden == "nothing"
        else CAUSAL & (torch.arange(N) != 2)[:, None]
    )
    out, saved = attend(Q, K, V, sinks=sinks, mask=mask)
    zero_key, zero_value = K[:, :1] - K[:, :1], V[:, :1] - V[:, :1]
    zeros = torch.zeros_like(sinks)[:, None, None].expand(H, N, N)
    beside = {
        "bias": torch.cat([zeros, sinks[:, None, None].expand(H, N, 1)], -1),
        "mask": torch.cat([mask, torch.ones(N, 1, dtype=torch.bool)], -1),
    }
    keyed, kept = attend(Q, torch.cat([K, zero_key], 1), torch.cat([V, zero_value], 1), **beside)
    assert same(out.O, keyed.O)
    assert same(out.weights, keyed.weights[..., :N])
    assert same(out.lse, keyed.lse)
    g = attend_vjp(saved=saved, **d)
    right = attend_vjp(saved=kept, **{**d, "dweights": torch.cat([d["dweights"], zeros[..., :1]], -1)})
    assert same(g.Q, right.Q)
    assert same(g.K, right.K[:, :N])
    assert same(g.V, right.V[:, :N])
    assert same(g.sinks, right.bias[..., N].sum(-1))
    assert not same(out.O, attend(Q, K, V, mask=mask)[0].O)


def test_the_gradient_of_lse_is_the_weights(field):
    """∂lse/∂S = P, for any cotangent; P = exp(S − lse) before dropout, and lse knows nothing of it."""
    r = field.random
    (Q, K, V), bias, dlse = heads(r), r(H, N, N), r(H, N)
    out, saved = attend(Q, K, V, bias=bias, mask=CAUSAL)
    g = attend_vjp(None, saved, dlse=dlse)
    assert same(g.bias, out.weights * dlse[..., None])
    assert not bool(field.differs(g.V, torch.zeros_like(g.V)).any())
    keep = torch.rand(H, N, N) < 0.5
    dropped, kept = attend(Q, K, V, bias=bias, mask=CAUSAL, keep=keep, dropout_p=0.5)
    assert same(dropped.lse, out.lse)
    assert same(dropped.weights, out.weights * (2 * keep.double()))
    assert same(attend_vjp(None, kept, dlse=dlse).bias, g.bias)


def test_the_three_cotangents_add_up(field):
    r = field.random
    Q, K, V = heads(r, h_kv=H_KV)
    sinks = r(H)
    d = {"dO": r(H, N, D_V), "dweights": r(H, N, N), "dlse": r(H, N)}
    _, saved = attend(Q, K, V, sinks=sinks)
    together = attend_vjp(saved=saved, **d)
    alone = [attend_vjp(saved=saved, **{"dO": None, name: t}) for name, t in d.items()]
    for name in together._fields:
        assert same(getattr(together, name), sum(getattr(g, name) for g in alone))
        assert not same(getattr(together, name), sum(getattr(g, name) for g in alone[:1])) or name == "V"


def test_dropout_that_drops_nothing_is_neutral():
    Q, K, V = heads(normal)
    dO = normal(H, N, D_V)
    O, saved = attend(Q, K, V)
    kept, trace = attend(Q, K, V, keep=torch.ones(N, N, dtype=torch.bool), dropout_p=0.0)
    assert all(torch.equal(a, b) for a, b in zip(O, kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(attend_vjp(dO, saved), attend_vjp(dO, trace), strict=True))
    half = attend(Q, K, V, keep=torch.ones(N, N, dtype=torch.bool), dropout_p=0.5)[0]
    torch.testing.assert_close(half.O, 2 * O.O)


def test_dropout_keeps_the_mean():
    """Inverted, as torch has it: over many masks the weights are those without."""
    Q, K, V = heads(normal)
    P = attend(Q, K, V)[0].weights
    generator = torch.Generator().manual_seed(0)
    keeps = torch.rand(400, H, N, N, generator=generator) >= 0.25
    mean = torch.stack([attend(Q, K, V, keep=k, dropout_p=0.25)[0].weights for k in keeps]).mean(0)
    assert float((mean - P).abs().max()) < 0.1
    assert float((mean * 0.75 - P).abs().max()) > 0.1


def test_a_wider_softmax_is_closer_to_the_truth():
    """bfloat16, 60 draws: lse and the gradients of queries and keys, with the softmax in float32 and without."""
    closer = {"lse": 0, "Q": 0, "K": 0}
    total = {n: [0.0, 0.0] for n in closer}
    for seed in range(60):
        torch.manual_seed(seed)
        Q, K, V, dO = (torch.randn(4, 16, 8).bfloat16() for _ in range(4))
        exact, saved = attend(Q.double(), K.double(), V.double())
        truth = attend_vjp(dO.double(), saved)._asdict() | {"lse": exact.lse}
        errors = []
        for dtype in (None, torch.float32):
            out, saved = attend(Q, K, V, softmax_dtype=dtype)
            assert out.weights.dtype == out.O.dtype == torch.bfloat16
            assert out.lse.dtype == (dtype or torch.bfloat16)
            found = attend_vjp(dO, saved)._asdict() | {"lse": out.lse}
            assert found["Q"].dtype == torch.bfloat16
            errors.append({n: float((found[n].double() - truth[n]).norm() / truth[n].norm()) for n in closer})
        for n in closer:
            closer[n] += errors[1][n] < errors[0][n]
            total[n] = [a + e[n] for a, e in zip(total[n], errors, strict=True)]
    assert all(count >= 50 for count in closer.values()), (closer, total)


# ---------------------------------------------------------------- fused projections

FUSED = [
    ("contiguous", 3, None),
    ("grouped", 6, 2),
    ("grouped", 3, None),
    ("interleaved", 3, None),
    ("head-last", 3, None),
]


def fused_arguments(make, h, h_kv, d_k=4, d_v=3, d_model=5, d_out=2):
    g = h_kv or h
    parts = [make(d_model, w) for w in (h * d_k, g * d_k, g * d_v)]
    biases = [make(w) for w in (h * d_k, g * d_k, g * d_v)]
    return make(2, N, d_model), parts, biases, make(h * d_v, d_out), make(d_out)


@pytest.mark.parametrize(("layout", "h", "h_kv"), FUSED)
def test_fused_is_the_layer_on_split_weights(field, layout, h, h_kv):
    """And dW_QKV, db_QKV are the layer's gradients in the layout of the matrix: value, tangent, gradients, second order."""
    r = field.random
    X, W, b, W_O, b_O = fused_arguments(r, h, h_kv)
    X_dot, W_dot, b_dot, W_O_dot, b_O_dot = fused_arguments(r, h, h_kv)
    sinks, sinks_dot = r(h), r(h)
    heads_of = {"layout": layout, "n_heads": h, "n_kv_heads": h_kv}
    one, one_dot = (fuse(*parts, **heads_of) for parts in (W, W_dot))
    bias, bias_dot = (fuse(*parts, **heads_of) for parts in (b, b_dot))
    options = {"mask": CAUSAL, "sinks": sinks, "n_heads": h, "n_kv_heads": h_kv, "b_O": b_O}
    three = dict(zip(("b_Q", "b_K", "b_V"), b, strict=True))
    Y, saved = fused(X, one, W_O, **options, layout=layout, d_k=4, b_QKV=bias)
    expected, plain = multihead(X, *W, W_O, **options, **three)
    assert same(Y, expected)
    dots = {"sinks_dot": sinks_dot, "b_O_dot": b_O_dot}
    three_dot = {f"{n}_dot": t for n, t in zip(three, b_dot, strict=True)}
    dY, dY_dot = r(*Y.shape), r(*Y.shape)
    mine = X_dot, one_dot, W_O_dot
    theirs = X_dot, *W_dot, W_O_dot
    assert same(
        fused_jvp(saved, *mine, **dots, b_QKV_dot=bias_dot),
        multihead_jvp(plain, *theirs, **dots, **three_dot),
    )
    pairs = (
        (fused_vjp(dY, saved), multihead_vjp(dY, plain)),
        (fused_vjp_jvp(dY, saved, dY_dot, *mine, **dots, b_QKV_dot=bias_dot),
         multihead_vjp_jvp(dY, plain, dY_dot, *theirs, **dots, **three_dot)),
    )  # fmt: skip
    for g, right in pairs:
        assert same(g.W_QKV, fuse(right.W_Q, right.W_K, right.W_V, **heads_of))
        assert same(g.b_QKV, fuse(right.b_Q, right.b_K, right.b_V, **heads_of))
        assert all(same(getattr(g, n), getattr(right, n)) for n in ("X", "W_O", "b_O", "sinks"))
    if layout != "contiguous":  # in another layout it is another gradient
        g, right = pairs[0]
        other = fuse(right.W_Q, right.W_K, right.W_V, **{**heads_of, "layout": "contiguous"})
        assert not same(g.W_QKV, other)


def test_every_layout_is_tried():
    assert {layout for layout, _, _ in FUSED} == set(LAYOUTS)


@pytest.mark.parametrize(("layout", "h", "h_kv"), FUSED)
def test_a_low_rank_update_lands_in_the_right_columns(field, layout, h, h_kv):
    """W = W_QKV + A B:   dA = dW Bᵀ,   dB = Aᵀ dW; with B that moves Q alone, K and V stay where they are after a step."""
    r = field.random
    X, W, _, W_O, _ = fused_arguments(r, h, h_kv)
    heads_of = {"layout": layout, "n_heads": h, "n_kv_heads": h_kv}
    A, B_Q = r(5, 2), r(2, h * 4)
    nothing = [torch.zeros_like(w[:2]) for w in W[1:]]
    B = fuse(B_Q, *nothing, **heads_of)
    frozen, dY = fuse(*W, **heads_of), r(2, N, 2)
    options = {**heads_of, "d_k": 4, "mask": CAUSAL}
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (A, B)]
        Y, _ = fused(X, frozen + leaves[0] @ leaves[1], W_O, **options)
        dA, dB = torch.autograd.grad(Y, leaves, dY)
    _, saved = fused(X, frozen + A @ B, W_O, **options)
    dW = fused_vjp(dY, saved).W_QKV
    assert same(dA, dW @ B.mT)
    assert same(dB, A.mT @ dW)
    # the gradient by Q's own factor is a part of dB, and a step along it moves Q alone
    _, plain = multihead(X, W[0] + A @ B_Q, *W[1:], W_O, n_heads=h, n_kv_heads=h_kv, mask=CAUSAL)
    dB_Q = split(dB, **heads_of, d_k=4).Q
    assert same(dB_Q, A.mT @ multihead_vjp(dY, plain).W_Q)
    moved = A @ fuse(B_Q - dB_Q, *nothing, **heads_of)
    assert all(
        not bool(field.differs(t, torch.zeros_like(t)).any()) for t in split(moved, **heads_of, d_k=4)[1:]
    )
    if layout != "contiguous":  # written as if the matrix were [W_Q ‖ W_K ‖ W_V]
        wrong = split(A @ torch.cat([B_Q - dB_Q, *nothing], -1), **heads_of, d_k=4)
        touched = [bool(field.differs(t, torch.zeros_like(t)).any()) for t in wrong[1:]]
        assert any(touched) == (layout != "head-last")  # which has Q's columns first, of other heads
        assert not same(wrong.Q, split(moved, **heads_of, d_k=4).Q)
