"""A chain and a named matrix as HTML: formulas as MathML, and for each step a mark that opens to how it was checked."""

from __future__ import annotations

import itertools
import math
import re
from html import escape
from typing import TYPE_CHECKING

from gradderiv.book.mathml import mathml
from gradderiv.book.remarks import prose
from gradderiv.book.written import SUPERSCRIPT, footer, label_of
from gradderiv.numbers.nodes import Node
from gradderiv.numbers.spelling import TEX, spell

if TYPE_CHECKING:
    from gradderiv.book.chain import Chain, Evidence
    from gradderiv.book.exercises.claims import Claim
    from gradderiv.book.named import Named

RAISED = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "−0123456789"  # and level
PUNCTUATION = r"[,.;:!?)]+"  # does not begin a line


def chain_html(chain: Chain) -> str:
    """The chain as a list of steps: what it is equal to, the formula, the reason, and the mark of its check."""
    start = chain.lines[0].named.node
    label = label_of(start, TEX)
    stands_alone = label == spell(start, TEX)  # no label: the first expression is what all are equal to
    steps, failures, number = [], iter(chain.failures), itertools.count(2)
    for i, line in enumerate(chain.lines):
        formula, sized = tex(line.named.node), line.reason == line.named.dimensions
        reason = shape(line.named) if sized else inline(line.reason)
        if line.let:
            steps.append(_step(f"{TEX.symbol(line.let)} =", formula, reason, kind="given"))
        elif i == 0:
            steps.append(_step("" if stands_alone else f"{label} =", formula, reason))
        else:
            mark = _mark(f"step {next(number)}", line.evidence, next(failures))
            steps.append(_step("=", formula, reason, mark))
    if chain.rule:
        reason = f"is what <code>{escape(chain.rule)}</code> returns"
        mark = _mark("the gradient", None, next(failures, -math.inf))
        gradient_tex = "0" if chain.gradient is None else tex(chain.gradient.node)
        steps.append(
            _step(f"{TEX.symbol('d' + chain.variable)} =", gradient_tex, reason, mark, kind="result")
        )
    return _figure("a derivation, checked line by line", steps, footer(chain))


def claim_html(claim: Claim) -> str:
    """A claimed derivation: numbered lines, and no mark, for none is checked."""
    steps = [
        _step(rf"({n})\quad {'=' if n > 1 else ''}", tex(said.expression.node), inline(claim.words(n)))
        for n, said in enumerate(claim.lines, 1)
    ]
    return _figure("a derivation that somebody claims", steps, "A claim: nothing here was checked.")


def named_html(x: Named) -> str:
    """The formula, and the shape beside it."""
    return (
        f'<p class="named"><span class="formula">{"<wbr/>".join(pieces(tex(x.node)))}</span> '
        f'<span class="shape">{shape(x)}</span></p>'
    )


def shape(x: Named) -> str:
    """``n_q × h·d_k`` as a formula."""
    if x.dimensions == "number":
        return x.dimensions
    latex = x.dimensions.replace("×", r"\times").replace("·", r"\cdot ")
    return mathml(
        re.sub(r"_(\w+)", lambda m: f"_{{{m[1]}}}" if len(m[1]) == 1 else rf"_{{\mathrm{{{m[1]}}}}}", latex)
    )


def tex(node: Node) -> str:
    """The expression in LaTeX, factors apart, so that dY W is not read as d times Y times W."""
    return spaced(spell(node, TEX)).replace(r"\left(", "(").replace(r"\right)", ")")  # nothing in it is tall


def spaced(latex: str) -> str:
    """A thin space where two factors stand beside one another."""
    words = latex.split()
    gaps = (r" \, " if _ends(a) and _begins(b) else " " for a, b in itertools.pairwise(words))
    return "".join(itertools.chain.from_iterable(itertools.zip_longest(words, gaps, fillvalue="")))


def _ends(word: str) -> bool:
    """Whether a factor ends with this word."""
    return not re.search(
        r"(?:[-+=,(]|\\(?:langle|neg|max|exp|log|circ|oslash|cdot|times|wedge|vee|to|le|ge|ne|in))$", word
    )


def _begins(word: str) -> bool:
    """Whether a factor begins with this word."""
    return not re.match(
        r"[-+=,;)]|\\(?:rangle|right|circ|oslash|cdot|times|wedge|vee|to|le|ge|ne|in)\b", word
    )


def pieces(latex: str) -> list[str]:
    """The formula in parts, between which a line may end: before the sign of a sum or an equation, also in an inner product."""
    out, start, opened = [], 0, ""
    for found in re.finditer(r"( [-+=] )|\\langle|\\rangle|[(){}]", latex):
        bracket = found[0][:2]
        if found[1]:
            if opened in ("", r"\l"):
                out.append(latex[start : found.start()])
                start = found.start()
        elif bracket in (r"\r", ")", "}"):
            opened = opened.removesuffix({r"\r": r"\l", ")": "(", "}": "{"}[bracket])
        else:
            opened += bracket
    return [mathml(f"{{}}{part}" if start else part) for start, part in enumerate([*out, latex[start:]])]


def inline(text: str) -> str:
    """Prose, its mathematics as MathML."""
    out, formula = "", ""
    for i, part in enumerate(re.split(r"\$([^$]+)\$", prose(text))):
        if i % 2:
            *before, formula = pieces(spaced(part))
            out += "".join(f"{side}<wbr/>" for side in before)
        else:
            sign = re.match(PUNCTUATION, part)
            tied = f'<span class="tied">{formula}{sign[0]}</span>' if formula and sign else formula
            out, formula = out + tied + escape(part[sign.end() :] if formula and sign else part), ""
    return out


def raised(text: str) -> str:
    """Prose, its raised digits as larger ones that are raised."""
    level = str.maketrans(*RAISED)
    return re.sub(f"[{RAISED[0]}]+", lambda m: f"<sup>{m[0].translate(level)}</sup>", escape(text))


def _figure(name: str, steps: list[str], caption: str) -> str:
    rows = "\n".join(steps)
    return (
        f'<figure class="chain" aria-label="{name}">\n<ol role="list">\n{rows}\n</ol>\n'
        f"<figcaption>{raised(caption)}</figcaption>\n</figure>"
    )


def _step(lead: str, formula: str, reason: str, mark: str = "", *, kind: str = "") -> str:
    before = '<span class="with">with</span> ' if kind == "given" else ""
    return (
        f'<li class="{f"step {kind}".strip()}"><span class="lead">{before}{mathml(lead) if lead else ""}</span>'
        f'<span class="formula">{"<wbr/>".join(pieces(formula))}</span><span class="reason">{reason}</span>{mark}</li>'
    )


def _mark(name: str, evidence: Evidence | None, failure: float) -> str:
    """✓, which opens to the evidence."""
    power = "" if failure == -math.inf else str(math.ceil(failure))
    certainty = f", probability of a mistake below 2^{power}" if power else ""
    shown = f" A false line passes with probability below 2{power.translate(SUPERSCRIPT)}." if power else ""
    return (
        f'<details class="check"><summary aria-label="{name}: checked{certainty}" title="how it was checked">✓</summary>'
        f"<p>{_evidence(evidence)}{raised(shown)}</p></details>"
    )


def _evidence(evidence: Evidence | None) -> str:
    if evidence is None:
        return "The function was run on the same point, and returned the same, in every entry and modulo each prime."
    how = f"Compared with the line before: {escape(evidence.how)}."
    if not evidence.law:
        return f"{how} It was computed; that it follows by a law is not claimed."
    return f"It follows from the line before by {inline(evidence.law)}, and by no other law. {how}"
