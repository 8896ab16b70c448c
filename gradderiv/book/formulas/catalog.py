"""What can be shown: the rules, their tangents and gradients, and the shapes of their arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from gradderiv.rules import attention, blockdiag, linear, multihead, softmax

LAYER = {
    "X": "n_q d_model", "X_kv": "n_k d_kv", "W_Q": "d_model h·d_k", "W_K": "d_kv h_kv·d_k", "W_V": "d_kv h_kv·d_v",
    "W_O": "h·d_v d_out", "b_Q": "h·d_k", "b_K": "h_kv·d_k", "b_V": "h_kv·d_v", "b_O": "d_out",
    "mask": "n_q n_k", "bias": "n_q n_k", "scale": "", "Y": "n_q d_out",
}  # fmt: skip
CROSS = {k: v.replace("h_kv", "h") for k, v in LAYER.items() if k != "bias"}
SELF = {k: re.sub("n_[qk]", "n", v).replace("d_kv", "d_model") for k, v in CROSS.items() if k != "X_kv"}
SHAPES = {
    "linear": {"X": "n d", "W": "d e", "b": "e", "Y": "n e"},
    "softmax": {"S": "n_q n_k", "P": "n_q n_k", "mask": "n_q n_k"},
    "attention": {
        "Q": "n_q d_k", "K": "n_k d_k", "V": "n_k d_v", "O": "n_q d_v",
        "mask": "n_q n_k", "bias": "n_q n_k", "scale": "",
    },
    "multihead": LAYER,
    "blockdiag": CROSS,
}  # fmt: skip
MODULES: dict[str, Any] = {
    "linear": linear, "softmax": softmax, "attention": attention, "multihead": multihead, "blockdiag": blockdiag,
}  # fmt: skip
RULES = ("linear", "softmax", "attention", "multihead")
ENDINGS = ("", "_jvp", "_vjp", "_vjp_jvp")
VARIABLES = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "X", "X_kv")
HEADS = {"n_heads": "h", "n_kv_heads": "h_kv"}


def shown_names() -> list[str]:
    """What ``show`` knows: rules, their tangents and gradients, and the gradients of the layer one by one."""
    return [*(rule + ending for rule in RULES for ending in ENDINGS), "layer", *VARIABLES]


def family(name: str) -> str:
    """The rule that a name belongs to."""
    return next((r for r in RULES if name == r or name.startswith(f"{r}_")), "blockdiag")


def function(name: str) -> Callable[..., Any]:
    """The function that computes what the name stands for."""
    found: Callable[..., Any] = getattr(MODULES[family(name)], f"grad_{name}" if name in VARIABLES else name)
    return found


def forward(name: str) -> Callable[..., Any] | None:
    """The rule whose saved values the function needs, if it needs any."""
    needs = "saved" in inspect.signature(function(name)).parameters
    return function(family(name)) if needs else None


def shapes(name: str, of: Callable[..., Any]) -> dict[str, list[str]]:
    """The parameters of ``of`` that are matrices, each with the names of its dimensions.

    The gradient and the tangent of a variable have its shape.
    """
    known = SELF if name == "X" else SHAPES[family(name)]
    out = {}
    for parameter in inspect.signature(of).parameters:
        base = parameter.removesuffix("_dot")
        base = base if base in known else base.removeprefix("d")
        if base in known:
            out[parameter] = known[base].split()
    return out


def dimensions(name: str) -> set[str]:
    """Every dimension that may be met under this name, as ``h·d_k``."""
    dims = {d for shape in (SELF if name == "X" else SHAPES[family(name)]).values() for d in shape.split()}
    dims |= {f"h·{d}" for d in dims if d in ("n_k", "n")} | {s for d in dims for s in d.split("·")}
    return dims


def doc(name: str) -> list[str]:
    """The equation, the source and the remarks: the paragraphs of the docstring that stand before the arguments."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(function(name).__doc__ or ""))
    kept = [" ".join(p.split("\n")) for p in paragraphs if not re.match(r"(Args|Returns|Raises):", p)]
    source = re.search(r'after "[^"]+" \([^)]*\)', MODULES[family(name)].__doc__)
    if len(kept) == 1 and source is not None:
        kept.append(source[0])
    return [re.sub(r":\w+:|`", "", p) for p in kept]
