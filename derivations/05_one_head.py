# %% [markdown]
# # 5 One head
#
# $$S = \tau Q K^\top + B, \qquad P = \operatorname{softmax}(S), \qquad O = P V$$
#
# (Vaswani et al. 2017, eq. 1). The queries $Q$ are $n_q \times d_k$, the keys $K$ are $n_k \times d_k$, the
# values $V$ are $n_k \times d_v$. Scores $S$, probabilities $P$ and the bias $B$ are $n_q \times n_k$, the
# output $O$ is $n_q \times d_v$, and $\tau$ is a number, usually $1/\sqrt{d_k}$.
#
# Read a row at a time. Query $i$ is compared with every key; the comparison $\tau \langle q_i, k_j\rangle$
# says how much query $i$ wants of value $j$; softmax turns the comparisons into shares that add up to 1; row
# $i$ of $O$ is the values mixed in these shares.
#
# The gradient of each of the three is known: a product (chapter 3), a softmax (chapter 4), a product. What is
# left is to put them after one another in the reverse order. The result is six lines that every
# implementation of attention contains in some form:
#
# $$dV = P^\top dO, \qquad dP = dO\, V^\top, \qquad \delta = \operatorname{rowsum}(P \circ dP)$$
#
# $$dS = P \circ (dP - \delta), \qquad dQ = \tau\, dS\, K, \qquad dK = \tau\, dS^\top Q$$
#
# Each gradient has the shape of its variable: $dV$ is $n_k \times d_v$, $dQ$ is $n_q \times d_k$, and so on.
# We keep $\tau$ as a letter, allow a mask $M$ and any bias, and let the last query see nothing at all.

# %%
from types import SimpleNamespace

import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat
from gradderiv.rules.attention import attention, attention_vjp


def rowsum(A):
    return A.sum(-1, keepdim=True)  # n_q 1


at = Point(n_q=3, n_k=4, d_k=2, d_v=5)
Q, K, V = at.free("Q", "n_q, d_k"), at.free("K", "n_k, d_k"), at.free("V", "n_k, d_v")
tau = at.free("scale")
bias = at.free("bias", "n_q, n_k")
mask = at.given("mask", torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [0, 0, 0, 0]]).bool())
options = {"scale": tau, "mask": mask}
dO = at.free("dO", "n_q, d_v")

O, saved = attention(Q, K, V, bias=bias, **options)
O, S, P = at.let("O", O), saved.S, saved.P

# %% [markdown]
# Two lines of the program are what the derivation leans on, and we state them as definitions. The machine
# evaluates both sides here and now. The third line, softmax, has no formula in sums and products; its tangent
# is the result of chapter 4,
#
# $$\dot{P} = P \circ (\dot{S} - \operatorname{rowsum}(P \circ \dot{S}))$$
#
# and will be cited as a fact, which is checked where it is cited.

# %%
SCORES = definition(S, tau * Q @ K.mT + bias)
OUTPUT = definition(O, P @ V)

# %% [markdown]
# ## The values
#
# $V$ is nearest to the output. Only $V$ moves, and $P$ stays.

# %%
V_dot = at.tangent(V)
O_dot, _ = differential(attention, Q, K, moves(V, V_dot), bias=bias, **options, name="O")

line = chain(inner(dO, O_dot), "the differential of ℓ")
line(inner(dO, P @ V_dot), OUTPUT.moves)
line(inner(P.mT @ dO, V_dot), laws.LEFT)
line.reads_off(V_dot, attention_vjp(dO, saved).V)
display(line)

# %% [markdown]
# Dimensions: $(n_k \times n_q)(n_q \times d_v)$. In words: key $j$ collects the gradients of all queries,
# each weighted by how much that query looked at it. The forward pass spreads values over queries with $P$;
# the backward pass collects with $P^\top$.
#
# ```{admonition} Common mistake: the transpose of P
# :class: warning
# $dV = P\, dO$. With $n_q \ne n_k$ the shapes object. In self-attention they do not. With $P$ in place of
# $P^\top$ query and key exchange their parts: token $i$ is credited with what it *received* and not with
# what it *gave*. The experiment below trains with it, and the loss falls to nothing all the same. A loss
# that falls proves nothing about a gradient. What does flag it:
# $\langle dV, V\rangle = \langle dO, O\rangle$, which follows from $O = PV$ in one line. (A slip that
# teachers and graders meet.)
# ```
#
# ## The scores, by way of the bias
#
# Everything else reaches $O$ through $S$. The bias $B$, `bias` in the program and in the chains, is added to
# $S$, so the gradient of the bias *is* the gradient of the scores, and it is the one that all others use. Two
# results on the way get names for the rest of the chapter, both $n_q \times n_k$.

# %%
dP = at.let("dP", dO @ V.mT)
delta = at.let("delta", rowsum(P * dP))
dS = at.let("dS", P * (dP - delta))
dP_IS, DELTA_IS, dS_IS = definition(dP), definition(delta), definition(dS)

bias_dot = at.tangent(bias)
O_dot, dot = differential(attention, Q, K, V, bias=moves(bias, bias_dot), **options, name="O")
SOFTMAX = fact(dot.P, P * (dot.S - rowsum(P * dot.S)), "the tangent of softmax, chapter 4")

line = chain(inner(dO, O_dot), "the differential of ℓ")
line(inner(dO, dot.P @ V), OUTPUT.moves)
line(inner(dO @ V.mT, dot.P), laws.RIGHT)
line(inner(dP, dot.P), dP_IS)
line(inner(dP, P * (dot.S - rowsum(P * dot.S))), SOFTMAX)
line(inner(dP, P * dot.S) - inner(dP, P * rowsum(P * dot.S)), laws.LINEARITY)
line(inner(dP, P * dot.S) - inner(delta, rowsum(P * dot.S)), laws.ROW_SUM, DELTA_IS)
line(inner(dP, P * dot.S) - inner(P * delta, dot.S), laws.ROW_SUM)
line(inner(P * dP, dot.S) - inner(P * delta, dot.S), laws.ENTRYWISE)
line(inner(P * (dP - delta), dot.S), laws.LINEARITY, note="collect Ṡ")
line(inner(dS, dot.S), dS_IS)
line(inner(dS, bias_dot), SCORES.moves)
line.reads_off(bias_dot, attention_vjp(dO, saved).bias)
display(line)
to_the_scores = line

# %% [markdown]
# Where the mask hides an entry, $P$ is 0, and with it $dS$: no gradient flows to a score that was not used.
# The mask itself does not occur in the backward pass. Row sums of $dS$ are 0, as in chapter 4.
#
# ## The queries
#
# From here on the first lines are the same for every variable that acts through $S$, so we cite them. What we
# cite is a checked chain, and the machine compares our line with the lines that it showed.

# %%
Q_dot = at.tangent(Q)
O_dot, dot = differential(attention, moves(Q, Q_dot), K, V, bias=bias, **options, name="O")

line = chain(inner(dO, O_dot), "the differential of ℓ")
line(inner(dS, dot.S), to_the_scores.cited("as for the bias"))
line(inner(dS, tau * Q_dot @ K.mT), SCORES.moves)
line(inner(tau * dS @ K, Q_dot), laws.RIGHT)
line.reads_off(Q_dot, attention_vjp(dO, saved).Q)
display(line)

# %% [markdown]
# Dimensions: $(n_q \times n_k)(n_k \times d_k)$. Row $i$ of $dQ$ is a combination of keys with coefficients
# $\tau\, dS_{ij}$ that add up to 0: query $i$ is told to lean towards the keys whose share should grow, and
# away from the others. Add the same vector to all keys and $dQ$ does not change.
#
# ## The keys
#
# $K$ stands under a transpose, so there is one step more: both sides of the inner product are transposed.

# %%
K_dot = at.tangent(K)
O_dot, dot = differential(attention, Q, moves(K, K_dot), V, bias=bias, **options, name="O")

line = chain(inner(dO, O_dot), "the differential of ℓ")
line(inner(dS, dot.S), to_the_scores.cited("as for the bias"))
line(inner(dS, tau * Q @ K_dot.mT), SCORES.moves)
line(inner(tau * Q.mT @ dS, K_dot.mT), laws.LEFT)
line(inner(tau * dS.mT @ Q, K_dot), laws.TRANSPOSE)
line.reads_off(K_dot, attention_vjp(dO, saved).K)
display(line)

# %% [markdown]
# Dimensions: $(n_k \times n_q)(n_q \times d_k)$.
#
# ```{admonition} Common mistake: the transpose of dS
# :class: warning
# $dK = \tau\, dS\, Q$ is $(n_q \times n_k)(n_q \times d_k)$, which does not exist unless $n_q = n_k$. In
# self-attention it does, and nothing complains. Coefficients of a row of $dS$ sum to 0, those of a column do
# not: the wrong $dK$ takes the rows, and so mixes differences of queries where it should mix queries. The
# loss falls at first, and stops far above zero (measured below). It breaks
# $\langle dQ, Q\rangle = \langle dK, K\rangle$, exercise 5.1.
# ```
#
# ```{admonition} Common mistake: dQ and dK exchanged
# :class: warning
# The two formulas differ by a transpose and a letter. Programs that return several gradients as a plain
# tuple can return them in the wrong order; shapes agree in self-attention. The loss stays above half of what
# it was at first (measured below), and $\langle dQ, Q\rangle = \langle dK, K\rangle$ breaks. It is why the
# functions of this book return gradients under names.
# ```
#
# ## The scale
#
# $\tau$ appears once in $dQ$ and once in $dK$. It is the factor about which most slips are on record.
#
# ```{admonition} Common mistakes: the scale
# :class: warning
# *Missing in the backward pass*: $dQ = dS\, K$, as a vendor's page prints it (and mlc-llm #3426 had no $\tau$
# in $S$). $dQ$ and $dK$ are too large by $1/\tau$, together: directions are right, and $W^Q$, $W^K$ learn at
# a rate that nobody chose. $\langle dQ, Q\rangle = \langle dK, K\rangle$ cannot see it, because both sides
# scale alike; an independent derivative does.
#
# *Twice*: $Q$ was scaled before it was saved, and $dK$ is multiplied by $\tau$ again (flash-attention
# #2657). $dK$ alone is wrong by a factor. $\langle dQ, Q\rangle = \langle dK, K\rangle$ flags it at once;
# the loss does not.
#
# *Another number*: $1/\sqrt{d_{\mathrm{model}}}$ (ViT-CIFAR #9, dfdx #171, set_transformer #18,
# train-llm-from-scratch #3), $1/\sqrt{h}$ (tt-metal #56789), or a division by $1/\sqrt{d_k}$, which
# multiplies by $\sqrt{d_k}$ (perceiver-io #9). These stand in the *forward* pass, and forward and backward
# agree with each other: a gradient check passes. Only a reference for the forward pass can object. What they
# do is below.
# ```
#
# With entries of $Q$ and $K$ of variance 1, a product $\langle q_i, k_j\rangle$ of $d_k$ terms has variance
# $d_k$, and $\tau = 1/\sqrt{d_k}$ brings it back to 1 (Vaswani et al. 2017, §3.2.1, footnote 4). A $\tau$
# that is too large makes softmax decide before anything has been learned, and $P \circ (dP - \delta)$ is
# nearly 0 where $P$ is nearly 0 or 1. One that is too small makes every query look everywhere, and $dQ$ and
# $dK$ carry the small factor, too. With $d_k = 64$ and 12 heads:

# %%
draw = torch.Generator()
q, k = torch.randn(2, 64, 64, generator=draw, dtype=torch.float64)  # 64 queries and keys of width 64
for name, number in (("1/√d_k", 1 / 8), ("1/√d_model", 768**-0.5), ("1/√h", 12**-0.5), ("√d_k", 8.0)):
    shares = torch.softmax(number * q @ k.T, -1)
    slope = (shares * (1 - shares)).sum(-1).mean()
    display(f"τ = {name:10}  greatest share {shares.amax(-1).mean():.2f}, room to move {slope:.2f}")

# %% [markdown]
# "Room to move" is $\sum_j P_{ij} (1 - P_{ij})$, the trace of the Jacobian of a row: what all gradients of
# scores are made of.
#
# ## δ without P
#
# $\delta = \operatorname{rowsum}(P \circ dP)$, $n_q \times 1$, needs two $n_q \times n_k$ matrices. It is
# also a row sum of $n_q \times d_v$ matrices, both of which a backward pass already has (Dao et al. 2022,
# app. B.2): the inner product of the output of a query with the gradient that arrives there. This is what
# makes a backward pass in tiles possible: $\delta$ is known before the first tile is read.

# %%
line = chain(rowsum(P * (dO @ V.mT)), "δ, with dP = dO Vᵀ written out")
line(rowsum(dO * (P @ V)), laws.ROW_EXCHANGE)
line(rowsum(dO * O), OUTPUT)
display(line)

# %% [markdown]
# The law says that two sums may be exchanged:
# $\sum_j P_{ij} \sum_k dO_{ik} V_{jk} = \sum_k dO_{ik} \sum_j P_{ij} V_{jk}$.
#
# ```{admonition} Common mistake: δ from the wrong place
# :class: warning
# $\delta$ has one number per row, and a kernel that reads it from a buffer with another stride, or from the
# wrong buffer, subtracts the $\delta$ of another row (ROCm/aiter #2808, FlagAttention #1, pytorch
# #141147). $dV$ does not use $\delta$ and is right, which makes the fault look like one of $Q$ and $K$.
# The loss falls, and stops early (measured below). Row sums of $dS$ are not 0 any more: they are
# $\delta_i - \delta_{i'}$ wherever $P$ sums to 1.
# ```
#
# ## With numbers
#
# Three queries, three keys, the scores of chapter 4 (as $Q$, with $K$ the identity and $\tau = 1$), and as
# $V$ the last two columns of our example. The loss is the first output of the first query.

# %%
logs = torch.tensor([[1.0, 2, 1], [1, 1, 2], [3, 1, 1]], dtype=torch.float64).log()
eye = torch.eye(3, dtype=torch.float64)
values = torch.tensor([[2.0, 0], [0, 1], [0, 0]], dtype=torch.float64)
first = torch.tensor([[1.0, 0], [0, 0], [0, 0]], dtype=torch.float64)

mixed, kept = attention(logs, eye, values, scale=1.0)
g = attention_vjp(first, kept)
print("O     first row", mixed[0].tolist())
print("16 dQ first row", (16 * g.Q[0]).round(decimals=9).tolist())
print("16 dK", [[round(x, 3) for x in row] for row in (16 * g.K).tolist()])
print(" 4 dV", (4 * g.V).round(decimals=9).tolist())

# %% [markdown]
# By hand: $P_1 = (\tfrac14, \tfrac12, \tfrac14)$ and $O_{11} = 2 \cdot \tfrac14 = \tfrac12$.
# $dP = dO\, V^\top$ has the first row $(2, 0, 0)$, twice the $dP$ of chapter 4, so the first row of $dS$ is
# $(6, -4, -2)/16$, and since $K$ is the identity and $\tau = 1$ that is the first row of $dQ$.
# $dV = P^\top dO$ has $P_1$ as its first column. The first row of $Q$ is $(0, \log 2, 0)$, so
# $dK = dS^\top Q$ has $dS_1$ times $\log 2$ as its second column and zeros elsewhere.
#
# Six tokens with a causal mask and random $Q$, $K$, $V$ and $dO$, with the pattern of chapter 4: nothing
# above the diagonal, rows of $dS$ that add up to 0, and a first row of $dS$ that is 0.

# %%
q, k, v, d = torch.randn(4, 6, 4, generator=draw, dtype=torch.float64)
_, seen = attention(q, k, v, mask=torch.ones(6, 6).tril().bool())
gradient = attention_vjp(d, seen._replace(bias=torch.zeros(6, 6, dtype=torch.float64))).bias
pictured = {"P": seen.P, "dS": gradient + 0.0}
display(heat(pictured, rows="query", columns="key", alt="P and dS are lower triangular; rows of dS sum to 0"))

# %% [markdown]
# ## What each slip does to training
#
# One head learns to do what another, fixed head does: six tokens of width 4, and the squared error as loss.
# All start from the same weights, at the same loss, and take the same number of steps of gradient descent;
# only the backward pass differs. Printed is the loss at the start, after 10 steps and after 120.


# %%
def backward(dO, Q, K, V, P, tau):
    dV, dP = P.mT @ dO, dO @ V.mT
    dS = P * (dP - rowsum(P * dP))
    return {"Q": tau * dS @ K, "K": tau * dS.mT @ Q, "V": dV}, dS


def delta_of_another_row(g, h):
    delta = rowsum(h.dO * (h.P @ h.V))
    dS = h.dS + h.P * (delta - delta.roll(1, -2))
    return {**g, "Q": h.tau * dS @ h.K, "K": h.tau * dS.mT @ h.Q}


SLIPS = {  # g: the right gradients; h: what the head has at hand
    "none": lambda g, h: g,
    "no τ in dQ, dK": lambda g, h: {**g, "Q": g["Q"] / h.tau, "K": g["K"] / h.tau},
    "τ twice in dK": lambda g, h: {**g, "K": h.tau * g["K"]},
    "dV = P dO": lambda g, h: {**g, "V": h.P @ h.dO},
    "δ of another row": delta_of_another_row,
    "dK = τ dS Q": lambda g, h: {**g, "K": h.tau * h.dS @ h.Q},
    "dQ, dK swapped": lambda g, h: {**g, "Q": g["K"], "K": g["Q"]},
}


def train(slip, steps=120, rate=0.1, tau=0.5):
    draw = torch.Generator()
    tokens = torch.randn(32, 6, 4, generator=draw, dtype=torch.float64)
    T = (
        torch.randn(3, 4, 4, generator=draw, dtype=torch.float64)
        * torch.tensor([1.5, 0.75, 0.75])[:, None, None]
    )
    W = 0.5 * torch.randn(3, 4, 4, generator=draw, dtype=torch.float64)
    wanted, _, _, _, _ = forward(tokens, T, tau)
    losses = []
    for _ in range(steps + 1):
        O, Q, K, V, P = forward(tokens, W, tau)
        error = O - wanted
        losses.append((error**2).mean().item())
        g, dS = backward(error / 32, Q, K, V, P, tau)
        g = slip(g, SimpleNamespace(dO=error / 32, dS=dS, Q=Q, K=K, V=V, P=P, tau=tau))
        W = W - rate * torch.stack([(tokens.mT @ g[name]).sum(0) for name in "QKV"])
    return losses


def forward(tokens, W, tau):
    Q, K, V = (tokens @ W[i] for i in range(3))
    P = torch.softmax(tau * Q @ K.mT, -1)
    return P @ V, Q, K, V, P


for name, slip in SLIPS.items():
    losses = train(slip)
    display(f"{name:16} loss {losses[0]:.2f}, then {losses[10]:.2f}, then {losses[120]:.5f}")

# %% [markdown]
# The loss falls with all six slips. Two of the wrong gradients train as well as the right one, or nearly: a
# factor $\tau$ too many slows the keys down, and the transpose in $dV$ is not noticed at all. A factor too
# few is a learning rate twice as large for $W^Q$ and $W^K$; the loss falls faster at first, and stops
# earlier. With the $\delta$ of another row it stops at a thirtieth of what it was. Only the last two stay
# far above 0. This is why one checks a gradient, and does not watch a loss.
#
# ## Exercises
#
# Each is checked by the machine: a chain line by line, a function on exact numbers, a mistake by replaying
# it.

# %% [markdown] exercise="5.1" kind="chain" points=3 title="What queries and keys have in common"
# Show $\langle dQ, Q\rangle = \langle dK, K\rangle$, with a chain that begins at
# $\langle \tau\, dS\, K, Q\rangle$ and ends at $\langle \tau\, dS^\top Q, K\rangle$. Nothing moves here, and
# no tangent occurs: three laws are enough. (The common value is $\tau\, \partial\ell / \partial\tau$. A
# program that returns $dQ$ and $dK$ can test itself with it, without any derivative.)

# %% given="5.1"
line = chain(inner(tau * dS @ K, Q), "⟨dQ, Q⟩, with dQ = τ dS K")

# %% answer="5.1"
### BEGIN SOLUTION
line(inner(dS, tau * Q @ K.mT), laws.RIGHT)
line(inner(tau * Q.mT @ dS, K.mT), laws.LEFT)
line(inner(tau * dS.mT @ Q, K), laws.TRANSPOSE)
### END SOLUTION


# %% checker="5.1"
def other_side(line):
    """it follows by RIGHT"""
    line(inner(dS, tau * Q @ K.mT), laws.LEFT)


def no_scale(line):
    """is the factor τ missing?"""
    line(inner(dS, Q @ K.mT), laws.RIGHT)


def two_at_once(line):
    """is used as well"""
    line(inner(dS, tau * Q @ K.mT), laws.RIGHT)
    line(inner(tau * dS.mT @ Q, K), laws.TRANSPOSE)


check_chain(line, ends=inner(tau * dS.mT @ Q, K), mistakes=[other_side, no_scale, two_at_once])

# %% [markdown] exercise="5.2" kind="function" points=5 title="The backward pass of one head"
# Without looking back, write five of the six lines, each as a function of what came before it. Here
# $n_q = n_k = n$, as in self-attention: few shapes will tell you that a transpose is missing. There is no
# bias and no mask; $O = \operatorname{softmax}(\tau QK^\top) V$. Each function is judged on the true values
# of the ones before it.


# %% answer="5.2"
def value_gradient(dO, P):
    """dV, n × d_v."""
    ### BEGIN SOLUTION
    return P.mT @ dO
    ### END SOLUTION


def weight_gradient(dO, V):
    """dP, n × n."""
    ### BEGIN SOLUTION
    return dO @ V.mT
    ### END SOLUTION


def score_gradient(dP, P):
    """dS, n × n."""
    ### BEGIN SOLUTION
    return P * (dP - (P * dP).sum(-1, keepdim=True))
    ### END SOLUTION


def query_gradient(dS, K, scale):
    """dQ, n × d_k; scale is τ."""
    ### BEGIN SOLUTION
    return scale * dS @ K
    ### END SOLUTION


def key_gradient(dS, Q, scale):
    """dK, n × d_k; scale is τ."""
    ### BEGIN SOLUTION
    return scale * dS.mT @ Q
    ### END SOLUTION


# %% checker="5.2"
def one_head(Q, K, V, scale):
    S = scale * Q @ K.mT
    P = torch.softmax(S, -1)
    return {"S": S, "P": P, "O": P @ V}


def column_sums(dP, P):
    """summed over the queries"""
    return P * (dP - (P * dP).sum(-2, keepdim=True))


def no_scale_for_keys(dS, Q, scale):
    """no τ in dK"""
    return dS.mT @ Q


check_functions(
    {
        "dV": value_gradient,
        "dP": weight_gradient,
        "dS": score_gradient,
        "dQ": query_gradient,
        "dK": key_gradient,
    },
    one_head,
    inputs={"Q": "n, d_k", "K": "n, d_k", "V": "n, d_v", "scale": ""},
    sizes=[{"n": 4, "d_k": 2, "d_v": 3}, {"n": 3, "d_k": 5, "d_v": 2}],
    mistakes={
        "value_gradient": ["transpose-dV"],
        "score_gradient": ["softmax-diagonal", "softmax-no-rowsum", column_sums],
        "query_gradient": ["scale-missing"],
        "key_gradient": ["transpose-dK", "scale-twice", no_scale_for_keys],
    },
)

# %% [markdown] exercise="5.3" kind="mistake" points=4 title="Shared queries and keys"
# Some models use one matrix for both, $Q = K = X$, so that $S = \tau X X^\top$ (Kitaev et al. 2020, §2, up to
# a normalisation of the keys). $X$ is $n \times d_k$. One line of this derivation is false. Which, and what
# should stand there?

# %% given="5.3"
at = Point(n=4, d_k=2, d_v=3)
X, V, tau, dO = at.free("X", "n, d_k"), at.free("V", "n, d_v"), at.free("scale"), at.free("dO", "n, d_v")
O, saved = attention(X, X, V, scale=tau)
O, S, P = at.let("O", O), saved.S, saved.P
dP = at.let("dP", dO @ V.mT)
dS = at.let("dS", P * (dP - rowsum(P * dP)))
SCORES = definition(S, tau * X @ X.mT)
X_dot = at.tangent(X)
O_dot, dot = differential(attention, moves(X, X_dot), moves(X, X_dot), V, scale=tau, name="O")

wrong = claim(inner(dO, O_dot), "the differential of ℓ")
wrong(inner(dS, dot.S), to_the_scores.cited("as for the bias"))
wrong(inner(dS, tau * X_dot @ X.mT + tau * X @ X_dot.mT), SCORES.moves)
wrong(inner(dS, tau * X_dot @ X.mT) + inner(dS, tau * X @ X_dot.mT), laws.LINEARITY)
wrong(inner(dS, tau * X_dot @ X.mT) + inner(dS, tau * X_dot @ X.mT), laws.TRANSPOSE)
wrong(inner(tau * dS @ X, X_dot) + inner(tau * dS @ X, X_dot), laws.RIGHT)
wrong(inner(2 * (tau * dS @ X), X_dot), laws.LINEARITY)
display(wrong)

# %% answer="5.3"
### BEGIN SOLUTION
answer = correct(5, inner(dS, tau * X_dot @ X.mT) + inner(dS.mT, tau * X_dot @ X.mT), laws.TRANSPOSE)
### END SOLUTION


# %% checker="5.3"
def rest(line):
    line(inner(tau * dS @ X, X_dot) + inner(tau * dS.mT @ X, X_dot), laws.RIGHT)
    line(inner(tau * (dS + dS.mT) @ X, X_dot), laws.LINEARITY)


def product_rule():
    """line 3 follows from line 2"""
    return correct(3, inner(dS, tau * X_dot @ X.mT), SCORES.moves)


def last_line():
    """a line before line 7 is false already"""
    return correct(7, inner(tau * dS @ X, X_dot), laws.LINEARITY)


def both_transposed():
    """differ"""
    return correct(5, inner(dS.mT, tau * X_dot @ X.mT) + inner(dS.mT, tau * X_dot @ X.mT), laws.TRANSPOSE)


both = inner(tau * (dS + dS.mT) @ X, X_dot)
check_mistake(wrong, answer, ends=both, rest=rest, mistakes=[product_rule, last_line, both_transposed])

# %% [markdown]
# **Questions.** 1. Why do the rows of $dK$ always add up to 0, and the rows of $dQ$ only in special cases,
# for instance if all keys are equal? 2. Derive $d\tau$, and show that $\tau\, d\tau$ is the number of
# exercise 5.1. 3. A bias that depends only on $j - i$ has one parameter per diagonal. What is its gradient?
# 4. $W^Q$ is initialised to 0. Which of $dQ$, $dK$, $dV$ are 0 in the first step, and does the head ever
# learn to look anywhere?
