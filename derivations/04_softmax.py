# %% [markdown]
# # 4 Softmax and its Jacobian
#
# $$P = \operatorname{softmax}(S): \qquad P_{ij} = \frac{M_{ij} \exp S_{ij}}{\sum_k M_{ik} \exp S_{ik}}
# \qquad S, P, M \; n_q \times n_k$$
#
# $$dS = P \circ (dP - \delta) \qquad \delta = \operatorname{rowsum}(P \circ dP)$$
#
# with one $\delta$ for each query, $n_q \times 1$.
#
# Each row of scores becomes a row of probabilities (Bridle 1990; Vaswani et al. 2017, §3.2.1). The mask $M$
# says which entries take part; a row in which none does is 0 by definition. The gradient is in this form in
# Dao et al. (2022, app. B.2).
#
# An entry of $P$ depends on all scores of its row, so softmax is not an entrywise function, and this is
# where hand-written backward passes go wrong. Raising one score raises one probability, and *lowers all the
# others of its row*, because they share one sum. Everything in this chapter is a consequence of that.
#
# ## Three names
#
# We give the parts of the quotient names: $E = \exp S \circ M$, the exponentials of what may be seen,
# $n_q \times n_k$; $r = \operatorname{rowsum}(E)$, a column, $n_q \times 1$; and $P = E \oslash r$, where
# row $i$ of $E$ is divided by the number $r_i$. The mask is part of $E$ from the start, as a matrix of zeros
# and ones. That the program `softmax` computes the same $P$ is checked here, by `definition`.

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat
from gradderiv.rules.softmax import SoftmaxSaved, softmax, softmax_jvp, softmax_vjp


def rowsum(A):
    return A.sum(-1, keepdim=True)  # n_q 1


def seen(S, M):
    return torch.exp(S) * M  # n_q n_k


def seen_sums(S, M):
    return rowsum(seen(S, M))  # n_q 1


at = Point(n_q=3, n_k=4)
S = at.free("S", "n_q, n_k")
allowed = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1]])
M, mask = at.given("mask", allowed.double()), at.given("mask", allowed.bool())  # as numbers, as truth values

E = at.let("E", seen(S, M))
r = at.let("r", rowsum(E))
P = at.let("P", softmax(S, mask=mask)[0])
EXPONENTIALS, SUMS, QUOTIENT = definition(E), definition(r), definition(P, E / r)
for reason in (EXPONENTIALS, SUMS, QUOTIENT):
    display(reason.statement)

# %% [markdown]
# ## The tangent
#
# $S$ moves along $\dot{S}$, and with it $E$, $r$ and $P$. All tangents below are true ones, from dual
# numbers through the program. The first line is the quotient rule, entry by entry. Then $P$ is recognised,
# and the tangents of $E$ and $r$ are written out: exp is its own derivative, so
# $\dot{E} = E \circ \dot{S}$. One law is new. `ROW_FACTOR` says that a column may go under a row sum, since
# it has one value in the whole row: $\operatorname{rowsum}(A) \circ c = \operatorname{rowsum}(A \circ c)$.

# %%
S_dot = at.tangent(S)
E_dot = differential(seen, moves(S, S_dot), M, name="E")
r_dot = differential(seen_sums, moves(S, S_dot), M, name="r")
P_dot, _ = differential(softmax, moves(S, S_dot), mask=mask, name="P")

line = chain(P_dot, "the true tangent")
line(E_dot / r - (E / r) * (r_dot / r), QUOTIENT.moves)
line(E_dot / r - P * (r_dot / r), QUOTIENT)
line((E * S_dot) / r - P * (rowsum(E * S_dot) / r), EXPONENTIALS.moves, SUMS.moves)
line((E * S_dot) / r - P * rowsum((E * S_dot) / r), laws.ROW_FACTOR)
line(P * S_dot - P * rowsum(P * S_dot), QUOTIENT)
line(P * (S_dot - rowsum(P * S_dot)), laws.LINEARITY)
display(line)

# %% [markdown]
# In words: $\operatorname{rowsum}(P \circ \dot{S})$ is the *mean* of the row of $\dot{S}$, weighted by $P$.
# Each score counts by how much it rises above that mean. If all scores of a row rise together, the mean
# rises with them and $P$ stays: softmax does not see a shift of its row. This is why a program may subtract
# the largest score of each row before it takes exponentials.
#
# ## The row that sees nothing
#
# In a row in which $M$ allows no key, $r = 0$, and the quotient is not defined. $P$ is 0 there by
# definition, whatever the scores, so $\dot{P} = 0$; and the right side, $0 \circ (\dots)$, is 0 too. In all
# other entries nothing changes. So the formula holds as it stands, and it never asks for the mask: the mask
# is in $P$. From here on the last query sees nothing, and the tangent is a fact, checked at this point:

# %%
blind = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [0, 0, 0, 0]]).bool()
mask = at.given("mask", blind)
P = at.let("P", softmax(S, mask=mask)[0])
saved = SoftmaxSaved(P)
P_dot, _ = differential(softmax, moves(S, S_dot), mask=mask, name="P")

TANGENT = fact(P_dot, P * (S_dot - rowsum(P * S_dot)), "the tangent of softmax")
SHIPPED = fact(softmax_jvp(saved, S_dot), P * (S_dot - rowsum(P * S_dot)))
display(SHIPPED.statement)

# %% [markdown]
# ## The Jacobian of a row
#
# One row at a time: let $s$ be a row of scores, $1 \times n_k$, and $p$ its probabilities. Let $D$ be the
# matrix with $p$ on its diagonal: $D = (1 p) \circ I$, $n_k \times n_k$. Three facts turn the tangent into
# a product with a matrix: an entrywise product with a row is a product with its diagonal matrix; a row sum
# of a product of two rows is the product of one with the other transposed; and a $1 \times 1$ matrix may be
# multiplied as a matrix or as a number.

# %%
row = Point(n_k=4)
s = row.free("s", "1, n_k")
s_dot = row.tangent(s)
p = row.let("p", softmax(s)[0])
one, eye = row.given("1", torch.ones(4, 1)), row.given("I", torch.eye(4))
D = row.let("D", (one @ p) * eye)
p_dot, _ = differential(softmax, moves(s, s_dot), name="p")

OF_A_ROW = fact(p_dot, p * (s_dot - rowsum(p * s_dot)), "the tangent of softmax, for one row")
DIAGONAL = fact(p * s_dot, s_dot @ D, "ṡ times the diagonal matrix of p")
MEAN = fact(rowsum(p * s_dot), s_dot @ p.mT)
OUTER = fact(p * (s_dot @ p.mT), s_dot @ p.mT @ p, "ṡ pᵀ is 1 × 1")

line = chain(p_dot, "the true tangent of one row")
line(p * (s_dot - rowsum(p * s_dot)), OF_A_ROW)
line(p * s_dot - p * rowsum(p * s_dot), laws.LINEARITY)
line(s_dot @ D - p * (s_dot @ p.mT), DIAGONAL, MEAN)
line(s_dot @ D - s_dot @ p.mT @ p, OUTER)
line(s_dot @ (D - p.mT @ p), laws.LINEARITY)
display(line)

# %% [markdown]
# The **Jacobian** of a row is $J = \operatorname{diag}(p) - p^\top p$ (for columns one writes
# $\operatorname{diag}(p) - p p^\top$), $n_k \times n_k$. Its diagonal has the entries $p_j (1 - p_j)$: a
# score and its own probability. Off the diagonal stands $-p_j p_k$: a score takes from the others in
# proportion to what they have. Three properties are seen at once.
#
# - $J$ is **symmetric**, $J^\top = J$: pushing $\dot{s}$ forwards and pulling $dp$ backwards is the same
#   map.
# - $J 1 = 0$: each row sums to 0, as $p_j (1 - p_j) = \sum_{k \neq j} p_j p_k$. A shift is not seen.
# - $J$ is positive semidefinite: $\dot{s} J \dot{s}^\top$ is the variance of $\dot{s}$ under $p$, which is
#   never negative.
#
# For $p = (\frac14, \frac12, \frac14)$, in units of $\frac{1}{16}$:

# %%
p_numbers = torch.tensor([[0.25, 0.5, 0.25]])
diagonal, outer = torch.diag(p_numbers[0]), p_numbers.mT @ p_numbers
J = diagonal - outer
words = "diag p, minus the outer product of p with itself, is J: positive on the diagonal, negative elsewhere"
display(
    heat({"16\\,\\mathrm{diag}(p)": 16 * diagonal, "16\\,p^\\top p": 16 * outer, "16\\,J": 16 * J}, alt=words)
)
print("16 J =", (16 * J).int().tolist())

# %% [markdown]
# There is one such matrix for each query: $n_q$ matrices of $n_k \times n_k$ numbers. Nobody forms them.
# The formula $P \circ (\dot{S} - \operatorname{rowsum}(P \circ \dot{S}))$ multiplies by all of them with
# $n_q$ row sums.
#
# ## The gradient
#
# $dP$ arrives, $n_q \times n_k$, and we push $\langle dP, \dot{P} \rangle$ back to $\dot{S}$. The law is
# `ROW_SUM`. A column $c$ in an entrywise product is repeated $n_k$ times, and what is copied forwards is
# summed backwards: $\langle A, B \circ c \rangle = \langle \operatorname{rowsum}(A \circ B), c \rangle$. It
# is used twice: once from left to right, and there $\delta$ appears; once from right to left, and there
# $\dot{S}$ comes free.

# %%
dP = at.free("dP", "n_q, n_k")

line = chain(inner(dP, P_dot), "the differential of ℓ")
line(inner(dP, P * (S_dot - rowsum(P * S_dot))), TANGENT)
line(inner(dP, P * S_dot) - inner(dP, P * rowsum(P * S_dot)), laws.LINEARITY)
line(inner(dP, P * S_dot) - inner(rowsum(P * dP), rowsum(P * S_dot)), laws.ROW_SUM)
delta = line.let("delta", rowsum(P * dP))
line(inner(dP, P * S_dot) - inner(P * delta, S_dot), laws.ROW_SUM)
line(inner(P * dP, S_dot) - inner(P * delta, S_dot), laws.ENTRYWISE)
line(inner(P * (dP - delta), S_dot), laws.LINEARITY)
line.reads_off(S_dot, softmax_vjp(dP, saved).S)
display(line)

# %% [markdown]
# Look at the fourth line: two row sums, one of $dP$ and one of $\dot{S}$, of the same form. The expression
# does not change when $dP$ and $\dot{S}$ are exchanged. That is the symmetry of the Jacobian, and the
# reason why the gradient is the tangent with another letter in it.
#
# $\delta$ is the mean of $dP$ under $P$, one number for each query. What counts for a score is how far its
# $dP$ lies above or below the mean of its row, and not how large it is: where it lies above, $dS$ is
# positive, and a step of gradient descent lowers the score. And where $P = 0$, as behind a mask, $dS = 0$.
#
# ## Rows of dS sum to zero
#
# $\operatorname{rowsum}(dS) = \delta - \operatorname{rowsum}(P \circ \delta)$, and the second term is
# $\delta$, too. A row that sees something has probabilities that sum to 1; a row that sees nothing has
# $\delta = 0$.

# %%
delta = at.let("delta", rowsum(P * dP))
ONE = fact(rowsum(P) * delta, delta, "rowsum(P) is 1, or δ is 0")

line = chain(rowsum(P * delta), "what is subtracted from δ")
line(rowsum(P) * delta, laws.ROW_FACTOR)
line(delta, ONE)
display(line)

# %% [markdown]
# So the rows of $dS$ sum to 0. This is "softmax does not see a shift", read backwards, and a check that costs
# nothing: it holds whatever comes before and after. Chapter 8 gets a theorem about biases out of it.
#
# ## Row sums as a matrix product
#
# In chapter 6 the rows of all heads stand side by side in one matrix, and a row sum must stop at the border
# of its head. There it is written as a product with a matrix $\mathcal{I}$. For one head $\mathcal{I}$ is
# the $n_k \times n_k$ matrix of ones: every entry of $A \mathcal{I}$ is the sum of its row in $A$, repeated
# $n_k$ times. Two facts about it are all that is needed: it repeats row sums, and it is symmetric. With
# them the derivation uses `RIGHT` in the place of `ROW_SUM`:

# %%
calI = at.given("calI", torch.ones(4, 4))  # n_k n_k
REPEATED = fact(P * rowsum(P * S_dot), P * ((P * S_dot) @ calI), "A 𝓘 repeats the row sums of A")
SYMMETRIC = fact(calI.mT, calI)

line = chain(inner(dP, P_dot), "the differential of ℓ")
line(inner(dP, P * S_dot - P * ((P * S_dot) @ calI)), TANGENT, laws.LINEARITY, REPEATED)
line(inner(dP, P * S_dot) - inner(dP, P * ((P * S_dot) @ calI)), laws.LINEARITY)
line(inner(P * dP, S_dot) - inner(P * dP, (P * S_dot) @ calI), laws.ENTRYWISE)
line(inner(P * dP, S_dot) - inner((P * dP) @ calI, P * S_dot), laws.RIGHT, SYMMETRIC)
line(inner(P * dP, S_dot) - inner(P * ((P * dP) @ calI), S_dot), laws.ENTRYWISE)
line(inner(P * (dP - (P * dP) @ calI), S_dot), laws.LINEARITY)
line.reads_off(S_dot, softmax_vjp(dP, saved).S)
display(line)

# %% [markdown]
# ## With numbers
#
# Scores whose exponentials are small integers: in the first row 1, 2, 1, which gives
# $P = (\frac14, \frac12, \frac14)$. Let the loss be the first probability, $dP = (1, 0, 0)$. Then
# $\delta = \frac14$, $dP - \delta = (\frac34, -\frac14, -\frac14)$ and
# $dS = (\frac{3}{16}, -\frac{2}{16}, -\frac{1}{16})$: to raise the first probability, raise its score, and
# lower the others in proportion to their probabilities. It is the first row of $J$.

# %%
scores = torch.tensor([[1.0, 2, 1], [1, 1, 2], [3, 1, 1]], dtype=torch.float64).log()
arriving = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 2, 1]], dtype=torch.float64)
probabilities, kept = softmax(scores)
dS = softmax_vjp(arriving, kept).S
print("16 dS, row 1:", (16 * dS[0]).round().int().tolist())
print("rows of dS sum to", [round(x, 12) + 0.0 for x in dS.sum(-1).tolist()])

# %%
mistaken = probabilities * (1 - probabilities) * arriving
words = "P, dP and dS of three queries, and dS by the diagonal alone, which is 0 wherever dP is 0"
pictured = {"P": probabilities, "dP": arriving, "dS": dS, "P(1-P)dP": mistaken}
display(heat(pictured, alt=words, rows="query", columns="key"))

# %% [markdown]
# A larger one: eight tokens under a causal mask, random scores, random $dP$. $dP$ arrives everywhere, above
# the diagonal, too; it is multiplied by $P$ there, which is 0, and nothing flows. In each row red and blue
# balance: what some keys gain, the others lose. Row 1 sees one key; its probability is 1 whatever the score,
# and there is no gradient.

# %%
causal = torch.ones(8, 8).tril().bool()
random_scores, random_dP = torch.randn(
    2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)
P_causal, kept = softmax(random_scores, mask=causal)
words = "P, dP and dS under a causal mask: dS is 0 above the diagonal and in row 1, and balances in each row"
pictured = {"P": P_causal, "dP": random_dP, "dS": softmax_vjp(random_dP, kept).S}
display(heat(pictured, alt=words, rows="query", columns="key", values=False))

# %% [markdown]
# ```{admonition} Common mistake: the diagonal of the Jacobian
# :class: warning
# $dS = P \circ (1 - P) \circ dP$ is the derivative of a *logistic*, and the diagonal of $J$ alone. It comes
# from reading $p(1 - p)$ in a text about classification and applying it entry by entry. The shape is right.
# In the picture above it is 0 wherever $dP$ is: such a score never moves, though it should make room for
# the others. $\operatorname{rowsum}(dS) = 0$ flags it at once. Seen in: libnd4j #440; a blog series of
# 2025.
# ```
#
# ```{admonition} Common mistake: the row sum dropped
# :class: warning
# $dS = P \circ dP$ treats the sum in the denominator as a constant. It fails in the same way, and grows
# with what all $dP$ of a row have in common, to which the right gradient is blind.
# $\operatorname{rowsum}(dS) = 0$ flags it. Seen in: Odyssey #2134, cTensor #31.
# ```
#
# ```{admonition} Common mistake: one Jacobian for the whole matrix
# :class: warning
# $\operatorname{diag}(p) - p^\top p$ with $p$ all of $P$, flattened to $n_q n_k$ entries: $\delta$ is then
# the sum over *all* rows, and one query changes the scores of another. For one row it is right, so a test
# with one query passes. $\operatorname{rowsum}(dS) = 0$ flags it. Seen in: math.stackexchange 4602822.
# ```
#
# ```{admonition} Common mistake: softmax over the wrong axis
# :class: warning
# Normalised over queries, $P$ has columns that sum to 1, and every query competes for a key. Forward and
# backward then agree with each other, so *no comparison of the two can find it*; a reference does, and so
# do $\operatorname{rowsum}(P) = 1$ and $\operatorname{rowsum}(dS) = 0$. With a causal mask it is worse: the
# weight of an early query depends on later ones, and the model sees the future. Seen in:
# llms-from-scratch-rs #30.
# ```
#
# The last one in numbers: under a causal mask and with the sum over queries, the weight of the first query
# changes when only a score of the last one is raised by 1. (Code counts from 0: `P[0, 0]` is query 1, key 1.)

# %%
changed = random_scores.clone()
changed[7, 0] += 1.0
for axis, name in ((-1, "over keys   "), (-2, "over queries")):
    first, then = (
        torch.softmax(x.masked_fill(~causal, -torch.inf), axis)[0, 0].item() for x in (random_scores, changed)
    )
    print(f"softmax {name}: P[0, 0] = {first:.4f}, and then {then:.4f}")

# %% [markdown]
# What do they do to training? We measure two things. First the angle: the cosine between the wrong $dS$ and
# the right one, for random rows, and again when all $dP$ of a matrix are raised by 3 (as when all values
# have a part in common). Then training itself: scores are fitted by gradient descent until attention
# returns wanted outputs.

# %%
draw = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


RULES = {
    "right": lambda P, dP: P * (dP - rowsum(P * dP)),
    "diagonal": lambda P, dP: P * (1 - P) * dP,
    "no row sum": lambda P, dP: P * dP,
    "flattened": lambda P, dP: P * (dP - (P * dP).sum()),
}


def cosine(rule, raised):
    values = []
    for P, dP in samples:
        a, b = rule(P, dP + raised), RULES["right"](P, dP)
        values.append(((a * b).sum() / (a.norm() * b.norm())).item())
    return sum(values) / len(values)


def fit(rule, steps=500):
    V, S = values, start
    for _ in range(steps):
        P = torch.softmax(S, -1)
        dO = P @ V - wanted
        S = S - 0.2 * rule(P, dO @ V.mT)
    return ((torch.softmax(S, -1) @ V - wanted) ** 2).sum().item() / 2


samples = [(torch.softmax(normal(6, 8), -1), normal(6, 8)) for _ in range(100)]
values, start = normal(8, 5), normal(6, 8)
wanted = torch.softmax(normal(6, 8), -1) @ values
at_first = ((torch.softmax(start, -1) @ values - wanted) ** 2).sum().item() / 2
print(f"             cosine   dP raised by 3   loss after 500 steps, from {at_first:.2f}")
for name, rule in RULES.items():
    print(f"{name:12} {cosine(rule, 0):6.2f} {cosine(rule, 3.0):16.2f} {fit(rule):22.4f}")

# %% [markdown]
# All wrong rules point downhill on the average, and their loss falls: more slowly, but who knows how fast
# it should fall? So such code survives. The cosine drops when $dP$ has a common part, which the
# right rule does not see. The flattened rule couples queries that have nothing to do with each other, and
# comes out worst.
#
# ## Exercises

# %% [markdown] exercise="4.1" kind="chain" points=5 title="A temperature"
# $P = \operatorname{softmax}(\tau S)$, with $\tau = 1/\sqrt{d_k}$ in attention, or one over the temperature
# in sampling. With $A = \tau S$ the chapter says what $\dot{P}$ is in terms of $\dot{A}$: that is the reason
# `TANGENT_A`; `TEMPERED` is the definition of $A$. Only $S$ moves. Continue to the gradient of $S$; end in
# $\langle \tau \, P \circ (dP - \delta), \dot{S} \rangle$ with $\delta$ written out.


# %% given="4.1"
def tempered(S, tau):
    return softmax(tau * S)[0]  # n_q n_k


tau = at.free("scale")
S_dot, dP = at.tangent(S), at.free("dP", "n_q, n_k")
A = at.let("A", tau * S)
A_dot = differential(lambda S, tau: tau * S, moves(S, S_dot), tau, name="A")
P = at.let("P", tempered(S, tau))
P_dot = differential(tempered, moves(S, S_dot), tau, name="P")
TEMPERED = definition(A)
TANGENT_A = fact(P_dot, P * (A_dot - rowsum(P * A_dot)), "the tangent of softmax")
line = chain(inner(dP, P_dot), "the differential of ℓ")

# %% answer="4.1"
### BEGIN SOLUTION
line(inner(dP, P * (A_dot - rowsum(P * A_dot))), TANGENT_A)
line(inner(dP, P * A_dot) - inner(dP, P * rowsum(P * A_dot)), laws.LINEARITY)
line(inner(dP, P * A_dot) - inner(rowsum(P * dP), rowsum(P * A_dot)), laws.ROW_SUM)
line(inner(dP, P * A_dot) - inner(P * rowsum(P * dP), A_dot), laws.ROW_SUM)
line(inner(P * dP, A_dot) - inner(P * rowsum(P * dP), A_dot), laws.ENTRYWISE)
line(inner(P * (dP - rowsum(P * dP)), A_dot), laws.LINEARITY)
line(inner(tau * (P * (dP - rowsum(P * dP))), S_dot), TEMPERED.moves)
### END SOLUTION


# %% checker="4.1"
def denominator_at_rest(line):
    """must equal the line before it"""
    line(inner(dP, P * A_dot), TANGENT_A)


def temperature_lost(line):
    """must equal the line before it"""
    line(inner(dP, P * (A_dot - rowsum(P * A_dot))), TANGENT_A)
    line(inner(dP, P * A_dot) - inner(dP, P * rowsum(P * A_dot)), laws.LINEARITY)
    line(inner(dP, P * S_dot) - inner(dP, P * rowsum(P * S_dot)), TEMPERED.moves)


end = inner(tau * (P * (dP - rowsum(P * dP))), S_dot)
check_chain(line, ends=end, mistakes=[denominator_at_rest, temperature_lost])

# %% [markdown] exercise="4.2" kind="function" points=4 title="The logarithm of softmax"
# A classifier ends in $Z = \log P$, $P = \operatorname{softmax}(S)$, computed in one step, because the
# logarithm of a small quotient is inaccurate. Write $dS$ from $dZ$ and $P$, all $n_q \times n_k$, *without
# dividing by* $P$. (The cross-entropy with targets $T$ has $dZ = -T$. If the rows of $T$ sum to 1, what is
# $dS$?)


# %% answer="4.2"
def log_softmax_backward(dZ, P):
    """dS, n_q × n_k."""
    ### BEGIN SOLUTION
    return dZ - P * rowsum(dZ)
    ### END SOLUTION


# %% checker="4.2"
def log_softmax(S):
    E = torch.exp(S)
    r = E.sum(-1, keepdim=True)
    return {"P": E / r, "Z": S - torch.log(r)}


def targets_of_one(dZ, P):
    """right only if each row of dZ sums to −1, as for the cross-entropy"""
    return dZ + P


def row_sum_of_the_product(dZ, P):
    """this is rowsum(P ∘ dZ), which belongs to softmax itself"""
    return dZ - P * rowsum(P * dZ)


def as_for_softmax(dZ, P):
    """the gradient of softmax, not of its logarithm"""
    return P * (dZ - rowsum(P * dZ))


def denominator_dropped(dZ, P):
    """the log of the row sum is taken for a constant"""
    return dZ.clone()


check_functions(
    {"dS": log_softmax_backward},
    log_softmax,
    inputs={"S": "n_q, n_k"},
    sizes=[{"n_q": 3, "n_k": 4}, {"n_q": 5, "n_k": 2}],
    mistakes=[targets_of_one, row_sum_of_the_product, as_for_softmax, denominator_dropped],
)

# %% [markdown] exercise="4.3" kind="function" points=4 title="Softmax over columns"
# Let $P$ be the softmax over *queries*, so that each column sums to 1. Write $dS$ from $dP$ and $P$.


# %% answer="4.3"
def column_softmax_backward(dP, P):
    """dS, n_q × n_k."""
    ### BEGIN SOLUTION
    return P * (dP - (P * dP).sum(0, keepdim=True))
    ### END SOLUTION


# %% checker="4.3"
def column_softmax(S):
    return {"P": torch.softmax(S, 0)}


def along_rows(dP, P):
    """the sum runs along the rows, and must run along the axis that was normalised"""
    return P * (dP - rowsum(P * dP))


def both_axes(dP, P):
    """one Jacobian for the whole matrix: columns are mixed"""
    return P * (dP - (P * dP).sum())


check_functions(
    {"dS": column_softmax_backward},
    column_softmax,
    inputs={"S": "n_q, n_k"},
    sizes=[{"n_q": 3, "n_k": 4}, {"n_q": 5, "n_k": 2}],
    mistakes=["softmax-diagonal", "softmax-no-rowsum", along_rows, both_axes],
)

# %% [markdown] exercise="4.4" kind="mistake" points=4 title="The mean of dP"
# A derivation that ends in $dS = P \circ (dP - \operatorname{rowsum}(dP))$. One line of it is false. Which,
# and what should stand there?

# %% given="4.4"
P = at.let("P", softmax(S, mask=mask)[0])
P_dot, _ = differential(softmax, moves(S, S_dot), mask=mask, name="P")
wrong = claim(inner(dP, P_dot), "the differential of ℓ")
wrong(inner(dP, P * S_dot) - inner(dP, P * rowsum(P * S_dot)), TANGENT, laws.LINEARITY)
wrong(inner(dP, P * S_dot) - inner(rowsum(dP), rowsum(P * S_dot)), laws.ROW_SUM)
wrong(inner(dP, P * S_dot) - inner(P * rowsum(dP), S_dot), laws.ROW_SUM)
wrong(inner(P * dP, S_dot) - inner(P * rowsum(dP), S_dot), laws.ENTRYWISE)
wrong(inner(P * (dP - rowsum(dP)), S_dot), laws.LINEARITY)
display(wrong)

# %% answer="4.4"
### BEGIN SOLUTION
answer = correct(3, inner(dP, P * S_dot) - inner(rowsum(P * dP), rowsum(P * S_dot)), laws.ROW_SUM)
### END SOLUTION


# %% checker="4.4"
def rest(line):
    line(inner(dP, P * S_dot) - inner(P * rowsum(P * dP), S_dot), laws.ROW_SUM)
    line(inner(P * dP, S_dot) - inner(P * rowsum(P * dP), S_dot), laws.ENTRYWISE)
    line(inner(P * (dP - rowsum(P * dP)), S_dot), laws.LINEARITY)


def second_line():
    """line 2 follows from line 1"""
    return correct(2, inner(dP, P * S_dot), TANGENT)


def fourth_line():
    """a line before line 4 is false already"""
    return correct(4, inner(dP, P * S_dot) - inner(P * rowsum(P * dP), S_dot), laws.ROW_SUM)


def dropped():
    """must equal the line before it"""
    return correct(3, inner(dP, P * S_dot), laws.ROW_SUM)


shipped = softmax_vjp(dP, SoftmaxSaved(P)).S
check_mistake(wrong, answer, S_dot, shipped, rest=rest, mistakes=[second_line, fourth_line, dropped])

# %% [markdown]
# **Questions.** 1. For which $dP$ is $P \circ (1 - P) \circ dP$ right in the entry $(i, j)$? 2. In exercise
# 4.1 let $\tau$ move and derive $d\tau$. Why is $\tau \, d\tau = \langle dS, S \rangle$? 3. What is $J$
# when $p$ is $(1, 0, 0)$? What does that mean for a query that is certain, and wrong?
