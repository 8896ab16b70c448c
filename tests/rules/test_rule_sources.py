"""How a rule is written: its equation first, its four functions together, its sizes small, its imports torch and nothing else."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch
from rule_calls import MODULES, call, rules

from gradderiv import rules as rules_package

FOLDER = Path(MODULES[0].__file__).parent
FILES = sorted(FOLDER.glob("*.py"))
PUBLIC = {n: f for n, f in rules().items() if not f.__module__.rsplit(".")[-1].startswith("_")}
EQUATION = re.compile(r"[=→]")
FOUR = (
    "linear", "softmax", "attention", "multihead", "masked_fill", "matmul", "embedding", "rope", "rms_norm", "scores", "cap",
    "cool", "softmax_lse", "append", "attend", "fused", "activate", "add", "multiply", "layer_norm", "transformer_layer", "graph_attention",
)  # fmt: skip
OF_A_LIST = ("attend", "fused", "transformer_layer")  # whose gradients are those of what was given
LINEAR_MAPS = ("add_bias", "add_alibi", "add_relative", "drop")  # whose other three follow


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


@pytest.mark.parametrize("name", FOUR + LINEAR_MAPS)
def test_the_second_paragraph_of_a_forward_is_its_source(name):
    paragraphs = inspect.getdoc(PUBLIC[name]).split("\n\n")
    assert re.search(r"(19|20)\d\d|ch\. \d|§", paragraphs[1]), paragraphs[1]
    assert all(f"\n{section}:" in inspect.getdoc(PUBLIC[name]) for section in ("Args", "Returns", "Raises"))


def test_every_forward_is_looked_at():
    """A rule with a tangent is among the four; those that only move or count are named."""
    assert {n.removesuffix("_jvp") for n in PUBLIC if n.endswith("_jvp") and not n.endswith("_vjp_jvp")} == {
        *FOUR
    }
    rest = {n for n in PUBLIC if n.removesuffix("_jvp").removesuffix("_vjp") not in FOUR} - {*LINEAR_MAPS}
    of_heads = {"split_heads", "join_heads", "repeat_heads", "sum_heads", "turn"}
    assert rest - of_heads == {n for n in rest if PUBLIC[n].__module__.endswith("blockdiag")}


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


@pytest.mark.parametrize("name", [n for n in FOUR if n not in OF_A_LIST])  # see the next
def test_gradients_bear_the_names_of_the_arguments(name):
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    module = inspect.getmodule(PUBLIC[name])
    (gradients,) = (
        v for n, v in vars(module).items() if n.endswith("Gradients") and v.__module__ == module.__name__
    )
    options = {
        "mask",
        "fill",
        "scale",
        "n_heads",
        "n_kv_heads",
        "tokens",
        "position_ids",
        "pairing",
        "eps",
        "softcap",
        "offset",
        "function",
        "neighbours",
        "inverse",
    }
    named = {p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}
    assert set(gradients._fields) == named - options - {"softmax_dtype"}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", [*OF_A_LIST, "multihead"])
def test_gradients_of_what_is_made_of_a_table_bear_the_names_of_what_was_given(name, masked):
    function, args, kwargs = call(name, torch.randn, masked=masked)
    names = list(inspect.signature(function).parameters)[: len(args)]
    values = {**dict(zip(names, args, strict=True)), **kwargs}
    moving = {n for n, t in values.items() if isinstance(t, torch.Tensor) and t.dtype.is_floating_point}
    backward, back_args, back_kwargs = call(f"{name}_vjp", torch.randn, masked=masked)
    found = backward(*back_args, **back_kwargs)._asdict()
    assert {n for n, g in found.items() if g is not None} == moving
    assert all(found[n].shape == values[n].shape for n in moving)


STANDARD = {"__future__", "collections", "difflib", "functools", "math", "typing"}


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
            allowed = name.split(".")[0] in STANDARD | {"torch"}
            assert allowed or name.startswith(("gradderiv.rules", "gradderiv.errors")), name


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_fits_on_a_few_screens(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_package_names_every_module():
    words = set(re.findall(r"\w+", rules_package.__doc__))
    assert {p.stem for p in FILES if not p.stem.startswith("_")} <= words
    assert "ropes" not in words  # a twin


def test_the_legend_of_a_module_names_every_axis_of_its_shapes():
    for module in (m for m in MODULES if not m.__name__.rsplit(".")[-1].startswith("_")):
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
    for name in PUBLIC:
        PUBLIC[name](x)
    assert seen == list(PUBLIC)
