"""The shape at the end of a line is the shape of what the line assigns: read from the source, and checked while the rule runs."""

from __future__ import annotations

import ast
import inspect
import io
import sys
import tokenize

import pytest
import torch
from rule_calls import MODULES, Sizes, a_mask, calls, rules

from gradderiv.rules import rope, score_bias, softmax_lse

SIZES = Sizes()
NAMES = SIZES.names()


def commented_assignments(source):
    """{last line of an assignment: (first line, its targets, the comment)} for every assignment with a trailing comment."""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and token.line.strip() != token.string
    }
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and node.end_lineno in comments:
            (target,) = node.targets
            targets = target.elts if isinstance(target, ast.Tuple) else [target]
            words = comments[node.end_lineno].replace(",", " ").split()
            if all(isinstance(t, ast.Name) for t in targets) and {"...", *NAMES} & {
                *words
            }:  # else it is prose
                found[node.end_lineno] = (node.lineno, [t.id for t in targets], comments[node.end_lineno])
    return found


def expected_shapes(comment):
    """``... n_q h·d_v, d_out`` as [(True, (3, 68)), (False, (19,))]: whether leading axes may stand before, and the sizes."""
    out = []
    for part in comment.split(", "):
        words = part.split()
        leading = words[0] == "..."
        out.append((leading, tuple(int(w) if w.isdigit() else NAMES[w] for w in words[leading:])))
    return out


def fits(shape, leading, sizes):
    return tuple(shape)[len(shape) - len(sizes) :] == sizes and (leading or len(shape) == len(sizes))


class Tracer:
    """Looks at the locals of a function after each commented assignment."""

    def __init__(self, filename, source):
        self.filename, self.lines = filename, commented_assignments(source)
        self.checked, self.wrong = set(), []

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename != self.filename:
            return None
        state = {"last": None}

        def local(frame, event, argument):
            if event in ("line", "return") and state["last"] is not None:
                for end in self._finished(state["last"], frame.f_lineno if event == "line" else None):
                    self._look(frame, end)
            state["last"] = frame.f_lineno
            return local

        state["last"] = frame.f_lineno
        return local

    def _finished(self, last, now):
        """The commented assignments that the last line belongs to and the present one does not."""
        for end, (start, _, _) in self.lines.items():
            if start <= last <= end and not (now is not None and start <= now <= end):
                yield end

    def _look(self, frame, end):
        _, targets, comment = self.lines[end]
        tensors = [frame.f_locals.get(t) for t in targets]
        if tensors[0] is None:
            return
        self.checked.add(end)
        shapes = expected_shapes(comment)
        values = [t for t in tensors if isinstance(t, torch.Tensor)]  # what is saved has no shape of its own
        if len(values) != len(shapes):
            self.wrong.append(f"{self.filename}:{end}: {len(values)} tensors and {len(shapes)} shapes")
        for value, (leading, sizes) in zip(values, shapes, strict=False):
            if not fits(value.shape, leading, sizes):
                self.wrong.append(
                    f"{self.filename}:{end}: # {comment}, and the shape is {tuple(value.shape)}"
                )


def traced(tracer, programs):
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        for program in programs:
            program()
    finally:
        sys.settrace(before)
    return tracer


def programs_of(module):
    """Every rule of the module, with and without a mask."""
    for masked in (True, False):
        for function, args, kwargs in calls(torch.randn, SIZES, masked=masked).values():
            if function.__module__ == module.__name__:
                yield lambda f=function, a=args, k=kwargs: f(*a, **k)
    yield from BESIDE.get(module, ())


def relative_backward():
    S, table = torch.randn(*SIZES.batch, SIZES.h, SIZES.n_q, SIZES.n_k), torch.randn(5, SIZES.h)
    buckets = score_bias.t5_buckets(SIZES.n_q, SIZES.n_k, n_buckets=4, max_distance=4)
    _, saved = score_bias.RELATIVE.f(S, table, buckets=buckets)
    score_bias.RELATIVE.vjp(S, saved)


def softmax_with(sinks, mask):
    S = torch.randn(*SIZES.batch, SIZES.h, SIZES.n_q, SIZES.n_k)
    softmax_lse.softmax_lse(S, sinks, mask=mask)


#: What a module has beside its rules, and lines that a rule reaches under other options alone.
BESIDE = {
    rope: [
        lambda: rope.rotary_tables(torch.arange(float(SIZES.n_q)), SIZES.r),
        lambda: rope.turn(torch.randn(SIZES.n_q, SIZES.r), "half"),
    ],
    score_bias: [relative_backward],
    softmax_lse: [lambda: softmax_with(None, a_mask(SIZES.n_q, SIZES.n_k))],
}


COMMENTED = [m for m in MODULES if commented_assignments(inspect.getsource(m))]


def test_sizes_are_pairwise_distinct():
    sizes = [v for k, v in NAMES.items() if k not in ("n", "d", "e")] + list(SIZES.batch)
    assert len(set(sizes)) == len(sizes)
    assert {m.__name__.rsplit(".")[-1] for m in COMMENTED} == {
        "linear",
        "softmax",
        "attention",
        "blockdiag",
        "matmul",
        "fills",
        "embedding",
        "rope",
        "rms_norm",
        "scores",
        "softcap",
        "temperature",
        "score_bias",
        "softmax_lse",
        "layer_norm",
        "graph",
    }


@pytest.mark.parametrize("module", COMMENTED, ids=lambda m: m.__name__.rsplit(".")[-1])
def test_every_shape_comment_is_the_shape(module):
    tracer = traced(Tracer(module.__file__, inspect.getsource(module)), list(programs_of(module)))
    assert not tracer.wrong, "\n".join(tracer.wrong)
    missed = sorted(set(tracer.lines) - tracer.checked)
    assert not missed, f"no run reached the shapes on lines {missed} of {module.__file__}"


def test_almost_every_assignment_of_a_tensor_has_its_shape():
    """In the functions that are formulas: an assignment without one is an exception, and there are few."""
    total, bare = 0, []
    for function in rules().values():
        source = inspect.getsource(getattr(function, "formula", inspect.unwrap(function)))
        commented = commented_assignments(inspect.cleandoc(source))
        for node in ast.walk(ast.parse(inspect.cleandoc(source))):
            computes = isinstance(node, ast.Assign) and any(
                isinstance(n, ast.BinOp | ast.Call) for n in ast.walk(node.value)
            )
            if computes:
                total += 1
                if node.end_lineno not in commented:
                    bare.append(f"{function.__name__}: {ast.unparse(node)}")
    assert total > 60
    assert len(bare) < total / 3, bare


def test_a_name_that_is_no_size_is_an_error():
    with pytest.raises(KeyError, match="n_x"):
        expected_shapes("... n_q n_x")


WRONG = """
def forward(X, W):
    Y = X @ W  # ... n e
    Z = Y.mT  # {comment}
    a, b = Y, Z  # ... n e, ... e n
    return Z
"""


@pytest.mark.parametrize(
    ("comment", "right"),
    [("... e n", True), ("... n e", False), ("e n", False), ("... e n 1", False), ("n", False)],
)
def test_twin_a_wrong_comment_is_noticed(comment, right, tmp_path):
    source = WRONG.format(comment=comment)
    path = str(tmp_path / "wrong.py")
    scope = {}
    exec(compile(source, path, "exec"), scope)
    X, W = torch.randn(2, NAMES["n"], 4), torch.randn(4, NAMES["e"])
    tracer = traced(Tracer(path, source), [lambda: scope["forward"](X, W)])
    assert tracer.checked == {3, 4, 5}
    assert bool(tracer.wrong) != right
