"""Arithmetic mod a prime p < 2³¹ on int64 tensors of residues in [0, p), and keyed pseudo-random residues.

Bounds, each the largest intermediate: a product of two residues is < 2⁶², a sum of up to 2³² residues < 2⁶³; both fit int64.
A matrix product goes through float64 BLAS on halves a = a₁ 2¹⁶ + a₀ (a₁ < 2¹⁵, a₀ < 2¹⁶), three products by Karatsuba:

    a b = a₁b₁ 2³² + ((a₁ + a₀)(b₁ + b₀) − a₁b₁ − a₀b₀) 2¹⁶ + a₀b₀.

The largest is (a₁ + a₀)(b₁ + b₀) ≤ (2¹⁵ + 2¹⁶ − 2)², and a sum of K of them is exact in float64 while it stays below 2⁵³:
K ≤ :data:`LONGEST` = ⌊2⁵³/(98302)²⌋ = 932,105. A longer contraction is split. A short one needs no halves of b, and two products: a₀ b < 2⁴⁷, so
that K ≤ :data:`SHORT` = 64 of them stay below 2⁵³.
"""

from __future__ import annotations

import functools
import hashlib

import torch
from sympy import isprime, sqrt_mod
from torch import Tensor

from gradderiv.numbers.ledger import SMALLEST

LONGEST = 2**53 // (2**15 + 2**16 - 2) ** 2
SHORT = 2**53 // (2**16 * 2**31)
FEW = 64  # entries up to which Python inverts one by one sooner than torch all of them
_LOW = (1 << 16) - 1


Root = int | tuple[int, int]  # q, of which a square root is asked for, or (q, 4)


@functools.lru_cache(maxsize=1 << 12)
def draw_prime(seed: str, roots: frozenset[Root]) -> int:
    """A pseudo-random prime in [2³¹ − 2²⁸, 2³¹) modulo which every one of ``roots`` has its root."""
    for attempt in range(100_000):
        p = SMALLEST + int.from_bytes(hashlib.sha256(f"{seed}/{attempt}".encode()).digest()[:8]) % 2**28
        if all(_has_root(q, p) for q in roots) and isprime(p):
            return p
    raise RuntimeError(f"no prime below 2^31 modulo which all of {sorted(map(str, roots))} have roots")


def _has_root(q: Root, p: int) -> bool:
    """For a prime p; modulo p = 3 mod 4 one of the two square roots is a square itself."""
    n, order = q if isinstance(q, tuple) else (q, 2)
    square = pow(n, (p - 1) // 2, p) == 1
    return square and (order == 2 or p % 4 == 3 or pow(n, (p - 1) // 4, p) == 1)


@functools.lru_cache(maxsize=1 << 12)
def root_mod(q: int, p: int) -> int:
    """A square root of q mod p; the one that is a square itself, where only one is."""
    root = int(sqrt_mod(q, p))
    return root if p % 4 == 1 or pow(root, (p - 1) // 2, p) == 1 else p - root


def fourth_root_mod(q: int, p: int) -> int:
    """A root of that root."""
    return root_mod(root_mod(q, p), p)


def mul(a: Tensor, b: Tensor, p: int) -> Tensor:
    return torch.mul(a, b).fmod_(p)


def add(a: Tensor, b: Tensor, p: int) -> Tensor:
    return torch.add(a, b).fmod_(p)


def neg(a: Tensor, p: int) -> Tensor:
    return torch.sub(p, a).fmod_(p)


def total(a: Tensor, dims: tuple[int, ...], keepdim: bool, p: int) -> Tensor:
    """The sum over ``dims``, of at most 2³² residues."""
    return a.sum(dims, keepdim=keepdim).fmod_(p) if dims else a.clone()


def inverse(a: Tensor, p: int) -> Tensor:
    """a^(p−2); 0 for 0, which the caller must have excluded."""
    if a.numel() <= FEW:
        powers = [pow(x, -1, p) if x else 0 for x in a.reshape(-1).tolist()]
        return torch.empty_like(a).copy_(torch.tensor(powers, dtype=a.dtype).reshape(a.shape))
    out, power, exponent = torch.ones_like(a), a, p - 2
    while exponent:
        if exponent & 1:
            out = mul(out, power, p)
        power = mul(power, power, p)
        exponent >>= 1
    return out


def matmul(a: Tensor, b: Tensor, p: int) -> Tensor:
    """a @ b mod p at the speed of two or three float64 products; see the module for the bounds."""
    length = a.shape[-1]
    if length > LONGEST:
        pieces = zip(a.split(LONGEST, -1), b.split(LONGEST, -2), strict=True)
        return torch.stack([matmul(x, y, p) for x, y in pieces]).sum(0).fmod_(p)
    a1, a0 = (a >> 16).double(), (a & _LOW).double()
    if length <= SHORT:
        b = b.double()
        return (a1 @ b).long().fmod_(p).mul_(2**16).add_((a0 @ b).long()).fmod_(p)  # < 2⁴⁷ + 2⁵³
    b1, b0 = (b >> 16).double(), (b & _LOW).double()
    high, low = a1 @ b1, a0 @ b0
    middle = ((a1 + a0) @ (b1 + b0)).sub_(high).sub_(low)
    out = high.long().fmod_(p).mul_(2**32 % p)  # < 2⁶²
    out.add_(middle.long().fmod_(p).mul_(2**16)).add_(low.long())  # + 2⁴⁷ + 2⁵³
    return out.fmod_(p)


def mix(h: Tensor) -> Tensor:
    """The finaliser of splitmix64, on int64 with wrap-around; a bijection. Overwrites ``h``."""
    h ^= (h >> 30) & ((1 << 34) - 1)
    h *= -0x40A7B892E31B1A47
    h ^= (h >> 27) & ((1 << 37) - 1)
    h *= -0x6B2FB644ECCEEE15
    h ^= (h >> 31) & ((1 << 33) - 1)
    return h


class Keyed:
    """A pseudo-random function of a tuple of residues, different for every ``seed``.

    A multilinear digest with random odd multipliers, then two rounds of splitmix64's finaliser with a secret between them.
    """

    def __init__(self, seed: str, arity: int) -> None:
        stream = hashlib.shake_256(seed.encode()).digest(8 * (arity + 2))
        words = [int.from_bytes(stream[i : i + 8], "little", signed=True) for i in range(0, len(stream), 8)]
        self.first, self.second, self.multipliers = words[0], words[1], [w | 1 for w in words[2:]]

    def digest(self, residues: list[Tensor]) -> Tensor:
        """64 pseudo-random bits for every position."""
        h = residues[0] * self.multipliers[0]
        for residue, multiplier in zip(residues[1:], self.multipliers[1:], strict=True):
            h += residue * multiplier
        h += self.first
        h = mix(h)
        h ^= self.second
        return mix(h)

    def residue(self, residues: list[Tensor], p: int) -> Tensor:
        """A pseudo-random residue in [1, p) for every position."""
        return nonzero(self.digest(residues), p)


def nonzero(bits: Tensor, p: int) -> Tensor:
    """64 bits as a residue in [1, p)."""
    return (bits & ((1 << 63) - 1)).fmod_(p - 1).add_(1)


def fingerprint(bits: Tensor) -> int:
    """64 bits that tell two sequences of pseudo-random bits apart."""
    places = torch.arange(1, 2 * bits.numel(), 2, device=bits.device)  # odd
    return int((bits.reshape(-1) * places).sum())
