# %% [markdown]
# # 17 What FlashAttention recomputes
#
# $$P = \exp(S - \mathrm{lse}), \qquad \mathrm{lse}_i = \log \sum_k \exp S_{ik}, \qquad \delta = \operatorname{rowsum}(dO \circ O)$$
#
# (Dao et al. 2022, §3.1 and app. B; Dao 2023 for the form with lse.) $S$, $P$ are $n_q \times n_k$, $O$, $dO$
# are $n_q \times d_v$, lse and $\delta$ are $n_q \times 1$.
#
# The gradients of one head (chapter 5) need $P$, and $P$ has $n_q n_k$ entries. With 100 000 tokens that is
# $10^{10}$ numbers for one head, to be written to memory forwards and to be read backwards. FlashAttention
# never has it as a whole. It walks over the keys in *tiles*, keeps two numbers per query, the *log-sum-exp*
# $\mathrm{lse}$ of its scores and $\delta$, and computes each piece of $P$ a second time when the backward
# pass comes by.
#
# Nothing about the gradient is approximated. This chapter shows which identities make that possible: one for
# the forward pass, a sum that is rescaled when its largest term changes, and two for the backward pass, which
# say that all that a tile has to know about the other tiles is lse and $\delta$.
#
# ## Tiles of keys
#
# We cut the keys and values into two tiles, $n_k = n_1 + n_2$. As with heads in chapter 7, a matrix of zeros
# and ones does the cutting: $\Pi_1 = [I\ 0]$ is $n_1 \times n_k$, $\Pi_2 = [0\ I]$ is $n_2 \times n_k$, and
#
# $$K_j = \Pi_j K, \qquad V_j = \Pi_j V, \qquad S_j = \tau Q K_j^\top, \qquad P_j = P \Pi_j^\top$$
#
# are $n_j \times d_k$, $n_j \times d_v$ and, both, $n_q \times n_j$. So $S = [S_1\ S_2]$, $P = [P_1\ P_2]$ and
# $O = P_1 V_1 + P_2 V_2$. Two tiles are enough to see everything; with more, the sums have more terms.

# %%
from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat
from gradderiv.rules.attention import attention, attention_vjp
from gradderiv.rules.softmax_lse import softmax_lse, softmax_lse_vjp
from gradderiv.rules.tile import Outputs, Tile, tile_vjp

at = Point(n_q=3, n_k=6, d_k=5, d_v=7, n_1=2, n_2=4)
Q, K, V = at.free("Q", "n_q, d_k"), at.free("K", "n_k, d_k"), at.free("V", "n_k, d_v")
tau, dO = at.free("scale"), at.free("dO", "n_q, d_v")
Pi_1, Pi_2 = at.given("Pi_1", torch.eye(6)[:2]), at.given("Pi_2", torch.eye(6)[2:])
K_1, K_2 = at.let("K_1", Pi_1 @ K), at.let("K_2", Pi_2 @ K)
V_1, V_2 = at.let("V_1", Pi_1 @ V), at.let("V_2", Pi_2 @ V)
S_1, S_2 = at.let("S_1", tau * Q @ K_1.mT), at.let("S_2", tau * Q @ K_2.mT)
for matrix in (Pi_1, Pi_2, K_1, K_2, S_1, S_2):
    display(matrix)


def rowsum(A):
    return A.sum(-1, keepdim=True)


# %% [markdown]
# ## Forwards: a sum whose largest term is not known yet
#
# A softmax needs two sums over a row, $E V$ and $\operatorname{rowsum}(E)$ with $E = \exp S$. Sums can be
# collected tile by tile. The difficulty is the size of $E$: programs subtract the largest score $m$ of the
# row first, and $m$ is known only after the last tile. The way out is to subtract the largest score *so far*,
# and to correct when a larger one arrives (Milakov & Gimelshein 2018). After the first tile, with $m_1$ its
# largest score in each row,
#
# $$N_1 = \exp(S_1 - m_1)\, V_1, \qquad z_1 = \operatorname{rowsum} \exp(S_1 - m_1)$$
#
# are $n_q \times d_v$ and $n_q \times 1$. After the second, with $m = \max(m_1, \operatorname{rowmax} S_2)$,
#
# $$N = \exp(m_1 - m) \circ N_1 + \exp(S_2 - m)\, V_2, \qquad z = \exp(m_1 - m) \circ z_1 + \operatorname{rowsum} \exp(S_2 - m)$$
#
# and the output is $N \oslash z$. Only the latest $N$, $z$, $m$ are kept. That this is attention, we now
# show, with $E_j = \exp S_j$, $n_q \times n_j$, and
# $R = \operatorname{rowsum}(E_1) + \operatorname{rowsum}(E_2)$, $n_q \times 1$. Of exp we use only that it
# turns sums into products. That happens in three places, and we state each.

# %%
E_1, E_2 = at.let("E_1", torch.exp(S_1)), at.let("E_2", torch.exp(S_2))
R = at.let("R", rowsum(E_1) + rowsum(E_2))
m_1 = at.let("m_1", S_1.amax(-1, keepdim=True))
m = at.let("m", torch.maximum(m_1, S_2.amax(-1, keepdim=True)))
N_1, z_1 = at.let("N_1", torch.exp(S_1 - m_1) @ V_1), at.let("z_1", rowsum(torch.exp(S_1 - m_1)))
N = at.let("N", torch.exp(m_1 - m) * N_1 + torch.exp(S_2 - m) @ V_2)
z = at.let("z", torch.exp(m_1 - m) * z_1 + rowsum(torch.exp(S_2 - m)))

RESCALED = fact(
    torch.exp(m_1 - m) * torch.exp(S_1 - m_1), torch.exp(S_1 - m), "(m_1 − m) + (S_1 − m_1) = S_1 − m"
)
SHIFTED_1 = fact(torch.exp(S_1 - m), torch.exp(-m) * E_1, "exp(S_1 − m) = exp(−m) ∘ E_1")
SHIFTED_2 = fact(torch.exp(S_2 - m), torch.exp(-m) * E_2, "exp(S_2 − m) = exp(−m) ∘ E_2")

line = chain(z, "the running sum after both tiles")
line(
    torch.exp(m_1 - m) * rowsum(torch.exp(S_1 - m_1)) + rowsum(torch.exp(S_2 - m)),
    definition(z),
    definition(z_1),
)
line(rowsum(torch.exp(S_1 - m)) + rowsum(torch.exp(S_2 - m)), laws.ROW_FACTOR, RESCALED)
line(rowsum(torch.exp(-m) * E_1) + rowsum(torch.exp(-m) * E_2), SHIFTED_1, SHIFTED_2)
line(torch.exp(-m) * rowsum(E_1) + torch.exp(-m) * rowsum(E_2), laws.ROW_FACTOR)
line(torch.exp(-m) * (rowsum(E_1) + rowsum(E_2)), laws.LINEARITY)
line(torch.exp(-m) * R, definition(R))
display(line)
running_sum = line

line = chain(N, "the running numerator after both tiles")
line(
    torch.exp(m_1 - m) * (torch.exp(S_1 - m_1) @ V_1) + torch.exp(S_2 - m) @ V_2,
    definition(N),
    definition(N_1),
)
line(torch.exp(S_1 - m) @ V_1 + torch.exp(S_2 - m) @ V_2, laws.ROW_SCALE, RESCALED)
line((torch.exp(-m) * E_1) @ V_1 + (torch.exp(-m) * E_2) @ V_2, SHIFTED_1, SHIFTED_2)
line(torch.exp(-m) * (E_1 @ V_1) + torch.exp(-m) * (E_2 @ V_2), laws.ROW_SCALE)
line(torch.exp(-m) * (E_1 @ V_1 + E_2 @ V_2), laws.LINEARITY)
display(line)
running_numerator = line

# %% [markdown]
# The third line of each says what the correction did: it is as if $m$ had been known from the start. The last
# line says that $\exp(-m)$ is a factor of both. So it cancels, whatever it was. ($m$ need not be the maximum;
# any column would do. The maximum is what keeps exp from overflowing. The machine agrees: residues have no
# greatest one, and the machine takes a random column for $m$, and then another, chapter 20.)

# %%
O, saved = attention(Q, K, V, scale=tau)
O, P = at.let("O", O), saved.P
P_1, P_2 = at.let("P_1", P @ Pi_1.mT), at.let("P_2", P @ Pi_2.mT)
SHARES = definition(P_1, E_1 / R), definition(P_2, E_2 / R)
OUTPUT = definition(O, P_1 @ V_1 + P_2 @ V_2)

line = chain(N / z, "what the loop returns")
line(
    (torch.exp(-m) * (E_1 @ V_1 + E_2 @ V_2)) / (torch.exp(-m) * R),
    running_numerator.cited("the numerator"),
    running_sum.cited("the sum"),
)
line((E_1 @ V_1 + E_2 @ V_2) / R, laws.CANCEL)
line((E_1 @ V_1) / R + (E_2 @ V_2) / R, laws.LINEARITY)
line((E_1 / R) @ V_1 + (E_2 / R) @ V_2, laws.ROW_SCALE)
line(P_1 @ V_1 + P_2 @ V_2, *SHARES)
line(O, OUTPUT)
display(line)

# %% [markdown]
# ## What is kept for the way back: one number per query
#
# At the end of the loop $z = \exp(-m) \circ R$, so $\log z + m = \log R$, and this is lse. With it a tile can
# compute its share of $P$ alone,
#
# $$P_j = \exp(S_j - \mathrm{lse})$$
#
# without the maximum and without another pass over the row. $S_j = \tau Q K_j^\top$ is computed again: one
# more product, in exchange for not reading $n_q n_j$ numbers from memory, which is slower. That is the
# recomputation.
#
# How does lse move? $\partial\, \mathrm{lse}_i / \partial S_{ik} = P_{ik}$: the derivative of lse *is* the
# softmax.


# %%
class Tiles(NamedTuple):
    """What the tiles have in common, and each by itself."""

    K_1: Tensor
    K_2: Tensor
    S_1: Tensor
    S_2: Tensor
    lse: Tensor
    P_1: Tensor
    P_2: Tensor


def tiles(Q, K, scale):
    S = scale * Q @ K.mT
    lse = torch.logsumexp(S, -1, keepdim=True)
    P = torch.exp(S - lse)
    return Tiles(K[:2], K[2:], S[:, :2], S[:, 2:], lse, P[:, :2], P[:, 2:])


lse = at.let("lse", torch.log(R))
RECOMPUTED = definition(P_1, torch.exp(S_1 - lse)), definition(P_2, torch.exp(S_2 - lse))
Q_dot = at.tangent(Q)
dot = differential(tiles, moves(Q, Q_dot), K, tau)

line = chain(dot.lse, "the true tangent")
line(
    (rowsum(E_1 * dot.S_1) + rowsum(E_2 * dot.S_2)) / R,
    definition(lse).moves,
    definition(R).moves,
    definition(E_1).moves,
    definition(E_2).moves,
)
line(rowsum(E_1 * dot.S_1) / R + rowsum(E_2 * dot.S_2) / R, laws.LINEARITY)
line(rowsum(E_1 / R * dot.S_1) + rowsum(E_2 / R * dot.S_2), laws.ROW_FACTOR)
line(rowsum(P_1 * dot.S_1) + rowsum(P_2 * dot.S_2), *SHARES)
display(line)
lse_moves = line

# %% [markdown]
# ## Backwards: why δ = rowsum(dO ∘ O)
#
# Chapter 4 has $\delta = \operatorname{rowsum}(P \circ dP)$, a sum over *all* keys: to start with the first
# tile, one would have to have seen the last. The forward pass has made such a sum already, in the output.
# With $dP_j = dO\, V_j^\top$, $n_q \times n_j$, the law that is used is an exchange of two sums, over keys
# and over features: $\operatorname{rowsum}(A \circ (B C^\top))$ and $\operatorname{rowsum}((A C) \circ B)$
# are both $\sum_{k, c} A_{ik} B_{ic} C_{kc}$.

# %%
line = chain(rowsum(P_1 * (dO @ V_1.mT)) + rowsum(P_2 * (dO @ V_2.mT)), "rowsum(P ∘ dP), tile by tile")
line(rowsum((P_1 @ V_1) * dO) + rowsum((P_2 @ V_2) * dO), laws.ROW_EXCHANGE)
line(rowsum((P_1 @ V_1 + P_2 @ V_2) * dO), laws.LINEARITY)
line(rowsum(dO * O), OUTPUT)
display(line)
row_exchange = line

# %% [markdown]
# The right side has $n_q d_v$ products in place of $n_q n_k$, and needs no $P$, no $V$ and no other tile. It
# is computed once before the loop. It also holds with a mask, a bias, a soft cap on the scores: these change
# $P$, and $P$ may be any matrix with $O = PV$.
#
# ## The queries: dQ is added up
#
# Now the whole way, from the true differential of attention. Only $Q$ moves. lse moves with it, and this is
# where $\delta$ comes from: what arrives at lse is $-\delta$.

# %%
O_dot, _ = differential(attention, moves(Q, Q_dot), K, V, scale=tau, name="O")

line = chain(inner(dO, O_dot), "the differential of ℓ")
line(inner(dO, dot.P_1 @ V_1 + dot.P_2 @ V_2), OUTPUT.moves)
line(inner(dO @ V_1.mT, dot.P_1) + inner(dO @ V_2.mT, dot.P_2), laws.LINEARITY, laws.RIGHT)
dP_1, dP_2 = line.let("dP_1", dO @ V_1.mT), line.let("dP_2", dO @ V_2.mT)
line(
    inner(dP_1, P_1 * (dot.S_1 - dot.lse)) + inner(dP_2, P_2 * (dot.S_2 - dot.lse)),
    RECOMPUTED[0].moves,
    RECOMPUTED[1].moves,
)
into_scores = inner(dP_1, P_1 * dot.S_1) + inner(dP_2, P_2 * dot.S_2)
line(into_scores - inner(dP_1, P_1 * dot.lse) - inner(dP_2, P_2 * dot.lse), laws.LINEARITY)
line(into_scores - inner(rowsum(P_1 * dP_1), dot.lse) - inner(rowsum(P_2 * dP_2), dot.lse), laws.ROW_SUM)
line(into_scores - inner(rowsum(P_1 * dP_1) + rowsum(P_2 * dP_2), dot.lse), laws.LINEARITY)
delta = line.let("delta", rowsum(dO * O))
line(into_scores - inner(delta, dot.lse), row_exchange.cited("rowsum(P ∘ dP) = rowsum(dO ∘ O)"))
line(
    into_scores - inner(delta, rowsum(P_1 * dot.S_1) + rowsum(P_2 * dot.S_2)),
    lse_moves.cited("the tangent of lse"),
)
line(into_scores - inner(delta, rowsum(P_1 * dot.S_1)) - inner(delta, rowsum(P_2 * dot.S_2)), laws.LINEARITY)
line(into_scores - inner(P_1 * delta, dot.S_1) - inner(P_2 * delta, dot.S_2), laws.ROW_SUM)
line(
    inner(P_1 * dP_1, dot.S_1)
    + inner(P_2 * dP_2, dot.S_2)
    - inner(P_1 * delta, dot.S_1)
    - inner(P_2 * delta, dot.S_2),
    laws.ENTRYWISE,
)
line(inner(P_1 * (dP_1 - delta), dot.S_1) + inner(P_2 * (dP_2 - delta), dot.S_2), laws.LINEARITY)
dS_1, dS_2 = line.let("dS_1", P_1 * (dP_1 - delta)), line.let("dS_2", P_2 * (dP_2 - delta))
line(
    inner(dS_1, tau * Q_dot @ K_1.mT) + inner(dS_2, tau * Q_dot @ K_2.mT),
    definition(S_1).moves,
    definition(S_2).moves,
)
line(inner(tau * dS_1 @ K_1 + tau * dS_2 @ K_2, Q_dot), laws.RIGHT, laws.LINEARITY)
line.reads_off(Q_dot, attention_vjp(dO, saved).Q)
display(line)
queries = line

# %% [markdown]
# A tile contributes $\tau\, dS_j K_j$, $(n_q \times n_j)(n_j \times d_k)$, and every tile contributes to
# *every* row of $dQ$: it is an accumulator. In a kernel several tiles write to the same rows of $dQ$, so
# either one loop owns these rows, or the additions must be atomic. Then their order is not fixed, and neither
# is the rounding: two runs differ in the last digits.
#
# ## The keys and values: each tile by itself
#
# The way to the scores is the same, whatever moves; we cite it. $K$ moves, and each tile moves by its own
# rows, $\dot{K}_j = \Pi_j \dot{K}$.

# %%
K_dot, V_dot = at.tangent(K), at.tangent(V)
O_dot, _ = differential(attention, Q, moves(K, K_dot), V, scale=tau, name="O")
dot = differential(tiles, Q, moves(K, K_dot), tau)

line = chain(inner(dO, O_dot), "the differential of ℓ")
delta = line.let("delta", rowsum(dO * O))
dP_1, dP_2 = line.let("dP_1", dO @ V_1.mT), line.let("dP_2", dO @ V_2.mT)
dS_1, dS_2 = line.let("dS_1", P_1 * (dP_1 - delta)), line.let("dS_2", P_2 * (dP_2 - delta))
line(inner(dS_1, dot.S_1) + inner(dS_2, dot.S_2), queries.cited("as for Q"))
line(
    inner(dS_1, tau * Q @ dot.K_1.mT) + inner(dS_2, tau * Q @ dot.K_2.mT),
    definition(S_1).moves,
    definition(S_2).moves,
)
line(inner(tau * Q.mT @ dS_1, dot.K_1.mT) + inner(tau * Q.mT @ dS_2, dot.K_2.mT), laws.LEFT)
line(inner(tau * dS_1.mT @ Q, dot.K_1) + inner(tau * dS_2.mT @ Q, dot.K_2), laws.TRANSPOSE)
line(
    inner(tau * dS_1.mT @ Q, Pi_1 @ K_dot) + inner(tau * dS_2.mT @ Q, Pi_2 @ K_dot),
    definition(K_1).moves,
    definition(K_2).moves,
)
line(inner(Pi_1.mT @ (tau * dS_1.mT @ Q), K_dot) + inner(Pi_2.mT @ (tau * dS_2.mT @ Q), K_dot), laws.LEFT)
line(inner(Pi_1.mT @ (tau * dS_1.mT @ Q) + Pi_2.mT @ (tau * dS_2.mT @ Q), K_dot), laws.LINEARITY)
line.reads_off(K_dot, attention_vjp(dO, saved).K)
display(line)

O_dot, _ = differential(attention, Q, K, moves(V, V_dot), scale=tau, name="O")

line = chain(inner(dO, O_dot), "the differential of ℓ")
line(
    inner(dO, P_1 @ Pi_1 @ V_dot + P_2 @ Pi_2 @ V_dot),
    OUTPUT.moves,
    definition(V_1).moves,
    definition(V_2).moves,
)
line(inner(Pi_1.mT @ P_1.mT @ dO + Pi_2.mT @ P_2.mT @ dO, V_dot), laws.LINEARITY, laws.LEFT)
line.reads_off(V_dot, attention_vjp(dO, saved).V)
display(line)

# %% [markdown]
# $\Pi_j^\top$ puts a block of $n_j$ rows into its place and zeros elsewhere: nothing is added up between
# tiles. A tile of keys writes $dK_j = \tau\, dS_j^\top Q$ and $dV_j = P_j^\top dO$ once, and is done. With
# tiles of *queries* it is the other way round: $dQ$ is written once, $dK$ and $dV$ are added up.
# `gradderiv.rules.tile` is made of such tiles, with all keys of a query in one, and so finds $\delta$ as a
# plain row sum. Given all queries it must return what attention returns, and it does, with lse handed to it
# or not:

# %%
x = Tile(Q, K, V, None, None, None, None, tau, None)
g = attention_vjp(dO, saved)
for handed in (None, lse):
    found = tile_vjp(Outputs(O=dO), x, handed)
    for name in ("Q", "K", "V"):
        fact(getattr(found, name), getattr(g, name), f"d{name} of a tile of queries is that of attention")
print("dQ, dK, dV of tile_vjp are those of attention_vjp, with and without lse")

# %% [markdown]
# ## A gradient that arrives at lse
#
# Some programs return lse beside $O$, and some use it: to merge what several devices have found (below), or
# to keep the scores small with a penalty on $\mathrm{lse}^2$. Then $d\mathrm{lse}$ arrives, one number per
# row, $n_q \times 1$.

# %%
S, dlse = at.free("S", "n_q, n_k"), at.free("dlse", "n_q")
S_dot = at.tangent(S)
(P, _), kept = softmax_lse(S)
P, E = at.let("P", P), at.let("E", torch.exp(S))
R_all = at.let("R", rowsum(E))
lse_all = at.let("lse", torch.log(R_all))
(_, lse_dot), _ = differential(softmax_lse, moves(S, S_dot), name="lse")
column = dlse.unsqueeze(-1)  # n_q × 1

line = chain(inner(dlse, lse_dot), "only lse is looked at")
line(
    inner(column, rowsum(E * S_dot) / R_all),
    definition(lse_all).moves,
    definition(R_all).moves,
    definition(E).moves,
)
line(inner(column, rowsum(E / R_all * S_dot)), laws.ROW_FACTOR)
line(inner(column, rowsum(P * S_dot)), definition(P, E / R_all))
line(inner(P * column, S_dot), laws.ROW_SUM)
line.reads_off(S_dot, softmax_lse_vjp((torch.zeros_like(P), dlse), kept).S)
display(line)

# %% [markdown]
# Beside the gradient that comes through $P$ this gives $dS = P \circ (dP - \delta + d\mathrm{lse})$: a kernel
# that has no place for $d\mathrm{lse}$ can be given $\delta - d\mathrm{lse}$ for $\delta$. The rows of $dS$
# now sum to $d\mathrm{lse}$ instead of 0, since lse does see a shift of its row.
#
# ## Around a ring of devices
#
# A sequence may be too long for one device. Then each holds some keys and values, and runs attention on these
# alone (ring attention, Liu et al. 2023). Device $j$ returns $O_j = (E_j V_j) \oslash R_j$, $n_q \times d_v$,
# and $\mathrm{lse}_j = \log R_j$ with $R_j = \operatorname{rowsum}(E_j)$, $n_q \times 1$. The results are
# merged by
#
# $$O = \exp(\mathrm{lse}_1 - \mathrm{lse}) \circ O_1 + \exp(\mathrm{lse}_2 - \mathrm{lse}) \circ O_2, \qquad
# \mathrm{lse} = \log(\exp \mathrm{lse}_1 + \exp \mathrm{lse}_2)$$

# %%
R_1, R_2 = at.let("R_1", rowsum(E_1)), at.let("R_2", rowsum(E_2))
lse_1, lse_2 = at.let("lse_1", torch.log(R_1)), at.let("lse_2", torch.log(R_2))
O_1 = at.let("O_1", attention(Q, K_1, V_1, scale=tau)[0])
O_2 = at.let("O_2", attention(Q, K_2, V_2, scale=tau)[0])
fact(lse, torch.log(torch.exp(lse_1) + torch.exp(lse_2)))  # log R is the merged lse
DEVICES = definition(O_1, (E_1 @ V_1) / R_1), definition(O_2, (E_2 @ V_2) / R_2)
LSES = definition(lse_1), definition(lse_2), definition(lse)

line = chain(torch.exp(lse_1 - lse) * O_1 + torch.exp(lse_2 - lse) * O_2, "what is merged")
line(torch.exp(torch.log(R_1) - torch.log(R)) * O_1 + torch.exp(torch.log(R_2) - torch.log(R)) * O_2, *LSES)
line(R_1 / R * O_1 + R_2 / R * O_2, laws.LOG_QUOTIENT)
line(R_1 / R * ((E_1 @ V_1) / R_1) + R_2 / R * ((E_2 @ V_2) / R_2), *DEVICES)
line((E_1 @ V_1) / R + (E_2 @ V_2) / R, laws.CANCEL)
line((E_1 / R) @ V_1 + (E_2 / R) @ V_2, laws.ROW_SCALE)
line(P_1 @ V_1 + P_2 @ V_2, *SHARES)
line(O, OUTPUT)
display(line)

# %% [markdown]
# **A false alarm.** On the way back device $j$ gets $dO$, and computes $dP_j = dO\, V_j^\top$ for its own
# values only. Should its $\delta$ not be $\operatorname{rowsum}(dO \circ O_j)$, with its own output? An issue
# (picotron #37) says that $\operatorname{rowsum}(dO \circ O)$ is wrong there. It is right, and the chain for
# $Q$ above shows why: $\delta$ is what arrives at the *merged* lse, to which all devices contribute. The code
# passes the merged $O$ and lse.
#
# One can also go the other way, and differentiate the merge first. Write $A_1 = E_1 \oslash R_1$ for device
# 1's own probabilities, $n_q \times n_1$, and $w = \exp(\mathrm{lse}_1 - \mathrm{lse})$, so that
# $P_1 = w \circ A_1$. Then $w \circ dO$ arrives at $O_1$, and
# $w \circ (\operatorname{rowsum}(dO \circ O_1) - \delta)$ at $\mathrm{lse}_1$ (question 3). By the formula
# with $d\mathrm{lse}$ the device's own gradient is the first line below, its own row sum cancels, and the
# merged $\delta$ stays:

# %%
w = at.let("w", torch.exp(lse_1 - lse))
own = at.let("A_1", E_1 / R_1)
WEIGHED = fact(P_1, w * own, "P_1 = w ∘ A_1")
delta = at.let("delta", rowsum(dO * O))

line = chain(
    own * (w * (dO @ V_1.mT) - rowsum(w * dO * O_1) + w * (rowsum(dO * O_1) - delta)),
    "device 1, by way of the merge",
)
line(own * (w * (dO @ V_1.mT) - w * rowsum(dO * O_1) + w * (rowsum(dO * O_1) - delta)), laws.ROW_FACTOR)
line(w * own * (dO @ V_1.mT - delta), laws.LINEARITY)
line(P_1 * (dO @ V_1.mT - delta), WEIGHED)
display(line)

# %% [markdown]
# ## With numbers
#
# The three tokens of chapter 1. Scores whose exponentials are 1, 2, 1 in the first row (chapter 4), 1, 1, 2
# and 3, 1, 1 in the others; values of width 2, the first two features of $X$: $(1, 0)$, $(0, 1)$, $(1, 1)$.
# The first tile has two keys, the second one. We follow the loop for query 1.

# %%
S = torch.tensor([[1.0, 2, 1], [1, 1, 2], [3, 1, 1]], dtype=torch.float64).log()
V = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
m, z, N = (
    torch.full((3, 1), -torch.inf, dtype=torch.float64),
    torch.zeros(3, 1).double(),
    torch.zeros(3, 2).double(),
)
for keys in (slice(0, 2), slice(2, 3)):
    now = torch.maximum(m, S[:, keys].amax(-1, keepdim=True))
    correction, E = (m - now).exp(), (S[:, keys] - now).exp()
    z, N, m = correction * z + rowsum(E), correction * N + E @ V[keys], now
    print(
        f"keys {keys.start + 1}..{keys.stop}: exp m = {m[0].exp().item():.0f}, z = {z[0].item():g}, N = {N[0].tolist()}"
    )
O, lse = N / z, z.log() + m
print("row 1 of O:", O[0].tolist(), " exp(lse) =", lse.exp().flatten().round(decimals=9).tolist())
dO = torch.tensor([[4.0, 0], [4, 4], [0, 5]], dtype=torch.float64)
print("delta, rowsum(dO o O):    ", rowsum(dO * O).flatten().round(decimals=9).tolist())
P = (S - lse).exp()
print("delta, rowsum(P o dO V^T):", rowsum(P * (dO @ V.mT)).flatten().round(decimals=9).tolist())

# %% [markdown]
# By hand: $e^{\mathrm{lse}}$ is the row sum of the exponentials, 4, 4 and 5. The largest exponential of row 1
# is 2, so after the first tile $z = ½ + 1$, and the second adds ½. Row 1 of $P$ is $(¼, ½, ¼)$, so row 1 of
# $O$ is $(½, ¾)$, and with $(4, 0)$ as row 1 of $dO$ its $\delta$ is $4 \cdot ½ = 2$. The other way,
# $P \circ dP$ is $(¼, ½, ¼) \circ (4, 0, 4)$, which sums to 2 as well.

# %%
dS = P * (dO @ V.mT - rowsum(dO * O))
display(
    heat(
        {"P": P, "dS": dS},
        rows="query",
        columns="key",
        alt="P and dS of three queries and three keys; the last column is the second tile, and rows of dS sum to 0 "
        "over both tiles together, not in either",
    )
)

# %% [markdown]
# ## What goes wrong, and what one sees of it
#
# Two mistakes of kernels, measured below on $h = 3$ heads, $n = 10$, $d_k = d_v = 4$, with tiles of 4 keys.
# The identity $\langle dQ, Q\rangle = \langle dK, K\rangle$ of chapter 5 sees neither: it holds for any $dS$
# whatever. The row sums of $dS$ see both.
#
# ```{admonition} Common mistake: δ read with the strides of O
# :class: warning
# $\delta$ has one number per head and query. A program often stores $O$ as $n_q \times h \times d_v$ and
# reads it as $h \times n_q \times d_v$ through strides. If $\delta$, stored the plain way, is read with $O$'s
# strides, query $i$ of one head gets the number of another query of another head. $dV$ does not use $\delta$
# and is right; $dQ$ and $dK$ are wrong, by as much as the $\delta$ differ. All shapes fit, and with one head
# nothing is wrong. Seen in: ROCm/aiter #2808, FlagAttention #1, pytorch
# #141147.
# ```
#
# ```{admonition} Common mistake: the last, partial tile
# :class: warning
# $n_k$ is rarely a multiple of the tile. A loop over $\lfloor n_k/4 \rfloor$ tiles leaves the last rows of
# $dK$ and $dV$ at 0, and $dQ$ without their terms. Tests on lengths 64 and 128 pass; any comparison at a
# length that is not a multiple shows it. Seen in: attorch #18, where the last rows never reached $dW$.
# ```


# %%
def backward(Q, K, V, dO, delta_as=lambda d: d, keys=10):
    """dQ, dK, dV and the largest row sum of dS, tile by tile; ``keys`` says where the loop stops."""
    S = Q @ K.mT / 2
    lse = torch.logsumexp(S, -1, keepdim=True)
    delta = delta_as(rowsum(dO * ((S - lse).exp() @ V)))
    dQ, dK, dV, rows = (torch.zeros_like(x) for x in (Q, K, V, delta))
    for j in range(0, keys, 4):
        tile = slice(j, min(j + 4, keys))
        P = (Q @ K[:, tile].mT / 2 - lse).exp()
        dS = P * (dO @ V[:, tile].mT - delta)
        dQ, rows = dQ + dS @ K[:, tile] / 2, rows + rowsum(dS)
        dK[:, tile], dV[:, tile] = dS.mT @ Q / 2, P.mT @ dO
    return dQ, dK, dV, rows.abs().max().item()


def strided(delta):
    """Stored head by head, read query by query."""
    return delta.flatten().reshape(10, 3, 1).transpose(0, 1)


generator = torch.Generator().manual_seed(17)
Q, K, V, dO = torch.randn(4, 3, 10, 4, generator=generator, dtype=torch.float64)
right = backward(Q, K, V, dO)
print("relative errors      dQ    dK    dV   max |rowsum dS|   <dQ,Q> - <dK,K>")
for what, wrong in {
    "right": right,
    "strides of O": backward(Q, K, V, dO, strided),
    "tail left out": backward(Q, K, V, dO, keys=8),
}.items():
    errors = [((w - r).norm() / r.norm()).item() for w, r in zip(wrong[:3], right[:3], strict=True)]
    difference = ((wrong[0] * Q).sum() - (wrong[1] * K).sum()).abs().item()
    print(f"{what:16}", *(f"{e:5.2f}" for e in errors), f"{wrong[3]:13.1e} {difference:16.0e}")

# %% [markdown]
# No single identity is a test of a kernel (chapter 19). What do the mistakes do to training? One head learns
# to return the token after each, on three sequences of 10 tokens.

# %%


def train(steps, **mistake):
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(3, 10, 4, generator=generator, dtype=torch.float64)
    W = [torch.randn(4, 4, generator=generator, dtype=torch.float64) / 2 for _ in range(3)]
    target = X.roll(-1, 1)
    for _ in range(steps):
        Q, K, V = (X @ w for w in W)
        P = torch.softmax(Q @ K.mT / 2, -1)
        dO = (P @ V - target) / 15  # the loss: the mean over 30 rows of their squared length
        W = [
            w - 0.1 * (X.mT @ g).sum(0) for w, g in zip(W, backward(Q, K, V, dO, **mistake)[:3], strict=True)
        ]
    return ((P @ V - target) ** 2).mean().item()


for what, mistake in {
    "right": {},
    "strides of O": {"delta_as": strided},
    "tail left out": {"keys": 8},
}.items():
    print(f"{what:16} loss after 1, 100, 300 steps:", *(f"{train(n, **mistake):.3f}" for n in (1, 100, 300)))

# %% [markdown]
# (The mean square of an entry is printed.) The loss falls in all three rows, and this is why such mistakes
# live long. With $\delta$ from the wrong place it stops well above the right one: $dV$ is right, so the
# values are learnt, and $Q$ and $K$ go astray. Without the last tile it stays where it is after 100 steps.
#
# ## Exercises

# %% [markdown] exercise="17.1" kind="chain" points=3 title="δ with dropout"
# Dropout multiplies the probabilities by $D$, $n_q \times n_k$, which is 0 or $1/(1-p)$:
# $O = (D \circ P)\, V$, and $dP = D \circ (dO\, V^\top)$. Is $\delta = \operatorname{rowsum}(P \circ dP)$
# still $\operatorname{rowsum}(dO \circ O)$, or must a kernel drop something there, too?

# %% given="17.1"
at = Point(n_q=3, n_k=5, d_v=7)
P, D, V, dO = (
    at.free("P", "n_q, n_k"),
    at.free("D", "n_q, n_k"),
    at.free("V", "n_k, d_v"),
    at.free("dO", "n_q, d_v"),
)
O = at.let("O", (D * P) @ V)
DROPPED = definition(O)
line = chain(rowsum(P * (D * (dO @ V.mT))), "rowsum(P ∘ dP), with dP = D ∘ (dO Vᵀ)")

# %% answer="17.1"
### BEGIN SOLUTION
line(rowsum((P * D) @ V * dO), laws.ROW_EXCHANGE)
line(rowsum(O * dO), DROPPED)
### END SOLUTION


# %% checker="17.1"
def forgotten(line):
    """differ"""
    line(rowsum(P @ V * dO), laws.ROW_EXCHANGE)


def other_law(line):
    """it follows by ROW_EXCHANGE"""
    line(rowsum((P * D) @ V * dO), laws.ROW_FACTOR)


def at_once(line):
    """is used as well"""
    line(rowsum(O * dO), DROPPED)


check_chain(line, ends=rowsum(O * dO), mistakes=[forgotten, other_law, at_once])

# %% [markdown] exercise="17.2" kind="function" points=4 title="The backward pass of a tile"
# Write what a tile computes when the backward pass comes by. It is given $Q$ ($n_q \times d_k$), its keys $K$
# and values $V$ ($n_k \times d_k$, $n_k \times d_v$), the finished $O$ and $dO$ ($n_q \times d_v$), lse
# ($n_q \times 1$) and $\tau$. It is not given $P$.


# %% answer="17.2"
def probabilities(Q, K, lse, scale):
    """P, n_q × n_k."""
    ### BEGIN SOLUTION
    return torch.exp(scale * Q @ K.mT - lse)
    ### END SOLUTION


def score_gradient(P, V, O, dO):
    """dS, n_q × n_k."""
    ### BEGIN SOLUTION
    return P * (dO @ V.mT - (dO * O).sum(-1, keepdim=True))
    ### END SOLUTION


def key_gradient(dS, Q, scale):
    """dK, n_k × d_k."""
    ### BEGIN SOLUTION
    return scale * dS.mT @ Q
    ### END SOLUTION


# %% checker="17.2"
def one_tile(Q, K, V, scale):
    S = scale * Q @ K.mT
    lse = torch.logsumexp(S, -1, keepdim=True)
    P = torch.exp(S - lse)
    return {"S": S, "lse": lse, "P": P, "O": P @ V}


def without_lse(Q, K, lse, scale):
    """exp of the scores alone: lse is not subtracted"""
    return torch.exp(scale * Q @ K.mT)


def no_delta(P, V, O, dO):
    """without δ: the row sum is dropped"""
    return P * (dO @ V.mT)


def sum_of_all(P, V, O, dO):
    """one δ for all queries: summed over the whole matrix"""
    return P * (dO @ V.mT - (dO * O).sum())


check_functions(
    {"P": probabilities, "dS": score_gradient, "dK": key_gradient},
    one_tile,
    inputs={"Q": "n_q, d_k", "K": "n_k, d_k", "V": "n_k, d_v", "scale": ""},
    sizes=[{"n_q": 3, "n_k": 4, "d_k": 2, "d_v": 5}, {"n_q": 4, "n_k": 2, "d_k": 5, "d_v": 3}],
    mistakes={
        "probabilities": [without_lse],
        "score_gradient": [no_delta, sum_of_all],
        "key_gradient": ["scale-missing", "scale-twice"],
    },
)

# %% [markdown] exercise="17.3" kind="mistake" points=4 title="How the merged lse moves"
# Two devices have $\mathrm{lse}_j = \log R_j$, $n_q \times 1$, and the merged one is the logarithm of
# $R_1 + R_2$. By how much does it move when the devices' own do? One line of this derivation is false. Which,
# and what should stand there?

# %% given="17.3"
at = Point(n_q=3)
lse_1, lse_2 = at.free("lse_1", "n_q, 1"), at.free("lse_2", "n_q, 1")
one_dot, two_dot = at.tangent(lse_1), at.tangent(lse_2)
R_1, R_2 = at.let("R_1", torch.exp(lse_1)), at.let("R_2", torch.exp(lse_2))
R = at.let("R", R_1 + R_2)
lse = at.let("lse", torch.log(R))


def merged(lse_1, lse_2):
    return torch.log(torch.exp(lse_1) + torch.exp(lse_2))


lse_dot = differential(merged, moves(lse_1, one_dot), moves(lse_2, two_dot), name="lse")
w_1, w_2 = at.let("w_1", R_1 / R), at.let("w_2", R_2 / R)

wrong = claim(lse_dot, "the true tangent")
wrong(
    (R_1 * one_dot + R_2 * two_dot) / R,
    definition(lse).moves,
    definition(R).moves,
    definition(R_1).moves,
    definition(R_2).moves,
)
wrong((R_1 / R) * (one_dot + two_dot), laws.LINEARITY)
wrong(w_1 * (one_dot + two_dot), definition(w_1))
display(wrong)

# %% answer="17.3"
### BEGIN SOLUTION
answer = correct(3, (R_1 / R) * one_dot + (R_2 / R) * two_dot, laws.LINEARITY)
### END SOLUTION


# %% checker="17.3"
def rest(line):
    line(w_1 * one_dot + w_2 * two_dot, definition(w_1), definition(w_2))


def product_rule():
    """line 2 follows from line 1"""
    return correct(2, (one_dot + two_dot) / R, laws.LINEARITY)


def last():
    """a line before line 4 is false already"""
    return correct(4, w_1 * one_dot + w_2 * two_dot, definition(w_1), definition(w_2))


def one_share_twice():
    """differ"""
    return correct(3, (R_1 / R) * one_dot + (R_1 / R) * two_dot, laws.LINEARITY)


ends = w_1 * one_dot + w_2 * two_dot
check_mistake(wrong, answer, ends=ends, rest=rest, mistakes=[product_rule, last, one_share_twice])

# %% [markdown]
# **Questions.** 1. The loop of the forward pass starts with $m = -\infty$, $z = 0$, $N = 0$. What does
# $\exp(m_1 - m)$ become in the first round, and what in a row whose first tile is hidden by a mask
# altogether? 2. A kernel with tiles of queries *and* keys walks over keys in the outer loop. Which of $dQ$,
# $dK$, $dV$ can stay in fast memory, and which is added to again and again? 3. From exercise 17.3, show that
# $w \circ (\operatorname{rowsum}(dO \circ O_1) - \delta)$ arrives at $\mathrm{lse}_1$ in the ring. ($O$ also
# depends on lse.) 4. How many numbers does the backward pass read per tile if $P$ is stored, and how many if
# it is recomputed?
