"""Attention as people write it."""

from __future__ import annotations

from programs import LOG, MASKED, POSITIVE, Maker

from steps.registry import step

# ---------------------------------------------------------------- attention


def _heads(m: Maker) -> tuple[str, str, str, int, int]:
    """q, k, v, and how many queries and keys."""
    q = m.take(low=2, high=3)
    *batch, n, d = m.value(q).shape
    keys = m.random.randint(2, 4)
    return q, m.fitted((*batch, keys, d)), m.fitted((*batch, keys, m.random.randint(2, 3))), n, keys


@step("sdpa", 2)
def _sdpa(m: Maker) -> None:
    q, k, v, n, keys = _heads(m)
    options = m.random.choice(
        (
            "",
            ", is_causal=True",
            f", attn_mask={m.mask((n, keys))}",
            f", attn_mask={m.mask((n, keys), None)}",
            f", attn_mask=torch.where({m.mask((n, keys))}, 0.0, -torch.inf).to({q}.dtype)",
            f", attn_mask={m.fitted((n, keys))}",
            ", scale=0.3",
            ", dropout_p=0.5",
            f", attn_mask={m.numbers((n, keys), q)}, scale=1",
        )
    )
    m.put(f"F.scaled_dot_product_attention({q}, {k}, {v}{options})")


@step("sdpa with groups")
def _gqa(m: Maker) -> None:
    n, keys, d = m.random.randint(2, 3), m.random.randint(2, 3), 2
    q, k, v = m.fitted((1, 4, n, d)), m.fitted((1, 2, keys, d)), m.fitted((1, 2, keys, d))
    m.put(
        f"F.scaled_dot_product_attention({q}, {k}, {v}, enable_gqa=True{m.random.choice(('', ', is_causal=True'))})"
    )


@step("attention by hand", 2)
def _by_hand(m: Maker) -> None:
    q, k, v, n, keys = _heads(m)
    d = m.value(q).shape[-1]
    text = m.random.choice(
        (f"{q} @ {k}.mT / {d} ** 0.5", f"torch.einsum('...id, ...jd -> ...ij', {q}, {k}) * {d} ** -0.5")
    )
    s = m.put(text, hidden=True)
    if m.random.random() < 0.4:
        s = m.put(f"3 * torch.tanh({s} / 3)", hidden=True)
    if m.random.random() < 0.6:
        s = m.put(
            f"{s}.masked_fill(torch.ones({n}, {keys}, dtype=torch.bool).triu(1), -torch.inf)",
            MASKED,
            hidden=True,
        )
    p = m.put(
        m.random.choice(("F.softmax(S, -1)", "torch.exp(S - torch.logsumexp(S, -1, keepdim=True))", "F.softmax(S, -1, dtype=torch.float64).to(Q.dtype)", "F.dropout(F.softmax(S, -1), 0.3)"))
        .replace("S", s).replace("Q", q)
    )  # fmt: skip
    m.used.add(p)
    m.put(f"{p} @ {v}")


@step("online softmax", 2)
def _online(m: Maker) -> None:
    q, k, v, _, keys = _heads(m)
    cut = m.random.choice(("", ".detach()"))
    top, total, out = "", "", ""
    for start in range(0, keys, 2):
        s = m.put(f"{q} @ {k}[..., {start}:{start + 2}, :].mT", hidden=True)
        if start == 0:
            top = m.shift(f"{s}.amax(-1, keepdim=True){cut}")
            e = m.shift(f"torch.exp({s} - {top})")
            total = m.shift(f"{e}.sum(-1, keepdim=True)")
            out = m.shift(f"{e} @ {v}[..., :2, :]")
            continue
        new = m.shift(f"torch.maximum({top}, {s}.amax(-1, keepdim=True){cut})")
        e, a = m.shift(f"torch.exp({s} - {new})"), m.shift(f"torch.exp({top} - {new})")
        if m.random.random() < 0.5:
            total = m.shift(f"{total} * {a} + {e}.sum(-1, keepdim=True)")
            out = m.shift(f"{out} * {a} + {e} @ {v}[..., {start}:{start + 2}, :]")
        else:
            m.do(f"{total} = {total} * {a}; {total} += {e}.sum(-1, keepdim=True)", total)
            m.do(f"{out} = {out} * {a}; {out} += {e} @ {v}[..., {start}:{start + 2}, :]", out)
        top = new
    m.put(f"{out} / {total}")
    if m.random.random() < 0.5:
        m.put(f"({top} + torch.log({total})).squeeze(-1)", LOG)


@step("merge by lse")
def _merge(m: Maker) -> None:
    q, k, v, _, keys = _heads(m)
    half = keys // 2
    parts = []
    for rows in (f":{half}", f"{half}:"):
        s = m.put(f"{q} @ {k}[..., {rows}, :].mT", hidden=True)
        lse = m.put(f"torch.logsumexp({s}, -1, keepdim=True)", LOG, hidden=True)
        parts.append((lse, m.put(f"torch.exp({s} - {lse}) @ {v}[..., {rows}, :]", hidden=True)))
    (a, o), (b, p) = parts
    lse = m.put(f"torch.logaddexp({a}, {b})", LOG)
    m.put(f"torch.exp({a} - {lse}) * {o} + torch.exp({b} - {lse}) * {p}")


@step("safe softmax by hand")
def _safe_softmax(m: Maker) -> None:
    x = m.take(low=1, high=3)
    d = m.axis(x)
    top = m.shift(
        m.random.choice(
            (
                f"{x}.amax({d}, keepdim=True)",
                f"{x}.max({d}, keepdim=True).values",
                f"{x}.max({d}, keepdim=True)[0].detach()",
                f"{x}.max().detach()",
            )
        )
    )
    e = m.shift(f"torch.exp({x} - {top})")
    m.put(f"{e} / {e}.sum({d}, keepdim=True)", POSITIVE)


@step("rope", 1.5)
def _rope(m: Maker) -> None:
    x = m.take(low=2, high=3, fits=lambda t: t.shape[-1] % 2 == 0)
    n, d = m.value(x).shape[-2:]
    angles = f"torch.outer(torch.arange({n}), 100.0 ** -(torch.arange({d // 2}) / {d // 2}))"
    if m.random.random() < 0.5:
        cos, sin = m.constant(f"{angles}.cos().to({x}.dtype)"), m.constant(f"{angles}.sin().to({x}.dtype)")
        m.put(
            f"torch.stack([{x}[..., ::2] * {cos} - {x}[..., 1::2] * {sin}, {x}[..., 1::2] * {cos} + {x}[..., ::2] * {sin}], -1).flatten(-2)"
        )
    else:
        table = m.constant(f"torch.cat([{angles}, {angles}], -1).to({x}.dtype)")
        a, b = m.several(f"{x}.chunk(2, -1)", 2)
        m.put(f"{x} * {table}.cos() + torch.cat([-{b}, {a}], -1) * {table}.sin()")
