"""How a rule is written: its equation first, its four functions together, its sizes small, its imports torch and nothing else."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch
from rule_calls import MODULES, rules

FOLDER = Path(MODULES[0].__file__).parent
FILES = sorted(FOLDER.glob("*.py"))
PUBLIC = {n: f for n, f in rules().items() if not f.__module__.rsplit(".")[-1].startswith("_")}
EQUATION = re.compile(r"[=→]")
FOUR = ("linear", "softmax", "attention", "multihead")


def first_line(function):
    return inspect.getdoc(function).splitlines()[0]


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_first_line_of_the_docstring_is_the_equation(name):
    line = first_line(PUBLIC[name])
    assert EQUATION.search(line), line
    left, _, right = re.split(r"([=→])", line, maxsplit=1)
    assert left.strip()
    assert right.strip()


def test_twin_prose_is_no_equation():
    assert not EQUATION.search("Compute the gradient of the attention layer.")


@pytest.mark.parametrize("name", FOUR)
def test_the_second_paragraph_of_a_forward_is_its_source(name):
    paragraphs = inspect.getdoc(PUBLIC[name]).split("\n\n")
    assert re.search(r"(19|20)\d\d|ch\. \d|§", paragraphs[1]), paragraphs[1]
    assert all(f"\n{section}:" in inspect.getdoc(PUBLIC[name]) for section in ("Args", "Returns", "Raises"))


@pytest.mark.parametrize("name", FOUR)
def test_value_tangent_cotangent_and_second_order_stand_together_in_this_order(name):
    module = inspect.getmodule(PUBLIC[name])
    lines = [inspect.getsourcelines(vars(module)[f"{name}{s}"])[1] for s in ("", "_jvp", "_vjp", "_vjp_jvp")]
    assert lines == sorted(lines)
    between = [
        f
        for n, f in PUBLIC.items()
        if f.__module__ == module.__name__
        and n not in {f"{name}{s}" for s in ("", "_jvp", "_vjp", "_vjp_jvp")}
    ]
    assert not [f for f in between if lines[0] < inspect.getsourcelines(f)[1] < lines[-1]]


@pytest.mark.parametrize("name", FOUR)
def test_gradients_bear_the_names_of_the_arguments(name):
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    module = inspect.getmodule(PUBLIC[name])
    (gradients,) = (
        v for n, v in vars(module).items() if n.endswith("Gradients") and v.__module__ == module.__name__
    )
    options = {"mask", "scale", "n_heads", "n_kv_heads"}
    assert set(gradients._fields) == {p.name for p in parameters} - options


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_rule_imports_torch_and_nothing_else(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = (
            [node.module]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        for name in names:
            allowed = name.split(".")[0] in {"__future__", "collections", "functools", "typing", "torch"}
            assert allowed or name.startswith(("gradderiv.rules", "gradderiv.errors")), name


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_fits_on_a_few_screens(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_legend_of_a_module_names_every_axis_of_its_shapes():
    for module in MODULES[:5]:
        legend = module.__doc__
        assert legend.splitlines()[0].rstrip().endswith(".")
        assert re.search(r"\([^)]*n", legend), module.__name__


def test_a_rule_is_seen_under_its_own_name():
    """``handle_torch_function`` hands over the rule itself, with its arguments."""
    seen = []

    class Named(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if getattr(func, "is_rule", False):
                seen.append(func.__name__)
                return args[0]
            return super().__torch_function__(func, types, args, kwargs)

    x = torch.ones(2, 2).as_subclass(Named)
    for name in ("softmax", "linear", "attention", "multihead", "layer", "grad_W_Q", "split_heads"):
        PUBLIC[name](x, *[x] * 4, n_heads=1) if name in ("multihead", "layer") else PUBLIC[name](x)
    assert seen == ["softmax", "linear", "attention", "multihead", "layer", "grad_W_Q", "split_heads"]
