"""Reasons and docstrings, written with Unicode mathematics, in the other two character sets."""

from __future__ import annotations

import re
import unicodedata

# Unicode: ASCII, TeX
SIGNS = {
    "τ": ("tau", r"\tau "), "δ": ("delta", r"\delta "), "ε": ("eps", r"\varepsilon "), "ℓ": ("loss", r"\ell "),
    "Σ": ("sum", r"\Sigma "), "Π": ("Pi", r"\Pi "), "θ": ("theta", r"\theta "), "∂": ("d", r"\partial "),
    "√": ("sqrt ", r"\surd "), "ᵀ": ("^T", r"^{\top}"), "∘": ("o", r"\circ "), "⊘": ("/", r"\oslash "),
    "−": ("-", "-"), "·": ("*", r"\cdot "), "×": ("x", r"\times "), "⟨": ("<", r"\langle "), "⟩": (">", r"\rangle "),
    "→": ("->", r"\to "), "∞": ("inf", r"\infty "), "≤": ("<=", r"\le "), "≥": (">=", r"\ge "), "≠": ("!=", r"\ne "),
    "∧": ("and", r"\wedge "), "∨": ("or", r"\vee "), "¬": ("not ", r"\neg "), "∈": ("in", r"\in "), "ᵢ": ("_i", "_{i}"),
}  # fmt: skip
TYPOGRAPHY = {
    "…": "...", "§": "sec. ", "–": "-", "—": "-", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"',
    "⁻": "^-", "²": "^2", "³": "^3", "∎": "", "˙": "_dot",
}  # fmt: skip
DIGITS = {c: str(i) for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
PLAIN = {c: ascii for c, (ascii, _) in SIGNS.items()} | DIGITS | TYPOGRAPHY


def plain(text: str) -> str:
    """The text in ASCII, names as in the code: Ṡ is S_dot, 𝓚 is calK, W^Q is W_Q."""
    text = unicodedata.normalize("NFD", re.sub(r"𝓓(?=_)", "D", text))
    text = re.sub("(?<=[Wb])(\u0307?)\\^(?=[A-Z])", r"\1_", text)
    text = "".join(f"cal{_script(c)}" if _script(c) else c for c in text)
    text = re.sub("(\\w)\u0307(_\\w+)?", r"\1\2_dot", text).replace("\u0303", "").replace("\u0302", "_hat")
    return "".join(PLAIN.get(c, c) for c in text)


def prose(text: str) -> str:
    """The text for \\text{…} in LaTeX: what is mathematics in it stands between dollar signs."""
    out, formula = [], ""
    for word in re.findall(r"\s+|[^\s]+", text):
        core = word.rstrip(",;:.")
        in_formula = formula and (core in "=+-/" or formula.strip()[-1] in "=+-")
        if core and (_is_formula(core) or in_formula):
            formula += _formula(core)
            if core != word:
                out += [f"${formula.strip()}$", word[len(core) :]]
                formula = ""
        elif word.isspace() and formula:
            formula += " "
        else:
            if formula:
                out += [f"${formula.strip()}$", " " * formula.endswith(" ")]
            formula = ""
            out.append(word)
    return "".join([*out, f"${formula.strip()}$" if formula else ""])


def _is_formula(word: str) -> bool:
    special = any(
        c in SIGNS or _script(c) or unicodedata.combining(c) for c in unicodedata.normalize("NFD", word)
    )
    return (
        special or "^" in word or "_" in word or bool(re.fullmatch(r"d?[A-Z]|[(\d⟨]*[A-Z0-9][)⟩\d]*", word))
    )


def _formula(word: str) -> str:
    if re.fullmatch("[a-z]{2,}", word):
        return rf"\mathrm{{{word}}}"
    word = unicodedata.normalize("NFD", word)
    word = "".join(rf"\mathcal{{{_script(c)}}}" if _script(c) else c for c in word)
    word = re.sub("(\\\\mathcal\\{.\\}|\\w)\u0307", r"\\dot{\1}", word)
    word = re.sub("(\\w)\u0303", r"\\tilde{\1}", word)
    word = re.sub(r"\^(\w)", r"^{\1}", re.sub(r"_(\w+)", r"_{\1}", word))
    word = re.sub(r"_\{(?![ijk]+\})(\w\w+)\}", r"_{\\mathrm{\1}}", word)  # a name, not indices
    word = word.replace("}ᵀ", r"\,\top}") if re.search(r"\^\{\w\}ᵀ", word) else word
    return "".join(SIGNS[c][1] if c in SIGNS else c for c in word)


def _script(c: str) -> str:
    """The letter of which c is the script form, or ""."""
    return chr(ord(c) - 0x1D4D0 + ord("A")) if 0x1D4D0 <= ord(c) <= 0x1D4E9 else ""
