# %% [markdown]
# # 12 Rotary positions
#
# $$Y = X \circ c + (X\, T) \circ s \qquad X, Y, c, s \;\; n \times d, \qquad T \;\; d \times d$$
#
# This is Su et al. 2021, eq. 34, in matrices. Attention by itself does not know where a token stands:
# exchange two keys and their values, and the output is the same. RoPE writes the position into queries and
# keys by *turning* them. The columns of a head are taken in pairs, and a token at position $p$ has each
# pair $(x_1, x_2)$ turned by the angle $p\, \theta$, with a $\theta$ for every pair (Su et al. take
# $10000^{-2 (j - 1)/d}$ for pair $j$: the first turns fast, the last hardly at all):
#
# $$(x_1,\; x_2) \;\mapsto\; (x_1 \cos p\theta - x_2 \sin p\theta,\;\; x_2 \cos p\theta + x_1 \sin p\theta)$$
#
# Row $p$ of the tables $c$ and $s$ holds the cosines and sines, each for both columns of its pair. $X T$ is
# $X$ with every pair given a quarter turn, $(x_1, x_2) \mapsto (-x_2, x_1)$. Which columns form a pair is a
# convention, and two are in use:
#
# | pairing | pairs of columns, $d = 4$ | found in |
# |---|---|---|
# | half-split (`"half"`) | (1, 3), (2, 4): column $i$ with $i + d/2$ | Llama, GPT-NeoX |
# | interleaved | (1, 2), (3, 4): neighbours | RoFormer, GPT-J |
#
# $T$ is skew in both: a quarter turn backwards is minus a quarter turn, $T^\top = -T$.

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat
from gradderiv.rules.attention import attention, attention_vjp
from gradderiv.rules.linear import linear
from gradderiv.rules.multihead import multihead, multihead_vjp
from gradderiv.rules.rope import rope, rope_vjp, rotary_tables, turn

display(
    heat(
        {f"T\\;({pairing})": turn(torch.eye(4), pairing) + 0 for pairing in ("half", "interleaved")},
        alt="The quarter turn T for d = 4, twice. Half-split: 1 in entries (1, 3) and (2, 4), -1 in (3, 1) "
        "and (4, 2). Interleaved: two blocks on the diagonal, each with 1 above and -1 below.",
    )
)

at = Point(n=3, d=4)
X, dY = at.free("X", "n, d"), at.free("dY", "n, d")
c, s = at.free("c", "n, d"), at.free("s", "n, d")
T = at.given("T", turn(torch.eye(4), "half"))
Y, saved = rope(X, c, s, pairing="half")
Y = at.let("Y", Y)
TURNED, SKEW = definition(Y, X * c + (X @ T) * s), fact(T.mT, -T)

# %% [markdown]
# ## The gradient, for any tables
#
# We do not use yet that $c$ and $s$ are cosines and sines. They are two matrices, and their entries are
# free.

# %%
X_dot = at.tangent(X)
Y_dot, _ = differential(rope, moves(X, X_dot), c, s, pairing="half", name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, X_dot * c + (X_dot @ T) * s), TURNED.moves)
line(inner(dY, X_dot * c) + inner(dY, (X_dot @ T) * s), laws.LINEARITY)
line(inner(dY * c, X_dot) + inner(dY * s, X_dot @ T), laws.ENTRYWISE)
line(inner(dY * c, X_dot) + inner((dY * s) @ T.mT, X_dot), laws.RIGHT)
line(inner(dY * c, X_dot) - inner((dY * s) @ T, X_dot), SKEW)
line(inner(dY * c - (dY * s) @ T, X_dot), laws.LINEARITY)
line.reads_off(X_dot, rope_vjp(dY, saved).X)
display(line)

# %% [markdown]
# The forward pass turns first and multiplies by $s$ afterwards; the backward pass multiplies by $s$ first
# and turns afterwards, with the other sign. A transpose always reverses the order. Keep that in mind for
# the first box below.
#
# ## One row: an orthogonal matrix
#
# Now let $c$ and $s$ be what they are meant to be. Take a single token, so that $X$, $Y$, $c$ and $s$ are
# rows, $1 \times d$, and put the cosines and sines on diagonals, $C = \operatorname{diag}(c)$ and $Z =
# \operatorname{diag}(s)$. Then $Y = X R$ with
#
# $$R = C + T Z \qquad d \times d$$
#
# In the interleaved pairing $R$ is block-diagonal, one $2 \times 2$ rotation for each pair; in the half-split
# pairing the same with its rows and columns permuted. We show that $R$ is orthogonal. It takes two properties
# of the tables. Both columns of a pair have one angle, so $T$, which exchanges the columns of a pair, may be
# moved past $C$ and $Z$. And $\cos^2 + \sin^2 = 1$. The rest are facts about any such matrices: diagonal ones
# are symmetric and commute, and two quarter turns are a half turn, $T T = -I$. For the machine's random point
# we take the cosines as $(1 - t^2) / (1 + t^2)$ and the sines as $2 t / (1 + t^2)$ with a free $t$ for each
# pair, which is every angle but $\pi$ ($t$ is the tangent of half of it).

# %%
row = Point(d=4, pairs=2)
t = row.free("t", "pairs")
cosines, sines = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
c_row = row.let("c", torch.cat([cosines, cosines]).unsqueeze(0))
s_row = row.let("s", torch.cat([sines, sines]).unsqueeze(0))
I, T_row = row.given("I", torch.eye(4)), row.given("T", turn(torch.eye(4), "half"))
C, Z = row.let("C", I * c_row), row.let("Z", I * s_row)
R = row.let("R", C + T_row @ Z)

ROTATION = definition(R, C + T_row @ Z)
DIAGONAL = fact(C.mT, C), fact(Z.mT, Z), fact(C @ Z, Z @ C)
ONE_ANGLE = fact(Z @ T_row, T_row @ Z), fact(C @ T_row, T_row @ C)
HALF_TURN = fact(Z @ T_row @ T_row, -Z, "T T = −I")
CIRCLE = fact(C @ C + Z @ Z, I)

line = chain(R @ R.mT, "a rotation and its transpose")
line((C + T_row @ Z) @ (C + T_row @ Z).mT, ROTATION)
line((C + T_row @ Z) @ (C - Z @ T_row), DIAGONAL[0], DIAGONAL[1], fact(T_row.mT, -T_row))
line(C @ C - C @ Z @ T_row + T_row @ Z @ C - T_row @ Z @ Z @ T_row, laws.LINEARITY)
line(C @ C - C @ Z @ T_row + Z @ T_row @ C - Z @ Z @ T_row @ T_row, ONE_ANGLE[0])
line(C @ C - C @ Z @ T_row + C @ Z @ T_row - Z @ Z @ T_row @ T_row, ONE_ANGLE[1], DIAGONAL[2])
line(C @ C - C @ Z @ T_row + C @ Z @ T_row + Z @ Z, HALF_TURN)
line(C @ C + Z @ Z, laws.LINEARITY)
line(I, CIRCLE)
display(line)

# %% [markdown]
# So lengths do not change, and the way back is the transpose. Here is the gradient of one row, from the
# rule that ships:

# %%
X, dY = row.free("X", "1, d"), row.free("dY", "1, d")
Y, saved = rope(X, c_row, s_row, pairing="half")
Y, X_dot = row.let("Y", Y), row.tangent(X)
Y_dot, _ = differential(rope, moves(X, X_dot), c_row, s_row, pairing="half", name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, X_dot @ R), definition(Y, X @ R).moves)
line(inner(dY @ R.mT, X_dot), laws.RIGHT)
line.reads_off(X_dot, rope_vjp(dY, saved).X)
display(line)

# %% [markdown]
# $R^\top = R^{-1}$ turns by $-\theta$: **the backward pass of a rotation is the rotation back**. It is $C -
# Z T = C - T Z$ (third line above), so the same code serves, with $-s$ for $s$.
#
# ## Why it says where things are: relative positions
#
# Turning by $p\,\theta$ is turning $p$ times by $\theta$. So if $R$ is the matrix of position 1, position $p$
# has the matrix $R^p$. A query at position 3 meets a key at position 1 (both $1 \times d$, before scaling),
# and $R R^\top = I$ has just been derived:

# %%
q, k = row.free("q", "1, d"), row.free("k", "1, d")
line = chain((q @ R @ R @ R) @ (k @ R).mT, "the score of a query at 3 and a key at 1")
line(q @ R @ R @ I @ k.mT, fact(R @ R.mT, I))
line(q @ R @ R @ k.mT, fact(I @ k.mT, k.mT))
display(line)

# %% [markdown]
# Only the distance is left: $q\, R^i (k\, R^j)^\top = q\, R^{i - j} k^\top$ for $i \ge j$, and $q\,
# (R^\top)^{j - i} k^\top$ for $i < j$. Each absolute position has gone into the rotation of its own row, and
# the scores contain differences. That is the idea of RoPE, and it needs nothing but orthogonality.
#
# ## The gradient in a layer, and a zero that is none any more
#
# Queries and keys are turned, values are not. With $Q_{rot}$ and $K_{rot}$, $n \times d$, for the turned
# ones,
#
# $$S = \tau\, Q_{rot} K_{rot}^\top, \qquad dK_{rot} = \tau\, dS^\top Q_{rot}, \qquad
# dK = dK_{rot} \circ c - (dK_{rot} \circ s)\, T$$
#
# by chapter 5 and the first chain above, and then chapter 3 for the weights. One thing changes that looks
# like a detail. In chapter 8 $db^K = 0$, because a bias of the keys adds the same number to all scores of a
# row. Here the bias is added *before* the rotation. It reaches key $j$ as $b^K R^j$, which is another vector
# for each key. One head, in full:

# %%
one_head = Point(n=3, d_model=5, d=4, d_v=6, d_out=7)
X, W_O = one_head.free("X", "n, d_model"), one_head.free("W_O", "d_v, d_out")
W_Q, W_K = one_head.free("W_Q", "d_model, d"), one_head.free("W_K", "d_model, d")
W_V, b_K = one_head.free("W_V", "d_model, d_v"), one_head.free("b_K", "d")
c, s, tau = one_head.free("c", "n, d"), one_head.free("s", "n, d"), one_head.free("scale")
T, one = one_head.given("T", turn(torch.eye(4), "half")), one_head.given("1", torch.ones(3, 1))
dY = one_head.free("dY", "n, d_out")
options = {"n_heads": 1, "scale": tau, "cos": c, "sin": s, "pairing": "half"}
weights = (X, W_Q, W_K, W_V, W_O)
_, saved = multihead(*weights, b_K=b_K, **options)

K = one_head.let("K", linear(X, W_K, b_K)[0])
Q_rot = one_head.let("Q_rot", rope(X @ W_Q, c, s)[0])
K_rot = one_head.let("K_rot", rope(K, c, s)[0])
_, inside = attention(Q_rot, K_rot, X @ W_V, scale=tau)
dS = one_head.let(
    "dS", inside.P * (dY @ W_O.mT @ (X @ W_V).mT - (dY @ W_O.mT * inside.O).sum(-1, keepdim=True))
)
dK_rot = one_head.let("dK_rot", tau * dS.mT @ Q_rot)

b_K_dot = one_head.tangent(b_K)
Y_dot, _ = differential(multihead, *weights, b_K=moves(b_K, b_K_dot), **options, name="Y")


def turned_keys(X, W_K, b_K, c, s):
    return rope(linear(X, W_K, b_K)[0], c, s)[0]


K_dot = one_head.let("K_dot", differential(linear, X, W_K, moves(b_K, b_K_dot))[0])
K_rot_dot = differential(turned_keys, X, W_K, moves(b_K, b_K_dot), c, s, name="K_rot")
CHAPTER_5 = fact(inner(dY, Y_dot), inner(dK_rot, K_rot_dot), "the gradient of the turned keys, chapter 5")
TURNED_KEYS = definition(K_rot, K * c + (K @ T) * s)
BIASED = definition(K, X @ W_K + one @ b_K.unsqueeze(0))

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dK_rot, K_rot_dot), CHAPTER_5)
line(inner(dK_rot, K_dot * c + (K_dot @ T) * s), TURNED_KEYS.moves)
line(inner(dK_rot * c, K_dot) + inner((dK_rot * s) @ T.mT, K_dot), laws.LINEARITY, laws.ENTRYWISE, laws.RIGHT)
line(inner(dK_rot * c - (dK_rot * s) @ T, K_dot), fact(T.mT, -T), laws.LINEARITY)
dK = line.let("dK", dK_rot * c - (dK_rot * s) @ T)
line(inner(dK, one @ b_K_dot.unsqueeze(0)), BIASED.moves)
line(inner(dK.sum(0), b_K_dot), laws.BIAS)
line.reads_off(b_K_dot, multihead_vjp(dY, saved).b_K)
display(line)

# %% [markdown]
# $db^K$ is still a sum over the rows of $dK$. But in chapter 8 these were the rows of $\tau\, dS^\top Q$,
# which add up to $\tau\, \operatorname{rowsum}(dS)^\top Q = 0$. Now each row of $\tau\, dS^\top Q_{rot}$ is
# turned back by its own angle before it is added. A check that demands $db^K = 0$ raises an alarm on every
# model with RoPE, and a model that left out $b^K$ because "it does nothing" has lost something.

# %%
draw = torch.Generator().manual_seed(12)
N, D = 6, 8
tokens = torch.randn(N, D, dtype=torch.float64, generator=draw)
W = [torch.randn(D, D, dtype=torch.float64, generator=draw) / D**0.5 for _ in range(4)]
cotangent, bias = torch.randn(N, D, dtype=torch.float64, generator=draw), torch.ones(D, dtype=torch.float64)
cos, sin = rotary_tables(torch.arange(N, dtype=torch.float64), D)
for name, tables in (("without RoPE", {}), ("with RoPE", {"cos": cos, "sin": sin})):
    _, kept = multihead(tokens, *W, n_heads=1, b_K=bias, **tables)
    print(f"{name:13s} |db_K| = {multihead_vjp(cotangent, kept).b_K.norm():.1e}")

# %% [markdown]
# ## Columns that do not turn
#
# GPT-J and GPT-NeoX turn the first $r$ of $d$ columns and pass the others on. That needs no new derivation:
# a column that does not turn has cosine 1 and sine 0. Pad the tables with ones and zeros, and $T$ with
# zeros:

# %%
partial = Point(n=3, d=7, r=4)
X_p, dY_p = partial.free("X", "n, d"), partial.free("dY", "n, d")
c_r, s_r = partial.free("c_r", "n, r"), partial.free("s_r", "n, r")
c_p = partial.let("c", torch.cat([c_r, partial.given("1", torch.ones(3, 3))], -1))
s_p = partial.let("s", torch.cat([s_r, partial.given("0", torch.zeros(3, 3))], -1))
T_p = partial.given("T", torch.block_diag(turn(torch.eye(4), "half"), torch.zeros(3, 3)))

Y_p, saved_p = rope(X_p, c_r, s_r, pairing="half")
PARTIAL = definition(partial.let("Y", Y_p), X_p * c_p + (X_p @ T_p) * s_p)
BACK = fact(rope_vjp(dY_p, saved_p).X, dY_p * c_p - (dY_p * s_p) @ T_p)

# %% [markdown]
# The machine has compared: the function that ships, with tables of $r = 4$ columns, is this formula with
# tables of $d = 7$. The gradient is therefore the one above, and in the tail it reads $dX = dY \circ 1 -
# 0$: passed on as it came. The last line of the cell has compared that, too.
#
# ## What the slips do
#
# One rotation of six tokens of width 8, and three wrong ways back. Two kinds of tables: those of RoPE, where
# both columns of a pair have one sine, and random ones, where they have not.

# %%


def passes(saved, dY):
    """The backward pass of one rotation: the right one and three wrong ones."""
    cos, sin = saved.cos, saved.sin
    yield "the right one", dY * cos - turn(dY * sin, "half")
    yield "turned by +θ", dY * cos + turn(dY * sin, "half")
    yield "sine outside", dY * cos - turn(dY, "half") * sin
    yield "not turned", dY


free_cos, free_sin = torch.randn(2, N, D, dtype=torch.float64, generator=draw)
print("relative error of dX     RoPE's tables   free tables")
errors = {}
for tables in ((cos, sin), (free_cos, free_sin)):
    _, kept = rope(tokens, *tables)
    right = rope_vjp(cotangent, kept).X
    for name, found in passes(kept, cotangent):
        errors.setdefault(name, []).append(((found - right).norm() / right.norm()).item())
for name, (first, second) in errors.items():
    print(f"{name.replace('θ', 'theta'):24s} {first:13.2f} {second:13.2f}")

# %% [markdown]
# "Sine outside" is the interesting one. $(dY\, T) \circ s$ and $(dY \circ s)\, T$ are equal for every $dY$ if
# and only if both columns of each pair have the same sine, and RoPE's tables are made so. The wrong order
# passes every test with such tables and fails with all others, and tables are an *argument* of the operator.
#
# ```{admonition} Common mistake: the sine on the wrong side
# :class: warning
# $dX = dY \circ c - (dY\, T) \circ s$: turned first, multiplied afterwards, as in the forward pass.
# Invisible while the two halves of the sine table are equal. A test needs tables without structure. Seen
# in: Paddle #74716.
# ```
#
# ```{admonition} Common mistake: turned the same way again
# :class: warning
# The backward pass calls the forward code, with $+s$. All lengths are right, because a rotation by
# $+\theta$ preserves them too, so a look at gradient norms finds nothing. Position 0 is right as well; at
# position $p$ a pair is off by the angle $2 p\, \theta$. What it does to training is below. (Met in
# classrooms.)
# ```
#
# Does the loss show it? A teacher and three students, all with RoPE; they learn $W^Q$ and $W^K$.

# %%
batch = torch.randn(16, N, D, dtype=torch.float64, generator=draw)
teacher_Q, teacher_K, first_Q, first_K = (
    1.5 * torch.randn(D, D, dtype=torch.float64, generator=draw) / D**0.5 for _ in range(4)
)


def attended(W_Q, W_K):
    """O for values that are the tokens, and what the way back needs."""
    (Q, kept_Q), (K, kept_K) = rope(batch @ W_Q, cos, sin), rope(batch @ W_K, cos, sin)
    O, kept = attention(Q, K, batch)
    return O, kept, kept_Q, kept_K


target = attended(teacher_Q, teacher_K)[0]
print("step                  0       5      20      60")
for wanted in ("the right one", "turned by +θ", "not turned"):
    W_Q, W_K, losses = first_Q, first_K, []
    for _ in range(61):
        O, kept, *rotations = attended(W_Q, W_K)
        losses.append((O - target).square().mean().item())
        g = attention_vjp((O - target) / len(batch), kept)
        back = [dict(passes(r, d))[wanted] for r, d in zip(rotations, (g.Q, g.K), strict=True)]
        W_Q, W_K = (W - 0.2 * (batch.mT @ d).sum(0) for W, d in zip((W_Q, W_K), back, strict=True))
    print(f"{wanted.replace('θ', 'theta'):15s}", "".join(f"{losses[i]:8.4f}" for i in (0, 5, 20, 60)))

# %% [markdown]
# With both mistakes the loss falls at first, by half and more, and then climbs again. Their gradients are
# right at position 0 and nearly right for pairs that turn slowly, and wrong for the rest. A plot of the first
# steps looks healthy.
#
# ```{admonition} Common mistake: the wrong pairs
# :class: warning
# Interleaved angles, $\theta_1 \theta_1 \theta_2 \theta_2$, with half-split pairs, (1, 3) and (2, 4): each
# column of a pair turns by another angle. $R$ is not orthogonal any more, and scores depend on absolute
# positions. The derivative is right for what is computed, so no gradient check sees it, and the model can
# be trained. Weights made with one pairing are useless with the other. Seen in: how-to-train-your-gpt #6,
# nanotron #427, LLMs-from-scratch #747.
# ```
#
# A forward check that costs nothing: the same query and the same key, at positions $(p + 1, p)$ for several
# $p$, must have one score.

# %%
query, key = torch.randn(2, 1, D, dtype=torch.float64, generator=draw)
for pairing in ("half", "interleaved"):
    tables = rotary_tables(torch.arange(N, dtype=torch.float64), D, pairing=pairing)
    q_all, k_all = (rope(v.expand(N, D), *tables, pairing="half")[0] for v in (query, key))
    next_to = (q_all[1:] * k_all[:-1]).sum(-1)
    print(f"half-split pairs, {pairing:11s} tables:", " ".join(f"{x:6.3f}" for x in next_to.tolist()))

# %% [markdown]
# ```{admonition} Common mistake: ones in the tail
# :class: warning
# A kernel fills the columns that do not turn with 1.0 instead of $dY$. Its test used `loss = output.sum()`,
# so $dY$ *was* 1 everywhere, and the error was 0. With another loss these columns get the same gradient in
# every step, whatever was asked of them. A constant cotangent hides what does not depend on it. Seen in:
# apex #1750.
# ```
#
# ## With numbers
#
# One pair, the angle with cosine 3/5 and sine 4/5, and the first two features of our three tokens, at
# positions 0, 1, 2. Turning twice gives the cosine $(9 - 16)/25$ and the sine $24/25$.

# %%
c_small = torch.tensor([[1.0], [3 / 5], [-7 / 25]], dtype=torch.float64).expand(3, 2)
s_small = torch.tensor([[0.0], [4 / 5], [24 / 25]], dtype=torch.float64).expand(3, 2)
X_small = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
Y_small, kept = rope(X_small, c_small, s_small, pairing="interleaved")
print("25 Y        ", (25 * Y_small).round().int().tolist())
print("25 dX, dY = X", (25 * rope_vjp(X_small, kept).X).round().int().tolist())
print("dX, dY = Y  ", rope_vjp(Y_small, kept).X.round().int().tolist())

# %% [markdown]
# Token 2, (0, 1), turns to (−4/5, 3/5); as a cotangent it turns back, to (4/5, 3/5). And if $dY = Y$, then
# $dX = X$: the backward pass undoes the forward pass.

# %% [markdown]
# ## Exercises

# %% [markdown] exercise="12.1" kind="chain" points=4 title="The weights of the queries"
# In the head above only $W^Q$ moves, $d_{model} \times d$. The queries are $Q = X W^Q$, turned $Q_{rot} = Q
# \circ c + (Q T) \circ s$, and chapter 5 has brought the chain to $dQ_{rot} = \tau\, dS\, K_{rot}$, all $n
# \times d$. Continue to the gradient of $W^Q$. `TURNED_QUERIES.moves` is the product rule on $Q_{rot}$,
# `QUERIES.moves` that on $Q$, and `SKEW` is $T^\top = -T$.

# %% given="12.1"
X, W_Q, *others = weights
Q = one_head.let("Q", linear(X, W_Q)[0])
dQ_rot = one_head.let("dQ_rot", tau * dS @ K_rot)
QUERIES, TURNED_QUERIES = definition(Q, X @ W_Q), definition(Q_rot, Q * c + (Q @ T) * s)
SKEW = fact(T.mT, -T)


def turned_queries(X, W_Q, c, s):
    return rope(linear(X, W_Q)[0], c, s)[0]


W_Q_dot = one_head.tangent(W_Q)
Y_dot, _ = differential(multihead, X, moves(W_Q, W_Q_dot), *others, b_K=b_K, **options, name="Y")
Q_dot = one_head.let("Q_dot", differential(linear, X, moves(W_Q, W_Q_dot))[0])
Q_rot_dot = differential(turned_queries, X, moves(W_Q, W_Q_dot), c, s, name="Q_rot")
line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dQ_rot, Q_rot_dot), fact(inner(dY, Y_dot), inner(dQ_rot, Q_rot_dot), "chapter 5"))

# %% answer="12.1"
### BEGIN SOLUTION
line(inner(dQ_rot, Q_dot * c + (Q_dot @ T) * s), TURNED_QUERIES.moves)
line(inner(dQ_rot * c, Q_dot) + inner((dQ_rot * s) @ T.mT, Q_dot), laws.LINEARITY, laws.ENTRYWISE, laws.RIGHT)
line(inner(dQ_rot * c - (dQ_rot * s) @ T, Q_dot), SKEW, laws.LINEARITY)
line(inner(X.mT @ (dQ_rot * c - (dQ_rot * s) @ T), W_Q_dot), QUERIES.moves, laws.LEFT)
### END SOLUTION


# %% checker="12.1"
def same_way(line):
    """sign"""
    line(inner(dQ_rot, Q_dot * c + (Q_dot @ T) * s), TURNED_QUERIES.moves)
    line(
        inner(dQ_rot * c, Q_dot) + inner((dQ_rot * s) @ T.mT, Q_dot),
        laws.LINEARITY,
        laws.ENTRYWISE,
        laws.RIGHT,
    )
    line(inner(dQ_rot * c + (dQ_rot * s) @ T, Q_dot), SKEW, laws.LINEARITY)


def sine_outside(line):
    """must equal the line before it"""
    line(inner(dQ_rot, Q_dot * c + (Q_dot @ T) * s), TURNED_QUERIES.moves)
    line(
        inner(dQ_rot * c, Q_dot) + inner((dQ_rot @ T.mT) * s, Q_dot),
        laws.LINEARITY,
        laws.ENTRYWISE,
        laws.RIGHT,
    )


check_chain(line, W_Q_dot, multihead_vjp(dY, saved).W_Q, mistakes=[same_way, sine_outside])

# %% [markdown] exercise="12.2" kind="function" points=4 title="The way back, interleaved"
# Write the gradient of an interleaved rotation, neighbours turn together, for tables of any content. $dY$,
# $c$, $s$ and $dX$ are all $n \times d$, $d$ even.


# %% answer="12.2"
def rotate_back(dY, c, s):
    """dX, n × d."""
    ### BEGIN SOLUTION
    Z = dY * s
    turned = torch.stack([Z[:, 1::2], -Z[:, 0::2]], -1).reshape(dY.shape)
    return dY * c + turned
    ### END SOLUTION


# %% checker="12.2"
def forward(X, c, s):
    turned = torch.stack([-X[:, 1::2], X[:, 0::2]], -1).reshape(X.shape)
    return {"Y": X * c + turned * s}


def turned_on(dY, c, s):
    """turned by +θ: the forward code, called again"""
    Z = dY * s
    return dY * c + torch.stack([-Z[:, 1::2], Z[:, 0::2]], -1).reshape(dY.shape)


def outside(dY, c, s):
    """the sine stands outside the turn: right only where both sines of a pair are equal"""
    return dY * c + torch.stack([dY[:, 1::2], -dY[:, 0::2]], -1).reshape(dY.shape) * s


def half_split(dY, c, s):
    """half-split pairs, (i, i + d/2), for neighbours"""
    first, second = (dY * s).chunk(2, -1)
    return dY * c + torch.cat([second, -first], -1)


check_functions(
    {"dX": rotate_back},
    forward,
    inputs={"X": "n, d", "c": "n, d", "s": "n, d"},
    sizes=[{"n": 3, "d": 4}, {"n": 5, "d": 6}],
    mistakes=[turned_on, outside, half_split],
)

# %% [markdown] exercise="12.3" kind="mistake" points=4 title="A learned table"
# Some models learn their angles, so the tables have gradients. Here the sines move. One line is false.
# Which, and what should stand there? All matrices are $n \times d$, $T$ is $d \times d$.

# %% given="12.3"
at = Point(n=3, d=4)
X, dY, c, s = (at.free(name, "n, d") for name in ("X", "dY", "c", "s"))
T = at.given("T", turn(torch.eye(4), "half"))
Y, saved = rope(X, c, s, pairing="half")
TABLES = definition(at.let("Y", Y), X * c + (X @ T) * s)
s_dot = at.tangent(s)
Y_dot, _ = differential(rope, X, c, moves(s, s_dot), pairing="half", name="Y")

wrong = claim(inner(dY, Y_dot), "the differential of ℓ")
wrong(inner(dY, (X @ T) * s_dot), TABLES.moves)
wrong(inner((dY * X) @ T, s_dot), laws.ENTRYWISE)
display(wrong)

# %% answer="12.3"
### BEGIN SOLUTION
answer = correct(3, inner(dY * (X @ T), s_dot), laws.ENTRYWISE)
### END SOLUTION


# %% checker="12.3"
def line_two():
    """line 2 follows from line 1"""
    return correct(2, inner(dY, X @ T + s_dot), TABLES.moves)


def turned_back():
    """must equal the line before it"""
    return correct(3, inner(-(dY @ T) * X, s_dot), laws.ENTRYWISE)


check_mistake(wrong, answer, s_dot, rope_vjp(dY, saved).sin, mistakes=[line_two, turned_back])

# %% [markdown]
# **Questions.** 1. Both columns of a pair share one sine, $s = [\sigma \Vert \sigma]$ in the half-split
# pairing. What is $d\sigma$, $n \times d/2$? And $d\theta$, if $c = \cos(p\,\theta)$ and $s =
# \sin(p\,\theta)$? 2. Which entries of $db^K$ are zero with a *partial* rotation, and why? 3. A cache holds
# turned keys. What must a program do that drops the first half of a text and renumbers the positions? 4.
# Values are not turned. Suppose they were: what would one have to do with $O$ so that the output still
# depends on relative positions only?
