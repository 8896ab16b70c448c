"""Steps that move entries."""

from __future__ import annotations

from programs import FINITE, LOG, MIXED, PLAIN, Maker

from steps.registry import step

# ---------------------------------------------------------------- structure


@step("permute", 1.5)
def _permute(m: Maker) -> None:
    x = m.take((*FINITE, LOG, MIXED), low=2, high=4)
    axes = list(range(m.value(x).dim()))
    m.random.shuffle(axes)
    m.put(
        m.random.choice(
            (
                f"{x}.permute({axes})",
                f"{x}.mT",
                f"{x}.transpose(0, -1)",
                f"torch.movedim({x}, 0, -1)",
                f"{x}.swapaxes(-1, 0).contiguous()",
            )
        ),
        m.kinds[x],
    )


@step("reshape")
def _reshape(m: Maker) -> None:
    x = m.take((*FINITE, LOG, MIXED), low=1, high=4)
    shape = list(m.value(x).shape)
    forms = [
        f"{x}.reshape(-1, {shape[-1]})",
        f"{x}.unsqueeze(-2)",
        f"{x}[None]",
        f"{x}.flatten(-{min(2, len(shape))})",
    ]
    forms += [f"{x}.unflatten(-1, (2, {shape[-1] // 2}))"] if shape[-1] % 2 == 0 and len(shape) < 4 else []
    m.put(m.random.choice(forms), m.kinds[x])


@step("expand")
def _expand(m: Maker) -> None:
    x = m.take((*FINITE, LOG), low=0, high=2)
    m.put(
        m.random.choice(
            (
                f"{x}.expand(2, *{x}.shape)",
                f"torch.broadcast_to({x}, (3, *{x}.shape))",
                f"{x}.repeat(2, *[1] * {max(m.value(x).dim(), 1)})",
                f"torch.tile({x}, (2,))",
            )
        ),
        m.kinds[x],
    )


@step("cat", 1.5)
def _cat(m: Maker) -> None:
    x = m.take((*FINITE, LOG), low=1, high=3)
    kinds = (LOG,) if m.kinds[x] == LOG else FINITE
    y, d = m.fitted(m.value(x).shape, kinds), m.axis(x)
    m.put(
        m.random.choice(
            (
                f"torch.cat([{x}, {y}], {d})",
                f"torch.stack([{x}, {y}], {d})",
                f"torch.stack([{y}, {x}, {y}])",
                f"torch.hstack([{x}, {y}])",
            )
        ),
        LOG if kinds == (LOG,) else PLAIN,
    )


@step("pieces", 1.5)
def _pieces(m: Maker) -> None:
    x = m.take((*FINITE, LOG, MIXED), low=1, high=3)
    d = m.axis(x)
    n = m.value(x).shape[d]
    forms = [
        (f"{x}.unbind({d})", n),
        (f"{x}.split([1, {n - 1}], {d})", 2),
        (f"{x}.split(1, {d})", n),
        (f"torch.chunk({x}, 2, {d})", min(n, 2)),
        (f"torch.tensor_split({x}, 2, {d})", 2),
    ]
    m.several(*m.random.choice(forms), m.kinds[x])


@step("slice", 1.5)
def _slice(m: Maker) -> None:
    x = m.take((*FINITE, LOG, MIXED), low=1, high=3)
    m.put(
        m.random.choice(
            (
                f"{x}[..., ::2]",
                f"{x}[1:]",
                f"{x}[..., -1]",
                f"{x}[..., :1]",
                f"{x}[0]",
                f"{x}[..., None, 1]",
                f"{x}[:2, ..., :2]",
            )
        ),
        m.kinds[x],
    )


@step("diagonal", 0.5)
def _diagonal(m: Maker) -> None:
    x = m.take(low=1, high=3)
    if m.value(x).dim() > 1 and m.random.random() < 0.6:
        m.put(f"{x}.diagonal({m.random.choice((0, 1))}, -2, -1)")
    else:
        m.put(f"torch.diag_embed({x})")


@step("pad")
def _pad(m: Maker) -> None:
    x = m.take(low=1, high=3)
    m.put(m.random.choice((f"F.pad({x}, (1, 0))", f"F.pad({x}, (0, 2), value=1.5)", f"F.pad({x}, (1, -1))")))
