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
    "γ": ("gain", r"\gamma "), "β": ("shift", r"\beta "), "σ": ("sigma", r"\sigma "), "κ": ("kappa", r"\kappa "),
}  # fmt: skip
TYPOGRAPHY = {
    "…": "...", "§": "sec. ", "–": "-", "—": "-", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"',
    "⁻": "^-", "²": "^2", "³": "^3", "∎": "", "˙": "_dot",
}  # fmt: skip
FUNCTION = r"\b(rowsum|sum|softmax|exp|log|tr|max|diag)(?=\()"
DIGITS = {c: str(i) for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
PLAIN = {c: ascii for c, (ascii, _) in SIGNS.items()} | DIGITS | TYPOGRAPHY


def plain(text: str) -> str:
    """The text in ASCII, names as in the code: Ṡ is S_dot, 𝓚 is calK, W^Q is W_Q."""
    text = unicodedata.normalize("NFD", re.sub(r"𝓓(?=_)", "D", text))
    text = re.sub("⁻[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "^-" + "".join(DIGITS[c] for c in m[0][1:]), text)
    text = re.sub("(?<=[Wb])(\u0307?)\\^(?=[A-Z])", r"\1_", text)
    text = "".join(f"cal{_script(c)}" if _script(c) else c for c in text)
    text = re.sub(r"\((\w+)\)˙", r"\1_dot", text)
    text = re.sub("(\\w)\u0307(_\\w+)?", r"\1\2_dot", text).replace("\u0303", "").replace("\u0302", "_hat")
    return "".join(PLAIN.get(c, c) for c in text)


def prose(text: str) -> str:
    """The text for \\text{…} in LaTeX: what is mathematics in it stands between dollar signs."""
    out: list[str] = []
    formula: list[str] = []  # its words so far
    words = text.split(" ")
    for i, word in enumerate(words):
        core = word.rstrip(",;:.")
        after = words[i + 1] if i + 1 < len(words) else ""
        if core and (_is_formula(core, after) or (formula and (core in "=+-−/" or _is_open(formula)))):
            formula.append(word)
            if core == word or (word == f"{core}," and _depth(formula) > 0):
                continue
            formula[-1] = core
            out.append(_between_dollars(formula) + word[len(core) :])
        else:
            out += [_between_dollars(formula), word] if formula else [word]
        formula = []
    return " ".join([*out, _between_dollars(formula)] if formula else out)


def _between_dollars(words: list[str]) -> str:
    """The formula in LaTeX; a number alone is a word."""
    text = " ".join(words)
    return text if text.isdigit() else f"${' '.join(map(_formula, words)).strip()}$"


def _depth(formula: list[str]) -> int:
    """How many brackets are open at its end."""
    text = "".join(formula)
    return sum(map(text.count, "(⟨")) - sum(map(text.count, ")⟩"))


def _is_open(formula: list[str]) -> bool:
    """Whether it ends with an operator, or in a bracket."""
    return formula[-1] in "=+-−/∘⊘·" or _depth(formula) > 0


def _is_formula(word: str, after: str) -> bool:
    special = any(
        c in SIGNS or c == "˙" or _script(c) or unicodedata.combining(c)
        for c in unicodedata.normalize("NFD", word)
    )
    return (
        special
        or "^" in word
        or "_" in word
        or bool(re.match(FUNCTION, word))
        or bool(re.fullmatch(r"d?[A-Z]|[b-z]|[(\d⟨]*[A-Z0-9][)⟩\d]*|[(⟨]+[b-z]", word))
        or after == "="
        or (word == "a" and after.startswith("move"))  # the letter, not the article
    )


def _formula(word: str) -> str:
    if re.fullmatch("[a-z]{3,}(_[A-Za-z]+)+", word):  # a function of the code
        return rf"\operatorname{{{word}}}".replace("_", r"\_")
    word = re.sub(FUNCTION, r"\\operatorname{\1}", unicodedata.normalize("NFD", word))
    word = re.sub(r"(?<![\\{_A-Za-z])(?!db\b)(d?)([a-z]{2,})(?![a-z(}])", r"\1\\mathrm{\2}", word)
    word = "".join(rf"\mathcal{{{_script(c)}}}" if _script(c) else c for c in word)
    word = re.sub(r"\((\\mathrm\{\w+\})\)˙", r"\\dot{\1}", word)
    word = re.sub(r"(\([^()]+\))˙", r"\\dot{\1}", word)
    word = re.sub("(\\\\mathcal\\{.\\}|\\w)\u0307", r"\\dot{\1}", word)
    word = re.sub("(\\w)\u0303", r"\\tilde{\1}", word)
    word = re.sub(r"\^(\w)", r"^{\1}", re.sub(r"_([^\Wᵀ]+)", r"_{\1}", word))
    word = re.sub(r"_\{(?![ijk]+\})(\w\w+)\}", r"_{\\mathrm{\1}}", word)  # a name, not indices
    word = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: f"^{{{''.join(DIGITS[c] for c in m[0])}}}", word)
    word = word.replace("}ᵀ", r"\,\top}") if re.search(r"\^\{\w\}ᵀ", word) else word
    return re.sub(" (?=[_^])", "", "".join(SIGNS[c][1] if c in SIGNS else c for c in word))


def _script(c: str) -> str:
    """The letter of which c is the script form, or ""."""
    return chr(ord(c) - 0x1D4D0 + ord("A")) if 0x1D4D0 <= ord(c) <= 0x1D4E9 else ""
