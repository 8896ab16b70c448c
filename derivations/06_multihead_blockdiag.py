# %% [markdown]
# # 6 The whole layer: block-diagonal heads
#
# $$O_i = \operatorname{softmax}(\tau\, Q_i K_i^\top)\, V_i, \qquad Y = [O_1 \dots O_h]\, W^O + b^O$$
#
# (Vaswani et al. 2017, §3.2.2). The layer has $h$ heads. Head $i$ owns $d_k$ columns of $Q = XW^Q + b^Q$,
# which is $n_q \times h d_k$, $d_k$ columns of $K = X_{\mathrm{kv}}W^K + b^K$, $n_k \times h d_k$, and $d_v$
# columns of $V = X_{\mathrm{kv}}W^V + b^V$, $n_k \times h d_v$. The input $X$ is
# $n_q \times d_{\mathrm{model}}$; keys and values come from $X_{\mathrm{kv}}$, $n_k \times d_{\mathrm{kv}}$,
# which is $X$ itself in self-attention. The output $Y$ is $n_q \times d_{\mathrm{out}}$.
#
# Written with an index $i$ everything falls into $h$ cases, and the gradients of $W^Q$, $W^K$, $W^V$ must be
# collected from $h$ pieces. Following the "Transformer Attention Layer gradient"
# (Say-Hello2y/Transformer-attention, 2022) we put all heads side by side into matrices, and the index
# disappears. This chapter derives, each in full,
#
# $$dW^O = (P\mathcal{V})^\top dY$$
#
# $$dW^V = X_{\mathrm{kv}}^\top\, \mathcal{C}\, (\mathcal{D}_V \circ (P^\top dY\, (W^O)^\top))$$
#
# $$dW^Q = \tau\, X^\top dS\, \mathcal{K}$$
#
# $$dW^K = \tau\, X_{\mathrm{kv}}^\top\, \mathcal{C}\, (\mathcal{D}_K \circ (dS^\top Q))$$
#
# and every letter in them is explained next. The next chapter goes back to one head at a time, and shows that
# both forms agree.
#
# ## The matrices
#
# $K_1 \dots K_h$ are the heads' keys, $n_k \times d_k$ each, and $V_1 \dots V_h$ the values,
# $n_k \times d_v$. Put them on the diagonals of two big matrices. For two heads:
#
# $$\mathcal{K} = \begin{bmatrix} K_1 & 0 \\ 0 & K_2 \end{bmatrix}, \qquad
# \mathcal{V} = \begin{bmatrix} V_1 & 0 \\ 0 & V_2 \end{bmatrix}, \qquad
# \mathcal{I} = \begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix}$$
#
# $\mathcal{K}$ is $h n_k \times h d_k$ and $\mathcal{V}$ is $h n_k \times h d_v$. In $\mathcal{I}$,
# $h n_k \times h n_k$, each 1 stands for an $n_k \times n_k$ block of ones, and each 0 for a block of zeros.
# Then
#
# $$Q\, \mathcal{K}^\top = [\, Q_1 K_1^\top \dots Q_h K_h^\top\,]$$
#
# because the zeros keep head $i$'s queries away from the other heads' keys. So the forward pass is
#
# | matrix | dimensions | what it is |
# |---|---|---|
# | $S = \tau\, Q\, \mathcal{K}^\top$ | $n_q \times h n_k$ | the scores of all heads, side by side |
# | $E = \exp(S) \circ \tilde{M}$ | $n_q \times h n_k$ | $\tilde{M} = [M \dots M]$, the mask once per head |
# | $P = E \oslash (E\, \mathcal{I})$ | $n_q \times h n_k$ | $E\,\mathcal{I}$ holds the row sums, head by head |
# | $P\, \mathcal{V}$ | $n_q \times h d_v$ | $[O_1 \dots O_h]$, the heads' outputs side by side |
# | $Y = P\, \mathcal{V}\, W^O + b^O$ | $n_q \times d_{\mathrm{out}}$ | the output |
#
# $E\,\mathcal{I}$ is the matrix of row sums of chapter 4, now head by head, because $\mathcal{I}$ has a block
# of ones for each head. A row that may attend to nothing has $E = 0$; there $P$ is 0 by definition.
#
# ## The block diagonal as a formula
#
# To differentiate $\mathcal{K}$ we need it as a formula in $K$. Write $h$ copies of $K$ under one another,
# and keep only the blocks on the diagonal:
#
# $$\mathcal{K} = \mathcal{D}_K \circ (\mathcal{C}^\top K), \qquad \mathcal{C} = [\, I \dots I\,], \qquad
# \mathcal{D}_K = \begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix}$$
#
# $\mathcal{C}$ is $n_k \times h n_k$: multiplied from the left, $\mathcal{C}^\top$ makes the copies, and
# $\mathcal{C}$ adds $h$ block rows up. $\mathcal{D}_K$ is $h n_k \times h d_k$ with blocks of ones of size
# $n_k \times d_k$, and $\mathcal{D}_V$ the same with $n_k \times d_v$. Both operations are of the kinds that
# chapter 2 can move across an inner product: a matrix factor and an entrywise factor. That is the whole trick
# of this chapter.
#
# Here are all of them, for three queries that attend to four keys from another sequence, with two heads, a
# mask and a query that sees nothing.

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat, pattern
from gradderiv.rules.blockdiag import blocks, grad_W_K, grad_W_O, grad_W_Q, grad_W_V, layer

at = Point(n_q=3, n_k=4, d_model=5, d_kv=6, h=2, d_k=7, d_v=9, d_out=11)
X, X_kv = at.free("X", "n_q, d_model"), at.free("X_kv", "n_k, d_kv")
W_Q, W_K = at.free("W_Q", "d_model, h*d_k"), at.free("W_K", "d_kv, h*d_k")
W_V, W_O = at.free("W_V", "d_kv, h*d_v"), at.free("W_O", "h*d_v, d_out")
b_Q, b_K = at.free("b_Q", "h*d_k"), at.free("b_K", "h*d_k")
b_V, b_O = at.free("b_V", "h*d_v"), at.free("b_O", "d_out")
tau = at.free("scale")
mask = at.given("mask", torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]]).bool())
options = {
    "n_heads": 2,
    "X_kv": X_kv,
    "b_Q": b_Q,
    "b_K": b_K,
    "b_V": b_V,
    "b_O": b_O,
    "scale": tau,
    "mask": mask,
}
dY = at.free("dY", "n_q, d_out")

B = blocks(X, W_Q, W_K, W_V, W_O, **options)
Q, S, P, calK, calV, calI, calC, D_K, D_V = B.Q, B.S, B.P, B.calK, B.calV, B.calI, B.calC, B.D_K, B.D_V
for matrix in (Q, calK, calV, S, P, calI, calC, D_K, D_V):
    display(matrix)


# %%
def ones(n, d):
    return torch.ones(n, d, dtype=torch.float64)


drawn = blocks(
    ones(4, 5), ones(5, 4), ones(5, 4), ones(5, 6), ones(6, 5), n_heads=2
)  # n = 4, d_k = 2, d_v = 3
patterns = {
    r"\mathcal{I}": drawn.calI,
    r"\mathcal{D}_K,\ \mathcal{K}": drawn.D_K,
    r"\mathcal{D}_V,\ \mathcal{V}": drawn.calV,
    r"\mathcal{C}": drawn.calC,
}
display(pattern(patterns, alt="𝓘, 𝓚 and 𝓥 have two blocks each; 𝓒 is two identities"))

# %% [markdown]
# What the program calls $Q$, $\mathcal{K}$, $\mathcal{V}$, $S$ and $Y$ satisfies the equations above, and
# the machine checks that first. All chains of this chapter lean on these seven lines, and on
# $\mathcal{I}^\top = \mathcal{I}$. (A bias is added to every row; chapter 8, where biases move, writes it
# $1\, b$ again.)

# %%
Y = at.let("Y", layer(X, W_Q, W_K, W_V, W_O, **options))
K, V = at.let("K", X_kv @ W_K + b_K), at.let("V", X_kv @ W_V + b_V)
OUTPUT = definition(Y, P @ calV @ W_O + b_O)
SCORES = definition(S, tau * Q @ calK.mT)
QUERIES, KEYS, VALUES = definition(Q, X @ W_Q + b_Q), definition(K), definition(V)
BLOCKS_K, BLOCKS_V = definition(calK, D_K * (calC.mT @ K)), definition(calV, D_V * (calC.mT @ V))
SYMMETRIC = fact(calI.mT, calI)

# %% [markdown]
# ## The output projection
#
# $W^O$ is the last factor. Only $W^O$ moves, and what stands to its left, $P\mathcal{V}$, goes over.

# %%
W_O_dot = at.tangent(W_O)
Y_dot = differential(layer, X, W_Q, W_K, W_V, moves(W_O, W_O_dot), **options, name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, P @ calV @ W_O_dot), OUTPUT.moves)
line(inner((P @ calV).mT @ dY, W_O_dot), laws.LEFT)
line.reads_off(W_O_dot, grad_W_O(X, W_Q, W_K, W_V, W_O, dY, **options))
display(line)

# %% [markdown]
# Dimensions: $(h d_v \times n_q)(n_q \times d_{\mathrm{out}})$. $P\mathcal{V} = [O_1 \dots O_h]$, so this is
# chapter 3 with the concatenated heads as input.
#
# ## The values
#
# Only $V$ moves, so only $\mathcal{V}$, and
# $\dot{\mathcal{V}} = \mathcal{D}_V \circ (\mathcal{C}^\top \dot{V})$. On the way back the entrywise factor
# $\mathcal{D}_V$ goes over as it is, and $\mathcal{C}^\top$ goes over as $\mathcal{C}$.

# %%
W_V_dot = at.tangent(W_V)
Y_dot = differential(layer, X, W_Q, W_K, moves(W_V, W_V_dot), W_O, **options, name="Y")
dot = differential(blocks, X, W_Q, W_K, moves(W_V, W_V_dot), W_O, **options)

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, P @ dot.calV @ W_O), OUTPUT.moves)
line(inner(dY @ W_O.mT, P @ dot.calV), laws.RIGHT)
line(inner(P.mT @ dY @ W_O.mT, dot.calV), laws.LEFT)
line(inner(P.mT @ dY @ W_O.mT, D_V * (calC.mT @ X_kv @ W_V_dot)), BLOCKS_V.moves, VALUES.moves)
line(inner(D_V * (P.mT @ dY @ W_O.mT), calC.mT @ X_kv @ W_V_dot), laws.ENTRYWISE)
line(inner(X_kv.mT @ calC @ (D_V * (P.mT @ dY @ W_O.mT)), W_V_dot), laws.LEFT, note="twice")
line.reads_off(W_V_dot, grad_W_V(X, W_Q, W_K, W_V, W_O, dY, **options))
display(line)
by_the_values = line

# %% [markdown]
# Dimensions: $(d_{\mathrm{kv}} \times n_k)(n_k \times h n_k)(h n_k \times h d_v)$. The matrix
# $P^\top dY (W^O)^\top$ has $h \times h$ blocks. Block $(i, j)$ pairs the probabilities of head $i$ with the
# output gradient of head $j$, and only $i = j$ means anything. $\mathcal{D}_V$ keeps these blocks, and
# $\mathcal{C}$ adds the block rows up, which puts block $i$ into head $i$'s columns. In other words,
#
# $$dV = \mathcal{C}\,(\mathcal{D}_V \circ (P^\top dY\, (W^O)^\top)) = [\, P_1^\top dO_1 \dots P_h^\top dO_h\,]$$
#
# ```{admonition} Common mistake: pairs of heads that do not belong together
# :class: warning
# Leave out $\mathcal{D}_V$, or $\mathcal{D}_K$ below, and every dimension still fits:
# $\mathcal{C}\,(P^\top dY (W^O)^\top)$ is $n_k \times h d_v$, as it should be. The values of each head are
# then credited by the probabilities of *all* heads. With one head nothing is wrong: a check with $h = 1$
# passes, and one with $h = 2$ does not. The training run at the end of the chapter shows how little the loss
# says of it.
# ```
#
# ## Back to the scores
#
# $W^Q$ and $W^K$ act through $S$, and share the way there. It is that of chapter 5, with $\mathcal{I}$ in
# blocks now, so that each head has its own $\delta$. Two matrices on the way get names, both
# $n_q \times h n_k$:
#
# $$dP = dY\, (W^O)^\top \mathcal{V}^\top, \qquad dS = P \circ (dP - (P \circ dP)\, \mathcal{I})$$
#
# The tangent of softmax is cited from chapter 4, for each head by itself. It is checked here against the true
# tangent once more.

# %%
dP = at.let("dP", dY @ W_O.mT @ calV.mT)
dS = at.let("dS", P * (dP - (P * dP) @ calI))
dP_IS, dS_IS = definition(dP), definition(dS)

W_Q_dot = at.tangent(W_Q)
Y_dot = differential(layer, X, moves(W_Q, W_Q_dot), W_K, W_V, W_O, **options, name="Y")
dot = differential(blocks, X, moves(W_Q, W_Q_dot), W_K, W_V, W_O, **options)
SOFTMAX = fact(dot.P, P * (dot.S - (P * dot.S) @ calI), "the tangent of softmax, chapter 4, head by head")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, dot.P @ calV @ W_O), OUTPUT.moves)
line(inner(dY @ W_O.mT @ calV.mT, dot.P), laws.RIGHT, note="with 𝓥 W^O for C")
line(inner(dP, dot.P), dP_IS)
line(inner(dP, P * (dot.S - (P * dot.S) @ calI)), SOFTMAX)
line(inner(P * dP, dot.S) - inner(P * dP, (P * dot.S) @ calI), laws.ENTRYWISE, laws.LINEARITY)
line(inner(P * dP, dot.S) - inner((P * dP) @ calI, P * dot.S), laws.RIGHT, SYMMETRIC)
line(inner(P * (dP - (P * dP) @ calI), dot.S), laws.ENTRYWISE, laws.LINEARITY, note="collect Ṡ")
line(inner(dS, dot.S), dS_IS)
line(inner(dS, tau * dot.Q @ calK.mT), SCORES.moves)
line(inner(tau * dS @ calK, dot.Q), laws.RIGHT)
line(inner(tau * dS @ calK, X @ W_Q_dot), QUERIES.moves)
line(inner(tau * X.mT @ dS @ calK, W_Q_dot), laws.LEFT)
line.reads_off(W_Q_dot, grad_W_Q(X, W_Q, W_K, W_V, W_O, dY, **options))
display(line)
by_the_queries = line

# %% [markdown]
# Dimensions: $(d_{\mathrm{model}} \times n_q)(n_q \times h n_k)(h n_k \times h d_k)$. No sum over heads and
# no $\mathcal{D}$ is needed here: $Q$ is not in blocks, and
#
# $$dQ = \tau\, dS\, \mathcal{K} = \tau\, [\, dS_1 K_1 \dots dS_h K_h\,]$$
#
# puts every head into its own columns.
#
# ```{admonition} Common mistake: one row sum for all heads
# :class: warning
# With the scores of all heads in one row it is tempting to write `(P * dP).sum(-1)` for
# $(P \circ dP)\,\mathcal{I}$. That is one $\delta$ for the whole row: the softmax Jacobian of a vector of
# length $h n_k$, where there are $h$ of length $n_k$. The same slip on one head takes a single Jacobian for
# the flattened matrix and mixes its rows (math.stackexchange 4602822). With $h = 1$ it is invisible. Row sums
# of $dS$ are not 0 any more, head by head, and that flags it at no cost.
# ```
#
# ## The keys
#
# Now $\mathcal{K}$ moves. It stands under a transpose, as $K$ did in chapter 5, and in blocks, as
# $\mathcal{V}$ did above. No new idea is needed; all of them are.

# %%
W_K_dot = at.tangent(W_K)
Y_dot = differential(layer, X, W_Q, moves(W_K, W_K_dot), W_V, W_O, **options, name="Y")
dot = differential(blocks, X, W_Q, moves(W_K, W_K_dot), W_V, W_O, **options)
SOFTMAX = fact(dot.P, P * (dot.S - (P * dot.S) @ calI), "the tangent of softmax, chapter 4, head by head")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, dot.P @ calV @ W_O), OUTPUT.moves)
line(inner(dY @ W_O.mT @ calV.mT, dot.P), laws.RIGHT, note="with 𝓥 W^O for C")
line(inner(dP, dot.P), dP_IS)
line(inner(dP, P * (dot.S - (P * dot.S) @ calI)), SOFTMAX)
line(inner(P * dP, dot.S) - inner(P * dP, (P * dot.S) @ calI), laws.ENTRYWISE, laws.LINEARITY)
line(inner(P * dP, dot.S) - inner((P * dP) @ calI, P * dot.S), laws.RIGHT, SYMMETRIC)
line(inner(P * (dP - (P * dP) @ calI), dot.S), laws.ENTRYWISE, laws.LINEARITY, note="collect Ṡ")
line(inner(dS, dot.S), dS_IS)
line(inner(dS, tau * Q @ dot.calK.mT), SCORES.moves)
line(inner(tau * Q.mT @ dS, dot.calK.mT), laws.LEFT)
line(inner(tau * dS.mT @ Q, dot.calK), laws.TRANSPOSE)
line(inner(tau * dS.mT @ Q, D_K * (calC.mT @ X_kv @ W_K_dot)), BLOCKS_K.moves, KEYS.moves)
line(inner(tau * D_K * (dS.mT @ Q), calC.mT @ X_kv @ W_K_dot), laws.ENTRYWISE)
line(inner(tau * X_kv.mT @ calC @ (D_K * (dS.mT @ Q)), W_K_dot), laws.LEFT, note="twice")
line.reads_off(W_K_dot, grad_W_K(X, W_Q, W_K, W_V, W_O, dY, **options))
display(line)
by_the_keys = line

# %% [markdown]
# Dimensions: $(d_{\mathrm{kv}} \times n_k)(n_k \times h n_k)(h n_k \times h d_k)$. $dS^\top Q$ holds all
# pairs of heads; $\mathcal{D}_K$ keeps the $h$ that belong together, and
#
# $$dK = \tau\, \mathcal{C}\,(\mathcal{D}_K \circ (dS^\top Q)) = \tau\, [\, dS_1^\top Q_1 \dots dS_h^\top Q_h\,]$$
#
# Why does $dW^K$ need $\mathcal{D}_K$, and $dW^Q$ not? In $S = \tau\, Q\, \mathcal{K}^\top$ the zeros of
# $\mathcal{K}$ keep the heads apart. In $dQ = \tau\, dS\, \mathcal{K}$ they still stand there, and do so
# again. In $\langle \tau\, dS^\top Q, \dot{\mathcal{K}} \rangle$ it is $\mathcal{K}$ that moves, and its
# zeros do not: they are no variables, and what $dS^\top Q$ has in their places must be thrown away.
#
# ## The shift under exp
#
# The program computes $\exp(S - m)$ with $m$ the greatest score of its row and head, so that nothing
# overflows. $P$ does not depend on $m$: it cancels in $E \oslash (E\,\mathcal{I})$. The machine does not take
# our word for it. Maxima have no meaning modulo a prime, so $m$ is drawn at random there, twice; every line
# above was checked for both.
#
# ```{admonition} Common mistake: an epsilon in the denominator
# :class: warning
# The program of the article keeps $\exp(S)$ as it is and adds $10^{-15}$ to the denominator. That is harmless
# while the scores are near 0. Where all are near $-34$, $e^{-34} \approx 1.7 \cdot 10^{-15}$ is of the size
# of what was added, and the probabilities of a row no longer add up to 1. Its comparison with autograd
# could not show it: differences are cast to 16-bit integers, and anything below 1 prints as 0. Subtracting
# the maximum makes one term of the denominator equal to 1, and no $\varepsilon$ is needed.
# ```

# %%
row = torch.full((5,), -34.0, dtype=torch.float64).exp()
print(
    "five equal scores of -34 add up to", round((row / (row.sum() + 1e-15)).sum().item(), 2), "instead of 1"
)
print("a difference of 0.9, compared as 16-bit integers:", torch.tensor(0.9).to(torch.int16).item())

# %% [markdown]
# ## With numbers
#
# The three tokens of chapter 1, with two heads of width 2, $X_{\mathrm{kv}} = X$, and $\tau = 1$. The weights
# are chosen so that the exponentials of the scores are small integers, and the values of head 1 are those of
# chapter 5, the last two columns of $X$; the values of head 2 are the first two. $W^O$ is the identity, so
# $Y = [O_1\ O_2]$.

# %%
log2, log3 = torch.tensor([2.0, 3.0], dtype=torch.float64).log().tolist()
tokens = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.float64)
queries = [[0, 0, 0, 0], [log3, 0, 0, log2], [0, log2 / 2, 0, 0], [log2 - log3, 0, log2, -log2]]
keys = [[0, 0, 1, 0], [0, 0, 0, 1], [0.5, 0, 0, 0], [0, 1, 0, 0]]
values = [[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
eye = torch.eye(4, dtype=torch.float64)
weights = [*(torch.tensor(W, dtype=torch.float64) for W in (queries, keys, values)), eye]

example = blocks(tokens, *weights, n_heads=2, scale=1.0)
print("exp S =", example.S.exp().round(decimals=9).tolist()[0])
for line_of_scores in example.S.exp().round(decimals=9).tolist()[1:]:
    print("       ", line_of_scores)
print("P, first row, times 12:", (12 * example.P[0]).round(decimals=9).tolist())

# %% [markdown]
# By hand: the first three columns belong to head 1, the last three to head 2. Their first rows, $(1, 2, 1)$
# and $(1, 1, 1)$, become $(\tfrac14, \tfrac12, \tfrac14)$ and $(\tfrac13, \tfrac13, \tfrac13)$: each head by
# itself adds up to 1.
#
# The loss is the first output of each head for the first token, $\ell = Y_{11} + Y_{13}$. So
# $dP = dY (W^O)^\top \mathcal{V}^\top$ has the first row $(2, 0, 0 \mid 1, 0, 1)$: the first columns of $V_1$
# and $V_2$. The row sums $\delta$ are $2 \cdot \tfrac14 = \tfrac12$ for head 1 and
# $\tfrac13 + \tfrac13 = \tfrac23$ for head 2, and
#
# $$dS = \tfrac{1}{16}\,(6, -4, -2) \ \text{ and }\ \tfrac19\,(1, -2, 1)$$
#
# in its first row; the other rows are 0. Each half adds up to 0. The one $\delta$ for both heads would be
# $\tfrac76$. Then $dS\,\mathcal{K}$ has the first row $(\tfrac38, -\tfrac14 \mid \tfrac29, -\tfrac19)$, and
# row $f$ of $dW^Q$ is that row times feature $f$ of token 1; its features are $(1, 0, 2, 0)$.

# %%
arriving = torch.zeros(3, 4, dtype=torch.float64)
arriving[0, 0] = arriving[0, 2] = 1
arguments, heads = (tokens, *weights, arriving), {"n_heads": 2, "scale": 1.0}
print("72 dW_Q:")
for entries in (72 * grad_W_Q(*arguments, **heads)).round(decimals=9).tolist():
    print("   ", [entry + 0.0 for entry in entries])

# %% [markdown]
# An independent judge for all four: PyTorch's autograd through a plain program, with a loop over heads and no
# block-diagonal matrix.


# %%
def plainly(X, W_Q, W_K, W_V, W_O):
    out = []
    for head in (slice(0, 2), slice(2, 4)):
        Q, K, V = X @ W_Q[:, head], X @ W_K[:, head], X @ W_V[:, head]
        out.append(torch.softmax(Q @ K.T, -1) @ V)
    return torch.cat(out, -1) @ W_O


moving = [W.clone().requires_grad_() for W in weights]
(plainly(tokens, *moving) * arriving).sum().backward()
for name, W, formula in zip("QKVO", moving, (grad_W_Q, grad_W_K, grad_W_V, grad_W_O), strict=True):
    off = (formula(*arguments, **heads) - W.grad).abs().max().item()
    print(f"dW_{name}: greatest entry {W.grad.abs().max():.4f}, off by less than 1e-12: {off < 1e-12}")

# %% [markdown]
# $P$ and $dS$ as pictures, for a loss that asks all three tokens: the two heads stand side by side, and the
# line between them is where $\mathcal{I}$ changes blocks.

# %%
asked = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1], [1, -1, 1, -1]], dtype=torch.float64)
pull = asked @ eye @ example.calV.mT
pulled = example.P * (pull - (example.P * pull) @ example.calI)
alt = "two heads side by side; rows of P sum to 1, rows of dS to 0, per head"
display(heat({"P": example.P, "dS": pulled}, rows="query", columns="key, head by head", cuts=3, alt=alt))

# %% [markdown]
# ## What the slips do to training
#
# Each of the three slips of this chapter replaces one of the constant matrices by a matrix of ones:
# $\mathcal{I}$ (one $\delta$ for all heads), $\mathcal{D}_K$ or $\mathcal{D}_V$ (pairs of heads that do not
# belong together). One sequence of 16 tokens, two heads, gradient descent on the squared distance to the
# output of fixed weights. The forward pass is right in all four runs. Printed are the loss before
# and after, and how far the gradient in the last step is from the right one, relative to its size.

# %%
GRADIENTS = (grad_W_Q, grad_W_K, grad_W_V, grad_W_O)


def train(replaced, steps=120, rate=0.2):
    draw = torch.Generator()
    X = torch.randn(16, 4, generator=draw, dtype=torch.float64)
    fixed, W = torch.randn(2, 4, 4, 4, generator=draw, dtype=torch.float64)
    W, wanted = list(W / 2), layer(X, *(0.6 * fixed), n_heads=2)
    for _ in range(steps):
        right = blocks(X, *W, n_heads=2)
        error = right.P @ right.calV @ W[3] - wanted
        used = right._replace(**{name: torch.ones_like(getattr(right, name)) for name in replaced})
        steps_of = [G.formula(error / 16, used) for G in GRADIENTS]
        W = [w - rate * g for w, g in zip(W, steps_of, strict=True)]
    true = torch.cat([G.formula(error / 16, right) for G in GRADIENTS])
    return (error**2).mean(), (torch.cat(steps_of) - true).norm() / true.norm()


print(f"before training:  loss {train([], steps=1)[0]:.4f}")
for slip in ([], ["calI"], ["D_K"], ["D_V"]):
    loss, off = train(slip)
    print(f"ones for {slip[0] if slip else 'nothing':8} loss {loss:.4f}, gradient off by {100 * off:3.0f} %")

# %% [markdown]
# The loss falls in all four, to between a fiftieth and a twenty-fifth. The gradients are off by half
# of their length, by all of it, by more than twice. Nobody who watches the loss would look for a mistake.
#
# ## Exercises

# %% [markdown] exercise="6.1" kind="mistake" points=4 title="A product that was distributed"
# A derivation of $dW^K$, from where the keys begin to move. The result has the right shape,
# $d_{\mathrm{kv}} \times h d_k$, and one line is false. Which, and what should stand there?

# %% given="6.1"
wrong = claim(inner(dY, Y_dot), "the differential of ℓ")
wrong(inner(tau * dS.mT @ Q, dot.calK), by_the_keys.cited("as in the chapter"))
wrong(inner(tau * dS.mT @ Q, D_K * (calC.mT @ X_kv @ W_K_dot)), BLOCKS_K.moves, KEYS.moves)
wrong(inner(tau * D_K * (dS.mT @ Q), calC.mT @ X_kv @ W_K_dot), laws.ENTRYWISE)
wrong(inner(tau * (calC @ D_K) * (calC @ dS.mT @ Q), X_kv @ W_K_dot), laws.LEFT)
wrong(inner(tau * X_kv.mT @ ((calC @ D_K) * (calC @ dS.mT @ Q)), W_K_dot), laws.LEFT)
display(wrong)

# %% answer="6.1"
### BEGIN SOLUTION
answer = correct(5, inner(tau * calC @ (D_K * (dS.mT @ Q)), X_kv @ W_K_dot), laws.LEFT)
### END SOLUTION


# %% checker="6.1"
def rest(line):
    line(inner(tau * X_kv.mT @ calC @ (D_K * (dS.mT @ Q)), W_K_dot), laws.LEFT)


def the_entrywise_one():
    """line 4 follows from line 3"""
    return correct(4, inner(tau * dS.mT @ Q, calC.mT @ X_kv @ W_K_dot), laws.ENTRYWISE)


def without_blocks():
    """differ"""
    return correct(5, inner(tau * calC @ dS.mT @ Q, X_kv @ W_K_dot), laws.LEFT)


shipped = grad_W_K(X, W_Q, W_K, W_V, W_O, dY, **options)
check_mistake(wrong, answer, W_K_dot, shipped, rest=rest, mistakes=[the_entrywise_one, without_blocks])

# %% [markdown] exercise="6.2" kind="function" points=6 title="grad_W_Q and grad_W_K"
# Write the gradients of $W^Q$ and $W^K$ in block form, in four stages. `calK` is $\mathcal{K}$, and so on;
# `scale` is $\tau$; there are no biases and no mask. Each stage is judged on the true values of the ones
# before it, so a slip costs one stage.


# %% answer="6.2"
def weight_gradient(dY, W_O, calV):
    """dP, n_q × h·n_k."""
    ### BEGIN SOLUTION
    return dY @ W_O.mT @ calV.mT
    ### END SOLUTION


def score_gradient(dP, P, calI):
    """dS, n_q × h·n_k."""
    ### BEGIN SOLUTION
    return P * (dP - (P * dP) @ calI)
    ### END SOLUTION


def query_weight_gradient(X, dS, calK, scale):
    """dW_Q, d_model × h·d_k."""
    ### BEGIN SOLUTION
    return scale * X.mT @ dS @ calK
    ### END SOLUTION


def key_weight_gradient(X_kv, dS, Q, calC, D_K, scale):
    """dW_K, d_kv × h·d_k."""
    ### BEGIN SOLUTION
    return scale * X_kv.mT @ calC @ (D_K * (dS.mT @ Q))
    ### END SOLUTION


# %% checker="6.2"
def two_heads(X, X_kv, W_Q, W_K, W_V, W_O, scale, h):
    B = blocks(X, W_Q, W_K, W_V, W_O, n_heads=h, X_kv=X_kv, scale=scale)
    names = ("Q", "calK", "calV", "calI", "calC", "D_K", "S", "P")
    return {**{name: getattr(B, name) for name in names}, "Y": B.P @ B.calV @ W_O}


def one_sum_for_all_heads(dP, P, calI):
    """one row sum for all heads"""
    return P * (dP - (P * dP).sum(-1, keepdim=True))


def no_row_sum(dP, P, calI):
    """δ dropped"""
    return P * dP


def diagonal_only(dP, P, calI):
    """the diagonal of the softmax Jacobian only"""
    return P * (1 - P) * dP


def no_scale(X, dS, calK, scale):
    """no τ in dW_Q"""
    return X.mT @ dS @ calK


def all_pairs_of_heads(X_kv, dS, Q, calC, D_K, scale):
    """pairs of heads that do not belong together"""
    return scale * X_kv.mT @ calC @ dS.mT @ Q


def scale_twice(X_kv, dS, Q, calC, D_K, scale):
    """τ applied twice"""
    return scale * scale * X_kv.mT @ calC @ (D_K * (dS.mT @ Q))


check_functions(
    {
        "dP": weight_gradient,
        "dS": score_gradient,
        "dW_Q": query_weight_gradient,
        "dW_K": key_weight_gradient,
    },
    two_heads,
    inputs={
        "X": "n_q, d_model",
        "X_kv": "n_k, d_kv",
        "W_Q": "d_model, h*d_k",
        "W_K": "d_kv, h*d_k",
        "W_V": "d_kv, h*d_v",
        "W_O": "h*d_v, d_out",
        "scale": "",
    },
    sizes=[
        {"n_q": 3, "n_k": 4, "d_model": 5, "d_kv": 6, "h": 2, "d_k": 7, "d_v": 9, "d_out": 11},
        {"n_q": 5, "n_k": 2, "d_model": 4, "d_kv": 7, "h": 3, "d_k": 1, "d_v": 6, "d_out": 8},
    ],
    mistakes={
        "score_gradient": [one_sum_for_all_heads, no_row_sum, diagonal_only],
        "query_weight_gradient": [no_scale],
        "key_weight_gradient": [all_pairs_of_heads, scale_twice],
    },
)

# %% [markdown] exercise="6.3" kind="chain" points=6 title="One projection for keys and values"
# Keys and values share their projection, $K = V = X_{\mathrm{kv}} W$ with $W$ $d_{\mathrm{kv}} \times h d$.
# Then $W$ acts on $Y$ by two paths. The first three steps are given. Complete the chain, and end at
# $\langle dW^K + dW^V, \dot{W} \rangle$, with $dW^K$ and $dW^V$ written as in this chapter: a weight that is
# used twice collects the *sum* of two gradients.

# %% given="6.3"
at = Point(n_q=3, n_k=4, d_model=5, d_kv=6, h=2, d=7, d_out=11)
X, X_kv, dY, tau = (
    at.free("X", "n_q, d_model"),
    at.free("X_kv", "n_k, d_kv"),
    at.free("dY", "n_q, d_out"),
    at.free("scale"),
)
W_Q, W, W_O = at.free("W_Q", "d_model, h*d"), at.free("W", "d_kv, h*d"), at.free("W_O", "h*d, d_out")
B = blocks(X, W_Q, W, W, W_O, n_heads=2, X_kv=X_kv, scale=tau)
Q, S, P, calK, calV, calI, calC, D_K, D_V = B.Q, B.S, B.P, B.calK, B.calV, B.calI, B.calC, B.D_K, B.D_V
Y, K = at.let("Y", layer(X, W_Q, W, W, W_O, n_heads=2, X_kv=X_kv, scale=tau)), at.let("K", X_kv @ W)
OUTPUT, SCORES, KEYS = definition(Y, P @ calV @ W_O), definition(S, tau * Q @ calK.mT), definition(K)
BLOCKS_K, BLOCKS_V = definition(calK, D_K * (calC.mT @ K)), definition(calV, D_V * (calC.mT @ K))
dP = at.let("dP", dY @ W_O.mT @ calV.mT)
dS = at.let("dS", P * (dP - (P * dP) @ calI))

W_dot = at.tangent(W)
shared = (X, W_Q, moves(W, W_dot), moves(W, W_dot), W_O)
Y_dot = differential(layer, *shared, n_heads=2, X_kv=X_kv, scale=tau, name="Y")
dot = differential(blocks, *shared, n_heads=2, X_kv=X_kv, scale=tau)
K_dot = at.let("K_dot", X_kv @ W_dot)
for_W_K, for_W_V = by_the_keys.cited("as for W^K"), by_the_values.cited("as for W^V")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, dot.P @ calV @ W_O) + inner(dY, P @ dot.calV @ W_O), OUTPUT.moves, laws.LINEARITY)
line(inner(dS, dot.S) + inner(dY, P @ dot.calV @ W_O), for_W_K)
line(inner(dS, dot.S) + inner(P.mT @ dY @ W_O.mT, dot.calV), for_W_V)

# %% answer="6.3"
### BEGIN SOLUTION
A, tau_A = P.mT @ dY @ W_O.mT, tau * dS.mT @ Q
line(inner(tau_A, dot.calK) + inner(A, dot.calV), for_W_K)
line(
    inner(tau_A, D_K * (calC.mT @ K_dot)) + inner(A, D_V * (calC.mT @ K_dot)), BLOCKS_K.moves, BLOCKS_V.moves
)
line(inner(D_K * tau_A, calC.mT @ K_dot) + inner(D_V * A, calC.mT @ K_dot), laws.ENTRYWISE)
line(inner(calC @ (D_K * tau_A), X_kv @ W_dot) + inner(calC @ (D_V * A), X_kv @ W_dot), laws.LEFT, KEYS.moves)
line(inner(X_kv.mT @ calC @ (D_K * tau_A), W_dot) + inner(X_kv.mT @ calC @ (D_V * A), W_dot), laws.LEFT)
line(inner(tau * X_kv.mT @ calC @ (D_K * (dS.mT @ Q)) + X_kv.mT @ calC @ (D_V * A), W_dot), laws.LINEARITY)
### END SOLUTION


# %% checker="6.3"
def one_path(line):
    """differ"""
    line(inner(P.mT @ dY @ W_O.mT, dot.calV), for_W_K)


def values_from_keys(line):
    """another law was used"""
    line(inner(tau * dS.mT @ Q, dot.calK) + inner(P.mT @ dY @ W_O.mT, dot.calV), laws.TRANSPOSE)


def too_soon(line):
    """not used"""
    line(inner(tau * dS.mT @ Q, dot.calK) + inner(P.mT @ dY @ W_O.mT, dot.calV), for_W_K, for_W_V)


keys_and_values = tau * X_kv.mT @ calC @ (D_K * (dS.mT @ Q)) + X_kv.mT @ calC @ (D_V * (P.mT @ dY @ W_O.mT))
check_chain(line, ends=inner(keys_and_values, W_dot), mistakes=[one_path, values_from_keys, too_soon])

# %% [markdown]
# **Questions.** 1. Which of the four gradients change if $b^K$ does? 2. $\mathcal{K}$ has $h^2$ blocks, of
# which $h$ matter. How many multiplications does $dS\,\mathcal{K}$ take as it is written, and how many head
# by head? 3. Two heads share their keys and values. Which of $\mathcal{C}$, $\mathcal{D}_K$, $\mathcal{D}_V$
# changes, and where does a sum over the group enter? 4. Derive $dW^V$ for a layer whose mask hides
# everything. Which factor makes it 0?
