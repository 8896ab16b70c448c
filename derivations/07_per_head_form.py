# %% [markdown]
# # 7 The per-head form, and why the two agree
#
# $$dW^Q = X^\top [\, dQ_1 \dots dQ_h\,], \qquad dW^K = X_{\mathrm{kv}}^\top [\, dK_1 \dots dK_h\,]$$
#
# $$dW^V = X_{\mathrm{kv}}^\top [\, dV_1 \dots dV_h\,]$$
#
# with $dQ_i = \tau\, dS_i K_i$, $dK_i = \tau\, dS_i^\top Q_i$ and $dV_i = P_i^\top dO_i$, as in chapter 5,
# for each head by itself.
#
# Chapter 6 wrote the layer with big matrices, most of which is zeros: $\mathcal{K}$ has $h^2$ blocks, of
# which $h$ matter. Programs cut $Q$, $K$, $V$ into heads instead, run chapter 5 on each, and join the
# results. One form is what one derives, the other is what one ships. In this chapter we walk from one to the
# other, and meet the two ways in which cutting and joining goes wrong.
#
# ## Picking a head
#
# $\Pi_i = [0 \dots I \dots 0]$ has an identity in place $i$ and zeros elsewhere. From the left, $\Pi_i A$ is
# block row $i$ of $A$; from the right, $A \Pi_i^\top$ is block column $i$, and $B\, \Pi_i$ writes $B$ into
# the columns of head $i$, with zeros around it. It stands in three widths under one name: $n_k \times h n_k$
# where it acts on keys, $d_k \times h d_k$ and $d_v \times h d_v$ where it acts on the columns of $Q$, $K$
# and of $V$. Its neighbour says which. In code the three are `N_i`, `A_i` and `C_i`.
#
# For two heads, in the numbers of chapter 6 (three queries, four keys, a mask, a query that sees nothing):

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, display, fact
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat
from gradderiv.rules.attention import attention
from gradderiv.rules.blockdiag import blocks, grad_W_K, grad_W_Q, grad_W_V, layer
from gradderiv.rules.multihead import multihead, multihead_vjp

at = Point(n_q=3, n_k=4, d_model=5, d_kv=6, h=2, d_k=7, d_v=9, d_out=11)
X, X_kv = at.free("X", "n_q, d_model"), at.free("X_kv", "n_k, d_kv")
W_Q, W_K = at.free("W_Q", "d_model, h*d_k"), at.free("W_K", "d_kv, h*d_k")
W_V, W_O = at.free("W_V", "d_kv, h*d_v"), at.free("W_O", "h*d_v, d_out")
b_Q, b_K = at.free("b_Q", "h*d_k"), at.free("b_K", "h*d_k")
b_V, b_O = at.free("b_V", "h*d_v"), at.free("b_O", "d_out")
tau, dY = at.free("scale"), at.free("dY", "n_q, d_out")
mask = at.given("mask", torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]]).bool())
weights, biases = (X, W_Q, W_K, W_V, W_O), {"b_Q": b_Q, "b_K": b_K, "b_V": b_V, "b_O": b_O}
options = {"n_heads": 2, "X_kv": X_kv, "scale": tau, "mask": mask, **biases}

B = blocks(*weights, **options)
Q, S, P, calK, calV, calI, calC, D_K, D_V = B.Q, B.S, B.P, B.calK, B.calV, B.calI, B.calC, B.D_K, B.D_V
K, V, Y = (
    at.let("K", X_kv @ W_K + b_K),
    at.let("V", X_kv @ W_V + b_V),
    at.let("Y", layer(*weights, **options)),
)
SCORES, OUTPUT = definition(S, tau * Q @ calK.mT), definition(Y, P @ calV @ W_O + b_O)


def picks(width):
    """Π_1 and Π_2, width × 2·width."""
    one, zero = torch.eye(width), torch.zeros(width, width)
    return at.given("Pi_1", torch.cat([one, zero], 1)), at.given("Pi_2", torch.cat([zero, one], 1))


(N_1, N_2), (A_1, A_2), (C_1, C_2) = picks(4), picks(7), picks(9)  # of widths n_k, d_k, d_v

# %% [markdown]
# ## What 𝓒 (𝓓 ∘ A) is
#
# Chapter 6 ended with $\mathcal{C}\,(\mathcal{D} \circ A)$, in $dW^K$ and in $dW^V$. Two facts about the
# constant matrices turn it into a sum over heads. First, $\mathcal{D} \circ A$ keeps the blocks on the
# diagonal. $\Pi_i^\top \Pi_i$ is the identity on block $i$ and 0 elsewhere, so block $(i, i)$ is kept by one
# such matrix on each side:
#
# $$\mathcal{D} \circ A = \sum_i \Pi_i^\top \Pi_i\, A\, \Pi_i^\top \Pi_i$$
#
# Second, $\mathcal{C} = [I \dots I]$ adds the block rows up, and of block row $i$ alone it makes what it is:
# $\mathcal{C}\, \Pi_i^\top \Pi_i = \Pi_i$. Here for any $A$, $h n_k \times h d_k$:

# %%
A = at.free("A", "h*n_k, h*d_k")
KEPT = fact(
    D_K * A, N_1.mT @ N_1 @ A @ A_1.mT @ A_1 + N_2.mT @ N_2 @ A @ A_2.mT @ A_2, "𝓓 keeps the diagonal blocks"
)
ADDED_1, ADDED_2 = fact(calC @ N_1.mT @ N_1, N_1), fact(calC @ N_2.mT @ N_2, N_2)

line = chain(calC @ (D_K * A), "without a loop")
line(calC @ (N_1.mT @ N_1 @ A @ A_1.mT @ A_1 + N_2.mT @ N_2 @ A @ A_2.mT @ A_2), KEPT)
line(calC @ N_1.mT @ N_1 @ A @ A_1.mT @ A_1 + calC @ N_2.mT @ N_2 @ A @ A_2.mT @ A_2, laws.LINEARITY)
line(N_1 @ A @ A_1.mT @ A_1 + N_2 @ A @ A_2.mT @ A_2, ADDED_1, ADDED_2)
display(line)

# %% [markdown]
# So $\mathcal{C}\,(\mathcal{D} \circ A) = \sum_i \Pi_i\, A\, \Pi_i^\top \Pi_i$: take block $(i, i)$ of $A$,
# and write it into the columns of head $i$. This is how the article that we follow states its results, with
# the sum. The form with $\mathcal{C}$ and $\mathcal{D}$ has nothing to loop over, and the laws of chapter 2
# apply to it; that is why chapter 6 used it.
#
# ## The forward pass, head by head
#
# The heads' own matrices are $Q_i = Q\,\Pi_i^\top$, $K_i = K\,\Pi_i^\top$, $V_i = V\,\Pi_i^\top$ and
# $P_i = P\,\Pi_i^\top$, with dimensions as in chapter 5: $n_q \times d_k$, $n_k \times d_k$,
# $n_k \times d_v$, $n_q \times n_k$.

# %%
Q_1, Q_2 = at.let("Q_1", Q @ A_1.mT), at.let("Q_2", Q @ A_2.mT)
K_1, K_2 = at.let("K_1", K @ A_1.mT), at.let("K_2", K @ A_2.mT)
V_1, V_2 = at.let("V_1", V @ C_1.mT), at.let("V_2", V @ C_2.mT)
P_1, P_2 = at.let("P_1", P @ N_1.mT), at.let("P_2", P @ N_2.mT)
Q_1_IS, P_1_IS, P_2_IS = definition(Q_1), definition(P_1), definition(P_2)

# %% [markdown]
# The scores of head 1 are the first $n_k$ columns of $S$. Block row 1 of $\mathcal{K}$ is $K_1$ in the
# columns of head 1, $\Pi_1 \mathcal{K} = K_1 \Pi_1$, and that is all that is used:

# %%
ROW_1 = fact(calK.mT @ N_1.mT, A_1.mT @ K_1.mT)

line = chain(S @ N_1.mT, "the scores of head 1, in the block form")
line(tau * Q @ calK.mT @ N_1.mT, SCORES)
line(tau * Q @ A_1.mT @ K_1.mT, ROW_1)
line(tau * Q_1 @ K_1.mT, Q_1_IS)
display(line)

# %% [markdown]
# Softmax works on each row of each head by itself: $E\,\mathcal{I}$ in the columns of head 1 is
# $E\,\Pi_1^\top$ times a block of ones. So $P_1$ is the softmax of these scores, and $P_1 V_1$ is what one
# head of chapter 5 returns for $Q_1$, $K_1$, $V_1$. The next cell runs that function, `attention`, and the
# machine compares its value with $P_1 V_1$, and likewise for head 2. Then the whole layer:

# %%
O_1 = at.let("O_1", attention(Q_1, K_1, V_1, scale=tau, mask=mask)[0])
O_2 = at.let("O_2", attention(Q_2, K_2, V_2, scale=tau, mask=mask)[0])
HEAD_1, HEAD_2 = definition(O_1, P_1 @ V_1), definition(O_2, P_2 @ V_2)
BLOCKS_V = fact(calV, N_1.mT @ V_1 @ C_1 + N_2.mT @ V_2 @ C_2, "𝓥, block by block")

line = chain(Y, "the layer")
line(P @ calV @ W_O + b_O, OUTPUT)
line(P @ (N_1.mT @ V_1 @ C_1 + N_2.mT @ V_2 @ C_2) @ W_O + b_O, BLOCKS_V)
line(P @ N_1.mT @ V_1 @ C_1 @ W_O + P @ N_2.mT @ V_2 @ C_2 @ W_O + b_O, laws.LINEARITY)
line(P_1 @ V_1 @ C_1 @ W_O + P_2 @ V_2 @ C_2 @ W_O + b_O, P_1_IS, P_2_IS)
line(O_1 @ C_1 @ W_O + O_2 @ C_2 @ W_O + b_O, HEAD_1, HEAD_2)
display(line)

# %% [markdown]
# $\Pi_i W^O$ is $d_v \times d_{\mathrm{out}}$, the rows of $W^O$ that belong to head $i$. To join the heads
# and multiply by $W^O$ is the same as to let each head write into the output with its own $\Pi_i W^O$, and to
# add up. Heads do not see each other, before or after.
#
# ## The gradients, head by head
#
# $O_i$ enters $Y$ as $O_i\, (\Pi_i W^O)$, so what arrives at head $i$ is, by chapter 3,
# $dO_i = dY\, (\Pi_i W^O)^\top$, $n_q \times d_v$. From there on chapters 4 and 5 say
#
# $$dP_i = dO_i V_i^\top, \qquad dS_i = P_i \circ (dP_i - (P_i \circ dP_i)\, \mathcal{I}_1)$$
#
# where $\mathcal{I}_1$, the $\mathcal{I}$ of a layer with one head, is the $n_k \times n_k$ matrix of ones.
# We show that this $dS_i$ is block column $i$ of the $dS$ of chapter 6. Picking columns goes through an
# entrywise product: $(A \circ B)\,\Pi_i^\top = (A\,\Pi_i^\top) \circ (B\,\Pi_i^\top)$, because both sides
# take the same entries. And the columns of head 1 of $\mathcal{I}$ are ones in the rows of head 1,
# $\mathcal{I}\,\Pi_1^\top = \Pi_1^\top\, \mathcal{I}_1$.

# %%
dP = at.let("dP", dY @ W_O.mT @ calV.mT)
dS = at.let("dS", P * (dP - (P * dP) @ calI))
dO_1, dO_2 = at.let("dO_1", dY @ W_O.mT @ C_1.mT), at.let("dO_2", dY @ W_O.mT @ C_2.mT)
dP_1, dP_2 = at.let("dP_1", dO_1 @ V_1.mT), at.let("dP_2", dO_2 @ V_2.mT)
calI_1 = at.given("calI_1", torch.ones(4, 4))  # n_k n_k
dS_1 = at.let("dS_1", P_1 * (dP_1 - (P_1 * dP_1) @ calI_1))
dS_2 = at.let("dS_2", P_2 * (dP_2 - (P_2 * dP_2) @ calI_1))
dP_IS, dS_IS, dO_1_IS, dP_1_IS = definition(dP), definition(dS), definition(dO_1), definition(dP_1)

ROW_OF_V = fact(calV.mT @ N_1.mT, C_1.mT @ V_1.mT)

line = chain(dP @ N_1.mT, "dP in the columns of head 1")
line(dY @ W_O.mT @ calV.mT @ N_1.mT, dP_IS)
line(dY @ W_O.mT @ C_1.mT @ V_1.mT, ROW_OF_V)
line(dO_1 @ V_1.mT, dO_1_IS)
line(dP_1, dP_1_IS)
display(line)
weights_of_head_1 = line

# %%
centred = dP - (P * dP) @ calI
THROUGH = fact((P * centred) @ N_1.mT, (P @ N_1.mT) * (centred @ N_1.mT), "columns are picked through ∘")
AGAIN = fact((P * dP) @ N_1.mT, (P @ N_1.mT) * (dP @ N_1.mT), "columns are picked through ∘")
ONES = fact(calI @ N_1.mT, N_1.mT @ calI_1)

line = chain(dS @ N_1.mT, "dS in the columns of head 1")
line((P * centred) @ N_1.mT, dS_IS)
line((P @ N_1.mT) * (centred @ N_1.mT), THROUGH)
line((P @ N_1.mT) * (dP @ N_1.mT - (P * dP) @ calI @ N_1.mT), laws.LINEARITY)
line((P @ N_1.mT) * (dP @ N_1.mT - (P * dP) @ N_1.mT @ calI_1), ONES)
line((P @ N_1.mT) * (dP @ N_1.mT - ((P @ N_1.mT) * (dP @ N_1.mT)) @ calI_1), AGAIN)
line(P_1 * (dP @ N_1.mT - (P_1 * (dP @ N_1.mT)) @ calI_1), P_1_IS)
line(P_1 * (dP_1 - (P_1 * dP_1) @ calI_1), weights_of_head_1.cited("as shown for dP"))
line(dS_1, definition(dS_1))
display(line)
scores_of_head_1 = line

# %% [markdown]
# The row sums of head 1 are those of chapter 5. $\mathcal{I}$ has kept the heads apart on the way back, as it
# did on the way there. Head 2 goes the same way, and the machine checks its result as a fact in the next
# cell. With that, the gradient of $W^Q$. Two programs meet in this chain: $dW^Q$ is what `grad_W_Q` of
# chapter 6 returns, and $G_Q$ what `multihead_vjp` returns, which knows no block-diagonal matrix.

# %%
SECOND = fact(dS @ N_2.mT, dS_2, "as shown for head 1")
BLOCKS_K = fact(calK, N_1.mT @ K_1 @ A_1 + N_2.mT @ K_2 @ A_2, "𝓚, block by block")
dQ_1, dQ_2 = at.let("dQ_1", tau * dS_1 @ K_1), at.let("dQ_2", tau * dS_2 @ K_2)
dW_Q = at.let("dW_Q", grad_W_Q(*weights, dY, **options))
dW_K = at.let("dW_K", grad_W_K(*weights, dY, **options))
_, saved = multihead(*weights, **options)
shipped = multihead_vjp(dY, saved)
G_Q, G_K = at.let("G_Q", shipped.W_Q), at.let("G_K", shipped.W_K)

CHAPTER_6 = definition(dW_Q, tau * X.mT @ dS @ calK, "chapter 6")
SHIPPED = definition(
    G_Q, X.mT @ (dQ_1 @ A_1 + dQ_2 @ A_2), "chapter 5 for each head: what multihead_vjp returns"
)

line = chain(dW_Q, "what grad_W_Q returns")
line(tau * X.mT @ dS @ calK, CHAPTER_6)
line(tau * X.mT @ dS @ (N_1.mT @ K_1 @ A_1 + N_2.mT @ K_2 @ A_2), BLOCKS_K)
line(tau * X.mT @ (dS @ N_1.mT @ K_1 @ A_1 + dS @ N_2.mT @ K_2 @ A_2), laws.LINEARITY)
line(tau * X.mT @ (dS_1 @ K_1 @ A_1 + dS_2 @ K_2 @ A_2), scores_of_head_1.cited("as shown for dS"), SECOND)
line(X.mT @ (tau * dS_1 @ K_1 @ A_1 + tau * dS_2 @ K_2 @ A_2), laws.LINEARITY)
line(X.mT @ (dQ_1 @ A_1 + dQ_2 @ A_2), definition(dQ_1), definition(dQ_2))
line(G_Q, SHIPPED)
display(line)

# %% [markdown]
# $dQ_1 \Pi_1 + dQ_2 \Pi_2 = [dQ_1\ dQ_2]$, $n_q \times h d_k$. $G_Q$ is the value of the function that a
# program calls, `multihead_vjp`: it cuts, runs the backward pass of chapter 5 on all heads at once, joins,
# and multiplies by $X^\top$.
#
# For the keys we need block $(i, i)$ of $dS^\top Q$, and find $dS_i^\top Q_i$:

# %%
dK_1, dK_2 = at.let("dK_1", tau * dS_1.mT @ Q_1), at.let("dK_2", tau * dS_2.mT @ Q_2)
CHAPTER_6 = definition(dW_K, tau * X_kv.mT @ calC @ (D_K * (dS.mT @ Q)), "chapter 6")
A = dS.mT @ Q
HEADS = fact(calC @ (D_K * A), N_1 @ A @ A_1.mT @ A_1 + N_2 @ A @ A_2.mT @ A_2, "the sum over heads")
PAIR_1, PAIR_2 = fact(N_1 @ dS.mT, dS_1.mT), fact(N_2 @ dS.mT, dS_2.mT)
SHIPPED = definition(
    G_K, X_kv.mT @ (dK_1 @ A_1 + dK_2 @ A_2), "chapter 5 for each head: what multihead_vjp returns"
)

line = chain(dW_K, "what grad_W_K returns")
line(tau * X_kv.mT @ calC @ (D_K * (dS.mT @ Q)), CHAPTER_6)
line(tau * X_kv.mT @ (N_1 @ dS.mT @ Q @ A_1.mT @ A_1 + N_2 @ dS.mT @ Q @ A_2.mT @ A_2), HEADS)
line(tau * X_kv.mT @ (dS_1.mT @ Q @ A_1.mT @ A_1 + dS_2.mT @ Q @ A_2.mT @ A_2), PAIR_1, PAIR_2)
line(tau * X_kv.mT @ (dS_1.mT @ Q_1 @ A_1 + dS_2.mT @ Q_2 @ A_2), Q_1_IS, definition(Q_2))
line(X_kv.mT @ (tau * dS_1.mT @ Q_1 @ A_1 + tau * dS_2.mT @ Q_2 @ A_2), laws.LINEARITY)
line(X_kv.mT @ (dK_1 @ A_1 + dK_2 @ A_2), definition(dK_1), definition(dK_2))
line(G_K, SHIPPED)
display(line)

# %% [markdown]
# $W^V$ goes the same way, and is exercise 7.1. $W^O$ has no blocks at all: block row $i$ of
# $dW^O = (P\mathcal{V})^\top dY$ is $O_i^\top dY$. So both forms return the same four matrices, whatever the
# numbers in them are. That is more than a comparison on a few examples can say, and it means that we may
# derive in one and ship the other.
#
# What is gained by shipping the second is a factor $h$. For $n_q = n_k = 512$, $d_k = 64$ and $h = 12$:

# %%
n, d, h = 512, 64, 12
print(f"numbers in calK: {h * n * h * d:>12,}   in K_1 ... K_h: {h * n * d:>10,}")
print(f"products in S:   {n * h * d * h * n:>12,}   head by head:   {h * n * d * n:>10,}")

# %% [markdown]
# ## Cutting and joining
#
# A program holds $Q$ as $n_q$ rows of $h d_k$ numbers, one row after the other in memory. Head $i$ is a set
# of *columns*. So one first splits each row into $h$ pieces, and then brings the head to the front:
# `Q.reshape(n, h, d).transpose(0, 1)`. The two steps look as if they could be one, `Q.reshape(h, n, d)`,
# which has the same shape. Here the entry 32 stands for token 3, head 2:

# %%
labelled = torch.tensor(
    [[10 * token + head for head in (1, 1, 2, 2)] for token in (1, 2, 3)]
)  # n = 3, h = d = 2
print("with the transpose:", labelled.reshape(3, 2, 2).transpose(0, 1)[..., 0].tolist())
print("without:           ", labelled.reshape(2, 3, 2)[..., 0].tolist())
print("one token, with:   ", labelled[:1].reshape(1, 2, 2).transpose(0, 1)[..., 0].tolist())
print("one token, without:", labelled[:1].reshape(2, 1, 2)[..., 0].tolist())

# %% [markdown]
# Without the transpose "head 1" holds the first half of all pieces, both heads of the first tokens, and
# "head 2" the second half. If the heads are joined by the inverse reshape, everything has the right shape
# and the right place again; only, the tokens of the first half have never met those of the second. The
# picture shows how much output $t$ moves with input $s$, $\lVert \partial Y_t / \partial X_s \rVert$:


# %%
def influence(split, join, n=6, h=2):
    """How much each output depends on each input, n × n."""
    draw = torch.Generator()
    X, W = torch.randn(n, 4, generator=draw), torch.randn(4, 4, 4, generator=draw) / 2

    def layer_of(X):
        Q, K, V = (split(X @ W[i], n, h) for i in range(3))
        return join(torch.softmax(Q @ K.mT / 2**0.5, -1) @ V, n) @ W[3]

    return torch.autograd.functional.jacobian(layer_of, X).norm(dim=(1, 3))


right = influence(
    lambda A, n, h: A.reshape(n, h, -1).transpose(0, 1), lambda A, n: A.transpose(0, 1).reshape(n, -1)
)
wrong_split = influence(lambda A, n, h: A.reshape(h, n, -1), lambda A, n: A.reshape(n, -1))
alt = "left: every token depends on every other; right: on its own half only"
pictured = {r"\mathrm{with\ the\ transpose}": right, r"\mathrm{without}": wrong_split}
display(heat(pictured, rows="output", columns="input", alt=alt))
print(
    "pairs of tokens that meet:",
    int((right > 0).sum()),
    "with the transpose,",
    int((wrong_split > 0).sum()),
    "without",
)

# %% [markdown]
# ```{admonition} Common mistake: reshape without the transpose
# :class: warning
# `reshape(b, h, n, d)` for `reshape(b, n, h, d).transpose(1, 2)`, in the forward pass and in the backward
# pass alike (1bit-MONSTER #2451, where "head 0 is right by accident"). The shapes are those that one expects,
# and forward and backward agree, so that every derivative check passes. The model trains, with heads that
# mean nothing and a context that is $h$ times shorter. With one token, as in a unit test or in the first step
# of generation, even the values are right. What flags it: a reference for the forward pass; permuting the
# tokens of the input, which must permute the outputs and here does not.
# ```
#
# ```{admonition} Common mistake: heads joined in another order
# :class: warning
# $[O_h \dots O_1]\, W^O$. Applied consistently, from the first step of training on, it is only another name
# for the rows of $W^O$, and harmless until somebody loads weights that were trained elsewhere. In the
# backward pass alone, for instance with $[dQ_h \dots dQ_1]$, it is wrong and quiet: every head learns what
# another one should. The norm of the gradient stays exactly what it was, so that nothing that watches norms
# will notice (measured below). Without biases $\langle dW^Q, W^Q \rangle = \langle dW^K, W^K\rangle$ holds
# for the columns of each head, and that flags it. (A slip that teachers and graders meet.)
# ```
#
# ## With numbers
#
# The example of chapter 6 once more: tokens, weights and the loss $\ell = Y_{11} + Y_{13}$. There $dW^Q$ had
# the first row $(27, -18 \mid 16, -8)/72$. Head by head:

# %%
log2, log3 = torch.tensor([2.0, 3.0], dtype=torch.float64).log().tolist()
tokens = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.float64)
queries = [[0, 0, 0, 0], [log3, 0, 0, log2], [0, log2 / 2, 0, 0], [log2 - log3, 0, log2, -log2]]
keys = [[0, 0, 1, 0], [0, 0, 0, 1], [0.5, 0, 0, 0], [0, 1, 0, 0]]
values = [[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
eye = torch.eye(4, dtype=torch.float64)
numbers = [tokens, *(torch.tensor(W, dtype=torch.float64) for W in (queries, keys, values)), eye]
arriving = torch.zeros(3, 4, dtype=torch.float64)
arriving[0, 0] = arriving[0, 2] = 1

pieces = []
for i, columns in enumerate((slice(0, 2), slice(2, 4)), 1):
    q, k, v = (tokens @ W[:, columns] for W in numbers[1:4])
    p = torch.softmax(q @ k.T, -1)
    dp = arriving[:, columns] @ v.T  # W_O is the identity
    ds = p * (dp - (p * dp).sum(-1, keepdim=True))
    pieces.append(ds @ k)
    print(f"head {i}: 72 dQ, first row", [round(x, 9) for x in (72 * pieces[-1][0]).tolist()])
by_heads = tokens.T @ torch.cat(pieces, -1)
reversed_heads = tokens.T @ torch.cat(pieces[::-1], -1)
in_blocks = grad_W_Q(*numbers, arriving, n_heads=2, scale=1.0)
print("dW_Q, off by less than 1e-12:", bool((by_heads - in_blocks).abs().max() < 1e-12))
share = (reversed_heads - in_blocks).norm() / in_blocks.norm()
print(
    f"heads joined in reverse: norm {reversed_heads.norm():.4f}, not joined so {in_blocks.norm():.4f};",
    f"off by {100 * share:.0f} %",
)

# %% [markdown]
# ## Exercises

# %% [markdown] exercise="7.1" kind="chain" points=4 title="The values, head by head"
# Take $dW^V$ from the block form to the heads. End at
# $X_{\mathrm{kv}}^\top (P_1^\top dO_1\, \Pi_1 + P_2^\top dO_2\, \Pi_2)$. The facts and definitions that you
# need have names: `HEADS`, `PAIR_1`, `PAIR_2`, and `dO_1_IS`, `dO_2_IS`.

# %% given="7.1"
dW_V, dO_2_IS = at.let("dW_V", grad_W_V(*weights, dY, **options)), definition(dO_2)
CHAPTER_6 = definition(dW_V, X_kv.mT @ calC @ (D_V * (P.mT @ dY @ W_O.mT)), "chapter 6")
A = P.mT @ dY @ W_O.mT
HEADS = fact(
    calC @ (D_V * A), N_1 @ A @ C_1.mT @ C_1 + N_2 @ A @ C_2.mT @ C_2, "𝓒 (𝓓 ∘ A) as a sum over heads"
)
PAIR_1, PAIR_2 = fact(N_1 @ P.mT, P_1.mT), fact(N_2 @ P.mT, P_2.mT)

line = chain(dW_V, "what grad_W_V returns")
line(X_kv.mT @ calC @ (D_V * (P.mT @ dY @ W_O.mT)), CHAPTER_6)

# %% answer="7.1"
### BEGIN SOLUTION
A = dY @ W_O.mT
line(X_kv.mT @ (N_1 @ P.mT @ A @ C_1.mT @ C_1 + N_2 @ P.mT @ A @ C_2.mT @ C_2), HEADS)
line(X_kv.mT @ (P_1.mT @ A @ C_1.mT @ C_1 + P_2.mT @ A @ C_2.mT @ C_2), PAIR_1, PAIR_2)
line(X_kv.mT @ (P_1.mT @ dO_1 @ C_1 + P_2.mT @ dO_2 @ C_2), dO_1_IS, dO_2_IS)
### END SOLUTION


# %% checker="7.1"
def another_pair(line):
    """differ"""
    A = P.mT @ dY @ W_O.mT
    line(X_kv.mT @ (N_1 @ A @ C_2.mT @ C_2 + N_2 @ A @ C_1.mT @ C_1), HEADS)


def no_place(line):
    """count dimensions"""
    line(X_kv.mT @ (P_1.mT @ dO_1 + P_2.mT @ dO_2), HEADS, PAIR_1, PAIR_2, dO_1_IS, dO_2_IS)


def one_head_only(line):
    """is not used"""
    A = dY @ W_O.mT
    line(X_kv.mT @ (N_1 @ P.mT @ A @ C_1.mT @ C_1 + N_2 @ P.mT @ A @ C_2.mT @ C_2), HEADS, PAIR_1)


both_heads = X_kv.mT @ (P_1.mT @ dO_1 @ C_1 + P_2.mT @ dO_2 @ C_2)
check_chain(line, ends=both_heads, mistakes=[another_pair, no_place, one_head_only])

# %% [markdown] exercise="7.2" kind="function" points=4 title="Cut and join"
# The forward pass cuts $XW_Q$, $n \times h d$, into $Q$, $h \times n \times d$, and joins $O$ of the same
# kind into $C$, $n \times h d$. Write the backward of both: `cut` makes $dO$ from $dC$, and `join` makes
# $dXW_Q$, the gradient of $XW_Q$, from $dQ$.


# %% answer="7.2"
def cut(dC, h):
    """dO, h × n × d, from dC, n × h·d."""
    ### BEGIN SOLUTION
    return dC.reshape(dC.shape[0], h, -1).transpose(0, 1)
    ### END SOLUTION


def join(dQ):
    """dXW_Q, n × h·d, from dQ, h × n × d."""
    ### BEGIN SOLUTION
    return dQ.transpose(0, 1).reshape(dQ.shape[1], -1)
    ### END SOLUTION


# %% checker="7.2"
def heads_of_a_layer(XW_Q, XW_K, XW_V, h):
    Q, K, V = (XW.reshape(XW.shape[0], h, -1).transpose(0, 1) for XW in (XW_Q, XW_K, XW_V))
    O = torch.softmax(Q @ K.mT, -1) @ V
    return {"Q": Q, "O": O, "C": O.transpose(0, 1).reshape(O.shape[1], -1)}


def cut_by_reshape(dC, h):
    """reshape without the transpose"""
    return dC.reshape(h, dC.shape[0], -1)


def cut_in_reverse(dC, h):
    """heads in another order than they were joined"""
    return dC.reshape(dC.shape[0], h, -1).transpose(0, 1).flip(0)


def join_by_reshape(dQ):
    """reshape without the transpose"""
    return dQ.reshape(dQ.shape[1], -1)


def join_in_reverse(dQ):
    """heads in another order than they were cut"""
    return dQ.flip(0).transpose(0, 1).reshape(dQ.shape[1], -1)


check_functions(
    {"dO": cut, "dXW_Q": join},
    heads_of_a_layer,
    inputs={"XW_Q": "n, h*d", "XW_K": "n, h*d", "XW_V": "n, h*d"},
    sizes=[{"n": 4, "h": 2, "d": 3}, {"n": 3, "h": 5, "d": 2}],
    mistakes={"cut": [cut_by_reshape, cut_in_reverse], "join": [join_by_reshape, join_in_reverse]},
)

# %% [markdown] exercise="7.3" kind="mistake" points=3 title="The sum of all δ"
# Each head has its $\delta_i = \operatorname{rowsum}(P_i \circ dP_i)$, and chapter 5 says that
# $\delta_i = \operatorname{rowsum}(dO_i \circ O_i)$. The sum over the heads,
# $\operatorname{rowsum}(P \circ dP)$, $n_q \times 1$, should then be known from $dY$ and $Y$ alone. One line
# of this derivation is false. Which, and what should stand there? (`NO_BIAS` is what `OUTPUT` says of the
# product alone.)

# %% given="7.3"
NO_BIAS = fact(P @ calV @ W_O, Y - b_O)
wrong = claim((P * (dY @ W_O.mT @ calV.mT)).sum(-1, keepdim=True), "the sum of δ over all heads")
wrong(((P @ calV) * (dY @ W_O.mT)).sum(-1, keepdim=True), laws.ROW_EXCHANGE)
wrong(((P @ calV @ W_O) * dY).sum(-1, keepdim=True), laws.ROW_EXCHANGE)
wrong((Y * dY).sum(-1, keepdim=True), OUTPUT)
display(wrong)

# %% answer="7.3"
### BEGIN SOLUTION
answer = correct(4, ((Y - b_O) * dY).sum(-1, keepdim=True), NO_BIAS)
### END SOLUTION


# %% checker="7.3"
def first_exchange():
    """line 2 follows from line 1"""
    return correct(2, ((dY @ W_O.mT) * (P @ calV)).sum(-1, keepdim=True), laws.ROW_EXCHANGE)


def other_sign():
    """differ"""
    return correct(4, ((Y + b_O) * dY).sum(-1, keepdim=True), OUTPUT)


check_mistake(
    wrong, answer, ends=((Y - b_O) * dY).sum(-1, keepdim=True), mistakes=[first_exchange, other_sign]
)

# %% [markdown]
# **Questions.** 1. Write $dW^Q$ of chapter 6 as a sum over heads with $\Pi_i$, and explain why it is shorter
# than that of $W^K$. 2. With grouped heads (chapter 11) two heads share one $K_j$. Which sum over $i$
# appears in $dK_j$, and which of the facts above is no longer true? 3. Can $\delta$ of each head be known
# from $Y$, $b^O$ and $dY$ alone? (Exercise 7.3 says that their sum can.) 4. Show that
# $\mathcal{C}\,\mathcal{C}^\top = h I$. What is $\mathcal{C}^\top \mathcal{C}$?
