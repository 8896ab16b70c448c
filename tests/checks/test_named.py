"""Functions and inputs as the command line names them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from gradderiv.checks import named
from gradderiv.checks.named import inputs_of, load, on_gpu
from gradderiv.errors import InputError

CODE = """
import torch
from torch import nn

class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t):
        return 2 * t
    @staticmethod
    def backward(ctx, g):
        return 2 * g

def product(a, b):
    return a * b

def product_inputs():
    return {"a": torch.randn(3), "b": torch.randn(3)}

def broken_inputs():
    raise RuntimeError("no data here")

def broken(a):
    return a

layer = nn.Linear(4, 2)
number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "some_code.py"
    path.write_text(CODE)
    return str(path)


def test_functions_modules_and_functions_of_autograd(file):
    assert load(f"{file}:product")(2, 3) == 6
    assert float(load(f"{file}:Twice")(torch.tensor(2.0))) == 4
    assert load(f"{file}:layer").out_features == 2
    assert load("torch.nn.functional:silu") is torch.nn.functional.silu


def test_shapes(file):
    product = load(f"{file}:product")
    drawn, names = inputs_of(f"{file}:product", product, ["a=2,3", "b=3"], 0)
    assert names is None
    assert {n: tuple(t.shape) for n, t in drawn.items()} == {"a": (2, 3), "b": (3,)}
    positional, names = inputs_of(f"{file}:product", product, ["first=2,3", "second="], 0)
    assert names == ["first", "second"]
    assert [tuple(t.shape) for t in positional] == [(2, 3), ()]
    layer = load(f"{file}:layer")
    assert inputs_of(f"{file}:layer", layer, ["input=5,4"], 0)[0]["input"].dtype == torch.float32


def test_a_function_that_makes_the_inputs(file):
    made = [inputs_of(f"{file}:product", load(f"{file}:product"), [], seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(made[0]["a"], made[1]["a"])
    assert not torch.equal(made[0]["a"], made[2]["a"])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("product", "FILE.py:NAME or package.module:NAME"),
        ("nowhere.py:product", "a file that exists"),
        ("{file}:prodct", "has no 'prodct'; it has Twice, product"),
        ("{file}:number", "a function or a module"),
        ("no.such.module:f", "No module named 'no'"),
    ],
)
def test_what_cannot_be_loaded_says_so(file, target, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        load(target.format(file=file))


def test_code_that_raises_leaves_nothing_behind(tmp_path):
    path = tmp_path / "faulty_code.py"
    path.write_text("raise ZeroDivisionError('on purpose')")
    with pytest.raises(InputError, match="ZeroDivisionError: on purpose"):
        load(f"{path}:f")
    assert "faulty_code" not in sys.modules
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize("shape", ["2,3", "a=2,,3", "a=(2,3)", "a = 2", "=2"])
def test_shapes_that_cannot_be_read(file, shape):
    with pytest.raises(InputError, match="a shape is NAME=SIZE"):
        inputs_of(f"{file}:product", load(f"{file}:product"), [shape], 0)


def test_no_inputs_at_all(file):
    with pytest.raises(InputError, match="def Twice_inputs"):
        inputs_of(f"{file}:Twice", load(f"{file}:Twice"), [], 0)
    with pytest.raises(InputError, match="no data here"):
        inputs_of(f"{file}:broken", load(f"{file}:broken"), [], 0)


def test_a_gpu_is_used_where_the_function_runs_on_it(monkeypatch):
    makes_its_own = lambda x: x + torch.zeros(3)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert on_gpu(torch.exp, (torch.randn(3),)) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(named, "GPU", "meta")  # a device that everybody has
    layer = torch.nn.Linear(3, 2)
    assert on_gpu(torch.exp, (torch.randn(3),)) == "meta"
    assert on_gpu(layer, {"input": torch.randn(4, 3)}) == "meta"
    assert layer.weight.device.type == "cpu"
    assert on_gpu(makes_its_own, (torch.randn(3),)) is None
    assert on_gpu(lambda x: x.tolist(), (torch.randn(3),)) is None
