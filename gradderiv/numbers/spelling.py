r"""How an expression is written: ``\tau Q K^{\top}``, ``τ Q Kᵀ`` or ``tau Q K^T``.

Names follow the code: ``dS`` is a gradient and ``S_dot`` a tangent; ``scale`` is τ, ``delta`` δ, ``gain`` γ, ``shift`` β, ``eps`` ε, ``calK`` 𝓚, ``D_K`` 𝓓_K,
``W_Q`` W^Q; ``mask`` is M and ``M`` is M̃ = [M … M].
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from gradderiv.numbers.nodes import (
    Call,
    Constant,
    Hadamard,
    Item,
    Node,
    Product,
    Quotient,
    Symbol,
    Total,
    Transpose,
)

SUM, ENTRYWISE, PRODUCT, ATOM = range(4)

LETTERS = {  # code: Unicode, TeX, ASCII
    "scale": ("τ", r"\tau", "tau"),
    "delta": ("δ", r"\delta", "delta"),
    "loss": ("ℓ", r"\ell", "loss"),
    "gain": ("γ", r"\gamma", "gain"),
    "shift": ("β", r"\beta", "shift"),
    "eps": ("ε", r"\varepsilon", "eps"),
    "sigma": ("σ", r"\sigma", "sigma"),
    "kappa": ("κ", r"\kappa", "kappa"),
    "Pi": ("Π", r"\Pi", "Pi"),
    "mask": ("M", "M", "mask"),
    "M": ("M̃", r"\tilde{M}", "M"),
}
# what may follow the d of a gradient in lower case
SMALL = {"b", "bias", "scale", "lse", "loss", "gain", "shift"}


class Name(NamedTuple):
    """The parts of a code name: d + base + _index + _dot."""

    gradient: bool
    base: str
    sub: str
    raised: bool
    dot: bool


def parse(name: str) -> Name:
    """``dW_Q_dot`` → the tangent of the gradient of W^Q."""
    rest, dot = (name.removesuffix("_dot"), True) if name.endswith("_dot") else (name, False)
    base, _, index = rest.partition("_")
    gradient = len(base) > 1 and base[0] == "d" and (base[1].isupper() or base[1:] in SMALL | {"cal"})
    base = base[1:] if gradient else base
    raised = base[-1:] in ("W", "b") and len(index) == 1 and index.isupper()
    return Name(gradient, base, index, raised, dot)


LOGIC = {
    "__invert__": ("¬", r"\neg ", "not "),
    "__and__": ("∧", r"\wedge", "and"),
    "__or__": ("∨", r"\vee", "or"),
}


class Style(NamedTuple):
    """The signs of one way of writing; ``column`` is its place in the tables above."""

    column: int
    circ: str
    slash: str
    minus: str
    top: str
    dot: str
    brackets: tuple[str, str]
    angles: tuple[str, str]
    symbol: Callable[[str], str]
    call: Callable[[str], str]
    constant: Callable[[str], str]


def _script(n: Name) -> str:
    """The letter that is written in script: that of ``calK``, and D with an index."""
    return n.base[3] if re.fullmatch("cal[A-Z]", n.base) else "D" if n.base == "D" and n.sub else ""


def _unicode(name: str) -> str:
    n = parse(name)
    letter = _script(n)
    base = chr(0x1D4D0 + ord(letter) - ord("A")) if letter else LETTERS.get(n.base, (n.base,))[0]
    index = ("^" if n.raised else "_") + n.sub if n.sub else ""
    if _is_product(n) or (
        n.dot and len(base) > 1 and base.isalpha()
    ):  # a dot above one letter of several says less
        return ("d" if n.gradient else "") + f"({base}{index})" + ("\u02d9" if n.dot else "")
    base = unicodedata.normalize("NFC", base + "\u0307") if n.dot else base
    return ("d" if n.gradient else "") + base + index


def _tex(name: str) -> str:
    n = parse(name)
    letter = _script(n)
    if letter:
        base = rf"\mathcal{{{letter}}}"
    elif n.base in LETTERS:
        base = LETTERS[n.base][1]
    else:
        base = n.base if len(n.base) == 1 or n.base.isupper() else rf"\mathrm{{{n.base}}}"
    index = ("^" if n.raised else "_") + _tex_index(n.sub.replace("_", r"\_")) if n.sub else ""
    if _is_product(n):
        return ("d" if n.gradient else "") + (rf"\dot{{({base}{index})}}" if n.dot else f"({base}{index})")
    base = rf"\dot{{{base}}}" if n.dot else base
    return ("d" if n.gradient else "") + base + index


def _is_product(n: Name) -> bool:
    """Whether the base is a product in one name, as in ``XW_K_dot``, of which one letter alone must not get the dot."""
    return (n.gradient or n.dot) and len(n.base) > 1 and n.base.isupper()


def _ascii(name: str) -> str:
    return "_".join(LETTERS.get(part, ("", "", part))[2] for part in name.split("_"))


def _tex_call(name: str) -> str:
    return "\\" + name if name in ("exp", "log", "max") else rf"\operatorname{{{name}}}".replace("_", r"\_")


def _tex_constant(text: str) -> str:
    if "·" in text:
        return r"\,".join(_tex_constant(t) for t in text.split("·"))
    name, _, index = text.partition("_")
    name = name.replace("−", "-").replace("∞", r"\infty").replace("…", r"\dots")
    return f"{name}_{_tex_index(index)}" if index else name


def _tex_index(index: str) -> str:
    upright = len(index) > 1 and not index.isdigit()
    return rf"{{\mathrm{{{index}}}}}" if upright else f"{{{index}}}"


def _ascii_constant(text: str) -> str:
    return text.replace("−", "-").replace("∞", "inf").replace("…", "...").replace("·", "*")


UNICODE = Style(0, " ∘ ", " ⊘ ", "−", "ᵀ", " · ", ("(", ")"), ("⟨", "⟩"), _unicode, str, str)
TEX = Style(
    1, r" \circ ", r" \oslash ", "-", r"\top", r" \cdot ",
    (r"\left(", r"\right)"), (r"\langle ", r" \rangle"), _tex, _tex_call, _tex_constant,
)  # fmt: skip
ASCII = Style(2, " o ", " / ", "-", "^T", " * ", ("(", ")"), ("<", ">"), _ascii, str, _ascii_constant)
STYLES = {"unicode": UNICODE, "tex": TEX, "ascii": ASCII}


def spell(node: Node, style: Style = UNICODE) -> str:
    """The expression in this way of writing."""
    return _spell(node, style)[0]


def _spell(node: Node, style: Style) -> tuple[str, int]:
    """The text, and how tightly it holds together."""

    def at_least(child: Node, *levels: int) -> str:
        text, level = _spell(child, style)
        return text if level in levels else text.join(style.brackets)

    match node:
        case Symbol(name):
            return style.symbol(name), ATOM
        case Constant(text):
            return style.constant(text), ATOM
        case Total(signs, terms):
            texts = [at_least(t, ENTRYWISE, PRODUCT, ATOM) for t in terms]
            out = (style.minus if signs[0] < 0 else "") + texts[0]
            for sign, text in zip(signs[1:], texts[1:], strict=True):
                out += f" {style.minus if sign < 0 else '+'} {text}"
            return out, SUM
        case Product(scalars, factors):
            return _juxtaposed([at_least(f, ATOM) for f in (*scalars, *factors)], style), PRODUCT
        case Hadamard(factors):
            return style.circ.join(at_least(f, ATOM) for f in factors), ENTRYWISE
        case Quotient(top, bottom):
            return style.slash.join((at_least(top, ATOM), at_least(bottom, ATOM))), ENTRYWISE
        case Transpose(of):
            return _raise(at_least(of, ATOM), style), ATOM
        case Call(name, args):
            return _call(name, list(args), style)
        case Item(call, name, told):
            return (style.symbol(name) if told else f"{spell(call, style)}.{style.symbol(name)}"), ATOM
    raise TypeError(f"no spelling for {type(node).__name__}")


def _juxtaposed(texts: list[str], style: Style) -> str:
    """Side by side; two numbers with a dot between them."""
    out = texts[0]
    for before, text in itertools.pairwise(texts):
        out += (style.dot if before[-1:].isdigit() and text[:1].isdigit() else " ") + text
    return out


def _raise(text: str, style: Style) -> str:
    """The transpose of what is written as ``text``."""
    if style is not TEX:
        return text + style.top
    raised = re.search(r"\^\{([^{}]*)\}$", text)
    return f"{text[: raised.start()]}^{{{raised[1]}\\,\\top}}" if raised else text + r"^{\top}"


def _call(name: str, args: list[Node], style: Style) -> tuple[str, int]:
    if name in LOGIC:
        sign = LOGIC[name][style.column]
        texts = [
            text if level == ATOM else text.join(style.brackets)
            for text, level in (_spell(a, style) for a in args)
        ]
        return (sign + texts[0], ATOM) if len(texts) == 1 else (f" {sign} ".join(texts), ENTRYWISE)
    inside = ", ".join(spell(a, style) for a in args)
    return (
        inside.join(style.angles) if name == "inner" else style.call(name) + inside.join(style.brackets)
    ), ATOM
