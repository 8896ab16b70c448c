# %% [markdown]
# # 11 Shared keys and values: grouped heads
#
# $$O_i = \operatorname{softmax}(\tau\, Q_i K_{g(i)}^\top)\, V_{g(i)}, \qquad i = 1 \dots h,
# \qquad g(i) = \lceil i\, h_{kv} / h \rceil$$
#
# with $Q_i$ $n_q \times d_k$ for each of $h$ query heads, and $K_j$ $n_k \times d_k$, $V_j$ $n_k \times d_v$
# for each of $h_{kv}$ key heads. $g(i)$ is the key head that serves query head $i$.
#
# A model that writes a text keeps the keys and values of everything it has written: $2 n h d$ numbers in
# each layer, and at every new token all of them are read. Shazeer 2019 lets all heads share one $K$ and one
# $V$ (*multi-query* attention); the cache shrinks by the factor $h$. Ainslie et al. 2023 take $h_{kv}$ of
# them, each for a *group* of $h / h_{kv}$ query heads (*grouped-query* attention): $h_{kv} = 1$ is the
# first, $h_{kv} = h$ is chapter 6. Llama 2 70B has $h = 64$ and $h_{kv} = 8$.
#
# For the gradient it means one thing: what is used several times collects several gradients, and they
# are **added**. This chapter says it with a matrix, so that it is no slogan but a transpose.
#
# ## Repeating is a matrix
#
# With $h = 6$ and $h_{kv} = 3$ the key heads that serve the six query heads are 1 1 2 2 3 3. Side by side,
# $K = [K_1\, K_2\, K_3]$ is $n_k \times h_{kv} d_k$, and the six that are used are $K_{all} = [K_1\, K_1\,
# K_2\, K_2\, K_3\, K_3]$, $n_k \times h d_k$. Repeating columns is a product from the right:
#
# $$K_{all} = K R_K, \qquad
# R_K = \begin{bmatrix} I & I & 0 & 0 & 0 & 0 \\ 0 & 0 & I & I & 0 & 0 \\ 0 & 0 & 0 & 0 & I & I \end{bmatrix}
# \quad h_{kv} d_k \times h d_k, \qquad I \;\; d_k \times d_k$$
#
# and $V_{all} = V R_V$ with blocks of $d_v$. From there on nothing is new: $K_{all}$ and $V_{all}$ are the
# keys and values of an ordinary layer with $h$ heads.

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import pattern
from gradderiv.rules.attend import attend, attend_vjp
from gradderiv.rules.blockdiag import blocks, layer
from gradderiv.rules.heads import join_heads, split_heads, sum_heads
from gradderiv.rules.multihead import multihead, multihead_vjp


def repeats(groups, width, key_heads=3):
    """R: block (j, i) is the identity where key head j = groups[i − 1] serves query head i."""
    serves = torch.zeros(key_heads, len(groups))
    for i, j in enumerate(groups):
        serves[j - 1, i] = 1
    return torch.kron(serves, torch.eye(width))


GROUPS = [1, 1, 2, 2, 3, 3]
widths = {"h_kv·d_k": 21, "h_kv·d_v": 24}
at = Point(n_q=2, n_k=4, d_model=5, d_kv=9, h=6, d_k=7, d_v=8, d_out=11, **widths)
X, X_kv, dY = at.free("X", "n_q, d_model"), at.free("X_kv", "n_k, d_kv"), at.free("dY", "n_q, d_out")
W_Q, W_O = at.free("W_Q", "d_model, h*d_k"), at.free("W_O", "h*d_v, d_out")
W_K, W_V = at.free("W_K", "d_kv, h_kv·d_k"), at.free("W_V", "d_kv, h_kv·d_v")
R_K, R_V = at.given("R_K", repeats(GROUPS, 7)), at.given("R_V", repeats(GROUPS, 8))
options = {"X_kv": X_kv, "scale": at.free("scale"), "n_heads": 6}

Y, saved = multihead(X, W_Q, W_K, W_V, W_O, n_kv_heads=3, **options)
Y = at.let("Y", Y)
ORDINARY = fact(Y, layer(X, W_Q, W_K @ R_K, W_V @ R_V, W_O, **options))
display(R_K)
display(
    pattern(
        {"R_K": repeats(GROUPS, 3), r"\mathrm{tiled}": repeats([1, 2, 3, 1, 2, 3], 3)},
        alt="Two matrices of three block rows and six block columns, for d_k = 3. In R_K each block row has "
        "its two identity blocks side by side; tiled, they stand three blocks apart.",
        height=3,
        width=3,
    )
)

# %% [markdown]
# The fact above is checked: the function that ships, which never builds $R_K$, returns the layer of chapter
# 6 with the weights $W^K R_K$ and $W^V R_V$.
#
# ## The keys
#
# Chapter 6 derived the gradient of the keys of every head. We write it for $K_{all}$ and start there:
#
# $$dK_{all} = \tau\, \mathcal{C}\,(\mathcal{D}_K \circ (dS^\top Q)) \qquad n_k \times h d_k$$

# %%
B = blocks(X, W_Q, W_K @ R_K, W_V @ R_V, W_O, **options)
Q, P, calK, calV, calI, calC, D_K, D_V = B.Q, B.P, B.calK, B.calV, B.calI, B.calC, B.D_K, B.D_V
tau = options["scale"]
dP = dY @ W_O.mT @ calV.mT
dS = at.let("dS", P * (dP - (P * dP) @ calI))
dK_all = at.let("dK_all", tau * calC @ (D_K * (dS.mT @ Q)))
dV_all = at.let("dV_all", calC @ (D_V * (P.mT @ dY @ W_O.mT)))


def repeated(X_kv, W, R):
    return X_kv @ W @ R  # n_k h·d


K_all, V_all = at.let("K_all", repeated(X_kv, W_K, R_K)), at.let("V_all", repeated(X_kv, W_V, R_V))
KEYS, VALUES = definition(K_all, X_kv @ W_K @ R_K), definition(V_all, X_kv @ W_V @ R_V)

W_K_dot = at.tangent(W_K)
Y_dot, _ = differential(multihead, X, W_Q, moves(W_K, W_K_dot), W_V, W_O, n_kv_heads=3, **options, name="Y")
K_all_dot = differential(repeated, X_kv, moves(W_K, W_K_dot), R_K, name="K_all")
CHAPTER_6 = fact(inner(dY, Y_dot), inner(dK_all, K_all_dot), "the gradient of the keys, chapter 6")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dK_all, K_all_dot), CHAPTER_6)
line(inner(dK_all, X_kv @ W_K_dot @ R_K), KEYS.moves)
line(inner(dK_all @ R_K.mT, X_kv @ W_K_dot), laws.RIGHT)
dK = line.let("dK", dK_all @ R_K.mT)
line(inner(X_kv.mT @ dK, W_K_dot), laws.LEFT)
line.reads_off(W_K_dot, multihead_vjp(dY, saved).W_K)
display(line)

# %% [markdown]
# $dK = dK_{all} R_K^\top$: the transpose of *repeat* is *add up*. To see it in blocks, let $\Pi_i$ pick
# query head $i$ ($d_k \times h d_k$, chapter 7) and $J_j$ pick key head $j$ ($d_k \times h_{kv} d_k$). Then
# $R_K = J_1^\top (\Pi_1 + \Pi_2) + J_2^\top (\Pi_3 + \Pi_4) + J_3^\top (\Pi_5 + \Pi_6)$, and

# %%
Pi_1, Pi_2, Pi_3, Pi_4, Pi_5, Pi_6 = (
    at.given(f"Pi_{i + 1}", torch.eye(42)[7 * i : 7 * i + 7]) for i in range(6)
)
J_1, J_2, J_3 = (at.given(f"J_{j + 1}", torch.eye(21)[7 * j : 7 * j + 7]) for j in range(3))
BLOCKS = definition(R_K, J_1.mT @ (Pi_1 + Pi_2) + J_2.mT @ (Pi_3 + Pi_4) + J_3.mT @ (Pi_5 + Pi_6))
SHIPPED = fact(dK_all @ R_K.mT, join_heads(sum_heads(split_heads(dK_all, 6), 3)), "sum_heads")

line = chain(dK_all @ R_K.mT, "the gradient of K")
line(dK_all @ ((Pi_1 + Pi_2).mT @ J_1 + (Pi_3 + Pi_4).mT @ J_2 + (Pi_5 + Pi_6).mT @ J_3), BLOCKS)
line(
    (dK_all @ Pi_1.mT + dK_all @ Pi_2.mT) @ J_1
    + (dK_all @ Pi_3.mT + dK_all @ Pi_4.mT) @ J_2
    + (dK_all @ Pi_5.mT + dK_all @ Pi_6.mT) @ J_3,
    laws.LINEARITY,
)
display(line)

# %% [markdown]
# No program multiplies by $R_K$: `sum_heads` of `gradderiv.rules.heads` reshapes and adds, and `SHIPPED`
# has checked that this is the same.
#
# $dK_{all}\, \Pi_i^\top$ is the gradient of the keys that head $i$ asked for. Key head 1 receives those of
# heads 1 and 2, and so on. With one key head $R_K = [\,I \dots I\,]$, and it receives the sum over *all*
# heads: $R_K$ is the matrix $\mathcal{C}$ of chapter 6, in another width. The queries are not shared, so the
# formulas for $dW^Q$ and $dW^O$ are those of chapter 6.
#
# It is a sum and no mean: what is used twice moves the loss twice.
#
# ## What the slips do
#
# Four programs learn a teacher with six query heads and three key heads. The first is right. The second
# takes $dK$ and $dV$ of the last head of each group instead of the sum. The third averages. The fourth
# loads the teacher's own weights and has the head map 1 2 3 1 2 3, *tiled* for *repeated*; then it trains
# on, with gradients that fit its map.

# %%
draw = torch.Generator().manual_seed(4)
tokens = torch.randn(16, 5, 8, dtype=torch.float64, generator=draw)
teacher, beginner = (
    [torch.randn(*size, dtype=torch.float64, generator=draw) / size[0] ** 0.5 for size in sizes]
    for sizes in 2 * [((8, 12), (8, 6), (8, 6), (12, 8))]
)
target, _ = multihead(tokens, *teacher, n_heads=6, n_kv_heads=3)
repeat, tile = (repeats(groups, 2).double() for groups in (GROUPS, [1, 2, 3, 1, 2, 3]))
last = repeat * torch.tensor([0.0, 0, 1, 1]).repeat(3)  # the second head of each group


def learn(weights, R, back, steps=40, rate=0.1):
    """The losses of gradient descent, with K R in the forward pass and dK_all Bᵀ in the backward pass."""
    losses = []
    for _ in range(steps + 1):
        W_Q, W_K, W_V, W_O = weights
        Y, saved = multihead(tokens, W_Q, W_K @ R, W_V @ R, W_O, n_heads=6)
        losses.append((Y - target).square().mean().item())
        g = multihead_vjp((Y - target) / len(tokens), saved)
        found = g.W_Q, g.W_K @ back.mT, g.W_V @ back.mT, g.W_O
        weights = [W - rate * dW for W, dW in zip(weights, found, strict=True)]
    return losses


print("step                       0       1       5      20      40")
for name, losses in (
    ("right", learn(beginner, repeat, repeat)),
    ("last of the group", learn(beginner, repeat, last)),
    ("averaged", learn(beginner, repeat, repeat / 2)),
    ("teacher, tiled", learn(teacher, tile, tile)),
):
    print(f"{name:20s}", "".join(f"{losses[i]:8.4f}" for i in (0, 1, 5, 20, 40)))

# %% [markdown]
# All four curves fall, and nobody would stop one of the runs. The first three can hardly be told apart: a
# part of the gradient, or half of it, still pointed downhill. But what the optimizer did to $W^K$ and $W^V$
# is not what its learning rate says. The last one is the expensive mistake: the teacher's own weights,
# whose loss is 0, start at about half the loss of random ones, and training covers it up.
#
# A check without a reference: there is no bias, so by chapter 8 $\langle dW^Q, W^Q\rangle = \langle dW^K,
# W^K\rangle$, here for each group of heads. The two numbers of a pair should be equal; there is a pair for
# each of the three groups.

# %%
W_Q_small, W_K_small, W_V_small, W_O_small = beginner
Y_small, kept = multihead(tokens, W_Q_small, W_K_small @ repeat, W_V_small @ repeat, W_O_small, n_heads=6)
g = multihead_vjp(Y_small - target, kept)
for name, back in (("right", repeat), ("last of the group", last), ("averaged", repeat / 2)):
    of_queries = (g.W_Q * W_Q_small).unflatten(-1, (3, 4)).sum((0, -1))
    of_keys = (g.W_K @ back.mT * W_K_small).unflatten(-1, (3, 2)).sum((0, -1))
    print(f"{name:18s}", "  ".join(f"{a:7.3f} {b:7.3f}" for a, b in zip(of_queries, of_keys, strict=True)))

# %% [markdown]
# ```{admonition} Common mistake: the sum over the group is missing
# :class: warning
# A kernel that runs over query heads writes $dK$ and $dV$ of its key head, and the next head of the group
# writes over it. What is left is the last head's. Shapes fit, the loss falls (above). A test with $h_{kv} =
# h$ cannot see it. Seen in: levanter #449.
# ```
#
# ```{admonition} Common mistake: tiled for repeated
# :class: warning
# `repeat` of numpy and `repeat_interleave` of torch give 1 1 2 2 3 3; `repeat` of torch and `tile` give 1 2
# 3 1 2 3. It is a consistent model with another head map: all derivatives are right, trained from the start
# it is as good, and only weights from elsewhere show it. With $h_{kv} = 1$ or $h_{kv} = h$ nothing differs.
# Seen in: onnx #7274, jax-js #180, axlearn #842.
# ```
#
# ```{admonition} Common mistake: the wrong divisor
# :class: warning
# Counted from 0, query head $i$ uses key head $\lfloor i / (h / h_{kv}) \rfloor$. With $\lfloor i / h_{kv}
# \rfloor$ instead, six heads and three key heads give 0 0 0 1 1 1: key head 2 is never used and its gradient
# is $0$, exactly (below). With $h = 4$, $h_{kv} = 2$ the two formulas agree, and a test sees nothing. Seen
# in: native-sparse-attention-triton #27.
# ```
#
# The third slip, run: the size of the gradient for each key head, with the right divisor and the wrong one.

# %%
for name, divisor in (("i // (h / h_kv)", 2), ("i // h_kv", 3)):
    R = repeats([i // divisor + 1 for i in range(6)], 2).double()
    _, kept = multihead(tokens, W_Q_small, W_K_small @ R, W_V_small @ R, W_O_small, n_heads=6)
    dW_K = multihead_vjp(Y_small - target, kept).W_K @ R.mT
    sizes_of_heads = dW_K.unflatten(-1, (3, 2)).norm(dim=(0, 2))
    print(f"{name:16s}", "  ".join(f"{x:7.3f}" for x in sizes_of_heads.tolist()))

# %% [markdown]
# A test of shared heads therefore needs $1 < h_{kv} < h$ and $h / h_{kv} \ne h_{kv}$.
#
# ## With numbers
#
# Two query heads share one key and one value head. Head 1 has the scores of chapter 4, exponentials (1,
# 2, 1), (1, 1, 2), (3, 1, 1); head 2 has the same rows in the order 2, 3, 1. $V$ is as in chapter 5, and
# the loss adds the first output of the first query of both heads.

# %%
rows = torch.tensor([[1.0, 2, 1], [1, 1, 2], [3, 1, 1]], dtype=torch.float64).log()
Q_two = torch.stack([rows, rows[[1, 2, 0]]])  # h n_q d_k
K_one = torch.eye(3, dtype=torch.float64)[None]  # 1 n_k d_k
V_one = torch.tensor([[[2.0, 0], [0, 1], [0, 0]]], dtype=torch.float64)  # 1 n_k d_v
dO = torch.zeros(2, 3, 2, dtype=torch.float64)
dO[:, 0, 0] = 1
_, kept = attend(Q_two, K_one, V_one, scale=1.0)
g = attend_vjp(dO, kept)
print("dV", [[round(x, 4) + 0 for x in row] for row in g.V[0].tolist()])


# %% [markdown]
# By hand: $dV = P_1^\top dO_1 + P_2^\top dO_2$, so its first column is (¼, ½, ¼) + (¼, ¼, ½) = (½, ¾, ¾).

# %% [markdown]
# ## Exercises

# %% [markdown] exercise="11.1" kind="chain" points=3 title="The values"
# Only $W^V$ moves, $d_{kv} \times h_{kv} d_v$. The chain has arrived at $V_{all} = X_{kv} W^V R_V$, $n_k
# \times h d_v$ (`VALUES.moves`). Continue to the gradient of $W^V$.

# %% given="11.1"
W_V_dot = at.tangent(W_V)
Y_dot, _ = differential(multihead, X, W_Q, W_K, moves(W_V, W_V_dot), W_O, n_kv_heads=3, **options, name="Y")
V_all_dot = differential(repeated, X_kv, moves(W_V, W_V_dot), R_V, name="V_all")
line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dV_all, V_all_dot), fact(inner(dY, Y_dot), inner(dV_all, V_all_dot), "chapter 6"))

# %% answer="11.1"
### BEGIN SOLUTION
line(inner(dV_all, X_kv @ W_V_dot @ R_V), VALUES.moves)
line(inner(X_kv.mT @ dV_all @ R_V.mT, W_V_dot), laws.RIGHT, laws.LEFT)
### END SOLUTION


# %% checker="11.1"
def averaged(line):
    """2 × the one before"""
    line(inner(dV_all, X_kv @ W_V_dot @ R_V), VALUES.moves)
    line(inner(2 * X_kv.mT @ dV_all @ R_V.mT, W_V_dot), laws.RIGHT, laws.LEFT)


def not_summed(line):
    """a transpose is missing"""
    line(inner(dV_all, X_kv @ W_V_dot @ R_V), VALUES.moves)
    line(inner(X_kv.mT @ dV_all @ R_V, W_V_dot), laws.RIGHT, laws.LEFT)


check_chain(line, W_V_dot, multihead_vjp(dY, saved).W_V, mistakes=[averaged, not_summed])

# %% [markdown] exercise="11.2" kind="function" points=4 title="Add up the group"
# Write $dK$, $n_k \times h_{kv} d$, from $dK_{all}$, $n_k \times h d$, without a matrix $R$: reshape and
# sum. The group of key head $j$ is a run of $h / h_{kv}$ query heads.


# %% answer="11.2"
def group_sum(dK_all, h, h_kv):
    """dK, n_k × h_kv·d."""
    ### BEGIN SOLUTION
    n_k = len(dK_all)
    return dK_all.reshape(n_k, h_kv, h // h_kv, -1).sum(2).reshape(n_k, -1)
    ### END SOLUTION


# %% checker="11.2"
def forward(K, Q, h, h_kv):
    K_all = K.reshape(len(K), h_kv, 1, -1).expand(-1, -1, h // h_kv, -1).reshape(len(K), -1)
    q, k = (t.reshape(len(t), h, -1).transpose(0, 1) for t in (Q, K_all))
    return {"K_all": K_all, "P": torch.softmax(q @ k.mT, -1)}


def last_of_group(dK_all, h, h_kv):
    """only the last head of each group: the sum over the group is missing"""
    n_k = len(dK_all)
    return dK_all.reshape(n_k, h_kv, h // h_kv, -1)[:, :, -1].reshape(n_k, -1)


def tiled(dK_all, h, h_kv):
    """heads 1, 1 + h_kv, … are added: tiled, not repeated"""
    n_k = len(dK_all)
    return dK_all.reshape(n_k, h // h_kv, h_kv, -1).sum(1).reshape(n_k, -1)


def mean(dK_all, h, h_kv):
    """the mean over the group, not the sum"""
    n_k = len(dK_all)
    return (dK_all.reshape(n_k, h_kv, h // h_kv, -1).sum(2) / (h // h_kv)).reshape(n_k, -1)


check_functions(
    {"dK": group_sum},
    forward,
    inputs={"K": "n_k, h_kv*d", "Q": "n_q, h*d"},
    sizes=[{"n_q": 4, "n_k": 5, "h": 6, "h_kv": 3, "d": 2}, {"n_q": 3, "n_k": 4, "h": 6, "h_kv": 2, "d": 5}],
    mistakes=[last_of_group, tiled, mean],
)

# %% [markdown] exercise="11.3" kind="mistake" points=4 title="The source of keys and values"
# $X_{kv}$, $n_k \times d_{kv}$, feeds the keys and the values, and each of them serves two query heads. One
# line of this derivation of its gradient is false. Which, and what should stand there?

# %% given="11.3"
X_kv_dot = at.tangent(X_kv)
moving = {**options, "X_kv": moves(X_kv, X_kv_dot)}
Y_dot, _ = differential(multihead, X, W_Q, W_K, W_V, W_O, n_kv_heads=3, **moving, name="Y")
K_all_dot = differential(repeated, moves(X_kv, X_kv_dot), W_K, R_K, name="K_all")
V_all_dot = differential(repeated, moves(X_kv, X_kv_dot), W_V, R_V, name="V_all")
PATHS = fact(
    inner(dY, Y_dot), inner(dK_all, K_all_dot) + inner(dV_all, V_all_dot), "the two paths of chapter 6"
)

wrong = claim(inner(dY, Y_dot), "the differential of ℓ")
wrong(inner(dK_all, K_all_dot) + inner(dV_all, V_all_dot), PATHS)
wrong(inner(dK_all, X_kv_dot @ W_K @ R_K) + inner(dV_all, X_kv_dot @ W_V @ R_V), KEYS.moves, VALUES.moves)
wrong(
    inner(0.5 * dK_all @ R_K.mT, X_kv_dot @ W_K) + inner(0.5 * dV_all @ R_V.mT, X_kv_dot @ W_V),
    laws.RIGHT,
    note="each is used by two heads",
)
display(wrong)

# %% answer="11.3"
### BEGIN SOLUTION
answer = correct(
    4, inner(dK_all @ R_K.mT, X_kv_dot @ W_K) + inner(dV_all @ R_V.mT, X_kv_dot @ W_V), laws.RIGHT
)
### END SOLUTION


# %% checker="11.3"
def line_three():
    """line 3 follows from line 2"""
    return correct(3, inner(dK_all, X_kv_dot @ W_K @ R_K), KEYS.moves)


def keys_only():
    """must equal the line before it"""
    return correct(4, inner(dK_all @ R_K.mT, X_kv_dot @ W_K), laws.RIGHT)


check_mistake(
    wrong,
    answer,
    ends=inner(dK_all @ R_K.mT, X_kv_dot @ W_K) + inner(dV_all @ R_V.mT, X_kv_dot @ W_V),
    mistakes=[line_three, keys_only],
)

# %% [markdown]
# **Questions.** 1. $R_K R_K^\top$ is $h_{kv} d_k \times h_{kv} d_k$. Compute it. Which learning rate for
# $W^K$ would undo an average over the group? 2. A trained model with $h$ key heads is converted to $h_{kv}$
# by averaging the key heads of each group (Ainslie et al. 2023). Write the average with $R_K$. 3. In a
# model on several devices each holds two query heads and a copy of their key head. Which gradients must be
# added across devices? 4. The cache holds $2 n h_{kv} d$ numbers. Does the backward pass of training also
# get smaller, and where?
