# %% [markdown]
# # 16 The decoder layer
#
# $$H = X + \operatorname{attention}(\operatorname{norm}_1(X)) \qquad
# Y = H + \operatorname{feedforward}(\operatorname{norm}_2(H))$$
#
# A layer of Llama (Touvron et al. 2023): all of $X$, $H$ and $Y$ are $n \times d_{\mathrm{model}}$. Two
# halves of one shape, each with a norm before it and a *residual* path around it. (Llama also turns queries
# and keys by their positions, chapter 12. We leave that out: it stays inside attention.) In transformers'
# `modeling_llama.py`, which the Chinese article of chapter 15 reads:
#
# | line of `LlamaDecoderLayer.forward` | here |
# |---|---|
# | `residual = hidden_states` | $X$ |
# | `hidden_states = self.input_layernorm(hidden_states)` | $N_1 = \operatorname{norm}_1(X)$ |
# | `hidden_states, … = self.self_attn(…)` | $A = \operatorname{attention}(N_1)$ |
# | `hidden_states = residual + hidden_states` | $H = X + A$ |
# | `residual = hidden_states` | $H$ |
# | `hidden_states = self.post_attention_layernorm(hidden_states)` | $N_2 = \operatorname{norm}_2(H)$ |
# | `hidden_states = self.mlp(hidden_states)` | $D = \operatorname{feedforward}(N_2)$ |
# | `hidden_states = residual + hidden_states` | $Y = H + D$ |
#
# (`post_attention_layernorm` is RMSNorm, and stands *before* the feed-forward; the name tells what it comes
# after.) One name, `hidden_states`, holds seven different matrices on the way. Going backwards we need most
# of them again, so each gets a name.
#
# Each part has been derived: attention in chapters 6 and 8, norms in 14, the feed-forward in 15. This chapter
# adds only what joins them, the residual paths, and shows how a long backward pass is put together from
# results that are known already.
#
# ## The parts
#
# The feed-forward is chapter 15's, with the letters
#
# $$G = N_2 W^G \qquad U = N_2 W^U \qquad F = f(G) \circ U \qquad D = F \, W^D$$
#
# where $f$ is SiLU, $G$, $U$ and $F$ are $n \times d_{\mathrm{ff}}$, and the other matrices of the table are
# $n \times d_{\mathrm{model}}$.

# %%
from typing import NamedTuple

import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import picture
from gradderiv.rules.activation import activate, activate_vjp
from gradderiv.rules.blockdiag import blocks
from gradderiv.rules.multihead import multihead, multihead_vjp
from gradderiv.rules.rms_norm import rms_norm, rms_norm_vjp
from gradderiv.rules.transformer import Style, transformer_layer, transformer_layer_vjp

at = Point(n=3, d_model=4, h=2, d_k=5, d_ff=7)
X, dY = at.free("X", "n, d_model"), at.free("dY", "n, d_model")
W_Q, W_K, W_V = (at.free(name, "d_model, h*d_k") for name in ("W_Q", "W_K", "W_V"))
W_O, W_D = at.free("W_O", "h*d_k, d_model"), at.free("W_D", "d_ff, d_model")
W_G, W_U = at.free("W_G", "d_model, d_ff"), at.free("W_U", "d_model, d_ff")
gain_1, gain_2 = at.free("gain_1", "d_model"), at.free("gain_2", "d_model")
tau = at.free("scale")
mask = at.given("mask", torch.ones(3, 3).tril().bool())  # causal
options = {"n_heads": 2, "scale": tau, "mask": mask}


class Parts(NamedTuple):
    """The matrices of a layer, by name."""

    N_1: torch.Tensor
    A: torch.Tensor
    H: torch.Tensor
    N_2: torch.Tensor
    G: torch.Tensor
    U: torch.Tensor
    F: torch.Tensor
    D: torch.Tensor


def parts(X, W_Q, W_K, W_V, W_O, W_G, W_U, W_D, gain_1, gain_2, scale, mask):
    """Llama's layer, part by part."""
    N_1, _ = rms_norm(X, gain_1, eps=1e-5)
    A, _ = multihead(N_1, W_Q, W_K, W_V, W_O, n_heads=2, scale=scale, mask=mask)
    H = X + A
    N_2, _ = rms_norm(H, gain_2, eps=1e-5)
    G, U = N_2 @ W_G, N_2 @ W_U
    F = activate(G, function="silu")[0] * U
    return Parts(N_1, A, H, N_2, G, U, F, F @ W_D)


given = {"X": X, "W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": W_O, "W_G": W_G, "W_U": W_U, "W_D": W_D}
given |= {"gain_1": gain_1, "gain_2": gain_2, "scale": tau, "mask": mask}
llama = {"style": "llama", "n_heads": 2}

N_1, A, H, N_2, G, U, F, D = (at.let(name, x) for name, x in zip(Parts._fields, parts(**given), strict=True))
Y, saved = transformer_layer(**given, **llama)
Y = at.let("Y", Y)
OUTPUT = definition(Y, H + F @ W_D)
RESIDUAL = definition(H, X + A)
GATE, UP = definition(G, N_2 @ W_G), definition(U, N_2 @ W_U)
for matrix in (N_1, A, H, N_2, G, F, D, Y):
    display(matrix)

# %% [markdown]
# ## The input
#
# $X$ moves, and everything moves with it. From chapter 15 we take how $dF = dY \, (W^D)^\top$ passes the
# gate, from 14 how a gradient passes a norm, from 6 and 8 how it passes an attention layer with its
# projections. Each is stated as an equality of two inner products: one side has the true tangents, from dual
# numbers, the other what the function that ships returns (its *vjp*). None of them knows of the others:
#
# $$\langle dF, \dot{F} \rangle = \langle dG, \dot{G} \rangle + \langle dU, \dot{U} \rangle \qquad
# \langle dN_2, \dot{N}_2 \rangle = \langle B_2, \dot{H} \rangle$$
#
# $$\langle dH, \dot{A} \rangle = \langle dN_1, \dot{N}_1 \rangle \qquad
# \langle dN_1, \dot{N}_1 \rangle = \langle B_1, \dot{X} \rangle$$
#
# $B_2$ and $B_1$ ($n \times d_{\mathrm{model}}$) are what comes back out of the two norms. What is new are
# the two places where a residual path leaves: there an inner product splits in two, and later the two parts
# meet again.

# %%
X_dot = at.tangent(X)
Y_dot, _ = differential(transformer_layer, **(given | {"X": moves(X, X_dot)}), **llama, name="Y")
dot = differential(parts, **(given | {"X": moves(X, X_dot)}))

dF = dY @ W_D.mT
fG, kept_G = activate(G, function="silu")
dG, dU = at.let("dG", activate_vjp(dF * U, kept_G).X), at.let("dU", dF * fG)
dN_2 = at.let("dN_2", dG @ W_G.mT + dU @ W_U.mT)
B_2 = at.let("B_2", rms_norm_vjp(dN_2, rms_norm(H, gain_2, eps=1e-5)[1]).X)
dH = at.let("dH", dY + B_2)
dN_1 = at.let("dN_1", multihead_vjp(dH, multihead(N_1, W_Q, W_K, W_V, W_O, **options)[1]).X)
B_1 = at.let("B_1", rms_norm_vjp(dN_1, rms_norm(X, gain_1, eps=1e-5)[1]).X)

THROUGH_GATE = fact(inner(dF, dot.F), inner(dG, dot.G) + inner(dU, dot.U), "the gate, chapter 15")
NORM_2 = fact(inner(dN_2, dot.N_2), inner(B_2, dot.H), "the second norm, chapter 14")
ATTENTION = fact(inner(dH, dot.A), inner(dN_1, dot.N_1), "attention, chapters 6 and 8")
NORM_1 = fact(inner(dN_1, dot.N_1), inner(B_1, X_dot), "the first norm, chapter 14")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, dot.H) + inner(dY, dot.F @ W_D), OUTPUT.moves, laws.LINEARITY)
line(inner(dY, dot.H) + inner(dY @ W_D.mT, dot.F), laws.RIGHT)
line(inner(dY, dot.H) + inner(dG, dot.G) + inner(dU, dot.U), THROUGH_GATE)
line(inner(dY, dot.H) + inner(dG, dot.N_2 @ W_G) + inner(dU, dot.N_2 @ W_U), GATE.moves, UP.moves)
line(inner(dY, dot.H) + inner(dG @ W_G.mT, dot.N_2) + inner(dU @ W_U.mT, dot.N_2), laws.RIGHT)
dN_2 = line.let("dN_2", dG @ W_G.mT + dU @ W_U.mT)
line(inner(dY, dot.H) + inner(dN_2, dot.N_2), laws.LINEARITY)
line(inner(dY, dot.H) + inner(B_2, dot.H), NORM_2)
dH = line.let("dH", dY + B_2)
line(inner(dH, dot.H), laws.LINEARITY)
line(inner(dH, X_dot) + inner(dH, dot.A), RESIDUAL.moves, laws.LINEARITY)
line(inner(dH, X_dot) + inner(dN_1, dot.N_1), ATTENTION)
line(inner(dH, X_dot) + inner(B_1, X_dot), NORM_1)
line(inner(dH + B_1, X_dot), laws.LINEARITY)
line.reads_off(X_dot, transformer_layer_vjp(dY, saved).X)
display(line)
RESULT = line

# %% [markdown]
# $$dH = dY + B_2 \qquad dX = dH + B_1 \qquad n \times d_{\mathrm{model}}$$
#
# Read it from the right: the gradient $dY$ arrives at $X$ *unchanged*, plus what the feed-forward adds, plus
# what attention adds. Note what attention is given: $dH$, which has $B_2$ in it already. The order matters,
# as it did forwards, in reverse.
#
# ## A weight inside
#
# Now any weight of the attention part, $W^Q$ say. Up to $\langle dH, \dot{H} \rangle$ nothing depends on what
# moves below, so the chain above may be cited. Then only $A$ moves in $H = X + A$, and what is left is
# chapter 6 with input $N_1$ and cotangent $dH$: $dP = dH \, (W^O)^\top \mathcal{V}^\top$,
# $dS = P \circ (dP - (P \circ dP) \, \mathcal{I})$, both $n \times h n$, and
# $dQ = \tau \, dS \, \mathcal{K}$, $n \times h d_k$. The result is $dW^Q = N_1^\top dQ$,
# $d_{\mathrm{model}} \times h d_k$.

# %%
W_Q_dot = at.tangent(W_Q)
Y_dot, _ = differential(transformer_layer, **(given | {"W_Q": moves(W_Q, W_Q_dot)}), **llama, name="Y")
dot_Q = differential(parts, **(given | {"W_Q": moves(W_Q, W_Q_dot)}))
heads = blocks(N_1, W_Q, W_K, W_V, W_O, **options)
P, calK, calV, calI = heads.P, heads.calK, heads.calV, heads.calI
dP = at.let("dP", dH @ W_O.mT @ calV.mT)
dQ = at.let("dQ", tau * (P * (dP - (P * dP) @ calI)) @ calK)
QUERIES = fact(inner(dH, dot_Q.A), inner(dQ, N_1 @ W_Q_dot), "attention up to its queries, chapter 6")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
dH = line.let("dH", dY + B_2)
line(inner(dH, dot_Q.H), RESULT.cited("the second half, as above"))
line(inner(dH, dot_Q.A), RESIDUAL.moves)
line(inner(dQ, N_1 @ W_Q_dot), QUERIES)
line(inner(N_1.mT @ dQ, W_Q_dot), laws.LEFT)
line.reads_off(W_Q_dot, transformer_layer_vjp(dY, saved).W_Q)
display(line)

# %% [markdown]
# ```{admonition} Common mistake: a path is missing
# :class: warning
# A name that is read twice gets two gradients, and they add up. In a layer that happens often: $X$ and $H$ at
# their residual paths, $N_1$ by the queries, the keys and the values, $N_2$ by the gate and the other factor.
# Leave one out, and every shape fits, all gradients *above* the place are right, and the loss falls. The
# forward code of `modeling_llama.py` hides it behind one name. What flags it:
# $\langle dN_1, N_1 \rangle = \langle dW^Q, W^Q \rangle + \langle dW^K, W^K \rangle + \langle dW^V, W^V \rangle$
# for the input of attention (proved in chapter 19), and for the residual paths the pairing
# $\langle dX, \dot{X} \rangle$ in any direction. What it costs is measured below: twelve layers, and the
# residual paths forgotten on the way back only. (A classroom slip.)
# ```
#
# ## A stack
#
# Why residual paths? Send a random gradient back through twelve layers with small weights, and ask at the
# input of each layer how much of it is still the gradient that was put in at the top: the cosine between $dX$
# and that $dY$. With the norm *before* each half, as here, $dX = dY + \dots$ at every layer. In the first
# transformers the norm stood *after* the sum (Vaswani et al. 2017), $Y = \operatorname{norm}(X + \dots)$: no
# path goes around the norms, and each takes a projection away. Without residual paths each layer multiplies
# by its Jacobian alone.

# %%
generator = torch.Generator().manual_seed(16)


def normal(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


SHAPES = dict.fromkeys(("W_Q", "W_K", "W_V", "W_O"), (16, 16))
SHAPES |= {"W_G": (16, 24), "W_U": (16, 24), "W_D": (24, 16)}
GAINS = {f"gain_{i}": torch.ones(16, dtype=torch.float64) for i in (1, 2)}


def with_residual(order):
    style = Style(order, "rms", True, "silu")
    return lambda X, w: transformer_layer(X, **w, style=style, n_heads=4)[0]


def without(X, w):
    """The same two halves, one after the other, and nothing around them."""
    N, _ = rms_norm(X, w["gain_1"])
    A, _ = multihead(N, w["W_Q"], w["W_K"], w["W_V"], w["W_O"], n_heads=4)
    N, _ = rms_norm(A, w["gain_2"])
    return (activate(N @ w["W_G"], function="silu")[0] * (N @ w["W_U"])) @ w["W_D"]


def handed_down(layer, layers, X, top):
    """dX at the input of each layer, by autograd."""
    X, inputs = X.clone().requires_grad_(), []
    for w in layers:
        inputs.append(X)
        X = layer(X, w)
    return torch.autograd.grad(X, inputs, top)


layers = [{name: 0.1 * normal(*shape) for name, shape in SHAPES.items()} | GAINS for _ in range(12)]
wide = [{name: W if name in GAINS else 2.5 * W for name, W in w.items()} for w in layers]
bottom, top = normal(8, 16), normal(8, 16)
curves = {}
print("at the input of layer 1   cosine   |dX|/|dY|   weights 2.5 times as large")
for name, layer in {
    "norm before": with_residual("before"),
    "norm after": with_residual("after"),
    "no residual": without,
}.items():
    found = handed_down(layer, layers, bottom, top)
    curves[name] = [float((d * top).sum() / d.norm() / top.norm()) for d in found]
    sizes = [dX.norm() / top.norm() for dX in (found[0], handed_down(layer, wide, bottom, top)[0])]
    print(f"{name:24} {curves[name][0]:7.2f} {sizes[0]:11.2f} {sizes[1]:12.0f}")


def depth(figure):
    figure.set_size_inches(6.5, 2.8)
    axis = figure.subplots()
    for (name, cosines), style in zip(curves.items(), ("-", "--", ":"), strict=True):
        axis.plot(range(1, 13), cosines, style, label=name)
    axis.set_xlabel("input of layer")
    axis.set_ylabel("cosine with $dY$ at the top")
    axis.legend(frameon=False)


display(
    picture(
        depth,
        alt="How much of the gradient at the top is left at the input of each of twelve layers. With "
        "residual paths the cosine stays close to 1 down to the first layer, a little lower where the "
        "norms stand after the sum; without them it is near 0 at once.",
    )
)


# %%
def forgetful(X, w):
    """Right forwards; backwards both residual paths are left out."""
    N, _ = rms_norm(X, w["gain_1"])
    H = X.detach() + multihead(N, w["W_Q"], w["W_K"], w["W_V"], w["W_O"], n_heads=4)[0]
    N, _ = rms_norm(H, w["gain_2"])
    return H.detach() + (activate(N @ w["W_G"], function="silu")[0] * (N @ w["W_U"])) @ w["W_D"]


def train(layer, steps=10):
    """Six layers learn to return the next token: the loss before and after, and how far the first W^Q went."""
    parameters = [{name: W.clone().requires_grad_() for name, W in w.items()} for w in layers[:6]]
    losses = []
    for _ in range(steps + 1):
        Y = bottom
        for w in parameters:
            Y = layer(Y, w)
        loss = (Y - bottom.roll(-1, 0)).square().mean()
        loss.backward()
        losses.append(loss.item())
        for W in (W for w in parameters for W in w.values()):
            W.data, W.grad = W.data - 0.3 * W.grad, None
    return losses[0], losses[-1], (parameters[0]["W_Q"] - layers[0]["W_Q"]).norm().item()


right, wrong = (handed_down(layer, layers, bottom, top) for layer in (with_residual("before"), forgetful))
for i in (12, 8, 4, 1):
    ratio = wrong[i - 1].norm() / right[i - 1].norm()
    print(f"input of layer {i:2}: |dX| without the paths {ratio:.0e} of the right one")
for name, layer in {"right": with_residual("before"), "paths forgotten": forgetful}.items():
    first, last, moved = train(layer)
    print(f"{name:16} loss {first:.2f} -> {last:.2f}   W^Q of layer 1 moved by {moved:.0e}")

# %% [markdown]
# Both orders hand the gradient down nearly as it came; the norms after the sum cost a little. Without the
# paths it still has a norm, but it is another vector: below the last layer nothing is left of the direction
# that was put in. The paths do not hold the *size* down: with weights of standard deviation
# $1/\sqrt{d_{\mathrm{model}}} = 0.25$ in the place of 0.1 (last column) $dX$ grows in all three.
#
# The other lines are the mistake. If the forward pass has the paths and the backward forgets them, the first
# layers hear nothing at all. They do not learn, and yet the loss falls, by what the last layers learn: the
# loss alone does not tell.
#
# ## Heads and lengths
#
# «q_len is kv_len because GQA is not used», the article says of the products $Q K^\top$ and $P V$. The two
# are independent. *Grouped heads* (chapter 11) change the number of heads of $K$ and $V$; the *lengths*
# differ where keys come from elsewhere: from a cache of earlier tokens, or from another sequence. Scores are
# always $h \times n_q \times n_k$. All combinations, from the code:

# %%


def shapes(h_kv, q_len, kv_len, h=4, d_k=3):
    """The shapes of K and of the scores of one layer, heads first."""
    Q, K = torch.zeros(h, q_len, d_k), torch.zeros(h_kv, kv_len, d_k)
    S = Q @ K.repeat_interleave(h // h_kv, 0).mT
    return tuple(K.shape), tuple(S.shape)


print("                          K              scores")
for name, h_kv, q_len, kv_len in (
    ("plain", 4, 5, 5),
    ("grouped heads", 2, 5, 5),
    ("plain, cache of 6", 4, 5, 11),
    ("grouped, cache of 6", 2, 5, 11),
    ("plain, cross-attention", 4, 5, 7),
):
    K_shape, S_shape = shapes(h_kv, q_len, kv_len)
    print(f"{name:24}  {K_shape!s:13}  {S_shape}")

# %% [markdown]
# Backwards each has its own sum. Grouped heads: the gradients of a key head add up over its group. A cache: a
# key collects from later tokens as well, also from those that were computed in a later call. Where a program
# treats the cache as a constant, these terms are lost.
#
# ## Cross-attention
#
# A decoder that reads another sequence, a text to translate or a prompt for an image, has a third part
# between the two: $H' = H + \operatorname{attention}(\operatorname{norm}(H), X_{kv})$. Queries come from $H$,
# keys and values from $X_{kv}$, $n_k \times d_{kv}$, so now $n_q \neq n_k$ without any grouping. By chapter
# 8, with $N = \operatorname{norm}(H)$, $n_q \times d_{\mathrm{model}}$,
#
# $$dN = dQ \, (W^Q)^\top \qquad dX_{kv} = dK \, (W^K)^\top + dV \, (W^V)^\top \qquad n_k \times d_{kv}$$
#
# and there is no residual path for $X_{kv}$. But *every* layer of the decoder reads it. It is one matrix with
# many readers, so its gradient is the sum over all layers. The encoder starts its backward pass only when the
# last of them, the first layer, has added its part. Below, three layers read 7 rows; a program that keeps the
# part of one layer only is far off.

# %%
memory, text = normal(7, 6), normal(5, 16)
readers = [
    [0.3 * normal(*s) for s in ((16, 8), (6, 8), (6, 8), (8, 16))] for _ in range(3)
]  # W_Q, W_K, W_V, W_O


def decoder(X, memory):
    kept = []
    for w in readers:
        N, k = rms_norm(X, GAINS["gain_1"])
        A, a = multihead(N, *w, n_heads=2, X_kv=memory)
        X, kept = X + A, [*kept, (k, a)]
    return X, kept


out, kept = decoder(text, memory)
dX, dX_kv, first = out, torch.zeros_like(memory), None  # the loss is half the sum of squares: dY = Y
for k, a in reversed(kept):
    g = multihead_vjp(dX, a)
    dX, dX_kv = dX + rms_norm_vjp(g.X, k).X, dX_kv + g.X_kv
    first = g.X_kv if first is None else first
leaf = memory.clone().requires_grad_()
(expected,) = torch.autograd.grad(decoder(text, leaf)[0].square().sum() / 2, leaf)
for name, value in (("all three layers", dX_kv), ("the last layer only", first)):
    print(f"{name:20} relative error of dX_kv: {(value - expected).norm() / expected.norm():.0e}")

# %% [markdown]
# ## With numbers
#
# The three tokens of chapter 1 through one layer of Llama: two heads of width 2, causal, $W^Q$ and $W^V$ the
# identity, $W^K$ exchanging neighbouring columns, $W^O$ and $W^G$ the identity, $W^U$ all ones, $W^D$ the
# identity. The loss is the sum of all outputs, so $dY$ is 1 everywhere, and that is what the residual paths
# alone would give.

# %%
EXAMPLE = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.float64)
I4, full = torch.eye(4, dtype=torch.float64), torch.ones(4, 4, dtype=torch.float64)
numbers = {"W_Q": I4, "W_K": I4[[1, 0, 3, 2]], "W_V": I4, "W_O": I4, "W_G": I4, "W_U": full, "W_D": I4}
numbers |= {f"gain_{i}": torch.ones(4, dtype=torch.float64) for i in (1, 2)}
causal = torch.ones(3, 3).tril().bool()

leaf = EXAMPLE.clone().requires_grad_()
value, kept = transformer_layer(EXAMPLE, **numbers, **llama, mask=causal)
g = transformer_layer_vjp(full[:3], kept)
again, _ = transformer_layer(leaf, **numbers, **llama, mask=causal)
(expected,) = torch.autograd.grad(again.sum(), leaf)
for i in range(3):
    print(f"token {i + 1}: dX", *(f"{x:8.4f}" for x in g.X[i].tolist()))
print("differs from autograd by less than 1e-12:", bool((g.X - expected).abs().max() < 1e-12))

# %% [markdown]
# ## Exercises

# %% [markdown] exercise="16.1" kind="chain" points=4 title="Both halves at once"
# GPT-NeoX runs the two halves beside each other: $Y = X + A + D$ with
# $A = \operatorname{attention}(\operatorname{norm}_1(X))$ and
# $D = \operatorname{feedforward}(\operatorname{norm}_2(X))$, all $n \times d_{\mathrm{model}}$.
# `ATTENTION_HALF` says $\langle dY, \dot{A} \rangle = \langle C_1, \dot{X} \rangle$, `FORWARD_HALF` says
# $\langle dY, \dot{D} \rangle = \langle C_2, \dot{X} \rangle$, by the chapters before. Continue to the
# gradient of $X$.

# %% given="16.1"
beside = {"style": Style("parallel", "rms", True, "silu"), "n_heads": 2}
moving = given | {"X": moves(X, X_dot)}


def attention_half(X, W_Q, W_K, W_V, W_O, gain_1, scale, mask, **_):
    N, kept_N = rms_norm(X, gain_1, eps=1e-5)
    A, kept_A = multihead(N, W_Q, W_K, W_V, W_O, n_heads=2, scale=scale, mask=mask)
    return A, (kept_N, kept_A)


def forward_half(X, W_G, W_U, W_D, gain_2, **_):
    N, kept_N = rms_norm(X, gain_2, eps=1e-5)
    G, kept_G = activate(N @ W_G, function="silu")
    return (G * (N @ W_U)) @ W_D, (kept_N, G, N @ W_U, kept_G)


Y_b, saved_b = transformer_layer(**given, **beside)
A_b, (kept_N, kept_A) = attention_half(**given)
D_b, (kept_M, G_b, U_b, kept_G) = forward_half(**given)
A_b, D_b = at.let("A", A_b), at.let("D", D_b)
OUTPUT_b = definition(at.let("Y", Y_b), X + A_b + D_b)

Y_dot, _ = differential(transformer_layer, **moving, **beside, name="Y")
A_dot = differential(lambda **k: attention_half(**k)[0], **moving, name="A")
D_dot = differential(lambda **k: forward_half(**k)[0], **moving, name="D")
dF = dY @ W_D.mT
dM = activate_vjp(dF * U_b, kept_G).X @ W_G.mT + (dF * G_b) @ W_U.mT
C_1 = at.let("C_1", rms_norm_vjp(multihead_vjp(dY, kept_A).X, kept_N).X)
C_2 = at.let("C_2", rms_norm_vjp(dM, kept_M).X)

ATTENTION_HALF = fact(inner(dY, A_dot), inner(C_1, X_dot), "norm and attention, chapters 14 and 6")
FORWARD_HALF = fact(inner(dY, D_dot), inner(C_2, X_dot), "norm and feed-forward, chapters 14 and 15")
line = chain(inner(dY, Y_dot), "the differential of ℓ")

# %% answer="16.1"
### BEGIN SOLUTION
line(inner(dY, X_dot) + inner(dY, A_dot) + inner(dY, D_dot), OUTPUT_b.moves, laws.LINEARITY)
line(inner(dY, X_dot) + inner(C_1, X_dot) + inner(C_2, X_dot), ATTENTION_HALF, FORWARD_HALF)
line(inner(dY + C_1 + C_2, X_dot), laws.LINEARITY)
### END SOLUTION


# %% checker="16.1"
def no_residual(line):
    """differ"""
    line(inner(dY, A_dot) + inner(dY, D_dot), OUTPUT_b.moves, laws.LINEARITY)


def one_after_the_other(line):
    """differ"""
    line(inner(dY, X_dot) + inner(dY, A_dot) + inner(dY, D_dot), OUTPUT_b.moves, laws.LINEARITY)
    line(inner(dY, X_dot) + inner(dY + C_2, A_dot) + inner(C_2, X_dot), FORWARD_HALF)


check_chain(line, X_dot, transformer_layer_vjp(dY, saved_b).X, mistakes=[no_residual, one_after_the_other])

# %% [markdown] exercise="16.2" kind="function" points=4 title="Around a norm"
# A block $Y = X + N W$ with $N = \operatorname{RMSNorm}(X)$, without gain. Write $dX$, $n \times d$, from
# $dY$ ($n \times d$), $N$ ($n \times d$), $r$ ($n \times 1$, the inverse root mean square) and $W$
# ($d \times d$).


# %% answer="16.2"
def block_backward(dY, N, r, W):
    """dX, n × d."""
    ### BEGIN SOLUTION
    dN = dY @ W.mT
    return dY + r * (dN - N * (N * dN).mean(-1, keepdim=True))
    ### END SOLUTION


# %% checker="16.2"
def forward_block(X, W):
    r = torch.rsqrt((X * X).mean(-1, keepdim=True) + 1e-5)
    return {"r": r, "N": X * r, "Y": X + (X * r) @ W}


def path_forgotten(dY, N, r, W):
    """the residual path is missing"""
    dN = dY @ W.mT
    return r * (dN - N * (N * dN).mean(-1, keepdim=True))


def all_through_norm(dY, N, r, W):
    """the residual gradient goes through the norm"""
    dN = dY + dY @ W.mT
    return r * (dN - N * (N * dN).mean(-1, keepdim=True))


def no_projection(dY, N, r, W):
    """the root mean square is taken for a constant"""
    return dY + r * (dY @ W.mT)


check_functions(
    {"dX": block_backward},
    forward_block,
    inputs={"X": "n, d", "W": "d, d"},
    sizes=[{"n": 2, "d": 5}, {"n": 4, "d": 3}],
    mistakes=[path_forgotten, all_through_norm, no_projection],
)

# %% [markdown] exercise="16.3" kind="mistake" points=4 title="Each path its own gradient?"
# Somebody argues: at $Y = H + D$ the gradient $dY$ goes along the residual path, and $B_2$ comes out of the
# feed-forward. So at $H = X + A$ the first goes on along the path, and the second into attention. $C$ is what
# attention and its norm make of $B_2$. Which line is false, and what should stand there?

# %% given="16.3"
Y_dot, _ = differential(transformer_layer, **(given | {"X": moves(X, X_dot)}), **llama, name="Y")
norm_1, attended = rms_norm(X, gain_1, eps=1e-5)[1], multihead(N_1, W_Q, W_K, W_V, W_O, **options)[1]
C = at.let("C", rms_norm_vjp(multihead_vjp(B_2, attended).X, norm_1).X)
ONWARD = fact(inner(B_2, dot.A), inner(C, X_dot), "attention and its norm, chapters 6 and 14")

wrong = claim(inner(dY, Y_dot), "the differential of ℓ")
wrong(inner(dY + B_2, dot.H), RESULT.cited("the second half, as above"))
wrong(inner(dY, X_dot) + inner(B_2, dot.A), RESIDUAL.moves, laws.LINEARITY)
wrong(inner(dY, X_dot) + inner(C, X_dot), ONWARD)
wrong(inner(dY + C, X_dot), laws.LINEARITY)
display(wrong)

# %% answer="16.3"
### BEGIN SOLUTION
answer = correct(3, inner(dY + B_2, X_dot) + inner(dY + B_2, dot.A), RESIDUAL.moves, laws.LINEARITY)
### END SOLUTION


# %% checker="16.3"
def rest(line):
    both_paths = fact(inner(dY + B_2, dot.A), inner(B_1, X_dot), "attention and its norm")
    line(inner(dY + B_2, X_dot) + inner(B_1, X_dot), both_paths)
    line(inner(dY + B_2 + B_1, X_dot), laws.LINEARITY)


def line_four():
    """a line before line 4 is false already"""
    return correct(4, inner(dY, X_dot) + inner(C, X_dot), ONWARD)


def other_way_round():
    """differ"""
    return correct(3, inner(B_2, X_dot) + inner(dY, dot.A), RESIDUAL.moves, laws.LINEARITY)


check_mistake(
    wrong,
    answer,
    X_dot,
    transformer_layer_vjp(dY, saved).X,
    rest=rest,
    mistakes=[line_four, other_way_round],
)

# %% [markdown]
# **Questions.** 1. Which matrices must a program keep from the forward pass to go back through this layer,
# and which of them can it compute again from $X$? 2. $\langle dX, X \rangle$ of the whole layer is not
# $\langle dW^Q, W^Q \rangle + \langle dW^K, W^K \rangle + \langle dW^V, W^V \rangle$. For which matrix in the
# place of $X$ is it? And what is $\langle B_1, X \rangle$ if the norm has $\varepsilon = 0$? 3. In the
# parallel layer of exercise 16.1 one norm may serve both halves (GPT-J). What is its cotangent? 4. With a
# cache, the query has one row and $K$ has thousands. Which of the gradients $dW^Q$, $dW^K$, $dW^V$ need the
# earlier rows of $X$?
