# %% [markdown]
# # 10 One matrix for three: fused layouts
#
# $$[\,Q \,\Vert\, K \,\Vert\, V\,] = (X W_{QKV} + 1\, b_{QKV})\, \Pi^\top \qquad X \;\; n \times d_{model},
# \quad W_{QKV} \;\; d_{model} \times N, \quad \Pi \;\; N \times N$$
#
# ($\Vert$ puts matrices side by side. $\Pi$, without an index, permutes columns.) Self-attention multiplies
# the same $X$ by $W^Q$, by $W^K$ and by $W^V$. One large product is faster than three, so most models store
# one matrix $W_{QKV}$ with $N = h d_k + h d_k + h d_v$ columns. Then somebody has to decide in which *order*
# the columns stand, and here the systems differ. The question of this chapter comes from Stack Overflow,
# "PyTorch Linear operations vary widely after reshaping": someone takes $Q$ out of a fused layer in two ways,
# finds the results 35.6218 apart, and suspects the arithmetic. The arithmetic is innocent. There were two
# orders.
#
# ## The orders that are in use
#
# Let head $i$ own the columns $q_i$ of $W^Q$, $k_i$ of $W^K$ and $v_i$ of $W^V$. With two heads:
#
# | layout | order of the columns | found in |
# |---|---|---|
# | contiguous | $q_1\, q_2 \;\vert\; k_1\, k_2 \;\vert\; v_1\, v_2$ | GPT-2, `nn.MultiheadAttention` |
# | interleaved, per head | $q_1\, k_1\, v_1 \;\vert\; q_2\, k_2\, v_2$ | GPT-NeoX, BLOOM; the question |
# | head-last | in each part column 1 of every head, then column 2 of every head … | the answer |
#
# Each of them is the contiguous one with its columns permuted, and permuting columns is a multiplication
# from the right by a permutation matrix: $W_{QKV} = [\,W^Q \Vert W^K \Vert W^V\,]\, \Pi$. One row of $\Pi$
# for every column of the contiguous matrix, with a single 1 that says where it goes. Here are the three for
# two heads, $d_k = 2$ and $d_v = 3$.

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import pattern
from gradderiv.casebook.fused_layout import by_answer, by_view, question
from gradderiv.rules.blockdiag import blocks, grad_W_K, grad_W_Q, grad_W_V, layer
from gradderiv.rules.fused import fused, fused_vjp
from gradderiv.rules.layouts import convert, fuse, split
from gradderiv.rules.linear import linear


def permutation(layout, width, d_k):
    """Π of a layout, width × width, for two heads."""
    parts = split(torch.eye(width), layout="contiguous", n_heads=2, d_k=d_k)
    return fuse(*parts, layout=layout, n_heads=2)


LAYOUTS = ("contiguous", "interleaved", "head-last")
display(
    pattern(
        {rf"\Pi\;({name})": permutation(name, 14, 2) for name in LAYOUTS},
        alt="Three permutation matrices, 14 × 14. Contiguous is the identity. Interleaved moves whole blocks "
        "of columns, so its ones stand in short diagonals. Head-last mixes columns inside each part.",
    )
)

# %% [markdown]
# ## The question, answered
#
# The question's model has four heads of 32 and reads its fused output by `view(…, 4, 96)`, then cuts 32 +
# 32 + 32: that is *interleaved*. The question's own code takes the first third of the weight, `chunk(3)`:
# that is *contiguous*. The weights of the question are not given, so its number cannot be reproduced; with
# weights that anyone can draw again the mechanism can: the first line below is the question's comparison.
#
# The answer proposes `view(…, 96, 4)`, heads last. In its example each head has width 1, and there it gives
# the numbers that were wanted. It does take the columns of $Q$ for $Q$. But what it calls head $i$ is every
# fourth column: for heads wider than 1 the columns of the four heads are mixed. The numbers of the
# flattened $Q$ do not show it; those per head do.

# %%
with torch.no_grad():
    projection, tokens = question()
    output = projection(tokens)
    first_third = output.split(128, -1)[0]
    viewed, answered = by_view(output)[0], by_answer(output)[0]
    head_of_answer = answered.unflatten(-1, (32, 4))[..., 0]
    print(f"chunk(3) and view(..., 4, 96)     {(first_third - viewed).abs().max():.4f} apart")
    print(f"chunk(3) and the answer, all of Q {(first_third - answered).abs().max():.4f} apart")
    print(
        f"chunk(3) and the answer, head 0   {(first_third[..., :32] - head_of_answer).abs().max():.4f} apart"
    )

# %% [markdown]
# The same with column numbers instead of weights: twelve columns 0 … 11, two heads of width 2. Which
# columns become the queries of head 1 and of head 2?

# %%
columns = torch.arange(12.0)
for name in LAYOUTS:
    q_1, q_2 = split(columns, layout=name, n_heads=2).Q.int().split(2)
    print(f"{name:12s} q_1 = columns {q_1.tolist()}   q_2 = columns {q_2.tolist()}")

# %% [markdown]
# ## The gradient of a permuted matrix
#
# Now the mathematics. To name a part of the contiguous matrix we need selections, as $\Pi_i$ was one for
# heads in chapter 7:
#
# $$J_Q = [\,I\;0\;0\,] \;\; h d_k \times N, \qquad J_K = [\,0\;I\;0\,] \;\; h d_k \times N,
# \qquad J_V = [\,0\;0\;I\,] \;\; h d_v \times N$$
#
# so that $[A \Vert B \Vert C]\, J_Q^\top = A$, and the other way round $[A \Vert B \Vert C] = A J_Q + B
# J_K + C J_V$. Then $W^Q = W_{QKV}\, \Pi^\top J_Q^\top$, and so for $K$ and $V$. We take the interleaved
# layout, values wider than keys, and let the machine confirm that the function which ships reads the
# columns so.

# %%
at = Point(n=3, d_model=4, h=2, d_k=5, d_v=7, d_out=6, N=34)
X, W_O, dY = at.free("X", "n, d_model"), at.free("W_O", "h*d_v, d_out"), at.free("dY", "n, d_out")
W_QKV, b_QKV, tau = at.free("W_QKV", "d_model, N"), at.free("b_QKV", "N"), at.free("scale")
heads = {"layout": "interleaved", "n_heads": 2, "d_k": 5}

Pi = at.given("Pi", permutation("interleaved", 34, 5))
eye = torch.eye(34)
J_Q, J_K, J_V = at.given("J_Q", eye[:10]), at.given("J_K", eye[10:20]), at.given("J_V", eye[20:])

parts = split(W_QKV, **heads)
W_Q, W_K, W_V = at.let("W_Q", parts.Q), at.let("W_K", parts.K), at.let("W_V", parts.V)
QUERIES = definition(W_Q, W_QKV @ Pi.mT @ J_Q.mT)
KEYS = definition(W_K, W_QKV @ Pi.mT @ J_K.mT)
VALUES = definition(W_V, W_QKV @ Pi.mT @ J_V.mT)

b_Q, b_K, b_V = split(b_QKV, **heads)
options = {"n_heads": 2, "b_Q": b_Q, "b_K": b_K, "b_V": b_V, "scale": tau}
weights = (X, W_Q, W_K, W_V, W_O)
dW_Q = at.let("dW_Q", grad_W_Q(*weights, dY, **options))
dW_K = at.let("dW_K", grad_W_K(*weights, dY, **options))
dW_V = at.let("dW_V", grad_W_V(*weights, dY, **options))

Y, saved = fused(X, W_QKV, W_O, b_QKV=b_QKV, scale=tau, **heads)
Y = at.let("Y", Y)
SAME_LAYER = fact(Y, layer(*weights, **options))

# %% [markdown]
# The last line says that the fused layer *is* the layer of chapter 6 with these three weights. So chapter 6
# has done the work: when the weights move, $\dot{\ell} = \langle dW^Q, \dot{W}^Q\rangle + \langle dW^K,
# \dot{W}^K\rangle + \langle dW^V, \dot{W}^V\rangle$, with gradients that are known. What is left is linear.

# %%
W_QKV_dot = at.tangent(W_QKV)
Y_dot, _ = differential(fused, X, moves(W_QKV, W_QKV_dot), W_O, b_QKV=b_QKV, scale=tau, **heads, name="Y")
moved = differential(split, moves(W_QKV, W_QKV_dot), **heads)
W_Q_dot, W_K_dot, W_V_dot = (at.let(f"W_{x}_dot", part) for x, part in zip("QKV", moved, strict=True))
THREE = fact(
    inner(dY, Y_dot),
    inner(dW_Q, W_Q_dot) + inner(dW_K, W_K_dot) + inner(dW_V, W_V_dot),
    "the gradients of chapter 6",
)

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dW_Q, W_Q_dot) + inner(dW_K, W_K_dot) + inner(dW_V, W_V_dot), THREE)
line(
    inner(dW_Q, W_QKV_dot @ Pi.mT @ J_Q.mT)
    + inner(dW_K, W_QKV_dot @ Pi.mT @ J_K.mT)
    + inner(dW_V, W_QKV_dot @ Pi.mT @ J_V.mT),
    QUERIES.moves,
    KEYS.moves,
    VALUES.moves,
)
line(
    inner(dW_Q @ J_Q @ Pi, W_QKV_dot) + inner(dW_K @ J_K @ Pi, W_QKV_dot) + inner(dW_V @ J_V @ Pi, W_QKV_dot),
    laws.RIGHT,
)
line(inner((dW_Q @ J_Q + dW_K @ J_K + dW_V @ J_V) @ Pi, W_QKV_dot), laws.LINEARITY)
line.reads_off(W_QKV_dot, fused_vjp(dY, saved).W_QKV)
display(line)

# %% [markdown]
# Read aloud: put the three gradients side by side, and permute their columns as the weights are permuted.
#
# $$dW_{QKV} = [\,dW^Q \Vert dW^K \Vert dW^V\,]\, \Pi \qquad d_{model} \times N$$
#
# That is no surprise, and it has a reason that holds for much more than attention. $\Pi$ is orthogonal, and
# what is orthogonal moves gradients exactly as it moves variables. Any two matrices, both $d_{model} \times
# N$, have the same inner product before and after:

# %%
A, B = at.free("A", "d_model, N"), at.free("B", "d_model, N")
ORTHOGONAL = fact(Pi @ Pi.mT, at.given("I", eye), "Π Πᵀ = I")

line = chain(inner(A @ Pi, B @ Pi), "two permuted matrices")
line(inner(A @ Pi @ Pi.mT, B), laws.RIGHT)
line(inner(A @ at.given("I", eye), B), ORTHOGONAL)
line(inner(A, B), fact(A @ at.given("I", eye), A))
display(line)

# %% [markdown]
# Take the contiguous gradient for $A$ and the contiguous tangent for $B$. Then $\dot{\ell} = \langle A,
# B\rangle = \langle A \Pi, B \Pi\rangle$, and $B \Pi$ is the tangent of the permuted weights, so $A \Pi$ is
# their gradient.
#
# Consequences one meets in practice. A norm of the gradient, and clipping by it, does not depend on the
# layout. SGD and Adam act entry by entry, so training in one layout is training in the other, with permuted
# states: converting a checkpoint means permuting weights, biases *and* optimizer states with one and the
# same $\Pi$ (`gradderiv.rules.layouts.convert`).
#
# As all three projections are $X$ times something, the gradient is also one product. With $dQ$, $dK$, $dV$
# ($n \times h d_k$, …) side by side, $dW_{QKV} = X^\top [\,dQ \Vert dK \Vert dV\,]\, \Pi$: the fused
# backward pass writes its three results into one buffer, at the places that $\Pi$ says, and multiplies
# once.
#
# The bias is a row of $N$ numbers and is permuted as the columns above it are: $db_{QKV} = [\,db^Q \Vert
# db^K \Vert db^V\,]\, \Pi$, with the gradients of chapter 8.
#
# ```{admonition} Common mistake: two layouts in one program
# :class: warning
# The forward pass cuts [q k v] for each head, the checkpoint stands in $[W^Q \Vert W^K \Vert W^V]$, or the
# reverse. Every shape fits: all layouts have $N$ columns. Autograd differentiates what is written, so no
# check of a derivative sees it; only the output of a model that is known to be right does. Seen in:
# litgpt #2201, slapo #46, and NeMo-RL #2802, where the loss still fell.
# ```
#
# ## The loss still falls
#
# We measure that. A student with an interleaved fused matrix learns a teacher by gradient descent, with the
# closed form above. Then its matrix is read as contiguous, which is what a wrong loader does, and training
# goes on. The third run starts afresh and has the mistake in its backward pass: it leaves out $\Pi$ and
# writes $[\,dW^Q \Vert dW^K \Vert dW^V\,]$, which has the right shape.

# %%
draw = torch.Generator().manual_seed(2)
sizes = ((16, 6, 8), (8, 24), (8, 8))
tokens, teacher, out_weight = (torch.randn(*size, dtype=torch.float64, generator=draw) for size in sizes)
teacher, out_weight = teacher / 8**0.5, out_weight / 8**0.5
target, _ = fused(tokens, teacher, out_weight, layout="interleaved", n_heads=2)


def learn(W, layout, returned, steps=50, rate=0.05):
    """The matrix after gradient descent, and the losses; its gradient arrives in the layout ``returned``."""
    losses = []
    for _ in range(steps + 1):
        Y, saved = fused(tokens, W, out_weight, layout=layout, n_heads=2)
        losses.append((Y - target).square().mean().item())
        dW = fused_vjp((Y - target) / len(tokens), saved).W_QKV
        W = W - rate * convert(dW, source=layout, target=returned, n_heads=2)
    return W, losses


start = 0.3 * torch.randn(8, 24, dtype=torch.float64, generator=draw)
learned, right = learn(start, "interleaved", "interleaved")
_, misread = learn(learned, "contiguous", "contiguous")
_, unpermuted = learn(start, "interleaved", "contiguous")
print("step                       0       1       5      20      50")
for name, losses in (("right", right), ("then misread", misread), ("gradient without Pi", unpermuted)):
    print(f"{name:20s}", "".join(f"{losses[i]:8.4f}" for i in (0, 1, 5, 20, 50)))

# %% [markdown]
# Misreading throws away most of what was learned: the loss jumps from 0.06 to more than four times that.
# Then it falls, as fast as before, because the wrong reading is a perfectly good model, only not the one
# that was trained. Whoever sees this curve alone sees successful training. With the wrong backward pass the
# loss falls as well, by a third, and then rises: some entries of the gradient are right ($q_1$ stands first
# and $v_2$ last in both layouts), and the others are gradients of other columns.
#
# The second mistake shows without any reference, by the identity of chapter 8 for a layer without biases,
# $\langle dW^Q, W^Q \rangle = \langle dW^K, W^K \rangle$:

# %%
Y, saved = fused(tokens, start, out_weight, layout="interleaved", n_heads=2)
dW = fused_vjp(Y - target, saved).W_QKV
for name, found in (
    ("right", dW),
    ("without Pi", convert(dW, source="interleaved", target="contiguous", n_heads=2)),
):
    of_W, of_dW = (split(t, layout="interleaved", n_heads=2) for t in (start, found))
    pairings = [(a * b).sum().item() for a, b in zip(of_dW[:2], of_W[:2], strict=True)]
    print(f"{name:10s} <dW_Q, W_Q> = {pairings[0]:8.4f}   <dW_K, W_K> = {pairings[1]:8.4f}")

# %% [markdown]
# ```{admonition} Common mistake: heads last
# :class: warning
# `view(n, 3·d, h)` and `view(n, h, 3·d)` have the same number of entries. The first makes the head
# the *fastest* index, so head $i$ is every $h$-th column. With heads of width 1, as in the example of the
# answer, or with one head, it is the contiguous layout, and nothing shows; with four heads of 32, head 0 is
# off by 20 in its largest entry (above). A relative of the reshape without a transpose in chapter 7. Test
# with $h > 1$, $d > 1$ and $h \ne d$.
# ```
#
# ## With numbers
#
# Our three tokens have four features, so with two heads of width 2 the fused matrix is $4 \times 12$. Let
# the contiguous matrix have the column number 0 … 11 in its first row and zeros below, so that a column
# tells its name. In the interleaved layout the same columns stand in another order, and $X W$ shows it:
# tokens 1 and 3 have a 1 as their first feature.

# %%
EXAMPLE = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.float64)
contiguous = torch.zeros(4, 12, dtype=torch.float64)
contiguous[0] = torch.arange(12)
for name in LAYOUTS:
    W = convert(contiguous, source="contiguous", target=name, n_heads=2)
    print(f"{name:12s} token 1 has", *(f"{x:3.0f}" for x in (EXAMPLE @ W)[0].tolist()))

# %% [markdown]
# Read the second line as $q_1 k_1 v_1 | q_2 k_2 v_2$: (0, 1), (4, 5), (8, 9), then (2, 3), (6, 7),
# (10, 11).

# %% [markdown]
# ## Exercises

# %% [markdown] exercise="10.1" kind="chain" points=4 title="The input"
# $X$, $n \times d_{model}$, feeds all three projections. Chapter 6 gives $dQ$, $dK$ and $dV$, and the fused
# layer is linear in $X$ up to there. Begin at $\dot{\ell} = \langle dQ, \dot{Q}\rangle + \langle dK,
# \dot{K}\rangle + \langle dV, \dot{V}\rangle$ and continue to the gradient of $X$. The machine has
# `QUERY.moves`, `KEY.moves` and `VALUE.moves`: $Q = X\, W_{QKV}\, \Pi^\top J_Q^\top$ and so on (no bias
# here).

# %% given="10.1"
options = {"n_heads": 2, "scale": tau}
Q, K, V = at.let("Q", X @ W_Q), at.let("K", X @ W_K), at.let("V", X @ W_V)
QUERY = definition(Q, X @ W_QKV @ Pi.mT @ J_Q.mT)
KEY = definition(K, X @ W_QKV @ Pi.mT @ J_K.mT)
VALUE = definition(V, X @ W_QKV @ Pi.mT @ J_V.mT)

B = blocks(X, W_Q, W_K, W_V, W_O, **options)
P, calK, calV = B.P, B.calK, B.calV
dP = dY @ W_O.mT @ calV.mT
dS = P * (dP - (P * dP) @ B.calI)
dQ = at.let("dQ", tau * dS @ calK)
dK = at.let("dK", tau * B.calC @ (B.D_K * (dS.mT @ B.Q)))
dV = at.let("dV", B.calC @ (B.D_V * (P.mT @ dY @ W_O.mT)))

X_dot = at.tangent(X)
Y, saved = fused(X, W_QKV, W_O, scale=tau, **heads)
Y_dot, _ = differential(fused, moves(X, X_dot), W_QKV, W_O, scale=tau, **heads, name="Y")
Q_dot, K_dot, V_dot = (
    at.let(f"{x}_dot", differential(linear, moves(X, X_dot), W)[0])
    for x, W in zip("QKV", (W_Q, W_K, W_V), strict=True)
)
PATHS = inner(dQ, Q_dot) + inner(dK, K_dot) + inner(dV, V_dot)
line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(PATHS, fact(inner(dY, Y_dot), PATHS, "the gradients of chapter 6"))

# %% answer="10.1"
### BEGIN SOLUTION
line(
    inner(dQ, X_dot @ W_QKV @ Pi.mT @ J_Q.mT)
    + inner(dK, X_dot @ W_QKV @ Pi.mT @ J_K.mT)
    + inner(dV, X_dot @ W_QKV @ Pi.mT @ J_V.mT),
    QUERY.moves,
    KEY.moves,
    VALUE.moves,
)
line(
    inner(dQ @ J_Q @ Pi @ W_QKV.mT, X_dot)
    + inner(dK @ J_K @ Pi @ W_QKV.mT, X_dot)
    + inner(dV @ J_V @ Pi @ W_QKV.mT, X_dot),
    laws.RIGHT,
)
line(inner((dQ @ J_Q + dK @ J_K + dV @ J_V) @ Pi @ W_QKV.mT, X_dot), laws.LINEARITY)
### END SOLUTION


# %% checker="10.1"
def one_path(line):
    """must equal the line before it"""
    line(
        inner(dQ, X_dot @ W_QKV @ Pi.mT @ J_Q.mT)
        + inner(dK, X_dot @ W_QKV @ Pi.mT @ J_K.mT)
        + inner(dV, X_dot @ W_QKV @ Pi.mT @ J_V.mT),
        QUERY.moves,
        KEY.moves,
        VALUE.moves,
    )
    line(inner(dV @ J_V @ Pi @ W_QKV.mT, X_dot), laws.RIGHT)


def contiguous_order(line):
    """must equal the line before it"""
    line(
        inner(dQ, X_dot @ W_QKV @ Pi.mT @ J_Q.mT)
        + inner(dK, X_dot @ W_QKV @ Pi.mT @ J_K.mT)
        + inner(dV, X_dot @ W_QKV @ Pi.mT @ J_V.mT),
        QUERY.moves,
        KEY.moves,
        VALUE.moves,
    )
    line(inner((dQ @ J_Q + dK @ J_K + dV @ J_V) @ W_QKV.mT, X_dot), laws.RIGHT, laws.LINEARITY)


check_chain(line, X_dot, fused_vjp(dY, saved).X, mistakes=[one_path, contiguous_order])

# %% [markdown] exercise="10.2" kind="function" points=4 title="Into the layout of the model"
# A program has the three gradients $dW^Q$, $dW^K$ and $dW^V$, $d_{model} \times h d$ each (keys and values
# of one width), and a model that stores its matrix per head, $q_1 k_1 v_1 \,\vert\, q_2 k_2 v_2 \,\vert
# \dots$. Write the gradient of the fused matrix, $d_{model} \times 3 h d$. Reshape, concatenate, reshape;
# no loop is needed.


# %% answer="10.2"
def fused_gradient(dW_Q, dW_K, dW_V, h):
    """dW_QKV, d_model × 3·h·d."""
    ### BEGIN SOLUTION
    parts = [dW.reshape(len(dW), h, -1) for dW in (dW_Q, dW_K, dW_V)]
    return torch.cat(parts, -1).reshape(len(dW_Q), -1)
    ### END SOLUTION


# %% checker="10.2"
def forward(X, W_QKV, h):
    per_head = W_QKV.reshape(len(W_QKV), h, -1).chunk(3, -1)
    W_Q, W_K, W_V = (W.reshape(len(W_QKV), -1) for W in per_head)
    q, k, v = ((X @ W).reshape(len(X), h, -1).transpose(0, 1) for W in (W_Q, W_K, W_V))
    return {"W_Q": W_Q, "W_K": W_K, "W_V": W_V, "O": torch.softmax(q @ k.mT, -1) @ v}


def left_contiguous(dW_Q, dW_K, dW_V, h):
    """the three are side by side, contiguous: the columns are not permuted"""
    return torch.cat([dW_Q, dW_K, dW_V], -1)


def one_by_one(dW_Q, dW_K, dW_V, h):
    """a query column, a key column, a value column in turn: not head by head"""
    return torch.stack([dW_Q, dW_K, dW_V], -1).reshape(len(dW_Q), -1)


check_functions(
    {"dW_QKV": fused_gradient},
    forward,
    inputs={"X": "n, d_model", "W_QKV": "d_model, N"},
    sizes=[{"n": 3, "d_model": 4, "h": 2, "N": 30}, {"n": 2, "d_model": 5, "h": 3, "N": 36}],
    mistakes=[left_contiguous, one_by_one],
)

# %% [markdown] exercise="10.3" kind="mistake" points=4 title="From one layout to another"
# A checkpoint $A = W\, \Pi$ is converted to a model that reads $B = W\, \Pi'$, where $W$ is contiguous and
# $\Pi'$ (printed as Π_new) is the permutation of another layout. So $B = A\, \Pi^\top \Pi'$. The derivation
# starts from the gradient $dB$ and looks for the gradient of the checkpoint, $dA$. All are
# $d_{model} \times N$. One line is false. Which, and what should stand there?

# %% given="10.3"
A, dB = at.free("A", "d_model, N"), at.free("dB", "d_model, N")
Pi_new = at.given("Pi_new", permutation("head-last", 34, 5))
sizes = {"n_heads": 2, "d_k": 5}
B = at.let("B", convert(A, source="interleaved", target="head-last", **sizes))
CONVERTED = definition(B, A @ Pi.mT @ Pi_new)

A_dot = at.tangent(A)
B_dot = differential(convert, moves(A, A_dot), source="interleaved", target="head-last", **sizes, name="B")

wrong = claim(inner(dB, B_dot), "the differential of ℓ")
wrong(inner(dB, A_dot @ Pi.mT @ Pi_new), CONVERTED.moves)
wrong(inner(dB @ Pi_new, A_dot @ Pi.mT), laws.RIGHT)
wrong(inner(dB @ Pi_new @ Pi, A_dot), laws.RIGHT)
display(wrong)

# %% answer="10.3"
### BEGIN SOLUTION
answer = correct(3, inner(dB @ Pi_new.mT, A_dot @ Pi.mT), laws.RIGHT)
### END SOLUTION


# %% checker="10.3"
def line_four():
    """a line before line 4 is false already"""
    return correct(4, inner(dB @ Pi_new @ Pi.mT, A_dot), laws.RIGHT)


def wrong_side():
    """must equal the line before it"""
    return correct(3, inner(dB @ Pi.mT, A_dot @ Pi_new), laws.RIGHT)


def rest(line):
    line(inner(dB @ Pi_new.mT @ Pi, A_dot), laws.RIGHT)


check_mistake(
    wrong,
    answer,
    ends=inner(dB @ Pi_new.mT @ Pi, A_dot),
    rest=rest,
    mistakes=[line_four, wrong_side],
)

# %% [markdown]
# **Questions.** 1. Write $\Pi$ for one head. Which of the three layouts are then the same? 2. Adam divides
# by the root of a running mean of squares, entry by entry. Show that it commutes with $\Pi$. Does an
# optimizer that orthogonalises the gradient of a whole matrix? Does one that treats the gradient of
# each *head* as a matrix? 3. LoRA adds $A B$ to the weight, $A$ $d_{model} \times r$, $B$ $r \times N$.
# Which factor must be converted with the layout? 4. With shared keys and values (chapter 11) the
# interleaved layout becomes $q_1 \dots q_g\, k_1\, v_1$ for each group. Write its $\Pi$ for four query
# heads and two key heads.
