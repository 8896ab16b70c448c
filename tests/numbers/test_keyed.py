"""The keyed function that stands for exp: what it computes, and that it looks random."""

from __future__ import annotations

import pytest
import torch

from gradderiv.numbers.residues import Keyed, mix, nonzero

P = 2**31 - 1
MASK = 2**64 - 1


def splitmix(z):
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014) on Python's integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def signed(z):
    z &= MASK
    return z - 2**64 if z >= 2**63 else z


def chi_square(values, bins, span):
    counts = torch.histc(values.double(), bins, 0, span)
    expected = values.numel() / bins
    return ((counts - expected).square() / expected).sum().item()


def test_mix_wraps_around_as_splitmix64_does():
    golden = 0x9E3779B97F4A7C15
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # its first outputs for seed 0
    states = torch.tensor([signed(golden * i) for i in (1, 2, 3)])
    assert mix(states.clone()).tolist() == [signed(k) for k in known]
    edges = [0, 1, 2**63 - 1, 2**63, MASK, 0x8000000080000000]
    assert mix(torch.tensor([signed(z) for z in edges])).tolist() == [signed(splitmix(z)) for z in edges]


def test_int64_multiplication_wraps_around():
    """What :func:`mix` assumes of the machine."""
    a, b = 2**62 + 12345, 2**61 + 54321
    assert (torch.tensor([a]) * b).item() == signed(a * b)
    assert (torch.tensor([a]) * -0x40A7B892E31B1A47).item() == signed(a * 0xBF58476D1CE4E5B9)


def test_mix_overwrites_and_is_injective():
    h = torch.arange(40_000)
    out = mix(h)
    assert out.data_ptr() == h.data_ptr()
    assert out.unique().numel() == 40_000


@pytest.mark.parametrize("arity", [1, 2, 5])
def test_the_digest_is_the_multilinear_form_mixed_twice(arity):
    keyed = Keyed("a seed", arity)
    columns = [torch.randint(0, P, (20,), generator=torch.Generator().manual_seed(j)) for j in range(arity)]
    expected = []
    for row in zip(*(c.tolist() for c in columns), strict=True):
        h = sum(a * m for a, m in zip(row, keyed.multipliers, strict=True)) + keyed.first
        expected.append(signed(splitmix(splitmix(h & MASK) ^ (keyed.second & MASK))))
    before = [c.clone() for c in columns]
    assert keyed.digest(columns).tolist() == expected
    assert all(torch.equal(a, b) for a, b in zip(columns, before, strict=True))
    assert all(m % 2 for m in keyed.multipliers)


def test_one_seed_one_function_another_seed_another():
    x = [torch.arange(1000), torch.arange(1000) * 7 % P]
    a, again, b = (Keyed(seed, 2).residue(x, P) for seed in ("s", "s", "t"))
    assert torch.equal(a, again)
    assert (a == b).sum().item() == 0


def test_values_are_residues_and_never_zero():
    x = [torch.arange(50_000)]
    for p in (3, 101, P):
        values = Keyed("range", 1).residue(x, p)
        assert values.dtype == torch.int64
        assert values.min().item() >= 1
        assert values.max().item() <= p - 1
    assert set(Keyed("range", 1).residue(x, 3).tolist()) == {1, 2}
    bits = torch.tensor([0, -1, 2**63 - 1, -(2**63), P - 1, P - 2])
    assert nonzero(bits, P).tolist() == [(b % 2**63) % (P - 1) + 1 for b in bits.tolist()]


@pytest.mark.parametrize("bins", [64, 1000])
def test_values_of_structured_arguments_look_uniform(bins):
    n = 1 << 15
    structured = {
        "consecutive": [torch.arange(n)],
        "two lanes alike": [torch.arange(n), torch.arange(n)],
        "multiples of 2¹⁵": [torch.arange(n) * 2**15 % P],
        "near p": [P - 1 - torch.arange(n)],
    }
    for name, x in structured.items():
        for seed in ("one", "two"):
            value = chi_square(Keyed(seed, len(x)).residue(x, P), bins, P)
            assert abs(value - bins) < 6 * (2 * bins) ** 0.5, (name, seed, value)
    assert chi_square(torch.arange(n) * 2**14 % P, bins, P) > 2 * bins  # a twin that is far from uniform


def test_neighbours_are_unrelated():
    """f(x+1) − f(x), f(x) + f(−x) and f(2x)/f(x) are as uniform as f itself."""
    n = 1 << 15
    keyed, x = Keyed("neighbours", 1), torch.arange(1, n)
    f = keyed.residue([x], P)
    for other in (keyed.residue([x + 1], P), keyed.residue([P - x], P), keyed.residue([2 * x], P)):
        for combined in ((f - other) % P, (f + other) % P, f * other % P):
            assert abs(chi_square(combined, 64, P) - 64) < 6 * 128**0.5


def test_each_lane_of_the_argument_matters():
    x = torch.arange(1, 5000)
    keyed = Keyed("lanes", 3)
    base = keyed.residue([x, x, x], P)
    for lane in range(3):
        moved = [x + (j == lane) for j in range(3)]
        assert (keyed.residue(moved, P) == base).sum().item() == 0
    swapped = keyed.residue([x, x + 1, x], P)
    assert (keyed.residue([x + 1, x, x], P) == swapped).sum().item() == 0


def test_another_number_of_lanes_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        Keyed("lanes", 3).digest([torch.arange(3), torch.arange(3)])


def test_the_thread_count_does_not_matter():
    x = [torch.randint(0, P, (300_000,), generator=torch.Generator().manual_seed(j)) for j in range(2)]
    threads = torch.get_num_threads()
    try:
        out = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            out.append(Keyed("threads", 2).residue(x, P))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])
