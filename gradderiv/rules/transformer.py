"""A whole layer of a transformer, as the list of its parts.

    before     X ← X + attention(norm(X)),   X ← X + feed_forward(norm(X))                       pre-norm: GPT-2, Llama
    after      X ← norm(X + attention(X)),   X ← norm(X + feed_forward(X))                       post-norm: Vaswani et al. 2017, BERT
    parallel   Y = X + attention(norm₁(X)) + feed_forward(norm₂(X))                              GPT-J, GPT-NeoX

    RMSNorm, LayerNorm         gain_1, gain_2 (d_model);   shift_1, shift_2 (d_model)
    feed-forward, gated        (f(N W_G + b_G) ∘ (N W_U + b_U)) W_D + b_D                        SwiGLU: Shazeer 2020, eq. 6
    feed-forward, plain        f(N W_U + b_U) W_D + b_D                                          Vaswani et al. 2017, eq. 2

X, Y (..., n, d_model)   W_G, W_U (d_model, d_ff)   W_D (d_ff, d_model)   W_Q … W_O, b_Q … b_O and the options of attention as in :mod:`gradderiv.rules.multihead`
The backward pass is the same list reversed. A system is a row of :data:`STYLES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from gradderiv.rules._inputs import require, require_tensors, rule, shapes
from gradderiv.rules.activation import ACTIVATION
from gradderiv.rules.attend import gradients, tensors, undotted
from gradderiv.rules.entrywise import ADD, MULTIPLY
from gradderiv.rules.layer_norm import LAYER_NORM
from gradderiv.rules.linear import LINEAR
from gradderiv.rules.multihead import heads_steps
from gradderiv.rules.rms_norm import RMS_NORM
from gradderiv.rules.steps import Step, Trace, run, run_jvp, run_vjp, run_vjp_jvp, step


class Style(NamedTuple):
    """How a system puts its layer together.

    Attributes:
        order: where the norms stand.
        norm: the operator, and what it reads beside its input.
        gated: whether the feed-forward has a gate.
        function: its activation.
    """

    order: str
    norm: str
    gated: bool
    function: str


STYLES: dict[str, Style] = {
    "llama": Style("before", "rms", True, "silu"),
    "gemma": Style("before", "rms", True, "gelu_tanh"),
    "gpt-2": Style("before", "layer", False, "gelu_tanh"),
    "gpt-neox": Style("parallel", "layer", False, "gelu"),
    "bert": Style("after", "layer", False, "gelu"),
    "vaswani": Style("after", "layer", False, "relu"),
}

#: The parameters of a layer beside those of its attention; which of them there are depends on the style.
PARAMETERS = ("gain_1", "shift_1", "gain_2", "shift_2", "W_G", "b_G", "W_U", "b_U", "W_D", "b_D")


def norm_steps(style: Style, which: int, reads: str, writes: str, eps: float, offset: float) -> list[Step]:
    """The norm of that number."""
    if style.norm == "rms":
        return [step(RMS_NORM, f"{reads} gain_{which} -> {writes}", eps=eps, offset=offset)]
    return [step(LAYER_NORM, f"{reads} gain_{which} shift_{which} -> {writes}", eps=eps)]


def feed_forward_steps(style: Style, reads: str, writes: str) -> list[Step]:
    """f(N W_U + b_U) W_D + b_D, with a gate or without."""
    if style.gated:
        inner = [
            step(LINEAR, f"{reads} W_G b_G -> G"),
            step(ACTIVATION, "G -> G", function=style.function),
            step(LINEAR, f"{reads} W_U b_U -> U"),
            step(MULTIPLY, "G U -> F"),
        ]
    else:
        inner = [
            step(LINEAR, f"{reads} W_U b_U -> U"),
            step(ACTIVATION, "U -> F", function=style.function),
        ]
    return [*inner, step(LINEAR, f"F W_D b_D -> {writes}")]


Part = Callable[[str, str], list[Step]]
Norm = Callable[[int, str, str], list[Step]]


def before(attention: Part, feed_forward: Part, norm: Norm) -> list[Step]:
    """X + attention(norm(X)), and so on"""
    return [
        *norm(1, "X", "N_1"),
        *attention("N_1", "A"),
        step(ADD, "X A -> H"),
        *norm(2, "H", "N_2"),
        *feed_forward("N_2", "D"),
        step(ADD, "H D -> Y"),
    ]


def after(attention: Part, feed_forward: Part, norm: Norm) -> list[Step]:
    """norm(X + attention(X)), and so on"""
    return [
        *attention("X", "A"),
        step(ADD, "X A -> R_1"),
        *norm(1, "R_1", "H"),
        *feed_forward("H", "D"),
        step(ADD, "H D -> R_2"),
        *norm(2, "R_2", "Y"),
    ]


def parallel(attention: Part, feed_forward: Part, norm: Norm) -> list[Step]:
    """X + attention(norm₁(X)) + feed_forward(norm₂(X))"""
    return [
        *norm(1, "X", "N_1"),
        *attention("N_1", "A"),
        *norm(2, "X", "N_2"),
        *feed_forward("N_2", "D"),
        step(ADD, "A D -> H"),
        step(ADD, "X H -> Y"),
    ]


ORDERS = {"before": before, "after": after, "parallel": parallel}


@rule
def transformer_layer(
    X: Tensor,
    W_Q: Tensor,
    W_K: Tensor,
    W_V: Tensor,
    W_O: Tensor,
    W_U: Tensor,
    W_D: Tensor,
    gain_1: Tensor,
    gain_2: Tensor,
    *,
    style: Style | str,
    n_heads: int,
    n_kv_heads: int | None = None,
    norm_eps: float = 1e-5,
    norm_offset: float = 0.0,
    W_G: Tensor | None = None,
    shift_1: Tensor | None = None,
    shift_2: Tensor | None = None,
    b_Q: Tensor | None = None,
    b_K: Tensor | None = None,
    b_V: Tensor | None = None,
    b_O: Tensor | None = None,
    b_G: Tensor | None = None,
    b_U: Tensor | None = None,
    b_D: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Trace]:
    """Y = H + feed_forward(norm(H)),   H = X + attention(norm(X)), in the order of the style

    Vaswani et al. 2017, §3.1; Touvron et al. 2023 for Llama's.

    Args:
        X: (..., n, d_model).
        W_Q, W_K, W_V, W_O: as in :mod:`gradderiv.rules.multihead`; W_O ends in d_model columns.
        W_U, W_D: (d_model, d_ff), (d_ff, d_model).
        gain_1, gain_2: (d_model), of the norm at attention and of that at the feed-forward.
        style: a :class:`Style`, or a key of :data:`STYLES`.
        n_heads, n_kv_heads: h and h_kv.
        norm_eps: ε of both norms.
        norm_offset: 1 where RMSNorm's gain is stored as 1 + γ.
        W_G: (d_model, d_ff), where the feed-forward is gated.
        shift_1, shift_2: (d_model), of LayerNorm.
        b_Q … b_D: biases.
        options: scale, mask, bias, and the others of :mod:`gradderiv.rules.attend`.

    Returns:
        Y (..., n, d_model) and what :func:`transformer_layer_vjp` needs.

    Raises:
        InputError: shapes that do not fit, an unknown style or option, a gate that is missing or not wanted.
        DtypeError: integers, several dtypes or devices, a mask that is not boolean.
    """
    style = named_style(style)
    h_kv = n_heads if n_kv_heads is None else n_kv_heads
    given = {
        "X": X, "W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": W_O, "W_U": W_U, "W_D": W_D, "gain_1": gain_1, "gain_2": gain_2,
        "W_G": W_G, "shift_1": shift_1, "shift_2": shift_2, "b_Q": b_Q, "b_K": b_K, "b_V": b_V, "b_O": b_O, "b_G": b_G, "b_U": b_U, "b_D": b_D,
    }  # fmt: skip
    require_layer(style, n_heads, h_kv, given)

    def attention(reads: str, writes: str) -> list[Step]:
        return [
            step(LINEAR, f"{reads} W_Q b_Q -> XW_Q"),
            step(LINEAR, f"{reads} W_K b_K -> XW_K"),
            step(LINEAR, f"{reads} W_V b_V -> XW_V"),
            *heads_steps("transformer_layer", X, X.shape[-2], n_heads, h_kv, options),
            step(LINEAR, f"C W_O b_O -> {writes}"),
        ]

    steps = ORDERS[style.order](
        attention,
        lambda reads, writes: feed_forward_steps(style, reads, writes),
        lambda which, reads, writes: norm_steps(style, which, reads, writes, norm_eps, norm_offset),
    )
    trace = run(steps, {**given, **tensors(options)})
    return trace.values["Y"], trace


@rule
def transformer_layer_jvp(saved: Trace, **dots: Tensor | None) -> Tensor:
    """Ẏ = Ḣ + feed_forward(norm(H))˙, and so on

    The chain rule through the parts, first to last; ``X_dot=…``, ``W_Q_dot=…``.
    """
    return run_jvp(saved, undotted(dots))["Y"]


@rule
def transformer_layer_vjp(dY: Tensor, saved: Trace) -> Any:
    """dH = dY + norm_vjp(feed_forward_vjp(dY)),   dX = dH + norm_vjp(attention_vjp(dH)), in the order of the style

    The list reversed: every ADD passes its gradient to both of its paths. The gradient of every argument that was given, under its name.
    """
    return gradients(run_vjp({"Y": dY}, saved))


@rule
def transformer_layer_vjp_jvp(dY: Tensor, saved: Trace, dY_dot: Tensor, **dots: Tensor | None) -> Any:
    """dẊ = dḢ + (norm_vjp(attention_vjp(dH)))˙, and so on

    The tangent of :func:`transformer_layer_vjp`, part by part.
    """
    return gradients(run_vjp_jvp({"Y": dY}, saved, {"Y": dY_dot}, undotted(dots)))


def named_style(style: Style | str) -> Style:
    """The style of that name."""
    require(
        not isinstance(style, str) or style in STYLES,
        f"a style is a Style, or one of {', '.join(STYLES)}",
        repr(style),
        "another system's name",
        "Style(order, norm, gated, function)",
    )
    return STYLES[style] if isinstance(style, str) else style


def require_layer(style: Style, n_heads: int, n_kv_heads: int, given: dict[str, Tensor | None]) -> None:
    present = {name: t for name, t in given.items() if t is not None}
    require_tensors("transformer_layer", **present)
    require(
        ("W_G" in present) == style.gated,
        f"a feed-forward {'with' if style.gated else 'without'} a gate needs {'W_G' if style.gated else 'no W_G'}",
        f"{'no ' if 'W_G' not in present else ''}W_G for {style}",
        "another system's style",
        "W_G is what the activation acts on (gate_proj), W_U what it multiplies (up_proj)",
    )
    require(
        style.norm == "layer" or not present.keys() & {"shift_1", "shift_2"},
        "RMSNorm has no shift",
        ", ".join(n for n in ("shift_1", "shift_2") if n in present),
        "the parameters of a LayerNorm",
        "a style with norm='layer'",
    )
    X, W_Q, W_K, W_O = given["X"], given["W_Q"], given["W_K"], given["W_O"]
    assert X is not None
    assert W_Q is not None
    assert W_K is not None
    assert W_O is not None
    require(
        X.dim() >= 2 and W_Q.dim() == W_K.dim() == W_O.dim() == 2 and W_O.shape[1] == X.shape[-1],
        "transformer_layer needs X (..., n, d_model) and W_O (h·d_v, d_model)",
        shapes(X=X, W_Q=W_Q, W_O=W_O),
        "W_O is the transpose of nn.Linear.weight",
        "pass layer.weight.mT",
    )
    require(
        n_heads % n_kv_heads == 0 and W_Q.shape[1] * n_kv_heads == W_K.shape[1] * n_heads,
        "transformer_layer needs heads of W_Q and W_K of equal width d_k",
        f"n_heads={n_heads}, n_kv_heads={n_kv_heads}, {shapes(W_Q=W_Q, W_K=W_K)}",
        "grouped key/value heads without n_kv_heads",
        "pass n_kv_heads, the number of heads in W_K",
    )
