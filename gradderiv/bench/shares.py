"""Where the time of a proof goes: one run under ``cProfile``."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gradderiv.bench.sizes import Size, case
from gradderiv.checks.prove import prove
from gradderiv.numbers import residues
from gradderiv.threads import one_thread

HASHING = ("digest", "mix", "fingerprint")  # of gradderiv.numbers.residues
REMAINDERS = ("fmod", "remainder")  # methods of a tensor


@dataclass(frozen=True)
class Shares:
    """Seconds of one profiled proof.

    Attributes:
        products: products of matrices on halves of residues, without their remainders.
        reduction: remainders mod p, of products too.
        hashing: the values of opaque functions, before they are reduced.
        total: the whole proof.
    """

    size: Size
    products: float
    reduction: float
    hashing: float
    total: float

    def of(self, part: str) -> float:
        """A part's share of the total; ``rest`` is what no other part is."""
        if part == "rest":
            return 1 - sum(self.of(p) for p in ("products", "reduction", "hashing"))
        return getattr(self, part) / self.total

    def fields(self) -> dict[str, Any]:
        names = ("products", "reduction", "hashing", "total")
        return {"size": self.size._asdict(), **{name: getattr(self, name) for name in names}}


def shares(size: Size, seed: int = 0) -> Shares:
    """Profile one proof, after one that is not profiled."""
    layer, X = case(size, seed)
    profile = cProfile.Profile()
    with one_thread():
        prove(layer, (X,), seed=seed)
        profile.runcall(prove, layer, (X,), seed=seed)
    stats: Any = pstats.Stats(profile)
    products, reduction, hashing = _parts(stats.stats)
    return Shares(size, products, reduction, hashing, stats.total_tt)


def _parts(stats: Any) -> Iterator[float]:
    """Products, reduction and hashing, in seconds. pstats has (calls, calls, own time, time, callers) of every function."""
    remainders = [(own, callers) for place, (_, _, own, _, callers) in stats.items() if _is_remainder(place)]
    in_products = sum(
        by[2] for _, callers in remainders for caller, by in callers.items() if _is_ours(caller, "matmul")
    )
    yield sum(time for place, (*_, time, _) in stats.items() if _is_ours(place, "matmul")) - in_products
    yield sum(own for own, _ in remainders)
    yield sum(
        by[3]
        for place, (*_, callers) in stats.items()
        if _is_ours(place, *HASHING)
        for caller, by in callers.items()
        if not _is_ours(caller, *HASHING)  # the inner ones are in the time of the outer ones
    )


def _is_remainder(place: tuple[str, int, str]) -> bool:
    file, _, name = place
    return file == "~" and any(f"method '{word}" in name for word in REMAINDERS)


def _is_ours(place: tuple[str, int, str], *names: str) -> bool:
    file, _, name = place
    return file == residues.__file__ and name in names
