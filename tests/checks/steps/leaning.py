"""Steps that are right, and whose programs may have no proof: each says why."""

from __future__ import annotations

from programs import LOG, POSITIVE, Maker

from steps.registry import step


@step("logaddexp of plain values", 0.06)
def _logaddexp(m: Maker) -> None:
    x = m.take()
    m.put(f"torch.logaddexp({x}, {m.partner(x)})", LOG)
    m.lean("the backward of logaddexp has exp(b − a) where the forward has exp(a) and exp(b)")


@step("clamp between tensors", 0.06)
def _clamp_between(m: Maker) -> None:
    x = m.take()
    y = m.partner(x)
    m.put(f"torch.clamp({x}, {y}, {y} + 1)")
    m.lean("x < a < b implies x < b, and gates do not know it")


@step("cosine_similarity", 0.06)
def _cosine(m: Maker) -> None:
    x = m.take(low=1, high=3)
    m.put(f"F.cosine_similarity({x}, {m.fitted(m.value(x).shape)}, -1)")
    m.lean("torch clamps the norms under no_grad")


@step("root of a value used before", 0.06)
def _root_late(m: Maker) -> None:
    u = m.put(f"{m.take()} ** 2 + 1", POSITIVE)
    m.put(f"{u} * {u} / torch.sqrt({u})", POSITIVE)
    m.lean("u * u was computed before u became the square of its root")
