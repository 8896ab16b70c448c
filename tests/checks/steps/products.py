"""Products, masks, normalisation."""

from __future__ import annotations

from programs import FINITE, LOG, MASKED, MIXED, PLAIN, Maker

from steps.registry import step

# ---------------------------------------------------------------- products


@step("matmul", 2)
def _matmul(m: Maker) -> None:
    x = m.take(low=2, high=3)
    *batch, _, k = m.value(x).shape
    form = m.random.choice(("plain", "transposed", "vector", "batch", "own"))
    if form == "plain":
        m.put(f"{x} @ {m.fitted((k, m.random.randint(2, 3)))}")
    elif form == "transposed":
        m.put(f"torch.matmul({x}, {m.fitted((*batch, m.random.randint(2, 3), k))}.mT)")
    elif form == "vector":
        m.put(f"{x} @ {m.fitted((k,))}")
    elif form == "batch":
        m.put(f"{x} @ {m.fitted((2, 1, k, 2))}")
    else:
        m.put(f"{x} @ {x}.transpose(-1, -2) / {k}")


@step("vectors")
def _vectors(m: Maker) -> None:
    x = m.take(low=1, high=1)
    n = m.value(x).shape[0]
    form = m.random.choice(
        (
            "torch.dot({x}, {y})",
            "torch.outer({x}, {y})",
            "{y} @ torch.outer({x}, {x})",
            "torch.inner({x}, {y})",
        )
    )
    m.put(form.format(x=x, y=m.fitted((n,))))


@step("einsum", 3)
def _einsum(m: Maker) -> None:
    x = m.take(low=1, high=3)
    shape = m.value(x).shape
    letters = "bijk"[: len(shape)]
    size = dict(zip(letters, shape, strict=True), m=2, n=3)
    shared = m.random.sample(letters, m.random.randint(1, len(letters)))
    second = [*shared, *m.random.sample("mn", m.random.choice((0, 1)))]
    m.random.shuffle(second)
    operands, subscripts = [x, m.fitted([size[c] for c in second])], [letters, "".join(second)]
    if m.random.random() < 0.2:
        third = m.random.sample(sorted({*letters, *second}), 1)
        operands.append(m.fitted([size[c] for c in third]))
        subscripts.append("".join(third))
    every = sorted(set("".join(subscripts)))
    kept = m.random.sample(every, m.random.randint(0, min(3, len(every))))
    m.put(f"torch.einsum('{', '.join(subscripts)} -> {''.join(kept)}', {', '.join(operands)})")


@step("bmm")
def _bmm(m: Maker) -> None:
    x = m.take(low=3, high=3)
    b, n, k = m.value(x).shape
    y = m.fitted((b, k, 2))
    if m.random.random() < 0.5:
        m.put(f"torch.bmm({x}, {y})")
    else:
        c = m.fitted(m.random.choice(((b, n, 2), (2,), (n, 1))))
        m.put(
            f"torch.baddbmm({c}, {x}, {y}, beta={m.random.choice((1, 0.5, 2))}, alpha={m.random.choice((1, -2, 0.5))})"
        )


@step("addmm")
def _addmm(m: Maker) -> None:
    x = m.take(low=2, high=2)
    n, k = m.value(x).shape
    y, c = m.fitted((k, 3)), m.fitted(m.random.choice(((n, 3), (3,))))
    m.put(f"torch.addmm({c}, {x}, {y}, beta={m.random.choice((1, 0.5, 0))}, alpha={m.random.choice((1, 3))})")


@step("F.linear", 2)
def _linear(m: Maker) -> None:
    x = m.take(low=1, high=3)
    k, out = m.value(x).shape[-1], m.random.randint(2, 4)
    bias = f", {m.fitted((out,))}" if m.random.random() < 0.6 else ""
    m.put(f"F.linear({x}, {m.fitted((out, k))}{bias})")


@step("trace", 0.4)
def _trace(m: Maker) -> None:
    m.put(f"torch.trace({m.take(low=2, high=2)})")


@step("kron", 0.3)
def _kron(m: Maker) -> None:
    m.put(f"torch.kron({m.take(low=2, high=2)}, {m.fitted((1, 2))})")


# ---------------------------------------------------------------- masks


@step("masked scores", 1.5)
def _masked_scores(m: Maker) -> None:
    x = m.take(low=1, high=3)
    shape = m.value(x).shape[-m.random.choice((1, 2)) :]
    form = m.random.choice(("fill", "add", "where", "triu"))
    if form == "fill":
        scores = m.put(f"{x}.masked_fill(~{m.mask(shape)}, -torch.inf)", MASKED)
    elif form == "add":
        scores = m.put(f"{x} + torch.where({m.mask(shape)}, 0.0, -torch.inf)", MASKED)
    elif form == "where":
        scores = m.put(f"torch.where({m.mask(shape)}, {x}, float('-inf'))", MASKED)
    else:
        n, k = (1, 1, *m.value(x).shape)[-2:]
        scores = m.put(f"{x} + torch.full(({n}, {k}), -torch.inf).triu(1)", MASKED)
    if m.random.random() < 0.7:
        m.used.add(scores)
        m.put(
            f"{m.random.choice(('F.softmax(S, -1)', 'S.softmax(-1)', 'torch.exp(S - S.logsumexp(-1, keepdim=True))', 'S.exp()')).replace('S', scores)}",
            PLAIN,
        )


@step("rows without a key", 0.5)
def _empty_rows(m: Maker) -> None:
    x = m.take(low=1, high=3)
    mask = m.constant(m.mask(m.value(x).shape, None))
    scores = m.put(f"{x}.masked_fill(~{mask}, -torch.inf)", MASKED, hidden=True)
    safe = m.put(f"torch.where({mask}.any(-1, keepdim=True), {scores}, 0.0)", MASKED, hidden=True)
    m.put(f"F.softmax({safe}, -1).masked_fill(~{mask}, 0.0)")


@step("masked values", 1.5)
def _masked_values(m: Maker) -> None:
    x = m.take(low=1, high=3)
    shape = m.value(x).shape[-m.random.choice((1, 2)) :]
    mask = m.mask(shape, None)
    form = m.random.choice(("fill 0", "fill", "where 0", "times", "where", "floats", "multiply constant"))
    if form == "fill 0":
        m.put(f"{x}.masked_fill({mask}, 0.0)")
    elif form == "fill":
        m.put(f"{x}.masked_fill({mask}, 1.5)")
    elif form == "where 0":
        m.put(f"torch.where({mask}, {x}, 0)")
    elif form == "times":
        m.put(f"{x} * {mask}")
    elif form == "where":
        m.put(f"torch.where({mask}, {x}, {m.partner(x)})")
    elif form == "floats":
        m.put(f"{x} * {mask}.to({x}.dtype)")
    else:
        m.put(f"{x} * {m.numbers(shape, x)}")


@step("triangle")
def _triangle(m: Maker) -> None:
    x = m.take(low=2, high=3)
    m.put(f"{x}.{m.random.choice(('tril', 'triu'))}({m.random.choice((-1, 0, 1))})")


@step("where on logs", 0.5)
def _where_logs(m: Maker) -> None:
    x = m.take((LOG, MIXED))
    y = m.partner(x, (LOG, MIXED, *FINITE))
    shape = m.value(x).shape
    m.put(f"torch.where({m.mask(shape, None)}, {x}, {y})", MIXED)


# ---------------------------------------------------------------- normalisation


@step("layer_norm")
def _layer_norm(m: Maker) -> None:
    x = m.take(low=1, high=3)
    d = m.value(x).shape[-1]
    form = m.random.choice(("", "w", "wb", "two axes"))
    if form == "two axes" and m.value(x).dim() > 1:
        m.put(f"F.layer_norm({x}, {tuple(m.value(x).shape[-2:])})")
        return
    weight = f", {m.fitted((d,))}" if "w" in form else ""
    bias = f", {m.fitted((d,))}" if "b" in form else ""
    m.put(
        f"F.layer_norm({x}, ({d},){weight}{bias}, eps={m.random.choice(('1e-5', '1e-2'))})"
        if bias
        else f"F.layer_norm({x}, ({d},){weight})"
    )


@step("rms_norm")
def _rms_norm(m: Maker) -> None:
    x = m.take(low=1, high=3)
    d = m.value(x).shape[-1]
    weight = f", {m.fitted((d,))}.to({x}.dtype)" if m.random.random() < 0.6 else ""
    m.put(f"F.rms_norm({x}, ({d},){weight}{m.random.choice((', eps=1e-5', ''))})")
