"""Running error analysis: values are float64's, errors neither smaller nor uselessly larger than those observed."""

from __future__ import annotations

import math

import pytest
import torch
from operations import ANALYTIC, EXACT_IN_FLOAT64, FRACTIONS, SHIFTS, WRITES

from gradderiv.errors import NoExactMeaning
from gradderiv.numbers.rounding import Rounding, RoundingTensor
from gradderiv.numbers.smooth import FUNCTIONS

CASES = {
    **EXACT_IN_FLOAT64,
    **{name: (f, shapes) for name, (f, _, shapes) in FRACTIONS.items()},
    **ANALYTIC,
    **SHIFTS,
    **{name: (f, [(3, 4), (3, 4)]) for name, f in WRITES.items()},
}
SINGLE, HALF = Rounding(torch.float32), Rounding(torch.bfloat16)


def outputs(out):
    return list(out) if isinstance(out, (list, tuple)) else [out]


def eighths(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 33, s, generator=generator).double() / 8 for s in shapes]


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_float64(name):
    function, shapes = CASES[name]
    tensors = eighths(shapes)
    found, expected = (
        outputs(function(*map(SINGLE.make, tensors))),
        outputs(function(*[t.clone() for t in tensors])),
    )
    for x, y in zip(found, expected, strict=True):
        assert isinstance(x, RoundingTensor)
        torch.testing.assert_close(x.value, y.double(), rtol=1e-12, atol=1e-12)
        assert x.error.shape == x.value.shape
        assert bool((x.error >= 0).all())
        assert bool(torch.isfinite(x.error[torch.isfinite(x.value)]).all())


@pytest.mark.parametrize("name", [n for n in CASES if n not in WRITES])
def test_a_result_that_is_written_over_leaves_the_arguments_alone(name):
    """Where torch's does: an argument's value or error may change only through a view of it."""
    function, shapes = CASES[name]
    tensors = eighths(shapes)
    floats = [t.clone() for t in tensors]
    try:
        for y in outputs(function(*floats)):
            y.sub_(1000)
    except RuntimeError:  # entries of an expanded view are one
        return
    numbers = [SINGLE.make(t.clone() / 3) * 3.0 for t in tensors]  # so that they have errors
    before = [(x.value.clone(), x.error.clone()) for x in numbers]
    for y in outputs(function(*numbers)):
        y.sub_(1000)
    for x, (value, error), f, t in zip(numbers, before, floats, tensors, strict=True):
        kept = torch.equal(f, t)
        assert torch.equal(x.value, value) == kept
        assert torch.equal(x.error, error) == kept


# ---------------------------------------------------------------- against observed errors


def attention(Q, K, V):
    return torch.softmax(Q @ K.mT * Q.shape[-1] ** -0.5, -1) @ V


def attention_gradient(Q, K, V):
    P = torch.softmax(Q @ K.mT * Q.shape[-1] ** -0.5, -1)
    dP = V @ V.mT
    dS = P * (dP - (P * dP).sum(-1, keepdim=True))
    return dS @ K, dS.mT @ Q, P.mT @ V


def logs(Q, K, V):
    S = Q @ K.mT
    lse = torch.logsumexp(S, -1, keepdim=True)
    return lse, torch.exp(S - lse) @ V


def rational(Q, K, V):
    return (Q * K + V) / (1 + K * K), (Q - K).mean(-1), 1 / (1 + (Q * V).sum(-1) ** 2)


def chain(Q, K, V):
    return Q @ K.mT @ V @ Q.mT @ K


PROGRAMS = {f.__name__: f for f in (attention, attention_gradient, logs, rational, chain)}


def ratios(program, system, seeds, n=17, d=12, scale=1.0):
    """Observed error over predicted standard deviation, entry by entry, over many inputs."""
    out = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        inputs = [(scale * torch.randn(n, d, generator=generator)).to(system.dtype) for _ in range(3)]
        exact = outputs(program(*(x.double() for x in inputs)))
        narrow = outputs(program(*inputs))
        predicted = outputs(program(*(system.make(x) for x in inputs)))
        for e, x, p in zip(exact, narrow, predicted, strict=True):
            torch.testing.assert_close(p.value, e, rtol=1e-9, atol=1e-12)
            out.append(((x.double() - e).abs() / p.error).reshape(-1))
    return torch.cat(out)


@pytest.mark.parametrize("system", [SINGLE, HALF], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [0.02, 1.0, 3.0])
@pytest.mark.parametrize("name", PROGRAMS)
def test_predicted_errors_are_of_the_size_of_observed_ones(name, scale, system):
    found = ratios(PROGRAMS[name], system, seeds=6, scale=scale)
    assert bool(torch.isfinite(found).all())
    assert found.max().item() < 6, "too small: an honest result would be called wrong"
    assert found.square().mean().sqrt().item() < 1
    assert found.quantile(0.9).item() > 1e-2, "uselessly large: a wrong result would pass"
    if scale <= 1:  # where a softmax saturates, errors cancel that are taken for independent
        assert found.median().item() > 1e-2


def test_twin_predictions_a_tenth_or_a_hundred_times_as_large_are_noticed():
    found = ratios(rational, SINGLE, seeds=6)
    assert (10 * found).max().item() > 6
    assert (found / 100).median().item() < 1e-2


def test_a_mistake_in_the_fourth_digit_is_far_outside():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(17, 12, generator=generator) for _ in range(3)]
    predicted = attention(*map(SINGLE.make, inputs))
    wrong = attention(*inputs).double() * 1.0001
    assert ((wrong - predicted.value).abs() / predicted.error).median().item() > 20


def test_narrower_formats_err_more_by_the_ratio_of_their_units():
    inputs = [torch.randn(9, 8, generator=torch.Generator().manual_seed(s)).bfloat16() for s in range(3)]
    single, half = (attention_gradient(*map(s.make, inputs))[0].error for s in (SINGLE, HALF))
    ratio = (half / single).median().item()
    assert 2**14 < ratio < 2**17  # 2⁻⁹ against 2⁻²⁵


# ---------------------------------------------------------------- the rules, one by one


U = 2.0**-24


def test_inputs_are_exact_and_constants_rounded_once():
    x = SINGLE.make(torch.tensor([1.5, 3.0]))
    assert x.error.tolist() == [0, 0]
    assert (x * 0.1).error[0].item() == pytest.approx(0.15 * U * math.sqrt(2), rel=1e-3)
    assert (x * 4).error[0].item() == pytest.approx(6 * U, rel=1e-6)  # an integer is exact


def test_errors_of_the_elementary_operations():
    x, y = (SINGLE.make(torch.tensor([v], dtype=torch.float64)) * 1 for v in (3.0, 5.0))
    e, f = 3 * U, 5 * U
    expected = {
        "sum": (x + y, [e, f, 8 * U]),
        "difference": (x - y, [e, f, 2 * U]),
        "product": (x * y, [3 * f, 5 * e, 15 * U]),
        "inverse": (1 / x, [e / 9, U / 3]),
        "exp": (x.exp(), [math.exp(3) * e, 2 * U * math.exp(3)]),
        "log": (y.log(), [f / 5, U * math.log(5)]),
        "minus": (-x, [e]),
    }
    for name, (z, terms) in expected.items():
        size = math.sqrt(sum(t * t for t in terms))
        assert size / 1.5 <= z.error.item() <= size * 1.5, name
    assert (-x).error.item() == x.error.item()


def test_sums_and_products_grow_with_the_root_of_the_length():
    one = [SINGLE.make(torch.ones(1, k, dtype=torch.float64)) for k in (100, 10_000)]
    sums = [x.sum().error.item() / x.numel() for x in one]
    products = [(x @ x.mT).error.item() / x.numel() for x in one]
    for small, large in (sums, products):
        assert large / small == pytest.approx(10, rel=0.3)
    half = HALF.make(torch.ones(1, 10_000, dtype=torch.float64))
    assert half.sum().error.item() / 1e4 < 2 * HALF.u  # accumulated in float32, rounded once


def test_cancellation_keeps_the_error():
    x = SINGLE.make(torch.tensor([1e6])) * 1.1
    difference = x - SINGLE.make(torch.tensor([1e6], dtype=torch.float64) * 1.1)
    assert difference.value.abs().item() < 1e-9
    assert difference.error.item() > 0.01


def test_denominators_within_their_error_of_zero_have_no_bound():
    x = SINGLE.make(torch.tensor([1.0])) * 1.1 - 1.1 + 1e-300
    assert x.reciprocal().error.item() == math.inf
    for y in (
        1 / x,
        x.reciprocal() * 0.5,
        0 * x.reciprocal() + 1,
        torch.ones(1, 1) @ x.reciprocal()[:, None],
    ):
        assert y.error.item() == math.inf, "an unknown error became another"


def test_probabilities_are_off_by_one_at_most():
    S = SINGLE.make(torch.tensor([[1e6, 1e6 + 1.0, 0.0]], dtype=torch.float64)) * 1.1
    P = torch.softmax(S, -1)
    assert bool((P.error <= 1.0 + 1e-6).all())
    assert P.error[0, 1].item() > 0.01
    assert P.error[0, 2].item() < 1e-30


def test_masks_of_minus_infinity_have_no_error():
    S = SINGLE.make(torch.randn(2, 3, dtype=torch.float64)) * 1.1
    mask = torch.tensor([[True, False, True], [True, True, True]])
    masked = S.masked_fill(~mask, -math.inf)
    assert torch.equal(masked == -math.inf, ~mask)
    for P in (torch.softmax(masked, -1), torch.exp(masked - torch.logsumexp(masked, -1, True))):
        assert P.value[0, 1].item() == 0
        assert P.error[0, 1].item() < 1e-30
        assert bool(torch.isfinite(P.error).all())


def test_a_result_that_underflows_is_known_to_the_least_normal_number():
    x = SINGLE.make(torch.tensor([1e-30], dtype=torch.float64))
    assert (x * x).error.item() >= torch.finfo(torch.float32).tiny
    assert (x * x).error.item() < 1e-37


def test_repr_shows_values_and_errors():
    text = repr(SINGLE.make(torch.tensor([1.5])))
    assert text == (
        "RoundingTensor(tensor([1.5000], dtype=torch.float64) ± tensor([0.], dtype=torch.float64), dtype=torch.float64)"
    )


def test_formats_do_not_mix():
    with pytest.raises(NoExactMeaning, match="another"):
        SINGLE.make(torch.ones(2)) + HALF.make(torch.ones(2))


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in ("exp", "log2")])
def test_errors_of_smooth_functions_are_those_of_their_slopes(name):
    """e² = (f′(x) e_x)² + (2u f)² and the rounding of the result, with f′ by central differences."""
    f = FUNCTIONS[name].value
    v = torch.tensor([0.3, 0.9, 2.1], dtype=torch.float64)
    x = SINGLE.make(v) * 3
    y = f(x)
    h = 1e-6
    slope = (f(x.value + h) - f(x.value - h)) / (2 * h)
    torch.testing.assert_close(y.value, f(x.value), rtol=0, atol=0)
    expected = ((slope * x.error) ** 2 + 2 * (U * f(x.value)) ** 2).sqrt()
    torch.testing.assert_close(y.error, expected, rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(FUNCTIONS[name].slope(x.value, f(x.value)), slope, rtol=1e-7, atol=1e-9)


def test_comparisons_of_values_are_those_of_floats():
    v = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    x = SINGLE.make(v)
    for program in (
        torch.relu, torch.abs, lambda t: t.clamp(-0.5, 1), lambda t: torch.where(t > 0, t, 2 * t), lambda t: torch.where(t >= 0, t + 1, t),
        lambda t: torch.where(t <= 0, t + 1, t), lambda t: torch.where(t < 0, t + 1, t), lambda t: t.masked_fill(t == 0, 3),
    ):  # fmt: skip
        torch.testing.assert_close(program(x).value, program(v), rtol=1e-15, atol=0)
