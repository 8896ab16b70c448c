"""Formulas as MathML, which browsers draw without a script: LaTeX in, checked XML out.

The converter never complains: an unknown macro comes back as text, ``aligned`` as a row with stray ampersands. So each of its
results is parsed and looked through, and a formula that did not survive is refused by name.
"""

from __future__ import annotations

import functools
import itertools
import re
from xml.etree import ElementTree

from latex2mathml.converter import convert

from gradderiv.errors import GradderivError, message

NAMESPACE = "http://www.w3.org/1998/Math/MathML"
LEAVES = {"mi", "mn", "mo", "mtext", "mspace"}
ROWS = {"math", "mrow", "mstyle", "mpadded", "mphantom", "msqrt", "mtable", "mtr", "mtd"}
CHILDREN = {
    "mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3
}  # fmt: skip
FUNCTIONS = {"exp", "log", "ln", "max", "min", "sin", "cos"}
OPEN, SIGNS = set("([⟨,=|"), set("-−+±")
BRACKETS = {"⟨": "prefix", "⟩": "postfix"}
BOLD = {**{chr(c): chr(c + 0x1D7CE - ord("0")) for c in range(ord("0"), ord("9") + 1)},
        **{chr(c): chr(c + 0x1D400 - ord("A")) for c in range(ord("A"), ord("Z") + 1)},
        **{chr(c): chr(c + 0x1D41A - ord("a")) for c in range(ord("a"), ord("z") + 1)}}  # fmt: skip

ElementTree.register_namespace("", NAMESPACE)


class FormulaError(GradderivError, ValueError):
    """A formula that is not MathML after conversion."""


@functools.lru_cache(maxsize=4096)
def mathml(latex: str, *, block: bool = False) -> str:
    """The formula as a ``<math>`` element.

    Args:
        latex: LaTeX without the dollar signs.
        block: on a line of its own.

    Raises:
        FormulaError: the converter does not know a macro, or what it returned is not MathML.
    """
    if _unbalanced(latex):
        raise _refusal(latex, "braces that do not match")
    try:
        root = ElementTree.fromstring(convert(_named(latex), display="block" if block else "inline"))
    except ElementTree.ParseError as error:
        raise _refusal(latex, f"a converter's output that is not XML: {error}") from error
    except Exception as error:  # the converter's own, and an IndexError of it now and then
        raise _refusal(latex, f"{type(error).__name__} {error}".strip()) from error
    for element in root.iter():
        _require_mathml(element, latex)
        _repair(element)
        _space(element)
    return ElementTree.tostring(root, encoding="unicode")


def _named(latex: str) -> str:
    """The name of a function with an underscore is text: the converter spells it letter by letter."""
    return re.sub(
        r"\\operatorname\{(\w+(?:\\_\w*)+)\}", lambda m: rf"\text{{{m[1].replace(chr(92), '')}}}", latex
    )


def _unbalanced(latex: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", latex.replace(r"\\", "")):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return True
    return depth != 0


def _tag(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _require_mathml(element: ElementTree.Element, latex: str) -> None:
    tag = _tag(element)
    if element.tag != f"{{{NAMESPACE}}}{tag}" or tag not in LEAVES | ROWS | set(CHILDREN):
        raise _refusal(latex, f"an element <{tag}>")
    if tag in CHILDREN and len(element) != CHILDREN[tag]:
        raise _refusal(latex, f"<{tag}> of {len(element)} parts")
    if tag in LEAVES and len(element):
        raise _refusal(latex, f"<{tag}> with parts")
    stray = element.text or ""
    if tag == "mo" and not stray:
        raise _refusal(latex, "an operator that is empty")
    if tag not in LEAVES and stray.strip():
        raise _refusal(latex, f"text {stray.strip()!r} outside a letter")
    if (re.search(r"[\\$&{}]", stray) and stray not in "{}") or (element.tail or "").strip():
        raise _refusal(latex, f"{(stray + (element.tail or '')).strip()!r} as it was typed")


def _repair(element: ElementTree.Element) -> None:
    """What MathML Core asks for and the converter does otherwise."""
    tag, text = _tag(element), element.text or ""
    if tag == "mi" and text in BRACKETS:
        element.tag = f"{{{NAMESPACE}}}mo"
        element.attrib.update(form=BRACKETS[text], stretchy="false", lspace="0", rspace="0")
    elif tag == "mo" and text == "=":  # also where nothing stands beside it
        element.set("form", "infix")
    elif tag == "mo" and text == "/":
        element.attrib.update(lspace="0.05em", rspace="0.05em")
    elif tag == "mo" and text == "⊤":  # a superscript, not a relation with space around it
        element.tag = f"{{{NAMESPACE}}}mi"
        element.set("mathvariant", "normal")
    elif tag == "mo" and (text == "∞" or (len(text) > 1 and text.isalpha())):  # a name, not an operator
        element.tag = f"{{{NAMESPACE}}}mi"
    if element.get("mathvariant") == "bold":
        del element.attrib["mathvariant"]
        element.text = "".join(BOLD.get(c, c) for c in text)
    if tag == "mover" and len(element) == 2 and (element[1].text or "") in "˙~^¨→":
        element.set("accent", "true")
        element[1].set("stretchy", "false")


def _space(element: ElementTree.Element) -> None:
    """A thin space between the name of a function and what it is applied to without a bracket; none after the sign of a number."""
    for before, sign in itertools.pairwise(element):
        if (before.text or "") in OPEN and _tag(before) == "mo" and (sign.text or "") in SIGNS:
            sign.set("form", "prefix")
    for place, (name, of) in reversed(list(enumerate(itertools.pairwise(element), 1))):
        bracket = _tag(of) == "mo" or (len(of) and of[0].get("fence") == "true")
        if (name.text or "") in FUNCTIONS and not bracket and _tag(element) in ROWS:
            element.insert(place, ElementTree.Element(f"{{{NAMESPACE}}}mspace", width="0.17em"))


def _refusal(latex: str, came: str) -> FormulaError:
    return FormulaError(
        message(
            f"a formula must be MathML after conversion: {latex}",
            came,
            "a macro that the converter does not know, or an environment other than align*, bmatrix and cases",
            "write it with macros that it knows; `aligned` is not one",
        )
    )
