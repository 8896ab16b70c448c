# %% [markdown]
# # 8 What is left of the layer: biases and inputs
#
# $$db^O = dY^\top 1, \qquad db^Q = dQ^\top 1, \qquad db^V = dV^\top 1, \qquad db^K = 0$$
#
# $$dX = dQ\, (W^Q)^\top + dK\, (W^K)^\top + dV\, (W^V)^\top$$
#
# Chapter 6 derived the gradients of the four weight matrices. The layer (Vaswani et al. 2017, §3.2.2) has
# more arguments: the biases of its projections, rows of $h d_k$, $h d_k$, $h d_v$ and $d_{\mathrm{out}}$
# numbers, and its inputs $X$, $n_q \times d_{\mathrm{model}}$, and $X_{\mathrm{kv}}$,
# $n_k \times d_{\mathrm{kv}}$. The biases matter little, with one instructive exception. $dX$ matters more
# than all the rest: it is what the layer below receives, and an error in it spoils every layer but this one.
#
# The chains are those of chapter 6 with another last step. We take from there
#
# $$dP = dY\, (W^O)^\top \mathcal{V}^\top, \qquad dS = P \circ (dP - (P \circ dP)\, \mathcal{I})$$
#
# both $n_q \times h n_k$, and call the gradients of the projections $dQ = \tau\, dS\, \mathcal{K}$,
# $dK = \tau\, \mathcal{C}\,(\mathcal{D}_K \circ (dS^\top Q))$ and
# $dV = \mathcal{C}\,(\mathcal{D}_V \circ (P^\top dY (W^O)^\top))$, as chapter 6 found them.

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat
from gradderiv.rules.blockdiag import (
    blocks,
    grad_b_K,
    grad_b_O,
    grad_b_Q,
    grad_b_V,
    grad_W_K,
    grad_W_Q,
    grad_W_V,
    grad_X,
    grad_X_kv,
    layer,
)

at = Point(n_q=3, n_k=4, d_model=5, d_kv=6, h=2, d_k=7, d_v=9, d_out=11)
X, X_kv = at.free("X", "n_q, d_model"), at.free("X_kv", "n_k, d_kv")
W_Q, W_K = at.free("W_Q", "d_model, h*d_k"), at.free("W_K", "d_kv, h*d_k")
W_V, W_O = at.free("W_V", "d_kv, h*d_v"), at.free("W_O", "h*d_v, d_out")
b_Q, b_K = at.free("b_Q", "h*d_k"), at.free("b_K", "h*d_k")
b_V, b_O = at.free("b_V", "h*d_v"), at.free("b_O", "d_out")
tau, dY = at.free("scale"), at.free("dY", "n_q, d_out")
mask = at.given("mask", torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]]).bool())
weights = (X, W_Q, W_K, W_V, W_O)
biases = {"b_Q": b_Q, "b_K": b_K, "b_V": b_V, "b_O": b_O}
options = {"n_heads": 2, "X_kv": X_kv, "scale": tau, "mask": mask, **biases}

B = blocks(*weights, **options)
Q, S, P, calK, calV, calI, calC, D_K, D_V = B.Q, B.S, B.P, B.calK, B.calV, B.calI, B.calC, B.D_K, B.D_V
dP = at.let("dP", dY @ W_O.mT @ calV.mT)
dS = at.let("dS", P * (dP - (P * dP) @ calI))

# %% [markdown]
# The definitions of chapter 6, checked again. A bias is added to every row, so as a matrix it is $1\, b$: a
# column of $n_q$ (or $n_k$) ones times the row $b$.

# %%
ones_q, ones_k = at.given("1", torch.ones(3, 1)), at.given("1", torch.ones(4, 1))  # n_q × 1, n_k × 1
Y = at.let("Y", layer(*weights, **options))
K = at.let("K", X_kv @ W_K + ones_k @ b_K.unsqueeze(0))
V = at.let("V", X_kv @ W_V + ones_k @ b_V.unsqueeze(0))
OUTPUT = definition(Y, P @ calV @ W_O + ones_q @ b_O.unsqueeze(0))
QUERIES = definition(Q, X @ W_Q + ones_q @ b_Q.unsqueeze(0))
SCORES, KEYS, VALUES = definition(S, tau * Q @ calK.mT), definition(K), definition(V)
BLOCKS_K, BLOCKS_V = definition(calK, D_K * (calC.mT @ K)), definition(calV, D_V * (calC.mT @ V))

# %% [markdown]
# ## The bias of the output
#
# Chapter 3 again: what is repeated in every row on the way there is summed over the rows on the way back.

# %%
b_O_dot = at.tangent(b_O)
Y_dot = differential(layer, *weights, **{**options, "b_O": moves(b_O, b_O_dot)}, name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, ones_q @ b_O_dot.unsqueeze(0)), OUTPUT.moves)
line(inner(dY.sum(0), b_O_dot), laws.BIAS)
line.reads_off(b_O_dot, grad_b_O(*weights, dY, **options))
display(line)

# %% [markdown]
# ## The bias of the queries
#
# $b^Q$ acts through $Q$ and the scores, as $W^Q$ does. The way back to the scores is that of chapter 6, and
# so is the step from there to $Q$. We write it once more, and cite it from then on.

# %%
b_Q_dot = at.tangent(b_Q)
moving = {**options, "b_Q": moves(b_Q, b_Q_dot)}
Y_dot, dot = differential(layer, *weights, **moving, name="Y"), differential(blocks, *weights, **moving)
SOFTMAX = fact(dot.P, P * (dot.S - (P * dot.S) @ calI), "the tangent of softmax, chapter 4, head by head")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, dot.P @ calV @ W_O), OUTPUT.moves)
line(inner(dP, dot.P), laws.RIGHT, definition(dP))
line(inner(dP, P * (dot.S - (P * dot.S) @ calI)), SOFTMAX)
line(inner(P * dP, dot.S) - inner(P * dP, (P * dot.S) @ calI), laws.ENTRYWISE, laws.LINEARITY)
line(inner(P * dP, dot.S) - inner((P * dP) @ calI, P * dot.S), laws.RIGHT, fact(calI.mT, calI))
line(inner(P * (dP - (P * dP) @ calI), dot.S), laws.ENTRYWISE, laws.LINEARITY)
line(inner(dS, dot.S), definition(dS))
line(inner(dS, tau * dot.Q @ calK.mT), SCORES.moves)
line(inner(tau * dS @ calK, dot.Q), laws.RIGHT)
dQ = line.let("dQ", tau * dS @ calK)
line(inner(dQ, ones_q @ b_Q_dot.unsqueeze(0)), QUERIES.moves)
line(inner(dQ.sum(0), b_Q_dot), laws.BIAS)
line.reads_off(b_Q_dot, grad_b_Q(*weights, dY, **options))
display(line)
through_scores = line

# %% [markdown]
# A mean in the place of this sum is the mistake of chapter 3. In the layer it is flagged by an identity that
# needs no derivative. Both sides are what exercise 5.1 calls $\langle dQ, Q\rangle = \langle dK, K\rangle$,
# with $Q = XW^Q + 1\,b^Q$ and $K = X_{\mathrm{kv}}W^K + 1\,b^K$ written out, and it holds head by head:
#
# $$\langle dW^Q, W^Q\rangle + \langle db^Q, b^Q\rangle = \langle dW^K, W^K\rangle + \langle db^K, b^K\rangle$$
#
# ## The bias of the values
#
# It acts through $\mathcal{V}$, past the softmax, as $W^V$ does in chapter 6. Only the last factor is
# another.

# %%
b_V_dot = at.tangent(b_V)
moving = {**options, "b_V": moves(b_V, b_V_dot)}
Y_dot, dot = differential(layer, *weights, **moving, name="Y"), differential(blocks, *weights, **moving)
V_dot = at.let("V_dot", ones_k @ b_V_dot.unsqueeze(0))

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, P @ dot.calV @ W_O), OUTPUT.moves)
line(inner(P.mT @ dY @ W_O.mT, dot.calV), laws.RIGHT, laws.LEFT)
line(inner(P.mT @ dY @ W_O.mT, D_V * (calC.mT @ V_dot)), BLOCKS_V.moves)
line(inner(D_V * (P.mT @ dY @ W_O.mT), calC.mT @ V_dot), laws.ENTRYWISE)
line(inner(calC @ (D_V * (P.mT @ dY @ W_O.mT)), V_dot), laws.LEFT)
dV = line.let("dV", calC @ (D_V * (P.mT @ dY @ W_O.mT)))
line(inner(dV, ones_k @ b_V_dot.unsqueeze(0)), VALUES.moves)
line(inner(dV.sum(0), b_V_dot), laws.BIAS)
line.reads_off(b_V_dot, grad_b_V(*weights, dY, **options))
display(line)
through_values = line

# %% [markdown]
# $db^V = dV^\top 1$. Since the rows of $P$ add up to 1, $b^V$ comes out of every head unchanged,
# $P \mathcal{V}$ contains it as it is, and $b^V$ and $b^O$ do the same work: $b^V W^O$ could be added to
# $b^O$. (Not in a row that sees nothing: there $P = 0$.)
#
# ## The bias of the keys
#
# This is the odd one. $b^K$ adds the same vector to every key, and so the same number to every score of a
# row: $\tau \langle q_i, k_j + b\rangle = \tau\langle q_i, k_j\rangle + \tau \langle q_i, b\rangle$, and the
# second term does not depend on $j$. Softmax does not see a shift of its row. So nothing depends on $b^K$,
# and $db^K = 0$ whatever the loss.
#
# Now with the machine, in two steps. First, the scores move by one number for each row and head, repeated
# over the head's keys. $H$, $h \times h n_k$, has row $i$ equal to 1 over the keys of head $i$ and does the
# repeating, and $R$, $h \times h d_k$, has row $i$ equal to 1 in the columns of head $i$. All rows of a block
# of $\dot{\mathcal{K}}$ are equal to $\dot{b}^K$ in the columns of that head, so
# $\dot{\mathcal{K}} = H^\top (R \circ (1\, \dot{b}^K))$:

# %%
b_K_dot = at.tangent(b_K)
dot = differential(blocks, *weights, **{**options, "b_K": moves(b_K, b_K_dot)})
ones_h = at.given("1", torch.ones(2, 1))  # h × 1
R = at.given("R", torch.kron(torch.eye(2), torch.ones(1, 7)))  # h h·d_k: row i is 1 in the columns of head i
H = at.given("H", torch.kron(torch.eye(2), torch.ones(1, 4)))  # h h·n_k: repeats a number over a head's keys
one_row = b_K_dot.unsqueeze(0)  # 1 h·d_k
block = D_K * (calC.mT @ ones_k @ one_row)  # h·n_k h·d_k, what 𝓚 moves along
EQUAL_ROWS = fact(block.mT, (R * (ones_h @ one_row)).mT @ H, "the rows of a block are equal")

line = chain(dot.S, "the tangent of the scores along ḃ^K")
line(tau * Q @ dot.calK.mT, SCORES.moves)
line(tau * Q @ block.mT, BLOCKS_K.moves, KEYS.moves)
line(tau * Q @ (R * (ones_h @ one_row)).mT @ H, EQUAL_ROWS)
display(line)

# %% [markdown]
# $Q\,(R \circ (1\,\dot{b}^K))^\top$ is $n_q \times h$: one number for each query and head. What is constant
# along the keys of a head comes out of its row sums,
# $(P \circ \dot{S})\,\mathcal{I} = \dot{S} \circ (P\,\mathcal{I})$, and $P\,\mathcal{I}$ is 1 wherever $P$ is
# not 0. Second, then, the two terms of $\dot{P} = P \circ \dot{S} - P \circ ((P \circ \dot{S})\,\mathcal{I})$
# are the same:

# %%
CONSTANT = fact((P * dot.S) @ calI, dot.S * (P @ calI), "Ṡ is constant in a row of a head")
SUMS_TO_ONE = fact(P * (P @ calI), P, "a row of P sums to 1, or is 0")

line = chain(P * dot.S, "the first term of Ṗ = P ∘ Ṡ − P ∘ ((P ∘ Ṡ) 𝓘)")
line(P * (P @ calI) * dot.S, SUMS_TO_ONE)
line(P * ((P * dot.S) @ calI), CONSTANT)
line.vanishes("b_K", grad_b_K(*weights, dY, **options))
display(line)

# %% [markdown]
# $\dot{P} = 0$, the output does not move, and the function that ships returns 0 in every entry, exactly. In
# floating point it returns noise instead, and so does autograd. A comparison of noise with noise finds that
# they differ:

# %%
draw = torch.Generator()
shapes = ((5, 6), (6, 4), (6, 4), (6, 4), (4, 6))  # X, W_Q, W_K, W_V, W_O
floats = [torch.randn(*s, generator=draw, dtype=torch.float64) for s in shapes]
bias, arriving = (
    torch.randn(4, generator=draw, dtype=torch.float64),
    torch.randn(5, 6, generator=draw, dtype=torch.float64),
)
bias.requires_grad_()
(layer(*floats, n_heads=2, b_K=bias) * arriving).sum().backward()
formula = grad_b_K(*floats, arriving, n_heads=2, b_K=bias.detach())
print("both below 1e-13:", bool(max(formula.abs().max(), bias.grad.abs().max()) < 1e-13))
print("relative difference above 1 %:", bool((formula - bias.grad).norm() > 0.01 * bias.grad.norm()))

# %% [markdown]
# There is a shorter proof for those who know $dK$. For head $i$,
# $db^K_i = dK_i^\top 1 = \tau\, Q_i^\top (dS_i 1)$, and the rows of $dS_i$ sum to 0 (chapter 4). The long one
# says more: not the gradient alone is 0, nothing at all depends on $b^K$.
#
# ```{admonition} Common mistake: an alarm at the bias of the keys
# :class: warning
# A checker that divides by the size of the gradient reports a fault in $b^K$ in every correct program. One
# that adds an absolute tolerance does not, and then accepts wrong gradients that are small, too. The remedy
# is to know that the true value is 0, and to test that the result is small *beside the terms that cancel in
# it*. The zero is also a test of others: a row sum that was dropped from $dS$ makes $db^K$ large at once.
# ```
#
# $b^K$ comes alive where what it adds to a score depends on the key: after RoPE (chapter 12), which turns it
# by another angle at each key; after a norm on the keys; under a soft cap, which bends every score
# differently. Masks, additive biases and grouped heads change nothing. Many models leave all these biases
# out, and lose nothing with $b^K$.
#
# ## The inputs: two paths
#
# $X_{\mathrm{kv}}$ feeds the keys and the values, so two paths lead to it, and its gradient has two terms.
# Each is the gradient of $K$ or $V$, sent through chapter 3. Lines of the two chains above are cited: they
# say what holds whatever moves $S$ and $\mathcal{V}$, and the machine checks that it holds here.

# %%
X_kv_dot = at.tangent(X_kv)
moving = {**options, "X_kv": moves(X_kv, X_kv_dot)}
Y_dot, dot = differential(layer, *weights, **moving, name="Y"), differential(blocks, *weights, **moving)
K_dot, V_dot = at.let("K_dot", X_kv_dot @ W_K), at.let("V_dot", X_kv_dot @ W_V)
as_before, as_for_b_V = through_scores.cited("as for b^Q"), through_values.cited("as for b^V")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, dot.P @ calV @ W_O) + inner(dY, P @ dot.calV @ W_O), OUTPUT.moves, laws.LINEARITY)
line(inner(dS, dot.S) + inner(dY, P @ dot.calV @ W_O), as_before)
dV = line.let("dV", calC @ (D_V * (P.mT @ dY @ W_O.mT)))
line(inner(dS, dot.S) + inner(dV, V_dot), as_for_b_V)
line(inner(dS, tau * Q @ dot.calK.mT) + inner(dV, V_dot), SCORES.moves)
line(inner(tau * dS.mT @ Q, dot.calK) + inner(dV, V_dot), laws.LEFT, laws.TRANSPOSE)
line(inner(tau * dS.mT @ Q, D_K * (calC.mT @ K_dot)) + inner(dV, V_dot), BLOCKS_K.moves)
line(inner(tau * D_K * (dS.mT @ Q), calC.mT @ K_dot) + inner(dV, V_dot), laws.ENTRYWISE)
line(inner(tau * calC @ (D_K * (dS.mT @ Q)), K_dot) + inner(dV, V_dot), laws.LEFT)
dK = line.let("dK", tau * calC @ (D_K * (dS.mT @ Q)))
line(inner(dK, X_kv_dot @ W_K) + inner(dV, X_kv_dot @ W_V), KEYS.moves, VALUES.moves)
line(inner(dK @ W_K.mT, X_kv_dot) + inner(dV @ W_V.mT, X_kv_dot), laws.RIGHT)
line(inner(dK @ W_K.mT + dV @ W_V.mT, X_kv_dot), laws.LINEARITY)
line.reads_off(X_kv_dot, grad_X_kv(*weights, dY, **options))
display(line)
through_source = line

# %% [markdown]
# ## The input of self-attention: three paths
#
# In self-attention $X_{\mathrm{kv}}$ is $X$, and a third path leads back through the queries. Token $i$ acts
# as a query, asking for itself; as a key, with which it and all later tokens compare (the mask here is
# causal); and as a value, being passed on. So $dX$ has three terms, $n \times d_{\mathrm{model}}$ each. No
# biases now, to keep lines short.

# %%
at = Point(n=3, d_model=5, h=2, d_k=7, d_v=9, d_out=11)
X, dY, tau = at.free("X", "n, d_model"), at.free("dY", "n, d_out"), at.free("scale")
W_Q, W_K = at.free("W_Q", "d_model, h*d_k"), at.free("W_K", "d_model, h*d_k")
W_V, W_O = at.free("W_V", "d_model, h*d_v"), at.free("W_O", "h*d_v, d_out")
weights, causal = (W_Q, W_K, W_V, W_O), at.given("mask", torch.ones(3, 3).tril().bool())
options = {"n_heads": 2, "scale": tau, "mask": causal}

B = blocks(X, *weights, **options)
Q, S, P, calK, calV, calI, calC, D_K, D_V = B.Q, B.S, B.P, B.calK, B.calV, B.calI, B.calC, B.D_K, B.D_V
Y, K, V = at.let("Y", layer(X, *weights, **options)), at.let("K", X @ W_K), at.let("V", X @ W_V)
OUTPUT, SCORES = definition(Y, P @ calV @ W_O), definition(S, tau * Q @ calK.mT)
QUERIES, KEYS, VALUES = definition(Q, X @ W_Q), definition(K), definition(V)
BLOCKS_K, BLOCKS_V = definition(calK, D_K * (calC.mT @ K)), definition(calV, D_V * (calC.mT @ V))
dP = at.let("dP", dY @ W_O.mT @ calV.mT)
dS = at.let("dS", P * (dP - (P * dP) @ calI))

X_dot = at.tangent(X)
Y_dot = differential(layer, moves(X, X_dot), *weights, **options, name="Y")
dot = differential(blocks, moves(X, X_dot), *weights, **options)
K_dot, V_dot = at.let("K_dot", X_dot @ W_K), at.let("V_dot", X_dot @ W_V)

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, dot.P @ calV @ W_O) + inner(dY, P @ dot.calV @ W_O), OUTPUT.moves, laws.LINEARITY)
dQ = line.let("dQ", tau * dS @ calK)
dK = line.let("dK", tau * calC @ (D_K * (dS.mT @ Q)))
dV = line.let("dV", calC @ (D_V * (P.mT @ dY @ W_O.mT)))
line(inner(dS, dot.S) + inner(dY, P @ dot.calV @ W_O), as_before)
line(inner(dS, dot.S) + inner(dV, V_dot), as_for_b_V)
line(
    inner(dS, tau * dot.Q @ calK.mT) + inner(dS, tau * Q @ dot.calK.mT) + inner(dV, V_dot),
    SCORES.moves,
    laws.LINEARITY,
)
line(inner(dQ, dot.Q) + inner(dS, tau * Q @ dot.calK.mT) + inner(dV, V_dot), laws.RIGHT)
line(inner(dQ, dot.Q) + inner(dK, K_dot) + inner(dV, V_dot), through_source.cited("as for X_kv"))
line(inner(dQ, X_dot @ W_Q) + inner(dK, K_dot) + inner(dV, V_dot), QUERIES.moves)
line(inner(dQ, X_dot @ W_Q) + inner(dK, X_dot @ W_K) + inner(dV, X_dot @ W_V), KEYS.moves, VALUES.moves)
line(inner(dQ @ W_Q.mT, X_dot) + inner(dK @ W_K.mT, X_dot) + inner(dV @ W_V.mT, X_dot), laws.RIGHT)
line(inner(dQ @ W_Q.mT + dK @ W_K.mT + dV @ W_V.mT, X_dot), laws.LINEARITY)
line.reads_off(X_dot, grad_X(X, *weights, dY, **options))
display(line)

# %% [markdown]
# ```{admonition} Common mistake: a path is missing
# :class: warning
# $dX$ lacks the term of the queries, the keys or the values. Where it happens: three projections that write
# their $dX$ into one buffer, and one overwrites what it should add to. All gradients of *this* layer are
# right, and a test of one layer that looks at weights alone passes. What is wrong is what the layers below
# receive. The measurement at the end of the chapter shows how far the gradient of the lowest layer turns
# away. Flagged by
# $\langle dX, X\rangle = \langle dW^Q, W^Q\rangle + \langle dW^K, W^K\rangle + \langle dW^V, W^V\rangle$. (A
# slip that teachers and graders meet.)
# ```
#
# ## With numbers
#
# The example of chapter 6: three tokens, two heads, $\tau = 1$ and $\ell = Y_{11} + Y_{13}$. The path
# through the values can be done by hand. Only token 1 asks, so the first column of $dV$ in each head is the
# first row of that head's probabilities: $(\tfrac14, \tfrac12, \tfrac14)$ in head 1,
# $(\tfrac13, \tfrac13, \tfrac13)$ in head 2. The other columns are 0. $W^V$ takes features 3 and 4 to head 1
# and features 1 and 2 to head 2. So through the values token $j$ receives $(\tfrac13, 0, P_{1j}, 0)$, with
# $P_{1j}$ from head 1.

# %%
log2, log3 = torch.tensor([2.0, 3.0], dtype=torch.float64).log().tolist()
tokens = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.float64)
queries = [[0, 0, 0, 0], [log3, 0, 0, log2], [0, log2 / 2, 0, 0], [log2 - log3, 0, log2, -log2]]
keys = [[0, 0, 1, 0], [0, 0, 0, 1], [0.5, 0, 0, 0], [0, 1, 0, 0]]
values = [[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
eye = torch.eye(4, dtype=torch.float64)
numbers = [*(torch.tensor(W, dtype=torch.float64) for W in (queries, keys, values)), eye]
arriving = torch.zeros(3, 4, dtype=torch.float64)
arriving[0, 0] = arriving[0, 2] = 1


def paths(X, W_Q, W_K, W_V, W_O, dY, **options):
    """dX through the queries, through the keys and through the values."""
    b = blocks(X, W_Q, W_K, W_V, W_O, **options)
    dP = dY @ W_O.mT @ b.calV.mT
    dS = b.P * (dP - (b.P * dP) @ b.calI)
    dK = b.scale * b.calC @ (b.D_K * (dS.mT @ b.Q))
    dV = b.calC @ (b.D_V * (b.P.mT @ dY @ W_O.mT))
    return b.scale * dS @ b.calK @ W_Q.mT, dK @ W_K.mT, dV @ W_V.mT


three = paths(tokens, *numbers, arriving, n_heads=2, scale=1.0)
for name, path in zip(("queries", "keys", "values"), three, strict=True):
    print(f"12 dX through the {name}")
    for entries in (12 * path).tolist():
        print("   ", "  ".join(f"{entry + 0.0:7.3f}" for entry in entries))

# %% [markdown]
# The first token alone asks, so the queries' path ends at token 1. Keys and values send to all tokens that it
# looked at.
#
# Without biases $dX$ has a check that needs no autograd. Scaling $X$ by $1 + \varepsilon$ is the same as
# scaling $W^Q$, $W^K$ and $W^V$ by $1 + \varepsilon$, all three. So
#
# $$\langle dX, X\rangle = \langle dW^Q, W^Q\rangle + \langle dW^K, W^K\rangle + \langle dW^V, W^V\rangle$$
#
# and whoever forgets one of the three paths fails it.

# %%
everything, heads = (tokens, *numbers, arriving), {"n_heads": 2, "scale": 1.0}
left = (grad_X(*everything, **heads) * tokens).sum().item()
right = [
    (G(*everything, **heads) * W).sum().item()
    for G, W in zip((grad_W_Q, grad_W_K, grad_W_V), numbers[:3], strict=True)
]
display(f"⟨dX, X⟩ = {left:.6f}, and {right[0]:.6f} + {right[1]:.6f} + {right[2]:.6f} = {sum(right):.6f}")

# %% [markdown]
# Where the gradient of one output flows: six tokens, a causal mask, and a loss that asks for the output of
# token 4 alone. Through the queries it returns to token 4. Through the keys and the values it returns to
# tokens 1 to 4, all that token 4 could see, and to none after it.

# %%
six, W = (
    torch.randn(6, 4, generator=draw, dtype=torch.float64),
    torch.randn(4, 4, 4, generator=draw, dtype=torch.float64),
)
fourth = torch.zeros(6, 4, dtype=torch.float64)
fourth[3] = 1
flows = paths(six, *(W / 2), fourth, n_heads=2, mask=torch.ones(6, 6).tril().bool())
pictured = dict(zip((r"\mathrm{queries}", r"\mathrm{keys}", r"\mathrm{values}"), flows, strict=True))
alt = "through the queries row 4 only, otherwise rows 1 to 4; no row after"
display(heat(pictured, rows="token", columns="feature", alt=alt))

# %% [markdown]
# ## What a missing path does to a stack of layers
#
# A stack of layers, each $X + \text{attention}(X)$. A path is cut in every layer, which is what a wrong $dX$
# does, and we look at the gradient of $W^Q$ in the lowest layer: by how many degrees does it point away from
# the right one? In the program a path is cut by `detach`, which lets values through and no gradient.


# %%
def lowest(depth, cut=""):
    """The gradient of W_Q in the lowest of so many layers."""
    draw = torch.Generator()
    X, dY = torch.randn(2, 6, 8, generator=draw, dtype=torch.float64)
    W = torch.randn(depth, 4, 8, 8, generator=draw, dtype=torch.float64) * 8**-0.5
    W.requires_grad_()
    for W_Q, W_K, W_V, W_O in W:
        q, k, v = (X.detach() if name == cut else X for name in "QKV")
        P = torch.softmax(8**-0.5 * (q @ W_Q) @ (k @ W_K).mT, -1)
        X = X + P @ (v @ W_V) @ W_O
    return torch.autograd.grad((X * dY).sum(), W)[0][0, 0].flatten()


print("layers above the lowest     " + "".join(f"{depth - 1:6}" for depth in (1, 2, 4, 8)))
for name in "QKV":
    angles = []
    for depth in (1, 2, 4, 8):
        cosine = torch.cosine_similarity(lowest(depth), lowest(depth, name), dim=0)
        angles.append(torch.rad2deg(torch.arccos(cosine.clamp(max=1.0))).item())
    print(f"degrees off without path {name}: " + "".join(f"{angle:6.0f}" for angle in angles))

# %% [markdown]
# With a single layer nothing is wrong: $W^Q$ takes its gradient from $dQ$, not from $dX$. One layer above it
# is enough to turn the gradient, and seven turn it by 38 to 71 degrees; not evenly, for without the values'
# path three layers turn it more than seven. In this run it stays below a right angle, so that a small step
# along it still lowers the loss: nothing stops such a training.
#
# ## Exercises

# %% [markdown] exercise="8.1" kind="mistake" points=4 title="A path is missing"
# The beginning of a derivation of $dX$ in self-attention, down to $\dot{Q}$, $\dot{\mathcal{K}}$ and
# $\dot{\mathcal{V}}$. One line of it is false. Which, and what should stand there?

# %% given="8.1"
as_values = inner(dY, P @ dot.calV @ W_O)  # the path through the values, which is right as it is
wrong = claim(inner(dY, Y_dot), "the differential of ℓ")
wrong(inner(dY, dot.P @ calV @ W_O) + as_values, OUTPUT.moves, laws.LINEARITY)
wrong(inner(dS, dot.S) + as_values, as_before)
wrong(inner(dS, tau * dot.Q @ calK.mT) + as_values, SCORES.moves)
wrong(inner(tau * dS @ calK, dot.Q) + as_values, laws.RIGHT)
display(wrong)

# %% answer="8.1"
### BEGIN SOLUTION
answer = correct(4, inner(dS, tau * dot.Q @ calK.mT + tau * Q @ dot.calK.mT) + as_values, SCORES.moves)
### END SOLUTION


# %% checker="8.1"
def rest(line):
    line(inner(dS, tau * dot.Q @ calK.mT) + inner(dS, tau * Q @ dot.calK.mT) + as_values, laws.LINEARITY)
    line(queries_and_keys, laws.RIGHT)


def a_line_above():
    """line 3 follows from line 2"""
    return correct(3, inner(dS, dot.S) + inner(dY, dot.P @ calV @ W_O), SCORES.moves)


def keys_instead():
    """differ"""
    return correct(4, inner(dS, tau * Q @ dot.calK.mT) + as_values, SCORES.moves)


def no_scale_for_the_keys():
    """differ"""
    return correct(4, inner(dS, tau * dot.Q @ calK.mT + Q @ dot.calK.mT) + as_values, SCORES.moves)


queries_and_keys = inner(tau * dS @ calK, dot.Q) + inner(dS, tau * Q @ dot.calK.mT) + as_values
check_mistake(
    wrong,
    answer,
    ends=queries_and_keys,
    rest=rest,
    mistakes=[a_line_above, keys_instead, no_scale_for_the_keys],
)

# %% [markdown] exercise="8.2" kind="function" points=4 title="A bias, and an input with a residual"
# Self-attention with a residual connection, $Z = X + [O_1 \dots O_h]\, W^O$, which is
# $n \times d_{\mathrm{model}}$. The projections are called $XW_Q = X W^Q + 1 b^Q$, $XW_K = X W^K$ and
# $XW_V = X W^V$. Given $dZ$ and the gradients $dXW_Q$, $dXW_K$, $dXW_V$ ($n \times h d_k$,
# $n \times h d_k$, $n \times h d_v$), write $db^Q$, a list of $h d_k$ numbers, and $dX$,
# $n \times d_{\mathrm{model}}$.


# %% answer="8.2"
def bias_gradient(dXW_Q):
    """db_Q, h·d_k numbers."""
    ### BEGIN SOLUTION
    return dXW_Q.sum(0)
    ### END SOLUTION


def input_gradient(dZ, dXW_Q, dXW_K, dXW_V, W_Q, W_K, W_V):
    """dX, n × d_model."""
    ### BEGIN SOLUTION
    return dZ + dXW_Q @ W_Q.mT + dXW_K @ W_K.mT + dXW_V @ W_V.mT
    ### END SOLUTION


# %% checker="8.2"
def with_residual(X, W_Q, W_K, W_V, W_O, b_Q, h):
    XW_Q, XW_K, XW_V = X @ W_Q + b_Q, X @ W_K, X @ W_V
    Q, K, V = (XW.reshape(XW.shape[0], h, -1).transpose(0, 1) for XW in (XW_Q, XW_K, XW_V))
    O = torch.softmax(Q @ K.mT, -1) @ V
    Z = X + O.transpose(0, 1).reshape(O.shape[1], -1) @ W_O
    return {"XW_Q": XW_Q, "XW_K": XW_K, "XW_V": XW_V, "Z": Z}


def averaged(dXW_Q):
    """averaged over the tokens, where a sum belongs"""
    return dXW_Q.mean(0)


def residual_forgotten(dZ, dXW_Q, dXW_K, dXW_V, W_Q, W_K, W_V):
    """the path past the layer, the residual, is missing"""
    return dXW_Q @ W_Q.mT + dXW_K @ W_K.mT + dXW_V @ W_V.mT


def keys_forgotten(dZ, dXW_Q, dXW_K, dXW_V, W_Q, W_K, W_V):
    """the path through the keys is missing"""
    return dZ + dXW_Q @ W_Q.mT + dXW_V @ W_V.mT


def values_forgotten(dZ, dXW_Q, dXW_K, dXW_V, W_Q, W_K, W_V):
    """the path through the values is missing"""
    return dZ + dXW_Q @ W_Q.mT + dXW_K @ W_K.mT


check_functions(
    {"db_Q": bias_gradient, "dX": input_gradient},
    with_residual,
    inputs={
        "X": "n, d_model",
        "W_Q": "d_model, h*d_k",
        "W_K": "d_model, h*d_k",
        "W_V": "d_model, h*d_v",
        "W_O": "h*d_v, d_model",
        "b_Q": "h*d_k",
    },
    sizes=[
        {"n": 4, "d_model": 5, "h": 2, "d_k": 3, "d_v": 1},
        {"n": 6, "d_model": 2, "h": 3, "d_k": 1, "d_v": 4},
    ],
    mistakes={
        "bias_gradient": [averaged],
        "input_gradient": [residual_forgotten, keys_forgotten, values_forgotten],
    },
)

# %% [markdown] exercise="8.3" kind="chain" points=4 title="The queries' side of cross-attention"
# In cross-attention $X$ and $X_{\mathrm{kv}}$ are two sequences, and $X$ acts through the queries alone.
# Derive its gradient. There are no biases. `to_scores` is the way back to the scores, for the reason beside
# your second line.

# %% given="8.3"
at = Point(n_q=3, n_k=4, d_model=5, d_kv=6, h=2, d_k=7, d_v=9, d_out=11)
X, X_kv, dY, tau = (
    at.free("X", "n_q, d_model"),
    at.free("X_kv", "n_k, d_kv"),
    at.free("dY", "n_q, d_out"),
    at.free("scale"),
)
W_Q, W_K = at.free("W_Q", "d_model, h*d_k"), at.free("W_K", "d_kv, h*d_k")
W_V, W_O = at.free("W_V", "d_kv, h*d_v"), at.free("W_O", "h*d_v, d_out")
cross = {"n_heads": 2, "X_kv": X_kv, "scale": tau}
B = blocks(X, W_Q, W_K, W_V, W_O, **cross)
Q, S, P, calK, calV, calI = B.Q, B.S, B.P, B.calK, B.calV, B.calI
Y = at.let("Y", layer(X, W_Q, W_K, W_V, W_O, **cross))
OUTPUT, SCORES, QUERIES = (
    definition(Y, P @ calV @ W_O),
    definition(S, tau * Q @ calK.mT),
    definition(Q, X @ W_Q),
)
dP = at.let("dP", dY @ W_O.mT @ calV.mT)
dS = at.let("dS", P * (dP - (P * dP) @ calI))
to_scores = through_scores.cited("as for b^Q")

X_dot = at.tangent(X)
Y_dot = differential(layer, moves(X, X_dot), W_Q, W_K, W_V, W_O, **cross, name="Y")
dot = differential(blocks, moves(X, X_dot), W_Q, W_K, W_V, W_O, **cross)
line = chain(inner(dY, Y_dot), "the differential of ℓ")

# %% answer="8.3"
### BEGIN SOLUTION
line(inner(dY, dot.P @ calV @ W_O), OUTPUT.moves)
line(inner(dS, dot.S), to_scores)
line(inner(dS, tau * dot.Q @ calK.mT), SCORES.moves)
line(inner(tau * dS @ calK, dot.Q), laws.RIGHT)
line(inner(tau * dS @ calK, X_dot @ W_Q), QUERIES.moves)
line(inner(tau * dS @ calK @ W_Q.mT, X_dot), laws.RIGHT)
### END SOLUTION


# %% checker="8.3"
def keys_path(line):
    """differ"""
    line(inner(dY, dot.P @ calV @ W_O), OUTPUT.moves)
    line(inner(tau * dS.mT @ Q, calK), to_scores)


def no_scale(line):
    """is the factor τ missing?"""
    line(inner(dY, dot.P @ calV @ W_O), OUTPUT.moves)
    line(inner(dS, dot.S), to_scores)
    line(inner(dS, dot.Q @ calK.mT), SCORES.moves)


def wrong_side(line):
    """it follows by RIGHT"""
    line(inner(dY, dot.P @ calV @ W_O), OUTPUT.moves)
    line(inner(tau * dS @ calK, dot.Q), to_scores)
    line(inner(tau * dS @ calK, X_dot @ W_Q), QUERIES.moves)
    line(inner(tau * dS @ calK @ W_Q.mT, X_dot), laws.LEFT)


check_chain(
    line, X_dot, grad_X(X, W_Q, W_K, W_V, W_O, dY, **cross), mistakes=[keys_path, no_scale, wrong_side]
)

# %% [markdown]
# **Questions.** 1. Prove the identity $\langle dX, X\rangle = \langle dW^Q, W^Q\rangle + \dots$ with one
# chain, letting $X$ move along $X$ itself. 2. Which bias gradients change when the mask does? 3. Derive
# $d\tau$, and read $\langle dW^Q, W^Q\rangle + \langle db^Q, b^Q\rangle = \tau\, d\tau$ off your result. 4.
# $b^V$ and $b^O$ do the same work where every query sees something. What follows for $db^V$ and $db^O$? 5.
# Which of the three paths to $X$ does a loss on the last token of a causal model use, for the first token?
