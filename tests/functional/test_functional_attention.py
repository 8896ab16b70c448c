"""``functional.attention``: values, gradients, masks, layouts, dtypes, misuse."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from gradderiv.errors import DtypeError, InputError
from gradderiv.functional import attention

CASES = ("plain", "mask", "bias", "causal", "causal-mask", "causal-bias", "scale")


def case(name, tensors):
    """The inputs that have a gradient, ``attention`` as a function of them, and the reference's arguments."""
    Q, K, V, bias, mask = tensors
    causal = torch.ones(3, 5, dtype=torch.bool).tril()
    match name:
        case "plain":
            return (Q, K, V), attention, {}
        case "mask":
            return (Q, K, V), lambda *x: attention(*x, mask), {"mask": mask}
        case "bias":
            return (Q, K, V, bias), attention, {}
        case "causal":
            return (Q, K, V), lambda *x: attention(*x, is_causal=True), {"mask": causal}
        case "causal-mask":
            return (Q, K, V), lambda *x: attention(*x, mask, is_causal=True), {"mask": mask & causal}
        case "causal-bias":
            return (Q, K, V, bias), lambda *x: attention(*x, is_causal=True), {"mask": causal}
        case "scale":
            return (Q, K, V), lambda *x: attention(*x, scale=-1.7), {"scale": -1.7}
    raise AssertionError(name)


def test_signature_is_that_of_pytorch():
    ours = inspect.signature(attention).parameters
    shared = [name for name, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    written = scaled_dot_product_attention.__doc__.split("(", 1)[1].split(")")[0].replace("*,", "").split(",")
    theirs = [argument.split("=")[0].split(":")[0].strip() for argument in written]
    assert shared[:3] == ["Q", "K", "V"]
    assert shared[3:] == theirs[3:] == ["attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"]
    assert all(ours[name].default in (None, 0.0, False) for name in list(ours)[3:])


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_are_those_of_the_naive_formula(name, tensors, reference):
    inputs, function, arguments = case(name, tensors)
    bias = dict(enumerate(inputs)).get(3)
    O, expected = function(*inputs), reference(*inputs[:3], bias=bias, **arguments)
    dO = torch.randn_like(O)
    assert_close(O, expected, rtol=0, atol=1e-14)
    assert_close(grad(O, inputs, dO), grad(expected, inputs, dO), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("name", ["plain", "mask", "bias", "causal", "scale"])
def test_value_is_that_of_pytorch(name, kernel, tensors):
    Q, K, V, bias, mask = (x.detach() for x in tensors)
    V = V[..., :4]  # the fused kernel wants one width
    arguments = {
        "plain": {},
        "mask": {"attn_mask": mask},
        "bias": {"attn_mask": bias},
        "causal": {"is_causal": True},
        "scale": {"scale": -1.7},
    }[name]
    with sdpa_kernel(kernel):
        expected = scaled_dot_product_attention(Q[None], K[None], V[None], **arguments)
    assert_close(attention(Q[None], K[None], V[None], **arguments), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("fast_mode", [False, True], ids=["slow", "fast"])
@pytest.mark.parametrize("name", ["plain", "mask", "causal-bias"])
def test_gradcheck_in_every_mode(name, fast_mode, tensors):
    inputs, function, _ = case(name, tensors)
    assert gradcheck(
        function,
        inputs,
        fast_mode=fast_mode,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@pytest.mark.parametrize("name", ["plain", "mask", "causal-bias"])
def test_second_order(name, tensors):
    inputs, function, _ = case(name, tensors)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True)


def test_third_order_is_that_of_autograd(tensors):
    inputs, function, _ = case("bias", tensors)

    def gradient(*x):
        return grad(function(*x).sin().sum(), x, create_graph=True)

    assert gradgradcheck(gradient, inputs, fast_mode=True)


@pytest.mark.parametrize("additive", [False, True])
def test_a_row_that_sees_nothing_is_zero_and_has_no_gradient(additive, tensors):
    Q, K, V, _, mask = tensors
    bias = torch.zeros(3, 5, dtype=Q.dtype).masked_fill(~mask, -torch.inf).requires_grad_()
    O = attention(Q, K, V, bias if additive else mask)
    dQ, dbias = grad(O.sin().sum(), (Q, bias), allow_unused=not additive)
    for x in (O, dQ):
        assert not x[:, 1].any()
        assert x[:, 0].all()
    if additive:
        assert dbias.isfinite().all()
        assert not dbias[~mask].any()
        assert dbias[0].any()
    # the twin: the plain formula knows no such row
    plain = torch.softmax(Q @ K.mT + bias, -1) @ V
    assert plain[:, 1].isnan().all()


def test_layouts_do_not_matter(tensors):
    Q, K, V, *_ = tensors
    wide = Q.detach().mT.contiguous().mT.requires_grad_()
    one = K.detach()[:1].requires_grad_()
    assert not wide.is_contiguous()
    odd = attention(wide, one.expand(2, -1, -1), V)
    even = attention(Q, one.repeat(2, 1, 1), V)
    assert_close(odd, even, rtol=0, atol=0)
    assert_close(grad(odd.sin().sum(), (wide, one)), grad(even.sin().sum(), (Q, one)))


def test_inputs_stay_and_a_change_between_the_passes_is_noticed(tensors):
    Q, K, V, bias, _ = (x.detach().clone().requires_grad_(x.requires_grad) for x in tensors)
    before = [x.detach().clone() for x in (Q, K, V, bias)]
    O = attention(Q, K, V, bias)
    grad(O.sum(), (Q, K, V, bias), retain_graph=True)
    assert_close([x.detach() for x in (Q, K, V, bias)], before, rtol=0, atol=0)
    with torch.no_grad():
        K.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        O.sum().backward()


def plain(Q, K, V):
    """Causal attention as everyone writes it, line by line in the dtype of its inputs."""
    hidden = torch.ones(Q.shape[-2], K.shape[-2]).triu(1).bool()
    return torch.softmax((Q @ K.mT * Q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf), -1) @ V


def causal(Q, K, V):
    return attention(Q, K, V, is_causal=True)


def value_and_gradients(function, inputs):
    O = function(*inputs)
    return O, *grad(O, inputs, torch.linspace(-1, 1, O.numel()).view(O.shape).to(O.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_in_a_lower_dtype_is_that_of_autograd(dtype):
    torch.manual_seed(1)
    exact = [torch.randn(2, 3, 37, 16, dtype=dtype).double().requires_grad_() for _ in range(3)]
    inputs = [x.detach().to(dtype).requires_grad_() for x in exact]
    truth = value_and_gradients(plain, exact)
    ours, autograds = value_and_gradients(causal, inputs), value_and_gradients(plain, inputs)
    for x, theirs, true in zip(ours, autograds, truth, strict=True):
        assert x.dtype == dtype
        assert (x - true).abs().max() <= 2 * (theirs - true).abs().max()


def test_autocast_is_what_it_is_for_pytorch(tensors):
    inputs = [x.detach().float().requires_grad_() for x in tensors[:3]]
    mixed = [inputs[0].bfloat16(), *inputs[1:]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        O, theirs = attention(*inputs), scaled_dot_product_attention(*inputs)
        assert attention(*mixed).dtype == torch.bfloat16
    assert O.dtype == theirs.dtype == torch.bfloat16
    gradients = grad(O.float().sin().sum(), inputs)
    lower = [x.detach().bfloat16().requires_grad_() for x in inputs]
    expected = grad(attention(*lower).float().sin().sum(), lower)
    assert_close(gradients, tuple(g.float() for g in expected), rtol=0, atol=0)
    # the twin: without it two dtypes are a mistake
    with pytest.raises(DtypeError, match="one dtype"):
        attention(*mixed)


BAD = {
    "a list": (lambda Q, K, V: attention(Q.tolist(), K, V, is_causal=True), DtypeError, "Q as a tensor"),
    "a vector": (lambda Q, K, V: attention(Q[0, 0], K, V, is_causal=True), InputError, "one row"),
    "widths": (lambda Q, K, V: attention(Q, K[..., :3], V), InputError, "different widths"),
    "grouped": (lambda Q, K, V: attention(Q.repeat(2, 1, 1), K, V), InputError, "key/value heads"),
    "a group": (
        lambda Q, K, V: attention(Q, Q.repeat(2, 1, 1), Q.repeat(2, 1, 1), enable_gqa=True),
        InputError,
        "does not divide",
    ),
    "heads elsewhere": (lambda Q, K, V: attention(Q[0], K[0], V[0], enable_gqa=True), InputError, "axis -3"),
    "no width": (lambda Q, K, V: attention(Q[..., :0], K[..., :0], V), InputError, "width 0"),
    "values": (lambda Q, K, V: attention(Q, K, V[:, :4]), InputError, "number of keys than of values"),
    "dtypes": (lambda Q, K, V: attention(Q.float(), K, V), DtypeError, "one dtype"),
    "integers": (lambda Q, K, V: attention(Q.int(), K.int(), V.int()), DtypeError, "floating-point"),
    "complex": (lambda Q, K, V: attention(Q + 0j, K + 0j, V + 0j), DtypeError, "real entries"),
    "0 and 1": (lambda Q, K, V: attention(Q, K, V, torch.ones(3, 5).int()), DtypeError, r"mask\.bool\(\)"),
    "mask shape": (
        lambda Q, K, V: attention(Q, K, V, torch.ones(5, 3) > 0, is_causal=True),
        InputError,
        "mask that broadcasts",
    ),
    "bias shape": (
        lambda Q, K, V: attention(Q, K, V, torch.ones(5, 3).double()),
        InputError,
        "attn_mask that br",
    ),
    "bias shape, by name": (
        lambda Q, K, V: attention(Q, K, V, bias=torch.ones(5, 3).double()),
        InputError,
        "bias that br",
    ),
    "two biases": (
        lambda Q, K, V: attention(Q, K, V, torch.ones(3, 5).double(), bias=torch.ones(3, 5).double()),
        InputError,
        "boolean attn_mask beside a bias",
    ),
    "bias dtype": (lambda Q, K, V: attention(Q, K, V, bias=torch.ones(3, 5)), DtypeError, "one dtype"),
    "per cent": (lambda Q, K, V: attention(Q, K, V, dropout_p=10), InputError, "from 0 to 1"),
    "cap of 0": (lambda Q, K, V: attention(Q, K, V, softcap=0.0), InputError, "softcap=None"),
    "cap": (lambda Q, K, V: attention(Q, K, V, softcap=Q.max()), DtypeError, r"softcap\.item\(\)"),
    "window": (lambda Q, K, V: attention(Q, K, V, window=3), InputError, r"\(left, right\)"),
    "window of signs": (lambda Q, K, V: attention(Q, K, V, window=(-3, 0)), InputError, "unbounded"),
    "sinks": (
        lambda Q, K, V: attention(Q, K, V, sinks=torch.ones(3).double()),
        InputError,
        "one sink for each head",
    ),
    "temperature": (lambda Q, K, V: attention(Q, K, V, scale=Q.mean()), DtypeError, "temperature"),
}


@pytest.mark.parametrize("name", BAD)
def test_misuse_is_named(name, tensors):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call(*tensors[:3])
