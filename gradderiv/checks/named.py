"""A function and its inputs as the command line names them: FILE.py:NAME or package.module:NAME, and NAME=2,7,12 for a random input."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gradderiv.checks.candidate import in_words
from gradderiv.errors import InputError, message

INPUTS = "_inputs"  # NAME_inputs makes the inputs of NAME


def load(target: str) -> Callable[..., Any]:
    """The function or module of that name. A file is executed.

    Raises:
        InputError: no such file, module or name, code that raises, or something that cannot be called.
    """
    module, name = _module(target)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")]
            raise InputError(
                message(
                    f"gradderiv needs a name that exists: {target}",
                    f"{module.__name__} has no {name!r}; it has {', '.join(near[:12]) or 'nothing that can be called'}",
                    "a slip of the pen, or a name that another file defines",
                    "FILE.py:NAME with one of these names",
                )
            )
        found = getattr(found, part)
    if inspect.isclass(found) and issubclass(found, torch.autograd.Function):
        found = found.apply
    if not callable(found):
        raise InputError(
            message(
                f"gradderiv needs a function or a module: {target}",
                f"a {type(found).__name__}",
                "a constant, or the result of a call",
                "name a function of tensors, an nn.Module or an autograd.Function",
            )
        )
    return found


def _module(target: str) -> tuple[ModuleType, str]:
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise InputError(
            message(
                "gradderiv needs FILE.py:NAME or package.module:NAME",
                repr(target),
                "the colon, or the name after it, is missing",
                "gradderiv prove attention.py:attention --shape Q=2,5,8 --shape K=2,7,8 --shape V=2,7,4",
            )
        )
    try:
        if place.endswith(".py"):
            return _executed(Path(place)), name
        sys.path.insert(0, "")
        try:
            return importlib.import_module(place), name
        finally:
            sys.path.remove("")
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            message(
                f"gradderiv needs code that can be imported: {place}",
                in_words(error),
                "a module that is not installed, or an error in the code",
                f"python -c 'import {place}'" if not place.endswith(".py") else f"python {place}",
            )
        ) from error


def _executed(file: Path) -> ModuleType:
    if not file.is_file():
        raise InputError(
            message(
                "gradderiv needs a file that exists",
                repr(str(file)),
                "another working directory",
                "the path from here, or the whole path",
            )
        )
    name = re.sub(r"\W", "_", file.stem)
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(file.resolve()):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.modules[name] = sys.modules.get(name), module
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    finally:
        sys.path.remove(str(file.resolve().parent))
    return module


def inputs_of(
    target: str, function: Callable[..., Any], shapes: Sequence[str], seed: int
) -> tuple[Any, list[str] | None]:
    """The inputs, and their names where these are not the function's own: random ones of the given shapes, or what ``NAME_inputs()`` beside it returns.

    Raises:
        InputError: neither is given, a shape that cannot be read, or ``NAME_inputs`` raises.
    """
    if shapes:
        generator = torch.Generator().manual_seed(seed)
        read = dict(_shape(s) for s in shapes)
        drawn = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in read.items()}
        dtype = (
            next((p.dtype for p in function.parameters()), None) if isinstance(function, nn.Module) else None
        )
        if _takes(function, drawn):
            return {n: x.to(dtype or x.dtype) for n, x in drawn.items()}, None
        return tuple(drawn.values()), list(drawn)
    module, name = _module(target)
    maker = getattr(module, name.replace(".", "_") + INPUTS, None)
    if maker is None:
        raise InputError(
            message(
                f"gradderiv needs the shapes of the inputs of {name}",
                "none",
                "neither --shape nor a function that makes them",
                f"--shape Q=2,5,8 for every input in the order of the call, or def {name}{INPUTS}() in {module.__name__} that returns a tuple or a dict",
            )
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            made = maker()
        except Exception as error:
            raise InputError(
                message(
                    f"gradderiv needs inputs from {name}{INPUTS}()",
                    in_words(error),
                    "an error in that function",
                    "call it yourself",
                )
            ) from error
    return made if isinstance(made, (tuple, list, Mapping)) else (made,), None


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.partition("=")
    if not re.fullmatch(r"[^\W\d][\w.]*", name) or not re.fullmatch(r"\d+(,\d+)*|", sizes):
        raise InputError(
            message(
                "a shape is NAME=SIZE,SIZE,…",
                repr(text),
                "spaces, brackets, or the name left out",
                "--shape X=2,7,12; --shape x= for a number",
            )
        )
    return name, tuple(map(int, sizes.split(","))) if sizes else ()


def _takes(function: Callable[..., Any], inputs: Mapping[str, Tensor]) -> bool:
    """Whether the function has parameters of these names."""
    try:
        target = function.forward if isinstance(function, nn.Module) else function
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return False
    return all(
        n in parameters and parameters[n].kind is not inspect.Parameter.POSITIONAL_ONLY for n in inputs
    )


def on_gpu(function: Callable[..., Any], inputs: Any) -> str | None:
    """Where the residues go if nobody says: to a GPU, where there is one and the function runs there (it may make tensors elsewhere)."""
    if not torch.cuda.is_available():
        return None
    given = inputs if isinstance(inputs, Mapping) else tuple(inputs)
    try:
        moved = tree_map_only(Tensor, lambda x: x.detach().to(GPU), given)
        there = copy.deepcopy(function).to(GPU) if isinstance(function, nn.Module) else function
        with torch.no_grad():
            there(**moved) if isinstance(moved, Mapping) else there(*moved)
    except Exception:
        return None
    return GPU


GPU = "cuda"
