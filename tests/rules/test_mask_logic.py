"""Masks combine by logic, are read as they are written, and refuse arithmetic and misuse."""

from __future__ import annotations

import itertools

import pytest
import torch

from gradderiv.errors import DtypeError, InputError
from gradderiv.rules.masks import (
    boolean,
    causal,
    documents,
    everything,
    hidden,
    packed,
    padding,
    resolve,
    window,
)


def full(mask, *size):
    return mask.on(size).expand(size)


T4 = torch.tensor([[True, False, True, False]] * 4)
MASKS = [causal(), window(1, 1), padding(3), packed([1, 3]), boolean(T4), hidden(T4.mT), everything()]


@pytest.mark.parametrize(("a", "b"), list(itertools.product(MASKS, MASKS)), ids=repr)
def test_laws_of_logic(a, b):
    A, B = full(a, 4, 4), full(b, 4, 4)
    assert torch.equal(full(a & b, 4, 4), A & B)
    assert torch.equal(full(a | b, 4, 4), A | B)
    assert torch.equal(full(~(a & b), 4, 4), full(~a | ~b, 4, 4))
    assert torch.equal(full(~~a, 4, 4), A)
    assert torch.equal(full(a & everything(), 4, 4), A)
    assert torch.equal(full(a & a, 4, 4), A)  # once hidden is hidden: no fill twice
    assert not full(a & ~a, 4, 4).any()


def test_a_mask_meets_a_boolean_tensor_from_either_side():
    for found in (causal() & T4, T4 & causal()):
        assert torch.equal(full(found, 4, 4), full(causal(), 4, 4) & T4)
    for found in (causal() | T4, T4 | causal()):
        assert torch.equal(full(found, 4, 4), full(causal(), 4, 4) | T4)


def test_a_combination_broadcasts_and_no_more():
    M = (causal() & padding([3, 5])).on((2, 6, 5, 5))
    assert M.shape == (2, 1, 5, 5)
    assert padding([3, 5]).on((2, 6, 5, 5)).shape == (2, 1, 1, 5)
    assert everything().on((2, 6, 5, 5)).shape == (1, 1)
    assert (~everything()).on((2, 3)).expand(2, 3).any().item() is False


@pytest.mark.parametrize(
    ("mask", "written"),
    [
        (causal() & padding([3, 5]), "causal() & padding([3, 5])"),
        (
            causal("lower-right") | ~padding(4, side="left"),
            "causal('lower-right') | ~padding(4, side='left')",
        ),
        ((causal() | packed([2, 3])) & window(1, -1), "(causal() | packed([2, 3])) & window(1, -1)"),
        (~(causal() & hidden(T4)), "~(causal() & hidden((4, 4)))"),
        (window(1, 2, "upper-left"), "window(1, 2, 'upper-left')"),
        (documents([0, 1], [1, 1]) & T4, "documents([0, 1], [1, 1]) & boolean((4, 4))"),
        (padding(torch.ones(32, dtype=torch.long)), "padding((32))"),
        (everything(), "everything()"),
    ],
)
def test_a_mask_is_read_as_it_is_written(mask, written):
    assert repr(mask) == written
    if "((" not in written:  # what names a shape has no tensor
        assert repr(eval(written)) == written


def test_a_mask_is_immutable():
    T, lengths = T4.clone(), torch.tensor([1, 2])
    masks = boolean(T), hidden(T), padding(lengths)
    before = [m.on((2, 1, 4, 4)).clone() for m in masks]
    T.logical_not_()
    lengths += 1
    assert all(torch.equal(m.on((2, 1, 4, 4)), b) for m, b in zip(masks, before, strict=True))
    assert not torch.equal(boolean(T).on((4, 4)), before[0])
    with pytest.raises(AttributeError, match="immutable"):
        masks[0]._written = "x"


def test_resolve():
    assert resolve(None, (3, 4)) is None
    assert resolve(T4, (4, 4)) is T4
    assert torch.equal(resolve(causal(), (4, 4)), causal().on((4, 4)))


# ---------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    "call",
    [
        lambda: causal() + padding(3), lambda: causal() * 2, lambda: causal() - causal(), lambda: 1 + causal(),
        lambda: torch.zeros(4, 4) + causal(), lambda: torch.zeros(4, 4) * causal(), lambda: -10000.0 * causal(), lambda: 1 - causal(),
    ],
)  # fmt: skip
def test_masks_do_not_add_up(call):
    with pytest.raises(InputError, match="masks combine by logic") as caught:
        call()
    assert "-20000" in str(caught.value).replace("−", "-")


@pytest.mark.parametrize(
    "call", [lambda: causal() and padding(3), lambda: not causal(), lambda: causal() or T4]
)
def test_the_words_of_python_are_not_logic_on_masks(call):
    with pytest.raises(InputError, match="neither true nor false"):
        call()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: causal("bottom-right"), InputError, "'upper-left' or 'lower-right'"),
        (lambda: causal().on((3, 4)), InputError, "needs an alignment"),
        (lambda: window(1, 1).on((3, 4)), InputError, "needs an alignment"),
        (lambda: window(-2, 0), InputError, "-1 = unbounded"),
        (lambda: causal().on((4,)), InputError, r"\(\.\.\., n_q, n_k\)"),
        (lambda: padding(3, side="top"), InputError, "'right' or 'left'"),
        (lambda: padding(5).on((4, 4)), InputError, "lengths from 0 to n_k"),
        (lambda: padding([-1]).on((1, 4, 4)), InputError, "lengths from 0 to n_k"),
        (lambda: padding([1, 2]).on((4, 4)), InputError, "first axes are its batch"),
        (lambda: padding([1, 2]).on((3, 4, 4)), InputError, "first axes are its batch"),
        (lambda: padding(T4), DtypeError, "lengths as integers"),
        (lambda: padding([]), DtypeError, "lengths as integers"),
        (lambda: packed([[1, 2]]), InputError, "lengths of the documents"),
        (lambda: packed([2, -1]), InputError, "lengths of the documents"),
        (lambda: packed([2, 3]).on((6, 6)), InputError, "one token for each query and each key"),
        (lambda: packed([2, 3]).on((5, 6)), InputError, "one token for each query and each key"),
        (lambda: boolean(torch.ones(3, 4)), DtypeError, "True = may attend"),
        (lambda: boolean([[True]]), DtypeError, "True = may attend"),
        (lambda: hidden(torch.ones(3, 4)), DtypeError, "True = may attend"),
        (lambda: boolean(T4).on((4, 5)), InputError, "broadcasts to the scores"),
        (lambda: (causal() & T4).on((5, 5)), InputError, "broadcasts to the scores"),
        (lambda: causal() & 3, InputError, "a mask combines with a mask or a boolean tensor"),
    ],
)  # fmt: skip
def test_misuse_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
