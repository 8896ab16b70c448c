"""What attention is made of, in the order of the forward pass: one table, in which every option is a row.

A row names an operator, what it reads and writes, what it is told, and the keyword that switches it on. The keywords of :func:`gradderiv.rules.attend.attend` and of
:func:`gradderiv.rules.multihead.multihead`, the names of their gradients, and the order in which options act all follow from the table.

To add an option, write its operator in a file of its own and :func:`insert` its row.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from gradderiv.rules._inputs import require
from gradderiv.rules.cache import APPEND
from gradderiv.rules.dropout import DROPOUT
from gradderiv.rules.fills import MASKED_FILL
from gradderiv.rules.heads import REPEAT_HEADS
from gradderiv.rules.matmul import MATMUL
from gradderiv.rules.rms_norm import RMS_NORM
from gradderiv.rules.rope import ROPE
from gradderiv.rules.score_bias import ALIBI, BIAS, RELATIVE
from gradderiv.rules.scores import SCORES
from gradderiv.rules.softcap import SOFTCAP
from gradderiv.rules.softmax_lse import SOFTMAX_LSE
from gradderiv.rules.steps import Operator, Step, step
from gradderiv.rules.temperature import TEMPERATURE


class Part(NamedTuple):
    """A row of the table.

    Attributes:
        name: of the option; rows of one name are given together or not at all.
        operator: the rule.
        wires: what it reads and writes; ``sinks?`` is read where it is given.
        must: what it has to be told, and is no variable.
        may: what it can be told.
    """

    name: str
    operator: Operator
    wires: str
    must: tuple[str, ...] = ()
    may: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The arguments that switch it on; a row without any is always on."""
        reads = self.wires.partition(" -> ")[0].split()
        return (*(n for n in reads if n not in CORE and not n.endswith("?")), *self.must)


#: Every value of attention that is no option.
CORE = ("Q", "K", "V", "S", "P", "lse", "O")
#: What a row has to be told, and is found from the shapes.
FOUND = ("n_heads",)

PARTS: list[Part] = [
    Part("QK-norm", RMS_NORM, "Q gain_Q -> Q", may=("eps",)),
    Part("QK-norm", RMS_NORM, "K gain_K -> K", may=("eps",)),
    Part("rotary", ROPE, "Q cos sin -> Q", may=("pairing",)),
    Part("rotary", ROPE, "K cos sin -> K", may=("pairing",)),
    Part("cache", APPEND, "K_cache K -> K"),
    Part("cache", APPEND, "V_cache V -> V"),
    Part("grouped heads", REPEAT_HEADS, "K -> K", must=("n_heads",)),
    Part("grouped heads", REPEAT_HEADS, "V -> V", must=("n_heads",)),
    Part("scores", SCORES, "Q K -> S", may=("scale",)),
    Part("temperature", TEMPERATURE, "S temperature -> S"),
    Part("softcap", SOFTCAP, "S -> S", must=("softcap",)),
    Part("ALiBi", ALIBI, "S slopes -> S"),
    Part("T5 bias", RELATIVE, "S table -> S", must=("buckets",)),
    Part("bias", BIAS, "S bias -> S"),
    Part("fill", MASKED_FILL, "S -> S", must=("fill",)),
    Part("softmax", SOFTMAX_LSE, "S sinks? -> P lse", may=("mask", "softmax_dtype")),
    Part("dropout", DROPOUT, "P -> P", must=("keep", "dropout_p")),
    Part("context", MATMUL, "P V -> O"),
]


def insert(part: Part, *, before: str) -> None:
    """Put a row in front of the first one of that name."""
    PARTS.insert([p.name for p in PARTS].index(before), part)


def variables() -> tuple[str, ...]:
    """The options that are tensors with a gradient: what the table reads and nothing in it writes."""
    read = (n.removesuffix("?") for p in PARTS for n in p.wires.partition(" -> ")[0].split())
    return tuple(dict.fromkeys(n for n in read if n not in CORE))


def constants() -> tuple[str, ...]:
    """The options that have none."""
    return tuple(dict.fromkeys(n for p in PARTS for n in (*p.must, *p.may) if n not in FOUND))


def steps(options: Mapping[str, Any]) -> list[Step]:
    """The rows that these options switch on, in order; None is an option that was not given."""
    given = {name: value for name, value in options.items() if value is not None}
    return [
        step(p.operator, p.wires.replace("?", ""), **{n: given[n] for n in (*p.must, *p.may) if n in given})
        for p in PARTS
        if not p.needs or given.keys() & {*p.needs}
    ]


def require_options(where: str, options: Mapping[str, Any]) -> None:
    """Demand keywords of the table, each with what its option needs beside it.

    Raises:
        InputError: an unknown keyword; one without its partner.
    """
    known = (*variables(), *constants())
    for name in options:
        near = [] if name in known else difflib.get_close_matches(name, known, 3, 0.5)
        require(
            name in known,
            f"{where} has no option {name}",
            f"{name}=…",
            "another spelling" if near else "the name of another library",
            f"one of {', '.join(near or known)}",
        )
    given = {name for name, value in options.items() if value is not None}
    for option in dict.fromkeys(p.name for p in PARTS):
        rows = [p for p in PARTS if p.name == option]
        needs = list(dict.fromkeys(n for p in rows for n in p.needs))
        came = [n for p in rows for n in (*p.needs, *p.may) if n in given]
        missing = [n for n in needs if n not in given]
        require(
            not came or not missing,
            f"{where} needs {' and '.join(needs)} for the option {option}",
            f"{', '.join(dict.fromkeys(came))} without {', '.join(missing)}",
            "an argument forgotten, or one that only tunes an option that is off",
            f"pass {', '.join(missing)} too, or none",
        )
